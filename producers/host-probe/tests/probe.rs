//! Real commands on the real kernel: what they did, and what the probe says they did.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a module of test helpers has no outside")]

mod adversary;
mod events;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use glasshouse_host_probe::{LoadOptions, ProbeError};
use glasshouse_schema::event::SocketOperation;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use support::{Seen, run_shell, run_workload, start, start_workload, wait_for};

const ENOENT: i32 = -2;
const EACCES: i32 = -13;
const ECONNREFUSED: i32 = -111;

/// The objects give the same facts, so that nothing else would show that the fast one is refused.
#[test]
fn direct_reads_are_used_where_the_kernel_has_them() {
    let Some(probe) = support::probe() else { return };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next(), numbers.next());
    // bpf_rdonly_cast() is there since 6.2.
    if version < (Some(6), Some(2)) {
        eprintln!("skipped: Linux {} has no bpf_rdonly_cast()", release.trim());
        return;
    }
    assert!(probe.reads_directly(), "refused: RUST_LOG=debug glasshouse run --profile host -- true says why");
}

/// What a watched process does: this test binary runs itself with [`support::WORKLOAD`] set.
#[test]
fn workload() {
    let Ok(name) = std::env::var(support::WORKLOAD) else { return };
    match name.as_str() {
        "files" => files(),
        "network" => network(),
        "threads" => threads(),
        name => assert!(adversary::workload(name) || events::workload(name), "no workload {name}"),
    }
}

fn files() {
    fs::create_dir_all("sub").unwrap();
    // Created, relative.
    fs::write("sub/made.txt", b"x").unwrap();
    // Through a symlink: the file itself is what counts.
    std::os::unix::fs::symlink("sub/made.txt", "link").unwrap();
    fs::read("link").unwrap();
    // Relative to a directory descriptor.
    let dir = fs::File::open("sub").unwrap();
    nix::fcntl::openat(dir.as_fd(), "../sub/./made.txt", OFlag::O_RDONLY, Mode::empty()).unwrap();
    // Failed ones, of both kinds.
    assert!(fs::File::open("sub/../absent").is_err());
    assert!(nix::fcntl::openat(dir.as_fd(), "gone", OFlag::O_RDONLY, Mode::empty()).is_err());
    // Renamed and removed, by path and by directory descriptor.
    fs::rename("sub/made.txt", "moved.txt").unwrap();
    nix::fcntl::renameat(nix::fcntl::AT_FDCWD, "moved.txt", dir.as_fd(), "again.txt").unwrap();
    assert!(fs::rename("absent", "nowhere").is_err());
    nix::unistd::unlinkat(dir.as_fd(), "again.txt", nix::unistd::UnlinkatFlags::NoRemoveDir).unwrap();
    fs::remove_file("./link").unwrap();
    drop(dir);
    fs::remove_dir("sub").unwrap();
    assert!(fs::remove_file("absent").is_err());
    // A file that never had a directory.
    nix::sys::memfd::memfd_create(c"nowhere", nix::sys::memfd::MFdFlags::empty()).unwrap();
}

fn network() {
    let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStream::connect(v4.local_addr().unwrap()).unwrap();
    let v6 = TcpListener::bind("[::1]:0").unwrap();
    TcpStream::connect(v6.local_addr().unwrap()).unwrap();
    // Nobody listens on port 1.
    assert!(TcpStream::connect("127.0.0.1:1").is_err());
    UdpSocket::bind("127.0.0.1:0").unwrap().connect("127.0.0.1:53").unwrap();
    let _unix = UnixListener::bind("sock").unwrap();
    UnixStream::connect("sock").unwrap();
    assert!(UnixStream::connect("./absent/../nosock").is_err());
    use std::os::linux::net::SocketAddrExt;
    let name = SocketAddr::from_abstract_name(format!("glasshouse-{}", std::process::id())).unwrap();
    let _abstract = UnixListener::bind_addr(&name).unwrap();
    UnixStream::connect_addr(&name).unwrap();
}

