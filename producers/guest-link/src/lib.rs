//! The link between the host and the probe inside a virtual machine.
//!
//! ```text
//!   host                                     guest
//!                    <── Hello                 the probe runs
//!   Spec             ──>
//!                    <── Held | Failed         the command's process exists, held at its barrier
//!   Attach           ──>                       only if it is to be watched
//!                    <── Attached
//!   Release          ──>
//!                    <── Running | Failed      it runs
//!   Stdin… Signal…   <─> Stdout… Stderr… Frame… Exceeded
//!                    <── Exit                  the root ended
//!   Drain            ──>
//!                    <── Drained               nothing of the command is left, all output was sent
//!   Seal             ──>                       only if it is watched
//!                    <── Frame (the seal), Sealed
//!   Shutdown         ──>                       the machine powers off
//! ```
//! Heartbeats come from the spec on: between its greeting and its spec a guest says nothing, so that its machine, and the link with it,
//! can be kept and restored there. Credit goes both ways.
//!
//! - One packet per message ([`codec`]): magic, version, kind, length, checksum. A length is checked before anything is
//!   allocated, because a guest is hostile.
//! - Standard streams have credit ([`credit`]): no more is on its way than the receiver has room for. So a command whose
//!   output nobody reads is held up, and frames, heartbeats and signals are not.
//! - What a guest may say when is not known here: that is the host's business (`glasshouse-vm`).

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

pub mod codec;
pub mod credit;
pub mod loopback;
pub mod message;
#[cfg(target_os = "linux")]
pub mod shared;
pub mod transport;

pub use codec::{Decoder, LinkError, MAX_CHUNK_BYTES, encode};
pub use message::{
    Attach, Clock, Drained, Exit, Failure, Hello, Message, Sealed, Spec, Status, Stream, ToGuest, ToHost,
};
pub use transport::{Address, Guest, Receiver, Sender, StreamReceiver, StreamSender, Transport};

/// Random bytes that a guest gets with its command: as many as the seed of its kernel's generator has (`BLAKE2S_HASH_SIZE`).
pub const ENTROPY_BYTES: usize = 32;
/// The version of all of this. Both ends are built from one tree: a difference is an error, not something to be bridged.
pub const VERSION: u8 = 1;
