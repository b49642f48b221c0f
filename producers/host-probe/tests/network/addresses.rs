//! Addresses.

use super::*;

pub(super) const LOCAL: [u8; 4] = [127, 0, 0, 1];
pub(super) const MAPPED: Ipv6Addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();

pub(super) fn addresses() {
    // TCP over IPv4, IPv6, and IPv4 in IPv6; all ports are the kernel's choice.
    for (name, family, address, to) in [
        ("v4", AF_INET, v4(LOCAL, 0), v4(LOCAL, 0)),
        ("v6", AF_INET6, v6(Ipv6Addr::LOCALHOST, 0), v6(Ipv6Addr::LOCALHOST, 0)),
        ("mapped", AF_INET6, v6(Ipv6Addr::UNSPECIFIED, 0), v6(MAPPED, 0)),
    ] {
        let listener = sys::socket(family, SOCK_STREAM);
        assert_eq!(sys::bind(listener.as_raw_fd(), &address), 0);
        assert_eq!(sys::listen(listener.as_raw_fd()), 0);
        let port = port_of(listener.as_raw_fd());
        tell(name, port);
        let client = sys::socket(family, SOCK_STREAM);
        let mut to = to;
        to[2..4].copy_from_slice(&port.to_be_bytes());
        assert_eq!(sys::connect(client.as_raw_fd(), &to), 0);
        tell(&format!("{name}-client"), port_of(client.as_raw_fd()));
        sys::accept(listener.as_raw_fd());
        // The port is taken.
        let second = sys::socket(family, SOCK_STREAM);
        let mut address = address;
        address[2..4].copy_from_slice(&port.to_be_bytes());
        assert_eq!(sys::bind(second.as_raw_fd(), &address), -libc::EADDRINUSE);
    }
    // A listener that never was bound gets a port as it begins to listen.
    let unbound = sys::socket(AF_INET, SOCK_STREAM);
    assert_eq!(sys::listen(unbound.as_raw_fd()), 0);
    tell("unbound", port_of(unbound.as_raw_fd()));
    // UDP.
    let udp = sys::socket(AF_INET, SOCK_DGRAM);
    assert_eq!(sys::bind(udp.as_raw_fd(), &v4(LOCAL, 0)), 0);
    let port = port_of(udp.as_raw_fd());
    tell("udp", port);
    let client = sys::socket(AF_INET, SOCK_DGRAM);
    assert_eq!(sys::connect(client.as_raw_fd(), &v4(LOCAL, port)), 0);
    let udp6 = sys::socket(AF_INET6, SOCK_DGRAM);
    assert_eq!(sys::bind(udp6.as_raw_fd(), &v6(Ipv6Addr::UNSPECIFIED, 0)), 0);
    tell("udp6", port_of(udp6.as_raw_fd()));
    let client = sys::socket(AF_INET6, SOCK_DGRAM);
    assert_eq!(sys::connect(client.as_raw_fd(), &v6(MAPPED, port_of(udp6.as_raw_fd()))), 0);
    // Unix: an absolute path, a relative one, the longest, abstract, chosen by the kernel, and without a name.
    let absolute = std::env::current_dir().unwrap().join("absolute");
    let absolute = [absolute.to_str().unwrap().as_bytes(), b"\0"].concat();
    let abstract_name = format!("\0glasshouse-net-{}", std::process::id());
    let longest = [b'l'; 108];
    for address in [unix(&absolute), unix(b"relative\0"), unix(&longest), unix(abstract_name.as_bytes())] {
        let listener = sys::socket(AF_UNIX, SOCK_STREAM);
        assert_eq!(sys::bind(listener.as_raw_fd(), &address), 0);
        assert_eq!(sys::listen(listener.as_raw_fd()), 0);
        let client = sys::socket(AF_UNIX, SOCK_STREAM);
        assert_eq!(sys::connect(client.as_raw_fd(), &address), 0);
        sys::accept(listener.as_raw_fd());
        let second = sys::socket(AF_UNIX, SOCK_STREAM);
        assert_eq!(sys::bind(second.as_raw_fd(), &address), -libc::EADDRINUSE);
    }
    let chosen = sys::socket(AF_UNIX, SOCK_STREAM);
    assert_eq!(sys::bind(chosen.as_raw_fd(), &unix(b"")), 0);
    let unnamed = sys::socket(AF_UNIX, SOCK_STREAM);
    assert_eq!(sys::connect(unnamed.as_raw_fd(), &unix(b"")), -libc::EINVAL);
    // Kept, so that no port is given twice.
    drop((udp, udp6, unbound));
}

#[test]
pub(super) fn addresses_are_told_as_the_kernel_has_them() {
    let Some(told) = watch("addresses") else { return };
    told.run.assert_closed();
    const EADDRINUSE: i32 = -libc::EADDRINUSE;
    for (name, bound, to) in
        [("v4", "127.0.0.1", "127.0.0.1"), ("v6", "::1", "::1"), ("mapped", "::", "::ffff:127.0.0.1")]
    {
        let port = told.port(name);
        told.has_socket(Bind, bound, port, TCP, 0);
        told.has_socket(Listen, bound, port, TCP, 0);
        told.has_socket(Connect, to, port, TCP, 0);
        told.has_socket(Accept, to, told.port(&format!("{name}-client")), TCP, 0);
        told.has_socket(Bind, bound, port, TCP, EADDRINUSE);
    }
    told.has_socket(Listen, "0.0.0.0", told.port("unbound"), TCP, 0);
    told.has_socket(Bind, "127.0.0.1", told.port("udp"), UDP, 0);
    told.has_socket(Connect, "127.0.0.1", told.port("udp"), UDP, 0);
    told.has_socket(Bind, "::", told.port("udp6"), UDP, 0);
    told.has_socket(Connect, "::ffff:127.0.0.1", told.port("udp6"), UDP, 0);
    let sockets = told.sockets();
    for wanted in [Bind, Listen, Accept] {
        let chosen = sockets.iter().filter(|socket| socket.0 == wanted && socket.2 == Some(0));
        assert_eq!(chosen.count(), 0, "{sockets:#?}");
    }
}

#[test]
pub(super) fn unix_sockets_have_their_paths() {
    let Some(told) = watch("addresses") else { return };
    let sockets = told.sockets();
    let of = |operation| {
        sockets.iter().filter(|socket| socket.0 == operation && socket.2.is_none()).collect::<Vec<_>>()
    };
    let cwd = told.run.seen.iter().find_map(|seen| match seen {
        Seen::Exec { cwd, .. } => Some(cwd.clone()),
        _ => None,
    });
    let cwd = cwd.unwrap();
    const EADDRINUSE: i32 = -libc::EADDRINUSE;
    let abstract_name = format!("\0glasshouse-net-{}", told.run.pid);
    for path in [
        format!("{cwd}/absolute"),
        format!("{cwd}/relative"),
        format!("{cwd}/{}", "l".repeat(108)),
        abstract_name,
    ] {
        told.has_unix(Connect, &path, 0);
        told.has_unix(Bind, &path, EADDRINUSE);
        told.has_unix(Bind, &path, 0);
        // Where the directory of the binding is not known any more, the path is as its owner wrote it.
        let written = path.strip_prefix(&format!("{cwd}/")).filter(|name| *name != "absolute");
        told.has_unix(Listen, written.unwrap_or(&path), 0);
        told.has_unix(Accept, written.unwrap_or(&path), 0);
    }
    // Five hexadecimal digits.
    let chosen = of(Bind).into_iter().find(|socket| socket.1.len() == 6).unwrap();
    assert!(chosen.1.starts_with('\0'), "{chosen:?}");
}
