//! One record of a segment: a message, and enough to know it again.
//!
//! ```text
//! length of the body, u32 LE | first 8 bytes of the body's SHA-256 | body: MessagePack [seq, subject, headers, payload]
//! ```
//!
//! The body holds the record's number, so that a record can never be taken for another. SHA-256 and not a CRC: this
//! workspace has it already, and a disk is slower than either.

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use bytes::Bytes;
use glasshouse_schema::Digest;
use serde_bytes::ByteBuf;

use super::SpoolError;
use crate::pipeline::Outgoing;

/// Length and checksum.
pub(super) const HEAD_BYTES: usize = 12;
/// Most that a body may have: a frame is at most 1 MiB, and headers and subject are some hundred bytes.
pub(super) const MAX_BODY_BYTES: usize = (1 << 20) + (64 << 10);
/// Most that a record takes.
pub(super) const MAX_RECORD_BYTES: u64 = (HEAD_BYTES + MAX_BODY_BYTES) as u64;
/// What every subject of ours begins with. A file can say anything; nothing else is ever published from one.
const SUBJECTS: &str = "glasshouse.v1.";

/// The record of a message.
pub(super) fn encode(seq: u64, message: &Outgoing) -> Result<Vec<u8>, SpoolError> {
    let mut headers: Vec<(&str, &str)> = message
        .headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name.as_ref(), value.as_str())))
        .collect();
    // One message has one record, whatever order its map is in.
    headers.sort_by_key(|(name, _)| *name);
    let subject = || message.subject.clone();
    let body = (seq, &message.subject, headers, serde_bytes::Bytes::new(&message.payload));
    let body =
        rmp_serde::to_vec(&body).map_err(|source| SpoolError::Encode { subject: subject(), source })?;
    let too_large = || SpoolError::TooLarge { subject: subject(), bytes: body.len() };
    let length = u32::try_from(body.len()).map_err(|_| too_large())?;
    if body.len() > MAX_BODY_BYTES {
        return Err(too_large());
    }
    let mut record = Vec::with_capacity(HEAD_BYTES + body.len());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&checksum(&body));
    record.extend_from_slice(&body);
    Ok(record)
}

/// The length of the body as the head has it; `None` if no body has it. Asked before anything is allocated.
pub(super) fn body_bytes(head: &[u8; HEAD_BYTES]) -> Option<usize> {
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    (1..=MAX_BODY_BYTES).contains(&length).then_some(length)
}

/// The message of record `seq`; `None` if this is not that record, whole.
pub(super) fn decode(seq: u64, head: &[u8; HEAD_BYTES], body: &[u8]) -> Option<Outgoing> {
    if checksum(body) != head[4..] {
        return None;
    }
    let (stored_seq, subject, headers, payload): (u64, String, Vec<(String, String)>, ByteBuf) =
        rmp_serde::from_slice(body).ok()?;
    let plain = subject.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'));
    if stored_seq != seq || !plain || !subject.starts_with(SUBJECTS) {
        return None;
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?);
    }
    Some(Outgoing { subject, headers: map, payload: Bytes::from(payload.into_vec()) })
}

pub(super) fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&Digest::of(bytes).as_bytes()[..8]);
    first
}
