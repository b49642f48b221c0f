//! Claims and checkpoints: key-value buckets written create-only or by compare-and-set. A key's revision is the sequence
//! of its last message in the bucket's stream.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use glasshouse_schema::{Digest, ExecutionId, NodeId, headers};
use serde::{Deserialize, Serialize};

use crate::body::{MAX_INLINE_BYTES, manifest_of};
use crate::connect::Bus;
use crate::error::{Error, ErrorKind};
use crate::heartbeats::Heartbeat;
use crate::store::{Put, StoredMessage, Write};

/// ADR-8: a message of a bucket with this header (`DEL`, `PURGE`) says that the key is deleted.
pub(crate) const KV_OPERATION: &str = "KV-Operation";
/// ADR-48: the server removed the key because of its age, and leaves a message with this header.
const MARKER_REASON: &str = "Nats-Marker-Reason";
/// How often a large checkpoint that a connected server does not give is asked for.
const OBJECT_ATTEMPTS: u32 = 2;
/// How long a write is tried.
const DEADLINE: Duration = Duration::from_secs(15);

/// Who took an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node.
    pub node: NodeId,
    /// Tells this attempt apart from an earlier one of the same node.
    pub attempt: String,
    /// The process, if it keeps a heartbeat ([`crate::Heartbeat`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

/// What became of an attempt to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The execution is ours, under this epoch.
    Taken {
        /// The claim's revision.
        epoch: u64,
    },
    /// It was claimed before, perhaps by this very node before it restarted: it must not run again.
    Held {
        /// Who holds it; `None` if the admin role deleted the claim, which does not free it.
        claim: Option<Claim>,
        /// The claim's revision.
        epoch: u64,
    },
}

/// The bucket of claims: an execution is taken once, for ever.
#[derive(Debug, Clone)]
pub struct Claims {
    bus: Bus,
}

impl Claims {
    /// Claims on `bus`.
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// Takes an execution for a node without a heartbeat, unless anybody took it before.
    pub async fn take(&self, execution: ExecutionId, node: &NodeId) -> Result<ClaimOutcome, Error> {
        self.put(execution, node, None).await
    }

    /// Takes an execution for the process that has this heartbeat, unless anybody took it before.
    pub async fn take_for(
        &self,
        execution: ExecutionId,
        heartbeat: &Heartbeat,
    ) -> Result<ClaimOutcome, Error> {
        self.put(execution, heartbeat.node(), Some(heartbeat.instance().to_owned())).await
    }

    async fn put(
        &self,
        execution: ExecutionId,
        node: &NodeId,
        instance: Option<String>,
    ) -> Result<ClaimOutcome, Error> {
        let subject = key_subject(crate::CLAIMS, &execution.to_string());
        let attempt = format!("{:016x}{:016x}", crate::retry::random_u64(), crate::retry::random_u64());
        let claim = Claim { node: node.clone(), attempt, instance };
        let payload = glasshouse_schema::canonical::to_vec(&claim)
            .map_err(|source| Error::Encode { subject: subject.clone(), source })?;
        let write = Write {
            stream: CLAIMS_STREAM,
            subject: &subject,
            stored_as: &subject,
            expected: 0,
            headers: HeaderMap::new(),
            payload: payload.into(),
        };
        match self.bus.put(write, DEADLINE).await? {
            Put::Stored(epoch) => Ok(ClaimOutcome::Taken { epoch }),
            Put::Conflict(None) => Ok(ClaimOutcome::Held { claim: None, epoch: 0 }),
            Put::Conflict(Some(stored)) => {
                let epoch = stored.stream_seq;
                Ok(match read_claim(&stored)? {
                    // Ours: only its acknowledgement was lost.
                    Some(held) if held == claim => ClaimOutcome::Taken { epoch },
                    claim => ClaimOutcome::Held { claim, epoch },
                })
            }
        }
    }

    /// Who holds an execution, and under which epoch; `None` if nobody ever took it.
    pub async fn get(&self, execution: ExecutionId) -> Result<Option<(Option<Claim>, u64)>, Error> {
        let subject = key_subject(crate::CLAIMS, &execution.to_string());
        match self.bus.last(CLAIMS_STREAM, &subject, DEADLINE).await? {
            Some(stored) => Ok(Some((read_claim(&stored)?, stored.stream_seq))),
            None => Ok(None),
        }
    }
}

const CLAIMS_STREAM: &str = "KV_GH_CLAIMS";
const CHECKPOINTS_STREAM: &str = "KV_GH_CHECKPOINTS";

fn read_claim(stored: &StoredMessage) -> Result<Option<Claim>, Error> {
    if is_removed(stored) {
        return Ok(None);
    }
    serde_json::from_slice(&stored.payload)
        .map(Some)
        .map_err(|error| stored.bad(format!("it is not a claim: {error}")))
}

/// The bucket of checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    bus: Bus,
}