fn threads() {
    let workers: Vec<_> = (0..8)
        .map(|number| std::thread::spawn(move || fs::write(format!("thread-{number}"), b"x").unwrap()))
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn files_have_their_absolute_paths() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let run = run_workload(&probe, "files", &root);
    assert!(run.status.success());
    run.assert_closed();

    let created = run.opened(&root.join("sub/made.txt"));
    assert_eq!((created.0, created.2), (0, 0));
    assert_ne!(created.1 & OFlag::O_CREAT.bits() as u32, 0);
    // Created, through the link, and through the descriptor: three opens of one file, all resolved.
    let made = root.join("sub/made.txt");
    let opens =
        run.opens().into_iter().filter(|open| open.0 == made.to_str().unwrap() && open.1 == 0).count();
    assert!(opens >= 2, "{opens}");
    assert!(!run.opens().iter().any(|open| open.0.ends_with("/link")));
    run.opened(&root.join("sub"));
    for failed in ["absent", "sub/gone"] {
        let (path_flags, _, result) = run.opened(&root.join(failed));
        assert_eq!((path_flags, result), (support::unresolved(&root).flags, ENOENT));
    }

    let at = |name: &str| support::unresolved(&root.join(name));
    run.has(&Seen::Rename { from: at("sub/made.txt"), to: at("moved.txt"), result: 0 });
    run.has(&Seen::Rename { from: at("moved.txt"), to: at("sub/again.txt"), result: 0 });
    run.has(&Seen::Rename { from: at("absent"), to: at("nowhere"), result: ENOENT });
    run.has(&Seen::Delete { path: at("sub/again.txt"), directory: false, result: 0 });
    run.has(&Seen::Delete { path: at("link"), directory: false, result: 0 });
    run.has(&Seen::Delete { path: at("sub"), directory: true, result: 0 });
    run.has(&Seen::Delete { path: at("absent"), directory: false, result: ENOENT });
    assert!(run.syscall("openat") > 0);
    assert_eq!(run.syscall("execve"), 1);
    assert_eq!(run.syscall("exit_group"), 1);
    assert_eq!(run.syscall("memfd_create"), 1);
    // Counted on its own before the histogram is.
    let calls = run.report.counters.class(glasshouse_schema::Class::Syscall);
    assert_eq!((calls.observed, calls.lost), (run.report.kernel.raw.observed[3], 0));
    assert_eq!(calls.collapsed, calls.observed);
    assert_eq!(run.report.kernel.missed_runs, Some([0; 4]));
}

#[test]
fn connects_have_address_and_result() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let run = run_workload(&probe, "network", &root);
    assert!(run.status.success());
    run.assert_closed();
    let connects: Vec<_> = run
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Socket { operation: SocketOperation::Connect, address, port, protocol, result } => {
                Some((address.clone(), *port, *protocol, *result))
            }
            _ => None,
        })
        .collect();
    assert_eq!(connects.len(), 7, "{connects:?}");
    let v4 = vec![127, 0, 0, 1];
    let v6 = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
    assert!(connects[0].0 == v4 && connects[0].1 > Some(1023) && connects[0].2 == 6 && connects[0].3 == 0);
    assert!(connects[1].0 == v6 && connects[1].1 > Some(1023) && connects[1].2 == 6 && connects[1].3 == 0);
    assert_eq!(connects[2], (v4.clone(), Some(1), 6, ECONNREFUSED));
    assert_eq!(connects[3], (v4, Some(53), 17, 0));
    let path = |name: &str| root.join(name).to_str().unwrap().as_bytes().to_vec();
    assert_eq!(connects[4], (path("sock"), None, 0, 0));
    assert_eq!(connects[5], (path("nosock"), None, 0, ENOENT));
    assert_eq!(connects[6], (format!("\0glasshouse-{}", run.pid).into_bytes(), None, 0, 0));
    assert_eq!(run.syscall("connect"), 7);
}

