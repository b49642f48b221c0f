//! Runs a program of this machine where a KVM boots kernels: here if it does, else in a machine of QEMU's with a KVM of its own, which
//! QEMU emulates. It is a runner for cargo: `scripts/firecracker.sh` gives tests of Firecracker to it.
//!
//! ```text
//! nested PROGRAM ARGUMENT…
//! ```
//! The program gets what the variables of its backend name: Firecracker, its jailer, guest kernel, guest probe, and the image of the
//! tests. The machine has nothing else but the libraries they are linked with. Standard streams and exit code are the program's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what the tests share fails by panicking"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use glasshouse_backends::conformance::spec;
use glasshouse_execution::backend::{ExecutionBackend as _, ExitStatus};
use glasshouse_execution::{ExecutionSpec, StdStreams};
use glasshouse_images::rootfs;
use glasshouse_schema::limits::Limits;
use glasshouse_vm::firecracker::{self, FIRECRACKER_VARIABLE, JAILER_VARIABLE, kvm};
use glasshouse_vm::qemu::{self, Qemu};
use glasshouse_vm::{KERNEL_VARIABLE, PROBE_VARIABLE, Parts, VmBackend};

/// Four guests of 512 MiB at once, and what the machine keeps of files in memory.
const MEMORY_BYTES: u64 = 4 << 30;
const VCPUS: u32 = 2;
/// Handed on as they are.
const SETTINGS: [&str; 4] = ["GLASSHOUSE_CONFORMANCE", "RUST_BACKTRACE", "RUST_LOG", "RUST_TEST_THREADS"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = PathBuf::from(arguments.next().ok_or("nested PROGRAM ARGUMENT…")?).canonicalize()?;
    let arguments: Vec<OsString> = arguments.collect();
    let (parts, firecracker) = (Parts::find()?, firecracker::program()?);
    let vmlinux = parts.vmlinux()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match runtime.block_on(kvm::boots(&firecracker, &vmlinux, &parts.cache)) {
        Ok(()) => {
            eprintln!("nested: this machine's KVM boots kernels");
            Err(Command::new(program).args(arguments).exec().into())
        }
        Err(reason) => {
            eprintln!("nested: {reason}; in a machine with an emulated KVM then");
            runtime.block_on(inside(&program, arguments, parts, &firecracker))
        }
    }
}

async fn inside(
    program: &Path,
    arguments: Vec<OsString>,
    parts: Parts,
    firecracker: &Path,
) -> Result<ExitCode> {
    let dir = tempfile::tempdir()?;
    let (image, env) = pack(dir.path(), program, &parts, firecracker)?;
    let config = qemu::Config {
        parts,
        qemu: qemu::program()?,
        image: Some(image),
        vcpus: VCPUS,
        nested: true,
        templates: None,
        link: Default::default(),
    };
    let limits = Limits { memory_bytes: Some(MEMORY_BYTES), ..Limits::default() };
    let backend = VmBackend::new(Qemu::new(config, limits));
    let spec = ExecutionSpec {
        env: Some(env),
        streams: StdStreams::Proxy,
        workdir: Some("/tmp".into()),
        ..spec(["/program".into()].into_iter().chain(arguments))
    };
    let ended = async {
        backend.prepare(&spec).await?;
        backend.start(&spec).await?;
        backend.release().await?;
        let exit = backend.wait().await?;
        backend.drain(false).await?;
        Ok::<_, Box<dyn std::error::Error>>(exit.status)
    };
    let ended = ended.await;
    for left in backend.cleanup().await {
        eprintln!("nested: {left}");
    }
    Ok(match ended? {
        ExitStatus::Code(code) => ExitCode::from(u8::try_from(code)?),
        ExitStatus::Signal(signal) => {
            eprintln!("nested: signal {signal} ended it; the machine's console:\n{}", backend.console());
            ExitCode::FAILURE
        }
    })
}

/// Makes the machine's root filesystem; gives it with the program's environment.
fn pack(
    dir: &Path,
    program: &Path,
    parts: &Parts,
    firecracker: &Path,
) -> Result<(PathBuf, Vec<(OsString, OsString)>)> {
    let tree = dir.join("root");
    for folder in ["proc", "sys", "dev", "tmp", "run", "etc"] {
        std::fs::create_dir_all(tree.join(folder))?;
    }
    let kernel =
        std::env::var_os(KERNEL_VARIABLE).ok_or(format!("{KERNEL_VARIABLE} names no guest kernel"))?;
    let jailer = firecracker::jailer()?;
    let mut files = vec![
        (program.to_owned(), "program", None),
        (firecracker.to_owned(), "firecracker", Some(FIRECRACKER_VARIABLE)),
        (parts.probe.clone(), "probe", Some(PROBE_VARIABLE)),
        (support::image_in(dir)?, "image", Some(support::IMAGE_VARIABLE)),
        (PathBuf::from(kernel), "kernel", Some(KERNEL_VARIABLE)),
    ];
    files.extend(jailer.map(|jailer| (jailer, "jailer", Some(JAILER_VARIABLE))));
    let mut env: Vec<(OsString, OsString)> =
        vec![("PATH".into(), "/".into()), ("HOME".into(), "/tmp".into())];
    env.extend(SETTINGS.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?))));
    let mut libraries = BTreeSet::new();
    for (file, name, variable) in &files {
        copy(file, &tree.join(name))?;
        libraries.extend(libraries_of(file)?);
        env.extend(variable.map(|variable| (variable.into(), format!("/{name}").into())));
    }
    for library in libraries {
        copy(&library, &tree.join(library.strip_prefix("/")?))?;
    }
    let image = dir.join("image");
    rootfs::build(&tree, None, &image, rootfs::Limits::default())?;
    Ok((image, env))
}

/// A file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |error: std::io::Error| format!("{}: {error}", from.display());
    if std::fs::metadata(from).map_err(failed)?.is_dir() {
        for entry in std::fs::read_dir(from).map_err(failed)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    std::fs::create_dir_all(to.parent().ok_or("no folder")?)?;
    std::fs::copy(from, to).map_err(failed)?;
    Ok(())
}

/// None, for what is static or no program.
fn libraries_of(file: &Path) -> Result<Vec<PathBuf>> {
    let told = Command::new("ldd").arg(file).output().map_err(|error| format!("ldd: {error}"))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    Ok(told
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}
