//! The network of a sandbox that has an allow-list: the node's, of which the command reaches what is on the list and nothing
//! else.
//!
//! The programs of `bpf/sandbox/connect.bpf.c` judge the calls and the packets of the execution's cgroup. Links that this
//! process holds keep them attached: they go when it goes, and so does the sandbox, whose init ends with it.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program};
use aya::{Ebpf, EbpfLoader};
use glasshouse_schema::connect::{ConnectHost, ConnectTarget};

/// `struct peer` of the programs behind its first field: version, port, address.
const PEER_BYTES: usize = 20;
/// Bits of it that stand before the address.
const BEFORE_ADDRESS: u32 = 32;

/// Who may be reached.
#[derive(Debug, Clone, Default)]
pub(in crate::process) struct Peers {
    networks: Vec<(IpAddr, u8, Option<u16>)>,
    /// As the receipt has them.
    pub(in crate::process) told: Vec<String>,
}

impl Peers {
    /// Looks names up.
    pub(in crate::process) async fn find(targets: &[ConnectTarget]) -> Result<Self, String> {
        let mut peers = Self::default();
        for target in targets {
            match &target.host {
                ConnectHost::Network(address, bits) => {
                    peers.networks.push((*address, *bits, target.port));
                    peers.told.push(target.to_string());
                }
                ConnectHost::Name(name) => {
                    let port = target.port.unwrap_or(0);
                    let found = tokio::net::lookup_host((name.as_str(), port)).await;
                    let found = found.map_err(|error| format!("the address of {name}: {error}"))?;
                    let mut addresses: Vec<IpAddr> = found.map(|found| found.ip()).collect();
                    addresses.sort_unstable();
                    addresses.dedup();
                    if addresses.is_empty() {
                        return Err(format!("{name} has no address"));
                    }
                    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                    peers.told.push(format!("{target} ({})", texts.join(", ")));
                    let all = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
                    peers.networks.extend(addresses.iter().map(|of| (*of, all(of), target.port)));
                }
            }
        }
        Ok(peers)
    }
}

/// The programs, attached until this is dropped.
#[derive(Debug)]
pub(in crate::process) struct AllowList(#[allow(dead_code, reason = "holds the links")] Ebpf);

impl AllowList {
    /// From here on the processes of the cgroup reach these peers only.
    pub(in crate::process) fn attach(cgroup: BorrowedFd<'_>, peers: &Peers) -> Result<Self, String> {
        let object =
            glasshouse_bpf::object(glasshouse_bpf::CONNECT).ok_or("this build embeds no BPF objects")?;
        // Nothing of the kernel's own types is in there: reading them would take longer than all the rest.
        let loaded = EbpfLoader::new().btf(None).load(object.bytes);
        let mut ebpf = loaded.map_err(|error| said("loading its programs", &error))?;
        let map = ebpf.map_mut("allowed").ok_or("its object has no map")?;
        let mut allowed: LpmTrie<_, [u8; PEER_BYTES], u8> =
            map.try_into().map_err(|error| said("opening its map", &error))?;
        for (address, bits, port) in &peers.networks {
            let added = allowed.insert(&key(*address, *bits, *port), 1, 0);
            added.map_err(|error| said("filling its map", &error))?;
        }
        for (name, program) in ebpf.programs_mut() {
            let attached = match program {
                Program::CgroupSockAddr(program) => {
                    program.load().and_then(|()| program.attach(cgroup, CgroupAttachMode::Single).map(|_| ()))
                }
                Program::CgroupSkb(program) => {
                    let way = match name.ends_with("ingress") {
                        true => CgroupSkbAttachType::Ingress,
                        false => CgroupSkbAttachType::Egress,
                    };
                    program
                        .load()
                        .and_then(|()| program.attach(cgroup, way, CgroupAttachMode::Single).map(|_| ()))
                }
                _ => return Err(format!("its object has a program {name} of another type")),
            };
            attached.map_err(|error| said(&format!("attaching {name} to the cgroup"), &error))?;
        }
        Ok(Self(ebpf))
    }
}

/// An address of IPv4 that is written as one of IPv6 is one of IPv4, as in the programs.
fn key(address: IpAddr, bits: u8, port: Option<u16>) -> Key<[u8; PEER_BYTES]> {
    let (address, bits) = match address {
        IpAddr::V6(mapped) if bits >= 96 => match mapped.to_ipv4_mapped() {
            Some(address) => (IpAddr::V4(address), bits - 96),
            None => (address, bits),
        },
        _ => (address, bits),
    };
    let mut peer = [0; PEER_BYTES];
    let (head, tail) = peer.split_at_mut(4);
    let version = match address {
        IpAddr::V4(address) => {
            tail[..4].copy_from_slice(&address.octets());
            4_u16
        }
        IpAddr::V6(address) => {
            tail.copy_from_slice(&address.octets());
            6
        }
    };
    head[..2].copy_from_slice(&version.to_ne_bytes());
    head[2..].copy_from_slice(&port.unwrap_or(0).to_be_bytes());
    Key::new(BEFORE_ADDRESS + u32::from(bits), peer)
}

fn said(what: &str, error: &dyn std::error::Error) -> String {
    let mut text = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(key: &Key<[u8; PEER_BYTES]>) -> (u32, [u8; PEER_BYTES]) {
        (key.prefix_len(), key.data())
    }

    #[test]
    fn a_mapped_address_is_one_of_ipv4_and_a_wide_network_is_not() {
        let v4 = parts(&key("10.1.2.3".parse().unwrap(), 32, Some(443)));
        assert_eq!(v4, parts(&key("::ffff:10.1.2.3".parse().unwrap(), 128, Some(443))));
        assert_eq!(v4.0, 64);
        assert_eq!(v4.1[2..8], [1, 187, 10, 1, 2, 3]);
        // All of IPv6, and nothing of IPv4.
        let (bits, all) = parts(&key("::".parse().unwrap(), 0, None));
        assert_eq!((bits, u16::from_ne_bytes([all[0], all[1]])), (32, 6));
    }

    #[tokio::test]
    async fn names_are_looked_up_once() {
        let peers =
            Peers::find(&["localhost:80".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]).await.unwrap();
        assert!(peers.networks.contains(&("127.0.0.1".parse().unwrap(), 32, Some(80))), "{peers:?}");
        assert!(peers.told[0].starts_with("localhost:80 (127.0.0.1"), "{peers:?}");
        let error = Peers::find(&["no-such-host.invalid:80".parse().unwrap()]).await.unwrap_err();
        assert!(error.contains("no-such-host.invalid"), "{error}");
    }
}
