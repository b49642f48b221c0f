//! The backends of an agent, by name.

use std::path::Path;
use std::sync::Arc;

use glasshouse_backends::fake::Script;
use glasshouse_backends::{FakeBackend, ProcessBackend};
use glasshouse_execution::{ExecutionBackend, ProfilingController};
use glasshouse_schema::Limits;
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_vm::qemu::{self, Qemu};
use glasshouse_vm::{Parts, VmBackend};

/// Why an agent does not have a backend.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// This build does not have it.
    #[error("there is no backend `{0}`: this build has {all}", all = NAMES.join(", "))]
    Unknown(String),
    /// Virtual machines cannot be made on this node.
    #[error("the backend `qemu` cannot be used: {0}")]
    NoMachines(String),
}

/// Every backend of this build.
const NAMES: [&str; 3] = ["process", "fake", QEMU];
const QEMU: &str = "qemu";

/// The backends that requests may ask for. A backend value serves one execution, so this makes them.
#[derive(Debug, Clone)]
pub struct Registry {
    names: Vec<&'static str>,
    /// How virtual machines are made; there whenever [`QEMU`] is among the names.
    machines: Option<qemu::Config>,
}

/// What runs one command, and what watches it from inside.
pub struct Made {
    /// What runs it.
    pub backend: Arc<dyn ExecutionBackend>,
    inside: Option<Arc<dyn ProfilingController>>,
}

impl Made {
    /// What watches it from where the mode says, as far as there is something: `host` from outside.
    pub fn controllers(
        &self,
        mode: ProfilingMode,
        host: impl Fn() -> Arc<dyn ProfilingController>,
    ) -> Vec<Arc<dyn ProfilingController>> {
        let controller = |vantage: &Vantage| match vantage {
            Vantage::Host => Some(host()),
            Vantage::Guest => self.inside.clone(),
            Vantage::Runner => None,
        };
        mode.vantages().iter().filter_map(controller).collect()
    }
}

impl Registry {
    /// The backends of these names. Virtual machines have `image` as their root filesystem.
    pub fn new(names: &[String], image: Option<&Path>) -> Result<Self, RegistryError> {
        let known = |name: &String| {
            let found = NAMES.into_iter().find(|known| known == name);
            found.ok_or_else(|| RegistryError::Unknown(name.chars().take(64).collect()))
        };
        let names: Vec<_> = names.iter().map(known).collect::<Result<_, _>>()?;
        let machines = names.contains(&QEMU).then(|| machines(image)).transpose();
        Ok(Self { names, machines: machines.map_err(RegistryError::NoMachines)? })
    }

    /// Their names.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// A backend for one execution with these limits; `None` if there is none of this name.
    pub fn make(&self, name: &str, limits: Limits) -> Option<Made> {
        let backend: Arc<dyn ExecutionBackend> = match *self.names.iter().find(|known| **known == name)? {
            "process" => Arc::new(ProcessBackend::new()),
            "fake" => Arc::new(FakeBackend::new(Script::default())),
            _ => {
                let machine = VmBackend::new(Qemu::new(self.machines.clone()?, limits));
                let inside: Arc<dyn ProfilingController> = Arc::new(machine.controller());
                return Some(Made { backend: Arc::new(machine), inside: Some(inside) });
            }
        };
        Some(Made { backend, inside: None })
    }
}

/// Looked for when the agent starts, and not when the first request wants one.
fn machines(image: Option<&Path>) -> Result<qemu::Config, String> {
    let image = image.ok_or("its machines need a root filesystem: name an image with --image")?;
    let image = image
        .canonicalize()
        .map_err(|error| format!("the image {} cannot be read: {error}", image.display()))?;
    let parts = Parts::find().map_err(|error| error.to_string())?;
    Ok(qemu::Config { parts, qemu: qemu::program()?, image: Some(image), vcpus: 1, nested: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_this_build_has_its_backend_and_others_are_refused() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Registry::new(&names, None)
        };
        let registry = of(&["process", "fake"]).unwrap();
        for name in ["process", "fake"] {
            assert_eq!(registry.make(name, Limits::default()).unwrap().backend.name(), name);
        }
        assert!(registry.make("qemu", Limits::default()).is_none());
        assert!(of(&["process"]).unwrap().make("fake", Limits::default()).is_none());
        assert!(of(&["docker"]).unwrap_err().to_string().contains("process, fake, qemu"));
        assert!(of(&["process", "qemu"]).unwrap_err().to_string().contains("--image"));
    }
}
