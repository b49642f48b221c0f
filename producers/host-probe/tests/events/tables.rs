//! A task's table when its execution is over and it is not; and what is not a file.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use glasshouse_host_probe::LoadOptions;
use glasshouse_schema::Class;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Facts, call, closed, each_probe, place};
use crate::support::{self, Started, run_shell, run_workload, start_workload, wait_for};

pub fn workload(name: &str) -> bool {
    match name {
        "survivor" => survivor(),
        "survivor_calls" => survivor_calls(),
        "small" => small(),
        "slow" => slow(),
        "pseudo" => pseudo(),
        "aio" => aio(),
        "crowd" => crowd(),
        "endless" => endless(),
        "wanderer" => wanderer(),
        "storm" => storm(),
        _ => return false,
    }
    true
}

/// Reads and asks, tells that it has, and goes on until it is killed.
fn survivor() {
    let file = fs::File::open("secret").unwrap();
    let mut buffer = [0u8; 32];
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(peer.local_addr().unwrap()).unwrap();
    for turn in 0u64.. {
        socket.send(b"secret").unwrap();
        peer.recv(&mut buffer).unwrap();
        file.read_at(&mut buffer, 0).unwrap();
        call!(libc::SYS_getsid, 0);
        if turn == 1000 {
            fs::write("ready", b"").unwrap();
        }
        if turn > 1000 {
            // Meets what it was told to forget, and then is met no more.
            let _ = fs::metadata("go").map(|_| fs::File::open("secret"));
        }
    }
}

/// Calls that mean nothing, and one that is refused, for as long as it lives.
fn survivor_calls() {
    fs::write("ready", b"").unwrap();
    loop {
        for _ in 0..1000 {
            call!(libc::SYS_getsid, 0);
        }
        // A group leader may not begin a session: EPERM.
        call!(libc::SYS_setpgid, 1, 0);
        call!(libc::SYS_setsid);
    }
}

fn small() {
    fs::write("small", b"12345").unwrap();
    fs::read("small").unwrap();
}

/// Starts a survivor, and seals under it once it works.
fn sealed_alive(
    probe: &glasshouse_host_probe::HostProbe,
    name: &str,
    dir: &std::path::Path,
) -> (Pid, support::Cgroup) {
    let mut started: Started = start_workload(probe, name, dir);
    started.release();
    let ready = dir.join("ready");
    wait_for("the survivor to work", || ready.exists().then_some(()));
    let pid = Pid::from_raw(started.pid() as i32);
    // The cgroup goes, and with it whoever is in it: the survivor moves on first, by our hand.
    let elsewhere = support::Cgroup::new();
    let run = started.seal_and_keep(&elsewhere);
    assert_eq!(run.report.unexplained, 0);
    (pid, elsewhere)
}

#[test]
fn a_table_that_was_not_flushed_is_empty_for_the_next() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let (_other, second) = place();
        fs::write(root.join("secret"), [7; 32]).unwrap();
        let (pid, _elsewhere) = sealed_alive(probe, "survivor", &root);
        fs::write(root.join("go"), b"").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        kill(pid, Signal::SIGKILL).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..3 {
            let run = run_workload(probe, "small", &second);
            let traffic: Vec<_> =
                run.seen.iter().filter(|seen| matches!(seen, support::Seen::Traffic { .. })).collect();
            let found = (run.syscall("getsid"), run.report.counters.lost(), traffic);
            assert_eq!(found, (0, 0, vec![]), "calls, losses and traffic of another execution");
            let facts = closed(&run);
            assert_eq!(facts.io(&root.join("secret"), None), super::Io::default());
            assert_eq!(facts.io(&second.join("small"), None).read_bytes, 5);
        }
    });
}

