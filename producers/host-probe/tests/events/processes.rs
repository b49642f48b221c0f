//! Credentials, special execs, threads that exec, environments, usage at the exit, and the histogram of many threads.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use glasshouse_schema::event::ExecFlags;

use super::{AT_FDCWD, Exec, at, call, closed, each_probe, place, whole};
use crate::support::{self, run_shell, run_workload, start};

pub fn workload(name: &str) -> bool {
    match name {
        "thread_exec" => thread_exec(),
        "capabilities" => capabilities(),
        "anonymous" => anonymous(),
        "short_threads" => short_threads(),
        "burner_threads" => burner_threads(),
        "burner_workers" => burner_workers(),
        _ => return false,
    }
    true
}

/// A thread that is not the leader becomes another program.
fn thread_exec() {
    let mut buffer = [0u8; 16];
    let held = fs::File::open("held").unwrap();
    let others: Vec<_> = (0..3)
        .map(|_| std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(60))))
        .collect();
    let thread = std::thread::spawn(move || {
        for _ in 0..300 {
            assert_eq!(std::os::unix::fs::FileExt::read_at(&held, &mut buffer, 0).unwrap(), 16);
            fs::File::open("held").unwrap();
        }
        let arguments = [
            c"/bin/sh".as_ptr(),
            c"-c".as_ptr(),
            c"cat after; : < held; kill -0 $$; sh -c 'exit 0'".as_ptr(),
            std::ptr::null(),
        ];
        call!(libc::SYS_execve, at(c"/bin/sh"), arguments.as_ptr(), 0)
    });
    let _ = thread.join();
    drop(others);
}

#[test]
fn a_thread_that_execs_keeps_its_account() {
    each_probe(|probe| {
        for _ in 0..5 {
            let (_dir, root) = place();
            fs::write(root.join("held"), [7; 64]).unwrap();
            fs::write(root.join("after"), [7; 3000]).unwrap();
            let run = run_workload(probe, "thread_exec", &root);
            let facts = closed(&run);
            assert_eq!(facts.opened(&root.join("held")), 302);
            let held = facts.io(&root.join("held"), Some(run.pid));
            assert_eq!((held.reads, held.read_bytes), (300, 4800));
            assert_eq!(facts.io(&root.join("after"), None).read_bytes, 3000);
            let shells = facts.execs.iter().filter(|exec| exec.process.tgid == run.pid).count();
            assert_eq!(shells, 2);
            // Of the test, the shell, cat and the shell's own shell.
            assert_eq!(run.syscall("execve"), 4);
            assert_eq!(facts.exits.len(), 3);
        }
    });
}

#[track_caller]
fn exec_of<'a>(facts: &'a super::Facts, name: &str) -> &'a Exec {
    let found = facts.execs.iter().find(|exec| exec.exe.path.ends_with(name));
    found.unwrap_or_else(|| panic!("{name} is not among {:#?}", facts.execs))
}

#[test]
fn a_setuid_program_is_privileged_and_its_gain_is_told() {
    each_probe(|probe| {
        let (_dir, root) = place();
        fs::copy("/bin/true", root.join("privileged")).unwrap();
        fs::set_permissions(root.join("privileged"), fs::Permissions::from_mode(0o6755)).unwrap();
        let arguments = [
            "--reuid=65534",
            "--regid=65533",
            "--clear-groups",
            "sh",
            "-c",
            "true; /bin/true; ./privileged; ./privileged",
        ];
        let mut started = start(probe, Path::new("/usr/bin/setpriv"), &arguments, &[], &root);
        started.release();
        let facts = closed(&started.finish());
        assert!(exec_of(&facts, "/privileged").flags.contains(ExecFlags::PRIVILEGED));
        assert!(!exec_of(&facts, "/true").flags.contains(ExecFlags::PRIVILEGED));
        assert!(!exec_of(&facts, "/setpriv").flags.contains(ExecFlags::PRIVILEGED));
        // setpriv itself takes its capabilities back for a moment.
        let gained: Vec<_> = facts.credentials.iter().filter(|of| of.gained && of.ids[1] == 0).collect();
        assert_eq!(gained.len(), 2, "{:#?}", facts.credentials);
        assert!(gained.iter().all(|of| of.ids == [65534, 0, 65533, 0] && of.capabilities != 0));
        // What setpriv gave up, in whatever steps.
        let lost: Vec<_> = facts.credentials.iter().filter(|of| !of.gained).collect();
        assert!(
            lost.iter().any(|of| of.ids == [65534, 65534, 65533, 65533] && of.capabilities == 0),
            "{lost:#?}"
        );
    });
}

