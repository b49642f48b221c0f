//! Commands that try to hide from the probe or to lie to it. Each either fails, or shows in the seal.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use glasshouse_schema::PathFlags;
use glasshouse_schema::event::SocketOperation;

use crate::support::{self, Run, Seen, run_shell, run_workload, start, start_workload, wait_for};

const EINPROGRESS: i32 = -115;

/// Runs what is asked for inside the watched process; false when it is none of these.
pub fn workload(name: &str) -> bool {
    match name {
        "connect_forge" => {
            connect_while(|| ADDRESS[1].store(u32::from_ne_bytes([9, 9, 9, 9]), Ordering::SeqCst))
        }
        "connect_hide" => connect_while(|| ADDRESS[0].store(0, Ordering::SeqCst)),
        "connect_lengths" => connect_lengths(),
        "chroot" => change_root(),
        "mount_stack" => mount_stack(),
        "bypasses" => bypasses(),
        _ => return false,
    }
    true
}

/// A `struct sockaddr_in` that every thread can write to.
static ADDRESS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

fn socket(family: i32, kind: i32) -> i32 {
    #[allow(unsafe_code, reason = "the standard library connects a socket as it makes it")]
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    assert!(fd >= 0);
    fd
}

fn connect(fd: i32, address: *const libc::sockaddr, length: usize) -> i32 {
    #[allow(unsafe_code, reason = "the standard library passes whole, private addresses only")]
    // SAFETY: the kernel reads `length` bytes, which every caller has there.
    let result = unsafe { libc::connect(fd, address, length as libc::socklen_t) };
    match result {
        0 => 0,
        _ => -std::io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

/// Changes the address in memory while the kernel, which has read it, waits for the peer.
fn connect_while(change: impl FnOnce()) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    #[allow(unsafe_code, reason = "the standard library chooses the backlog itself")]
    // SAFETY: no pointers.
    let listening = unsafe { libc::listen(listener.as_raw_fd(), 0) };
    assert_eq!(listening, 0);
    let port = listener.local_addr().unwrap().port();
    let [high, low] = port.to_be_bytes();
    ADDRESS[0].store(u32::from_ne_bytes([libc::AF_INET as u8, 0, high, low]), Ordering::SeqCst);
    ADDRESS[1].store(u32::from_ne_bytes([127, 0, 0, 1]), Ordering::SeqCst);
    // They fill the queue of the listener: the next has to wait.
    for _ in 0..2 {
        let filler = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        assert_eq!(connect(filler, ADDRESS.as_ptr().cast(), 16), EINPROGRESS);
    }
    std::thread::sleep(Duration::from_millis(50));
    let victim = socket(libc::AF_INET, libc::SOCK_STREAM);
    let connecting = std::thread::spawn(move || connect(victim, ADDRESS.as_ptr().cast(), 16));
    std::thread::sleep(Duration::from_millis(200));
    change();
    for _ in 0..3 {
        listener.accept().unwrap();
    }
    assert_eq!(connecting.join().unwrap(), 0);
}

fn connects(run: &Run) -> Vec<(Vec<u8>, Option<u16>, i32)> {
    run.seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Socket { operation: SocketOperation::Connect, address, port, result, .. } => {
                Some((address.clone(), *port, *result))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_connect_is_what_the_kernel_did_not_what_memory_says() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in ["connect_forge", "connect_hide"] {
        let run = run_workload(&probe, name, dir.path());
        assert!(run.status.success());
        run.assert_closed();
        let connects = connects(&run);
        for (address, port, _) in &connects {
            assert_eq!((address.as_slice(), *port), ([127, 0, 0, 1].as_slice(), connects[0].1), "{name}");
        }
        // The first two are the same, and one event when they fall into one frame.
        let mut results: Vec<_> = connects.iter().map(|connect| connect.2).collect();
        results.dedup();
        assert_eq!(results, [EINPROGRESS, 0], "{name}");
    }
}

fn connect_lengths() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let [high, low] = listener.local_addr().unwrap().port().to_be_bytes();
    let mut v6 = [0u8; 28];
    v6[..4].copy_from_slice(&[libc::AF_INET6 as u8, 0, high, low]);
    v6[23] = 1;
    // Without a scope, as RFC 2133 had it; on a blocking socket and not; and too short.
    assert_eq!(connect(socket(libc::AF_INET6, libc::SOCK_STREAM), v6.as_ptr().cast(), 24), 0);
    let under_way = socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    let result = connect(under_way, v6.as_ptr().cast(), 24);
    assert!(result == 0 || result == EINPROGRESS);
    assert_eq!(connect(socket(libc::AF_INET6, libc::SOCK_STREAM), v6.as_ptr().cast(), 23), -libc::EINVAL);
    // Refused: nobody listens on port 1.
    v6[2..4].copy_from_slice(&[0, 1]);
    assert_eq!(
        connect(socket(libc::AF_INET6, libc::SOCK_STREAM), v6.as_ptr().cast(), 24),
        -libc::ECONNREFUSED
    );
    // A datagram socket connected, dissolved, and dissolved again.
    let datagrams = socket(libc::AF_INET6, libc::SOCK_DGRAM);
    assert_eq!(connect(datagrams, v6.as_ptr().cast(), 28), 0);
    for _ in 0..2 {
        assert_eq!(connect(datagrams, [0u8; 28].as_ptr().cast(), 28), 0);
    }
}

#[test]
fn addresses_of_every_length() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = run_workload(&probe, "connect_lengths", dir.path());
    assert!(run.status.success());
    run.assert_closed();
    let connects = connects(&run);
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
    assert!(connects.iter().all(|connect| connect.0 == loopback), "{connects:?}");
    let port = connects[0].1;
    assert!(port > Some(1023));
    let ports: Vec<_> = connects.iter().map(|connect| connect.1).collect();
    assert_eq!(ports, [port, port, Some(1), Some(1)]);
    assert_eq!(connects[0].2, 0);
    assert_eq!((connects[2].2, connects[3].2), (-libc::ECONNREFUSED, 0));
    assert_eq!(run.syscall("connect"), 7);
}