#[test]
fn the_process_tree_with_codes_and_signals() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    // A child with a code, a child killed by a signal, and a grandchild that execs by a relative path.
    fs::copy("/bin/true", root.join("mytrue")).unwrap();
    let run = run_shell(&probe, "(exit 7); sh -c 'kill -TERM $$'; (./mytrue one 'two 2'; :); exit 3", &root);
    assert_eq!(run.status.code(), Some(3));
    run.assert_closed();

    let mut forks = Vec::new();
    let mut exits = Vec::new();
    let mut execs = Vec::new();
    for seen in &run.seen {
        match seen {
            Seen::Fork { process, child } => forks.push((*process, *child)),
            Seen::Exit { process, code, signal, .. } => exits.push((*process, *code, *signal)),
            Seen::Exec { process, ppid, exe, cwd, argv, .. } => {
                execs.push((*process, *ppid, exe.clone(), cwd.clone(), argv.clone()));
            }
            _ => {}
        }
    }
    let shell = execs[0].0;
    assert_eq!(shell.tgid, run.pid);
    assert_eq!(execs[0].1, std::process::id());
    assert_eq!(execs[0].2, fs::canonicalize("/bin/sh").unwrap().to_str().unwrap());
    assert_eq!(execs[0].3, root.to_str().unwrap());
    assert_eq!(execs[0].4[..2], ["/bin/sh", "-c"]);
    let mytrue = execs.iter().find(|exec| exec.2 == root.join("mytrue").to_str().unwrap()).unwrap();
    assert_eq!(mytrue.4, ["./mytrue", "one", "two 2"]);
    // Everyone who was forked also ended, and everyone but the root was forked.
    let children: BTreeSet<_> = forks.iter().map(|fork| fork.1).collect();
    let mut ended: BTreeSet<_> = exits.iter().map(|exit| exit.0).collect();
    assert_eq!(exits.len(), ended.len());
    assert!(ended.remove(&shell));
    assert_eq!(children, ended);
    assert!(exits.contains(&(shell, 3, 0)));
    assert!(exits.iter().any(|exit| exit.1 == 7 && exit.2 == 0));
    assert!(exits.iter().any(|exit| exit.1 == 0 && exit.2 == 15));
    assert!(forks.iter().any(|fork| fork.0 == shell));
}

#[test]
fn threads_belong_to_their_process() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let run = run_workload(&probe, "threads", &root);
    assert!(run.status.success());
    run.assert_closed();
    assert!(!run.seen.iter().any(|seen| matches!(seen, Seen::Fork { .. })));
    assert_eq!(run.seen.iter().filter(|seen| matches!(seen, Seen::Exit { .. })).count(), 1);
    for number in 0..8 {
        let wanted = support::resolved(&root.join(format!("thread-{number}")));
        let found = run.seen.iter().find_map(|seen| match seen {
            Seen::Open { path, process, .. } if *path == wanted => Some(*process),
            _ => None,
        });
        assert_eq!(found.unwrap().tgid, run.pid);
    }
    assert!(run.syscall("exit") >= 8, "each thread ends with exit(2)");
}

#[test]
fn executions_do_not_mix_and_nothing_precedes_the_exec() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let scripts: Vec<String> =
        (0..8).map(|number| format!("for i in $(seq 40); do : > own-{number}-$i; done")).collect();
    let mut started: Vec<_> = scripts
        .iter()
        .map(|script| start(&probe, Path::new("/bin/sh"), &["-c", script], &[], &root))
        .collect();
    for one in &mut started {
        one.release();
    }
    for (number, one) in started.into_iter().enumerate() {
        let run = one.finish();
        run.assert_closed();
        let mine = format!("own-{number}-");
        let own = run.opens().iter().filter(|open| open.0.contains("/own-")).count();
        assert_eq!(own, 40);
        assert!(
            run.opens().iter().filter(|open| open.0.contains("/own-")).all(|open| open.0.contains(&mine))
        );
        // The barrier's own shell opened the loader's files too, and moved into the cgroup: none of it is here.
        let first = run.seen.iter().find(|seen| matches!(seen, Seen::Exec { .. })).unwrap();
        assert!(matches!(first, Seen::Exec { argv, .. } if argv[2] == scripts[number]), "{first:?}");
        assert_eq!(run.syscall("execve"), 2, "of sh and of seq");
    }
}

