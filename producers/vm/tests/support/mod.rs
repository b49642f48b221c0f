//! What the tests of machines share: a small root filesystem, backends of it, and how they play the scenarios of the conformance
//! suite. Machines are Firecracker's in the tests called `firecracker`, else QEMU's; in those called `restored` of a template, in those
//! called `shared_memory` with that for the link.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every test uses all of it")]

pub(crate) mod apart;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use glasshouse_backends::conformance::{Factory, Scenario, Subject, spec};
use glasshouse_execution::ExecutionSpec;
use glasshouse_execution::backend::ExecutionBackend as _;
use glasshouse_schema::ids::Digest;
use glasshouse_vm::firecracker::{self, Firecracker, kvm};
use glasshouse_vm::qemu::{self, Config, Qemu};
use glasshouse_vm::{Link, Parts, Templates, VmBackend};

/// Names an image as [`image_in`] makes it, for where none can be made.
pub(crate) const IMAGE_VARIABLE: &str = "GLASSHOUSE_TEST_IMAGE";

/// Programs of this host that the guests have, with the libraries they name.
const PROGRAMS: [&str; 10] = ["sh", "cat", "date", "sleep", "head", "yes", "ls", "kill", "touch", "dd"];

/// What machines are made of here, or why there can be none; `GLASSHOUSE_CONFORMANCE=qemu` makes that a failure.
pub(crate) fn config() -> Result<Config, String> {
    static CONFIG: OnceLock<Result<Config, String>> = OnceLock::new();
    let find = || {
        let parts = Parts::find().map_err(|error| error.to_string())?;
        Ok(Config {
            parts,
            qemu: qemu::program()?,
            image: Some(image()?),
            vcpus: 1,
            nested: false,
            templates: None,
            link: link(),
        })
    };
    let config = CONFIG.get_or_init(find).clone();
    let is_required = std::env::var("GLASSHOUSE_CONFORMANCE")
        .is_ok_and(|names| names.split(',').any(|name| name == "qemu"));
    assert!(config.is_ok() || !is_required, "GLASSHOUSE_CONFORMANCE=qemu, and {config:?}");
    config
}

/// What carries the link to machines of QEMU: shared memory in the tests that are called so.
fn link() -> Link {
    match env!("CARGO_CRATE_NAME") {
        "shared_memory" => Link::SharedMemory,
        _ => Link::default(),
    }
}

/// What machines of Firecracker are made of here, or why there can be none; `GLASSHOUSE_CONFORMANCE=firecracker` makes that a
/// failure.
pub(crate) fn firecracker_config() -> Result<firecracker::Config, String> {
    static CONFIG: OnceLock<Result<firecracker::Config, String>> = OnceLock::new();
    let find = || {
        let parts = Parts::find().map_err(|error| error.to_string())?;
        let config = firecracker::Config {
            firecracker: firecracker::program()?,
            jailer: firecracker::jailer()?,
            image: Some(image()?),
            vcpus: 1,
            parts,
        };
        let vmlinux = config.parts.vmlinux().map_err(|error| error.to_string())?;
        let (program, cache) = (config.firecracker.clone(), config.parts.cache.clone());
        // A runtime does not block on another of its thread.
        let tried = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(kvm::boots(&program, &vmlinux, &cache))
        });
        tried.join().unwrap().map(|()| config)
    };
    let config = CONFIG.get_or_init(find).clone();
    let required = std::env::var("GLASSHOUSE_CONFORMANCE")
        .is_ok_and(|names| names.split(',').any(|name| name == "firecracker"));
    match config {
        Err(reason) if required => panic!("no machine of Firecracker: {reason}"),
        config => config.map_err(|reason| format!("unverified against a real Firecracker: {reason}")),
    }
}

/// Whether machines are in jails.
pub(crate) fn is_jailed() -> bool {
    env!("CARGO_CRATE_NAME") == "firecracker" && std::env::var_os(firecracker::JAILER_VARIABLE).is_some()
}

/// A backend of one machine.
pub(crate) fn backend() -> Result<VmBackend, String> {
    Ok(match env!("CARGO_CRATE_NAME") {
        "firecracker" => VmBackend::new(Firecracker::new(firecracker_config()?, Default::default())),
        "restored" => VmBackend::new(Qemu::new(kept()?, Default::default())),
        _ => VmBackend::new(Qemu::new(config()?, Default::default())),
    })
}

/// Machines of QEMU that are there already, where nothing inside is to watch them. One is kept for all tests, by the first.
fn kept() -> Result<Config, String> {
    static KEPT: OnceLock<Result<Config, String>> = OnceLock::new();
    let keep = || {
        let templates = Some(Templates::in_cache(&scratch()));
        let config = Config { templates, ..config()? };
        let first = Qemu::new(config.clone(), Default::default());
        let second = Qemu::new(config.clone(), Default::default());
        let (first, second) = (VmBackend::new(first), VmBackend::new(second));
        // A runtime does not block on another of its thread.
        let kept = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                for (backend, must_be_restored) in [(first, false), (second, true)] {
                    let spec = spec(["/bin/true"]);
                    backend.prepare(&spec).await.unwrap();
                    backend.start(&spec).await.unwrap();
                    assert!(backend.environment().snapshot.is_some() || !must_be_restored);
                    assert_eq!(backend.cleanup().await, Vec::<String>::new());
                }
            });
        });
        kept.join().unwrap();
        Ok(config)
    };
    KEPT.get_or_init(keep).clone()
}

