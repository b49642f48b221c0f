//! Makes the command's process, held behind the start barrier.
//!
//! ```text
//! parent                                 child
//!   clone3 into the cgroup ────────────► own streams, default signals, nobody else's descriptors
//!   write(barrier) ────────────────────► the sandbox's steps, if there are any
//!   …attach profiling…                   read(barrier)
//!   write(barrier) ────────────────────► chdir, execve ─► the command
//!   read(report) ◄── end of file: it runs ┘   └─ failed: (stage, errno) in the report, _exit
//! ```
//! - The parent has many threads, so between clone and exec the child calls async-signal-safe functions only and
//!   allocates nothing: all it needs is made before.
//! - The child closes every close-on-exec descriptor at once. Otherwise a child that is held would keep the pipes of
//!   other executions open, and they would not see their ends.
//! - In a sandbox it is born into the pid namespace of an init: a thread of its own starts the init, lets its children be
//!   members of that namespace, and makes the process; so the process is our child all the same.
//! - Without a sandbox the child shares our memory until its exec (`shared.rs`): copying it, and every page that is written while
//!   the child is held, took longer than all the rest.
//! - End of file at the barrier (the parent is gone or gave up) ends the child without an instruction of the command.

#![allow(unsafe_code, reason = "fork and exec by hand: no safe API holds a child before its exec")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use glasshouse_execution::spec::ExecutionSpec;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::sandbox::{self, Descriptors, Init, MAX_SLOTS, Sandbox, Step};
use super::shared;
use crate::fd::owned;

/// Flags of clone3 (linux/sched.h); libc's constants do not hold the upper half.
pub(super) const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Stage, errno and step.
const REPORT_BYTES: usize = 12;

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Streams,
    Terminal,
    Sandbox,
    Workdir,
    Exec,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Streams, Self::Terminal, Self::Sandbox, Self::Workdir, Self::Exec];
}

/// Where the child failed and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) errno: i32,
    /// Which of the sandbox's steps.
    pub(super) step: usize,
}

/// All that the child needs.
pub(super) struct Plan {
    path: CString,
    argv: Vec<CString>,
    /// For a script without an interpreter line, which execvp(3) gives to the shell.
    shell_argv: Vec<CString>,
    env: Vec<CString>,
    workdir: Option<CString>,
    sandbox: Arc<Sandbox>,
    /// What we have open is not the command's.
    closes_all: bool,
}

/// How the child is placed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Placement {
    /// Its standard streams; `None` leaves the parent's.
    pub(super) streams: [Option<RawFd>; 3],
    /// It leads a session of its own whose terminal is its standard input.
    pub(super) own_terminal: bool,
    /// It leads a session of its own, without a terminal.
    pub(super) own_session: bool,
    /// It leads a process group of its own.
    pub(super) own_group: bool,
    /// It starts in this cgroup.
    pub(super) cgroup: Option<RawFd>,
}

/// A process that waits at the barrier.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// A byte lets it go, closing it ends it.
    pub(super) barrier: OwnedFd,
    /// Ends at the exec, or says what failed.
    pub(super) report: OwnedFd,
    /// The kernel put it into the cgroup at its birth.
    pub(super) is_in_cgroup: bool,
    /// It waits for [`Held::set_up`] first.
    has_steps: bool,
    /// The first process of its pid namespace, if that is not ours.
    pub(super) init: Option<Init>,
}

impl Held {
    /// Ends it before its first instruction and takes its zombie away.
    pub(super) fn give_up(self) {
        let Self { pid, barrier, init, .. } = self;
        drop(barrier);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        if let Some(init) = init {
            init.end();
        }
    }

