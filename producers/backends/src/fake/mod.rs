//! A scripted backend, a scripted profiling controller and a recording sink: for tests of everything above them.

mod backend;
mod controller;
mod sink;

pub use backend::{Call, FakeBackend, Gate, Script};
pub use controller::FakeController;
pub use sink::RecordingSink;