fn capabilities() {
    // struct __user_cap_header_struct of version 3, and two of __user_cap_data_struct: effective, permitted, inheritable.
    let header = [0x2008_0522u32, 0];
    let mut held = [0u32; 6];
    assert_eq!(call!(libc::SYS_capget, header.as_ptr(), held.as_mut_ptr()), 0);
    let mut fewer = held;
    fewer[0] &= !(1 << 21);
    for data in [&fewer, &fewer, &held] {
        assert_eq!(call!(libc::SYS_capset, header.as_ptr(), data.as_ptr()), 0);
    }
}

#[test]
fn capabilities_that_go_and_come_are_told() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let facts = closed(&run_workload(probe, "capabilities", &root));
        let told: Vec<_> =
            facts.credentials.iter().map(|of| (of.capabilities >> 21 & 1, of.gained)).collect();
        assert_eq!(told, [(0, false), (1, true)], "{:#?}", facts.credentials);
        assert!(facts.credentials.iter().all(|of| of.ids == [0; 4]));
    });
}

fn anonymous() {
    let program = fs::read("/bin/true").unwrap();
    let run = |fd: i32| {
        let status = std::process::Command::new(format!("/proc/self/fd/{fd}")).status().unwrap();
        assert!(status.success());
    };
    let memory = nix::sys::memfd::memfd_create(c"payload", nix::sys::memfd::MFdFlags::empty()).unwrap();
    fs::write(format!("/proc/self/fd/{}", memory.as_raw_fd()), &program).unwrap();
    run(memory.as_raw_fd());
    for name in ["deleted", "kept"] {
        fs::write(name, &program).unwrap();
        fs::set_permissions(name, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let deleted = fs::File::open("deleted").unwrap();
    fs::remove_file("deleted").unwrap();
    run(deleted.as_raw_fd());
    run(fs::File::open("kept").unwrap().as_raw_fd());
    // A file that never had a name.
    let nameless = call!(libc::SYS_openat, AT_FDCWD, at(c"."), libc::O_RDWR | libc::O_TMPFILE, 0o755);
    let path = format!("/proc/self/fd/{nameless}");
    fs::write(&path, &program).unwrap();
    let reading = fs::File::open(&path).unwrap();
    #[allow(unsafe_code, reason = "a descriptor of a raw system call")]
    // SAFETY: it was opened above and nothing else holds it.
    drop(unsafe { <fs::File as std::os::fd::FromRawFd>::from_raw_fd(nameless as i32) });
    run(reading.as_raw_fd());
}

#[test]
fn programs_without_a_name_are_anonymous_or_deleted() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let facts = closed(&run_workload(probe, "anonymous", &root));
        let special: Vec<_> = facts.execs.iter().map(|exec| (exec.exe.path.clone(), exec.flags)).collect();
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        assert_eq!(special.len(), 5, "{special:?}");
        assert_eq!(special[0].1, ExecFlags::default());
        assert_eq!(special[1], ("memfd:payload".to_owned(), ExecFlags::ANONYMOUS));
        assert_eq!(special[2], (path("deleted"), ExecFlags::DELETED));
        assert_eq!(special[3], (path("kept"), ExecFlags::default()));
        assert!(special[4].1 != ExecFlags::default(), "a file that never had a name: {special:?}");
    });
}

