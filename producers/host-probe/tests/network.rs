//! Sockets on the real kernel: who was talked to, how many bytes went, and what names were asked for.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a module of test helpers has no outside")]

#[allow(dead_code, reason = "shared with the other tests of the probe")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use glasshouse_host_probe::{HostProbe, LoadOptions};
use glasshouse_schema::event::SocketOperation::{self, Accept, Bind, Connect, Listen, Send};
use libc::{AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM};
use support::{Run, Seen, Started, run_workload, start_lossless, start_lossless_workload, wait_for};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a watched process does: this test binary runs itself with [`support::WORKLOAD`] set.
#[test]
fn workload() {
    let Ok(name) = std::env::var(support::WORKLOAD) else { return };
    match name.as_str() {
        "addresses" => addresses(),
        "stream" => stream(),
        "datagrams" => datagrams(),
        "rotation" => rotation(),
        "threads" => threads(),
        "failures" => failures(),
        "fastopen" => fastopen(),
        "elsewhere" => elsewhere(),
        "reuse" => reuse(),
        "fork" => fork(),
        "peek" => peek(),
        "untold" => untold(),
        "unspecific" => unspecific(),
        "hidden" => hidden(),
        "names" => names(),
        "oddities" => oddities(),
        "getent" => resolver(&["/usr/bin/getent", "ahosts", "ChaIn.Test"]),
        "python" => {
            resolver(&["/usr/bin/python3", "-c", "import socket; socket.getaddrinfo('chain.test', 80)"]);
        }
        "storm" => storm(4, 4000),
        "long" => long(),
        "burst" => burst(),
        "exits" => exits(),
        "observer" => observer(),
        "stopper" => stopper(),
        "sleeper" => sleeper(),
        "orphan" => orphan(false),
        "orphan-session" => orphan(true),
        "job" => job(),
        "holder" => holder(),
        name => panic!("no workload {name}"),
    }
}

/// Calls as they are, with nothing of the standard library around them. Each gives what the kernel did: -errno.
mod sys {
    #![allow(unsafe_code, reason = "the standard library has no such calls, or makes others beside them")]

    use std::io::{IoSlice, IoSliceMut};
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::ptr::{null, null_mut};

    pub fn socket(family: i32, kind: i32) -> OwnedFd {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: just made, and nobody else's.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn result(result: isize) -> isize {
        match result {
            0.. => result,
            _ => -(std::io::Error::last_os_error().raw_os_error().unwrap() as isize),
        }
    }

    pub fn bind(fd: i32, address: &[u8]) -> i32 {
        // SAFETY: the kernel reads as many bytes as there are.
        result(unsafe { libc::bind(fd, address.as_ptr().cast(), address.len() as u32) } as isize) as i32
    }

    pub fn connect(fd: i32, address: &[u8]) -> i32 {
        // SAFETY: as above.
        result(unsafe { libc::connect(fd, address.as_ptr().cast(), address.len() as u32) } as isize) as i32
    }

    pub fn listen(fd: i32) -> i32 {
        // SAFETY: no pointers.
        result(unsafe { libc::listen(fd, 16) } as isize) as i32
    }

    pub fn accept(fd: i32) -> OwnedFd {
        // SAFETY: no addresses are asked for.
        let fd = result(unsafe { libc::accept(fd, null_mut(), null_mut()) } as isize) as i32;
        assert!(fd >= 0, "{fd}");
        // SAFETY: just made, and nobody else's.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    pub fn send(fd: i32, data: &[u8], flags: i32, to: &[u8]) -> isize {
        let name = if to.is_empty() { null() } else { to.as_ptr().cast() };
        // SAFETY: both are read up to their lengths.
        result(unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, name, to.len() as u32) })
    }

    /// With `from`, the source is asked for.
    pub fn receive(fd: i32, data: &mut [u8], flags: i32, from: bool) -> isize {
        let mut name = [0u8; 28];
        let mut bytes = 28;
        let (at, length) = match from {
            true => (name.as_mut_ptr().cast(), &raw mut bytes),
            false => (null_mut(), null_mut()),
        };
        // SAFETY: all are written up to their lengths.
        result(unsafe { libc::recvfrom(fd, data.as_mut_ptr().cast(), data.len(), flags, at, length) })
    }

    fn header(vectors: *mut libc::iovec, count: usize, name: &[u8], name_bytes: usize) -> libc::msghdr {
        // SAFETY: all of its fields may be 0.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = vectors;
        header.msg_iovlen = count;
        if !name.is_empty() {
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name_bytes as u32;
        }
        header
    }

    pub fn sendmsg(fd: i32, parts: &[&[u8]], flags: i32, to: &[u8]) -> isize {
        named_sendmsg(fd, parts, flags, to, to.len())
    }

    /// With a length of the name that is not its own.
    pub fn named_sendmsg(fd: i32, parts: &[&[u8]], flags: i32, to: &[u8], to_bytes: usize) -> isize {
        let vectors: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let header = header(vectors.as_ptr().cast_mut().cast(), vectors.len(), to, to_bytes);
        // SAFETY: IoSlice has the layout of iovec, and everything lives for the call.
        result(unsafe { libc::sendmsg(fd, &raw const header, flags) })
    }

    pub fn recvmsg(fd: i32, parts: &mut [IoSliceMut<'_>], flags: i32, from: bool) -> isize {
        let name = [0u8; 28];
        let asked: &[u8] = if from { &name } else { &[] };
        let mut header = header(parts.as_mut_ptr().cast(), parts.len(), asked, asked.len());
        // SAFETY: as above; the name is written by the kernel alone.
        result(unsafe { libc::recvmsg(fd, &raw mut header, flags) })
    }

    pub fn sendmmsg(fd: i32, messages: &[(&[u8], &[u8])], flags: i32) -> isize {
        let vectors: Vec<IoSlice<'_>> = messages.iter().map(|(data, _)| IoSlice::new(data)).collect();
        let mut headers: Vec<libc::mmsghdr> = messages
            .iter()
            .zip(&vectors)
            .map(|((_, to), vector)| libc::mmsghdr {
                msg_hdr: header(std::ptr::from_ref(vector).cast_mut().cast(), 1, to, to.len()),
                msg_len: 0,
            })
            .collect();
        // SAFETY: as above.
        result(unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, flags as _) } as isize)
    }

    /// As many messages as there are, at most `count`; the source of each is asked for with `from`.
    pub fn recvmmsg(fd: i32, count: usize, from: bool) -> isize {
        let mut buffers = vec![[0u8; 4096]; count];
        let names = vec![[0u8; 28]; count];
        let mut vectors: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut headers: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .zip(&names)
            .map(|(vector, name)| {
                let asked: &[u8] = if from { name } else { &[] };
                let msg_hdr = header(std::ptr::from_mut(vector).cast(), 1, asked, asked.len());
                libc::mmsghdr { msg_hdr, msg_len: 0 }
            })
            .collect();
        let flags = libc::MSG_WAITFORONE;
        // SAFETY: as above.
        let got = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count as u32, flags as _, null_mut()) };
        result(got as isize)
    }

    pub fn sendfile(to: i32, from: i32, bytes: usize) -> isize {
        // SAFETY: no offset is passed.
        result(unsafe { libc::sendfile(to, from, null_mut(), bytes) })
    }

    pub fn set(fd: i32, level: i32, option: i32, value: i32) -> i32 {
        // SAFETY: an int is read.
        let set = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) };
        result(set as isize) as i32
    }

    /// A network of its own (and mounts of its own), its loopback up.
    pub fn own_network(mounts: bool) {
        let flags = libc::CLONE_NEWNET | if mounts { libc::CLONE_NEWNS } else { 0 };
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::unshare(flags) }, 0);
        let fd = socket(libc::AF_INET, libc::SOCK_DGRAM);
        // SAFETY: all of its fields may be 0.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name[..2].copy_from_slice(&[b'l' as _, b'o' as _]);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        // SAFETY: the request is whole.
        let up = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::SIOCSIFFLAGS, &request) };
        assert_eq!(up, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn mount(from: &std::ffi::CStr, to: &std::ffi::CStr, flags: u64) {
        // SAFETY: strings that end, and no data.
        let mounted = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), null(), flags, null()) };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn dup2(from: i32, to: i32) {
        // SAFETY: no pointers; `to` is owned by nobody.
        assert_eq!(unsafe { libc::dup2(from, to) }, to);
    }

    pub fn close(fd: i32) {
        // SAFETY: owned by nobody else.
        assert_eq!(unsafe { libc::close(fd) }, 0);
    }

    /// Runs this in a child; gives its process id.
    pub fn child(what: impl FnOnce()) -> i32 {
        // SAFETY: the child is single-threaded, does what needs no other thread, and ends without unwinding.
        match unsafe { libc::fork() } {
            0 => {
                what();
                // SAFETY: ends it.
                unsafe { libc::_exit(0) }
            }
            child => child,
        }
    }

    /// Waits for a change of the child; its status.
    pub fn wait(child: i32, flags: i32) -> i32 {
        let mut status = 1;
        // SAFETY: an int is written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, flags) }, child);
        status
    }

    pub fn signal(process: i32, signal: i32) {
        // SAFETY: no pointers.
        unsafe { libc::kill(process, signal) };
    }

    pub fn own_session() {
        // SAFETY: no pointers.
        assert!(unsafe { libc::setsid() } > 0);
    }

    pub fn own_group() {
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::setpgid(0, 0) }, 0);
    }

    /// Waits for an event that never comes, at most so long: 0, or -errno.
    pub fn wait_for_nothing(milliseconds: i32) -> i32 {
        // SAFETY: room for one event; the descriptor lives until the process ends.
        unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let mut event: libc::epoll_event = std::mem::zeroed();
            result(libc::epoll_wait(epoll, &raw mut event, 1, milliseconds) as isize) as i32
        }
    }
}

