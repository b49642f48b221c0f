//! Writes the seeds of `kernel_record`, made from the structs of the ABI: `cargo run --example seeds`, in this folder,
//! after a change of the ABI. One file per kind, with records as the kernel writes them, and one with a whole command.

use std::path::Path;

use glasshouse_bpf::abi::{self, Abi};

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/kernel_record");
    std::fs::create_dir_all(&folder)?;
    let all = all();
    for (name, records) in &all {
        std::fs::write(folder.join(name), input(records))?;
    }
    let command: Vec<Vec<u8>> = all.iter().flat_map(|(_, records)| records.clone()).collect();
    std::fs::write(folder.join("command"), input(&command))?;
    // No list of records: what the target takes as one.
    std::fs::write(folder.join("one"), &command[0])
}

/// A name server, and a token as the name of a socket: no file, so it once left the node.
const SERVER: abi::Address = internet(2, 53, [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 17);
const ABSTRACT_TOKEN: &[u8] = b"\0ghp_abcdefghijklmnopqrstuv";

/// `dig ExAmple.com A`, and its answer with an alias and two addresses: `www.example.com`, an A and an AAAA record.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07ExAmple\x03com\0\0\x01\0\x01";
const ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x03\0\0\0\0\x07example\x03com\0\0\x01\0\x01\
    \xc0\x0c\0\x05\0\x01\0\0\x0e\x10\0\x06\x03www\xc0\x0c\
    \xc0\x29\0\x01\0\x01\0\0\x0e\x10\0\x04\x5d\xb8\xd8\x22\
    \xc0\x29\0\x1c\0\x01\0\0\x0e\x10\0\x10\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01";
const NO_SUCH_NAME: &[u8] = b"\x12\x35\x81\x83\0\x01\0\0\0\0\0\0\x04none\x07example\0\0\x1c\0\x01";

fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let unread = path(b"", b"", abi::PATH_USER | abi::PATH_UNREADABLE);
    vec![
        (
            "fork",
            vec![record(
                abi::KIND_FORK,
                &abi::Fork { child_start_boot_ns: 9_000, child_tgid: 43, reserved: 0 },
                b"",
            )],
        ),
        (
            "exec",
            vec![
                exec(
                    &[
                        b"curl",
                        b"-H",
                        b"Authorization: Bearer hunter2",
                        b"https://ana:hunter2@example.org/",
                        b"-o/tmp/x",
                    ],
                    &[b"PATH=/bin", b"LD_PRELOAD=/home/ana/x.so", b"IFS=", b"ENV"],
                    0,
                ),
                exec(
                    &[
                        b"env",
                        b"GITHUB_TOKEN=ghp_abcdefghijklmnopqrstuv",
                        b"HOME=/home/ana/x",
                        b"--password",
                        b"-hunter2",
                        b"--token=a,--file=/home/ana/x",
                    ],
                    &[],
                    abi::EXEC_PRIVILEGED | abi::EXEC_USER_NAMESPACE,
                ),
                exec(&[], &[], 0),
            ],
        ),
        ("exit", [0x0300, 0x008b, 0].map(exit).to_vec()),
        (
            "credentials",
            [0, 1]
                .map(|gained| {
                    let body = abi::Credentials {
                        uid: 1000,
                        euid: 0,
                        gid: 1000,
                        egid: 1000,
                        capabilities: 1 << 21,
                        gained,
                        syscall: 117,
                    };
                    record(abi::KIND_CREDENTIALS, &body, b"")
                })
                .to_vec(),
        ),
        (
            "open",
            vec![
                open(3, b"passwd\0etc\0", b"", 0, 1),
                open(3, b"passwd\0etc\0", b"", 0, 0),
                open(4, b"notes\0ana\0home\0", b"", 0, 2),
                open(-2, b"srv\0", b"./../etc//x/.", abi::PATH_USER, 0),
                open(-13, b"jail\0tmp\0", b"/../etc/shadow", abi::PATH_USER | abi::PATH_OTHER_ROOT, 0),
                open(-9, b"", b"../x", abi::PATH_USER | abi::PATH_NO_BASE, 0),
                open(5, b"memfd:x\0", b"", abi::PATH_PSEUDO, 3),
                open(
                    6,
                    b"gone\0tmp\0",
                    b"",
                    abi::PATH_UNLINKED | abi::PATH_TRUNCATED | abi::PATH_UNREACHABLE | abi::PATH_UNSTABLE,
                    4,
                ),
                open_as(-14, unread, b"", 0),
            ],
        ),
        (
            "delete",
            [0, 1]
                .map(|directory| {
                    let path = path(b"srv\0", b"ghp_abcdefghijklmnopqrstuv", abi::PATH_USER);
                    let body = abi::Delete { result: 0, path, directory, syscall: 263 };
                    record(abi::KIND_DELETE, &body, b"srv\0ghp_abcdefghijklmnopqrstuv")
                })
                .to_vec(),
        ),
        (
            "rename",
            vec![
                rename(path(b"a\0srv\0", b"", 0), path(b"b\0srv\0", b"", 0), b"a\0srv\0b\0srv\0", 0),
                rename(path(b"a\0srv\0", b"", 0), path(b"b\0srv\0", b"", 0), b"a\0srv\0b\0srv\0", 2),
                rename(path(b"", b"/home/ana/b", abi::PATH_USER), unread, b"/home/ana/b", 0),
            ],
        ),
        (
            "change",
            vec![
                change(abi::CHANGE_LINK, 0, b"x\0ana\0home\0", b"/etc/passwd", 0),
                change(abi::CHANGE_SYMLINK, 0, b"l\0srv\0", b"../../home/ana/x", 0),
                change(abi::CHANGE_SYMLINK, 0, b"l\0srv\0", b"/home/ana/x", 0),
                change(abi::CHANGE_MKDIR, 0o755, b"d\0srv\0", b"", 0),
                change(abi::CHANGE_MKNOD, 0o10644, b"p\0srv\0", b"", 0),
                change(abi::CHANGE_MODE, 0o4755, b"f\0srv\0", b"", 0),
                change(abi::CHANGE_OWNER, u64::MAX, b"f\0srv\0", b"", 0),
                change(abi::CHANGE_TRUNCATE, 1 << 40, b"f\0srv\0", b"", 0),
                change(abi::CHANGE_MOUNT, 1, b"mnt\0", b"overlay", 0),
                change(abi::CHANGE_UNMOUNT, 2, b"mnt\0", b"", 0),
                change(abi::CHANGE_MOVE_MOUNT, 0, b"mnt\0", b"/home/ana/m", 0),
                change(abi::CHANGE_PIVOT_ROOT, 0, b"new\0", b"/new/old", 0),
                change(abi::CHANGE_MAP_EXECUTABLE, 1, b"libc.so\0lib\0", b"", 5),
            ],
        ),
        ("file", vec![file(b"0\0pts\0dev\0", 1, 6), file(b"notes\0ana\0home\0", 1, 7)]),
        (
            // Each entry is filled in one way, told of again, read and written; then the task ends.
            "tallies",
            vec![
                open(3, b"passwd\0etc\0", b"", 0, 1),
                change(abi::CHANGE_MAP_EXECUTABLE, 0, b"libc.so\0lib\0", b"", 5),
                file(b"notes\0ana\0home\0", 1, 32),
                file(b"0\0pts\0dev\0", 2, 1),
                tallies(1, 0, &[tally(1, 7, 2, 0), tally(5, 3, 0, 1), tally(32, 0, 5, 6)]),
                // A file that was there is not told again, and of index 9 nothing was told: both are lost.
                tallies(
                    1,
                    0,
                    &[tally(32, 1, 0, 0), tally(9, 1, 1, 1), tally(99, 2, 0, 0), tally(1, 1, 0, 0)],
                ),
                tallies(2, 1, &[tally(1, 0, u32::MAX, u32::MAX)]),
                tallies(2, 0, &[tally(1, 0, 1, 1)]),
                tallies(1, 1, &[]),
                file(b"x\0srv\0", 3, 1),
                tallies(3, 0, &[tally(1, 0, 1, 0), tally(5, 1, 0, 0)]),
            ],
        ),
        (
            "socket",
            vec![
                socket(abi::SOCKET_CONNECT, internet(2, 443, loopback(), 6), b"", b""),
                socket(abi::SOCKET_SEND, internet(10, 53, documentation(), 17), b"", b""),
                socket(abi::SOCKET_BIND, internet(2, 0, [0; 16], 6), b"", b""),
                socket(abi::SOCKET_LISTEN, internet(2, 8080, [0; 16], 6), b"", b""),
                socket(abi::SOCKET_ACCEPT, internet(10, 40000, documentation(), 6), b"", b""),
                socket(abi::SOCKET_CONNECT, UNIX, b"", b"/run/dbus/socket"),
                socket(abi::SOCKET_CONNECT, UNIX, b"srv\0", b"socket"),
                socket(abi::SOCKET_CONNECT, UNIX, b"", b"\0abstract"),
                socket(abi::SOCKET_BIND, UNIX, b"", b"\0/home/ana/.cache/ibus"),
                socket(abi::SOCKET_CONNECT, UNIX, b"", b""),
                socket(abi::SOCKET_CONNECT, internet(16, 0, [0; 16], 0), b"", b""),
            ],
        ),
        ("finding-abstract", vec![socket(abi::SOCKET_CONNECT, UNIX, b"", ABSTRACT_TOKEN)]),
        (
            "traffic",
            vec![
                traffic(internet(2, 443, loopback(), 6), 3, 4),
                traffic(SERVER, 1, 0),
                traffic(internet(10, 53, documentation(), 17), 0, u32::MAX),
            ],
        ),
        (
            "dns",
            vec![
                dns(SERVER, false, QUESTION),
                dns(SERVER, true, ANSWER),
                dns(SERVER, true, NO_SUCH_NAME),
                dns(internet(10, 53, documentation(), 17), true, &ANSWER[..40]),
                dns(SERVER, false, b"no message"),
            ],
        ),
        (
            "operation",
            (abi::OPERATION_PTRACE..=abi::OPERATION_OPEN_BY_HANDLE)
                .map(|operation| {
                    let body = abi::Operation { result: -1, value: 16, operation, target: 41 };
                    record(abi::KIND_OPERATION, &body, b"")
                })
                .collect(),
        ),
    ]
}

