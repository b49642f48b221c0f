//! The backends of an agent, by name.

use std::sync::Arc;

use glasshouse_backends::fake::Script;
use glasshouse_backends::{FakeBackend, ProcessBackend};
use glasshouse_execution::ExecutionBackend;

/// A backend that this build does not have.
#[derive(Debug, thiserror::Error)]
#[error("there is no backend `{name}`: this build has {}", NAMES.join(", "))]
pub struct RegistryError {
    name: String,
}

/// Every backend of this build.
const NAMES: [&str; 2] = ["process", "fake"];

/// The backends that requests may ask for. A backend value serves one execution, so this makes them.
#[derive(Debug, Clone)]
pub struct Registry {
    names: Vec<&'static str>,
}

impl Registry {
    /// The backends of these names.
    pub fn new(names: &[String]) -> Result<Self, RegistryError> {
        let known = |name: &String| {
            let found = NAMES.into_iter().find(|known| known == name);
            found.ok_or_else(|| RegistryError { name: name.chars().take(64).collect() })
        };
        Ok(Self { names: names.iter().map(known).collect::<Result<_, _>>()? })
    }

    /// Their names.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// A backend for one execution; `None` if there is none of this name.
    pub fn make(&self, name: &str) -> Option<Arc<dyn ExecutionBackend>> {
        match *self.names.iter().find(|known| **known == name)? {
            "process" => Some(Arc::new(ProcessBackend::new())),
            "fake" => Some(Arc::new(FakeBackend::new(Script::default()))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_this_build_has_its_backend_and_others_are_refused() {
        let registry = Registry::new(&NAMES.map(str::to_owned)).unwrap();
        for name in NAMES {
            assert_eq!(registry.make(name).unwrap().name(), name);
        }
        assert!(registry.make("qemu").is_none());
        assert!(Registry::new(&["process".into()]).unwrap().make("fake").is_none());
        assert!(Registry::new(&["qemu".into()]).unwrap_err().to_string().contains("process"));
    }
}
