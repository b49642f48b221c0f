//! How frames are compressed on their way. The header `Content-Encoding` says it, so that readers need no setting: a publisher
//! chooses, and a body without the header is as it is. Digests and message ids are of the body, however it travels.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use async_nats::HeaderMap;
use bytes::Bytes;
use glasshouse_schema::frame::MAX_FRAME_BYTES;
use glasshouse_schema::headers::CONTENT_ENCODING;
use serde::Deserialize;

use crate::store::StoredMessage;

/// Before an LZ4 block stands how long it is without compression, as a little-endian integer of so many bytes.
const LENGTH_BYTES: usize = 4;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Not at all.
    #[default]
    Identity,
    /// An [LZ4 block](https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md) behind its length without compression (four
    /// bytes, little endian).
    Lz4,
}

/// A body that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodingError {
    /// Nothing here compresses like that.
    #[error("no {CONTENT_ENCODING} `{0}` is known here: it is identity or lz4")]
    Unknown(String),
    /// It is larger than any body is.
    #[error(
        "it says that it has {0} bytes without compression, more than the {MAX_FRAME_BYTES} that are read"
    )]
    TooLarge(usize),
    /// It is not what the header says.
    #[error("its body is not {CONTENT_ENCODING} {0}")]
    Malformed(Encoding),
}

impl Encoding {
    /// The name, as in the header and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Lz4 => "lz4",
        }
    }

    /// The body as it travels. One that would not become smaller stays as it is.
    pub(crate) fn encode(self, body: Bytes, headers: &mut HeaderMap) -> Bytes {
        let (Self::Lz4, Ok(length)) = (self, u32::try_from(body.len())) else { return body };
        let mut packed = vec![0; LENGTH_BYTES + lz4_flex::block::get_maximum_output_size(body.len())];
        let Some((length_bytes, block)) = packed.split_first_chunk_mut::<LENGTH_BYTES>() else { return body };
        *length_bytes = length.to_le_bytes();
        match lz4_flex::block::compress_into(&body, block) {
            Ok(packed_len) if LENGTH_BYTES + packed_len < body.len() => {
                headers.insert(CONTENT_ENCODING, self.as_str());
                packed.truncate(LENGTH_BYTES + packed_len);
                packed.into()
            }
            _ => body,
        }
    }

    fn decode(self, body: &Bytes) -> Result<Bytes, EncodingError> {
        let Self::Lz4 = self else { return Ok(body.clone()) };
        let malformed = EncodingError::Malformed(self);
        let Some((length, block)) = body.split_first_chunk::<LENGTH_BYTES>() else { return Err(malformed) };
        let length = u32::from_le_bytes(*length) as usize;
        // Before anything is allocated.
        if length > MAX_FRAME_BYTES {
            return Err(EncodingError::TooLarge(length));
        }
        match lz4_flex::block::decompress(block, length) {
            Ok(decoded) if decoded.len() == length => Ok(decoded.into()),
            _ => Err(malformed),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Encoding {
    type Err = EncodingError;

    fn from_str(text: &str) -> Result<Self, EncodingError> {
        [Self::Identity, Self::Lz4]
            .into_iter()
            .find(|encoding| encoding.as_str() == text)
            .ok_or_else(|| EncodingError::Unknown(text.chars().take(32).collect()))
    }
}

impl StoredMessage {
    /// The message with its body as it was before it was compressed.
    pub fn decoded(&self) -> Result<Cow<'_, Self>, EncodingError> {
        let Some(encoding) = self.header(CONTENT_ENCODING) else { return Ok(Cow::Borrowed(self)) };
        let payload = encoding.parse::<Encoding>()?.decode(&self.payload)?;
        Ok(Cow::Owned(Self { payload, ..self.clone() }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_read_again(body in prop::collection::vec(0u8..4, 0..5_000)) {
            let (body, mut headers) = (Bytes::from(body), HeaderMap::new());
            let packed = Encoding::Lz4.encode(body.clone(), &mut headers);
            let encoding = headers.get(CONTENT_ENCODING).map_or(Encoding::Identity, |name| name.as_str().parse().unwrap());
            prop_assert!(packed.len() <= body.len());
            prop_assert_eq!(encoding.decode(&packed), Ok(body));
        }

        #[test]
        fn nothing_that_is_said_is_believed(body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(decoded) = Encoding::Lz4.decode(&Bytes::from(body)) {
                prop_assert!(decoded.len() <= MAX_FRAME_BYTES);
            }
        }
    }

    #[test]
    fn a_body_that_says_it_is_huge_is_not_read() {
        let body = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(Encoding::Lz4.decode(&body), Err(EncodingError::TooLarge(u32::MAX as usize)));
    }

    #[test]
    fn a_body_that_does_not_become_smaller_stays() {
        let mut headers = HeaderMap::new();
        let body = Bytes::from_static(b"abc");
        assert_eq!(Encoding::Lz4.encode(body.clone(), &mut headers), body);
        assert!(headers.is_empty());
    }

    #[test]
    fn names_are_few() {
        let unknown = "br".parse::<Encoding>().unwrap_err();
        assert_eq!(unknown.to_string(), "no Content-Encoding `br` is known here: it is identity or lz4");
        assert_eq!("lz4".parse(), Ok(Encoding::Lz4));
    }
}