#[test]
fn a_survivor_does_not_count_for_the_next_tenant_of_its_place() {
    let options = LoadOptions { max_executions: 1, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let (_dir, root) = place();
    let (_other, second) = place();
    let (pid, _elsewhere) = sealed_alive(&probe, "survivor_calls", &root);
    let run = run_shell(&probe, "sleep 1", &second);
    kill(pid, Signal::SIGKILL).unwrap();
    let refused: Vec<_> = run.report.seal.denied.iter().filter(|(name, _)| name.starts_with("set")).collect();
    assert_eq!((run.syscall("getsid"), refused.len()), (0, 0), "{refused:?}");
    closed(&run);
}

/// Reads now and then.
fn slow() {
    let file = fs::File::open("slow").unwrap();
    let mut buffer = [0u8; 8];
    for _ in 0..14 {
        file.read_at(&mut buffer, 0).unwrap();
        fs::File::open("slow").unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    fs::write("asked", b"").unwrap();
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn opens_of_a_long_run_are_told_about_each_second() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    fs::write(root.join("slow"), [7; 8]).unwrap();
    let mut started = start_workload(&probe, "slow", &root);
    started.release();
    wait_for("its reads", || root.join("asked").exists().then_some(()));
    let pid = Pid::from_raw(started.pid() as i32);
    // What was told before it ended.
    std::thread::sleep(Duration::from_millis(200));
    let before = started.so_far();
    kill(pid, Signal::SIGKILL).unwrap();
    let run = started.finish();
    run.assert_closed();
    let (early, facts) = (Facts::of(&support::Run { frames: before, ..copy(&run) }), Facts::of(&run));
    assert_eq!((facts.opened(&root.join("slow")), facts.io(&root.join("slow"), None).reads), (15, 14));
    assert!(early.opened(&root.join("slow")) >= 10, "{} opens", early.opened(&root.join("slow")));
    assert!(early.io(&root.join("slow"), None).reads >= 5, "{:?}", early.io(&root.join("slow"), None));
}

fn copy(run: &support::Run) -> support::Run {
    support::Run {
        pid: run.pid,
        status: run.status,
        report: run.report.clone(),
        seen: Vec::new(),
        frames: Vec::new(),
    }
}

fn pseudo() {
    let event = call!(libc::SYS_eventfd2, 0, 0);
    let one = 1u64;
    let mut got = 0u64;
    for _ in 0..10 {
        assert_eq!(call!(libc::SYS_write, event, &raw const one, 8), 8);
        assert_eq!(call!(libc::SYS_read, event, &raw mut got, 8), 8);
    }
    let (reader, writer) = nix::unistd::pipe().unwrap();
    for _ in 0..10 {
        assert_eq!(nix::unistd::write(&writer, b"x").unwrap(), 1);
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 1);
    }
}

#[test]
fn pipes_and_event_descriptors_are_no_files() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    let facts = closed(&run_workload(&probe, "pseudo", &root));
    let pseudo: Vec<_> = facts.ios.iter().filter(|(_, at, _)| !at.path.starts_with('/')).collect();
    assert!(pseudo.is_empty(), "{pseudo:?}");
}

/// Bytes by io_submit(2), which no other call returns.
fn aio() {
    let file = fs::File::open("aio").unwrap();
    let mut context = 0u64;
    let set_up = call!(libc::SYS_io_setup, 1, &raw mut context);
    if set_up == -i64::from(libc::ENOSYS) {
        return;
    }
    assert_eq!(set_up, 0);
    let mut buffer = [0u8; 64];
    // struct iocb: data, key and flags, opcode 0 (pread) with its priority and descriptor, buffer, bytes, offset, rest.
    let fd = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
    let request = [0u64, 0, fd << 32, buffer.as_mut_ptr() as u64, 64, 0, 0, 0];
    let requests = [request.as_ptr()];
    assert_eq!(call!(libc::SYS_io_submit, context, 1, requests.as_ptr()), 1);
    let mut events = [0u64; 4];
    assert_eq!(call!(libc::SYS_io_getevents, context, 1, 1, events.as_mut_ptr(), 0), 1);
    assert_eq!(events[2], 64);
    fs::write("submitted", b"").unwrap();
}

#[test]
fn bytes_by_io_submit_are_counted_or_named() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    fs::write(root.join("aio"), [7; 64]).unwrap();
    let run = run_workload(&probe, "aio", &root);
    if !root.join("submitted").exists() {
        eprintln!("skipped: this kernel has no io_submit");
        return;
    }
    let counted = Facts::of(&run).io(&root.join("aio"), None).read_bytes;
    assert!(
        counted == 64 || run.report.seal.blind_spots.iter().any(|spot| spot.contains("io_submit")),
        "neither"
    );
    assert_eq!(run.report.counters.class(Class::File).lost, 0);
}

/// More threads at once than there are tables.
fn crowd() {
    let together = std::sync::Barrier::new(12);
    std::thread::scope(|scope| {
        for number in 0..12 {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                for _ in 0..50 {
                    fs::write(format!("crowd{number}"), b"123").unwrap();
                }
                together.wait();
            });
        }
    });
}

