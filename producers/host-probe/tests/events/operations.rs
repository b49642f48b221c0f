//! What is told one by one, and signals that leave the execution.

use std::process::Command;

use glasshouse_schema::event::Operation;

use super::{Facts, at, call, closed, each_probe, place};
use crate::support::{self, run_shell, run_workload, wait_for};

pub fn workload(name: &str) -> bool {
    match name {
        "operations" => operations(),
        "clone_namespaces" => clone_namespaces(),
        "burn" => burn(),
        "rt_signals" => rt_signals(),
        "trapped" => trapped(),
        "killed" => killed(),
        _ => return false,
    }
    true
}

/// Each is refused, so that nothing happens to the host.
fn operations() {
    let nobody = 0x3f_fff0;
    call!(libc::SYS_ptrace, 2, nobody, 0, 0);
    call!(libc::SYS_bpf, 9999, 0, 0);
    call!(libc::SYS_init_module, 0, 0, 0);
    call!(libc::SYS_finit_module, -1, at(c""), 4);
    call!(libc::SYS_delete_module, at(c"glasshouse_no_such"), libc::O_NONBLOCK);
    call!(libc::SYS_setns, -1, libc::CLONE_NEWNET);
    call!(libc::SYS_unshare, 0);
    call!(libc::SYS_io_uring_setup, 0, 0);
    call!(libc::SYS_memfd_create, at(c"x"), libc::MFD_CLOEXEC);
    call!(libc::SYS_keyctl, 9999, 0, 0);
    call!(libc::SYS_add_key, 0, 0, 0, 0, 0);
    call!(libc::SYS_request_key, 0, 0, 0, 0);
    call!(libc::SYS_process_vm_readv, nobody, 0, 0, 0, 0, 1);
    call!(libc::SYS_process_vm_writev, nobody, 0, 0, 0, 0, 1);
    call!(libc::SYS_pidfd_getfd, -1, 5, 0);
    call!(libc::SYS_perf_event_open, 0, nobody, -1, -1, 0);
    call!(libc::SYS_userfaultfd, 0x7000_0000);
    call!(libc::SYS_kexec_load, 0, 0, 0, 0xdead_0000u32);
    call!(libc::SYS_reboot, 1, 2, 0x1234_5678, 0);
    call!(libc::SYS_chroot, at(c"/nonexistent"));
    call!(libc::SYS_open_by_handle_at, -1, 0, libc::O_RDWR);
}

#[test]
fn operations_have_value_target_and_result() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let facts = closed(&run_workload(probe, "operations", &root));
        let told = |operation| -> Vec<_> {
            facts
                .operations
                .iter()
                .filter(|of| of.0 == operation)
                .map(|of| (of.1, of.2, of.3.min(0)))
                .collect()
        };
        let nobody = 0x3f_fff0;
        let refused = |operation, value, target| {
            let told = told(operation);
            assert_eq!(told.len(), 1, "{operation:?} {told:?}");
            assert_eq!((told[0].0, told[0].1), (value, target), "{operation:?}");
            assert!(told[0].2 < 0, "{operation:?}");
        };
        refused(Operation::Ptrace, 2, nobody);
        refused(Operation::Bpf, 9999, 0);
        assert_eq!(told(Operation::LoadModule).iter().map(|of| of.0).collect::<Vec<_>>(), [0, 4]);
        refused(Operation::UnloadModule, libc::O_NONBLOCK as u64, 0);
        refused(Operation::SetNamespace, libc::CLONE_NEWNET as u64, 0);
        assert_eq!(told(Operation::Unshare), [(0, 0, 0)]);
        refused(Operation::IoUring, 0, 0);
        assert_eq!(told(Operation::MemoryFd), [(u64::from(libc::MFD_CLOEXEC), 0, 0)]);
        assert_eq!(
            told(Operation::Keyring).iter().map(|of| of.0).collect::<Vec<_>>(),
            [9999, 0],
            "two are alike"
        );
        assert_eq!(
            told(Operation::ProcessMemory).iter().map(|of| (of.0, of.1)).collect::<Vec<_>>(),
            [(0, nobody), (1, nobody)]
        );
        refused(Operation::StealDescriptor, 5, 0);
        refused(Operation::PerfEvent, 0, nobody);
        refused(Operation::UserFault, 0x7000_0000, 0);
        refused(Operation::Kexec, 0xdead_0000, 0);
        refused(Operation::Reboot, 0x1234_5678, 0);
        refused(Operation::Chroot, 0, 0);
        refused(Operation::OpenByHandle, libc::O_RDWR as u64, 0);
        assert_eq!(told(Operation::Signal), []);
    });
}