// Addresses as the kernel takes them.

fn v4(address: impl Into<Ipv4Addr>, port: u16) -> Vec<u8> {
    let mut bytes = (AF_INET as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend(address.into().octets());
    bytes.resize(16, 0);
    bytes
}

fn v6(address: impl Into<Ipv6Addr>, port: u16) -> Vec<u8> {
    let mut bytes = (AF_INET6 as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(address.into().octets());
    bytes.resize(28, 0);
    bytes
}

fn unix(path: &[u8]) -> Vec<u8> {
    [&(AF_UNIX as u16).to_ne_bytes(), path].concat()
}

fn port_of(fd: i32) -> u16 {
    use std::os::fd::BorrowedFd;
    #[allow(unsafe_code, reason = "a descriptor of libc")]
    // SAFETY: open for the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let socket = UdpSocket::from(fd.try_clone_to_owned().unwrap());
    socket.local_addr().unwrap().port()
}

/// Tells the test a number that only the workload knows.
fn tell(name: &str, value: u16) {
    let mut file = std::fs::File::options().create(true).append(true).open("told").unwrap();
    writeln!(file, "{name} {value}").unwrap();
}

/// A run, and what its workload told.
struct Told {
    run: Run,
    ports: BTreeMap<String, u16>,
}

/// Calls and bytes between the execution and a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Traffic {
    sends: u64,
    sent: u64,
    receives: u64,
    received: u64,
}

fn sent(sends: u64, sent: u64) -> Traffic {
    Traffic { sends, sent, ..Traffic::default() }
}

fn received(receives: u64, received: u64) -> Traffic {
    Traffic { receives, received, ..Traffic::default() }
}

type Peer = (String, u16, u8);

fn peer(address: &str, port: u16, protocol: u8) -> Peer {
    (address.to_owned(), port, protocol)
}

fn show(address: &[u8], port: Option<u16>) -> String {
    match (port, address.len()) {
        (Some(_), 4) => Ipv4Addr::from(<[u8; 4]>::try_from(address).unwrap()).to_string(),
        (Some(_), 16) => Ipv6Addr::from(<[u8; 16]>::try_from(address).unwrap()).to_string(),
        _ => support::text(address),
    }
}

impl Told {
    fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    /// All traffic, over all processes.
    fn traffic(&self) -> BTreeMap<Peer, Traffic> {
        let mut traffic = BTreeMap::<Peer, Traffic>::new();
        for seen in &self.run.seen {
            let Seen::Traffic { address, port, protocol, sends, receives, sent_bytes, received_bytes } = seen
            else {
                continue;
            };
            let of = traffic.entry((show(address, *port), port.unwrap(), *protocol)).or_default();
            of.sends += sends;
            of.receives += receives;
            of.sent += sent_bytes;
            of.received += received_bytes;
        }
        traffic
    }

    fn sockets(&self) -> Vec<(SocketOperation, String, Option<u16>, u8, i32)> {
        let socket = |seen: &Seen| match seen {
            Seen::Socket { operation, address, port, protocol, result } => {
                Some((*operation, show(address, *port), *port, *protocol, *result))
            }
            _ => None,
        };
        self.run.seen.iter().filter_map(socket).collect()
    }

    #[track_caller]
    fn has_socket(&self, operation: SocketOperation, address: &str, port: u16, protocol: u8, result: i32) {
        let wanted = (operation, address.to_owned(), Some(port), protocol, result);
        assert!(self.sockets().contains(&wanted), "{wanted:?} is not among {:#?}", self.sockets());
    }

    #[track_caller]
    fn has_unix(&self, operation: SocketOperation, path: &str, result: i32) {
        let wanted = (operation, path.to_owned(), None, 0, result);
        assert!(self.sockets().contains(&wanted), "{wanted:?} is not among {:#?}", self.sockets());
    }

    /// Destinations of datagrams.
    fn destinations(&self) -> BTreeSet<(String, u16)> {
        let sends = self.sockets().into_iter().filter(|socket| socket.0 == Send && socket.4 == 0);
        sends.map(|socket| (socket.1, socket.2.unwrap())).collect()
    }

    fn dns(&self) -> Vec<Asked> {
        let dns = |seen: &Seen| match seen {
            Seen::Dns { name, query_type, answers, response_code } => {
                let answers = answers.iter().map(|answer| show(answer, Some(0))).collect();
                Some((name.clone(), *query_type, answers, *response_code))
            }
            _ => None,
        };
        self.run.seen.iter().filter_map(dns).collect()
    }
}

/// Name, type, answers, code.
type Asked = (String, u16, Vec<String>, Option<u8>);

fn question_of(name: &str, query_type: u16) -> Asked {
    (name.to_owned(), query_type, Vec::new(), None)
}

fn answer_of(name: &str, query_type: u16, answers: &[&str], code: u8) -> Asked {
    (name.to_owned(), query_type, answers.iter().map(|&answer| answer.to_owned()).collect(), Some(code))
}

/// Runs a workload; `None` where the host can't.
fn watch(name: &str) -> Option<Told> {
    let probe = support::probe()?;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let run = run_workload(&probe, name, &root);
    let told = std::fs::read_to_string(root.join("told")).unwrap_or_default();
    let ports = told
        .lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect();
    assert!(run.status.success(), "{name}: {:?} {told}", run.status);
    for class in glasshouse_schema::Class::ALL {
        assert!(run.report.counters.class(class).adds_up());
    }
    let told = Told { run, ports };
    Some(told)
}

// Addresses.

const LOCAL: [u8; 4] = [127, 0, 0, 1];
const MAPPED: Ipv6Addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();

fn addresses() {
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
fn addresses_are_told_as_the_kernel_has_them() {
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
fn unix_sockets_have_their_paths() {
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

// Traffic.

fn pair() -> (TcpListener, std::net::TcpStream, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    (listener, client, server)
}

/// Every way to send and to receive, each with another number of bytes.
fn stream() {
    let (listener, mut client, mut server) = pair();
    tell("server", listener.local_addr().unwrap().port());
    tell("client", client.local_addr().unwrap().port());
    let (to, from) = (client.as_raw_fd(), server.as_raw_fd());
    std::fs::write("file", [7; 1000]).unwrap();
    let file = std::fs::File::open("file").unwrap();
    let data = [5u8; 4096];
    let mut buffer = [0u8; 4096];
    // 1 + 20 + 300 + 4000 + (2 + 30) + 999 bytes, in 7 messages.
    assert_eq!(client.write(&data[..1]).unwrap(), 1);
    assert_eq!(server.read(&mut buffer).unwrap(), 1);
    let parts = [std::io::IoSlice::new(&data[..8]), std::io::IoSlice::new(&data[..12])];
    assert_eq!(client.write_vectored(&parts).unwrap(), 20);
    let (one, two) = buffer.split_at_mut(8);
    let mut parts = [std::io::IoSliceMut::new(one), std::io::IoSliceMut::new(two)];
    assert_eq!(server.read_vectored(&mut parts).unwrap(), 20);
    assert_eq!(sys::send(to, &data[..300], 0, &[]), 300);
    assert_eq!(sys::receive(from, &mut buffer, 0, true), 300);
    assert_eq!(sys::sendmsg(to, &[&data[..1500], &data[..2500]], 0, &[]), 4000);
    let (one, two) = buffer[..4000].split_at_mut(8);
    let mut parts = [std::io::IoSliceMut::new(one), std::io::IoSliceMut::new(two)];
    assert_eq!(sys::recvmsg(from, &mut parts, libc::MSG_WAITALL, false), 4000);
    assert_eq!(sys::sendmmsg(to, &[(&data[..2], &[]), (&data[..30], &[])], 0), 2);
    assert_eq!(sys::recvmmsg(from, 1, false), 1);
    assert_eq!(sys::sendfile(to, file.as_raw_fd(), 999), 999);
    assert_eq!(sys::receive(from, &mut buffer, 0, false), 999);
    // The other way, and a name that a stream has no use for.
    assert_eq!(sys::send(from, &data[..77], 0, &v4([192, 0, 2, 1], 9)), 77);
    assert_eq!(sys::receive(to, &mut buffer, 0, false), 77);
    // The end is received as well.
    drop(client);
    assert_eq!(server.read(&mut buffer).unwrap(), 0);
}

#[test]
fn every_way_to_send_and_receive_counts_its_bytes() {
    let Some(told) = watch("stream") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    assert_eq!(traffic.len(), 2, "{traffic:#?}");
    let total = 1 + 20 + 300 + 4000 + 2 + 30 + 999;
    let client = Traffic { sends: 7, sent: total, receives: 1, received: 77 };
    assert_eq!(traffic[&peer("127.0.0.1", told.port("server"), TCP)], client);
    let server = Traffic { sends: 1, sent: 77, receives: 7, received: total };
    assert_eq!(traffic[&peer("127.0.0.1", told.port("client"), TCP)], server);
}

fn datagrams() {
    let mut buffer = [0u8; 4096];
    let data = [9u8; 2048];
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    tell("receiver", port_of(receiver.as_raw_fd()));
    let at = v4(LOCAL, port_of(receiver.as_raw_fd()));
    // Connected.
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    tell("connected", port_of(connected.as_raw_fd()));
    let fd = connected.as_raw_fd();
    assert_eq!(sys::connect(fd, &at), 0);
    assert_eq!(sys::send(fd, &data[..10], 0, &[]), 10);
    assert_eq!(nix::unistd::write(&connected, &data[..11]).unwrap(), 11);
    assert_eq!(sys::sendmsg(fd, &[&data[..6], &data[..6]], 0, &[]), 12);
    assert_eq!(sys::sendmmsg(fd, &[(&data[..13], &[]), (&data[..14], &[])], 0), 2);
    // With the source asked for, by each call that can.
    assert_eq!(sys::receive(receiver.as_raw_fd(), &mut buffer, 0, true), 10);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    assert_eq!(sys::recvmsg(receiver.as_raw_fd(), &mut parts, 0, true), 11);
    assert_eq!(sys::recvmmsg(receiver.as_raw_fd(), 8, true), 3);
    // A connected socket may name another, and goes back to its own.
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    tell("other", port_of(other.as_raw_fd()));
    assert_eq!(sys::send(fd, &data[..21], 0, &v4(LOCAL, port_of(other.as_raw_fd()))), 21);
    assert_eq!(sys::send(fd, &data[..22], 0, &[]), 22);
    // A name without a length is none.
    assert_eq!(sys::named_sendmsg(fd, &[&data[..24]], 0, &at, 0), 24);
    // Not connected, IPv4 from IPv6.
    let dual = sys::socket(AF_INET6, SOCK_DGRAM);
    let mapped = v6(MAPPED, port_of(other.as_raw_fd()));
    assert_eq!(sys::send(dual.as_raw_fd(), &data[..31], 0, &mapped), 31);
    let six = UdpSocket::bind("[::1]:0").unwrap();
    tell("six", port_of(six.as_raw_fd()));
    let to = v6(Ipv6Addr::LOCALHOST, port_of(six.as_raw_fd()));
    assert_eq!(sys::send(dual.as_raw_fd(), &data[..32], 0, &to), 32);
    // Empty.
    assert_eq!(sys::send(dual.as_raw_fd(), &[], 0, &to), 0);
}

#[test]
fn datagrams_are_counted_where_they_go() {
    let Some(told) = watch("datagrams") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    let receiver = sent(7, 10 + 11 + 12 + 13 + 14 + 22 + 24);
    assert_eq!(traffic[&peer("127.0.0.1", told.port("receiver"), UDP)], receiver, "{traffic:#?}");
    let connected = received(5, 10 + 11 + 12 + 13 + 14);
    assert_eq!(traffic[&peer("127.0.0.1", told.port("connected"), UDP)], connected, "{traffic:#?}");
    assert_eq!(traffic[&peer("127.0.0.1", told.port("other"), UDP)], sent(1, 21));
    assert_eq!(traffic[&peer("::ffff:127.0.0.1", told.port("other"), UDP)], sent(1, 31));
    assert_eq!(traffic[&peer("::1", told.port("six"), UDP)], sent(2, 32));
    // Only what was named.
    let wanted = [("127.0.0.1", "other"), ("::ffff:127.0.0.1", "other"), ("::1", "six")];
    let wanted = wanted.map(|(address, port)| (address.to_owned(), told.port(port)));
    assert_eq!(told.destinations(), BTreeSet::from(wanted));
}

const PEERS: u16 = 20;
const ROUNDS: u16 = 6;

/// More peers than a task has room for, in turn, over one socket and over many.
fn rotation() {
    let data = [1u8; 2048];
    let receivers: Vec<_> = (0..PEERS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = receivers.iter().map(|receiver| port_of(receiver.as_raw_fd())).collect();
    for (number, port) in ports.iter().enumerate() {
        tell(&format!("peer-{number}"), *port);
    }
    let one = sys::socket(AF_INET, SOCK_DGRAM);
    let connected: Vec<_> = ports
        .iter()
        .map(|port| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(("127.0.0.1", *port)).unwrap();
            socket
        })
        .collect();
    for round in 0..ROUNDS {
        let mut batch = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let bytes = 1 + number + usize::from(round);
            assert_eq!(sys::send(one.as_raw_fd(), &data[..bytes], 0, &v4(LOCAL, *port)), bytes as isize);
            connected[number].send(&data[..bytes + 100]).unwrap();
            batch.push((bytes + 1000, v4(LOCAL, *port)));
        }
        let batch: Vec<(&[u8], &[u8])> = batch.iter().map(|(bytes, to)| (&data[..*bytes], &to[..])).collect();
        assert_eq!(sys::sendmmsg(one.as_raw_fd(), &batch, 0), PEERS as isize);
    }
}

#[test]
fn more_peers_than_there_is_room_for_lose_nothing() {
    let Some(told) = watch("rotation") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    for number in 0..PEERS {
        let port = told.port(&format!("peer-{number}"));
        let bytes: u64 = (0..ROUNDS).map(|round| u64::from(1 + number + round) * 3 + 100 + 1000).sum();
        assert_eq!(traffic[&peer("127.0.0.1", port, UDP)], sent(u64::from(ROUNDS) * 3, bytes), "{number}");
        assert!(told.destinations().contains(&("127.0.0.1".to_owned(), port)));
    }
    assert_eq!(traffic.len(), usize::from(PEERS));
}

/// Two threads over one connection, each end in a thread of its own.
fn threads() {
    let (listener, client, server) = pair();
    tell("server", listener.local_addr().unwrap().port());
    tell("client", client.local_addr().unwrap().port());
    let writers: Vec<_> = [client.try_clone().unwrap(), client]
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || (0..1000).for_each(|_| client.write_all(&[3; 100]).unwrap()))
        })
        .collect();
    let reader = std::thread::spawn(move || {
        let mut total = 0;
        let mut buffer = [0; 100];
        while total < 200_000 {
            total += (&server).read(&mut buffer).unwrap();
        }
    });
    for thread in writers.into_iter().chain([reader]) {
        thread.join().unwrap();
    }
}

