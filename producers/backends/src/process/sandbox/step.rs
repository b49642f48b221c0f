//! What the held process does to itself: a list of steps that is made before the fork and carried out after it.
//!
//! Nothing here allocates or takes a lock: all that a step needs lies in the step.

#![allow(unsafe_code, reason = "namespaces, mounts and capabilities of a forked child: plain system calls")]

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::RawFd;
use std::ptr;

use seccompiler::sock_filter;

/// linux/securebits.h: NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock.
const SECURE_BITS: libc::c_ulong = 0b1100_1111;
/// _LINUX_CAPABILITY_VERSION_3 of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// The last capability that a kernel can have: their sets are 64 bits wide.
const MOST_CAPABILITIES: libc::c_ulong = 63;
/// Of linux/landlock.h.
const LANDLOCK_RULE_PATH_BENEATH: libc::c_int = 1;

/// Bits of mount_setattr(2).
pub(super) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(super) const NO_SETUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// One step. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::process) enum Step {
    /// Sets a resource limit.
    Limit { resource: libc::c_uint, soft: u64, hard: u64, name: &'static str },
    /// Has these supplementary groups and no others.
    Groups(Vec<libc::gid_t>),
    /// Sets the file mode creation mask.
    Umask(libc::mode_t),
    /// Looks files up as this user, until it is the first one again.
    FilesOf(Ids),
    /// Enters the init's user namespace.
    JoinUserNamespace,
    /// Enters namespaces of its own.
    Unshare(libc::c_int),
    /// Brings up the loopback interface of a new network namespace.
    Loopback,
    /// Nothing that is mounted on the node later appears here, nor the other way round.
    Detach,
    /// Takes a copy of the mounts at a path out of the tree, to be put back when the tree has changed.
    Take { path: CString, slot: usize, attributes: u64 },
    /// Changes every mount there is.
    SetAll(u64),
    /// Mounts a new file system.
    Mount { kind: &'static CStr, at: CString, flags: libc::c_ulong, data: CString },
    /// Makes a directory, if there is none.
    MakeDir(CString, libc::mode_t),
    /// Makes an empty file, if there is none.
    MakeFile(CString),
    /// Makes a symbolic link.
    Link { target: CString, at: CString },
    /// Puts what was taken where it belongs.
    Put { slot: usize, at: CString },
    /// Mounts one file over another.
    Cover { at: CString },
    /// Allows accesses (of linux/landlock.h) below a path that exists only here.
    Allow { path: CString, accesses: u64 },
    /// Gives up every capability, for good, and becomes a user on the way.
    DropCapabilities(Option<Ids>),
    /// Becomes a user.
    Become(Ids),
    /// No program gains privileges by being executed.
    NoNewPrivileges,
    /// Confines itself to what was allowed.
    Landlock,
    /// Loads a seccomp program.
    Seccomp(&'static [sock_filter]),
}

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::process) struct Ids {
    pub(in crate::process) uid: libc::uid_t,
    pub(in crate::process) gid: libc::gid_t,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |path: &CStr| path.to_string_lossy().into_owned();
        match self {
            Self::Limit { name, hard, .. } => write!(out, "setting {name} to {hard}"),
            Self::Groups(_) => out.write_str("setting supplementary groups"),
            Self::Umask(_) => out.write_str("setting the file mode creation mask"),
            Self::FilesOf(Ids { uid, .. }) => write!(out, "looking files up as user {uid}"),
            Self::JoinUserNamespace => out.write_str("entering a user namespace"),
            Self::Unshare(_) => out.write_str("entering namespaces"),
            Self::Loopback => out.write_str("bringing up the loopback interface"),
            Self::Detach => out.write_str("detaching mounts from the node's"),
            Self::Take { path, .. } => write!(out, "keeping {} for the sandbox", text(path)),
            Self::SetAll(_) => out.write_str("making the system read-only"),
            Self::Mount { kind, at, .. } => write!(out, "mounting {} at {}", text(kind), text(at)),
            Self::MakeDir(at, _) | Self::MakeFile(at) => write!(out, "making {}", text(at)),
            Self::Link { at, .. } => write!(out, "making the link {}", text(at)),
            Self::Put { at, .. } => write!(out, "showing {} in the sandbox", text(at)),
            Self::Cover { at } => write!(out, "hiding {}", text(at)),
            Self::Allow { path, .. } => write!(out, "allowing {} (Landlock)", text(path)),
            Self::DropCapabilities(_) => out.write_str("dropping capabilities"),
            Self::Become(Ids { uid, .. }) => write!(out, "becoming user {uid}"),
            Self::NoNewPrivileges => out.write_str("setting no_new_privs"),
            Self::Landlock => out.write_str("entering the Landlock domain"),
            Self::Seccomp(_) => out.write_str("loading the seccomp filter"),
        }
    }
}

