//! Removes a directory whose content is not to be trusted.
//!
//! - No symbolic link is followed and no mount is entered: what a command mounted in its working directory is taken off, and
//!   what stays is left alone, because it may be the node's own tree.
//! - However deep it is, three descriptors and a fixed amount of memory are enough: what is in a directory is moved up before
//!   the directory goes.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::collect::{open_below, open_root, own};

/// Entries that are handled at a time.
const BATCH: usize = 1024;

/// Removes a working directory; gives what is left, in words.
pub(crate) fn remove(dir: &Path) -> Vec<String> {
    let mut left = unmount_below(dir);
    let root = match open_root(dir) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return left,
        Err(error) => return vec![format!("{} is left: {error}", dir.display())],
    };
    let emptied = empty(&root).and_then(|()| std::fs::remove_dir(dir));
    left.extend(emptied.err().map(|error| format!("{} is left: {error}", dir.display())));
    left
}

/// The same of every directory in `dir`: those of executions whose agent died.
pub(crate) fn remove_all_below(dir: &Path) -> Vec<String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("{}: {error}", dir.display())],
    };
    entries.flatten().flat_map(|entry| remove(&entry.path())).collect()
}

/// Empties a directory: what is directly in it goes, what is in a directory in it is moved up, over and over.
fn empty(root: &OwnedFd) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let names = names(root)?;
        if names.is_empty() {
            return Ok(());
        }
        let mut failed = None;
        let mut has_done = false;
        for name in names {
            match remove_one(root, &name, &mut moved) {
                Ok(()) => has_done = true,
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed.filter(|_| !has_done) {
            return Err(error);
        }
    }
}

/// Removes an entry; a directory with something in it is only emptied, as far as one batch goes.
fn remove_one(root: &OwnedFd, name: &OsStr, moved: &mut u64) -> io::Result<()> {
    match unlinkat(root, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        result => return Ok(result?),
    }
    let dir = open_dir(root, name)?;
    let mut failed = None;
    for inner in names(&dir)? {
        let removed = match unlinkat(&dir, inner.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => move_up(&dir, &inner, root, moved),
            result => result.map_err(io::Error::from),
        };
        failed = removed.err().or(failed);
    }
    match unlinkat(root, name, UnlinkatFlags::RemoveDir) {
        // There was more than a batch.
        Err(Errno::ENOTEMPTY) => failed.map_or(Ok(()), Err),
        result => Ok(result?),
    }
}

/// An agent that is not root looks into, and moves, what the command closed.
fn open_dir(above: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let dir = open_below(above, name, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let _ = std::fs::set_permissions(own(&dir), Permissions::from_mode(0o700));
    Ok(dir)
}

/// Moves a directory to where nothing is in its way.
fn move_up(dir: &OwnedFd, name: &OsStr, root: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    open_dir(dir, name)?;
    loop {
        *moved += 1;
        let free = OsString::from(format!(".glasshouse-{moved}"));
        match renameat2(dir, name, root, free.as_os_str(), RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => {}
            result => return Ok(result?),
        }
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(own(dir))?.take(BATCH).map(|entry| entry.map(|entry| entry.file_name())).collect()
}

/// Takes off what is mounted below `dir` in this process's view, the innermost first.
fn unmount_below(dir: &Path) -> Vec<String> {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return Vec::new() };
    let Ok(dir) = dir.canonicalize() else { return Vec::new() };
    let points =
        table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let points: Vec<PathBuf> = points.map(unescaped).filter(|point| point.starts_with(&dir)).collect();
    let off = |point: &PathBuf| umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let failed = points.iter().rev().filter_map(|point| Some((point, off(point).err()?)));
    failed.map(|(point, errno)| format!("{} is left mounted: {errno}", point.display())).collect()
}

/// proc_pid_mountinfo(5): space, tab, line feed and backslash are three octal digits behind a backslash.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code =
            after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code.filter(|_| byte == b'\\') {
            Some(code) => (bytes.push(code), rest = &after[3..]).0,
            None => (bytes.push(byte), rest = after).0,
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn a_directory_goes_however_deep_and_full_it_is() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "x").unwrap();
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("work dir");
        std::fs::create_dir(&dir).unwrap();
        // Deeper than a path can be long, and than there are descriptors.
        let mut at = open_root(&dir).unwrap();
        for _ in 0..1_200 {
            nix::sys::stat::mkdirat(&at, "deep", nix::sys::stat::Mode::S_IRWXU).unwrap();
            at = open_below(&at, "deep", OFlag::O_DIRECTORY).unwrap();
        }
        for n in 0..3 * BATCH {
            std::fs::write(dir.join(format!(".glasshouse-{n}")), "").unwrap();
        }
        std::fs::create_dir_all(dir.join("closed/inner")).unwrap();
        std::fs::set_permissions(dir.join("closed"), Permissions::from_mode(0o000)).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.join("link")).unwrap();
        assert_eq!(remove(&dir), Vec::<String>::new());
        assert!(!dir.exists() && outside.path().join("kept").exists());
        assert_eq!(remove(&dir), Vec::<String>::new(), "what is gone is gone");
    }

    #[test]
    fn what_is_mounted_is_taken_off_and_not_emptied() {
        use nix::mount::{MsFlags, mount};
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "x").unwrap();
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("work");
        let point = dir.join("a b/inner");
        std::fs::create_dir_all(&point).unwrap();
        let bound = mount(Some(outside.path()), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        if let Err(errno) = bound {
            return eprintln!("skipped: nothing can be mounted here: {errno}");
        }
        assert_eq!(
            open_below(&open_root(&dir).unwrap(), "a b/inner", OFlag::O_PATH).unwrap_err().raw_os_error(),
            Some(libc::EXDEV)
        );
        assert_eq!(remove_all_below(above.path()), Vec::<String>::new());
        assert!(!dir.exists() && outside.path().join("kept").exists());
    }

    #[test]
    fn the_kernel_writes_spaces_in_octal() {
        assert_eq!(unescaped(br"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescaped(br"/a\09"), PathBuf::from(r"/a\09"));
    }
}
