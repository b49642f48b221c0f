//! Another user's command ([`RunAs`]): what is looked up for it is looked up with that user's rights, so that nobody learns of
//! a file, or is shown one, that is not theirs to see.

#![allow(unsafe_code, reason = "file system credentials of one thread have no safe API")]

use std::io;

use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::RunAs;

/// Not a user: what setfsuid(2) answers it with is the user that is set.
const NOBODY: libc::uid_t = libc::uid_t::MAX;

/// Runs `act` with the user's rights to files, in a thread of its own that ends with it; without a user, as we are.
pub(super) fn with_rights_of<T: Send>(
    user: Option<&RunAs>,
    act: impl FnOnce() -> T + Send,
) -> Result<T, BackendError> {
    let Some(user) = user else { return Ok(act()) };
    let failed = |error: io::Error| BackendError::failed("taking the user's rights to files", error);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("glasshouse-user".into());
        let thread = thread.spawn_scoped(scope, || take_rights(user).map(|()| act())).map_err(failed)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread failed"))).map_err(failed)
    })
}

/// The C library would change every thread: these are the kernel's own calls. A user that is not root takes the capabilities
/// over files away with it (credentials(7)).
fn take_rights(user: &RunAs) -> io::Result<()> {
    // SAFETY: plain system calls on this thread; the list is read for its length.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_setfsgid, user.gid);
        libc::syscall(libc::SYS_setfsuid, user.uid);
        let is_set = libc::syscall(libc::SYS_setfsuid, NOBODY) == libc::c_long::from(user.uid);
        if is_set { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }
}
