//! Rather stopped than lost.

use super::*;

/// The smallest rings.
pub(super) fn small_rings() -> Option<HostProbe> {
    support::probe_with(&LoadOptions {
        process_ring_bytes: 64 * 1024,
        activity_ring_bytes: 64 * 1024,
        wakeup_bytes: 32 * 1024,
        drain_interval: Duration::from_millis(100),
        ..LoadOptions::default()
    })
}

pub(super) const PACE: Duration = Duration::from_millis(5);

/// State of a process, as proc(5) has it.
pub(super) fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

pub(super) fn members(cgroup: &Path) -> Vec<i32> {
    let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits until everyone in it is stopped.
pub(super) fn wait_stopped(cgroup: &Path) -> Vec<i32> {
    wait_for("all to be stopped", || {
        let members = members(cgroup);
        let all = !members.is_empty() && members.iter().all(|pid| state(*pid) == Some('T'));
        all.then_some(members)
    })
}

/// Lets it begin, and takes no frame until somebody of it other than `but` was stopped.
pub(super) fn release_into_a_stop(started: &mut Started, but: Option<i32>) {
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
pub(super) fn assert_lossless(run: &Run) {
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
pub(super) fn storm(threads: usize, rounds: usize) {
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
pub(super) fn lossless_threads() {
    let Some(probe) = small_rings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "storm", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    let run = started.finish();
    assert!(run.status.success());
    assert_lossless(&run);
}

/// The longest records, from more threads than there are CPUs.
pub(super) fn long() {
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
pub(super) fn lossless_long_paths() {
    // Each thread may tell one more thing before it stops: half of the ring holds that.
    let options = LoadOptions { activity_ring_bytes: 1 << 20, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "long", dir.path(), PACE);
    release_into_a_stop(&mut started, None);
    assert_lossless(&started.finish());
}

/// Many facts by one call.
pub(super) fn burst() {
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
pub(super) fn lossless_bursts() {
    let Some(probe) = support::probe() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut started = start_lossless_workload(&probe, "burst", dir.path(), PACE);
    started.release();
    let run = started.finish();
    assert_eq!(run.report.counters.lost(), 0, "{:?}", run.report.kernel);
}

#[test]
pub(super) fn lossless_forks() {
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
pub(super) fn exits() {
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
pub(super) fn lossless_thread_exits_let_the_others_go_on() {
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
pub(super) fn observer() {
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
pub(super) fn lossless_parents_that_ask_see_the_stops() {
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
pub(super) fn stopper() {
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
pub(super) fn lossless_leaves_stops_of_the_commands_own() {
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
pub(super) fn sleeper() {
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
pub(super) fn lossless_interrupts_what_waits() {
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
pub(super) fn orphan(session: bool) {
    if session {
        sys::own_session()
    } else {
        sys::own_group()
    }
    let child = sys::child(|| storm(1, 20_000));
    tell("child", u16::try_from(child).unwrap_or(0));
    wait_for("the child to be stopped", || (state(child) == Some('T')).then_some(()));
}

pub(super) fn orphan_ends(workload: &str) {
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
pub(super) fn lossless_orphans_live_on() {
    orphan_ends("orphan");
}

#[test]
pub(super) fn lossless_orphans_of_a_session_live_on() {
    orphan_ends("orphan-session");
}

/// Codes and signals.
pub(super) fn exits_of(run: &Run) -> Vec<(u8, u8)> {
    let exit = |seen: &Seen| match seen {
        Seen::Exit { code, signal, .. } => Some((*code, *signal)),
        _ => None,
    };
    run.seen.iter().filter_map(exit).collect()
}

/// A shell with job control ends while a job is stopped.
pub(super) fn job() {
    // The child has a group of its own.
    let child = sys::child(|| {
        sys::own_group();
        storm(1, 20_000);
    });
    wait_for("the child to be stopped", || (state(child) == Some('T')).then_some(()));
}

#[test]
#[ignore = "the kernel hangs up (SIGHUP) on stopped groups that are orphaned, see kill_orphaned_pgrp() in kernel/exit.c"]
pub(super) fn lossless_jobs_outlive_their_shell() {
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
pub(super) fn lossless_shells_with_job_control_see_a_stop() {
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
pub(super) fn stopped(probe: &HostProbe, dir: &Path) -> (Started, std::sync::Arc<std::sync::Mutex<()>>) {
    let started = start_lossless_workload(probe, "storm", dir, Duration::ZERO);
    let gate = std::sync::Arc::clone(&started.gate);
    (started, gate)
}

#[test]
pub(super) fn lossless_abandoned_or_sealed_lets_go() {
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
pub(super) fn lossless_without_the_probe_lets_go() {
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
pub(super) fn holder() {
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
pub(super) fn lossless_without_its_holder_can_be_killed() {
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