fn input(records: &[Vec<u8>]) -> Vec<u8> {
    records.iter().flat_map(|record| [&(record.len() as u16).to_le_bytes()[..], record].concat()).collect()
}

fn record(kind: u16, body: &impl Abi, payload: &[u8]) -> Vec<u8> {
    let header = abi::Header {
        record_bytes: (abi::PAYLOAD_OFFSET + payload.len()) as u32,
        kind,
        version: abi::ABI_VERSION as u16,
        slot: 3,
        generation: 1,
        boot_ns: 45_000_000_000,
        start_boot_ns: 44_000_000_000,
        tgid: 42,
        tid: 42,
    };
    let mut bytes = [header.as_bytes(), body.as_bytes()].concat();
    bytes.resize(abi::PAYLOAD_OFFSET, 0);
    bytes.extend_from_slice(payload);
    bytes
}

fn path(walked: &[u8], user: &[u8], flags: u16) -> abi::Path {
    abi::Path { walked_bytes: walked.len() as u16, user_bytes: user.len() as u16, flags, reserved: 0 }
}

fn exec(argv: &[&[u8]], env: &[&[u8]], flags: u32) -> Vec<u8> {
    let strings =
        |of: &[&[u8]]| -> Vec<u8> { of.iter().flat_map(|string| [string, &b"\0"[..]].concat()).collect() };
    let (exe, cwd) = (&b"env\0bin\0usr\0"[..], &b"ana\0home\0"[..]);
    let (argv, env) = (strings(argv), strings(env));
    let body = abi::Exec {
        exe: path(exe, b"", 0),
        cwd: path(cwd, b"", 0),
        argv_bytes: argv.len() as u32,
        env_bytes: env.len() as u32,
        argv_total_bytes: argv.len() as u64,
        env_total_bytes: env.len() as u64 + 1,
        parent_tgid: 41,
        uid: 1000,
        gid: 100,
        flags,
    };
    record(abi::KIND_EXEC, &body, &[exe, cwd, &argv, &env].concat())
}

