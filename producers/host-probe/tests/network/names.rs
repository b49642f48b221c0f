//! Names.

use super::*;

pub(super) const A: u16 = 1;
pub(super) const AAAA: u16 = 28;

pub(super) fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

pub(super) fn question(name: &str, query_type: u16) -> Vec<u8> {
    let head = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
    [head.as_slice(), &labels(name), &query_type.to_be_bytes(), &[0, 1]].concat()
}

/// What a name server answers; nothing to what is no question.
pub(super) fn answer(question: &[u8]) -> Option<Vec<u8>> {
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
pub(super) fn serve() {
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
pub(super) fn names() {
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
pub(super) fn names_are_told_with_their_answers() {
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
pub(super) fn oddities() {
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
pub(super) fn odd_messages_are_told_and_lose_nothing() {
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
pub(super) fn resolver(argv: &[&str]) {
    sys::own_network(true);
    std::fs::write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n").unwrap();
    sys::mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE);
    sys::mount(c"resolv.conf", c"/etc/resolv.conf", libc::MS_BIND);
    serve();
    let status = std::process::Command::new(argv[0]).args(&argv[1..]).status().unwrap();
    assert!(status.success());
}

#[test]
pub(super) fn real_resolvers_are_understood() {
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
