//! What is built to be run in the machines: static, because nothing else is in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::catalogue::Arch;
use crate::run::succeed;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs of the test machine.
pub(crate) struct Programs {
    pub(crate) glasshouse: PathBuf,
    pub(crate) init: PathBuf,
    pub(crate) workload: PathBuf,
    /// Of guests.
    pub(crate) probe: PathBuf,
}

/// Builds them below `cache`.
pub(crate) fn build(root: &Path, cache: &Path) -> Result<Programs> {
    let folder = cache.join("guest");
    std::fs::create_dir_all(&folder)?;
    let compile = |name: &str| -> Result<PathBuf> {
        let program = folder.join(name);
        let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"]).arg(&program);
        cc.arg(root.join(format!("deploy/kernels/guest/{name}.c")));
        succeed(&mut cc)
            .context("a C compiler and a static C library are needed: apt-get install gcc libc6-dev")?;
        Ok(program)
    };
    succeed(&mut Command::new(root.join("scripts/guest-probe.sh")))?;
    let probe = root.join("target/guest/glasshouse-guest-probe");
    Ok(Programs {
        glasshouse: glasshouse(root)?,
        init: compile("init")?,
        workload: compile("workload")?,
        probe,
    })
}

/// The whole command line of this tree, static, in a target folder of its own: other flags would rebuild everything in the
/// usual one each time. Optimised a little, because parsing types unoptimised takes seconds in an emulated machine.
fn glasshouse(root: &Path) -> Result<PathBuf> {
    let target = root.join("target/kernels-build");
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo
        .args(["build", "--quiet", "--locked", "-p", "glasshouse", "--target", TARGET])
        .current_dir(root)
        .env("CARGO_TARGET_DIR", &target)
        // The relocation model makes rustc link `-static`; the default one would ask for `-static-pie`, which the
        // `-no-pie` of producers/cli/build.rs turns into a program that asks for an interpreter.
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols")
        .env("CARGO_PROFILE_DEV_INCREMENTAL", "false");
    succeed(&mut cargo)?;
    Ok(target.join(TARGET).join("debug/glasshouse"))
}

/// Compiles the BPF programs for an architecture and reads the objects: name and bytes.
pub(crate) fn objects(root: &Path, cache: &Path, arch: Arch) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = cache.join("objects").join(arch.debian());
    let name = match arch {
        Arch::Amd64 => "x86",
        Arch::Arm64 => "arm64",
    };
    // What an earlier tree had and this one has not must not be checked.
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let mut build = Command::new("sh");
    build.arg(root.join("bpf/build.sh")).arg(&folder).env("GLASSHOUSE_BPF_ARCH", name);
    succeed(&mut build)?;
    // Those that a user's machine loads; others are of benches.
    [glasshouse_bpf::PROBE, glasshouse_bpf::PROBE_DIRECT, glasshouse_bpf::DOCTOR]
        .iter()
        .map(|name| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(((*name).to_owned(), bytes))
        })
        .collect()
}
