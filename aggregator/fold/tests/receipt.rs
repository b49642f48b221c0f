//! What a realistic execution folds to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Scenario, at, config, exec, frames, phase, process, scenario, seal};
use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::frame::Seal;
use glasshouse_schema::lifecycle::{Exited, Phase, PhaseName};
use glasshouse_schema::receipt::{Completeness, Process};
use glasshouse_schema::{
    Address, Digest, Event, ExecFlags, Fact, FileChange, Files, PathFlags, PathRef, ProcessKey, Receipt,
    SkippedFile, SocketOperation, StoredFile,
};

/// The receipt of [`common::events`], to the byte: a change of this file is a change of what receipts say.
#[test]
fn the_golden_receipt() {
    let receipt = scenario(8).receipt();
    assert_eq!(receipt.completeness, Completeness::Closed);
    insta::assert_json_snapshot!(receipt);
    let bytes = receipt.encode().unwrap();
    assert_eq!(Receipt::decode(&bytes).unwrap(), receipt);
    insta::assert_snapshot!("digest", glasshouse_schema::Digest::of(&bytes).to_string());
}

fn tree(events: &[Event<'_>]) -> Vec<Process> {
    Scenario::profiled(frames(config(), events, 3, Seal::default())).receipt().process_tree
}

fn names(tree: &[Process]) -> Vec<(u32, u32, &str, bool)> {
    tree.iter()
        .map(|process| (process.pid, process.ppid, process.exe.as_str(), process.forked_only))
        .collect()
}

#[test]
fn a_fork_without_an_exec_runs_what_its_parent_ran_then() {
    let argv: &[&[u8]] = &[b"a"];
    let tree = tree(&[
        at(0, 10, exec(1, b"/bin/first", argv)),
        at(1, 10, Fact::Fork { child: process(11) }),
        // A fork of a fork, made before its parent runs something else.
        at(2, 11, Fact::Fork { child: process(12) }),
        at(3, 10, exec(1, b"/bin/second", argv)),
        at(4, 10, Fact::Fork { child: process(13) }),
        at(5, 11, exec(10, b"/bin/own", argv)),
        at(6, 11, Fact::Fork { child: process(14) }),
    ]);
    assert_eq!(
        names(&tree),
        [
            (10, 1, "/bin/second", false),
            (11, 10, "/bin/own", false),
            (12, 11, "/bin/first", true),
            (13, 10, "/bin/second", true),
            (14, 11, "/bin/own", true),
        ]
    );
    assert_eq!(
        (tree[2].argv.clone(), tree[2].working_dir.as_str(), tree[2].uid),
        (vec!["a".into()], "/srv", Some(1000))
    );
}

#[test]
fn every_program_of_a_process_is_told_in_order() {
    let argv: &[&[u8]] = &[b"a", b"\xff"];
    let tree = tree(&[
        at(0, 10, exec(1, b"/bin/first", argv)),
        at(9, 10, exec(1, b"/bin/third", argv)),
        at(5, 10, exec(1, b"/bin/second", argv)),
        at(5, 10, Fact::Fork { child: process(11) }),
        at(6, 11, exec(10, b"/bin/only", argv)),
    ]);
    let execs: Vec<&str> = tree[0].execs.iter().map(|exec| exec.exe.as_str()).collect();
    assert_eq!(
        (tree[0].exe.as_str(), execs),
        ("/bin/third", vec!["/bin/first", "/bin/second", "/bin/third"])
    );
    assert_eq!(tree[0].argv, ["a", "\u{fffd}"]);
    // One program is not told twice.
    assert!(tree[1].execs.is_empty());
}

#[test]
fn a_reused_pid_is_another_process() {
    let later = ProcessKey { tgid: 10, start_boot_ns: process(99).start_boot_ns };
    let argv: &[&[u8]] = &[b"a"];
    let as_later = |event| Event { process: later, ..event };
    let tree = tree(&[
        at(0, 10, exec(1, b"/bin/before", argv)),
        at(1, 10, common::exit(1, 0)),
        at(2, 50, Fact::Fork { child: later }),
        as_later(at(3, 10, exec(50, b"/bin/after", argv))),
        as_later(at(4, 10, common::exit(0, 15))),
    ]);
    assert_eq!(names(&tree), [(10, 1, "/bin/before", false), (10, 50, "/bin/after", false)]);
    assert_eq!((tree[0].exit_code, tree[0].signal), (Some(1), None));
    assert_eq!((tree[1].exit_code, tree[1].signal), (None, Some(15)));
    assert!(tree[0].start_time < tree[1].start_time && tree[0].end_time < tree[1].end_time);
}

/// A chain that ties a knot, or is as deep as it is long, ends all the same.
#[test]
fn forks_in_a_circle_and_deep_forks_end() {
    let argv: &[&[u8]] = &[b"a"];
    let mut events = vec![
        at(0, 10, Fact::Fork { child: process(11) }),
        at(0, 11, Fact::Fork { child: process(10) }),
        at(0, 12, Fact::Fork { child: process(12) }),
        at(1, 20, exec(1, b"/bin/deep", argv)),
    ];
    events.extend((20..30_000).map(|n| at(u64::from(n), n, Fact::Fork { child: process(n + 1) })));
    let receipt = Scenario::profiled(frames(config(), &events, 5_000, Seal::default())).receipt();
    assert_eq!(
        names(&receipt.process_tree[..3]),
        [(10, 11, "", true), (11, 10, "", true), (12, 12, "", true)]
    );
    assert!(receipt.process_tree[3..].iter().all(|process| process.exe == "/bin/deep"));
    assert_eq!(receipt.process_tree.len(), 3 + 29_981);
}

#[test]
fn paths_keep_what_is_known_of_them() {
    let flagged =
        |bytes, flags| Fact::Open { path: PathRef { bytes, flags }, flags: 0, result: 0, created: false };
    let events = [
        at(0, 10, flagged(b"/srv/\xff", PathFlags::TRUNCATED)),
        // The same path again, in another frame: it is one path.
        at(1, 10, flagged(b"/srv/\xff", PathFlags::TRUNCATED.with(PathFlags::MASKED))),
        at(2, 10, flagged(b"memfd:x", PathFlags::UNLINKED)),
        at(3, 10, flagged(b"/dev/raw", PathFlags::UNRESOLVED)),
    ];
    let receipt = Scenario::profiled(frames(config(), &events, 1, Seal::default())).receipt();
    let files: Vec<_> = receipt.files.iter().map(|file| (file.path.as_str(), file.flags.join(" "))).collect();
    assert_eq!(
        files,
        [
            ("/dev/raw", "unresolved".to_owned()),
            ("/srv/\u{fffd}", "masked truncated".to_owned()),
            ("memfd:x", "unlinked".to_owned()),
        ]
    );
    assert_eq!(receipt.files[1].path_hex.as_deref(), Some("2f7372762fff"));
    assert_eq!(receipt.coverage.vantages[0].truncated_paths, 1);
}

#[test]
fn open_flags_say_what_was_done() {
    let paths: [(&[u8], u32); 6] =
        [(b"/r", 0), (b"/w", 1), (b"/rw", 2), (b"/p", 0o10_000_000), (b"/c", 0o101), (b"/t", 0o20_200_002)];
    let events: Vec<_> = paths.iter().map(|(path, flags)| at(0, 10, common::open(path, *flags, 0))).collect();
    let receipt = Scenario::profiled(frames(config(), &events, 99, seal())).receipt();
    assert_eq!(receipt.filesystem.reads, ["/r", "/rw", "/t"]);
    assert_eq!(receipt.filesystem.writes, ["/c", "/rw", "/t", "/w"]);
    let creates: Vec<&str> =
        receipt.files.iter().filter(|file| file.creates > 0).map(|file| file.path.as_str()).collect();
    assert_eq!(creates, ["/c", "/t"]);
    assert_eq!(receipt.files.iter().find(|file| file.path == "/p").unwrap().path_only, 1);
}

fn receipt_of(facts: &[Fact<'_>]) -> Receipt {
    let events: Vec<Event<'_>> = facts.iter().map(|fact| at(0, 10, *fact)).collect();
    Scenario::profiled(frames(config(), &events, 2, Seal::default())).receipt()
}

fn change(change: FileChange, path: &'static [u8], result: i32) -> Fact<'static> {
    let other = Some(PathRef::resolved(b"/other"));
    Fact::Change { change, path: PathRef::resolved(path), other, value: 0o100_640, result }
}

/// The established lists know what was made or changed, what was read and written without an open of its own, and
/// that two names that changed places are both still there.
#[test]
fn changes_and_bytes_are_in_the_established_lists() {
    let path = PathRef::resolved;
    let io = |at, reads, writes| Fact::Io { path: path(at), reads, writes, read_bytes: 1, written_bytes: 1 };
    let rename = |from, to, exchange| Fact::Rename { from: path(from), to: path(to), exchange, result: 0 };
    let mut facts: Vec<Fact<'_>> =
        FileChange::ALL.iter().map(|of| change(*of, of.as_str().as_bytes(), 0)).collect();
    facts.extend([
        change(FileChange::Mode, b"/refused", -1),
        io(b"/stdin", 1, 0),
        io(b"/stdout", 0, 1),
        rename(b"/x", b"/y", true),
        rename(b"/from", b"/to", false),
    ]);
    let receipt = receipt_of(&facts);
    let filesystem = &receipt.filesystem;
    assert_eq!(filesystem.reads, ["/stdin"]);
    let written =
        ["/stdout", "/to", "/x", "/y", "chmod", "chown", "link", "mkdir", "mknod", "symlink", "truncate"];
    assert_eq!(filesystem.writes, written);
    assert_eq!(filesystem.deletes, ["/from"]);
    let file = |path: &str| receipt.files.iter().find(|file| file.path == path).unwrap();
    assert_eq!((file("/x").exchanges, file("/x").renames), (1, 0));
    assert_eq!((&file("/y").renamed_to, &file("/y").renamed_from), (&vec!["/x".into()], &vec!["/x".into()]));
    assert_eq!(
        (file("chmod").modes.clone(), file("/refused").errors["chmod EPERM"]),
        (vec!["640".into()], 1)
    );
    assert!(file("/refused").modes.is_empty() && file("/refused").changes.is_empty());
    assert_eq!(
        (&file("link").linked_from, &file("/other").linked_to),
        (&vec!["/other".into()], &vec!["link".into()])
    );
    assert_eq!(file("symlink").symlink_targets, ["/other"]);
    assert_eq!(
        (&file("mount").mounted_from, &file("move_mount").mounted_from),
        (&vec!["/other".into()], &vec!["/other".into()])
    );
    assert_eq!(
        (&file("map_executable").by["execute"], &file("/refused").by["failed"]),
        (&vec![10], &vec![10])
    );
}

#[test]
fn traffic_is_told_where_the_peer_became_one() {
    let traffic = |address| Fact::Traffic {
        address,
        protocol: 6,
        sends: 1,
        receives: 2,
        sent_bytes: 3,
        received_bytes: 4,
    };
    let address = |n| Address::V4([10, 0, 0, n], 1);
    let socket = |operation, n| common::socket(operation, address(n), 6, 0);
    let mut facts = vec![
        socket(SocketOperation::Accept, 1),
        socket(SocketOperation::Connect, 1),
        socket(SocketOperation::Accept, 2),
        socket(SocketOperation::Send, 3),
        socket(SocketOperation::Bind, 4),
    ];
    facts.extend((1..=5).map(|n| traffic(address(n))));
    let receipt = receipt_of(&facts);
    let told: Vec<(&str, &str, Option<u64>)> = receipt
        .sockets
        .iter()
        .map(|socket| (socket.dst.as_str(), socket.operation.as_str(), socket.bytes_received))
        .collect();
    assert_eq!(
        told,
        [
            ("10.0.0.1:1", "connect", Some(4)),
            ("10.0.0.1:1", "accept", None),
            ("10.0.0.2:1", "accept", Some(4)),
            ("10.0.0.3:1", "send", Some(4)),
            ("10.0.0.4:1", "bind", None),
            ("10.0.0.4:1", "traffic", Some(4)),
            ("10.0.0.5:1", "traffic", Some(4)),
        ]
    );
    // Only what reaches out is a connection.
    let connections: Vec<&str> = receipt.network.connections.iter().map(|of| of.dst.as_str()).collect();
    assert_eq!(connections, ["10.0.0.1:1", "10.0.0.3:1"]);
    assert_eq!((receipt.network.bytes_sent, receipt.network.bytes_received), (Some(15), Some(20)));
    assert_eq!(receipt_of(&[socket(SocketOperation::Connect, 1)]).network.bytes_sent, None);
}

/// Files are told in whatever order their producer had them, and with whatever numbers.
#[test]
fn files_are_sorted_and_their_sizes_can_be_written() {
    let file = |path: &str, bytes| StoredFile {
        path: path.into(),
        mode: 0o644,
        bytes,
        sha256: Digest::of(path.as_bytes()),
    };
    let mut scenario = Scenario::profiled(frames(config(), &[], 300, Seal::default()));
    let told = Files {
        inputs: vec![file("b", 1), file("a", 2)],
        outputs: vec![file("z", u64::MAX), file("out/y", 0)],
        skipped: ["q", "p"].map(|path| SkippedFile { path: path.into(), reason: "r".into() }).into(),
        more_skipped: u64::MAX,
    };
    let Phase::Exited(exited) = phase(PhaseName::Exited) else { unreachable!() };
    scenario.with(Phase::Exited(Exited { files: Box::new(told), ..exited }));
    let files = scenario.receipt().artifacts.files;
    let paths = |files: &[StoredFile]| files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
    assert_eq!(
        (paths(&files.inputs), paths(&files.outputs)),
        (vec!["a".into(), "b".into()], vec!["out/y".into(), "z".into()])
    );
    assert_eq!(files.skipped[0].path, "p");
    assert_eq!((files.outputs[1].bytes, files.more_skipped), (MAX_INTEGER, MAX_INTEGER));
}

/// What is special about any exec stays known, whatever runs last; credentials are in order, the last one kept.
#[test]
fn flags_of_every_exec_and_the_last_credentials_are_kept() {
    let argv: &[&[u8]] = &[b"a"];
    let special = |ms, flags, env: &'static [&'static [u8]]| {
        let mut fact = exec(1, b"/bin/a", argv);
        if let Fact::Exec { flags: of, env: names, .. } = &mut fact {
            (*of, *names) = (flags, env);
        }
        at(ms, 10, fact)
    };
    let mut events = vec![
        special(0, ExecFlags::DELETED, &[b"LD_PRELOAD", b"LD_AUDIT"]),
        special(1, ExecFlags::NET, &[b"LD_PRELOAD"]),
        special(2, ExecFlags(0), &[]),
    ];
    events.extend((0..1_200).map(|n| {
        let uid = n as u32;
        let fact = Fact::Credentials { uid, euid: uid, gid: 0, egid: 0, capabilities: n, gained: false };
        at(10 + n, 10, fact)
    }));
    let receipt = Scenario::profiled(frames(config(), &events, 300, Seal::default())).receipt();
    let process = &receipt.process_tree[0];
    assert_eq!(process.exec_flags, ["deleted", "namespace:net"]);
    assert_eq!(process.environment, ["LD_AUDIT", "LD_PRELOAD"]);
    assert_eq!(
        (process.execs[1].exec_flags.clone(), process.execs[2].environment.len()),
        (vec!["namespace:net".into()], 0)
    );
    let uids: Vec<u32> = process.credentials.iter().map(|change| change.uid).collect();
    assert_eq!((uids.len(), uids[998], uids[999]), (1_000, 998, 1_199));
    let cap = &receipt.coverage.caps[0];
    assert_eq!((cap.list.as_str(), cap.events_left_out), ("process_tree[].credentials", 200));
    // The exit was not seen, so what it used is not known.
    assert_eq!(process.usage, None);
}