#[test]
fn programs_in_other_namespaces_are_marked() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for name in ["net", "pid", "uts", "ipc", "cgroup", "user", "mount", "none"] {
            fs::copy("/bin/true", root.join(name)).unwrap();
        }
        let script = "./none; unshare -n ./net; unshare -p -f ./pid; unshare -u ./uts; unshare -i ./ipc; unshare -C ./cgroup; unshare -U ./user";
        let run = run_shell(probe, script, &root);
        let facts = closed(&run);
        for (name, flag) in [
            ("/none", ExecFlags::default()),
            ("/net", ExecFlags::NET),
            ("/pid", ExecFlags::PID),
            ("/uts", ExecFlags::UTS),
            ("/ipc", ExecFlags::IPC),
            ("/cgroup", ExecFlags::CGROUP),
            ("/user", ExecFlags::USER),
        ] {
            assert_eq!(exec_of(&facts, name).flags, flag, "{name}");
        }
        let unshared: Vec<_> = facts
            .operations
            .iter()
            .filter(|of| of.0 == glasshouse_schema::event::Operation::Unshare)
            .map(|of| of.1 as i32)
            .collect();
        assert_eq!(
            unshared,
            [
                libc::CLONE_NEWNET,
                libc::CLONE_NEWPID,
                libc::CLONE_NEWUTS,
                libc::CLONE_NEWIPC,
                libc::CLONE_NEWCGROUP,
                libc::CLONE_NEWUSER
            ]
        );
        let run = run_shell(probe, "unshare -m ./mount", &root);
        assert_eq!(exec_of(&whole(&run), "/mount").flags, ExecFlags::MOUNT);
    });
}

#[test]
fn variables_are_told_by_name_only() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let env = [
            ("LD_PRELOAD", ""),
            // Cargo's alone can be more than is looked through.
            ("LD_LIBRARY_PATH", ""),
            ("PERL5LIB", "/hunter2/never-told"),
            ("HARMLESS", "also-never-told"),
        ];
        let mut started = start(probe, Path::new("/bin/true"), &[], &env, &root);
        started.release();
        let run = started.finish();
        let facts = closed(&run);
        let told: Vec<_> =
            exec_of(&facts, "/true").env.iter().filter(|name| *name != "LD_LIBRARY_PATH").collect();
        assert_eq!(told, ["LD_PRELOAD", "PERL5LIB"], "cargo sets the other");
        assert!(!exec_of(&facts, "/true").env_truncated);
        for frame in &run.frames {
            assert!(!frame.bytes.windows(10).any(|bytes| bytes == b"never-told"));
        }
        // More than is looked through.
        let long = "x".repeat(6000);
        let mut started = start(probe, Path::new("/bin/true"), &[], &[("A", &long)], &root);
        started.release();
        assert!(exec_of(&closed(&started.finish()), "/true").env_truncated);
    });
}

#[test]
fn what_a_process_used_is_told_at_its_exit() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let run = run_shell(probe, "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done", &root);
        let facts = closed(&run);
        let (_, _, usage) = facts.exits[0];
        assert!((50_000_000..20_000_000_000).contains(&usage.user_ns), "{usage:?}");
        assert!(usage.system_ns < usage.user_ns, "{usage:?}");
        // At least that of whoever forked it, as wait4(2) says too: the kernel keeps it across an exec.
        assert!((500..4_000_000).contains(&usage.max_rss_kib), "{usage:?}");
        assert!((20..100_000).contains(&usage.minor_faults), "{usage:?}");
    });
}

/// Uses 300 ms of a CPU, however long that takes.
fn burn() {
    let used = || {
        let mut time = [0i64; 2];
        assert_eq!(call!(libc::SYS_clock_gettime, libc::CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr()), 0);
        time[0] * 1000 + time[1] / 1_000_000
    };
    while used() < 300 {
        std::hint::black_box((0..100_000).sum::<u64>());
    }
}

