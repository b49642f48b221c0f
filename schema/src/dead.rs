//! Dead letters: what could not be processed, with the reason, so that nothing is dropped in silence.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// What kind of message could not be processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeadKind {
    /// A profiling frame.
    Frame,
    /// A lifecycle event.
    Lifecycle,
    /// A receipt, or two receipts of one execution that differ.
    Receipt,
    /// A verdict, or two verdicts that differ.
    Verdict,
    /// A message under a subject that is none of ours.
    Subject,
}

impl DeadKind {
    /// The kind as a subject token.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Lifecycle => "lifecycle",
            Self::Receipt => "receipt",
            Self::Verdict => "verdict",
            Self::Subject => "subject",
        }
    }
}

/// One dead letter. The body that could not be processed is the message `stream_seq` of `stream`; its first bytes
/// stand here too, because the stream may be trimmed before somebody looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// Version of this document.
    pub schema_version: u32,
    /// What kind of message it was.
    pub kind: DeadKind,
    /// Why it could not be processed.
    pub reason: String,
    /// The subject it came under.
    pub subject: String,
    /// The stream it came from.
    pub stream: String,
    /// Its sequence in that stream, decimal.
    #[serde(with = "crate::canonical::decimal")]
    #[schemars(with = "String")]
    pub stream_seq: u64,
    /// SHA-256 of the body.
    pub body_digest: Digest,
    /// Length of the body in bytes.
    pub body_bytes: u32,
    /// The body's first [`DeadLetter::EXCERPT_BYTES`] bytes, hexadecimal.
    pub body_excerpt_hex: String,
    /// The worker that gave up on it.
    pub worker: String,
}

impl DeadLetter {
    /// How much of the body a dead letter quotes.
    pub const EXCERPT_BYTES: usize = 4096;

    /// Describes a message that could not be processed.
    pub fn new(
        kind: DeadKind,
        reason: impl Into<String>,
        subject: &str,
        (stream, stream_seq): (&str, u64),
        body: &[u8],
        worker: &str,
    ) -> Self {
        let excerpt = &body[..body.len().min(Self::EXCERPT_BYTES)];
        Self {
            schema_version: crate::version::DEAD_LETTER,
            kind,
            reason: reason.into(),
            subject: subject.to_owned(),
            stream: stream.to_owned(),
            stream_seq,
            body_digest: Digest::of(body),
            body_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
            body_excerpt_hex: excerpt.iter().map(|byte| format!("{byte:02x}")).collect(),
            worker: worker.to_owned(),
        }
    }
}
