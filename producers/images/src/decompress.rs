//! Compressed bytes of the forms that kernels, modules and layers come in, told apart by how they begin.

use std::io::{self, BufRead, Read};

/// The window of `zstd -22 --ultra`, which kernels are packed with, and so also what a decoder may take in memory.
const ZSTD_WINDOW_LOG: u32 = 27;
/// The most that an xz decoder may take in memory. Kernels are packed with a dictionary of 128 MiB at most.
const XZ_MEMORY_KIB: u32 = 192 * 1024;
/// What `lz4 -l` packs at a time.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Why bytes could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// None of the forms known here.
    #[error("it is packed in a way not known here (it begins {0:02x?})")]
    Form(Vec<u8>),
    /// It ends too early or is damaged.
    #[error("it is cut or damaged: {0}")]
    Damaged(#[source] io::Error),
    /// Unpacked it would be larger than it may be.
    #[error("unpacked it is larger than {0} bytes")]
    TooLarge(u64),
}

/// The forms of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Gzip,
    Xz,
    Zstd,
    /// What `lz4 -l` writes and kernels are packed with: blocks, each behind its length, and no end mark.
    Lz4Legacy,
}

impl Form {
    /// The form by its magic number.
    pub(crate) fn of(packed: &[u8]) -> Option<Self> {
        let begins = |magic: &[u8]| packed.starts_with(magic);
        match packed {
            _ if begins(&[0x1f, 0x8b]) => Some(Self::Gzip),
            _ if begins(&[0xfd, b'7', b'z', b'X', b'Z', 0]) => Some(Self::Xz),
            _ if begins(&[0x28, 0xb5, 0x2f, 0xfd]) => Some(Self::Zstd),
            _ if begins(&LZ4_LEGACY_MAGIC) => Some(Self::Lz4Legacy),
            _ => None,
        }
    }
}

/// All streams of a gzip file.
pub(crate) fn gzip(packed: impl Read) -> impl Read {
    flate2::read::MultiGzDecoder::new(packed)
}

/// All streams of an xz file.
pub(crate) fn xz(packed: impl Read) -> impl Read {
    lzma_rust2::XzReader::new_mem_limit(packed, true, XZ_MEMORY_KIB)
}

/// All frames of a zstd file.
pub(crate) fn zstd(packed: impl BufRead) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// Unpacks the first stream of `packed`. What follows it is not looked at: builds append a length.
///
/// # Errors
/// [`UnpackError`]; nothing above `limit` bytes is kept in memory.
pub(crate) fn first_stream(packed: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    match Form::of(packed) {
        Some(Form::Gzip) => bounded(flate2::bufread::GzDecoder::new(packed), limit),
        Some(Form::Xz) => bounded(lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB), limit),
        Some(Form::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)
                .map_err(UnpackError::Damaged)?
                .single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(UnpackError::Damaged)?;
            bounded(decoder, limit)
        }
        Some(Form::Lz4Legacy) => lz4_legacy(packed.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default(), limit),
        None => Err(UnpackError::Form(packed.get(..4).unwrap_or(packed).to_vec())),
    }
}

/// Reads to the end, at most `limit` bytes.
pub(crate) fn bounded(reader: impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(UnpackError::Damaged)?;
    if bytes.len() as u64 > limit { Err(UnpackError::TooLarge(limit)) } else { Ok(bytes) }
}

/// Ends where the bytes do; four more may follow, which are the appended length.
fn lz4_legacy(mut blocks: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    let cut = || UnpackError::Damaged(io::ErrorKind::UnexpectedEof.into());
    while let Some((length, rest)) = blocks.split_first_chunk::<4>()
        && !rest.is_empty()
    {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (block, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        let written = lz4_flex::block::decompress_into(block, &mut buffer)
            .map_err(|error| UnpackError::Damaged(io::Error::other(error)))?;
        bytes.extend_from_slice(buffer.get(..written).unwrap_or_default());
        if bytes.len() as u64 > limit {
            return Err(UnpackError::TooLarge(limit));
        }
        blocks = rest;
    }
    if bytes.is_empty() { Err(cut()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        for block in bytes.chunks(LZ4_LEGACY_BLOCK_BYTES) {
            let block = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            packed.extend(block);
        }
        packed
    }

    /// "a kernel" forty times, by `xz -9 --x86 --lzma2`.
    const XZ: &[u8] = include_bytes!("../tests/data/words.xz");

    fn words() -> Vec<u8> {
        b"a kernel\n".repeat(40)
    }

    #[test]
    fn every_form_is_unpacked_and_what_follows_is_left() {
        let words = words();
        for mut packed in
            [gzip(&words), zstd::encode_all(words.as_slice(), 3).unwrap(), XZ.to_vec(), lz4(&words)]
        {
            assert_eq!(first_stream(&packed, 1000).unwrap(), words);
            packed.extend(u32::MAX.to_le_bytes());
            assert_eq!(first_stream(&packed, 1000).unwrap(), words, "with a length behind it");
        }
    }

    #[test]
    fn more_than_one_lz4_block_is_unpacked() {
        let bytes: Vec<u8> = (0..LZ4_LEGACY_BLOCK_BYTES + 10).map(|at| (at / 1000) as u8).collect();
        assert!(first_stream(&lz4(&bytes), u64::MAX).unwrap() == bytes);
    }

    #[test]
    fn what_is_too_large_is_refused_in_every_form() {
        let words = words();
        let limit = words.len() as u64 - 1;
        for packed in [gzip(&words), zstd::encode_all(words.as_slice(), 3).unwrap(), XZ.to_vec(), lz4(&words)]
        {
            assert!(matches!(first_stream(&packed, limit), Err(UnpackError::TooLarge(_))));
        }
    }

    #[test]
    fn a_cut_or_altered_stream_is_no_panic_and_no_whole() {
        let words = words();
        for packed in [gzip(&words), zstd::encode_all(words.as_slice(), 3).unwrap(), XZ.to_vec(), lz4(&words)]
        {
            for length in 0..packed.len() {
                // A checksum at the end may be what is cut off.
                if let Ok(bytes) = first_stream(&packed[..length], 1000) {
                    assert_eq!(bytes, words);
                }
                let mut altered = packed.clone();
                altered[length] ^= 0x55;
                let _ = first_stream(&altered, 1000);
            }
        }
    }

    #[test]
    fn a_form_not_known_says_how_it_begins() {
        let error = first_stream(b"BZh9 and so on", 1000).unwrap_err();
        assert_eq!(error.to_string(), "it is packed in a way not known here (it begins [42, 5a, 68, 39])");
    }
}