#[test]
fn threads_add_up() {
    let Some(told) = watch("threads") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    let client = traffic[&peer("127.0.0.1", told.port("server"), TCP)];
    let server = traffic[&peer("127.0.0.1", told.port("client"), TCP)];
    assert_eq!(client, sent(2000, 200_000));
    assert_eq!((server.received, server.sent, server.sends), (200_000, 0, 0));
}

fn failures() {
    sys::own_network(false);
    let socket = sys::socket(AF_INET, SOCK_DGRAM);
    let fd = socket.as_raw_fd();
    assert_eq!(sys::send(fd, b"x", 0, &v4([192, 0, 2, 1], 9)), -(libc::ENETUNREACH as isize));
    assert_eq!(sys::sendmsg(fd, &[b"x"], 0, &v4([192, 0, 2, 2], 9)), -(libc::ENETUNREACH as isize));
    assert_eq!(sys::sendmmsg(fd, &[(b"x", &v4([192, 0, 2, 3], 9))], 0), -(libc::ENETUNREACH as isize));
    // Without SO_BROADCAST.
    assert_eq!(sys::send(fd, b"x", 0, &v4([127, 255, 255, 255], 9)), -(libc::EACCES as isize));
    // Nobody is there: the second learns of it.
    assert_eq!(sys::connect(fd, &v4(LOCAL, 9)), 0);
    assert_eq!(sys::send(fd, b"xyz", 0, &[]), 3);
    assert_eq!(sys::send(fd, b"xyz", 0, &v4(LOCAL, 9)), -(libc::ECONNREFUSED as isize));
    assert_eq!(sys::send(fd, b"xyz", 0, &[]), 3);
    assert_eq!(sys::send(fd, b"xyz", 0, &[]), -(libc::ECONNREFUSED as isize));
    // The first goes, the second can't.
    let refused = sys::socket(AF_INET, SOCK_DGRAM);
    let batch: [(&[u8], &[u8]); 2] = [(b"1234", &v4(LOCAL, 10)), (b"x", &v4([192, 0, 2, 4], 9))];
    assert_eq!(sys::sendmmsg(refused.as_raw_fd(), &batch, 0), 1);
    let stream = sys::socket(AF_INET, SOCK_STREAM);
    assert_eq!(sys::connect(stream.as_raw_fd(), &v4([192, 0, 2, 5], 9)), -libc::ENETUNREACH);
    assert_eq!(sys::connect(stream.as_raw_fd(), &v4(LOCAL, 9)), -libc::ECONNREFUSED);
}

