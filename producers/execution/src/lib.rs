//! The execution contract: what a backend is, what a profiling controller is, and the engine that drives both and
//! publishes every phase of the lifecycle.
//!
//! This crate runs nothing itself and knows no broker: backends, controllers and the event sink are handed in.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

pub mod backend;
pub mod enforcement;
pub mod engine;
pub mod outcome;
pub mod profiling;
pub mod sink;
pub mod spec;

pub use backend::{
    BackendError, ExecutionBackend, ExitReport, ExitStatus, OutputReport, StartedProcess, StopSignal,
};
pub use enforcement::{Enforcement, NoEnforcement};
pub use engine::{Engine, EngineReport};
pub use profiling::{
    Attachment, NoopController, ProfilingController, ProfilingError, ProfilingSession, ProfilingTarget,
};
pub use sink::{EventSink, SinkError};
pub use spec::{ExecutionSpec, GivenStreams, OutputTap, RunAs, StdStreams};
