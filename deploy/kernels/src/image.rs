//! The kernel's types, taken out of a kernel image.
//!
//! They are found in the unpacked kernel by the header of their section
//! (Documentation/bpf/btf.rst): there is no symbol table to ask.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// `struct btf_header` up to the fields that every version has.
const BTF_HEADER_BYTES: usize = 24;
/// `BTF_MAGIC`, little endian, and version 1.
const BTF_START: [u8; 3] = [0x9f, 0xeb, 1];

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(four.try_into().ok()?)).ok()
}

/// The raw BTF of the kernel in an image; kept beside it, because unpacking takes seconds.
pub(crate) fn types(path: &Path) -> Result<Vec<u8>> {
    let kept = PathBuf::from(format!("{}.btf", path.display()));
    if let Ok(types) = std::fs::read(&kept)
        && section(&types).is_some_and(|all| all.len() == types.len())
    {
        return Ok(types);
    }
    let image = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let kernel = glasshouse_images::kernel::unpack(&image)?;
    let types = carve(&kernel).context("the image holds no BTF")?;
    std::fs::write(&kept, types).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(types.to_vec())
}

/// The largest piece that is BTF by its header: magic, lengths that fit, and strings that begin and end with a zero.
fn carve(kernel: &[u8]) -> Option<&[u8]> {
    let mut best: Option<&[u8]> = None;
    for start in 0..kernel.len().saturating_sub(BTF_HEADER_BYTES) {
        if !kernel.get(start..)?.starts_with(&BTF_START) {
            continue;
        }
        if let Some(found) = section(kernel.get(start..)?)
            && best.is_none_or(|best| best.len() < found.len())
        {
            best = Some(found);
        }
    }
    best
}

fn section(bytes: &[u8]) -> Option<&[u8]> {
    let header = u32_at(bytes, 4)?;
    let (types_at, types) = (u32_at(bytes, 8)?, u32_at(bytes, 12)?);
    let (strings_at, strings) = (u32_at(bytes, 16)?, u32_at(bytes, 20)?);
    let sane =
        (BTF_HEADER_BYTES..256).contains(&header) && types_at == 0 && strings_at >= types && strings > 1;
    let end = header.checked_add(strings_at)?.checked_add(strings)?;
    let all = bytes.get(..end)?;
    let text = all.get(end - strings..)?;
    (sane && types > 0 && text.first() == Some(&0) && text.last() == Some(&0)).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::carve;

    #[test]
    fn types_are_found_among_other_bytes_and_a_broken_header_is_not_taken() {
        let mut btf = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
        btf.extend([1, 2, 3, 4, 0, b'x', 0]);
        let mut kernel = vec![7; 100];
        kernel.extend([0x9f, 0xeb, 1, 0]);
        kernel.extend(&btf);
        kernel.extend([7; 50]);
        assert_eq!(carve(&kernel), Some(btf.as_slice()));
        assert_eq!(carve(&[7; 100]), None);
    }
}
