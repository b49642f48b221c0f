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

fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let unread = path(b"", b"", abi::PATH_USER | abi::PATH_UNREADABLE);
    let rename = |from: abi::Path, to, payload: &[&[u8]]| {
        let body = abi::Rename { result: 0, from, to, rename_flags: 0, syscall: 264 };
        record(abi::KIND_RENAME, &body, &payload.concat())
    };
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
                exec(&[
                    b"curl",
                    b"-H",
                    b"Authorization: Bearer hunter2",
                    b"https://ana:hunter2@example.org/",
                    b"-o/tmp/x",
                ]),
                exec(&[
                    b"env",
                    b"GITHUB_TOKEN=ghp_abcdefghijklmnopqrstuv",
                    b"HOME=/home/ana/x",
                    b"--password",
                    b"hunter2",
                ]),
                exec(&[]),
            ],
        ),
        (
            "exit",
            [0x0300, 0x008b, 0]
                .map(|wait_status| record(abi::KIND_EXIT, &abi::Exit { wait_status, reserved: 0 }, b""))
                .to_vec(),
        ),
        (
            "open",
            vec![
                open(3, b"passwd\0etc\0", b"", 0),
                open(3, b"passwd\0etc\0", b"", 0),
                open(4, b"notes\0ana\0home\0", b"", 0),
                open(-2, b"srv\0", b"./../etc//x/.", abi::PATH_USER),
                open(-13, b"jail\0tmp\0", b"/../etc/shadow", abi::PATH_USER | abi::PATH_OTHER_ROOT),
                open(-9, b"", b"../x", abi::PATH_USER | abi::PATH_NO_BASE),
                open(5, b"memfd:x\0", b"", abi::PATH_PSEUDO),
                open(
                    6,
                    b"gone\0tmp\0",
                    b"",
                    abi::PATH_UNLINKED | abi::PATH_TRUNCATED | abi::PATH_UNREACHABLE,
                ),
                record(
                    abi::KIND_OPEN,
                    &abi::Open { result: -14, open_flags: 0, path: unread, flags: 0, syscall: 257 },
                    b"",
                ),
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
                rename(path(b"a\0srv\0", b"", 0), path(b"b\0srv\0", b"", 0), &[b"a\0srv\0", b"b\0srv\0"]),
                rename(path(b"", b"/home/ana/b", abi::PATH_USER), unread, &[b"/home/ana/b"]),
            ],
        ),
        (
            "connect",
            vec![
                connect(2, 443, [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], b"", b""),
                connect(10, 53, [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], b"", b""),
                connect(1, 0, [0; 16], b"", b"/run/dbus/socket"),
                connect(1, 0, [0; 16], b"srv\0", b"socket"),
                connect(1, 0, [0; 16], b"", b"\0abstract"),
                connect(1, 0, [0; 16], b"", b""),
                connect(16, 0, [0; 16], b"", b""),
            ],
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

fn exec(argv: &[&[u8]]) -> Vec<u8> {
    let (exe, cwd) = (&b"env\0bin\0usr\0"[..], &b"ana\0home\0"[..]);
    let argv: Vec<u8> = argv.iter().flat_map(|argument| [argument, &b"\0"[..]].concat()).collect();
    let body = abi::Exec {
        exe: path(exe, b"", 0),
        cwd: path(cwd, b"", 0),
        argv_bytes: argv.len() as u32,
        parent_tgid: 41,
        argv_total_bytes: argv.len() as u64,
        parent_start_boot_ns: 43_000_000_000,
        uid: 1000,
        gid: 100,
    };
    record(abi::KIND_EXEC, &body, &[exe, cwd, &argv].concat())
}

fn open(result: i64, walked: &[u8], user: &[u8], flags: u16) -> Vec<u8> {
    let body = abi::Open {
        result,
        open_flags: 0o2_000_000,
        path: path(walked, user, flags),
        flags: 0,
        syscall: 257,
    };
    record(abi::KIND_OPEN, &body, &[walked, user].concat())
}

fn connect(family: u16, port: u16, address: [u8; 16], walked: &[u8], user: &[u8]) -> Vec<u8> {
    let body = abi::Connect {
        result: -115,
        family,
        port,
        protocol: 6,
        socket_type: 1,
        address,
        path: path(walked, user, if user.is_empty() { 0 } else { abi::PATH_USER }),
        scope_id: 0,
        reserved: 0,
    };
    record(abi::KIND_CONNECT, &body, &[walked, user].concat())
}
