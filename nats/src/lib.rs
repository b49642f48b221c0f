//! Glasshouse on NATS JetStream: the streams as data, a publisher that says what was not stored, readers that survive
//! a reconnect, and a supervised local server.
//!
//! ```text
//! streams/*.toml -> Topology::check / apply            what must exist, never overwritten
//! Publisher      -> GH_EVENTS (pipelined, in order)    GH_RECEIPTS, GH_VERDICTS, closed (created once)
//! SpooledPublisher -> GH_EVENTS, by way of a bounded Spool on disk while the bus does not take them
//! EventReader    <- GH_EVENTS (no per-message acks)    ReceiptConsumer <- GH_RECEIPTS (ack, or NAK when dropped)
//! Snapshot       <- any stream, as far as it goes now  DeadLetter -> what it is about, and back to GH_EVENTS
//! Bus::store_file, fetch_file -> GH_FILES              files of executions, each once
//! Claims, Checkpoints, Leases                          compare-and-set on key-value buckets
//! Bus::lend_room, take_room_back                       a stream that is full of what cannot end
//! Heartbeat      -> GH_NODES                           this process lives; the server forgets it by its own clock
//! ```
//!
//! Invariants of this crate:
//! - every effect is idempotent: what is sent again after a lost acknowledgement changes nothing;
//! - a server older than [`MIN_SERVER_VERSION`] is refused, because it would ignore settings in silence;
//! - no error is retried without a deadline, and what was not stored is counted in the error;
//! - nothing here panics on what a broker said.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod body;
mod connect;
mod control;
mod delivery;
mod encoding;
mod error;
mod files;
mod heartbeats;
mod keys;
mod leases;
mod letters;
mod output;
mod pipeline;
mod publisher;
mod reader;
mod receipts;
mod requests;
mod reserve;
mod retry;
pub mod server;
mod snapshot;
mod spool;
mod spooled;
mod store;
pub mod topology;
pub mod trace;
mod trim;

pub use body::{Document, MANIFEST_TYPE, MAX_INLINE_BYTES, Manifest};
pub use connect::{Bus, ConnectOptions, MIN_SERVER_VERSION, connect, without_secrets};
pub use control::{Asked, Controls};
pub use delivery::Delivery;
pub use encoding::{Encoding, EncodingError};
pub use error::{Error, ErrorKind};
pub use files::digest_of;
pub use heartbeats::{Heartbeat, NodeEntry, Producer};
pub use keys::{Checkpoint, CheckpointPut, Checkpoints, Claim, ClaimOutcome, Claims};
pub use leases::{LeaseChange, Leases};
pub use letters::{LetterBody, Replayed};
pub use output::{OutputChunk, OutputReader, OutputWriter};
pub use publisher::{ClosedOutcome, Outcome, Publisher, PublisherOptions, partition_of};
pub use reader::{EventReader, StreamPosition, StreamStart, Tail};
pub use receipts::{POLICY_WORKERS, ReceiptConsumer};
pub use requests::{QueuedRequest, RequestQueue};
pub use server::{ClusterMember, NatsServer, ServerOptions, SyncInterval, write_secret};
pub use snapshot::Snapshot;
#[doc(hidden)]
pub use spool::fuzz as spool_fuzz;
pub use spool::{Leftover, Spool, SpoolError, SpoolOptions};
pub use spooled::{SpoolState, SpooledOptions, SpooledPublisher};
pub use store::StoredMessage;
pub use topology::{Applied, Difference, Topology};

/// Frames and lifecycle events.
pub const EVENTS: &str = "GH_EVENTS";
/// Receipts.
pub const RECEIPTS: &str = "GH_RECEIPTS";
/// Verdicts.
pub const VERDICTS: &str = "GH_VERDICTS";
/// Execution requests.
pub const REQUESTS: &str = "GH_REQUESTS";
/// Live output.
pub const OUTPUT: &str = "GH_OUTPUT";
/// Dead letters.
pub const DEAD: &str = "GH_DEAD";
/// The object store of large bodies.
pub const BODIES: &str = "GH_BODIES";
/// The object store of files that executions are given, and of those that are taken from them.
pub const FILES: &str = "GH_FILES";
/// The key-value bucket of claims.
pub const CLAIMS: &str = "GH_CLAIMS";
/// The key-value bucket of checkpoints.
pub const CHECKPOINTS: &str = "GH_CHECKPOINTS";
/// The key-value bucket of leases.
pub const LEASES: &str = "GH_LEASES";
/// The key-value bucket of node heartbeats.
pub const NODES: &str = "GH_NODES";
/// The key-value bucket of policies.
pub const POLICIES: &str = "GH_POLICIES";
