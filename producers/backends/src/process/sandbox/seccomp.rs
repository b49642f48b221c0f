//! The system calls that a sandboxed command may make: what the container engines let a container without capabilities
//! make by default, on 64-bit systems.
//!
//! The list is that of moby's default profile (github.com/moby/profiles, `seccomp/default.json` of 2026-06-30,
//! Copyright The Moby Authors, Apache-2.0), reduced to what holds without capabilities; docs/sandbox.md has every
//! deviation with its reason.
//!
//! Two programs, because one has one refusal: the first answers `clone3` with ENOSYS, upon which C libraries take
//! `clone`, whose flags can be looked at; the second refuses with EPERM whatever is not on the list. Calls of another
//! architecture (32-bit on x86-64) end the process.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::OnceLock;

use glasshouse_schema::sandbox::NetworkAccess;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use syscalls::Sysno;

/// Allowed whatever their arguments. Names that an architecture lacks are left out there.
const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown \
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup \
    dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate \
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock \
    fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv \
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid \
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid \
    getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
    io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr listxattrat llistxattr \
    lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore \
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall \
    munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe \
    pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease \
    process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink \
    readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat \
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid \
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt \
    setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair \
    splice stat statfs statmount statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs sysinfo \
    tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create \
    timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat \
    utimes vfork vmsplice wait4 waitid write writev";

/// CLONE_NEWNS and the other CLONE_NEW* but CLONE_NEWTIME, which clone(2) takes for a part of its signal.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// personality(2): PER_LINUX, PER_LINUX32, UNAME26 with either, and the question for what is set.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// SOCK_TYPE_MASK of linux/net.h: the rest are flags.
const SOCKET_TYPE: u64 = 0xf;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// The programs in the order in which they are to be loaded, or why there are none. Made once.
pub(super) fn programs(network: NetworkAccess) -> Result<&'static [BpfProgram; 2], String> {
    static PROGRAMS: [OnceLock<Result<[BpfProgram; 2], String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let is_listed = network == NetworkAccess::AllowList;
    let made = PROGRAMS[usize::from(is_listed)]
        .get_or_init(|| compile(is_listed).map_err(|error| error.to_string()));
    made.as_ref().map_err(Clone::clone)
}

fn compile(is_listed: bool) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let program = |rules, mismatch, matched| -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(rules, mismatch, matched, arch)?.try_into()
    };
    let clone3 = BTreeMap::from([(i64::from(Sysno::clone3.id()), Vec::new())]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    Ok([
        program(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        program(allowed(is_listed)?, refused, SeccompAction::Allow)?,
    ])
}

fn allowed(is_listed: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let when = |op, value| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value)?])
    };
    let numbers = ALLOWED.split_whitespace().filter_map(|name| Sysno::from_str(name).ok());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        numbers.map(|number| (i64::from(number.id()), Vec::new())).collect();
    // The first program has answered it.
    rules.insert(Sysno::clone3.id().into(), Vec::new());
    rules.insert(Sysno::clone.id().into(), vec![when(SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?]);
    let families = [(SeccompCmpOp::Lt, AF_ALG), (SeccompCmpOp::Eq, AF_ALG + 1), (SeccompCmpOp::Gt, AF_VSOCK)];
    let families = families.into_iter().map(|(op, family)| when(op, family)).collect::<Result<_, _>>()?;
    rules.insert(Sysno::socket.id().into(), if is_listed { judged_sockets()? } else { families });
    let personalities = PERSONALITIES.into_iter().map(|value| when(SeccompCmpOp::Eq, value));
    rules.insert(Sysno::personality.id().into(), personalities.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// Sockets of which the programs of an allow-list see all: TCP and UDP, beside those that stay on this machine.
fn judged_sockets() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let is = |argument, op, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value);
    let family = |family: libc::c_int| is(0, SeccompCmpOp::Eq, family as u64);
    let mut rules = vec![
        SeccompRule::new(vec![family(libc::AF_UNIX)?])?,
        // What libraries ask for addresses and routes; nothing can be changed by it without capabilities.
        SeccompRule::new(vec![
            family(libc::AF_NETLINK)?,
            is(2, SeccompCmpOp::Eq, libc::NETLINK_ROUTE as u64)?,
        ])?,
    ];
    for internet in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in
            [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)]
        {
            for protocol in [0, protocol] {
                rules.push(SeccompRule::new(vec![
                    family(internet)?,
                    is(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), kind as u64)?,
                    is(2, SeccompCmpOp::Eq, protocol as u64)?,
                ])?);
            }
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_what_programs_need_and_nothing_that_gets_out() {
        let names: Vec<&str> = ALLOWED.split_whitespace().collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "sorted, each once");
        let rules = allowed(false).unwrap();
        for allowed in [Sysno::read, Sysno::execve, Sysno::exit_group, Sysno::ptrace, Sysno::rseq] {
            assert_eq!(rules.get(&i64::from(allowed.id())), Some(&Vec::new()), "{allowed}");
        }
        for refused in [
            Sysno::io_uring_setup,
            Sysno::io_uring_enter,
            Sysno::io_uring_register,
            Sysno::mount,
            Sysno::bpf,
            Sysno::unshare,
            Sysno::setns,
            Sysno::open_by_handle_at,
            Sysno::kexec_load,
            Sysno::init_module,
            Sysno::pivot_root,
            Sysno::chroot,
            Sysno::keyctl,
            Sysno::userfaultfd,
            Sysno::perf_event_open,
        ] {
            assert!(!rules.contains_key(&i64::from(refused.id())), "{refused}");
        }
    }

    #[test]
    fn both_programs_compile() {
        for network in [NetworkAccess::None, NetworkAccess::AllowList] {
            let programs = programs(network).unwrap();
            assert!(programs.iter().all(|program| !program.is_empty() && program.len() <= 4096));
        }
    }
}