fn exit(wait_status: u32) -> Vec<u8> {
    let body = abi::Exit {
        wait_status,
        reserved: 0,
        user_ns: 1_000_000,
        system_ns: 2_000_000,
        max_rss_pages: 1_000,
        minor_faults: 300,
        major_faults: 1,
    };
    record(abi::KIND_EXIT, &body, b"")
}

/// An open by task 1.
fn open(result: i64, walked: &[u8], user: &[u8], flags: u16, index: u32) -> Vec<u8> {
    open_as(result, path(walked, user, flags), &[walked, user].concat(), index)
}

fn open_as(result: i64, path: abi::Path, payload: &[u8], index: u32) -> Vec<u8> {
    let body = abi::Open {
        result,
        open_flags: 0o2_000_000,
        path,
        entry: abi::Entry { task: 1, index },
        flags: if index == 2 { abi::OPEN_CREATED } else { 0 },
        syscall: 257,
    };
    record(abi::KIND_OPEN, &body, payload)
}

fn rename(from: abi::Path, to: abi::Path, payload: &[u8], rename_flags: u32) -> Vec<u8> {
    record(abi::KIND_RENAME, &abi::Rename { result: 0, from, to, rename_flags, syscall: 264 }, payload)
}

/// A change by task 1.
fn change(change: u32, value: u64, walked: &[u8], other: &[u8], index: u32) -> Vec<u8> {
    let body = abi::Change {
        result: 0,
        value,
        path: path(walked, b"", 0),
        other: path(b"", other, abi::PATH_USER),
        entry: abi::Entry { task: 1, index },
        change,
        syscall: 88,
    };
    record(abi::KIND_CHANGE, &body, &[walked, other].concat())
}