#[test]
fn what_could_not_be_sent_is_told() {
    let Some(told) = watch("failures") else { return };
    told.run.assert_closed();
    told.has_socket(Send, "192.0.2.1", 9, UDP, -libc::ENETUNREACH);
    told.has_socket(Send, "192.0.2.2", 9, UDP, -libc::ENETUNREACH);
    told.has_socket(Send, "127.255.255.255", 9, UDP, -libc::EACCES);
    told.has_socket(Send, "127.0.0.1", 9, UDP, -libc::ECONNREFUSED);
    told.has_socket(Connect, "192.0.2.5", 9, TCP, -libc::ENETUNREACH);
    told.has_socket(Connect, "127.0.0.1", 9, TCP, -libc::ECONNREFUSED);
    let traffic = told.traffic();
    assert_eq!(traffic[&peer("127.0.0.1", 9, UDP)], sent(2, 6));
    assert_eq!(traffic[&peer("127.0.0.1", 10, UDP)], sent(1, 4));
    assert_eq!(traffic.len(), 2, "{traffic:#?}");
    // The third went by sendmmsg.
    told.has_socket(Send, "192.0.2.3", 9, UDP, -libc::ENETUNREACH);
}

const MSG_FASTOPEN: i32 = libc::MSG_FASTOPEN;
const TCP_FASTOPEN: i32 = libc::TCP_FASTOPEN;
const TCP_FASTOPEN_CONNECT: i32 = libc::TCP_FASTOPEN_CONNECT;

fn fastopen() {
    sys::own_network(false);
    // For clients and servers, without a cookie.
    std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543").unwrap();
    type Way<'a> = (&'a str, &'a dyn Fn(i32, &[u8]));
    let ways: [Way<'_>; 4] = [
        ("sendto", &|fd, to| {
            assert_eq!(sys::send(fd, b"one", MSG_FASTOPEN, to), 3);
            assert_eq!(sys::send(fd, b"more", 0, &[]), 4);
        }),
        ("sendmsg", &|fd, to| assert_eq!(sys::sendmsg(fd, &[b"fi", b"ve."], MSG_FASTOPEN, to), 5)),
        ("sendmmsg", &|fd, to| assert_eq!(sys::sendmmsg(fd, &[(b"14 bytes in it", to)], MSG_FASTOPEN), 1)),
        ("option", &|fd, to| {
            assert_eq!(sys::set(fd, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1), 0);
            assert_eq!(sys::connect(fd, to), 0);
            assert_eq!(sys::send(fd, b"16 bytes in this", 0, &[]), 16);
        }),
    ];
    for (name, way) in ways {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _ = sys::set(listener.as_raw_fd(), libc::IPPROTO_TCP, TCP_FASTOPEN, 5);
        let port = listener.local_addr().unwrap().port();
        tell(name, port);
        let socket = sys::socket(AF_INET, SOCK_STREAM);
        way(socket.as_raw_fd(), &v4(LOCAL, port));
        drop(socket);
        listener.accept().unwrap().0.read_to_end(&mut Vec::new()).unwrap();
    }
    // Nobody is there.
    let refused = sys::socket(AF_INET, SOCK_STREAM);
    let result = sys::send(refused.as_raw_fd(), b"x", MSG_FASTOPEN, &v4(LOCAL, 9));
    assert!(result == 1 || result == -(libc::ECONNREFUSED as isize), "{result}");
}

#[test]
fn fast_opens_are_connects() {
    let Some(told) = watch("fastopen") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    let wanted = [("option", 1, 16), ("sendto", 2, 7), ("sendmsg", 1, 5), ("sendmmsg", 1, 14)];
    for (name, sends, bytes) in wanted {
        let port = told.port(name);
        told.has_socket(Connect, "127.0.0.1", port, TCP, 0);
        assert_eq!(traffic[&peer("127.0.0.1", port, TCP)], sent(sends, bytes), "{name}");
    }
    assert!(told.sockets().iter().any(|socket| socket.2 == Some(9)), "{:#?}", told.sockets());
}

fn elsewhere() {
    let data = [1u8; 100];
    let receivers = ["a", "b"].map(|name| {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        tell(name, port_of(receiver.as_raw_fd()));
        receiver
    });
    let at = |number: usize| v4(LOCAL, port_of(receivers[number].as_raw_fd()));
    let socket = sys::socket(AF_INET, SOCK_DGRAM);
    let fd = socket.as_raw_fd();
    assert_eq!(sys::connect(fd, &at(0)), 0);
    assert_eq!(sys::send(fd, &data[..10], 0, &[]), 10);
    assert_eq!(sys::connect(fd, &[0; 16]), 0);
    assert_eq!(sys::send(fd, b"x", 0, &[]), -(libc::EDESTADDRREQ as isize));
    assert_eq!(sys::connect(fd, &at(1)), 0);
    assert_eq!(nix::unistd::write(&socket, &data[..25]).unwrap(), 25);
    // Straight from one to the other.
    assert_eq!(sys::connect(fd, &at(0)), 0);
    assert_eq!(nix::unistd::write(&socket, &data[..7]).unwrap(), 7);
    // A stream, too.
    let listeners = ["c", "d"].map(|name| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        tell(name, listener.local_addr().unwrap().port());
        listener
    });
    let stream = sys::socket(AF_INET, SOCK_STREAM);
    for (listener, bytes) in listeners.iter().zip([33, 44]) {
        let to = v4(LOCAL, listener.local_addr().unwrap().port());
        assert_eq!(sys::connect(stream.as_raw_fd(), &to), 0);
        assert_eq!(nix::unistd::write(&stream, &data[..bytes]).unwrap(), bytes);
        assert_eq!(sys::connect(stream.as_raw_fd(), &[0; 16]), 0);
    }
}

