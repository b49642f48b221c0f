//! What the tests of machines share: a small root filesystem, and backends of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use glasshouse_vm::qemu::{self, Config, Qemu};
use glasshouse_vm::{Parts, VmBackend};

/// Programs of this host that the guests have, with the libraries they name.
const PROGRAMS: [&str; 9] = ["sh", "cat", "sleep", "head", "yes", "ls", "kill", "touch", "dd"];

/// What machines are made of here, or why there can be none.
pub(crate) fn config() -> Result<Config, String> {
    static CONFIG: OnceLock<Result<Config, String>> = OnceLock::new();
    let find = || {
        let parts = Parts::find().map_err(|error| error.to_string())?;
        Ok(Config { parts, qemu: qemu::program()?, image: Some(image()?), vcpus: 1 })
    };
    CONFIG.get_or_init(find).clone()
}

/// A backend of one machine.
pub(crate) fn backend() -> Result<VmBackend, String> {
    Ok(VmBackend::new(Qemu::new(config()?, Default::default())))
}

/// An ext4 image with a shell and a few programs, kept for all tests of this build.
fn image() -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tree = tempfile::tempdir_in(dir).map_err(|error| error.to_string())?;
    for folder in ["proc", "sys", "dev", "tmp", "run", "etc"] {
        std::fs::create_dir_all(tree.path().join(folder)).unwrap();
    }
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        let path = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(program));
        let path = path.iter().find(|path| path.exists()).ok_or(format!("this host has no {program}"))?;
        let libraries = Command::new("ldd").arg(path).output().map_err(|error| format!("ldd: {error}"))?;
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        files.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        files.insert(Path::new("/bin").join(program));
    }
    for file in files {
        let to = tree.path().join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let from = if file.exists() { file } else { Path::new("/usr").join(file.strip_prefix("/").unwrap()) };
        std::fs::copy(&from, to).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    std::fs::write(tree.path().join("etc/no-program"), "no program").unwrap();
    let image = dir.join(format!("root-{}.ext4", std::process::id()));
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree.path()).arg(&image).arg("40M");
    let made = make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
    match made {
        Ok(output) if output.status.success() => Ok(image),
        Ok(output) => Err(format!("mke2fs: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("mke2fs (e2fsprogs) cannot be run: {error}")),
    }
}

/// What of executions is left on this host, in words: QEMU processes of it, directories, cgroups.
pub(crate) fn left_of(id: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == *id {
                    left.push(entry.path().display().to_string());
                }
                dirs.push(entry.path());
            }
        }
    }
    left
}
