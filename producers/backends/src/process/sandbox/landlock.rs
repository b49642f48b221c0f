//! The Landlock domain of a strict sandbox.

#![allow(unsafe_code, reason = "no safe API asks the kernel for its ABI")]

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

/// What may be done below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Read and execute.
    Read,
    /// Read and write.
    Write,
    /// All of it.
    WriteAndExecute,
}

/// A ruleset that is being put together.
pub(super) struct Domain {
    abi: ABI,
    ruleset: RulesetCreated,
}

/// The kernel's Landlock ABI; `Err` where there is none.
pub(super) fn abi() -> Result<i32, String> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag, no attributes and size 0 the call reads no memory and only returns a number.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    match i32::try_from(abi) {
        Ok(abi @ 1..) => Ok(abi),
        _ => Err(format!("Landlock is not there: {}", std::io::Error::last_os_error())),
    }
}

impl Domain {
    /// One that allows nothing of files (`has_files`), and, where the kernel can (ABI 6), neither abstract sockets of
    /// outside nor signals to it.
    pub(super) fn new(abi: i32, has_files: bool) -> Result<Self, String> {
        let failed = |error: landlock::RulesetError| format!("making the Landlock ruleset: {error}");
        // What is newer than this code was written for is left alone.
        let abi = ABI::from(abi.min(6));
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        if has_files {
            ruleset = ruleset.handle_access(AccessFs::from_all(abi)).map_err(failed)?;
        }
        if abi >= ABI::V6 {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(failed)?;
        }
        Ok(Self { abi, ruleset: ruleset.create().map_err(failed)? })
    }

    /// The accesses as bits of linux/landlock.h, for a path that exists in the sandbox only.
    pub(super) fn bits(&self, allowed: Allowed, is_dir: bool) -> u64 {
        self.accesses(allowed, is_dir).bits()
    }

    fn accesses(&self, allowed: Allowed, is_dir: bool) -> BitFlags<AccessFs> {
        let all = AccessFs::from_all(self.abi);
        let accesses = match allowed {
            Allowed::Read => AccessFs::from_read(self.abi),
            Allowed::Write => all & !BitFlags::from(AccessFs::Execute),
            Allowed::WriteAndExecute => all,
        };
        if is_dir { accesses } else { accesses & AccessFs::from_file(self.abi) }
    }

    /// Allows below a path of the node. One that does not exist is left out.
    pub(super) fn allow(self, path: &Path, allowed: Allowed) -> Result<Self, String> {
        let Ok(parent) = PathFd::new(path) else { return Ok(self) };
        let accesses = self.accesses(allowed, path.is_dir());
        let added = self.ruleset.add_rule(PathBeneath::new(parent, accesses));
        let ruleset = added.map_err(|error| format!("allowing {} (Landlock): {error}", path.display()))?;
        Ok(Self { ruleset, ..self })
    }

    /// The ruleset's descriptor.
    pub(super) fn into_fd(self) -> Result<OwnedFd, String> {
        Option::<OwnedFd>::from(self.ruleset).ok_or_else(|| "the kernel took no Landlock ruleset".to_owned())
    }
}