#[test]
fn bytes_go_to_the_peer_of_the_moment() {
    let Some(told) = watch("elsewhere") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    assert_eq!(traffic[&peer("127.0.0.1", told.port("a"), UDP)], sent(2, 17));
    assert_eq!(traffic[&peer("127.0.0.1", told.port("b"), UDP)], sent(1, 25));
    assert_eq!(traffic[&peer("127.0.0.1", told.port("c"), TCP)], sent(1, 33));
    assert_eq!(traffic[&peer("127.0.0.1", told.port("d"), TCP)], sent(1, 44));
    assert_eq!(traffic.len(), 4, "{traffic:#?}");
    // To dissolve an association contacts nobody.
    let connects = told.sockets().into_iter().filter(|socket| socket.0 == Connect);
    assert_eq!(connects.count(), 4, "equal ones are one: {:#?}", told.sockets());
}

const DESCRIPTOR: i32 = 50;

/// One descriptor, in turn a file, a socket, another file, another socket.
fn reuse() {
    let receivers: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (number, receiver) in receivers.iter().enumerate() {
        tell(&format!("peer-{number}"), port_of(receiver.as_raw_fd()));
    }
    #[allow(unsafe_code, reason = "the descriptor is owned by turns")]
    let write = |bytes: usize| {
        // SAFETY: open for the call.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(DESCRIPTOR) };
        assert_eq!(nix::unistd::write(fd, &[4; 1000][..bytes]).unwrap(), bytes);
    };
    for round in 0..9 {
        let file = std::fs::File::create(format!("file-{}", round % 3)).unwrap();
        sys::dup2(file.as_raw_fd(), DESCRIPTOR);
        drop(file);
        write(100 + round);
        if round % 2 == 0 {
            sys::close(DESCRIPTOR);
        }
        let socket = sys::socket(AF_INET, SOCK_DGRAM);
        assert_eq!(
            sys::connect(socket.as_raw_fd(), &v4(LOCAL, port_of(receivers[round % 3].as_raw_fd()))),
            0
        );
        sys::dup2(socket.as_raw_fd(), DESCRIPTOR);
        drop(socket);
        write(500 + round);
        if round % 2 == 1 {
            sys::close(DESCRIPTOR);
        }
    }
}

#[test]
fn a_descriptor_is_what_it_is_now() {
    let Some(told) = watch("reuse") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    for number in 0..3 {
        let port = told.port(&format!("peer-{number}"));
        let total = 3 * (500 + number + 3);
        assert_eq!(traffic[&peer("127.0.0.1", port, UDP)], sent(3, total), "{traffic:#?}");
        let mut written = (0, 0);
        for seen in &told.run.seen {
            if let Seen::Io { path, writes, written_bytes, .. } = seen
                && path.path.ends_with(&format!("/file-{number}"))
            {
                written = (written.0 + writes, written.1 + written_bytes);
            }
        }
        assert_eq!(written, (3, 3 * (100 + number + 3)));
    }
    assert_eq!(traffic.len(), 3, "{traffic:#?}");
}

fn fork() {
    let (listener, mut client, server) = pair();
    tell("server", listener.local_addr().unwrap().port());
    tell("client", client.local_addr().unwrap().port());
    client.write_all(&[1; 10]).unwrap();
    let fd = client.as_raw_fd();
    let child = sys::child(|| {
        assert_eq!(sys::send(fd, &[1; 200], 0, &[]), 200);
        assert_eq!(sys::send(fd, &[1; 300], 0, &[]), 300);
    });
    assert_eq!(sys::wait(child, 0), 0);
    let mut buffer = [0; 510];
    (&server).read_exact(&mut buffer).unwrap();
}

#[test]
fn a_child_is_told_of_with_what_it_inherited() {
    let Some(told) = watch("fork") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    assert_eq!(traffic[&peer("127.0.0.1", told.port("server"), TCP)], sent(3, 510));
    assert_eq!(traffic[&peer("127.0.0.1", told.port("client"), TCP)].received, 510);
    // One fact of each process.
    let by_server = told.run.seen.iter().filter_map(|seen| match seen {
        Seen::Traffic { port, sent_bytes, .. } if *port == Some(told.port("server")) => Some(*sent_bytes),
        _ => None,
    });
    assert_eq!(by_server.collect::<BTreeSet<_>>(), BTreeSet::from([10, 500]));
}

/// Bytes that are looked at before they are taken.
fn peek() {
    let (listener, client, server) = pair();
    tell("client", client.local_addr().unwrap().port());
    tell("server", listener.local_addr().unwrap().port());
    let mut buffer = [0u8; 4096];
    (&client).write_all(&[1; 50]).unwrap();
    assert_eq!(sys::receive(server.as_raw_fd(), &mut buffer, libc::MSG_PEEK, false), 50);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    assert_eq!(sys::recvmsg(server.as_raw_fd(), &mut parts, libc::MSG_PEEK, false), 50);
    assert_eq!(sys::receive(server.as_raw_fd(), &mut buffer, 0, false), 50);
}

#[test]
fn what_was_looked_at_was_received() {
    let Some(told) = watch("peek") else { return };
    told.run.assert_closed();
    // Each time: with a peek offset, a command could receive everything and take nothing.
    let traffic = told.traffic();
    assert_eq!(traffic[&peer("127.0.0.1", told.port("client"), TCP)], received(3, 150));
}

/// IPv4 takes a destination without a family; see udp_sendmsg() in net/ipv4/udp.c.
fn unspecific() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    tell("receiver", port_of(receiver.as_raw_fd()));
    let mut to = v4(LOCAL, port_of(receiver.as_raw_fd()));
    to[..2].copy_from_slice(&[0, 0]);
    let socket = sys::socket(AF_INET, SOCK_DGRAM);
    assert_eq!(sys::send(socket.as_raw_fd(), &[1; 40], 0, &to), 40);
    let mut buffer = [0; 100];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 40);
}

#[test]
fn a_destination_without_a_family_is_told() {
    let Some(told) = watch("unspecific") else { return };
    told.run.assert_closed();
    assert_eq!(told.traffic()[&peer("127.0.0.1", told.port("receiver"), UDP)], sent(1, 40));
}

/// A flag that means nothing to a datagram.
fn hidden() {
    let receivers: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let at: Vec<Vec<u8>> = receivers
        .iter()
        .enumerate()
        .map(|(number, receiver)| {
            tell(&format!("peer-{number}"), port_of(receiver.as_raw_fd()));
            v4(LOCAL, port_of(receiver.as_raw_fd()))
        })
        .collect();
    let socket = sys::socket(AF_INET, SOCK_DGRAM);
    let batch: [(&[u8], &[u8]); 2] = [(&[1; 100], &at[0]), (&[1; 200], &at[1])];
    assert_eq!(sys::sendmmsg(socket.as_raw_fd(), &batch, MSG_FASTOPEN), 2);
    assert_eq!(sys::send(socket.as_raw_fd(), &[1; 300], MSG_FASTOPEN, &at[2]), 300);
}

#[test]
fn a_flag_of_streams_hides_no_datagram() {
    let Some(told) = watch("hidden") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    for number in 0..3 {
        let port = told.port(&format!("peer-{number}"));
        assert_eq!(
            traffic.get(&peer("127.0.0.1", port, UDP)),
            Some(&sent(1, 100 * (number + 1))),
            "{traffic:#?}"
        );
        assert!(told.destinations().contains(&("127.0.0.1".to_owned(), port)));
    }
    assert!(!told.sockets().iter().any(|socket| socket.0 == Connect), "{:#?}", told.sockets());
}

