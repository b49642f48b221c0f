//! Documents and large bodies: what is above [`MAX_INLINE_BYTES`] lies in the object store under its SHA-256, and
//! the message is a [`Manifest`]. Reading resolves it and verifies the digest.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::object_store::{GetErrorKind, InfoErrorKind, ObjectStore};
use bytes::Bytes;
use glasshouse_schema::{Digest, headers};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::connect::Bus;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::store::StoredMessage;

/// Bodies up to this size travel in their message.
pub const MAX_INLINE_BYTES: usize = 512 * 1024;
/// Media type of a [`Manifest`].
pub const MANIFEST_TYPE: &str = "application/vnd.glasshouse.manifest+json";
/// A larger body is not read, whatever its manifest says.
const MAX_BODY_BYTES: u64 = 256 * 1024 * 1024;
const MANIFEST_VERSION: u32 = 1;

/// Where a large body lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this document.
    pub manifest: u32,
    /// SHA-256 of the body.
    pub digest: Digest,
    /// Length of the body.
    pub bytes: u64,
    /// Name of the object in GH_BODIES.
    pub object: String,
}

/// A message whose body is in hand and has the digest that its header says.
#[derive(Debug, Clone)]
pub struct Document {
    /// The message; its payload is the manifest where the body is large.
    pub message: StoredMessage,
    /// SHA-256 of the body.
    pub digest: Digest,
    /// The body.
    pub body: Bytes,
}

impl Bus {
    async fn bodies(&self) -> Result<ObjectStore, Error> {
        self.jetstream()
            .get_object_store(crate::BODIES)
            .await
            .map_err(|error| Error::broker("open object store", crate::BODIES, error))
    }

    /// What to put into a message for `body`: the body itself or, once it is stored, its manifest.
    /// Stamps content type and digest. `owner` keeps objects apart that are removed at different times.
    pub(crate) async fn wrap(
        &self,
        owner: &str,
        body: &[u8],
        content_type: &str,
        headers: &mut HeaderMap,
    ) -> Result<(Digest, Bytes), Error> {
        let digest = Digest::of(body);
        headers.insert(headers::DIGEST, digest.to_string());
        if body.len() <= MAX_INLINE_BYTES {
            headers.insert(headers::CONTENT_TYPE, content_type);
            return Ok((digest, Bytes::copy_from_slice(body)));
        }
        let object = format!("{owner}{digest}");
        let mut backoff = Backoff::until(self.timeout() * 3);
        while let Err(error) = self.store_body(&object, body).await {
            if error.kind() != ErrorKind::Retryable || !backoff.wait().await {
                return Err(error);
            }
        }
        headers.insert(headers::CONTENT_TYPE, MANIFEST_TYPE);
        let manifest = Manifest { manifest: MANIFEST_VERSION, digest, bytes: body.len() as u64, object };
        let payload = glasshouse_schema::canonical::to_vec(&manifest)
            .map_err(|source| Error::Encode { subject: manifest.object, source })?;
        Ok((digest, payload.into()))
    }

    async fn store_body(&self, object: &str, body: &[u8]) -> Result<(), Error> {
        let store = self.bodies().await?;
        // Objects are named by content: what is there is the same, and writing again would move it under its readers.
        match store.info(object).await {
            Ok(info) if info.size == body.len() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == InfoErrorKind::NotFound => {}
            Err(error) => return Err(Error::broker("store object", object, error)),
        }
        let mut reader = body;
        store
            .put(object, &mut reader)
            .await
            .map(|_| ())
            .map_err(|error| Error::broker("store object", object, error))
    }

    /// The document that a message holds or points to, its digest verified.
    pub async fn resolve(&self, message: StoredMessage) -> Result<Document, Error> {
        let said = match message.header(headers::DIGEST) {
            Some(text) => Some(text.parse::<Digest>().map_err(|error| message.bad(error))?),
            None => None,
        };
        let body = match manifest_of(&message)? {
            None => message.payload.clone(),
            Some(manifest) => {
                if said.is_some_and(|digest| digest != manifest.digest) {
                    return Err(message.bad("its manifest names another digest than its header"));
                }
                self.fetch(&message, &manifest).await?
            }
        };
        let digest = Digest::of(&body);
        match said {
            Some(said) if said != digest => {
                Err(message.bad(format!("its body has digest {digest}, and its header says {said}")))
            }
            _ => Ok(Document { message, digest, body }),
        }
    }

    async fn fetch(&self, message: &StoredMessage, manifest: &Manifest) -> Result<Bytes, Error> {
        // The client waits for a missing chunk for ever, so the deadline is ours: the usual one, and a second a megabyte.
        let deadline = self.timeout() + Duration::from_secs(manifest.bytes >> 20);
        match tokio::time::timeout(deadline, self.try_fetch(message, manifest)).await {
            Ok(result) => result,
            Err(elapsed) => Err(Error::broker("read object", &manifest.object, elapsed)),
        }
    }

    async fn try_fetch(&self, message: &StoredMessage, manifest: &Manifest) -> Result<Bytes, Error> {
        let store = self.bodies().await?;
        let object = match store.get(&manifest.object).await {
            Ok(object) => object,
            Err(error) if error.kind() == GetErrorKind::NotFound => {
                return Err(message.bad(format!("its body {} is not in the object store", manifest.object)));
            }
            Err(error) => return Err(Error::broker("read object", &manifest.object, error)),
        };
        let mut body = Vec::new();
        object
            .take(manifest.bytes.saturating_add(1))
            .read_to_end(&mut body)
            .await
            .map_err(|error| Error::broker("read object", &manifest.object, error))?;
        if body.len() as u64 != manifest.bytes || Digest::of(&body) != manifest.digest {
            return Err(message.bad("its body in the object store is not the one its manifest describes"));
        }
        Ok(body.into())
    }

    /// Removes the body of a message that nothing points to any more; a failure only costs space.
    pub(crate) async fn discard_body(&self, object: &str) {
        let removed = match self.bodies().await {
            Ok(store) => store.delete(object).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = removed {
            tracing::debug!(object, error, "old body not removed");
        }
    }
}

/// The manifest that a message is, if it is one; size and version checked first.
pub(crate) fn manifest_of(message: &StoredMessage) -> Result<Option<Manifest>, Error> {
    if message.header(headers::CONTENT_TYPE) != Some(MANIFEST_TYPE) {
        return Ok(None);
    }
    if message.payload.len() > 4096 {
        return Err(message.bad("its manifest is larger than 4096 bytes"));
    }
    let manifest: Manifest = serde_json::from_slice(&message.payload)
        .map_err(|error| message.bad(format!("it is not a manifest: {error}")))?;
    match manifest {
        Manifest { manifest: version, .. } if version > MANIFEST_VERSION => {
            Err(message.bad(format!("its manifest has version {version}, newer than {MANIFEST_VERSION}")))
        }
        Manifest { bytes, .. } if bytes > MAX_BODY_BYTES => {
            Err(message
                .bad(format!("its body has {bytes} bytes, more than the {MAX_BODY_BYTES} that are read")))
        }
        manifest => Ok(Some(manifest)),
    }
}
