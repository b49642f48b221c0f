//! The agent's directory.
//!
//! ```text
//! DIR/lock          held by the one agent that uses the directory, as long as it lives
//! DIR/instances     a line per life of an agent that had the lock, the latest last
//! DIR/spool/<id>    events of an execution that the bus did not take
//! DIR/work/<id>     the working directory of an execution that has one of its own
//! ```
//! Whoever has the lock knows that every process in `instances` is dead, without asking anybody.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use glasshouse_schema::ids::ExecutionId;

/// Lives that are remembered: requests of older ones were delivered again long since.
const REMEMBERED: usize = 256;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another agent lives here.
    #[error("another node agent uses {}: give each its own with --state", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk said no.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The directory, ours until this is dropped.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    dead: Vec<String>,
    _lock: File,
}

impl StateDir {
    /// Takes the directory, and makes it if it is missing; only its owner may look into it.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { operation, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&path).map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StateError::InUse { dir: dir.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        let path = dir.join("instances");
        let dead = match std::fs::read_to_string(&path) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        Ok(Self { dir: dir.to_owned(), dead, _lock: lock })
    }

    /// Whether a process with this instance had the directory before us: it is dead.
    pub fn is_dead(&self, instance: &str) -> bool {
        self.dead.iter().any(|dead| dead == instance)
    }

    /// Writes down that we live, before we claim anything.
    pub fn begin(&self, instance: &str) -> Result<(), StateError> {
        let path = self.dir.join("instances");
        let failed = |source| StateError::Io { operation: "write", path: path.clone(), source };
        let kept = self.dead.len().saturating_sub(REMEMBERED - 1);
        let lines = self.dead[kept..].iter().map(String::as_str).chain([instance]);
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        // Beside and over it: a machine that dies in between leaves the old one.
        let temporary = self.dir.join("instances.new");
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)
    }

    /// Where events of executions wait.
    pub fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }

    /// Where events of one execution wait.
    pub fn spool_of(&self, execution: ExecutionId) -> PathBuf {
        self.spool().join(execution.to_string())
    }

    /// Where working directories are.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The working directory of one execution, if it has its own.
    pub fn work_of(&self, execution: ExecutionId) -> PathBuf {
        self.work().join(execution.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_has_it_at_a_time_and_knows_who_had_it_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        first.begin("one").unwrap();
        assert!(!first.is_dead("one"));
        assert!(matches!(StateDir::open(&path), Err(StateError::InUse { .. })));
        drop(first);
        let second = StateDir::open(&path).unwrap();
        assert!(second.is_dead("one") && !second.is_dead("two"));
        second.begin("two").unwrap();
        drop(second);
        let third = StateDir::open(&path).unwrap();
        assert!(third.is_dead("one") && third.is_dead("two"));
    }
}
