//! What the tests of containers share: a containerd, backends of it, and the scenarios of the conformance suite.

pub(crate) mod containerd;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use glasshouse_backends::conformance::{Factory, Scenario, Subject, spec};
use glasshouse_execution::backend::ExecutionBackend;
use glasshouse_kata::{Config, KataBackend};

pub(crate) use containerd::{Containerd, RUNTIME};
use containerd::{IMAGE, NAMESPACE};

/// What containers are made of that see these folders.
pub(crate) fn config(containerd: &Containerd, binds: Vec<PathBuf>) -> Config {
    config_at(containerd.address(), binds)
}

/// The same with a containerd of another process.
pub(crate) fn config_at(address: PathBuf, binds: Vec<PathBuf>) -> Config {
    let [namespace, runtime, image] = [NAMESPACE, RUNTIME, IMAGE].map(str::to_owned);
    Config { address, namespace, runtime, image, binds }
}

/// The guest probe, or why there is none.
pub(crate) fn probe() -> Result<PathBuf, String> {
    let found = glasshouse_vm::guest_probe().map_err(|error| error.to_string());
    if let Err(reason) = &found {
        assert!(!containerd::is_required(), "GLASSHOUSE_CONFORMANCE wants kata, but {reason}");
    }
    found
}

/// Plays a scenario with the image's shell, in a folder that the container sees.
pub(crate) enum InContainer {
    /// The command is the container's process.
    Alone,
    /// The guest probe is, and runs the command.
    Probed,
}

impl Factory for InContainer {
    fn make(&self, scenario: &Scenario) -> Result<Subject, String> {
        let containerd = Containerd::shared()?;
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let shell = |script: String| spec(["sh".to_owned(), "-c".to_owned(), script]);
        let spec = match scenario {
            Scenario::Exits(code) => shell(format!("exit {code}")),
            Scenario::DiesOf(signal) => shell(format!("kill -{signal} $$")),
            Scenario::RunsUntilKilled => spec(["sleep", "1000"]),
            Scenario::Prints { stdout, stderr } => {
                shell(format!("cat {}; cat {} >&2", file("stdout", stdout), file("stderr", stderr)))
            }
            Scenario::NotFound => spec(["glasshouse-no-such-program"]),
            Scenario::CannotExecute => spec([file("file", b"no program")]),
            Scenario::Touches(path) => shell(format!("> {}", path.display())),
            Scenario::LeavesAProcess => shell("sleep 1000 & sleep 1000 & :".into()),
            Scenario::PrintsLater(bytes) if matches!(self, Self::Probed) => {
                shell(format!("(sleep 0.2; cat {}) & :", file("later", bytes)))
            }
            Scenario::PrintsLater(_) => {
                return Err(
                    "containerd's shim ends what outlives the root, so the backend refuses to wait for it"
                        .into(),
                );
            }
        };
        let mut binds = vec![dir.path().to_owned()];
        if let Scenario::Touches(path) = scenario {
            binds.push(path.parent().unwrap().to_owned());
        }
        let id = spec.id.to_string();
        let config = config(&containerd, binds);
        let backend: Arc<dyn ExecutionBackend> = match self {
            Self::Alone => Arc::new(KataBackend::new(config)),
            Self::Probed => Arc::new(KataBackend::with_probe(config, probe()?)),
        };
        let left = Box::new(move || {
            let _ = &dir;
            containerd.left(&id)
        });
        Ok(Subject { backend, spec, left })
    }
}
