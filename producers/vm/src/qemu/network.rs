//! The network of a machine that has an allow-list: QEMU's user-mode network, whose connections are sockets of QEMU's own process.
//!
//! What that process can reach the backend `process` judges, by the programs of `bpf/sandbox`, as it does for any sandboxed
//! command; so a target means the same here, and the host sees every connection. QEMU's own `restrict=on` is not for this: its
//! exceptions are named one by one, each for one address of the machine's own network.
//!
//! Addresses are the node's, but for one: the guest has a loopback of its own, so the node's 127.0.0.1 is [`LOOPBACK`] there.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use glasshouse_schema::connect::{ConnectHost, ConnectTarget};

/// The node's 127.0.0.1, and the guest's gateway.
pub(super) const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The machine's own network, in which nothing of the node's is reached.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 0);
const NETWORK_BITS: u8 = 24;
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// What a guest that asks for an address gets. Ours does not ask.
const ASSIGNED: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

/// QEMU's side of it.
pub(super) fn netdev() -> String {
    // QEMU's alias of the node's name server is given to the guest itself, where it leads nowhere: a target is an address.
    format!(
        "user,id=net,ipv6=off,net={NETWORK}/{NETWORK_BITS},host={LOOPBACK},dns={GUEST},dhcpstart={ASSIGNED}"
    )
}

/// The word of the kernel's command line that tells the guest's probe of its side.
pub(super) fn word() -> String {
    format!("glasshouse.network={GUEST}/{NETWORK_BITS},{LOOPBACK}")
}

/// Whether the machine can reach a target, should it be there.
pub(super) fn check(target: &ConnectTarget) -> Result<(), String> {
    let ConnectHost::Network(address, bits) = &target.host else { return Ok(()) };
    match address.to_canonical() {
        IpAddr::V6(_) => Err(format!("{target}: the network of a machine is of IPv4 only")),
        IpAddr::V4(address) if *bits >= NETWORK_BITS && in_network(address) => Err(format!(
            "{target} is in the machine's own network, {NETWORK}/{NETWORK_BITS}: name addresses as the node knows them; its \
             127.0.0.1 is {LOOPBACK} in the machine"
        )),
        IpAddr::V4(_) => Ok(()),
    }
}

/// Where the guest reaches what the node reaches there.
pub(super) fn within(server: SocketAddrV4) -> SocketAddrV4 {
    match server.ip().is_loopback() {
        true => SocketAddrV4::new(LOOPBACK, server.port()),
        false => server,
    }
}

fn in_network(address: Ipv4Addr) -> bool {
    address.octets()[..3] == NETWORK.octets()[..3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_cannot_reach_is_said_before_it_boots() {
        let check = |text: &str| check(&text.parse().unwrap());
        for target in ["192.0.2.1:443", "10.0.0.0/8", "127.0.0.1:80", "example.org:443", "::ffff:192.0.2.1"] {
            assert_eq!(check(target), Ok(()), "{target}");
        }
        for (target, why) in [
            ("10.0.2.2:80", "127.0.0.1"),
            ("10.0.2.0/24", "own network"),
            ("[2001:db8::1]:443", "IPv4 only"),
            ("::1", "IPv4 only"),
        ] {
            assert!(check(target).unwrap_err().contains(why), "{target}");
        }
    }
}
