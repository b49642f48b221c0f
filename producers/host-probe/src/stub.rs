//! Other systems than Linux: everything says that the probe needs Linux.

use crate::{LoadOptions, ProbeError, SealReport, WatchRequest};

fn unsupported() -> ProbeError {
    ProbeError::Unsupported { os: std::env::consts::OS }
}

/// The probe of a node; on this system it can't be loaded.
#[derive(Debug)]
pub struct HostProbe {
    never: std::convert::Infallible,
}

/// An execution being watched; on this system there is none.
#[derive(Debug)]
pub struct Watch {
    never: std::convert::Infallible,
}

impl HostProbe {
    /// Always [`ProbeError::Unsupported`].
    pub fn load(_: &LoadOptions) -> Result<Self, ProbeError> {
        Err(unsupported())
    }

    /// Never called, since there is no probe.
    pub fn watch(&self, _: WatchRequest) -> Result<Watch, ProbeError> {
        match self.never {}
    }

    /// The tracepoints that are attached.
    pub fn hooks(&self) -> Vec<&'static str> {
        match self.never {}
    }
}

impl Watch {
    /// Never called, since there is no watch.
    pub fn seal(self) -> Result<SealReport, ProbeError> {
        match self.never {}
    }

    /// Never called either.
    pub async fn sealed(self) -> Result<SealReport, ProbeError> {
        match self.never {}
    }
}
