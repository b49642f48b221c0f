//! What Glasshouse says on the wire and in a receipt: ids, subjects, events, frames, lifecycle, receipts and
//! verdicts, with their versions and their one codec.
//!
//! Invariants of this crate:
//! - no I/O, no clock, no async: every value is a function of its inputs;
//! - a subject, a header name or a message id is built here and nowhere else;
//! - every decoder checks magic, version and size before it parses, and returns an error on any input
//!   (nothing here panics on what the network, a guest or a file said).

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

pub mod admission;
pub mod canonical;
pub mod connect;
pub mod dead;
pub mod errno;
pub mod event;
pub mod files;
pub mod frame;
pub mod headers;
pub mod ids;
pub mod json_schema;
pub mod lifecycle;
pub mod limits;
pub mod node;
pub mod receipt;
pub mod redact;
pub mod request;
pub mod sandbox;
pub mod subject;
pub mod time;
pub mod verdict;
pub mod version;
pub mod words;

pub use connect::{ConnectHost, ConnectTarget};
pub use event::{
    Address, Class, Counters, Event, ExecFlags, Fact, FileChange, Operation, PathFlags, PathRef,
    SocketOperation, Usage,
};
pub use files::{Files, SkippedFile, StoredFile};
pub use frame::{DecodeError, EncodedFrame, Frame, FrameWriter};
pub use ids::{Digest, ExecutionId, IdError, NodeId, PolicyName, PoolName, ProcessKey, Vantage};
pub use lifecycle::{LifecycleEvent, Phase};
pub use limits::{Limit, Limits};
pub use receipt::Receipt;
pub use request::Request;
pub use sandbox::{NetworkAccess, SandboxLevel, SandboxRequest};
pub use verdict::Verdict;