fn signals(facts: &Facts) -> Vec<(u64, u32, u64)> {
    facts.operations.iter().filter(|of| of.0 == Operation::Signal).map(|of| (of.1, of.2, of.4)).collect()
}

#[test]
fn signals_are_told_when_they_leave_the_execution() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let outside = sleeper.id();
        let script = format!(
            "kill -0 {outside}; kill -CONT {outside}; kill -CONT {outside}; sleep 60 & kill -TERM $!; wait; \
             sh -c 'kill -USR1 $$'; kill -KILL {outside}; true"
        );
        let run = run_shell(probe, &script, &root);
        let facts = closed(&run);
        wait_for("the sleeper to end", || sleeper.try_wait().unwrap());
        let told = signals(&facts);
        let of = |signal: i32| {
            told.iter().filter(|of| of.0 == signal as u64 && of.1 == outside).map(|of| of.2).sum::<u64>()
        };
        assert_eq!((of(libc::SIGCONT), of(libc::SIGKILL)), (2, 1), "{told:?}");
        // Nothing but these: none inside, and no SIGCHLD.
        assert_eq!(told.iter().map(|of| of.2).sum::<u64>(), 3, "{told:?}");
    });
}

/// Queued, to a thread, by a descriptor, and to a group.
fn rt_signals() {
    let outside: i64 = std::fs::read_to_string("outside").unwrap().parse().unwrap();
    // siginfo_t: si_signo, si_errno, si_code = SI_QUEUE.
    let mut info = [0i32; 32];
    info[0] = libc::SIGCONT;
    info[2] = -1;
    assert_eq!(call!(libc::SYS_rt_sigqueueinfo, outside, libc::SIGCONT, info.as_ptr()), 0);
    assert_eq!(call!(libc::SYS_tgkill, outside, outside, libc::SIGCONT), 0);
    let fd = call!(libc::SYS_pidfd_open, outside, 0);
    assert_eq!(call!(libc::SYS_pidfd_send_signal, fd, libc::SIGCONT, 0, 0), 0);
    assert_eq!(call!(libc::SYS_kill, -outside, libc::SIGCONT), 0);
    // In the guise of a timer.
    info[2] = -2;
    assert_eq!(call!(libc::SYS_rt_sigqueueinfo, outside, libc::SIGCONT, info.as_ptr()), 0);
    // To itself.
    assert_eq!(call!(libc::SYS_rt_sigqueueinfo, std::process::id(), libc::SIGCONT, info.as_ptr()), 0);
}

#[test]
fn signals_of_every_call_are_told() {
    use std::os::unix::process::CommandExt;
    each_probe(|probe| {
        let (_dir, root) = place();
        let mut sleeper = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        std::fs::write(root.join("outside"), sleeper.id().to_string()).unwrap();
        let facts = closed(&run_workload(probe, "rt_signals", &root));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let told: u64 = signals(&facts)
            .iter()
            .filter(|of| (of.0, of.1) == (libc::SIGCONT as u64, sleeper.id()))
            .map(|of| of.2)
            .sum();
        assert_eq!(told, 5, "{:?}", signals(&facts));
        assert_eq!(signals(&facts).iter().map(|of| of.2).sum::<u64>(), 5);
    });
}

/// Keeps the first CPU busy with the call that signals are sent by, and signals nobody.
fn burn() {
    pin();
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_millis(1500) {
        assert_eq!(call!(libc::SYS_kill, std::process::id(), 0), 0);
    }
}

fn pin() {
    let mut set = nix::sched::CpuSet::new();
    set.set(0).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}

