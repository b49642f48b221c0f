//! Dead letters: what could not be processed, with the reason, so that nothing is dropped in silence.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::lifecycle::PhaseName;
use crate::subject::{self, EventSubject, EventSubjectKind};

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
    /// A request that no agent can read.
    Request,
}

impl DeadKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Frame, Self::Lifecycle, Self::Receipt, Self::Verdict, Self::Subject, Self::Request];

    /// The kind of a subject token.
    pub fn parse(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == token)
    }

    /// The kind as a subject token.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Lifecycle => "lifecycle",
            Self::Receipt => "receipt",
            Self::Verdict => "verdict",
            Self::Subject => "subject",
            Self::Request => "request",
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

/// Largest dead letter that is read, in bytes: what its stream takes at most.
pub const MAX_LETTER_BYTES: usize = 1024 * 1024;

/// Why a dead letter was refused.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// It is larger than a reader takes.
    #[error("the dead letter has {0} bytes, more than the {MAX_LETTER_BYTES} that are read")]
    TooLarge(usize),
    /// It is not JSON of this shape.
    #[error("the document is not a dead letter: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It was written by something newer.
    #[error("the dead letter has version {0}, newer than {supported}, the newest this reader knows", supported = crate::version::DEAD_LETTER)]
    TooNew(u32),
}

/// Why the message of a dead letter cannot be published again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayable {
    /// Receipts are made by aggregators only.
    #[error(
        "a receipt is stored once and made by an aggregator from its events: a letter about one is a record of what did not \
         fit, and there is nothing to publish again"
    )]
    Receipt,
    /// Verdicts are made by policy workers only.
    #[error(
        "a verdict is stored once and made by a policy worker from its receipt: a letter about one is a record of what did \
         not fit, and there is nothing to publish again"
    )]
    Verdict,
    /// No reader takes its subject.
    #[error("its subject is none of ours, so no worker could do anything with it")]
    Subject,
    /// Whoever submitted it has to say it otherwise.
    #[error("no agent can read the request, so it has to be submitted anew")]
    Request,
    /// Its subject is none that GH_EVENTS gives.
    #[error("its subject `{0}` is none under which GH_EVENTS stores what was published")]
    NotStored(String),
    /// Its subject is that of another kind of message.
    #[error("its subject is that of another kind of message than the letter says")]
    OtherKind,
    /// Only an aggregator ends an execution.
    #[error("a `closed` event ends an execution, and only an aggregator may say that")]
    Closed,
}

impl DeadLetter {
    /// How much of the body a dead letter quotes.
    pub const EXCERPT_BYTES: usize = 4096;

    /// Reads a document, its size and version checked first.
    pub fn decode(bytes: &[u8]) -> Result<Self, LetterError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        if bytes.len() > MAX_LETTER_BYTES {
            return Err(LetterError::TooLarge(bytes.len()));
        }
        match serde_json::from_slice::<Versioned>(bytes)?.schema_version {
            version if version > crate::version::DEAD_LETTER => Err(LetterError::TooNew(version)),
            _ => Ok(serde_json::from_slice(bytes)?),
        }
    }

    /// The first bytes of the body; `None` if they are not hexadecimal.
    pub fn excerpt(&self) -> Option<Vec<u8>> {
        let digits = self.body_excerpt_hex.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return None;
        }
        let value = |digit: u8| (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
        digits.chunks(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
    }

    /// The body, if the letter quotes all of it.
    pub fn whole_body(&self) -> Option<Vec<u8>> {
        self.excerpt().filter(|body| Digest::of(body) == self.body_digest)
    }

    /// The subject under which the message was published first and can be published again.
    pub fn replay_subject(&self) -> Result<String, NotReplayable> {
        match self.kind {
            DeadKind::Receipt => return Err(NotReplayable::Receipt),
            DeadKind::Verdict => return Err(NotReplayable::Verdict),
            DeadKind::Subject => return Err(NotReplayable::Subject),
            DeadKind::Request => return Err(NotReplayable::Request),
            DeadKind::Frame | DeadKind::Lifecycle => {}
        }
        let not_stored = || NotReplayable::NotStored(self.subject.chars().take(256).collect());
        let event = EventSubject::parse(&self.subject).map_err(|_| not_stored())?;
        let published = subject::published(&self.subject).ok_or_else(not_stored)?;
        match (self.kind, event.kind) {
            (_, EventSubjectKind::Lifecycle(PhaseName::Closed)) => Err(NotReplayable::Closed),
            (DeadKind::Frame, EventSubjectKind::Frame(_))
            | (DeadKind::Lifecycle, EventSubjectKind::Lifecycle(_)) => Ok(published),
            _ => Err(NotReplayable::OtherKind),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ExecutionId, NodeId, Vantage};

    fn letter(kind: DeadKind, subject: &str, body: &[u8]) -> DeadLetter {
        DeadLetter::new(kind, "reason", subject, ("GH_EVENTS", 7), body, "worker")
    }

    #[test]
    fn a_short_body_is_whole_and_a_long_one_is_not() {
        let short = letter(DeadKind::Frame, "s", &[7; DeadLetter::EXCERPT_BYTES]);
        assert_eq!(short.whole_body().unwrap(), [7; DeadLetter::EXCERPT_BYTES]);
        let long = letter(DeadKind::Frame, "s", &[7; DeadLetter::EXCERPT_BYTES + 1]);
        assert_eq!(long.whole_body(), None);
        let mut forged = short.clone();
        for hex in ["0", "zz", "+1", "00"] {
            forged.body_excerpt_hex = hex.into();
            assert_eq!(forged.whole_body(), None, "{hex}");
        }
        let bytes = crate::canonical::to_vec(&short).unwrap();
        assert_eq!(DeadLetter::decode(&bytes).unwrap(), short);
        let newer = DeadLetter { schema_version: 9, ..short };
        let newer = crate::canonical::to_vec(&newer).unwrap();
        assert!(matches!(DeadLetter::decode(&newer), Err(LetterError::TooNew(9))));
    }

    #[test]
    fn events_are_replayed_under_the_subject_of_their_publisher_and_nothing_else_is() {
        let (node, id) = (NodeId::new("n.1").unwrap(), ExecutionId::from_parts(1, [1; 10]));
        let frames = subject::frames(&node, id, Vantage::Host);
        let stored = subject::stored(3, &frames).unwrap();
        assert_eq!(letter(DeadKind::Frame, &stored, b"x").replay_subject(), Ok(frames.clone()));
        let refused = [
            (DeadKind::Receipt, subject::receipt(id), NotReplayable::Receipt),
            (DeadKind::Verdict, subject::receipt(id), NotReplayable::Verdict),
            (DeadKind::Subject, stored.clone(), NotReplayable::Subject),
            (DeadKind::Lifecycle, stored, NotReplayable::OtherKind),
            (DeadKind::Frame, frames.clone(), NotReplayable::NotStored(frames)),
            (
                DeadKind::Lifecycle,
                subject::stored(3, &subject::lifecycle(None, id, PhaseName::Closed)).unwrap(),
                NotReplayable::Closed,
            ),
        ];
        for (kind, subject, why) in refused {
            assert_eq!(letter(kind, &subject, b"x").replay_subject(), Err(why));
        }
    }
}