#[test]
fn tasks_without_a_table_are_lost_by_count_and_others_are_whole() {
    let options = LoadOptions { max_tasks: 4, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let (_dir, root) = place();
    let run = run_workload(&probe, "crowd", &root);
    assert!(run.status.success());
    assert_eq!((run.report.unexplained, run.report.still_alive), (0, 0));
    for class in Class::ALL {
        assert!(run.report.counters.class(class).adds_up(), "{class:?}");
    }
    let calls = run.report.counters.class(Class::Syscall);
    assert!(calls.lost > 0 && run.report.counters.class(Class::File).lost > 0, "{:#?}", run.report.counters);
    // Their tables are free again.
    for _ in 0..5 {
        let facts = closed(&run_workload(&probe, "small", &root));
        assert_eq!(facts.io(&root.join("small"), None).read_bytes, 5);
    }
}

/// Fills a small ring, then goes on with files that were lost and such as were not.
fn storm() {
    let mut buffer = [0u8; 16];
    for number in 0..3000 {
        fs::write(format!("storm{number}"), [7; 16]).unwrap();
        let file = fs::File::open(format!("storm{number}")).unwrap();
        for _ in 0..10 {
            file.read_at(&mut buffer, 0).unwrap();
        }
        fs::File::open("same").unwrap();
    }
}

#[test]
fn what_a_full_ring_takes_is_lost_by_count_with_its_tallies() {
    for direct_reads in [true, false] {
        let options = LoadOptions {
            direct_reads,
            activity_ring_bytes: 64 * 1024,
            wakeup_bytes: 32 * 1024,
            ..LoadOptions::default()
        };
        let Some(probe) = support::probe_with(&options) else { return };
        let (_dir, root) = place();
        fs::write(root.join("same"), b"x").unwrap();
        let mut started = start_workload(&probe, "storm", &root);
        let gate = std::sync::Arc::clone(&started.gate);
        let closed = gate.lock().unwrap();
        started.release();
        started.wait_root();
        drop(closed);
        let run = started.finish();
        let facts = Facts::of(&run);
        let file = run.report.counters.class(Class::File);
        assert!(file.adds_up() && file.lost > 0, "{file:?}");
        assert_eq!(run.report.unexplained, 0);
        assert_eq!(facts.counted[1], file.delivered + file.collapsed);
        // Each file: made, written, opened and read ten times; and one opened each time.
        assert!(file.observed >= 3000 * 14, "{file:?}");
        assert!(facts.opened(&root.join("same")) <= 3000);
        for number in 0..3000 {
            let path = root.join(format!("storm{number}"));
            let io = facts.io(&path, None);
            assert!(
                facts.opened(&path) <= 2
                    && io.reads <= 10
                    && io.read_bytes == io.reads * 16
                    && io.writes <= 1
            );
        }
    }
}

/// Reads until it is told to stop.
fn wanderer() {
    let file = fs::File::open("wanderer").unwrap();
    let mut buffer = [0u8; 8];
    for turn in 0u64.. {
        file.read_at(&mut buffer, 0).unwrap();
        if turn == 100 {
            fs::write("ready", b"").unwrap();
        }
        if turn % 100 == 0 && fs::exists("stop").unwrap() {
            fs::write("turns", turn.to_string()).unwrap();
            return;
        }
    }
}

#[test]
fn who_leaves_and_comes_back_is_counted_while_here() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    fs::write(root.join("wanderer"), [7; 8]).unwrap();
    let mut started = start_workload(&probe, "wanderer", &root);
    started.release();
    wait_for("its reads", || root.join("ready").exists().then_some(()));
    let elsewhere = support::Cgroup::new();
    for _ in 0..5 {
        elsewhere.add(started.pid());
        std::thread::sleep(Duration::from_millis(40));
        started.cgroup.add(started.pid());
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::write(root.join("stop"), b"").unwrap();
    let run = started.finish();
    let facts = Facts::of(&run);
    let turns: u64 = fs::read_to_string(root.join("turns")).unwrap().parse().unwrap();
    let io = facts.io(&root.join("wanderer"), None);
    assert_eq!(
        (run.report.unexplained, run.report.counters.lost(), run.report.still_alive),
        (0, 0, 0),
        "{:#?}",
        run.report
    );
    assert_eq!(run.report.seal.escaped_tasks, 5);
    assert!(io.reads > 100 && io.reads < turns && io.read_bytes == io.reads * 8, "{io:?} of {turns}");
    let file = run.report.counters.class(Class::File);
    assert!(file.adds_up() && facts.counted[1] == file.observed, "{file:?}");
}

/// Two threads that open one file after another for as long as they live.
fn endless() {
    fs::write("ready", b"").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for number in 0u64.. {
                    let _ = fs::File::open(format!("no-such-file-{number}"));
                }
            });
        }
    });
}

#[test]
fn nobody_stays_stopped_after_a_lossless_seal() {
    let options =
        LoadOptions { activity_ring_bytes: 64 * 1024, wakeup_bytes: 16 * 1024, ..LoadOptions::default() };
    let Some(probe) = support::probe_with(&options) else { return };
    let (mut stuck, mut stops) = (Vec::new(), 0);
    for turn in 0..15 {
        let (_dir, root) = place();
        let mut started =
            support::start_lossless_workload(&probe, "endless", &root, Duration::from_micros(100));
        started.release();
        wait_for("the survivor to work", || root.join("ready").exists().then_some(()));
        std::thread::sleep(Duration::from_millis(20 + turn % 40));
        let pid = started.pid();
        let elsewhere = support::Cgroup::new();
        let run = started.seal_and_keep(&elsewhere);
        assert_eq!(run.report.unexplained, 0);
        stops += run.report.kernel.raw.stops;
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().chars().next().unwrap()
        };
        let began = std::time::Instant::now();
        while state() == 'T' && began.elapsed() < Duration::from_millis(300) {
            std::thread::yield_now();
        }
        if state() == 'T' {
            stuck.push((turn, run.report.kernel.raw.stops));
        }
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    }
    eprintln!("{stops} stops");
    assert!(stuck.is_empty(), "{} of 15 stay stopped: {stuck:?}", stuck.len());
}