#[track_caller]
fn spot(run: &Run, what: &str) -> u64 {
    let spots = &run.report.seal.blind_spots;
    let found = spots.iter().find_map(|spot| spot.strip_prefix(what)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("{what} is not among {spots:?}")).parse().unwrap()
}

const OTHER_ROOT: &str = "paths seen from another root or mount namespace";

fn change_root() {
    std::os::unix::fs::chroot("jail").unwrap();
    std::env::set_current_dir("/").unwrap();
    fs::read("/inside").unwrap();
    assert!(fs::read("/../absent").is_err());
    fs::remove_file("/inside").unwrap();
}

#[test]
fn paths_in_a_chroot_are_those_outside_and_marked() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("jail")).unwrap();
    fs::write(root.join("jail/inside"), b"x").unwrap();
    let run = run_workload(&probe, "chroot", &root);
    assert!(run.status.success());
    assert_eq!(run.report.counters.lost(), 0);
    // What was opened is known by the kernel; a name that was not, only by the caller's string.
    assert_eq!(run.opened(&root.join("jail/inside")).0, 0);
    assert_eq!(run.opened(&root.join("jail/absent")).0, PathFlags::UNRESOLVED.0);
    let path = support::unresolved(&root.join("jail/inside"));
    run.has(&Seen::Delete { path, directory: false, result: 0 });
    assert!(spot(&run, OTHER_ROOT) >= 2);
    assert!(!run.opens().iter().any(|open| open.0 == "/inside" || open.0 == "/absent"));
}

#[test]
fn paths_of_another_mount_namespace_are_marked() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    for name in ["jail", "other"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("file"), b"x").unwrap();
    }
    let run = run_shell(&probe, "unshare -m sh -c 'mount --bind other jail; : < jail/file'", &root);
    assert!(run.status.success());
    assert_eq!(run.opened(&root.join("jail/file")).0, PathFlags::UNRESOLVED.0);
    assert!(spot(&run, OTHER_ROOT) > 0);
}

fn mount_stack() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for _ in 0..2300 {
        mount(Some("other"), "jail", none, MsFlags::MS_BIND, none).unwrap();
    }
    fs::read("jail/file").unwrap();
}

#[test]
fn a_path_of_too_many_mounts_is_marked_as_cut() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in ["jail", "other"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), b"x").unwrap();
    }
    let run = run_workload(&probe, "mount_stack", dir.path());
    assert!(run.status.success());
    let (path_flags, ..) = run.opened(Path::new("/file"));
    assert!(PathFlags(path_flags).contains(PathFlags::TRUNCATED), "{path_flags}");
    assert!(spot(&run, OTHER_ROOT) > 0);
}

