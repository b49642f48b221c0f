//! Compiles the BPF programs with `build.sh` where the target is Linux; elsewhere there is nothing to embed.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(glasshouse_bpf_objects)");
    println!("cargo::rerun-if-changed=build.sh");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=probe");
    println!("cargo::rerun-if-changed=sandbox");
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-env-changed=LLVM_STRIP");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    if let Err(reason) = compile() {
        eprintln!("{reason}");
        std::process::exit(1);
    }
    println!("cargo::rustc-cfg=glasshouse_bpf_objects");
}

fn compile() -> Result<(), String> {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or("OUT_DIR is not set")?;
    let arch = match std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "x86",
        Ok("aarch64") => "arm64",
        other => return Err(format!("glasshouse-bpf: no BPF support for target architecture {other:?}")),
    };
    let status = Command::new("sh")
        .arg("build.sh")
        .arg(&out)
        .env("GLASSHOUSE_BPF_ARCH", arch)
        .status()
        .map_err(|error| format!("glasshouse-bpf: cannot run build.sh: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("glasshouse-bpf: build.sh failed ({status})")) }
}
