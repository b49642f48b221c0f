//! Modules of a kernel and the order in which they load.
//!
//! `modules.order` lists every module of the build and `modules.builtin` what needs no module; both are in the package.
//! What a module needs stands in its own `.modinfo` section (include/linux/module.h): `depends=`, and in `softdep=` what
//! should be there before it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSection as _};

use super::{Kernel, KernelError, read};
use crate::decompress::{Form, first_stream};

/// Debian's largest is some 10 MiB.
const MAX_MODULE_BYTES: u64 = 64 << 20;
const MAX_LIST_BYTES: u64 = 16 << 20;
/// As they are, and as distributions pack them.
const SUFFIXES: [&str; 4] = ["", ".xz", ".zst", ".gz"];

/// A kernel module, ready for `finit_module`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// With `_` for `-`: `virtio_blk`.
    pub name: String,
    /// The ELF object, unpacked.
    pub bytes: Vec<u8>,
}

/// The lists of a kernel's modules.
pub(super) struct Modules<'a> {
    kernel: &'a Kernel,
    /// By name, the path below the kernel's folder, without a suffix of compression.
    loadable: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl<'a> Modules<'a> {
    pub(super) fn of(kernel: &'a Kernel) -> Result<Self, KernelError> {
        let (mut loadable, mut built_in) = (BTreeMap::new(), BTreeSet::new());
        if let Some(dir) = &kernel.modules_dir {
            let list = |name: &str| {
                let text = read(&dir.join(name), MAX_LIST_BYTES)?;
                Ok(String::from_utf8_lossy(&text).into_owned())
            };
            let order: String = list("modules.order")?;
            loadable.extend(order.lines().map(|line| (name(line), dir.join(line.trim()))));
            let builtin: String = list("modules.builtin")?;
            built_in.extend(builtin.lines().map(name));
        }
        Ok(Self { kernel, loadable, built_in })
    }

    pub(super) fn has(&self, wanted: &str) -> bool {
        self.built_in.contains(&name(wanted)) || self.file(&name(wanted)).is_some()
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        let path = self.loadable.get(name)?;
        SUFFIXES
            .iter()
            .map(|suffix| PathBuf::from(format!("{}{suffix}", path.display())))
            .find(|path| path.is_file())
    }

    pub(super) fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, KernelError> {
        let mut walk = Walk { modules: self, seen: BTreeSet::new(), missing: Vec::new(), loaded: Vec::new() };
        for wanted in wanted {
            walk.visit(&name(wanted))?;
        }
        if walk.missing.is_empty() {
            return Ok(walk.loaded);
        }
        Err(KernelError::NoModules { release: self.kernel.release.clone(), names: walk.missing })
    }
}

/// Depth first, so that what a module needs stands before it.
struct Walk<'a> {
    modules: &'a Modules<'a>,
    seen: BTreeSet<String>,
    missing: Vec<String>,
    loaded: Vec<Module>,
}

impl Walk<'_> {
    fn visit(&mut self, wanted: &str) -> Result<(), KernelError> {
        if self.modules.built_in.contains(wanted) || !self.seen.insert(wanted.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.modules.file(wanted) else {
            self.missing.push(wanted.to_owned());
            return Ok(());
        };
        let mut bytes = read(&path, MAX_MODULE_BYTES)?;
        if Form::of(&bytes).is_some() {
            bytes = first_stream(&bytes, MAX_MODULE_BYTES)
                .map_err(|source| KernelError::Unpack { path: path.clone(), source })?;
        }
        for needed in needs(&path, &bytes)? {
            match needed {
                Need::Must(name) => self.visit(&name)?,
                // It may also be the name of something built in that is no module.
                Need::Should(name) if self.modules.has(&name) => self.visit(&name)?,
                Need::Should(_) => {}
            }
        }
        self.loaded.push(Module { name: wanted.to_owned(), bytes });
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Need {
    Must(String),
    Should(String),
}

fn needs(path: &Path, module: &[u8]) -> Result<Vec<Need>, KernelError> {
    let no_module = || KernelError::NoModule(path.to_owned());
    let file = object::File::parse(module).map_err(|_| no_module())?;
    let section = file.section_by_name(".modinfo").ok_or_else(no_module)?;
    let mut needs = Vec::new();
    for line in section.data().map_err(|_| no_module())?.split(|byte| *byte == 0) {
        let line = String::from_utf8_lossy(line);
        if let Some(names) = line.strip_prefix("depends=") {
            needs.extend(names.split(',').filter(|text| !text.is_empty()).map(|text| Need::Must(name(text))));
        } else if let Some((_, before)) = line.strip_prefix("softdep=").and_then(|all| all.split_once("pre:"))
        {
            let before = before.split("post:").next().unwrap_or_default();
            needs.extend(before.split_whitespace().map(|text| Need::Should(name(text))));
        }
    }
    Ok(needs)
}

/// The name of a module by its path or by itself.
fn name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}