#[test]
fn nested_cgroups_inherit_and_escapes_are_counted() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let script = "mkdir $(cat place)/nested
        sh -c 'echo 0 > $(cat place)/nested/cgroup.procs; : > inside'
        rmdir $(cat place)/nested";
    let mut nested = start(&probe, Path::new("/bin/sh"), &["-c", script], &[], &root);
    fs::write(root.join("place"), nested.cgroup.0.to_str().unwrap()).unwrap();
    nested.release();
    let run = nested.finish();
    assert!(run.status.success());
    run.assert_closed();
    run.opened(&root.join("inside"));

    let script = "echo 0 > $(cat place)/cgroup.procs; : > outside";
    let elsewhere = support::Cgroup::new();
    fs::write(root.join("place"), elsewhere.0.to_str().unwrap()).unwrap();
    let mut escaping = start(&probe, Path::new("/bin/sh"), &["-c", script], &[], &root);
    escaping.release();
    let run = escaping.finish();
    assert_eq!(run.report.seal.escaped_tasks, 1);
    assert!(!run.opens().iter().any(|open| open.0.ends_with("/outside")));
}

#[test]
fn refused_calls_are_counted() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::write(root.join("theirs"), b"x").unwrap();
    let permissions = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    fs::set_permissions(root.join("theirs"), permissions).unwrap();
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(&root, open).unwrap();
    let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "cat", "theirs"];
    let mut started = start(&probe, Path::new("/usr/bin/setpriv"), &arguments, &[], &root);
    started.release();
    let run = started.finish();
    run.assert_closed();
    assert_eq!(run.opened(&root.join("theirs")).2, EACCES);
    let denied: u64 =
        run.report.seal.denied.iter().filter(|(name, _)| name == "openat").map(|(_, count)| count).sum();
    assert!(denied >= 1);
}

#[test]
fn arguments_are_masked_and_bounded() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(20_000);
    let mut started =
        start(&probe, Path::new("/bin/true"), &["--password=hunter2secret", &long], &[], dir.path());
    started.release();
    let run = started.finish();
    run.assert_closed();
    let exec = run.seen.iter().find(|seen| matches!(seen, Seen::Exec { .. })).unwrap();
    let Seen::Exec { argv, truncated, .. } = exec else { panic!("{exec:?}") };
    assert!(argv[1].starts_with("--password=<masked:"), "{}", argv[1]);
    assert!(*truncated);
    assert!(argv[2].len() > 8000 && argv[2].len() < 8192);
    assert_eq!(run.report.seal.redactions, [("tokens".to_owned(), 1)]);
}

