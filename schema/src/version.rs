//! Version constants of everything that is written down.
//!
//! A reader accepts every older version of each; a writer writes the one named here.

/// Grammar of a receipt, as its `version` field says it.
pub const RECEIPT: &str = "v0.4.0";
/// The established grammar that [`RECEIPT`] extends and that is exported on request.
pub const RECEIPT_V0_3: &str = "v0.3.0";
/// Wire version of a frame.
pub const FRAME: u8 = 3;
/// Version of the lifecycle event document.
pub const LIFECYCLE: u32 = 1;
/// Version of the verdict document.
pub const VERDICT: &str = "v1";
/// Version of the policy document.
pub const POLICY: &str = "v1";
/// Version of the dead letter document.
pub const DEAD_LETTER: u32 = 1;
/// Version of the request document.
pub const REQUEST: u32 = 1;
/// The subject prefix, whose second token is the version of the subject space.
pub const SUBJECTS: &str = "glasshouse.v1";