/// Leaves everything untold that there can be, and goes on.
fn untold() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(receiver.local_addr().unwrap()).unwrap();
    let mut file = std::fs::File::create("file").unwrap();
    for _ in 0..100 {
        socket.send(&[1; 1000]).unwrap();
        file.write_all(&[1; 1000]).unwrap();
        nix::unistd::getppid();
    }
    std::fs::write("ready", b"").unwrap();
    while !Path::new("over").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_one_execution_left_untold_is_not_of_the_next() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut former = support::start_workload(&probe, "untold", dir.path());
    former.release();
    wait_for("it to be busy", || dir.path().join("ready").exists().then_some(()));
    // It is over while its tasks live; they end afterwards.
    let ((cgroup, mut child), watch) = former.split();
    assert!(watch.seal().unwrap().still_alive > 0);
    std::fs::write(dir.path().join("over"), b"").unwrap();
    wait_for("it to end", || child.try_wait().unwrap());
    wait_for("the cgroup to be empty", || (!cgroup.is_populated()).then_some(()));
    let other = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let run = run_workload(&probe, "elsewhere", other.path());
        run.assert_closed();
        assert_eq!(run.syscall("getppid"), 0, "{:?}", run.report.seal.syscalls);
        let sent = run.seen.iter().filter_map(|seen| match seen {
            Seen::Traffic { sent_bytes, .. } => Some(*sent_bytes),
            _ => None,
        });
        assert_eq!(sent.sum::<u64>(), 17 + 25 + 33 + 44);
    }
}

// Names.

const A: u16 = 1;
const AAAA: u16 = 28;

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

fn question(name: &str, query_type: u16) -> Vec<u8> {
    let head = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
    [head.as_slice(), &labels(name), &query_type.to_be_bytes(), &[0, 1]].concat()
}

/// What a name server answers; nothing to what is no question.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let name = question[13..end].to_ascii_lowercase();
    let query_type = u16::from_be_bytes(question.get(end..end + 2)?.try_into().unwrap());
    let record = |name: &[u8], of: u16, data: &[u8]| {
        [name, &of.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &(data.len() as u16).to_be_bytes(), data].concat()
    };
    let here = b"\xc0\x0c";
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).octets();
    let address = |name: &[u8]| match query_type {
        A => record(name, A, &[192, 0, 2, 7]),
        _ => record(name, AAAA, &v6),
    };
    let alias = |from: &[u8], to: &str| record(from, 5, &labels(to));
    let (code, answers) = match name.split(|byte| *byte < 32).next().unwrap() {
        b"plain" => (0, vec![address(here)]),
        b"chain" => (
            0,
            vec![
                alias(here, "middle.test"),
                alias(&labels("middle.test"), "target.test"),
                address(&labels("target.test")),
            ],
        ),
        b"large" => (0, (0..200).map(|number| record(here, A, &[198, 51, 100, number])).collect()),
        _ => (3, vec![]),
    };
    let mut bytes = question[..2].to_vec();
    bytes.extend([0x81, 0x80 | code, 0, 1]);
    bytes.extend((answers.len() as u16).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(&question[12..end + 4]);
    bytes.extend(answers.concat());
    Some(bytes)
}

/// A name server at 127.0.0.1:53 of a network of its own.
fn serve() {
    let server = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (bytes, from) = server.recv_from(&mut buffer).unwrap();
            if let Some(answer) = answer(&buffer[..bytes]) {
                server.send_to(&answer, from).unwrap();
            }
        }
    });
}

/// Asks in every way that resolvers use.
fn names() {
    sys::own_network(false);
    serve();
    let to = v4(LOCAL, 53);
    let mut buffer = [0u8; 8192];
    let unconnected = sys::socket(AF_INET, SOCK_DGRAM);
    let fd = unconnected.as_raw_fd();
    let plain = question("PlaiN.tEst", A);
    assert_eq!(sys::send(fd, &plain, 0, &to), plain.len() as isize);
    assert!(sys::receive(fd, &mut buffer, 0, true) > 0);
    // As glibc does: both questions at once, each answer by itself.
    let connected = sys::socket(AF_INET, SOCK_DGRAM);
    let fd = connected.as_raw_fd();
    assert_eq!(sys::connect(fd, &to), 0);
    let both = [question("chain.test", A), question("chain.test", AAAA)];
    assert_eq!(sys::sendmmsg(fd, &[(&both[0], &[]), (&both[1], &[])], libc::MSG_NOSIGNAL), 2);
    assert!(sys::receive(fd, &mut buffer, 0, true) > 0);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    assert!(sys::recvmsg(fd, &mut parts, 0, true) > 0);
    // As Go does.
    nix::unistd::write(&connected, &question("plain.test", AAAA)).unwrap();
    assert!(nix::unistd::read(&connected, &mut buffer).unwrap() > 0);
    // On a connected socket, and a name that is none.
    assert!(sys::send(fd, &question("absent.test", A), 0, &[]) > 0);
    assert_eq!(sys::recvmmsg(fd, 4, false), 1);
    // No question at all.
    assert_eq!(sys::send(fd, b"\xff\xfe garbage", 0, &[]), 10);
}

#[test]
fn names_are_told_with_their_answers() {
    let Some(told) = watch("names") else { return };
    let dns = told.dns();
    let wanted = [
        question_of("plain.test", A),
        answer_of("plain.test", A, &["192.0.2.7"], 0),
        question_of("chain.test", A),
        question_of("chain.test", AAAA),
        answer_of("chain.test", A, &["192.0.2.7"], 0),
        answer_of("chain.test", AAAA, &["2001:db8::7"], 0),
        question_of("plain.test", AAAA),
        answer_of("plain.test", AAAA, &["2001:db8::7"], 0),
        question_of("absent.test", A),
        answer_of("absent.test", A, &[], 3),
        question_of("", 0),
    ];
    assert_eq!(dns, wanted);
    told.run.assert_closed();
    let traffic = told.traffic()[&peer("127.0.0.1", 53, UDP)];
    assert_eq!((traffic.sends, traffic.receives), (6, 5));
}

/// Messages that are no resolver's.
fn oddities() {
    sys::own_network(false);
    serve();
    let to = v4(LOCAL, 53);
    let mut buffer = vec![0u8; 16384];
    let connected = sys::socket(AF_INET, SOCK_DGRAM);
    let fd = connected.as_raw_fd();
    assert_eq!(sys::connect(fd, &to), 0);
    // Nothing.
    assert_eq!(sys::send(fd, &[], 0, &[]), 0);
    assert_eq!(sys::sendmsg(fd, &[], 0, &[]), 0);
    // In two parts.
    let plain = question("plain.test", A);
    assert_eq!(sys::sendmsg(fd, &[&plain[..12], &plain[12..]], 0, &[]), plain.len() as isize);
    assert!(sys::receive(fd, &mut buffer, 0, false) > 0);
    let parts = [std::io::IoSlice::new(&plain[..5]), std::io::IoSlice::new(&plain[5..])];
    assert_eq!(nix::sys::uio::writev(&connected, &parts).unwrap(), plain.len());
    assert!(sys::receive(fd, &mut buffer, 0, false) > 0);
    // More than is looked at.
    let large = question("large.test", A);
    assert_eq!(sys::send(fd, &large, 0, &[]), large.len() as isize);
    assert!(sys::receive(fd, &mut buffer, 0, false) > 3000);
    // Into less room than it takes, the whole length asked for: at the end of what is mapped.
    assert_eq!(sys::send(fd, &large, 0, &[]), large.len() as isize);
    #[allow(unsafe_code, reason = "a page with nothing behind it")]
    // SAFETY: fresh mappings, and the second page of them is given back.
    let page = unsafe {
        let pages = libc::mmap(std::ptr::null_mut(), 8192, 3, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_eq!(libc::munmap(pages.byte_add(4096), 4096), 0);
        std::slice::from_raw_parts_mut(pages.cast::<u8>(), 4096)
    };
    assert!(sys::receive(fd, &mut page[4096 - 64..], libc::MSG_TRUNC, false) > 3000);
    // Sent by the kernel itself.
    std::fs::write("query", &plain).unwrap();
    let file = std::fs::File::open("query").unwrap();
    assert_eq!(sys::sendfile(fd, file.as_raw_fd(), plain.len()), plain.len() as isize);
    assert!(sys::receive(fd, &mut buffer, 0, false) > 0);
}

#[test]
fn odd_messages_are_told_and_lose_nothing() {
    let Some(told) = watch("oddities") else { return };
    let dns = told.dns();
    eprintln!("{dns:#?}");
    told.run.assert_closed();
    assert!(dns.contains(&question_of("plain.test", A)) && dns.contains(&question_of("large.test", A)));
    assert!(dns.contains(&answer_of("plain.test", A, &["192.0.2.7"], 0)));
    // What is left of a long answer is enough for its name, and for some addresses.
    let large: Vec<_> = dns.iter().filter(|of| of.0 == "large.test" && of.3 == Some(0)).collect();
    assert!(large.iter().any(|of| of.2.len() == 64), "{large:#?}");
    assert!(large.iter().any(|of| of.2.len() == 2), "{large:#?}");
}

/// A real resolver, in a network and with a configuration of its own.
fn resolver(argv: &[&str]) {
    sys::own_network(true);
    std::fs::write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n").unwrap();
    sys::mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE);
    sys::mount(c"resolv.conf", c"/etc/resolv.conf", libc::MS_BIND);
    serve();
    let status = std::process::Command::new(argv[0]).args(&argv[1..]).status().unwrap();
    assert!(status.success());
}

