//! Takes files out of a directory whose content is not to be trusted.
//!
//! Every path is resolved by the kernel from the directory, below it, through no symbolic link and into no other mount
//! (openat2(2)), so that it makes no difference what is where, and who changes it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use glasshouse_nats::{Bus, ErrorKind, digest_of};
use glasshouse_runner::files::Patterns;
use glasshouse_schema::files::{
    Files, MAX_FILE_BYTES, MAX_FILES, MAX_FILES_BYTES, MAX_PATH_BYTES, MAX_PATHS_BYTES, MAX_SKIPPED,
    SkippedFile, StoredFile, check_path,
};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::Mode;

/// Entries that are looked at for those that are asked for.
const MAX_LOOKED_AT: usize = 100_000;
/// Longest reason, in bytes.
const MAX_REASON_BYTES: usize = 256;

/// What became of a path.
enum Found {
    File,
    Skipped(String),
}

/// Takes the files out that `patterns` ask for, until `killed` is ready. What goes wrong is said in the result.
pub(super) async fn collect(
    bus: &Bus,
    dir: &Path,
    patterns: &Patterns,
    killed: impl Future<Output = ()>,
) -> Files {
    let (root, wanted) = (dir.to_owned(), patterns.clone());
    let looked = tokio::task::spawn_blocking(move || look(&root, &wanted)).await;
    let found = match looked.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(found) => found,
        Err(error) => {
            let reason = format!("the working directory cannot be read: {error}");
            return said(
                Vec::new(),
                patterns.iter().map(|pattern| (pattern.to_owned(), reason.clone())).collect(),
            );
        }
    };
    let mut taken = Taken { files: Vec::new(), bytes: 0, path_bytes: 0, no_more: None };
    let mut skipped = BTreeMap::new();
    let mut killed = std::pin::pin!(killed);
    for (path, found) in found {
        let refused = match found {
            Found::Skipped(reason) => Some(reason),
            Found::File => tokio::select! {
                biased;
                () = &mut killed => Some("the node agent was stopped before it was stored".to_owned()),
                result = taken.take(bus, dir, &path) => result.err(),
            },
        };
        if let Some(reason) = refused {
            skipped.insert(path, reason);
        }
    }
    said(taken.files, skipped)
}

fn said(outputs: Vec<StoredFile>, skipped: BTreeMap<String, String>) -> Files {
    let more_skipped = skipped.len().saturating_sub(MAX_SKIPPED) as u64;
    let short = |text: String, most| match text.len() > most {
        true => text[..text.floor_char_boundary(most)].to_owned(),
        false => text,
    };
    let skipped = skipped.into_iter().take(MAX_SKIPPED).map(|(path, reason)| SkippedFile {
        path: short(path, MAX_PATH_BYTES),
        reason: short(reason, MAX_REASON_BYTES),
    });
    Files { outputs, skipped: skipped.collect(), more_skipped, ..Files::default() }
}

/// What was taken so far.
struct Taken {
    files: Vec<StoredFile>,
    bytes: u64,
    path_bytes: usize,
    /// Why nothing more can be stored.
    no_more: Option<String>,
}

impl Taken {
    async fn take(&mut self, bus: &Bus, dir: &Path, path: &str) -> Result<(), String> {
        if let Some(reason) = &self.no_more {
            return Err(reason.clone());
        }
        if self.files.len() >= MAX_FILES || self.path_bytes + path.len() > MAX_PATHS_BYTES {
            return Err(format!("{} files are taken already, and no more fit", self.files.len()));
        }
        let room = MAX_FILES_BYTES - self.bytes;
        let (dir, name) = (dir.to_owned(), path.to_owned());
        let read = tokio::task::spawn_blocking(move || read(&dir, &name, room)).await;
        let (file, mode, sha256, bytes) = read.unwrap_or_else(|error| Err(error.to_string()))?;
        let mut file = tokio::fs::File::from_std(file);
        if let Err(error) = bus.store_file(&mut file, sha256, bytes).await {
            let reason = format!("it could not be stored: {error}");
            if error.kind() != ErrorKind::Poison {
                // It will be no better with the next, and each would wait as long.
                self.no_more = Some(reason.clone());
            }
            return Err(reason);
        }
        self.bytes += bytes;
        self.path_bytes += path.len();
        self.files.push(StoredFile { path: path.to_owned(), mode, bytes, sha256 });
        Ok(())
    }
}