/// What is stored under a key, and the handle to replace it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// The key's revision; 0 if nothing was ever written.
    pub revision: u64,
    /// The bytes; `None` if there are none.
    pub bytes: Option<Bytes>,
    /// The object that holds them where they are large.
    object: Option<String>,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointPut {
    /// It is stored; replace it with this in hand.
    Stored(Checkpoint),
    /// Somebody else wrote since: this is what is there now.
    Conflict(Checkpoint),
}

impl Checkpoints {
    /// Checkpoints on `bus`.
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// What is stored under `key` (letters, digits, `-`, `_`, `.`). Bytes that are damaged or missing in the object store are
    /// said in the log and count as none: what they hold can be had again from the stream, and they can be replaced.
    pub async fn get(&self, key: &str) -> Result<Checkpoint, Error> {
        let subject = checked_subject(crate::CHECKPOINTS, key)?;
        self.read(self.bus.last(CHECKPOINTS_STREAM, &subject, DEADLINE).await?).await
    }

    /// Replaces `previous`, if it is still what is stored. Writing the same bytes again after a lost acknowledgement
    /// is a success. Large bytes go to the object store, and those they replace are removed from it.
    pub async fn put(&self, key: &str, bytes: &[u8], previous: &Checkpoint) -> Result<CheckpointPut, Error> {
        let subject = checked_subject(crate::CHECKPOINTS, key)?;
        let mut headers = HeaderMap::new();
        // Its own object, though another key may hold the same bytes: it is removed when this key moves on.
        let owner = format!("{key}/");
        let (digest, payload) =
            self.bus.wrap(&owner, bytes, "application/octet-stream", &mut headers).await?;
        let object = (bytes.len() > MAX_INLINE_BYTES).then(|| format!("{owner}{digest}"));
        let stored =
            |revision, object| Checkpoint { revision, bytes: Some(Bytes::copy_from_slice(bytes)), object };
        let write = Write {
            stream: CHECKPOINTS_STREAM,
            subject: &subject,
            stored_as: &subject,
            expected: previous.revision,
            headers,
            payload,
        };
        match self.bus.put(write, DEADLINE).await? {
            Put::Stored(revision) => {
                if let Some(old) = previous.object.as_ref().filter(|old| Some(*old) != object.as_ref()) {
                    self.bus.discard_body(old).await;
                }
                Ok(CheckpointPut::Stored(stored(revision, object)))
            }
            Put::Conflict(found) => {
                if let Some(found) = &found
                    && found.stream_seq > previous.revision
                    && found.header(headers::DIGEST).and_then(|text| text.parse::<Digest>().ok())
                        == Some(digest)
                {
                    return Ok(CheckpointPut::Stored(stored(found.stream_seq, object)));
                }
                Ok(CheckpointPut::Conflict(self.read(found).await?))
            }
        }
    }

    async fn read(&self, message: Option<StoredMessage>) -> Result<Checkpoint, Error> {
        let Some(message) = message else { return Ok(Checkpoint::default()) };
        let revision = message.stream_seq;
        if is_removed(&message) {
            return Ok(Checkpoint { revision, ..Checkpoint::default() });
        }
        let object = match manifest_of(&message) {
            Ok(manifest) => manifest.map(|manifest| manifest.object),
            Err(error) => return Ok(damaged(revision, None, &error)),
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.bus.resolve(message.clone()).await {
                Ok(document) => return Ok(Checkpoint { revision, bytes: Some(document.body), object }),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Poison => return Ok(damaged(revision, object, &error)),
                ErrorKind::Fatal => return Err(error),
                // A chunk that is missing looks like a server that does not answer.
                ErrorKind::Retryable if !self.bus.is_connected() => return Err(error),
                ErrorKind::Retryable if attempts >= OBJECT_ATTEMPTS => {
                    return Ok(damaged(revision, object, &error));
                }
                ErrorKind::Retryable => {}
            }
        }
    }
}

fn damaged(revision: u64, object: Option<String>, error: &Error) -> Checkpoint {
    tracing::warn!(revision, %error, "checkpoint cannot be read and counts as empty");
    Checkpoint { revision, bytes: None, object }
}

pub(crate) fn key_subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

/// Whether a message of a bucket says that its key is gone.
pub(crate) fn is_removed(message: &StoredMessage) -> bool {
    message.header(KV_OPERATION).is_some() || message.header(MARKER_REASON).is_some()
}

pub(crate) fn checked_subject(bucket: &str, key: &str) -> Result<String, Error> {
    let token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    match key.split('.').all(token) {
        true => Ok(key_subject(bucket, key)),
        false => Err(Error::Broker {
            operation: "use as a key",
            target: key.escape_default().to_string(),
            kind: crate::ErrorKind::Fatal,
            source: "a key is made of letters, digits, `-`, `_` and single dots".into(),
        }),
    }
}