#[test]
fn real_resolvers_are_understood() {
    for (name, program) in [("getent", "/usr/bin/getent"), ("python", "/usr/bin/python3")] {
        if !Path::new(program).exists() {
            eprintln!("skipped: there is no {program}");
            continue;
        }
        let Some(told) = watch(name) else { return };
        assert_eq!(told.run.report.counters.lost(), 0);
        let dns = told.dns();
        let wanted = [
            question_of("chain.test", A),
            question_of("chain.test", AAAA),
            answer_of("chain.test", A, &["192.0.2.7"], 0),
            answer_of("chain.test", AAAA, &["2001:db8::7"], 0),
        ];
        for wanted in wanted {
            assert!(dns.contains(&wanted), "{wanted:?} is not among {dns:#?}");
        }
        // Its mounts are its own: the paths say so, and nothing else is amiss.
        let spots = &told.run.report.seal.blind_spots;
        assert!(spots.iter().all(|spot| spot.starts_with("paths seen from another root")), "{spots:?}");
        assert!(told.run.report.seal.escaped_tasks == 0 && told.run.report.still_alive == 0);
    }
}

// Rather stopped than lost.

/// The smallest rings.
fn small_rings() -> Option<HostProbe> {
    support::probe_with(&LoadOptions {
        process_ring_bytes: 64 * 1024,
        activity_ring_bytes: 64 * 1024,
        wakeup_bytes: 32 * 1024,
        drain_interval: Duration::from_millis(100),
        ..LoadOptions::default()
    })
}

const PACE: Duration = Duration::from_millis(5);

/// State of a process, as proc(5) has it.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn members(cgroup: &Path) -> Vec<i32> {
    let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits until everyone in it is stopped.
fn wait_stopped(cgroup: &Path) -> Vec<i32> {
    wait_for("all to be stopped", || {
        let members = members(cgroup);
        let all = !members.is_empty() && members.iter().all(|pid| state(*pid) == Some('T'));
        all.then_some(members)
    })
}

/// Lets it begin, and takes no frame until somebody of it other than `but` was stopped.
fn release_into_a_stop(started: &mut Started, but: Option<i32>) {
    let gate = std::sync::Arc::clone(&started.gate);
    let closed = gate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    started.release();
    wait_for("somebody to be stopped", || {
        let mut members = members(&started.cgroup.0).into_iter();
        members.any(|pid| Some(pid) != but && state(pid) == Some('T')).then_some(())
    });
    drop(closed);
}

#[track_caller]
fn assert_lossless(run: &Run) {
    let raw = &run.report.kernel.raw;
    let tally = (raw.observed, raw.lost_ring, raw.lost_read, raw.lost_map, raw.stops);
    eprintln!(
        "{:?}: observed {:?}, lost {:?} {:?} {:?}, stopped {} times",
        run.status, tally.0, tally.1, tally.2, tally.3, tally.4
    );
    assert!(raw.stops > 0);
    run.assert_closed();
}

/// Facts of their own from several threads.
fn storm(threads: usize, rounds: usize) {
    let work = move |thread: usize| {
        for round in 0..rounds {
            assert!(std::fs::File::open(format!("absent-{thread}-{round}-{}", "x".repeat(150))).is_err());
        }
    };
    let workers: Vec<_> = (0..threads).map(|thread| std::thread::spawn(move || work(thread))).collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    std::fs::write("done", b"").unwrap();
}

#[test]
fn lossless_threads() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "storm", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    let run = started.finish();
    assert!(run.status.success());
    assert_lossless(&run);
}

/// The longest records, from more threads than there are CPUs.
fn long() {
    let name = format!("{}/{}", "./".repeat(1900), "n".repeat(200));
    let work = move |thread: usize, name: &str| {
        for _ in 0..100 {
            let _ = std::fs::rename(format!("{name}-{thread}"), format!("{name}+{thread}"));
        }
    };
    std::thread::scope(|scope| {
        (0..16).for_each(|thread| {
            let name = &name;
            scope.spawn(move || work(thread, name));
        });
    });
}

#[test]
fn lossless_long_paths() {
    // Each thread may tell one more thing before it stops: half of the ring holds that.
    let options = LoadOptions { activity_ring_bytes: 1 << 20, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "long", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    assert_lossless(&started.finish());
}

/// Many facts by one call.
fn burst() {
    let socket = sys::socket(AF_INET, SOCK_DGRAM);
    let to: Vec<Vec<u8>> = (0..1000).map(|number| v4(LOCAL, 20_000 + number)).collect();
    let batch: Vec<(&[u8], &[u8])> = to.iter().map(|to| (&b"x"[..], &to[..])).collect();
    for _ in 0..20 {
        let mut rest = &batch[..];
        while !rest.is_empty() {
            let sent = sys::sendmmsg(socket.as_raw_fd(), rest, 0);
            rest = &rest[sent.max(1) as usize..];
        }
    }
}

#[test]
fn lossless_bursts() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "burst", dir.path(), PACE);
    started.release();
    let run = started.finish();
    assert_eq!(run.report.counters.lost(), 0, "{:?}", run.report.kernel);
}

#[test]
fn lossless_forks() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let script =
        "i=0; while [ $i -lt 150 ]; do /bin/true & /bin/true & (exit 3) & wait; i=$((i+1)); done; exit 5";
    let mut started = start_lossless(&probe, (Path::new("/bin/sh"), &["-c", script]), &[], dir.path(), PACE);
    started.release();
    let run = started.finish();
    assert_eq!(run.status.code(), Some(5));
    assert_lossless(&run);
    let exits = run.seen.iter().filter(|seen| matches!(seen, Seen::Exit { .. })).count();
    assert_eq!(exits, 451);
}

/// Threads that end, and tell what they have not told yet, while others are stopped.
fn exits() {
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let ends = &ends;
            scope.spawn(move || {
                let mut round = 0;
                while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::File::open(format!("absent-{worker}-{round}"));
                    round += 1;
                }
            });
        }
        for round in 0..1500 {
            let threads = [0, 1].map(|number| {
                std::thread::Builder::new()
                    .stack_size(64 * 1024)
                    .spawn(move || {
                        for file in 0..3 {
                            let _ = std::fs::File::open("/etc/passwd");
                            let _ = std::fs::File::open(format!("none-{round}-{number}-{file}"));
                        }
                    })
                    .unwrap()
            });
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn lossless_thread_exits_let_the_others_go_on() {
    // What ends can't be stopped, and tells all that it has left: half of the ring holds that.
    let options =
        LoadOptions { activity_ring_bytes: 256 * 1024, wakeup_bytes: 128 * 1024, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "exits", dir.path(), Duration::from_millis(1));
    release_into_a_stop(&mut started, None);
    let run = started.finish();
    assert!(run.status.success());
    assert_lossless(&run);
}

/// What a parent sees that asks for stops.
fn observer() {
    let child = sys::child(|| storm(1, 20_000));
    let (mut stops, mut goes) = (0, 0);
    loop {
        let status = sys::wait(child, libc::WUNTRACED | libc::WCONTINUED);
        if libc::WIFSTOPPED(status) {
            stops += 1;
        } else if libc::WIFCONTINUED(status) {
            goes += 1;
        } else {
            assert_eq!(status, 0);
            break;
        }
    }
    tell("stops", stops);
    tell("goes", goes);
}

#[test]
fn lossless_parents_that_ask_see_the_stops() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "observer", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    let run = started.finish();
    assert!(run.status.success());
    assert_lossless(&run);
    eprintln!("{}", std::fs::read_to_string(dir.path().join("told")).unwrap());
}