/// Has a timer of its own that signals itself every millisecond, until it is told to stop.
#[allow(unsafe_code, reason = "no wrapper makes such a timer")]
fn ticking(over: &std::sync::atomic::AtomicBool) -> u64 {
    pin();
    let mut ticks = 0;
    // SAFETY: the sets, the event and the times are this function's own; the signal is blocked and waited for here.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGRTMIN();
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        let each = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let times = libc::itimerspec { it_interval: each, it_value: each };
        assert_eq!(libc::timer_settime(timer, 0, &times, std::ptr::null_mut()), 0);
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            let most = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            if libc::sigtimedwait(&set, std::ptr::null_mut(), &most) > 0 {
                ticks += 1;
            }
        }
        libc::timer_delete(timer);
    }
    ticks
}

#[test]
fn a_timer_of_others_is_not_the_deed_of_whom_it_interrupts() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticks = scope.spawn(|| ticking(&over));
        let run = run_workload(&probe, "burn", &root);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let ticks = ticks.join().unwrap();
        let facts = closed(&run);
        let told: u64 = signals(&facts).iter().map(|of| of.2).sum();
        assert_eq!(told, 0, "of {ticks} ticks of another process: {:?}", signals(&facts));
    });
}

/// A child in a network namespace of its own, without unshare(2).
fn clone_namespaces() {
    let child = call!(libc::SYS_clone, libc::CLONE_NEWNET | libc::SIGCHLD, 0, 0, 0, 0);
    if child == 0 {
        call!(libc::SYS_exit_group, 0);
    }
    assert!(child > 0, "{child}");
    assert_eq!(call!(libc::SYS_wait4, child, 0, 0, 0), child);
}

#[test]
fn a_clone_with_new_namespaces_is_told_as_an_unshare() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    let facts = closed(&run_workload(&probe, "clone_namespaces", &root));
    let told: Vec<_> =
        facts.operations.iter().filter(|of| of.0 == Operation::Unshare).map(|of| of.1).collect();
    assert_eq!(told, [libc::CLONE_NEWNET as u64], "schema: unshare(2), or clone with new namespaces");
}

/// From here on a call is trapped (SECCOMP_RET_TRAP) or kills the process (SECCOMP_RET_KILL_PROCESS).
fn filter(call: i64, action: u32) {
    let jump = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        jump((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        jump((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, call as u32, 0, 1),
        jump(libc::BPF_RET as u16, action, 0, 0),
        jump(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    assert_eq!(call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    assert_eq!(call!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program), 0);
}

extern "C" fn on_sigsys(_: i32) {}

fn trapped() {
    #[allow(unsafe_code, reason = "a handler that does nothing")]
    // SAFETY: the handler touches nothing.
    unsafe {
        libc::signal(libc::SIGSYS, on_sigsys as *const () as usize);
    }
    for call in [libc::SYS_unlinkat, libc::SYS_mkdir, libc::SYS_pwrite64] {
        filter(call, libc::SECCOMP_RET_TRAP);
    }
    let file = std::fs::File::options().write(true).open("kept").unwrap();
    call!(libc::SYS_unlinkat, super::AT_FDCWD, at(c"kept"), 0);
    call!(libc::SYS_mkdir, at(c"dir"), 0o700);
    call!(libc::SYS_pwrite64, std::os::fd::AsRawFd::as_raw_fd(&file), at(c"text"), 4, 0);
}

fn killed() {
    filter(libc::SYS_unlinkat, libc::SECCOMP_RET_KILL_PROCESS);
    call!(libc::SYS_unlinkat, super::AT_FDCWD, at(c"kept"), 0);
}

#[test]
fn what_seccomp_traps_did_not_happen() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    std::fs::write(root.join("kept"), b"x").unwrap();
    for name in ["trapped", "killed"] {
        let run = run_workload(&probe, name, &root);
        assert!(root.join("kept").exists() && !root.join("dir").exists());
        run.assert_closed();
        let facts = Facts::of(&run);
        let done: Vec<_> = run
            .seen
            .iter()
            .filter(|seen| match seen {
                support::Seen::Delete { path, result, .. } => path.path.ends_with("/kept") && *result == 0,
                support::Seen::Change { path, result, .. } => path.path.ends_with("/dir") && *result == 0,
                _ => false,
            })
            .collect();
        assert!(done.is_empty(), "{name}: {done:?}");
        assert_eq!(facts.io(&root.join("kept"), None).written_bytes, 0, "{name}");
    }
}
