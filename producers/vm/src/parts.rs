//! What every machine is made of, whatever boots it: a kernel, the guest probe, and modules for what is attached.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use glasshouse_images::initramfs::Initramfs;
use glasshouse_images::kernel::{Kernel, KernelError};

/// Names a kernel image, or a folder with one (an unpacked package); without it the newest one installed is taken.
pub const KERNEL_VARIABLE: &str = "GLASSHOUSE_GUEST_KERNEL";
/// Names the static guest probe; without it, it is looked for beside the running program.
pub const PROBE_VARIABLE: &str = "GLASSHOUSE_GUEST_PROBE";
/// Tells the guest by the kernel's line which disk has the command's root filesystem.
pub(crate) const ROOT_WORD: &str = " glasshouse.root=/dev/vda";
/// The module of the disk with the root filesystem.
const ROOT_DRIVER: &str = "virtio_blk";
/// File name of the guest probe.
const PROBE: &str = "glasshouse-guest-probe";

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No guest probe.
    #[error(
        "there is no guest probe at {0}: build it with scripts/guest-probe.sh, or name it in {PROBE_VARIABLE}"
    )]
    NoProbe(PathBuf),
    /// It would need a loader that no guest has.
    #[error("the guest probe {0} is not static: build it with scripts/guest-probe.sh")]
    NotStatic(PathBuf),
    /// The image holds nothing that a guest can mount.
    #[error("{0} holds no filesystem that a guest can mount: ext4, erofs or squashfs")]
    NoFilesystem(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> PartsError + '_ {
    |source| PartsError::File { path: path.to_owned(), source }
}

/// The parts of machines on this node.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The static probe.
    pub probe: PathBuf,
    /// Where what takes long to make is kept.
    pub cache: PathBuf,
}

impl Parts {
    /// Finds them, by the environment or where they usually are.
    pub fn find() -> Result<Self, PartsError> {
        let kernel = named(KERNEL_VARIABLE).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let probe = guest_probe()?;
        let cache = named("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| named("HOME").map(|home| Path::new(&home).join(".cache")));
        let cache = cache.unwrap_or_else(std::env::temp_dir).join("glasshouse");
        Ok(Self { kernel: Kernel::find(&kernel)?, probe, cache })
    }

    /// The uncompressed kernel; unpacked once.
    pub fn vmlinux(&self) -> Result<PathBuf, PartsError> {
        Ok(self.kernel.vmlinux(&self.cache)?)
    }

    /// Writes an initramfs with the probe and the modules that the guest needs: `devices` for how it is attached, and those
    /// of the root filesystem. A credential moves in there, for its probe alone.
    pub(crate) fn initramfs(
        &self,
        to: &Path,
        devices: &[&str],
        root: Option<Root>,
        credentials: Option<&Path>,
    ) -> Result<(), PartsError> {
        let mut modules = devices.to_vec();
        modules.extend(root.iter().flat_map(|root| [ROOT_DRIVER, "overlay", root.filesystem]));
        let later = root.and_then(|root| root.is_late.then_some(ROOT_DRIVER));
        let probe = std::fs::read(&self.probe).map_err(file(&self.probe))?;
        let mut initramfs = Initramfs::new(probe);
        initramfs.modules(self.kernel.modules(&modules)?, later).map_err(file(to))?;
        if let Some(credentials) = credentials {
            let bytes = std::fs::read(credentials).map_err(file(credentials))?;
            initramfs.file(glasshouse_guest_nats::CREDENTIALS, 0o400, bytes).map_err(file(to))?;
            std::fs::remove_file(credentials).map_err(file(credentials))?;
        }
        initramfs.write(io::BufWriter::new(File::create(to).map_err(file(to))?)).map_err(file(to))
    }
}

/// How a guest comes to the root filesystem of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    /// What the image holds, by the name of its module.
    pub(crate) filesystem: &'static str,
    /// It comes with the command. Until then the guest does not look at its disk, and is that of any image with such a filesystem.
    is_late: bool,
}

impl Root {
    /// That of a guest whose disk is there from the beginning.
    pub(crate) fn of(image: &Path) -> Result<Self, PartsError> {
        Ok(Self { filesystem: filesystem(image)?, is_late: false })
    }

    /// That of a guest which looks at its disk when it has its command.
    pub(crate) fn with_command(image: &Path) -> Result<Self, PartsError> {
        Ok(Self { is_late: true, ..Self::of(image)? })
    }

    /// What the guest is told of it by the kernel's line.
    pub(crate) fn word(self) -> String {
        let driver = if self.is_late { format!(",{ROOT_DRIVER}") } else { String::new() };
        format!("{ROOT_WORD}{driver}")
    }
}

/// The static guest probe alone, found likewise, by its path from the root.
pub fn guest_probe() -> Result<PathBuf, PartsError> {
    let probe = named(PROBE_VARIABLE).map_or_else(beside_us, PathBuf::from);
    let probe = std::path::absolute(&probe).unwrap_or(probe);
    let bytes = std::fs::read(&probe).map_err(|_| PartsError::NoProbe(probe.clone()))?;
    if names_a_loader(&bytes) { Err(PartsError::NotStatic(probe)) } else { Ok(probe) }
}

fn named(variable: &str) -> Option<OsString> {
    std::env::var_os(variable).filter(|name| !name.is_empty())
}

/// Where scripts/guest-probe.sh puts it, seen from a program or test of the same build, else beside the running program.
fn beside_us() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("/"));
    let built = dir.ancestors().skip(1).take(2).map(|above| above.join("guest").join(PROBE));
    built.into_iter().find(|place| place.is_file()).unwrap_or_else(|| dir.join(PROBE))
}

/// Whether an ELF program has a PT_INTERP header (elf(5)).
fn names_a_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        field
            .iter()
            .rev()
            .try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    let (Some(start), Some(size), Some(count)) = (number(0x20, 8), number(0x36, 2), number(0x38, 2)) else {
        return true;
    };
    (0..count)
        .filter_map(|index| start.checked_add(index.checked_mul(size)?))
        .any(|at| number(at, 4) == Some(PT_INTERP as usize))
}

/// Which filesystem an image holds, by what its superblock begins with; its name is that of its module.
fn filesystem(image: &Path) -> Result<&'static str, PartsError> {
    let magics: [(&str, u64, &[u8]); 3] = [
        ("ext4", 0x438, &[0x53, 0xef]),
        ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
        ("squashfs", 0, b"hsqs"),
    ];
    let mut opened = File::open(image).map_err(file(image))?;
    for (name, at, magic) in magics {
        let mut found = vec![0; magic.len()];
        let read = opened.seek(SeekFrom::Start(at)).and_then(|_| opened.read_exact(&mut found));
        if read.is_ok() && found == magic {
            return Ok(name);
        }
    }
    Err(PartsError::NoFilesystem(image.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_are_told_by_their_superblocks() {
        let image = tempfile::NamedTempFile::new().unwrap();
        assert!(filesystem(image.path()).is_err());
        let mut bytes = vec![0; 2048];
        bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(image.path(), &bytes).unwrap();
        assert_eq!(filesystem(image.path()).unwrap(), "ext4");
    }

    #[test]
    fn a_program_that_needs_a_loader_is_told_from_a_static_one() {
        // This test itself; and what is no ELF file at all is not static either.
        assert!(names_a_loader(&std::fs::read(std::env::current_exe().unwrap()).unwrap()));
        assert!(names_a_loader(b"#!/bin/sh"));
    }
}
