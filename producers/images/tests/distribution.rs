//! The kernel of a distribution: the one that `GLASSHOUSE_KERNEL` names (an image, or a folder), else an installed one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use glasshouse_images::{Kernel, KernelError};

const WANTED: [&str; 8] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "overlay",
    "erofs",
    "virtiofs",
];

#[test]
fn a_distributions_kernel_unpacks_and_its_modules_are_in_order() {
    let named = std::env::var_os("GLASSHOUSE_KERNEL").map(PathBuf::from);
    let kernel = match Kernel::find(named.as_deref().unwrap_or(Path::new("/"))) {
        Err(error @ KernelError::NotFound(_)) if named.is_none() => {
            println!("skipped: {error}; or set GLASSHOUSE_KERNEL");
            return;
        }
        found => found.unwrap(),
    };
    let cache = tempfile::tempdir().unwrap();
    let vmlinux = std::fs::read(kernel.vmlinux(cache.path()).unwrap()).unwrap();
    assert!(vmlinux.starts_with(b"\x7fELF"));
    let banner = format!("Linux version {} ", kernel.release);
    assert!(vmlinux.windows(banner.len()).any(|window| window == banner.as_bytes()));

    let modules = kernel.modules(&WANTED).unwrap();
    let at = |name: &str| modules.iter().position(|module| module.name == name);
    println!(
        "{}: {} MiB, modules {:?}",
        kernel.release,
        vmlinux.len() >> 20,
        modules.iter().map(|module| &module.name).collect::<Vec<_>>()
    );
    for wanted in WANTED {
        assert!(at(wanted).is_some() || kernel.offers(&[wanted]).unwrap() == [wanted], "{wanted}");
    }
    for (first, second) in [("virtio_ring", "virtio_mmio"), ("virtio", "virtio_blk"), ("libcrc32c", "erofs")]
    {
        assert!(at(first) <= at(second), "{first} before {second}");
    }
}
