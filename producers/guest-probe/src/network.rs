//! The interfaces of a machine: loopback, and the one that its VMM gave it, with an address that the host says. Nothing is asked
//! of the network: whoever answers there is not the host.

#![allow(unsafe_code, reason = "interfaces and routes are set by ioctl, which has no safe API")]

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context as _;

use crate::machine::awaited;

const INTERFACES: &str = "/sys/class/net";
const LOOPBACK: &str = "lo";

/// Where the guest is on its network. Written `ADDRESS/BITS,GATEWAY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: Ipv4Addr,
    mask: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl FromStr for Network {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bad = || format!("`{text}` is no network: expected ADDRESS/BITS,GATEWAY");
        let (address, gateway) = text.split_once(',').with_context(bad)?;
        let (address, bits) = address.split_once('/').with_context(bad)?;
        let bits: u32 = bits.parse().ok().filter(|bits| (1..=32).contains(bits)).with_context(bad)?;
        Ok(Self {
            address: address.parse().with_context(bad)?,
            mask: Ipv4Addr::from_bits(u32::MAX << (32 - bits)),
            gateway: gateway.parse().with_context(bad)?,
        })
    }
}

impl Network {
    /// Takes the address on the machine's only interface, and the gateway for everything beyond.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        let name = awaited("network interface", interface)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let set = |number, field| set(&socket, &name, number, field);
        set(libc::SIOCSIFADDR, libc::__c_anonymous_ifr_ifru { ifru_addr: internet(self.address) })
            .context("its address")?;
        set(libc::SIOCSIFNETMASK, libc::__c_anonymous_ifr_ifru { ifru_netmask: internet(self.mask) })
            .context("its netmask")?;
        up(&socket, &name)?;
        let unset = internet(Ipv4Addr::UNSPECIFIED);
        // SAFETY: a rtentry of zeroes is valid, and names no interface.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        (route.rt_dst, route.rt_genmask, route.rt_gateway) = (unset, unset, internet(self.gateway));
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: the call reads a rtentry.
        done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) })
            .context("its route")?;
        let has_link = || fs::read_to_string(Path::new(INTERFACES).join(&name).join("operstate")).ok();
        awaited("link of the network", || {
            has_link().filter(|state| matches!(state.trim_end(), "up" | "unknown"))
        })?;
        Ok(())
    }
}

/// Sets the loopback interface up, which gives it its addresses.
pub(crate) fn loopback_up() -> anyhow::Result<()> {
    up(&UdpSocket::bind("0.0.0.0:0")?, LOOPBACK)
}

fn up(socket: &UdpSocket, name: &str) -> anyhow::Result<()> {
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    set(socket, name, libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })
        .with_context(|| format!("setting {name} up"))
}

/// The one that is not loopback.
fn interface() -> Option<String> {
    let names =
        fs::read_dir(INTERFACES).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.into_iter().find(|name| name != LOOPBACK)
}

fn set(
    socket: &UdpSocket,
    name: &str,
    number: libc::c_ulong,
    field: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    // SAFETY: an ifreq of zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let (_, room) = request.ifr_name.split_last_mut().unwrap_or((&mut 0, &mut []));
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru = field;
    // SAFETY: the calls that set something of an interface read an ifreq.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), number as _, &raw const request) })
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    // Behind the port, which means nothing here, stands the address (ip(7)).
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_network_is_read_from_one_word() {
        let network: Network = "10.0.2.15/24,10.0.2.2".parse().unwrap();
        assert_eq!(network.mask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!((network.address.octets()[3], network.gateway.octets()[3]), (15, 2));
        for bad in
            ["", "10.0.2.15", "10.0.2.15/24", "10.0.2.15/0,10.0.2.2", "10.0.2.15/33,10.0.2.2", "a/24,b"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
