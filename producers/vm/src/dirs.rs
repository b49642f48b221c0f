//! The directories of machines and snapshots, which go with the process that made them.
//!
//! It removes them itself. Of one that was killed they are removed by the next process that makes one: their names say whose they are.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use glasshouse_backends::Runner;
use tempfile::TempDir;

/// What a directory is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Machine,
    Snapshot,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Machine, Self::Snapshot];

    fn prefix(self) -> &'static str {
        match self {
            Self::Machine => "glasshouse-vm-",
            Self::Snapshot => "glasshouse-snapshot-",
        }
    }
}

/// Makes one below the folder of temporary files, which only this user can read.
pub(crate) fn make(kind: Kind) -> io::Result<TempDir> {
    static SWEPT: AtomicBool = AtomicBool::new(false);
    let folder = std::env::temp_dir();
    if !SWEPT.swap(true, Ordering::Relaxed) {
        sweep(&folder);
    }
    make_in(&folder, kind, Runner::this().map(|runner| runner.name()).unwrap_or_default())
}

fn make_in(folder: &Path, kind: Kind, runner: String) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(&format!("{}{runner}-", kind.prefix())).tempdir_in(folder)
}

/// Removes those of this user whose process is gone.
fn sweep(folder: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_own = || entry.metadata().is_ok_and(|of| of.is_dir() && of.uid() == own);
        if runner_of(&entry.file_name()).is_some_and(|runner| runner.is_gone()) && is_own() {
            let path = entry.path();
            match fs::remove_dir_all(&path) {
                Ok(()) => tracing::debug!(path = %path.display(), "removed what a killed run left"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "what a killed run left stays"),
            }
        }
    }
}

/// The process that a name speaks of.
fn runner_of(name: &OsStr) -> Option<Runner> {
    let name = name.to_str()?;
    let rest = Kind::ALL.iter().find_map(|kind| name.strip_prefix(kind.prefix()))?;
    Runner::named(rest.split_once('-')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let this = Runner::this().unwrap().name();
        // One that had our id before us.
        let (rest, start) = this.rsplit_once('.').unwrap();
        let gone = format!("{rest}.{:x}", u64::from_str_radix(start, 16).unwrap() - 1);
        let [left, snapshot, own, unnamed] = [
            (Kind::Machine, gone.clone()),
            (Kind::Snapshot, gone.clone()),
            (Kind::Machine, this),
            (Kind::Machine, String::new()),
        ]
        .map(|(kind, runner)| make_in(folder.path(), kind, runner).unwrap().keep());
        fs::create_dir_all(left.join("a/b")).unwrap();
        let file = folder.path().join(format!("glasshouse-vm-{gone}-file"));
        fs::write(&file, "").unwrap();
        sweep(folder.path());
        let there = [&left, &snapshot, &own, &unnamed, &file].map(|path| path.exists());
        assert_eq!(there, [false, false, true, true, true]);
    }
}
