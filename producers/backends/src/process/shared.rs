//! A child that shares our memory until its exec: what vfork(2) and posix_spawn(3) do, with a barrier in between and, by clone3,
//! born into its cgroup.
//!
//! To copy an agent's page tables, and after that every page that is written while the child is held, costs more than everything
//! else of a start; each first write also interrupts all processors. Shared, there is nothing to copy.
//!
//! Invariants:
//! - The kernel stops the thread that makes the child until the child's exec or end (CLONE_VFORK). So that thread is one of its
//!   own, which owns all that the child looks at, and lends it the lower part of its stack and its errno.
//! - While it lasts the kernel's OOM killer does not take the child, and us with it (`in_vfork`, include/linux/sched/mm.h).
//! - Who shares the child's user id must not look into our memory: a change of it makes the memory unreadable to others
//!   (commit_creds, kernel/cred.c), unless `fs.suid_dumpable` is 1. Then nothing is shared.

#![allow(unsafe_code, reason = "no safe API lets a child share memory")]

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::spawn::{self, Made, Pipes, Placement, Plan, Raw};
use crate::fd::owned;

const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;

/// What the child has of the stack of [`THREAD_STACK`]; a page of it would do.
const CHILD_STACK: usize = 64 << 10;
const THREAD_STACK: usize = 192 << 10;

/// What the thread or its child says: a process id and the descriptor of it, or the negative errno and nothing.
type Message = [i32; 2];
const MESSAGE_BYTES: usize = size_of::<Message>();

/// Makes the child; `None` if that has to be done by a copy, because the kernel, the processor or a setting is not for it.
pub(super) fn spawn(plan: &Arc<Plan>, placement: Placement, pipes: Pipes) -> Option<io::Result<Made>> {
    if !cfg!(target_arch = "x86_64") || is_readable_after_all() {
        return None;
    }
    match attempt(Arc::clone(plan), placement, pipes) {
        Err(error) if spawn::is_refused(&error) => None,
        made => Some(made),
    }
}

/// Read each time: it can be changed, and costs a few microseconds.
fn is_readable_after_all() -> bool {
    std::fs::read("/proc/sys/fs/suid_dumpable").map_or(true, |set| set.starts_with(b"1"))
}

fn attempt(plan: Arc<Plan>, placement: Placement, pipes: Pipes) -> io::Result<Made> {
    let (mut said, says) = io::pipe()?;
    let life = move || {
        let error = outlast_child(&plan, placement, pipes, says.as_raw_fd());
        if let Some(error) = error {
            let message: Message = [-error.raw_os_error().unwrap_or(libc::EIO), -1];
            // Whoever asked waits for it.
            let _ = nix::unistd::write(&says, message.map(i32::to_ne_bytes).as_flattened());
        }
    };
    std::thread::Builder::new().name("glasshouse-start".into()).stack_size(THREAD_STACK).spawn(life)?;
    let mut bytes = [0; MESSAGE_BYTES];
    said.read_exact(&mut bytes)?;
    let [pid, pidfd] =
        [0, 4].map(|at| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(-pid));
    }
    Ok(Made { pid, pidfd: owned(pidfd)?, is_in_cgroup: placement.cgroup.is_some() })
}

/// What the child begins with, on the stack of the thread that waits for it.
struct Birth<'a> {
    raw: Raw<'a>,
    /// Written by the kernel before the child runs.
    pidfd: RawFd,
    says: RawFd,
}

/// Returns when the child has another memory than ours, or why there is none.
fn outlast_child(plan: &Plan, placement: Placement, pipes: Pipes, says: RawFd) -> Option<io::Error> {
    // No signal may run one of our handlers in the child.
    if let Err(error) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
        return Some(error.into());
    }
    // Aligned as a call wants it (System V ABI, AMD64 supplement, 3.2.2).
    let mut stack = MaybeUninit::<[u128; CHILD_STACK / 16]>::uninit();
    let mut birth = Birth { raw: Raw::new(plan, placement, pipes, None), pidfd: -1, says };
    let mut args = spawn::clone_args(&raw mut birth.pidfd, placement.cgroup);
    args.flags |= CLONE_VM | CLONE_VFORK;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = CHILD_STACK as u64;
    // SAFETY: the child gets a stack that is used by nothing else while this thread is stopped; it looks only at `birth`, at
    // what that points to, which `plan` holds, and at this thread's errno; and it never returns.
    let result = unsafe { clone_sharing(&raw const args, &raw const birth) };
    (result < 0).then(|| io::Error::from_raw_os_error(-i32::try_from(result).unwrap_or(-libc::EIO)))
}

/// clone3(2) for a child that begins with [`begin`] on a stack of its own. Gives its process id or the negative errno.
///
/// # Safety
/// `args` names such a stack and CLONE_VFORK, and `birth` is whole until this returns.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_sharing(args: *const libc::clone_args, birth: *const Birth<'_>) -> i64 {
    let result: i64;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11. The child gets here with them too, but with another stack,
    // on which nothing is: so it must not return, and goes on into a function that does not.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") birth,
            in("r13") begin as extern "C" fn(*const Birth<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone_sharing(_: *const libc::clone_args, _: *const Birth<'_>) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// The child's first instructions: says that it is there, which only it can, and lives on as every other child.
extern "C" fn begin(birth: *const Birth<'_>) -> ! {
    // SAFETY: the thread that made us holds it and is stopped; plain system calls.
    unsafe {
        let birth = &*birth;
        let pid = libc::syscall(libc::SYS_getpid) as i32;
        let message: Message = [pid, ptr::read_volatile(&raw const birth.pidfd)];
        libc::write(birth.says, message.as_ptr().cast(), MESSAGE_BYTES);
        spawn::child(&birth.raw, true)
    }
}