/// Stops its child, which the probe has stopped already, and looks whether it stays where it was put.
fn stopper() {
    let child = sys::child(|| storm(1, 10_000));
    // Without facts of its own, so that it is not stopped itself.
    std::thread::sleep(Duration::from_millis(300));
    sys::signal(child, libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1500));
    let went_on = Path::new("done").exists();
    sys::signal(child, libc::SIGCONT);
    assert_eq!(sys::wait(child, 0), 0);
    tell("went-on", u16::from(went_on));
}

#[test]
fn lossless_leaves_stops_of_the_commands_own() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "stopper", dir.path(), Duration::ZERO);
    let gate = std::sync::Arc::clone(&started.gate);
    let closed = gate.lock().unwrap();
    started.release();
    std::thread::sleep(Duration::from_millis(700));
    drop(closed);
    let run = started.finish();
    assert!(run.status.success());
    assert_lossless(&run);
    let told = std::fs::read_to_string(dir.path().join("told")).unwrap();
    assert_eq!(told, "went-on 0\n", "the probe let it go on");
}

/// A thread that waits for something while another makes facts.
fn sleeper() {
    let waiting = std::thread::spawn(|| {
        let mut interrupted = 0;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1500) {
            interrupted += u16::from(sys::wait_for_nothing(100) == -libc::EINTR);
        }
        tell("interrupted", interrupted);
    });
    storm(1, 20_000);
    waiting.join().unwrap();
}

#[test]
fn lossless_interrupts_what_waits() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "sleeper", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    let run = started.finish();
    assert!(run.status.success());
    assert_lossless(&run);
    eprintln!("{}", std::fs::read_to_string(dir.path().join("told")).unwrap());
}

/// A command that leaves a process behind, as `sh -c 'server &'` does, in a group of its own as the CLI makes one.
fn orphan(session: bool) {
    if session {
        sys::own_session()
    } else {
        sys::own_group()
    }
    let child = sys::child(|| storm(1, 20_000));
    tell("child", u16::try_from(child).unwrap_or(0));
    wait_for("the child to be stopped", || (state(child) == Some('T')).then_some(()));
}

fn orphan_ends(workload: &str) {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, workload, dir.path(), PACE);
    let root = started.pid() as i32;
    release_into_a_stop(&mut started, Some(root));
    let run = started.finish();
    assert!(dir.path().join("done").exists(), "the child was ended: {:?}", exits_of(&run));
    assert_lossless(&run);
}

#[test]
#[ignore = "the kernel hangs up (SIGHUP) on stopped groups that are orphaned, see kill_orphaned_pgrp() in kernel/exit.c"]
fn lossless_orphans_live_on() {
    orphan_ends("orphan");
}

#[test]
fn lossless_orphans_of_a_session_live_on() {
    orphan_ends("orphan-session");
}

/// Codes and signals.
fn exits_of(run: &Run) -> Vec<(u8, u8)> {
    let exit = |seen: &Seen| match seen {
        Seen::Exit { code, signal, .. } => Some((*code, *signal)),
        _ => None,
    };
    run.seen.iter().filter_map(exit).collect()
}

/// A shell with job control ends while a job is stopped.
fn job() {
    // The child has a group of its own.
    let child = sys::child(|| {
        sys::own_group();
        storm(1, 20_000);
    });
    wait_for("the child to be stopped", || (state(child) == Some('T')).then_some(()));
}

#[test]
#[ignore = "the kernel hangs up (SIGHUP) on stopped groups that are orphaned, see kill_orphaned_pgrp() in kernel/exit.c"]
fn lossless_jobs_outlive_their_shell() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "job", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    let run = started.finish();
    assert!(dir.path().join("done").exists(), "the job was ended: {:?}", exits_of(&run));
    assert_lossless(&run);
}

/// With job control, a shell takes a stopped job for one that the user has stopped, and goes on with its script.
#[test]
fn lossless_shells_with_job_control_see_a_stop() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let this = std::env::current_exe().unwrap();
    let script = "set -m; \"$0\" workload --exact --nocapture; s=$?; [ -e done ] && echo $s yes > order || echo $s no > order
        fg; while kill -0 %1; do sleep 0.1; done; exit 0";
    let command = (Path::new("/bin/bash"), ["-c", script, this.to_str().unwrap()]);
    let env = [(support::WORKLOAD, "storm")];
    let mut started = start_lossless(&probe, (command.0, &command.1), &env, dir.path(), PACE);
    let root = started.pid() as i32;
    release_into_a_stop(&mut started, Some(root));
    let run = started.finish();
    assert_lossless(&run);
    let order = std::fs::read_to_string(dir.path().join("order")).unwrap();
    // 128 and SIGSTOP, before the job was done.
    assert_eq!(order, "147 no\n");
}

/// A command of which everything is stopped, and the sink that it waits for.
fn stopped(probe: &HostProbe, dir: &Path) -> (Started, std::sync::Arc<std::sync::Mutex<()>>) {
    let started = start_lossless_workload(probe, "storm", dir, Duration::ZERO);
    let gate = std::sync::Arc::clone(&started.gate);
    (started, gate)
}

#[test]
fn lossless_abandoned_or_sealed_lets_go() {
    let Some(probe) = small_rings() else { return };
    for seals in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut started, gate) = stopped(&probe, dir.path());
        let closed = gate.lock().unwrap();
        started.release();
        wait_stopped(&started.cgroup.0);
        let done = dir.path().join("done");
        assert!(!done.exists());
        if seals {
            let seal = std::thread::spawn(move || {
                let status = std::process::ExitStatus::default();
                // Keeps the cgroup, and with it the command.
                let run = started.seal(status);
                let (counters, alive) = (run.report.counters, run.report.still_alive);
                assert_eq!(
                    (counters.lost(), alive),
                    (0, 1),
                    "{counters:?} {:?} {}",
                    run.report.kernel,
                    run.report.unexplained
                );
            });
            drop(closed);
            seal.join().unwrap();
            // `Started::seal` ends what is in the cgroup.
            continue;
        }
        let cgroup = started.cgroup.0.clone();
        // What a `Started` drops first is its cgroup, which ends the command: only the watch is to go.
        let (held, watch) = started.split();
        drop(watch);
        drop(closed);
        wait_for("the command to go on to its end", || done.exists().then_some(()));
        wait_for("the cgroup to be empty", || members(&cgroup).is_empty().then_some(()));
        drop(held);
    }
}

#[test]
fn lossless_without_the_probe_lets_go() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (mut started, _) = stopped(&probe, dir.path());
    started.release();
    // Its watch is kept: the programs stay, and nobody reads the rings any more.
    drop(probe);
    let done = dir.path().join("done");
    wait_for("the command to end without the probe", || done.exists().then_some(()));
    started.abandon();
}

/// Holds the probe, and never takes a frame.
fn holder() {
    let probe = small_rings().unwrap();
    let dir = std::env::current_dir().unwrap();
    let (mut started, gate) = stopped(&probe, &dir);
    let _closed = gate.lock().unwrap();
    started.release();
    wait_stopped(&started.cgroup.0);
    std::fs::write("cgroup", started.cgroup.0.to_str().unwrap()).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn lossless_without_its_holder_can_be_killed() {
    if small_rings().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut holder = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["workload", "--exact", "--nocapture", "--test-threads=1"])
        .env(support::WORKLOAD, "holder")
        .current_dir(dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let cgroup = wait_for("the command to be stopped", || {
        std::fs::read_to_string(dir.path().join("cgroup")).ok().filter(|path| !path.is_empty())
    });
    let cgroup = support::Cgroup(cgroup.into());
    let left = wait_stopped(&cgroup.0);
    holder.kill().unwrap();
    holder.wait().unwrap();
    // Nobody is there that could let them go on; nothing is attached any more.
    assert!(left.iter().all(|pid| state(*pid) == Some('T')), "{left:?}");
    std::fs::write(cgroup.0.join("cgroup.kill"), "1").unwrap();
    wait_for("the cgroup to be empty", || (!cgroup.is_populated()).then_some(()));
}
