//! A distribution's kernel: where it is, the kernel within its image, and the modules a guest needs.
//!
//! Nothing has to be installed: a package that was only unpacked (`dpkg-deb -x linux-image-….deb DIR`) will do. So
//! dependencies are read from the modules themselves, because `modules.dep` is made when a package is installed.

mod image;
mod modules;

use std::cmp::Ordering;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub use image::unpack;
pub use modules::Module;

use crate::decompress::UnpackError;

/// Where a tree keeps images, apart from `lib/modules/RELEASE/vmlinuz` (Debian 14).
const BOOT: &str = "boot";
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];
/// Far above any kernel image.
const MAX_IMAGE_BYTES: u64 = 512 << 20;

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No image where one was looked for.
    #[error(
        "there is no readable kernel image in {0}; install one (Debian: apt-get install linux-image-cloud-amd64), or unpack its \
         package with `dpkg-deb -x` and name that folder"
    )]
    NotFound(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The image is cut, or not a kernel's.
    #[error("{path} is no kernel image: {what}")]
    NoImage {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Image or module cannot be unpacked.
    #[error("{path}: {source}")]
    Unpack {
        /// The image or module.
        path: PathBuf,
        /// Why.
        source: UnpackError,
    },
    /// The kernel has no such modules, built in or loadable.
    #[error("kernel {release} has no module {}", names.join(", "))]
    NoModules {
        /// The kernel.
        release: String,
        /// The modules, as they were asked for or needed by others.
        names: Vec<String>,
    },
    /// A module is not an ELF object of modules.
    #[error("{0} is no kernel module")]
    NoModule(PathBuf),
}

impl KernelError {
    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::File { path: path.to_owned(), source }
    }
}

/// A kernel image and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` says in it: `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The image as the distribution packed it.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`, where there is one.
    pub modules_dir: Option<PathBuf>,
}

impl Kernel {
    /// The kernel of an image file, or the newest one below a folder: `/` with what is installed, or where a package was
    /// unpacked.
    ///
    /// # Errors
    /// [`KernelError::NotFound`], and for a file also whatever is wrong with it.
    pub fn find(place: &Path) -> Result<Self, KernelError> {
        let metadata = std::fs::metadata(place).map_err(KernelError::file(place))?;
        if metadata.is_file() {
            let release = image::release(place, &read(place, MAX_IMAGE_BYTES)?)?;
            // An image in BOOT has its modules beside that folder; they may also be this system's.
            let beside = place.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
            let modules_dir = modules_dir(beside, &release).or_else(|| modules_dir(Path::new("/"), &release));
            return Ok(Self { release, image: place.to_owned(), modules_dir });
        }
        let mut found: Vec<Self> = images(place)
            .into_iter()
            // Some distributions let only root read it; a rescue image may be no kernel at all.
            .filter_map(|image| {
                let release = image::release(&image, &read(&image, MAX_IMAGE_BYTES).ok()?).ok()?;
                Some(Self { modules_dir: modules_dir(place, &release), release, image })
            })
            .collect();
        found.sort_by(|one, other| by_version(&one.release, &other.release));
        found.pop().ok_or_else(|| KernelError::NotFound(place.to_owned()))
    }

    /// The kernel as the ELF file that QEMU and Firecracker boot directly, in `cache`, under a name made of its image's
    /// digest: unpacked once, and never found half written.
    ///
    /// # Errors
    /// What is wrong with the image, or with the folder.
    pub fn vmlinux(&self, cache: &Path) -> Result<PathBuf, KernelError> {
        let packed = read(&self.image, MAX_IMAGE_BYTES)?;
        let digest: String =
            Sha256::digest(&packed).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let path = cache.join(format!("vmlinux-{}-{digest}", self.release));
        if path.is_file() {
            return Ok(path);
        }
        std::fs::create_dir_all(cache).map_err(KernelError::file(cache))?;
        let kernel =
            unpack(&packed).map_err(|source| KernelError::Unpack { path: self.image.clone(), source })?;
        if !kernel.starts_with(image::ELF) {
            return Err(KernelError::NoImage {
                path: self.image.clone(),
                what: "what is packed in it is no ELF file",
            });
        }
        let write = || {
            // A jailed VMM reads it as another user.
            let readable = Permissions::from_mode(0o644);
            let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(cache)?;
            file.write_all(&kernel)?;
            Ok(file.persist(&path)?)
        };
        write().map_err(KernelError::file(&path))?;
        Ok(path)
    }

    /// The modules of these names with all that they need, in an order in which they load; those that are built in are
    /// left out. `-` and `_` are the same in a name.
    ///
    /// # Errors
    /// [`KernelError::NoModules`] with all that are missing, and whatever is wrong with a module.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>, KernelError> {
        modules::Modules::of(self)?.closure(names)
    }

    /// Which of these modules the kernel has, built in or loadable.
    ///
    /// # Errors
    /// A list of modules that cannot be read.
    pub fn offers<'a>(&self, names: &[&'a str]) -> Result<Vec<&'a str>, KernelError> {
        let modules = modules::Modules::of(self)?;
        Ok(names.iter().copied().filter(|name| modules.has(name)).collect())
    }
}

/// Every file of a tree that may be a kernel image.
fn images(root: &Path) -> Vec<PathBuf> {
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries(root.join(BOOT)).filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("vmlinuz-") || name.starts_with("vmlinux-")
    });
    let beside_modules =
        MODULES.iter().flat_map(|dir| entries(root.join(dir))).map(|entry| entry.path().join("vmlinuz"));
    named.map(|entry| entry.path()).chain(beside_modules).filter(|path| path.is_file()).collect()
}

fn modules_dir(root: &Path, release: &str) -> Option<PathBuf> {
    MODULES.iter().map(|dir| root.join(dir).join(release)).find(|dir| dir.is_dir())
}

/// Numbers by their value, all else by its bytes: `6.1.0-9` is before `6.1.0-56`.
fn by_version(one: &str, other: &str) -> Ordering {
    fn parts(text: &str) -> Vec<(u64, &str)> {
        let ends = |(at, pair): (usize, &[u8])| {
            (pair.first()?.is_ascii_digit() != pair.last()?.is_ascii_digit()).then_some(at + 1)
        };
        let mut parts = Vec::new();
        let mut from = 0;
        for to in text.as_bytes().windows(2).enumerate().filter_map(ends).chain([text.len()]) {
            let part = text.get(from..to).unwrap_or_default();
            parts.push((part.parse().unwrap_or(0), part));
            from = to;
        }
        parts
    }
    parts(one).cmp(&parts(other))
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, KernelError> {
    let file = std::fs::File::open(path).map_err(KernelError::file(path))?;
    crate::decompress::bounded(file, limit)
        .map_err(|source| KernelError::Unpack { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
