//! Root filesystem images for guests, from a folder, a tar archive or an image in an OCI layout.
//!
//! ```text
//!   folder ─────────────► tree ──► erofs ──► image file
//!   tar, OCI layers ─► layer ─┘
//! ```
//!
//! What is in the source decides every byte of the image. Of a folder that is names, modes and contents; archives tell
//! owners and times too. A source may be hostile: see [`Limits`].

mod directory;
mod erofs;
mod layer;
mod oci;
mod tree;

use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use tree::Limits;

use crate::decompress::{self, Form};

/// Why an image cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The source cannot be read to its end.
    #[error("the archive is cut or damaged: {0}")]
    Read(#[source] io::Error),
    /// Something in the source that no image may hold.
    #[error("{path} is refused: {why}")]
    Refused {
        /// Where in the image it would be.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// It would be larger than [`Limits::bytes`].
    #[error("the source holds more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// It would hold more than [`Limits::inodes`].
    #[error("the source holds more than {limit} files")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The OCI layout is not as it should be, or does not tell which image is meant.
    #[error("{path}: {what}")]
    Layout {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A blob is not what its name says.
    #[error("{path} was altered: it should have the SHA-256 {expected} and has {found}")]
    Digest {
        /// The blob.
        path: PathBuf,
        /// From who names it.
        expected: String,
        /// Of what is there.
        found: String,
    },
    /// The file is no image of [`build`].
    #[error("{0} is no EROFS image; make one with `glasshouse image build`")]
    NoImage(PathBuf),
}

impl ImageError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::File { path: path.to_owned(), source }
    }
}

/// What an image is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A folder of this machine.
    Directory,
    /// A tar archive, packed by gzip, xz or zstd or not at all.
    Tar,
    /// A folder with an OCI image layout.
    OciLayout,
}

/// What an OCI image says of running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What stands before the command.
    pub entrypoint: Vec<String>,
    /// The command where none is given.
    pub cmd: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Where it runs.
    pub working_dir: Option<String>,
    /// As whom.
    pub user: Option<String>,
}

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Built {
    /// What it is.
    #[serde(flatten)]
    pub image: Inspection,
    /// What it was made from.
    pub source: Source,
    /// The digest of the manifest of an OCI image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// What an OCI image says of running it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    /// Sockets of a folder, which no image holds.
    pub sockets_left_out: usize,
    /// Whether the file was there with these very bytes, and was left as it is.
    pub unchanged: bool,
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// The filesystem, and the kernel module that reads it.
    pub filesystem: &'static str,
    /// Its length.
    pub bytes: u64,
    /// Files, folders, links and so on.
    pub inodes: u64,
    /// The SHA-256 of the file.
    pub sha256: String,
    /// Of the filesystem; the first bytes of a digest of what it holds.
    pub uuid: String,
}

/// Makes an image; `out` is there once it is whole. An OCI layout with several images needs a tag. A file that has these bytes already
/// stays the file that it is, because kept machines know their image by that.
///
/// # Errors
/// [`ImageError`]; nothing is left then.
pub fn build(from: &Path, tag: Option<&str>, out: &Path, limits: Limits) -> Result<Built, ImageError> {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut tree = tree::Tree::new(folder, limits)?;
    let metadata = std::fs::metadata(from).map_err(ImageError::file(from))?;
    let (mut manifest, mut config, mut sockets_left_out) = (None, None, 0);
    let source = if metadata.is_dir() && from.join(oci::MARK).is_file() {
        let (digest, run) = oci::add(&mut tree, from, tag)?;
        (manifest, config) = (Some(digest), Some(run));
        Source::OciLayout
    } else if tag.is_some() {
        return Err(ImageError::Layout {
            path: from.to_owned(),
            what: "only an OCI layout has tags, and this has no file oci-layout".to_owned(),
        });
    } else if metadata.is_dir() {
        sockets_left_out = directory::add(&mut tree, from)?;
        Source::Directory
    } else {
        add_tar(&mut tree, from)?;
        Source::Tar
    };
    // A jailed VMM reads it as another user.
    let readable = Permissions::from_mode(0o644);
    let file = tempfile::Builder::new()
        .permissions(readable)
        .tempfile_in(folder)
        .map_err(ImageError::file(folder))?;
    erofs::write(&mut tree, file.as_file()).map_err(ImageError::file(out))?;
    let image = Inspection { path: out.to_owned(), ..inspect(file.path())? };
    let unchanged = is_there(&image);
    if !unchanged {
        file.persist(out).map_err(|error| error.error).map_err(ImageError::file(out))?;
    }
    Ok(Built { image, source, manifest, config, sockets_left_out, unchanged })
}

/// Whether an image's path has it: a file, not a link to one.
fn is_there(image: &Inspection) -> bool {
    let there = std::fs::symlink_metadata(&image.path);
    there.is_ok_and(|there| there.is_file() && there.len() == image.bytes)
        && inspect(&image.path).is_ok_and(|there| there == *image)
}

fn add_tar(tree: &mut tree::Tree, from: &Path) -> Result<(), ImageError> {
    let mut file = File::open(from).map_err(ImageError::file(from))?;
    let mut head = Vec::new();
    file.by_ref().take(8).read_to_end(&mut head).map_err(ImageError::file(from))?;
    let archive = BufReader::new(io::Cursor::new(head.clone()).chain(file));
    match Form::of(&head) {
        Some(Form::Gzip) => layer::apply(tree, decompress::gzip(archive)),
        Some(Form::Xz) => layer::apply(tree, decompress::xz(archive)),
        Some(Form::Zstd) => layer::apply(tree, decompress::zstd(archive).map_err(ImageError::Read)?),
        Some(Form::Lz4Legacy) | None => layer::apply(tree, archive),
    }?;
    if tree.has(oci::MARK.as_bytes()) {
        return Err(ImageError::Layout {
            path: from.to_owned(),
            what: "it is an OCI archive: unpack it and name its folder".to_owned(),
        });
    }
    Ok(())
}

/// Reads what an image is.
///
/// # Errors
/// [`ImageError::NoImage`], also for one that is cut.
pub fn inspect(path: &Path) -> Result<Inspection, ImageError> {
    let mut file = File::open(path).map_err(ImageError::file(path))?;
    let bytes = file.metadata().map_err(ImageError::file(path))?.len();
    let superblock = erofs::superblock(&mut file).map_err(ImageError::file(path))?;
    let Some(superblock) = superblock.filter(|superblock| superblock.bytes <= bytes) else {
        return Err(ImageError::NoImage(path.to_owned()));
    };
    io::Seek::rewind(&mut file).map_err(ImageError::file(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(ImageError::file(path))? {
            0 => break,
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
    Ok(Inspection {
        path: path.to_owned(),
        filesystem: "erofs",
        bytes,
        inodes: superblock.inodes,
        sha256: hex(&hash.finalize()),
        uuid: hex(&superblock.uuid),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
