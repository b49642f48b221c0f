//! Where a machine's files lie: as we see them, and as its Firecracker does.
//!
//! Without a jail both see the machine's directory. In one, Firecracker sees the jail's root, which is below that directory, as
//! `/`, and is a user of its own: what is the machine's is given to that user, and what is shared is linked or copied.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_firecracker::{Jailer, JailerError};

use super::Config;
use crate::vmm::own_uid;

/// The only jail below a machine's own directory.
const JAIL: &str = "vm";
/// The API's socket where there is no jail.
const API: &str = "api";
/// Readable for everybody.
const OTHERS_READ: u32 = 0o004;

/// The files of one machine.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: PathBuf,
    jailer: Option<Jailer>,
}

impl Place {
    pub(super) fn new(dir: &Path, config: &Config, spec: &ExecutionSpec) -> Self {
        let uid = own_uid(spec);
        let jailer = config.jailer.as_ref().map(|program| Jailer {
            program: program.clone(),
            firecracker: config.firecracker.clone(),
            id: JAIL.to_owned(),
            uid,
            gid: uid,
            base: dir.to_owned(),
            // The execution's.
            cgroup: None,
        });
        Self { dir: dir.to_owned(), jailer }
    }

    /// What Firecracker sees as its folder.
    pub(super) fn root(&self) -> PathBuf {
        self.jailer.as_ref().map_or_else(|| self.dir.clone(), Jailer::root)
    }

    /// A file as we see it.
    pub(super) fn here(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The same as Firecracker sees it.
    pub(super) fn inside(&self, name: &str) -> PathBuf {
        match self.jailer {
            Some(_) => Path::new("/").join(name),
            None => self.dir.join(name),
        }
    }

    /// The socket of its API.
    pub(super) fn api(&self) -> PathBuf {
        self.jailer.as_ref().map_or_else(|| self.dir.join(API), Jailer::api_socket)
    }

    /// The command line that makes a Firecracker without a machine.
    pub(super) fn command(&self, firecracker: &Path) -> Result<Vec<OsString>, JailerError> {
        match &self.jailer {
            Some(jailer) => {
                jailer.check()?;
                Ok(jailer.command())
            }
            None => {
                let options = ["--id".into(), JAIL.into(), "--api-sock".into(), self.api().into()];
                Ok([firecracker.into()].into_iter().chain(options).collect())
            }
        }
    }

    /// Makes the folder, and an empty file for what Firecracker writes.
    pub(super) fn make(&self, written: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.root())?;
        std::fs::write(self.here(written), "")?;
        self.own(&self.here(written))
    }

    /// Gives a file of the machine's to the user that Firecracker is.
    pub(super) fn own(&self, file: &Path) -> io::Result<()> {
        match &self.jailer {
            Some(jailer) => chown(file, Some(jailer.uid), Some(jailer.gid)),
            None => Ok(()),
        }
    }

    /// A file that is not only this machine's, as Firecracker sees it once it was brought.
    pub(super) fn brought(&self, file: &Path, name: &str) -> PathBuf {
        match self.jailer {
            Some(_) => self.inside(name),
            None => file.to_owned(),
        }
    }

    /// Lets Firecracker read such a file without changing it. In a jail it is linked if everybody may read it and it lies on
    /// the same filesystem, else copied.
    pub(super) fn bring(&self, file: &Path, name: &str) -> io::Result<()> {
        if self.jailer.is_none() {
            return Ok(());
        }
        let to = self.here(name);
        let is_shared = std::fs::metadata(file)?.mode() & OTHERS_READ != 0;
        if is_shared && std::fs::hard_link(file, &to).is_ok() {
            return Ok(());
        }
        std::fs::copy(file, &to)?;
        std::fs::set_permissions(&to, Permissions::from_mode(0o400))?;
        self.own(&to)
    }
}