/// Descriptors that steps need.
#[derive(Debug, Clone, Copy)]
pub(in crate::process) struct Descriptors {
    /// Of the init.
    pub(in crate::process) init: RawFd,
    /// Of the Landlock ruleset.
    pub(in crate::process) ruleset: RawFd,
}

/// Carries out all steps. `slots` has room for every slot that they name. `Err` is the number of the step that failed;
/// errno says why.
///
/// # Safety
/// To be called in a forked child only, whose single thread this is.
pub(in crate::process) unsafe fn carry_out(
    steps: &[Step],
    slots: &mut [RawFd],
    descriptors: Descriptors,
) -> Result<(), usize> {
    for (number, step) in steps.iter().enumerate() {
        // SAFETY: as promised by the caller.
        if unsafe { one(step, slots, descriptors) } < 0 {
            return Err(number);
        }
    }
    Ok(())
}

/// Negative when it failed.
///
/// # Safety
/// As [`carry_out`].
unsafe fn one(step: &Step, slots: &mut [RawFd], descriptors: Descriptors) -> libc::c_long {
    // SAFETY: plain system calls; every pointer is to a string with its NUL or to a value on this stack, for its size.
    unsafe {
        match step {
            Step::Limit { resource, soft, hard, .. } => {
                let limit = libc::rlimit64 { rlim_cur: *soft, rlim_max: *hard };
                libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, ptr::null_mut::<()>())
            }
            Step::Groups(groups) => libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            Step::Umask(mask) => {
                libc::umask(*mask);
                0
            }
            Step::FilesOf(Ids { uid, gid }) => {
                libc::syscall(libc::SYS_setfsgid, *gid);
                libc::syscall(libc::SYS_setfsuid, *uid);
                // It tells nobody that it failed; what is no user changes nothing and gives the one that is set.
                match libc::syscall(libc::SYS_setfsuid, libc::uid_t::MAX) == libc::c_long::from(*uid) {
                    true => 0,
                    false => {
                        *libc::__errno_location() = libc::EPERM;
                        -1
                    }
                }
            }
            Step::JoinUserNamespace => libc::syscall(libc::SYS_setns, descriptors.init, libc::CLONE_NEWUSER),
            Step::Unshare(flags) => libc::unshare(*flags).into(),
            Step::Loopback => loopback(),
            Step::Detach => libc::mount(
                ptr::null(),
                c"/".as_ptr(),
                ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                ptr::null(),
            )
            .into(),
            Step::Take { path, slot, attributes } => {
                let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
                let taken = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
                if taken < 0 || *attributes != 0 && set(taken as RawFd, c"", *attributes) < 0 {
                    return -1;
                }
                slots[*slot] = taken as RawFd;
                0
            }
            Step::SetAll(attributes) => set(libc::AT_FDCWD, c"/", *attributes),
            Step::Mount { kind, at, flags, data } => {
                libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), *flags, data.as_ptr().cast()).into()
            }
            Step::MakeDir(at, mode) => unless_there(libc::mkdir(at.as_ptr(), *mode)),
            Step::MakeFile(at) => unless_there(libc::mknod(at.as_ptr(), libc::S_IFREG | 0o644, 0)),
            Step::Link { target, at } => unless_there(libc::symlink(target.as_ptr(), at.as_ptr())),
            Step::Put { slot, at } => {
                let taken = slots[*slot];
                let put = libc::syscall(
                    libc::SYS_move_mount,
                    taken,
                    c"".as_ptr(),
                    libc::AT_FDCWD,
                    at.as_ptr(),
                    libc::MOVE_MOUNT_F_EMPTY_PATH,
                );
                if put >= 0 {
                    libc::close(taken);
                }
                put
            }
            Step::Cover { at } => {
                libc::mount(c"/dev/null".as_ptr(), at.as_ptr(), ptr::null(), libc::MS_BIND, ptr::null())
                    .into()
            }
            Step::Allow { path, accesses } => allow(descriptors.ruleset, path, *accesses),
            Step::DropCapabilities(user) => drop_capabilities(*user),
            Step::Become(user) => match become_user(*user) {
                // Those that files could have given back go too.
                0 => no_capabilities(),
                failed => failed,
            },
            Step::NoNewPrivileges => libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into(),
            Step::Landlock => libc::syscall(libc::SYS_landlock_restrict_self, descriptors.ruleset, 0),
            Step::Seccomp(program) => {
                #[repr(C)]
                struct Program {
                    len: libc::c_ushort,
                    filter: *const sock_filter,
                }
                let program = Program { len: program.len() as libc::c_ushort, filter: program.as_ptr() };
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
            }
        }
    }
}