/// Plays a scenario with the shell of the guest.
pub(crate) struct InMachine;

impl Factory for InMachine {
    fn make(&self, scenario: &Scenario) -> Result<Subject, String> {
        let (backend, spec) = (backend()?, spec_of(scenario)?);
        let id = spec.id.to_string();
        Ok(Subject { backend: Arc::new(backend), spec, left: Box::new(move || left_of(&id)) })
    }
}

/// What plays a scenario, of the programs in [`image`].
pub(crate) fn spec_of(scenario: &Scenario) -> Result<ExecutionSpec, String> {
    let shell = |script: String| spec(["/bin/sh".to_owned(), "-c".to_owned(), script]);
    // Octal escapes: any byte comes through printf, and a line is repeated by the shell.
    let print = |bytes: &[u8]| -> String {
        let of = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:03o}")).collect::<String>();
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) if bytes.len() > 1000 => {
                let line = &bytes[..=end];
                assert!(bytes.chunks(line.len()).all(|chunk| chunk == line));
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                format!("yes '{line}' | head -n {}", bytes.len() / (end + 1))
            }
            _ => format!("printf '{}'", of(bytes)),
        }
    };
    Ok(match scenario {
        Scenario::Exits(code) => shell(format!("exit {code}")),
        Scenario::DiesOf(signal) => shell(format!("kill -{signal} $$")),
        Scenario::RunsUntilKilled => spec(["/bin/sleep", "1000"]),
        Scenario::Prints { stdout, stderr } => shell(format!("{}; {} >&2", print(stdout), print(stderr))),
        Scenario::NotFound => spec(["glasshouse-no-such-program"]),
        Scenario::CannotExecute => spec(["/etc/no-program"]),
        Scenario::Touches(_) => return Err("the guest has no file of this host; see machines.rs".into()),
        Scenario::LeavesAProcess => shell("sleep 1000 & sleep 1000 & :".into()),
        Scenario::PrintsLater(text) => {
            shell(format!("p=$$; (while kill -0 $p 2>/dev/null; do :; done; {}) & :", print(text)))
        }
    })
}

/// The image of all tests of this build.
fn image() -> Result<PathBuf, String> {
    match std::env::var_os(IMAGE_VARIABLE) {
        Some(image) => Ok(image.into()),
        None => image_in(&scratch()),
    }
}

/// Where files of this build's tests are.
fn scratch() -> PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, Into::into)
}

/// What is in `/etc/no-program` of [`image_in`]'s.
const NO_PROGRAM: &str = "no program";

/// An ext4 image with a shell and a few programs, named by what is in it. Each test is a process that makes it.
pub(crate) fn image_in(dir: &Path) -> Result<PathBuf, String> {
    image_with(dir, NO_PROGRAM, 40)
}

/// The same with another file, and as many MiB as these.
pub(crate) fn image_with(dir: &Path, no_program: &str, mib: u32) -> Result<PathBuf, String> {
    let mut names = BTreeSet::new();
    for program in PROGRAMS {
        let path = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(program));
        let path = path.iter().find(|path| path.exists()).ok_or(format!("this host has no {program}"))?;
        let libraries = Command::new("ldd").arg(path).output().map_err(|error| format!("ldd: {error}"))?;
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        names.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        names.insert(Path::new("/bin").join(program));
    }
    let mut files = vec![(PathBuf::from("etc/no-program"), no_program.as_bytes().to_vec())];
    for name in names {
        let inside = name.strip_prefix("/").unwrap().to_owned();
        let from = if name.exists() { name } else { Path::new("/usr").join(&inside) };
        files.push((inside, std::fs::read(&from).map_err(|error| format!("{}: {error}", from.display()))?));
    }
    let of = files.iter().map(|(name, bytes)| format!("{} {}\n", name.display(), Digest::of(bytes)));
    let image = dir.join(format!("root-{mib}-{}.ext4", Digest::of(of.collect::<String>().as_bytes())));
    if image.exists() {
        return Ok(image);
    }

    let tree = tempfile::tempdir_in(dir).map_err(|error| error.to_string())?;
    for folder in ["proc", "sys", "dev", "tmp", "run"] {
        std::fs::create_dir_all(tree.path().join(folder)).unwrap();
    }
    for (name, bytes) in files {
        let to = tree.path().join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(&to, bytes).unwrap();
        let is_program = to.file_name().is_some_and(|name| name != "no-program");
        std::fs::set_permissions(&to, Permissions::from_mode(if is_program { 0o755 } else { 0o644 }))
            .unwrap();
    }
    let made = tempfile::NamedTempFile::new_in(dir).unwrap().into_temp_path();
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree.path()).arg(&made).arg(format!("{mib}M"));
    match make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(format!("mke2fs: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => return Err(format!("mke2fs (e2fsprogs) cannot be run: {error}")),
    }
    // A VMM may be another user.
    std::fs::set_permissions(&made, Permissions::from_mode(0o644)).unwrap();
    match made.persist_noclobber(&image) {
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => Err(error.to_string()),
        _ => Ok(image),
    }
}

/// What of executions is left on this host, in words: its cgroups.
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