#[test]
fn a_full_ring_loses_by_count_and_never_the_exits() {
    // The smallest ring, behind a sink that takes nothing until the command has ended.
    let options =
        LoadOptions { activity_ring_bytes: 64 * 1024, wakeup_bytes: 32 * 1024, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = "i=0; while [ $i -lt 20000 ]; do : > f$i; i=$((i+1)); done; exit 5";
    let mut started = start(&probe, Path::new("/bin/sh"), &["-c", script], &[], dir.path());
    let gate = std::sync::Arc::clone(&started.gate);
    let closed = gate.lock().unwrap();
    started.release();
    started.wait_root();
    drop(closed);
    let run = started.finish();
    assert_eq!(run.status.code(), Some(5));
    let file = run.report.counters.class(glasshouse_schema::Class::File);
    assert!(file.adds_up(), "{file:?}");
    assert!(file.observed >= 20_000);
    assert!(file.lost > 0 && file.lost == run.report.kernel.raw.lost_ring[1], "{:?}", run.report.kernel);
    assert_eq!(run.report.unexplained, 0);
    assert_eq!(run.report.counters.class(glasshouse_schema::Class::Process).lost, 0);
    assert!(run.seen.iter().any(|seen| matches!(seen, Seen::Exit { code: 5, .. })));
    eprintln!("of {} opens {} were lost, {} collapsed", file.observed, file.lost, file.collapsed);
}

#[test]
fn sealing_is_bounded_while_others_are_busy() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let busy_script = "while :; do : < /etc/passwd; done";
    let mut busy = start(&probe, Path::new("/bin/sh"), &["-c", busy_script], &[], dir.path());
    busy.release();
    for _ in 0..5 {
        let mut quick = start(&probe, Path::new("/bin/true"), &[], &[], dir.path());
        quick.release();
        let status = quick.wait_root();
        wait_for("the cgroup to be empty", || (!quick.cgroup.is_populated()).then_some(()));
        let began = std::time::Instant::now();
        let run = quick.seal(status);
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
        run.assert_closed();
    }
    // Sealed while it runs: what was counted up to then is accounted for, and the living are named.
    fs::write(busy.cgroup.0.join("cgroup.freeze"), "1").ok();
    let status = std::process::ExitStatus::default();
    let pid = busy.pid();
    let run = busy.seal(status);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert_eq!(run.report.still_alive, 1);
    assert_eq!(run.report.unexplained, 0);
}

#[test]
fn an_abandoned_watch_frees_its_place() {
    let Some(probe) = support::probe_with(&LoadOptions { max_executions: 1, ..LoadOptions::default() })
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut abandoned = start_workload(&probe, "threads", dir.path());
    abandoned.release();
    abandoned.wait_root();
    abandoned.abandon();
    // The place is given back by the drain thread, soon.
    let run = wait_for("a free place", || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_shell(&probe, "exit 0", dir.path())))
            .ok()
    });
    run.assert_closed();
}

#[test]
fn a_broken_or_missing_object_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let options = LoadOptions { object_dir: Some(dir.path().to_owned()), ..LoadOptions::default() };
    let error = glasshouse_host_probe::HostProbe::load(&options).unwrap_err();
    assert!(
        matches!(&error, ProbeError::ObjectMissing { path, .. } if path.starts_with(dir.path())),
        "{error}"
    );
    assert!(error.to_string().contains("GLASSHOUSE_BPF_DIR"));
    if support::probe().is_none() {
        return;
    }
    let doctor = glasshouse_bpf::object(glasshouse_bpf::DOCTOR).unwrap().bytes;
    for bytes in [b"".as_slice(), b"not an object", doctor] {
        fs::write(dir.path().join(glasshouse_bpf::PROBE), bytes).unwrap();
        let error = glasshouse_host_probe::HostProbe::load(&options).unwrap_err();
        assert!(matches!(error, ProbeError::ObjectBroken { .. }), "{error}");
    }
}

#[test]
fn doctor_agrees_with_what_loads() {
    if support::probe().is_none() {
        return;
    }
    let trials = glasshouse_host_probe::doctor::trials(&LoadOptions::default());
    for trial in &trials {
        eprintln!("{:18} {}", trial.name, trial.result.as_ref().map_or_else(String::as_str, |()| "works"));
        // The probe loaded above, so what it needs works.
        assert!(!trial.required || trial.result.is_ok(), "{trial:?}");
    }
    assert_eq!(trials.len(), 8);
}

