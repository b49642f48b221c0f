//! Files of executions in GH_FILES: each is stored once, under its SHA-256, whoever names it and however often.

use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::object_store::{
    GetErrorKind, InfoErrorKind, ObjectInfo, ObjectStore, PutError, PutErrorKind,
};
use glasshouse_schema::{Digest, StoredFile};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt, ReadBuf};

use crate::connect::Bus;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;

/// How much is read at a time.
const CHUNK_BYTES: usize = 128 * 1024;

/// SHA-256 and length of what is in a file from where it stands; an error once it is longer than `most`.
pub fn digest_of(file: &mut std::fs::File, most: u64) -> io::Result<(Digest, u64)> {
    use std::io::Read;
    let (mut hash, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((Digest::from_bytes(hash.finalize().into()), bytes)),
            Ok(read) => {
                bytes += read as u64;
                hash.update(&chunk[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes > most {
            return Err(io::Error::other(format!("it has more than the {most} bytes that are taken")));
        }
    }
}

impl Bus {
    async fn files(&self) -> Result<ObjectStore, Error> {
        let store = self.jetstream().get_object_store(crate::FILES).await;
        store.map_err(|error| Error::broker("open object store", crate::FILES, error))
    }

    /// Stores what is in a file, unless it is there and stays for at least half of the store's time. A file that is not what
    /// it was said to be by now is an error, and nothing is stored.
    pub async fn store_file(&self, from: &mut File, sha256: Digest, bytes: u64) -> Result<(), Error> {
        let mut backoff = Backoff::until(self.timeout() * 3);
        loop {
            let error = match self.within(bytes, "store", sha256, self.try_store(from, sha256, bytes)).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Retryable || !backoff.wait().await {
                return Err(error);
            }
        }
    }

    async fn try_store(&self, from: &mut File, sha256: Digest, bytes: u64) -> Result<(), Error> {
        let store = self.files().await?;
        let name = sha256.to_string();
        match store.info(&name).await {
            Ok(info) if holds(&info, bytes) && self.stays(&info).await? => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == InfoErrorKind::NotFound => {}
            Err(error) => return Err(Error::broker("look up the file", &name, error)),
        }
        let unreadable = |error: io::Error| Error::File { sha256, problem: error.to_string() };
        from.seek(SeekFrom::Start(0)).await.map_err(unreadable)?;
        let mut checked = Checked { from, hash: Sha256::new(), left: bytes, sha256 };
        match store.put(name.as_str(), &mut checked).await {
            // Whether what it replaces takes room until its time is over is all that is not known.
            Err(error) if error.kind() == PutErrorKind::PurgeOldChunks => Ok(()),
            Err(error) if error.kind() == PutErrorKind::ReadChunks || is_full(&error) => {
                Err(Error::File { sha256, problem: error.to_string() })
            }
            put => put.map(|_| ()).map_err(|error| Error::broker("store the file", &name, error)),
        }
    }

    /// Whether an object is far from the end of its time.
    async fn stays(&self, info: &ObjectInfo) -> Result<bool, Error> {
        let stream = self.stream(&format!("OBJ_{}", crate::FILES)).await?;
        let most = stream.cached_info().config.max_age;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stored = info.modified.map_or(0, |at| u64::try_from(at.unix_timestamp()).unwrap_or(0));
        Ok(most.is_zero() || now < Duration::from_secs(stored) + most / 2)
    }

    /// Writes a stored file into `into`, in place of what is there. What is not what `file` says is an error.
    pub async fn fetch_file(&self, file: &StoredFile, into: &mut File) -> Result<(), Error> {
        let StoredFile { bytes, sha256, .. } = *file;
        let mut backoff = Backoff::until(self.timeout() * 3);
        loop {
            let error = match self.within(bytes, "fetch", sha256, self.try_fetch_file(file, into)).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Retryable || !backoff.wait().await {
                return Err(error);
            }
        }
    }

    async fn try_fetch_file(&self, file: &StoredFile, into: &mut File) -> Result<(), Error> {
        let sha256 = file.sha256;
        let wrong = |problem: String| Error::File { sha256, problem };
        let unwritable = |error: io::Error| wrong(format!("it cannot be written here: {error}"));
        into.set_len(0).await.map_err(unwritable)?;
        into.seek(SeekFrom::Start(0)).await.map_err(unwritable)?;
        let name = sha256.to_string();
        let mut object = match self.files().await?.get(&name).await {
            Ok(object) => object,
            Err(error) if error.kind() == GetErrorKind::NotFound => {
                let most = self.stream(&format!("OBJ_{}", crate::FILES)).await?.cached_info().config.max_age;
                let hours = most.as_secs() / 3600;
                return Err(wrong(format!(
                    "{} does not have it: it was never stored there, or longer than {hours} h ago",
                    crate::FILES
                )));
            }
            Err(error) => return Err(Error::broker("look up the file", &name, error)),
        };
        let found = object.info().size as u64;
        if found != file.bytes {
            return Err(wrong(format!("it has {found} bytes in {}, not {}", crate::FILES, file.bytes)));
        }
        let (mut hash, mut left, mut chunk) = (Sha256::new(), file.bytes, vec![0; CHUNK_BYTES]);
        while left > 0 {
            let read = match object.read(&mut chunk).await {
                Ok(0) => break,
                Ok(read) => read,
                // The client compares with what whoever stored it said; we compare with what was asked for.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => break,
                Err(error) => return Err(Error::broker("read the file", &name, error)),
            };
            left = left.saturating_sub(read as u64);
            hash.update(&chunk[..read]);
            into.write_all(&chunk[..read]).await.map_err(unwritable)?;
        }
        into.flush().await.map_err(unwritable)?;
        let is = Digest::from_bytes(hash.finalize().into());
        match left == 0 && is == sha256 {
            true => Ok(()),
            false => Err(wrong(format!("what {} has under this digest is something else", crate::FILES))),
        }
    }

    /// The client waits for a missing chunk for ever, so the deadline is ours: the usual one, and a second a megabyte.
    async fn within(
        &self,
        bytes: u64,
        operation: &'static str,
        sha256: Digest,
        future: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let deadline = self.timeout() + Duration::from_secs(bytes >> 20);
        match tokio::time::timeout(deadline, future).await {
            Ok(result) => result,
            Err(elapsed) => Err(Error::broker(operation, &sha256.to_string(), elapsed)),
        }
    }
}

fn holds(info: &ObjectInfo, bytes: u64) -> bool {
    !info.deleted && info.size as u64 == bytes
}

/// The client keeps of the server's answer only what it says.
fn is_full(error: &PutError) -> bool {
    error.to_string().contains("maximum bytes exceeded")
}

/// Reads a file as it was when its digest was taken: what differs ends in an error, and so is not stored.
struct Checked<'a> {
    from: &'a mut File,
    hash: Sha256,
    left: u64,
    sha256: Digest,
}

impl AsyncRead for Checked<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let changed = || Poll::Ready(Err(io::Error::other("it changed while it was read")));
        let before = into.filled().len();
        ready!(Pin::new(&mut *self.from).poll_read(context, into))?;
        let read = &into.filled()[before..];
        match self.left.checked_sub(read.len() as u64) {
            Some(left) => self.left = left,
            None => return changed(),
        }
        self.hash.update(read);
        if read.is_empty() {
            let is = Digest::from_bytes(self.hash.finalize_reset().into());
            if self.left > 0 || is != self.sha256 {
                return changed();
            }
        }
        Poll::Ready(Ok(()))
    }
}
