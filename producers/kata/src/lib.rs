//! The backend `kata`: a command in a container of containerd, made by its task service over its socket.
//!
//! ```text
//!   KataBackend -- gRPC --> containerd -- ttrpc --> shim of the runtime -- Kata: VM -- agent -- command
//!        |                                             |        \-------- runc: command
//!        \------------- named pipes -------------------/
//! ```
//! - [`Config::runtime`] names the shim. The tests make their containers by `io.containerd.runc.v2`; what was tried by hand with Kata's
//!   own shim, `io.containerd.kata.v2`, is in docs/kata.md.
//! - The start barrier is containerd's own: a task is created, and its process waits, until it is started.
//! - The command is not PID 1 of its namespace, which would be deaf to most signals: a process of ours is, and
//!   with it, or with us, everything in the namespace ends.
//!
//! The messages are the few of containerd's API that are needed, written out in `api`: nothing is generated, so building takes no
//! protobuf compiler.

#![cfg(target_os = "linux")]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod api;
mod backend;
mod cgroup;
mod client;
mod guest;
mod holder;
mod image;
mod node;
mod oci;
mod pump;
mod records;

pub use backend::{Config, DEFAULT_ADDRESS, DEFAULT_NAMESPACE, DEFAULT_RUNTIME, KataBackend};
pub use node::{has_image, ready};