#[tokio::test]
async fn the_controller_attaches_and_seals() {
    use glasshouse_execution::profiling::{ProfilingController, ProfilingTarget, TargetIdentity};
    use glasshouse_schema::lifecycle::RedactionRules;
    use glasshouse_schema::{EncodedFrame, ExecutionId, LifecycleEvent, NodeId};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Frames(Mutex<Vec<EncodedFrame>>);
    #[async_trait::async_trait]
    impl glasshouse_execution::EventSink for Frames {
        async fn lifecycle(&self, _: &LifecycleEvent) -> Result<(), glasshouse_execution::SinkError> {
            Ok(())
        }
        fn frame(&self, frame: EncodedFrame) {
            self.0.lock().unwrap().push(frame);
        }
        async fn flush(&self) -> Result<(), glasshouse_execution::SinkError> {
            Ok(())
        }
    }

    if support::probe().is_none() {
        return;
    }
    let controller = glasshouse_host_probe::EbpfController::new(LoadOptions::default());
    assert_eq!(controller.name(), "ebpf");
    controller.ready().await.unwrap();
    let cgroup = support::Cgroup::new();
    let execution = ExecutionId::from_parts(1, [2; 10]);
    let rules = RedactionRules { path_prefixes: Vec::new(), tokens: true };
    let target = |cgroup_id| ProfilingTarget {
        execution,
        node: NodeId::new("test").unwrap(),
        epoch: 1,
        identity: TargetIdentity { root_pid: Some(std::process::id()), cgroup_id },
        redactor: glasshouse_schema::redact::Redactor::new([0; 32], execution, rules.clone()),
        lossless: false,
    };
    let frames = Arc::new(Frames::default());
    let cgroup_id = glasshouse_host_probe::cgroup::id(&cgroup.0).unwrap();
    let attachment = controller.attach(target(Some(cgroup_id)), Arc::clone(&frames) as _).await.unwrap();
    assert_eq!(attachment.attached.hooks.len(), 8);
    // One cgroup, one execution; and no cgroup, no execution.
    let error = controller.attach(target(Some(cgroup_id)), Arc::clone(&frames) as _).await.err().unwrap();
    assert!(error.reason.contains("watched already"), "{error}");
    assert!(controller.attach(target(None), Arc::clone(&frames) as _).await.is_err());
    let chain = attachment.session.seal().await.unwrap();
    let frames = frames.0.lock().unwrap();
    assert_eq!((chain.frames, frames.len()), (1, 1));
    assert_eq!(chain.head, frames[0].digest);
}

#[test]
fn the_histogram_is_that_of_strace() {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let script =
        "ls /usr/lib | cat | wc -l; cat /etc/passwd; (exit 3); cat absent; kill -0 $$; mkdir d; rmdir d";
    let table = dir.path().join("table");
    let strace = std::process::Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .arg(&table)
        .args(["/bin/sh", "-c", script])
        .current_dir(dir.path())
        // As the shell at the barrier sets it; without it the other would ask for it.
        .env("PWD", dir.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(strace.success());
    let run = run_shell(&probe, script, dir.path());
    run.assert_closed();
    let table = fs::read_to_string(table).unwrap();
    let mut compared = 0;
    for line in table.lines() {
        let mut words = line.split_whitespace();
        let (Some(Ok(calls)), Some(name)) = (words.next().map(str::parse::<u64>), words.next()) else {
            continue;
        };
        // How often these are needed depends on timing: on who waits for whom and how a pipe fills up.
        if matches!(name, "total" | "wait4" | "read" | "write" | "rt_sigreturn" | "restart_syscall") {
            continue;
        }
        assert_eq!(run.syscall(name), calls, "{name}\n{table}\n{:?}", run.report.seal.syscalls);
        compared += 1;
    }
    assert!(compared > 15, "{table}");
    // strace never sees these return and leaves them out: one for each process of the tree.
    let exits = run.seen.iter().filter(|seen| matches!(seen, Seen::Exit { .. })).count();
    assert_eq!(run.syscall("exit_group"), exits as u64);
}
