//! Commands in virtual machines, watched from inside, from outside, or both.
//!
//! - [`VmBackend`]: the backend around any VMM; [`Vmm`] is what a VMM has to do, [`qemu`] and [`firecracker`] are two.
//! - [`GuestController`]: the vantage point `guest` of such a backend.
//! - `session`: the host's end of the link to a guest (`glasshouse-guest-link`), shared by all of them.
//! - [`bridge`]: what a guest may put on the bus, which is frames of its own execution in one unbroken chain.
//!
//! Empty elsewhere than on Linux.
//!
//! [docs/vm.md](../../../docs/vm.md) says how it all goes together.

#![cfg(target_os = "linux")]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod backend;
pub mod bridge;
mod dirs;
pub mod firecracker;
mod guest;
mod image;
mod kept;
pub mod nats;
mod origin;
mod parts;
pub mod qemu;
pub mod remote;
mod session;
mod templates;
mod transport;
mod vmm;

pub use backend::{Kept, VmBackend};
pub use guest::GuestController;
pub use parts::{KERNEL_VARIABLE, PROBE_VARIABLE, Parts, PartsError, guest_probe};
pub use templates::Templates;
pub use transport::{GuestTransport, Link, LinkError};
pub use vmm::{GuestLink, Launch, Surroundings, Vmm};
