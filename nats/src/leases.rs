//! The bucket of leases: who is alive, and who holds what. What the keys mean is the workers' business; this stores
//! them by compare-and-set and tells of every change in the order in which the server took it.

use async_nats::HeaderMap;
use bytes::Bytes;
use std::time::Duration;

use crate::connect::Bus;
use crate::error::Error;
use crate::keys::{checked_subject, is_removed};
use crate::reader::{EventReader, StreamStart};
use crate::store::{Put, StoredMessage, Write};

/// How long a write is tried: a lease that comes late is worth nothing.
const DEADLINE: Duration = Duration::from_secs(2);
const STREAM: &str = "KV_GH_LEASES";

/// The bucket of leases.
#[derive(Debug, Clone)]
pub struct Leases {
    bus: Bus,
}

/// A key was written or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseChange {
    /// The key.
    pub key: String,
    /// Its revision from now on.
    pub revision: u64,
    /// When the server took it, nanoseconds since the Unix epoch by the server's clock: comparable among the changes of one
    /// bucket, whatever the clocks of those who wrote them say.
    pub stored_unix_ns: i128,
    /// What is stored; `None` if the key was removed, by somebody or by its age.
    pub bytes: Option<Bytes>,
}

impl LeaseChange {
    /// Reads a message of [`Leases::watch`]; `None` for one that is under no key.
    pub fn of(message: &StoredMessage) -> Option<Self> {
        let prefix = format!("$KV.{}.", crate::LEASES);
        Some(Self {
            key: message.subject.strip_prefix(&prefix)?.to_owned(),
            revision: message.stream_seq,
            stored_unix_ns: message.stored_unix_ns,
            bytes: (!is_removed(message)).then(|| message.payload.clone()),
        })
    }
}

impl Leases {
    /// Leases on `bus`.
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// Writes a key whose revision is `expected` (0: it was never written) and gives the new one; `None` when somebody else
    /// wrote meanwhile.
    pub async fn put(&self, key: &str, bytes: Bytes, expected: u64) -> Result<Option<u64>, Error> {
        self.write(key, HeaderMap::new(), bytes, expected).await
    }

    /// Removes a key whose revision is `expected`; `None` when somebody else wrote meanwhile.
    pub async fn remove(&self, key: &str, expected: u64) -> Result<Option<u64>, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(crate::keys::KV_OPERATION, "DEL");
        self.write(key, headers, Bytes::new(), expected).await
    }

    /// Every key as it is now, and then every change. For [`LeaseChange::of`].
    pub async fn watch(&self) -> Result<EventReader, Error> {
        self.bus.read(STREAM, StreamStart::Oldest, Vec::new()).await
    }

    async fn write(
        &self,
        key: &str,
        headers: HeaderMap,
        payload: Bytes,
        expected: u64,
    ) -> Result<Option<u64>, Error> {
        let subject = checked_subject(crate::LEASES, key)?;
        let write = Write {
            stream: STREAM,
            subject: &subject,
            stored_as: &subject,
            expected,
            headers,
            payload: payload.clone(),
        };
        match self.bus.put(write, DEADLINE).await? {
            Put::Stored(revision) => Ok(Some(revision)),
            // Ours, and only its acknowledgement was lost.
            Put::Conflict(Some(found)) if found.stream_seq > expected && found.payload == payload => {
                Ok(Some(found.stream_seq))
            }
            Put::Conflict(_) => Ok(None),
        }
    }
}
