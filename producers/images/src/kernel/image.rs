//! Kernel images: an x86 bzImage (Documentation/arch/x86/boot.rst), an EFI zboot image
//! (drivers/firmware/efi/libstub/zboot-header.S), a compressed file, or bare code such as ELF.

use std::borrow::Cow;
use std::path::Path;

use super::{KernelError, MAX_IMAGE_BYTES};
use crate::decompress::{Form, UnpackError, first_stream};

pub(super) const ELF: &[u8] = b"\x7fELF";
/// What every kernel holds once, behind it its release.
const BANNER: &[u8] = b"Linux version ";
const MAX_RELEASE_BYTES: usize = 64;

/// The kernel within an image; the image itself where it is not compressed.
///
/// # Errors
/// [`UnpackError`]. Whether what was packed is a kernel is not judged.
pub fn unpack(image: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    let cut = || UnpackError::Damaged(std::io::ErrorKind::UnexpectedEof.into());
    if setup_header(image) {
        let payload = bzimage_payload(image).ok_or_else(cut)?;
        // All builds end the payload with the unpacked length (scripts/Makefile.lib); gzip does so by itself.
        let (_, length) = payload.split_last_chunk::<4>().ok_or_else(cut)?;
        let length = u64::from(u32::from_le_bytes(*length));
        if length > MAX_IMAGE_BYTES {
            return Err(UnpackError::TooLarge(MAX_IMAGE_BYTES));
        }
        let kernel = first_stream(payload, length)?;
        return if kernel.len() as u64 == length { Ok(Cow::Owned(kernel)) } else { Err(cut()) };
    }
    if image.starts_with(b"MZ") && image.get(4..8) == Some(b"zimg") {
        let payload = slice(image, u32_at(image, 8), u32_at(image, 12)).ok_or_else(cut)?;
        return first_stream(payload, MAX_IMAGE_BYTES).map(Cow::Owned);
    }
    match Form::of(image) {
        Some(_) => first_stream(image, MAX_IMAGE_BYTES).map(Cow::Owned),
        None => Ok(Cow::Borrowed(image)),
    }
}

/// What `uname -r` says in this kernel: a bzImage tells without being unpacked.
pub(super) fn release(path: &Path, image: &[u8]) -> Result<String, KernelError> {
    let named = if setup_header(image) {
        u16_at(image, 0x20e).and_then(|at| image.get(at.checked_add(0x200)?..)).and_then(word)
    } else {
        let kernel = unpack(image).map_err(|source| KernelError::Unpack { path: path.to_owned(), source })?;
        let mut banners = memchr::memmem::find_iter(&kernel, BANNER)
            .filter_map(|at| word(kernel.get(at + BANNER.len()..)?));
        banners.next()
    };
    named.ok_or_else(|| KernelError::NoImage { path: path.to_owned(), what: "it does not tell its release" })
}

/// The first word, if it can be a release: it becomes part of paths.
fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(MAX_RELEASE_BYTES).position(|byte| matches!(byte, b' ' | 0))?;
    let word = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_+~".contains(c);
    (word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(plain)).then(|| word.to_owned())
}

fn setup_header(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

fn bzimage_payload(image: &[u8]) -> Option<&[u8]> {
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((setup_sectors + 1) * 512).checked_add(u32_at(image, 0x248)?)?;
    slice(image, Some(start), u32_at(image, 0x24c))
}

fn slice(bytes: &[u8], start: Option<usize>, length: Option<usize>) -> Option<&[u8]> {
    bytes.get(start?..start?.checked_add(length?)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|two| usize::from(u16::from_le_bytes(*two)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}