fn read(dir: &Path, path: &str, room: u64) -> Result<(File, u32, glasshouse_schema::Digest, u64), String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let found = open_below(&open_root(dir).map_err(unreadable)?, path, OFlag::O_PATH).map_err(unreadable)?;
    // Of what is no regular file nothing is opened: that alone can do something.
    let mut file = match File::from(found) {
        found if !found.metadata().map_err(unreadable)?.is_file() => {
            return Err("it is no regular file".into());
        }
        found => File::open(own(&found)).map_err(unreadable)?,
    };
    let about = file.metadata().map_err(unreadable)?;
    let most = MAX_FILE_BYTES.min(room);
    if about.len() > most {
        return Err(match about.len() > MAX_FILE_BYTES {
            true => format!("it has {} bytes, more than the {MAX_FILE_BYTES} of one file", about.len()),
            false => format!("with its {} bytes there are more than {MAX_FILES_BYTES}", about.len()),
        });
    }
    let (sha256, bytes) = digest_of(&mut file, most).map_err(unreadable)?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o777;
    Ok((file, mode, sha256, bytes))
}

/// Finds what the patterns ask for, and says of the rest of it why it cannot be had.
fn look(dir: &Path, patterns: &Patterns) -> io::Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    if patterns.is_empty() {
        return Ok(found);
    }
    let root = open_root(dir)?;
    let mut matched = BTreeSet::new();
    let mut looked_at = 0;
    let mut dirs = vec![String::new()];
    'all: while let Some(dir) = dirs.pop() {
        let opened = match dir.as_str() {
            "" => root.try_clone()?,
            path => match open_below(&root, path, OFlag::O_DIRECTORY) {
                Ok(opened) => opened,
                Err(error) => {
                    let reason = match error.raw_os_error() {
                        Some(libc::EXDEV) => "another file system is mounted there".to_owned(),
                        _ => format!("it cannot be read: {error}"),
                    };
                    found.insert(dir, Found::Skipped(reason));
                    continue;
                }
            },
        };
        for entry in std::fs::read_dir(own(&opened))? {
            let entry = entry?;
            looked_at += 1;
            if looked_at > MAX_LOOKED_AT {
                let reason = format!("more than {MAX_LOOKED_AT} files are there: not all were looked at");
                found.insert("**".to_owned(), Found::Skipped(reason));
                break 'all;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = if dir.is_empty() { name.into_owned() } else { format!("{dir}/{name}") };
            let of = patterns.matching(&path);
            let is_wanted = !of.is_empty();
            matched.extend(of);
            let kind = entry.file_type()?;
            let reason = match check_path(&path) {
                Err(_) => Some("its path is too long, or holds control characters".to_owned()),
                Ok(()) if entry.file_name().to_str().is_none() => Some("its name is not UTF-8".to_owned()),
                Ok(()) if kind.is_dir() => {
                    dirs.push(path);
                    continue;
                }
                Ok(()) if kind.is_file() => None,
                Ok(()) if kind.is_symlink() => Some("it is a symbolic link".to_owned()),
                Ok(()) => Some("it is no regular file".to_owned()),
            };
            // What is in a directory that cannot be looked into may have been asked for.
            if is_wanted || (kind.is_dir() && reason.is_some()) {
                found.insert(path, reason.map_or(Found::File, Found::Skipped));
            }
        }
    }
    for (_, pattern) in patterns.iter().enumerate().filter(|(index, _)| !matched.contains(index)) {
        let nothing = Found::Skipped("nothing matches it".to_owned());
        found.entry(pattern.to_owned()).or_insert(nothing);
    }
    Ok(found)
}

pub(super) fn open_root(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(open(dir, flags, Mode::empty())?)
}

/// Opens what is at `path` below `root` and nowhere else.
pub(super) fn open_below(root: &OwnedFd, path: impl AsRef<Path>, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(root, path.as_ref(), how) {
            // Something was renamed meanwhile, and the kernel cannot say where it led.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            opened => return Ok(opened?),
        }
    }
}

/// A path of what is open, wherever it is by now.
pub(super) fn own(opened: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", opened.as_raw_fd())
}