    /// Lets it enter its sandbox: it is where it has to be.
    pub(super) fn set_up(&self) -> io::Result<()> {
        if !self.has_steps {
            // The byte would be taken for its release.
            return Ok(());
        }
        match nix::unistd::write(&self.barrier, b"s") {
            // It was killed: waiting says by what.
            Ok(_) | Err(nix::errno::Errno::EPIPE) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Plan {
    /// Fails for a NUL byte only, which the spec's validation finds before.
    pub(super) fn new(spec: &ExecutionSpec, path: &Path, sandbox: Arc<Sandbox>) -> io::Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        let argv = spec.argv.iter().map(|argument| text(argument)).collect::<io::Result<Vec<_>>>()?;
        let mut shell_argv = vec![c"/bin/sh".to_owned(), text(path.as_os_str())?];
        shell_argv.extend(argv.iter().skip(1).cloned());
        let pair = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            CString::new([name.into_vec(), value.into_vec()].join(&b'=')).map_err(io::Error::from)
        };
        let env = match &spec.env {
            Some(env) => env.iter().cloned().map(pair).collect::<io::Result<Vec<_>>>()?,
            None => std::env::vars_os().map(pair).collect::<io::Result<Vec<_>>>()?,
        };
        let workdir = sandbox.workdir().or(spec.workdir.as_deref());
        let workdir = workdir.map(|dir| text(dir.as_os_str())).transpose()?;
        let closes_all = sandbox.has_namespaces() || spec.run_as.is_some();
        Ok(Self { path: text(path.as_os_str())?, argv, shell_argv, env, workdir, sandbox, closes_all })
    }
}

/// What the child works with: pointers into the [`Plan`], which outlives the call.
pub(super) struct Raw<'a> {
    path: *const libc::c_char,
    argv: Vec<*const libc::c_char>,
    shell_argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    workdir: *const libc::c_char,
    streams: [RawFd; 3],
    own_terminal: bool,
    own_session: bool,
    own_group: bool,
    steps: &'a [Step],
    descriptors: Descriptors,
    /// What others left open for programs in general is not for one in a sandbox, nor for another user's.
    closes_all: bool,
    barrier: RawFd,
    report: RawFd,
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

impl<'a> Raw<'a> {
    /// What is pointed at, and the descriptors, have to be there until the child's exec or end, or until its copy is made.
    pub(super) fn new(plan: &'a Plan, placement: Placement, pipes: Pipes, init: Option<&Init>) -> Self {
        Self {
            path: plan.path.as_ptr(),
            argv: pointers(&plan.argv),
            shell_argv: pointers(&plan.shell_argv),
            env: pointers(&plan.env),
            workdir: plan.workdir.as_ref().map_or(ptr::null(), |dir| dir.as_ptr()),
            streams: placement.streams.map(|stream| stream.unwrap_or(-1)),
            own_terminal: placement.own_terminal,
            own_session: placement.own_session,
            own_group: placement.own_group,
            steps: plan.sandbox.steps(),
            descriptors: Descriptors { init: init.map_or(-1, Init::pidfd), ruleset: plan.sandbox.ruleset() },
            closes_all: plan.closes_all,
            barrier: pipes.barrier,
            report: pipes.report,
        }
    }
}

/// The child's ends of its pipes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pipes {
    barrier: RawFd,
    report: RawFd,
}

/// Makes the process. It holds at the barrier when this returns, or soon after.
pub(super) fn spawn(plan: &Arc<Plan>, placement: Placement) -> io::Result<Held> {
    if !plan.sandbox.has_namespaces() {
        return spawn_here(plan, placement, None);
    }
    // What is changed of the thread ends with it.
    let in_namespaces = || spawn_here(plan, placement, Some(plan.sandbox.enter_init()?));
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("glasshouse-start".into()).spawn_scoped(scope, in_namespaces)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it failed")))
    })
}

fn spawn_here(plan: &Arc<Plan>, placement: Placement, init: Option<Init>) -> io::Result<Held> {
    let (barrier_read, barrier) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (report, report_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let pipes = Pipes { barrier: barrier_read.as_raw_fd(), report: report_write.as_raw_fd() };
    let shared = match init {
        None => shared::spawn(plan, placement, pipes),
        // It would start further processes in our memory.
        Some(_) => None,
    };
    let made = match shared {
        Some(made) => made?,
        None => spawn_copied(&Raw::new(plan, placement, pipes, init.as_ref()), placement.cgroup)?,
    };
    let Made { pid, pidfd, is_in_cgroup } = made;
    Ok(Held { pid, pidfd, barrier, report, is_in_cgroup, has_steps: !plan.sandbox.steps().is_empty(), init })
}

/// What of a child only its maker knows.
pub(super) struct Made {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) is_in_cgroup: bool,
}

fn spawn_copied(raw: &Raw<'_>, cgroup: Option<RawFd>) -> io::Result<Made> {
    // No signal may run one of our handlers in the child.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let cloned = clone_child(raw, cgroup);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    cloned
}

