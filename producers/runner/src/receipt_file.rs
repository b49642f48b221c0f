//! The file that `run` writes its receipt to.
//!
//! The command may do what it likes to the directory meanwhile, and may be hostile: where the receipt goes is settled
//! before it starts. A plain file is written beside its target and renamed over it, so nobody reads half of one, and a
//! pipe or a link that was planted there is replaced, never opened or followed. What is no plain file to begin with
//! (`/dev/null`, a pipe of the caller) is opened before the command starts and written as it is.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};

/// How long a pipe's reader may take to make room.
const READER_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Target {
    /// A name in a directory; mode and owner are those of the file that is there.
    Named { dir: OwnedFd, name: OsString, like: Option<(u32, u32, u32)> },
    /// An open file.
    Open(File),
}

/// A receipt that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the receipt cannot be written to {}: {reason}", path.display())]
pub struct ReceiptFileError {
    path: PathBuf,
    reason: io::Error,
}

/// Where the receipt will be.
#[derive(Debug)]
pub struct ReceiptFile {
    path: PathBuf,
    target: Target,
}

impl ReceiptFile {
    /// Settles where it goes, or says why it cannot be written there.
    pub fn open(path: &Path) -> Result<Self, ReceiptFileError> {
        let target =
            Self::target(path).map_err(|reason| ReceiptFileError { path: path.to_owned(), reason })?;
        Ok(Self { path: path.to_owned(), target })
    }

    fn target(path: &Path) -> io::Result<Target> {
        let there = std::fs::metadata(path).ok();
        let special = there.as_ref().map(std::fs::Metadata::file_type).filter(|kind| {
            kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket()
        });
        if special.is_some() {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let open = File::options().write(true).custom_flags(flags.bits()).open(path);
            return open.map(Target::Open).map_err(|error| match error.raw_os_error() {
                Some(errno) if errno == Errno::ENXIO as i32 => {
                    io::Error::other("it is a pipe that nobody reads")
                }
                _ => error,
            });
        }
        if there.as_ref().is_some_and(std::fs::Metadata::is_dir) {
            return Err(Errno::EISDIR.into());
        }
        // The caller's own link is followed, now.
        let path = if there.is_some() { path.canonicalize()? } else { path.to_owned() };
        let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let path_only = OFlag::from_bits_retain(if cfg!(target_os = "linux") { O_PATH } else { 0 });
        let dir = nix::fcntl::open(parent.unwrap_or(Path::new(".")), flags | path_only, Mode::empty())?;
        let may = AccessFlags::W_OK | AccessFlags::X_OK;
        match faccessat(&dir, ".", may, AtFlags::AT_EACCESS) {
            Ok(()) => {
                let like = there.map(|there| (there.permissions().mode() & 0o777, there.uid(), there.gid()));
                Ok(Target::Named { dir, name, like })
            }
            // A file that may be written in a directory that may not.
            Err(_) if there.is_some() => {
                let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                File::options().write(true).custom_flags(flags.bits()).open(&path).map(Target::Open)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes it. The error names the file.
    pub fn write(self, bytes: &[u8]) -> Result<(), ReceiptFileError> {
        let written = match self.target {
            Target::Named { dir, name, like } => replace(&dir, &name, like, bytes),
            Target::Open(file) => overwrite(file, bytes),
        };
        written.map_err(|reason| ReceiptFileError { path: self.path, reason })
    }
}

#[cfg(target_os = "linux")]
const O_PATH: i32 = libc::O_PATH;
#[cfg(not(target_os = "linux"))]
const O_PATH: i32 = 0;

fn replace(dir: &OwnedFd, name: &OsStr, like: Option<(u32, u32, u32)>, bytes: &[u8]) -> io::Result<()> {
    // A name that the command cannot have foreseen.
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let temporary = format!(".glasshouse-{:016x}.tmp", u64::from_ne_bytes(random));
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(dir, temporary.as_str(), flags, Mode::from_bits_truncate(0o666))?;
    let mut file = File::from(file);
    let written = file.write_all(bytes).and_then(|()| {
        if let Some((mode, owner, group)) = like {
            // Giving a file away is root's alone.
            let _ = fchown(&file, Some(owner), Some(group));
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        Ok(renameat(dir, temporary.as_str(), dir, name)?)
    });
    if written.is_err() {
        let _ = unlinkat(dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    written
}

fn overwrite(mut file: File, mut bytes: &[u8]) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    let end = Instant::now() + READER_PATIENCE;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::other("its reader does not read"));
                }
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], timeout);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("glasshouse-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn what_was_planted_is_replaced_and_not_followed() {
        let dir = scratch("planted");
        let (path, other) = (dir.join("receipt.json"), dir.join("other"));
        std::fs::write(&other, "precious").unwrap();
        let link = |path: &Path| symlink(&other, path).unwrap();
        let pipe = |path: &Path| nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
        for plant in [&link as &dyn Fn(&Path), &pipe] {
            let file = ReceiptFile::open(&path).unwrap();
            plant(&path);
            file.write(b"receipt").unwrap();
            assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(std::fs::read(&path).unwrap(), b"receipt");
            assert_eq!(std::fs::read(&other).unwrap(), b"precious");
            assert_eq!(names(&dir), ["other", "receipt.json"]);
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_found_before_and_leaves_nothing_after() {
        let dir = scratch("unwritable");
        for bad in [dir.clone(), dir.join("missing/receipt.json"), dir.join("..")] {
            ReceiptFile::open(&bad).unwrap_err();
        }
        let pipe = dir.join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
        let error = ReceiptFile::open(&pipe).unwrap_err();
        assert!(format!("{error:#}").contains("nobody reads"), "{error:#}");
        std::fs::remove_file(&pipe).unwrap();
        let file = ReceiptFile::open(&dir.join("receipt.json")).unwrap();
        std::fs::create_dir(dir.join("receipt.json")).unwrap();
        file.write(b"receipt").unwrap_err();
        assert_eq!(names(&dir), ["receipt.json"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn devices_and_links_of_the_caller_are_written_as_they_are() {
        ReceiptFile::open(Path::new("/dev/null")).unwrap().write(b"receipt").unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        let dir = scratch("links");
        let (path, link) = (dir.join("receipt.json"), dir.join("link"));
        std::fs::write(&path, "a longer one from before").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&path, &link).unwrap();
        ReceiptFile::open(&link).unwrap().write(b"receipt").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"receipt");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
