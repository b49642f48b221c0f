//! The kernel's types, taken out of a kernel image.
//!
//! An image is an x86 bzImage (Documentation/arch/x86/boot.rst), an EFI zboot (drivers/firmware/efi/libstub/zboot-header.S), a
//! gzip file or bare code. The types are found in the unpacked kernel by the header of their section
//! (Documentation/bpf/btf.rst): there is no symbol table to ask.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

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
    let unpacked = match payload(&image) {
        Some(packed) => Some(unpack(packed)?),
        None => None,
    };
    let kernel = unpacked.as_deref().unwrap_or(&image);
    let types = carve(kernel).context("the image holds no BTF")?;
    std::fs::write(&kept, types).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(types.to_vec())
}

/// The compressed kernel within an image; `None` where it is not compressed.
fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(0x202..0x206) == Some(b"HdrS") {
        let setup_sectors = match *image.get(0x1f1)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (setup_sectors + 1) * 512 + u32_at(image, 0x248)?;
        return image.get(start..start.checked_add(u32_at(image, 0x24c)?)?);
    }
    if image.starts_with(b"MZ") && image.get(4..8) == Some(b"zimg") {
        let start = u32_at(image, 8)?;
        return image.get(start..start.checked_add(u32_at(image, 12)?)?);
    }
    image.starts_with(&[0x1f, 0x8b]).then_some(image)
}

/// Unpacks with the program that the magic asks for. The kernel's build appends the unpacked size, which such programs
/// complain about; what they wrote is judged by [`carve`], not by their exit code.
fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let (program, arguments): (&str, &[&str]) = match packed.get(..4) {
        Some([0x1f, 0x8b, ..]) => ("gzip", &["-dc"]),
        Some([0xfd, b'7', b'z', b'X']) => ("xz", &["-dc", "--single-stream"]),
        Some([0x28, 0xb5, 0x2f, 0xfd]) => ("zstd", &["-dc"]),
        Some([0x02, 0x21, 0x4c, 0x18]) => ("lz4", &["-dc"]),
        other => bail!("the kernel is packed in a way not known here (it begins {other:02x?})"),
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}: apt-get install {}", package(program)))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may stop reading before the appended size.
            stdin.map(|mut stdin| stdin.write_all(packed))
        });
        child.wait_with_output()
    })?;
    Ok(output.stdout)
}

fn package(program: &str) -> &str {
    if program == "xz" { "xz-utils" } else { program }
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
    use super::{carve, payload};

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

    #[test]
    fn a_cut_image_has_no_payload() {
        let mut image = vec![0; 0x250];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c] = 1;
        assert_eq!(payload(&image), None);
    }
}
