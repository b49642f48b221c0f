//! Links the program at a fixed address on Linux.
//!
//! A position-independent `glasshouse` has some 44,000 load-time relocations, which touch every page of its read-only
//! data: a third of its page faults and 0.45 ms of every `glasshouse run` (`cargo bench -p glasshouse-e2e --bench run`).
//! Stack, heap and libraries keep their random addresses.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-no-pie");
        println!("cargo:rustc-link-arg-bins=-static-libgcc");
    }
}