/// # Safety
/// As [`carry_out`].
unsafe fn set(dir: RawFd, path: &CStr, attributes: u64) -> libc::c_long {
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_RECURSIVE | libc::AT_EMPTY_PATH;
    // SAFETY: the path has its NUL, the attributes are read for their size.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    }
}

fn unless_there(result: libc::c_int) -> libc::c_long {
    // SAFETY: errno of this thread.
    let is_there = result < 0 && unsafe { *libc::__errno_location() } == libc::EEXIST;
    if is_there { 0 } else { result.into() }
}

/// # Safety
/// As [`carry_out`].
unsafe fn loopback() -> libc::c_long {
    // SAFETY: the request is plain data, for which zeroes are valid; the name fits with its NUL.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return -1;
        }
        let set = libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request);
        libc::close(socket);
        set.into()
    }
}

/// # Safety
/// As [`carry_out`].
unsafe fn allow(ruleset: RawFd, path: &CStr, accesses: u64) -> libc::c_long {
    #[repr(C, packed)]
    struct PathBeneath {
        accesses: u64,
        parent: RawFd,
    }
    // SAFETY: the attribute has the kernel's layout (linux/landlock.h) and is read only.
    unsafe {
        let parent = libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        if parent < 0 {
            return -1;
        }
        let rule = PathBeneath { accesses, parent };
        let added = libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset,
            LANDLOCK_RULE_PATH_BENEATH,
            &raw const rule,
            0,
        );
        libc::close(parent);
        added
    }
}

/// # Safety
/// As [`carry_out`].
unsafe fn drop_capabilities(user: Option<Ids>) -> libc::c_long {
    // SAFETY: plain system calls.
    unsafe {
        for capability in 0..=MOST_CAPABILITIES {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                // The first that this kernel does not know is the end.
                if *libc::__errno_location() == libc::EINVAL {
                    break;
                }
                return -1;
            }
        }
        if libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) < 0 {
            return -1;
        }
        // With these bits a change of user takes no capability away, so it comes before the last of them goes.
        if let Some(user) = user
            && become_user(user) < 0
        {
            return -1;
        }
        no_capabilities()
    }
}

/// # Safety
/// As [`carry_out`].
unsafe fn no_capabilities() -> libc::c_long {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    // Effective, permitted and inheritable, in two halves.
    let none = [[0_u32; 3]; 2];
    // SAFETY: header and sets have the kernel's layout and are read only.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) }
}

/// # Safety
/// As [`carry_out`].
unsafe fn become_user(Ids { uid, gid }: Ids) -> libc::c_long {
    // SAFETY: plain system calls, of the kernel itself: the C library's would signal threads that are not here.
    unsafe {
        if libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
        {
            return -1;
        }
        // Until the exec it is a copy of us, which is not the user's to look into.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0).into()
    }
}
