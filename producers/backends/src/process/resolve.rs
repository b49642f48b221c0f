//! Finds the program as a shell would, and says what an exec error means.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::sandbox::SandboxLevel;

/// The search path where the environment has none (execvp(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The program of an execution.
#[derive(Debug)]
pub(super) struct Program {
    /// As the caller wrote it.
    name: String,
    /// Relative to the command's working directory.
    path: PathBuf,
    /// As this process reaches it.
    here: PathBuf,
}

impl Program {
    /// A name with a slash is taken as it is: the kernel says at the exec whether it exists. `None` for any other.
    pub(super) fn named(spec: &ExecutionSpec) -> Option<Self> {
        let program = Self::written(spec);
        program.as_bytes().contains(&b'/').then(|| Self::at(spec, program.into()))
    }

    fn written(spec: &ExecutionSpec) -> &OsStr {
        spec.argv.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    fn at(spec: &ExecutionSpec, path: PathBuf) -> Self {
        let name = Self::written(spec).to_string_lossy().into_owned();
        let here = spec.workdir.as_ref().map_or_else(|| path.clone(), |dir| dir.join(&path));
        Self { name, path, here }
    }

    /// Searches for what has no slash.
    pub(super) fn search(spec: &ExecutionSpec) -> Result<Self, BackendError> {
        let program = Self::written(spec);
        let name = program.to_string_lossy().into_owned();
        let mut found_but_denied = false;
        for dir in search_path(spec).as_bytes().split(|byte| *byte == b':') {
            // An empty entry is the working directory.
            let dir = if dir.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(dir)) };
            let candidate = Self::at(spec, dir.join(program));
            if !candidate.here.is_file() {
                continue;
            }
            if is_executable(&candidate.here) {
                return Ok(candidate);
            }
            found_but_denied = true;
        }
        Err(match found_but_denied {
            true => BackendError::CannotExecute { program: name, reason: "permission denied".into() },
            false => BackendError::NotFound { program: name },
        })
    }

    /// What to execute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the kernel's answer to the exec means for the caller.
    pub(super) fn exec_error(&self, errno: i32, level: SandboxLevel) -> BackendError {
        let program = self.name.clone();
        let reason = match errno {
            libc::ENOENT | libc::ENOTDIR if !self.here.exists() => return BackendError::NotFound { program },
            libc::ENOENT | libc::EACCES if level > SandboxLevel::None && is_executable(&self.here) => {
                format!(
                    "the sandbox ({level}) does not show it: allow it with --allow-read {}",
                    self.here.display()
                )
            }
            libc::ENOENT => "the interpreter that it names does not exist".to_owned(),
            libc::EACCES if self.here.is_dir() => "it is a directory".to_owned(),
            _ => io::Error::from_raw_os_error(errno).to_string(),
        };
        BackendError::CannotExecute { program, reason }
    }
}

fn search_path(spec: &ExecutionSpec) -> OsString {
    let path = match &spec.env {
        // The first of a name is the one that getenv(3) gives.
        Some(env) => env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()),
        None => std::env::var_os("PATH"),
    };
    path.unwrap_or_else(|| DEFAULT_PATH.into())
}

fn is_executable(path: &Path) -> bool {
    use nix::fcntl::{AT_FDCWD, AtFlags};
    nix::unistd::faccessat(AT_FDCWD, path, nix::unistd::AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}
