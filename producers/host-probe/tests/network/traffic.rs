//! Traffic.

use super::*;

pub(super) fn pair() -> (TcpListener, std::net::TcpStream, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    (listener, client, server)
}

/// Every way to send and to receive, each with another number of bytes.
pub(super) fn stream() {
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
pub(super) fn every_way_to_send_and_receive_counts_its_bytes() {
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

pub(super) fn datagrams() {
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
pub(super) fn datagrams_are_counted_where_they_go() {
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

pub(super) const PEERS: u16 = 20;
pub(super) const ROUNDS: u16 = 6;

/// More peers than a task has room for, in turn, over one socket and over many.
pub(super) fn rotation() {
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
pub(super) fn more_peers_than_there_is_room_for_lose_nothing() {
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
pub(super) fn threads() {
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
pub(super) fn threads_add_up() {
    let Some(told) = watch("threads") else { return };
    told.run.assert_closed();
    let traffic = told.traffic();
    let client = traffic[&peer("127.0.0.1", told.port("server"), TCP)];
    let server = traffic[&peer("127.0.0.1", told.port("client"), TCP)];
    assert_eq!(client, sent(2000, 200_000));
    assert_eq!((server.received, server.sent, server.sends), (200_000, 0, 0));
}

pub(super) fn failures() {
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
pub(super) fn what_could_not_be_sent_is_told() {
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

pub(super) const MSG_FASTOPEN: i32 = libc::MSG_FASTOPEN;
pub(super) const TCP_FASTOPEN: i32 = libc::TCP_FASTOPEN;
pub(super) const TCP_FASTOPEN_CONNECT: i32 = libc::TCP_FASTOPEN_CONNECT;

pub(super) fn fastopen() {
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
pub(super) fn fast_opens_are_connects() {
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

pub(super) fn elsewhere() {
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
pub(super) fn bytes_go_to_the_peer_of_the_moment() {
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

pub(super) const DESCRIPTOR: i32 = 50;

/// One descriptor, in turn a file, a socket, another file, another socket.
pub(super) fn reuse() {
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
pub(super) fn a_descriptor_is_what_it_is_now() {
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

pub(super) fn fork() {
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
pub(super) fn a_child_is_told_of_with_what_it_inherited() {
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
pub(super) fn peek() {
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
pub(super) fn what_was_looked_at_was_received() {
    let Some(told) = watch("peek") else { return };
    told.run.assert_closed();
    // Each time: with a peek offset, a command could receive everything and take nothing.
    let traffic = told.traffic();
    assert_eq!(traffic[&peer("127.0.0.1", told.port("client"), TCP)], received(3, 150));
}

/// IPv4 takes a destination without a family; see udp_sendmsg() in net/ipv4/udp.c.
pub(super) fn unspecific() {
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
pub(super) fn a_destination_without_a_family_is_told() {
    let Some(told) = watch("unspecific") else { return };
    told.run.assert_closed();
    assert_eq!(told.traffic()[&peer("127.0.0.1", told.port("receiver"), UDP)], sent(1, 40));
}

/// A flag that means nothing to a datagram.
pub(super) fn hidden() {
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
pub(super) fn a_flag_of_streams_hides_no_datagram() {
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
pub(super) fn untold() {
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
pub(super) fn what_one_execution_left_untold_is_not_of_the_next() {
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