fn file(walked: &[u8], task: u32, index: u32) -> Vec<u8> {
    let body = abi::File { path: path(walked, b"", 0), entry: abi::Entry { task, index } };
    record(abi::KIND_FILE, &body, walked)
}

fn tallies(task: u32, is_last: u32, tallies: &[abi::Tally]) -> Vec<u8> {
    let body = abi::Tallies { task, tallies: tallies.len() as u32, is_last, reserved: 0 };
    let payload: Vec<u8> = tallies.iter().flat_map(|tally| tally.as_bytes().to_vec()).collect();
    record(abi::KIND_TALLIES, &body, &payload)
}

fn tally(index: u32, again: u32, reads: u32, writes: u32) -> abi::Tally {
    let bytes = |calls: u32| u64::from(calls) * 4096;
    abi::Tally { read_bytes: bytes(reads), written_bytes: bytes(writes), again, reads, writes, index }
}

const UNIX: abi::Address = internet(1, 0, [0; 16], 0);

const fn internet(family: u16, port: u16, address: [u8; 16], protocol: u16) -> abi::Address {
    let socket_type = if protocol == 17 { 2 } else { 1 };
    abi::Address { family, port, protocol, socket_type, address, scope_id: 0, reserved: 0 }
}

fn loopback() -> [u8; 16] {
    std::array::from_fn(|at| [127, 0, 0, 1].get(at).copied().unwrap_or(0))
}

/// An address of the documentation's range (RFC 3849).
fn documentation() -> [u8; 16] {
    std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets()
}

fn socket(operation: u32, address: abi::Address, walked: &[u8], user: &[u8]) -> Vec<u8> {
    let path = path(walked, user, if user.is_empty() { 0 } else { abi::PATH_USER });
    let body = abi::Socket { result: -115, address, path, operation, syscall: 42 };
    record(abi::KIND_SOCKET, &body, &[walked, user].concat())
}

fn traffic(address: abi::Address, sends: u32, receives: u32) -> Vec<u8> {
    let body = abi::Traffic {
        address,
        sent_bytes: u64::from(sends) * 100,
        received_bytes: u64::from(receives) * 1000,
        sends,
        receives,
    };
    record(abi::KIND_TRAFFIC, &body, b"")
}

fn dns(server: abi::Address, is_answer: bool, message: &[u8]) -> Vec<u8> {
    let body = abi::Dns {
        server,
        message_bytes: message.len() as u32,
        is_answer: is_answer.into(),
        message_total_bytes: message.len() as u64,
    };
    record(abi::KIND_DNS, &body, message)
}