/// A child that does this. Notes what the kernel says that the child used.
#[allow(unsafe_code, reason = "wait4(2) tells of one child, and the leader has to be known")]
fn used_by(child: impl FnOnce()) {
    // SAFETY: the harness's other thread only waits, so that nobody's lock is held in the child.
    let id = unsafe { libc::fork() };
    if id == 0 {
        child();
        call!(libc::SYS_exit_group, 1);
    }
    // SAFETY: all zero is a value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    assert_eq!(call!(libc::SYS_wait4, id, 0, 0, &raw mut usage), i64::from(id));
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    fs::write("used", (micros(usage.ru_utime) + micros(usage.ru_stime)).to_string()).unwrap();
}

/// The leader burns and ends before its thread does.
fn burner_threads() {
    used_by(|| {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            end.recv().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(100));
            call!(libc::SYS_exit_group, 0);
        });
        burn();
        ended.send(()).unwrap();
        call!(libc::SYS_exit, 0);
    });
}

/// Threads burn until all of them end at once.
fn burner_workers() {
    used_by(|| {
        for _ in 0..4 {
            std::thread::spawn(|| {
                burn();
                loop {
                    std::hint::black_box((0..100_000).sum::<u64>());
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(1500));
        call!(libc::SYS_exit_group, 0);
    });
}

#[test]
fn what_threads_used_is_counted_whoever_ends_first() {
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    for name in ["burner_workers", "burner_threads"] {
        let run = run_workload(&probe, name, &root);
        let facts = closed(&run);
        let usage = facts.exits.iter().find(|exit| exit.0.tgid != run.pid).unwrap().2;
        let used: u64 = fs::read_to_string(root.join("used")).unwrap().parse().unwrap();
        let told = (usage.user_ns + usage.system_ns) / 1000;
        // The kernel's own sums are less what the hypervisor took, as samples; wait4(2) scales them.
        assert!(told * 4 >= used && told <= used * 2, "{name}: {told} us of {used} us");
    }
}

fn short_threads() {
    for _ in 0..100 {
        std::thread::spawn(|| {
            for _ in 0..7 {
                call!(libc::SYS_getppid);
            }
        })
        .join()
        .unwrap();
    }
    // More than a counter of the task holds.
    std::thread::spawn(|| {
        for _ in 0..200_000 {
            call!(libc::SYS_getsid, 0);
        }
    })
    .join()
    .unwrap();
    for _ in 0..65_536 {
        call!(libc::SYS_getpgid, 0);
    }
}

#[test]
fn every_call_of_short_lived_threads_is_in_the_histogram() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let run = run_workload(probe, "short_threads", &root);
        closed(&run);
        assert_eq!(run.syscall("getppid"), 700);
        assert_eq!(run.syscall("getsid"), 200_000);
        assert_eq!(run.syscall("getpgid"), 65_536);
        assert!(run.syscall("exit") >= 101, "the harness has threads of its own");
    });
}

#[test]
fn the_histogram_of_many_threads_is_that_of_strace() {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let Some(probe) = support::probe() else { return };
    let (_dir, root) = place();
    // Threads of a real program that live for a moment.
    let script = "head -c 4000000 /dev/urandom > data; xz -T4 -0 --block-size=200000 -k data; sort --parallel=4 -S 1M data > sorted";
    let table = root.join("table");
    let strace = std::process::Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .arg(&table)
        .args(["/bin/sh", "-c", script])
        .current_dir(&root)
        .env("PWD", &root)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    if !strace.success() {
        eprintln!("skipped: xz or sort failed: {strace}");
        return;
    }
    for name in ["data", "data.xz", "sorted"] {
        fs::remove_file(root.join(name)).unwrap();
    }
    let run = run_shell(&probe, script, &root);
    closed(&run);
    let table = fs::read_to_string(table).unwrap();
    let calls = |name: &str| -> u64 {
        table
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let count = words.next()?.parse::<u64>().ok()?;
                (words.next()? == name).then_some(count)
            })
            .sum()
    };
    for name in ["clone3", "execve", "openat", "set_robust_list", "rseq", "vfork"] {
        assert_eq!(run.syscall(name), calls(name), "{name}\n{table}");
    }
}