/// What every child is made with; the kernel writes its pidfd.
pub(super) fn clone_args(pidfd: *mut RawFd, cgroup: Option<RawFd>) -> libc::clone_args {
    // SAFETY: clone_args is plain data, for which all zeroes is valid and means "nothing asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
    args.pidfd = pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup as u64;
    }
    args
}

/// Whether clone3 is not to be had: a kernel before 5.7, or a seccomp filter (older container runtimes) that does not know it.
pub(super) fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL))
}

fn clone_child(raw: &Raw<'_>, cgroup: Option<RawFd>) -> io::Result<Made> {
    let mut pidfd: RawFd = -1;
    let args = clone_args(&raw mut pidfd, cgroup);
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything, `args` is valid for its size,
    // and the child goes on into `child` and never returns from it.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => child(raw, true),
        1.. => Ok(Made { pid: pid as i32, pidfd: owned(pidfd)?, is_in_cgroup: cgroup.is_some() }),
        _ => match io::Error::last_os_error() {
            error if is_refused(&error) => fork_child(raw),
            error => Err(error),
        },
    }
}

fn fork_child(raw: &Raw<'_>) -> io::Result<Made> {
    // SAFETY: the child goes on into `child`, which calls async-signal-safe functions only and never returns.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => child(raw, false),
        // SAFETY: pidfd_open takes two integers; the process is our child and not waited for, so the id is its.
        1.. => match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
            pidfd @ 0.. => Ok(Made { pid, pidfd: owned(pidfd as RawFd)?, is_in_cgroup: false }),
            _ => {
                let error = io::Error::last_os_error();
                // SAFETY: plain system calls on our own child; the barrier closes with the caller's error.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, ptr::null_mut(), 0);
                }
                Err(error)
            }
        },
        _ => Err(io::Error::last_os_error()),
    }
}

/// The child's life up to the exec. Allocates nothing and calls async-signal-safe functions only. `is_clear` says that it was
/// made without our signal handlers (CLONE_CLEAR_SIGHAND).
pub(super) fn child(raw: &Raw<'_>, is_clear: bool) -> ! {
    // SAFETY: every pointer in `raw` points into memory that nothing frees before the exec, a copy or not; all calls are
    // plain system calls with arguments of their kind.
    unsafe {
        default_signals(if is_clear { libc::SIGPIPE..=libc::SIGPIPE } else { 1..=64 });
        if raw.own_group {
            libc::setpgid(0, 0);
        }
        if (raw.own_terminal || raw.own_session) && libc::setsid() < 0 {
            fail(raw, Stage::Terminal);
        }
        for (to, from) in raw.streams.iter().enumerate() {
            if *from >= 0 && libc::dup2(*from, to as RawFd) < 0 {
                fail(raw, Stage::Streams);
            }
        }
        if raw.own_terminal && libc::ioctl(0, libc::TIOCSCTTY as _, 0) < 0 {
            fail(raw, Stage::Terminal);
        }
        let Descriptors { init, ruleset } = raw.descriptors;
        close_private([raw.barrier, raw.report, init, ruleset], raw.closes_all);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());

        if !raw.steps.is_empty() {
            await_byte(raw.barrier);
            let mut slots = [-1; MAX_SLOTS];
            if let Err(step) = sandbox::carry_out(raw.steps, &mut slots, raw.descriptors) {
                fail_at(raw, Stage::Sandbox, step);
            }
        }
        await_byte(raw.barrier);
        if !raw.workdir.is_null() && libc::chdir(raw.workdir) < 0 {
            fail(raw, Stage::Workdir);
        }
        libc::execve(raw.path, raw.argv.as_ptr(), raw.env.as_ptr());
        if *libc::__errno_location() == libc::ENOEXEC {
            libc::execve(c"/bin/sh".as_ptr(), raw.shell_argv.as_ptr(), raw.env.as_ptr());
        }
        fail(raw, Stage::Exec)
    }
}

/// Waits for a byte at the barrier; at its end there is nothing to wait for.
///
/// # Safety
/// To be called in the child only.
unsafe fn await_byte(barrier: RawFd) {
    // SAFETY: reads one byte to this stack.
    unsafe {
        let mut byte = 0_u8;
        loop {
            match libc::read(barrier, (&raw mut byte).cast(), 1) {
                1 => break,
                -1 if *libc::__errno_location() == libc::EINTR => {}
                _ => libc::_exit(125),
            }
        }
    }
}

