//! What a microVM boots from.
//!
//! ```text
//!   /boot, /lib/modules, or an unpacked package ──► kernel ──► vmlinux, modules in load order
//!                                                                  │
//!   a static /init ────────────────────────────────────────► initramfs ──► cpio archive
//!   a folder, a tar archive, an OCI layout ────────────────► rootfs ──► EROFS image
//! ```
//!
//! All bytes that come out are a function of the bytes that go in: no times, owners or orders of this machine.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod decompress;
pub mod initramfs;
pub mod kernel;
pub mod rootfs;

pub use decompress::UnpackError;
pub use initramfs::Initramfs;
pub use kernel::{Kernel, KernelError, Module};