#[test]
fn ids_are_the_effective_ones() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/true", root.join("privileged")).unwrap();
    fs::set_permissions(root.join("privileged"), fs::Permissions::from_mode(0o6755)).unwrap();
    let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "./privileged"];
    let mut started = start(&probe, Path::new("/usr/bin/setpriv"), &arguments, &[], &root);
    started.release();
    let run = started.finish();
    run.assert_closed();
    let ids: Vec<_> = run
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Exec { exe, uid, gid, .. } if exe.ends_with("/privileged") => Some((*uid, *gid)),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [(0, 0)]);
    let mut plain = start(
        &probe,
        Path::new("/usr/bin/setpriv"),
        &["--reuid=65534", "--regid=65533", "--clear-groups", "true"],
        &[],
        &root,
    );
    plain.release();
    let run = plain.finish();
    assert!(run.seen.iter().any(|seen| matches!(seen, Seen::Exec { uid: 65534, gid: 65533, .. })));
}

#[test]
fn a_root_that_is_moved_away_before_its_exec_has_escaped() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = support::Cgroup::new();
    let mut started = start_workload(&probe, "threads", dir.path());
    elsewhere.add(started.pid());
    started.release();
    let run = started.finish();
    assert!(run.status.success());
    assert!(!run.report.recorded && run.seen.is_empty());
    assert_eq!(run.report.seal.escaped_tasks, 1);
    assert_eq!(run.report.seal.blind_spots, ["the root's exec was not seen"]);

    // Moved away and back: it is recorded, and that it was away is known.
    let mut started = start_workload(&probe, "threads", dir.path());
    elsewhere.add(started.pid());
    let cgroup = started.cgroup.0.clone();
    fs::write(cgroup.join("cgroup.procs"), started.pid().to_string()).unwrap();
    started.release();
    let run = started.finish();
    assert!(run.report.recorded);
    assert_eq!(run.report.seal.escaped_tasks, 1);
}

#[test]
fn a_command_that_cannot_be_executed_leaves_no_blind_spot() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start(&probe, Path::new("/nonexistent"), &[], &[], dir.path());
    started.release();
    let run = started.finish();
    assert_eq!(run.status.code(), Some(127));
    assert!(!run.report.recorded);
    assert_eq!(run.report.seal.escaped_tasks, 0);
    assert!(run.report.seal.blind_spots.is_empty(), "{:?}", run.report.seal);
}

#[test]
fn processes_that_come_from_outside_are_counted() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let sleeper = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let (mut early, mut late) = (sleeper(), sleeper());
    let script = "echo $(cat late) > $(cat place)/cgroup.procs; kill $(cat early) $(cat late)";
    let mut started = start(&probe, Path::new("/bin/sh"), &["-c", script], &[], &root);
    for (name, text) in [
        ("place", started.cgroup.0.to_str().unwrap().to_owned()),
        ("early", early.id().to_string()),
        ("late", late.id().to_string()),
    ] {
        fs::write(root.join(name), text).unwrap();
    }
    // One before the barrier opens, one brought in by the command itself.
    started.cgroup.add(early.id());
    started.release();
    for child in [&mut early, &mut late] {
        wait_for("a sleeper to end", || child.try_wait().unwrap());
    }
    let run = started.finish();
    assert!(run.status.success());
    assert_eq!(spot(&run, "processes that came into the cgroup from outside"), 2);
    assert_eq!(run.report.seal.escaped_tasks, 0);
}

#[allow(unsafe_code, reason = "calls that the standard library does not make")]
fn bypasses() {
    let mut parameters = [0u8; 120];
    // SAFETY: the kernel reads and writes 120 bytes there.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    // SAFETY: no pointers.
    assert!(unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, 0) } < 0);
    if ring >= 0 {
        // SAFETY: nothing is submitted and nothing is waited for.
        assert_eq!(unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, 0, 0, 0, 0, 0) }, 0);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let [high, low] = listener.local_addr().unwrap().port().to_be_bytes();
    let address = [libc::AF_INET as u8, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM);
    // SAFETY: the kernel reads 5 and 16 bytes.
    let sent = unsafe {
        libc::sendto(fd, b"exfil".as_ptr().cast(), 5, libc::MSG_FASTOPEN, address.as_ptr().cast(), 16)
    };
    assert_eq!(sent, 5);
}

#[test]
fn calls_that_pass_beside_the_hooks_are_named() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = run_workload(&probe, "bypasses", dir.path());
    assert!(run.status.success());
    assert!(!run.report.seal.blind_spots.iter().any(|spot| spot.contains("FASTOPEN")));
    // Where io_uring is turned off, it is no way around the probe either.
    if fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() == "0") {
        assert_eq!(spot(&run, "io_uring_setup calls"), 1);
        assert_eq!(spot(&run, "io_uring_enter calls"), 1);
    }
}
