//! The conformance suite on the backends of this crate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use glasshouse_backends::conformance::{Factory, Scenario, Subject, spec};
use glasshouse_backends::fake::{FakeBackend, Script};
use glasshouse_execution::backend::{BackendError, ExitStatus};

/// Plays a scenario by its script.
struct Fake;

impl Factory for Fake {
    fn make(&self, scenario: &Scenario) -> Result<Subject, String> {
        let script = match scenario {
            Scenario::Exits(code) => Script::exits(ExitStatus::Code(*code)),
            Scenario::DiesOf(signal) => Script::exits(ExitStatus::Signal(*signal)),
            Scenario::RunsUntilKilled => Script { exit: None, ..Script::default() },
            Scenario::Prints { stdout, stderr } => {
                Script { stdout: stdout.clone(), stderr: stderr.clone(), ..Script::default() }
            }
            Scenario::NotFound => Script::default().failing(
                glasshouse_backends::fake::Call::Start,
                BackendError::NotFound { program: "x".into() },
            ),
            Scenario::CannotExecute => Script::default().failing(
                glasshouse_backends::fake::Call::Release,
                BackendError::CannotExecute { program: "x".into(), reason: "scripted".into() },
            ),
            Scenario::Touches(_) | Scenario::LeavesAProcess | Scenario::PrintsLater(_) => {
                return Err("the fake runs nothing".into());
            }
        };
        Ok(Subject {
            backend: Arc::new(FakeBackend::new(script)),
            spec: spec(["fake"]),
            left: Box::new(Vec::new),
        })
    }
}

glasshouse_backends::conformance!(fake, super::Fake);

#[cfg(target_os = "linux")]
mod on_linux {
    use super::*;
    use std::path::PathBuf;

    use glasshouse_backends::ProcessBackend;
    use glasshouse_schema::SandboxLevel;

    /// Plays a scenario with a shell, in a sandbox of this level.
    pub(super) struct Process(pub(super) SandboxLevel);

    impl Factory for Process {
        fn make(&self, scenario: &Scenario) -> Result<Subject, String> {
            if self.0 > SandboxLevel::None && !nix::unistd::geteuid().is_root() {
                return Err("a sandbox needs root".into());
            }
            // Output goes through the environment: it may hold any byte but NUL, which printf makes.
            let shell = |script: String| spec(["/bin/sh".to_owned(), "-c".to_owned(), script]);
            let mut files: Vec<tempfile::TempPath> = Vec::new();
            let mut file = |bytes: &[u8]| {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                std::io::Write::write_all(&mut file, bytes).unwrap();
                let path = file.into_temp_path();
                let name = path.to_str().unwrap().to_owned();
                files.push(path);
                name
            };
            let mut spec = match scenario {
                Scenario::Exits(code) => shell(format!("exit {code}")),
                Scenario::DiesOf(signal) => shell(format!("kill -{signal} $$")),
                Scenario::RunsUntilKilled => spec(["sleep", "1000"]),
                Scenario::Prints { stdout, stderr } => {
                    shell(format!("cat {}; cat {} >&2", file(stdout), file(stderr)))
                }
                Scenario::NotFound => spec(["glasshouse-no-such-program"]),
                Scenario::CannotExecute => spec([file(b"no program")]),
                Scenario::Touches(path) => shell(format!("> {}", path.display())),
                Scenario::LeavesAProcess => shell("sleep 1000 & sleep 1000 & :".into()),
                // The writer waits for the root's end, which its parent's change shows.
                Scenario::PrintsLater(text) => {
                    shell(format!("p=$$; (while kill -0 $p 2>/dev/null; do :; done; cat {}) & :", file(text)))
                }
            };
            spec.sandbox.level = self.0;
            if self.0 > SandboxLevel::None {
                // The files of the scenarios are there.
                spec.sandbox.write = vec![std::env::temp_dir()];
                spec.sandbox.read =
                    spec.argv.iter().map(PathBuf::from).filter(|path| path.is_file()).collect();
            }
            let id = spec.id.to_string();
            let left = Box::new(move || {
                let _ = &files;
                cgroups_of(&id)
            });
            Ok(Subject { backend: Arc::new(ProcessBackend::new()), spec, left })
        }
    }

    /// Every directory of that name in any cgroup hierarchy.
    fn cgroups_of(id: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name() == *id {
                        found.push(entry.path().display().to_string());
                    }
                    dirs.push(entry.path());
                }
            }
        }
        found
    }
}

#[cfg(target_os = "linux")]
glasshouse_backends::conformance!(process, super::on_linux::Process(glasshouse_schema::SandboxLevel::None));
#[cfg(target_os = "linux")]
glasshouse_backends::conformance!(
    process_standard,
    super::on_linux::Process(glasshouse_schema::SandboxLevel::Standard)
);
#[cfg(target_os = "linux")]
glasshouse_backends::conformance!(
    process_strict,
    super::on_linux::Process(glasshouse_schema::SandboxLevel::Strict)
);
