//! Sockets on the real kernel: who was talked to, how many bytes went, and what names were asked for.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a module of test helpers has no outside")]

mod addresses;
mod lossless;
mod names;
#[allow(dead_code, reason = "shared with the other tests of the probe")]
#[path = "../support/mod.rs"]
mod support;
mod traffic;

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
use addresses::*;
use lossless::*;
use names::*;
use traffic::*;

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