/// What is ignored stays ignored (nohup), but for SIGPIPE, which the Rust runtime ignores for itself only.
///
/// # Safety
/// To be called in the child only.
unsafe fn default_signals(which: std::ops::RangeInclusive<libc::c_int>) {
    // SAFETY: sigaction with valid pointers; numbers that cannot be changed answer with an error.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        for signal in which {
            if libc::sigaction(signal, ptr::null(), &mut action) < 0 {
                continue;
            }
            let is_handled = action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN;
            if is_handled || signal == libc::SIGPIPE {
                action.sa_sigaction = libc::SIG_DFL;
                action.sa_flags = 0;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    }
}

/// Closes every close-on-exec descriptor but those given, and every other one but the standard streams if `all`.
///
/// # Safety
/// To be called in the child only: its descriptors are used by nothing else.
unsafe fn close_private(mut keep: [RawFd; 4], all: bool) {
    // SAFETY: plain system calls; the entries that the kernel wrote are read within the bytes it says it wrote.
    unsafe {
        if all {
            // Sorts in place. What is between two of them goes in one call (Linux 5.9).
            keep.sort_unstable();
            let mut from = 3;
            let mut is_closed = true;
            for fd in keep.into_iter().filter(|fd| *fd >= 3).chain([RawFd::MAX]) {
                let last = if fd == RawFd::MAX { libc::c_uint::MAX } else { (fd - 1) as libc::c_uint };
                if from <= last {
                    is_closed &= libc::syscall(libc::SYS_close_range, from, last, 0) == 0;
                }
                from = (fd as libc::c_uint).saturating_add(1);
            }
            if is_closed {
                return;
            }
        }
        let close_if_private = |fd: RawFd| {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && (all || flags & libc::FD_CLOEXEC != 0) && !keep.contains(&fd) {
                libc::close(fd);
            }
        };
        let dir = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        if dir < 0 {
            (3..1024).for_each(close_if_private);
            return;
        }
        // struct linux_dirent64 of getdents64(2): the length at 16, the name from 19.
        const LENGTH_AT: usize = 16;
        const NAME_AT: usize = 19;
        let mut buffer = [0_u8; 4096];
        loop {
            let read = libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), buffer.len());
            if read <= 0 {
                break;
            }
            let mut at = 0;
            while at + NAME_AT < read as usize {
                let length =
                    usize::from(u16::from_ne_bytes([buffer[at + LENGTH_AT], buffer[at + LENGTH_AT + 1]]));
                let mut fd: RawFd = 0;
                let mut is_number = false;
                let mut name = at + NAME_AT;
                while name < buffer.len() && buffer[name].is_ascii_digit() {
                    fd = fd.wrapping_mul(10).wrapping_add(RawFd::from(buffer[name] - b'0'));
                    is_number = true;
                    name += 1;
                }
                if is_number && fd > 2 && fd != dir {
                    close_if_private(fd);
                }
                if length == 0 {
                    break;
                }
                at += length;
            }
        }
        libc::close(dir);
    }
}

/// Reports errno and ends.
///
/// # Safety
/// To be called in the child only, right after the call that failed.
unsafe fn fail(raw: &Raw<'_>, stage: Stage) -> ! {
    // SAFETY: as promised by the caller.
    unsafe { fail_at(raw, stage, 0) }
}

/// The same, at a step.
///
/// # Safety
/// As [`fail`].
unsafe fn fail_at(raw: &Raw<'_>, stage: Stage, step: usize) -> ! {
    // SAFETY: writes a few bytes of this stack to a pipe that is empty, and ends.
    unsafe {
        let errno = *libc::__errno_location();
        let mut report = [0_u8; REPORT_BYTES];
        report[..4].copy_from_slice(&(stage as i32).to_ne_bytes());
        report[4..8].copy_from_slice(&errno.to_ne_bytes());
        report[8..].copy_from_slice(&(step as i32).to_ne_bytes());
        libc::write(raw.report, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Reads what the child reported: nothing, or where it failed and why.
pub(super) fn read_report(bytes: &[u8]) -> Option<Failure> {
    let report = bytes.first_chunk::<REPORT_BYTES>()?;
    let number = |at: usize| Some(i32::from_ne_bytes(*report.get(at..)?.first_chunk()?));
    let stage = *Stage::ALL.get(usize::try_from(number(0)?).ok()?)?;
    Some(Failure { stage, errno: number(4)?, step: usize::try_from(number(8)?).ok()? })
}
