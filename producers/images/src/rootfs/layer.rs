//! A tar archive as a layer: on its own the root of an image, or one of an OCI image, where whiteouts take away what earlier
//! layers brought (OCI image-spec v1.1, layer.md).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::tree::{Attributes, Contents, Kind, Tree, refused};
use super::{ImageError, erofs, hex};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How pax archives name an extended attribute (`star` and GNU tar).
const PAX_XATTR: &[u8] = b"SCHILY.xattr.";
/// What stands between the contents of two files: names, attributes, padding. The `tar` crate keeps it in memory.
const MAX_BETWEEN_BYTES: u64 = 1 << 20;
/// All attributes of a file have to fit beside its inode.
const MAX_XATTR_BYTES: usize = 2048;

/// Applies an unpacked tar archive; returns the SHA-256 of all its bytes.
pub(super) fn apply(tree: &mut Tree, archive: impl Read) -> Result<String, ImageError> {
    tree.next_layer();
    let budget = Rc::new(Cell::new(MAX_BETWEEN_BYTES));
    let limit = tree.limits().bytes;
    let mut metered =
        Metered { inner: archive, budget: Rc::clone(&budget), left: limit, hash: Sha256::new() };
    {
        let mut archive = Archive::new(&mut metered);
        for entry in archive.entries().map_err(ImageError::Read)? {
            let mut entry = entry.map_err(|error| too_large(error, limit))?;
            budget.set(u64::MAX);
            one(tree, &mut entry).map_err(|error| match error {
                ImageError::Read(error) => too_large(error, limit),
                other => other,
            })?;
            budget.set(MAX_BETWEEN_BYTES);
        }
    }
    // The end mark may be followed by more zeros, which are hashed too.
    budget.set(u64::MAX);
    io::copy(&mut metered, &mut io::sink()).map_err(|error| too_large(error, limit))?;
    Ok(hex(&metered.hash.finalize()))
}

fn too_large(error: io::Error, limit: u64) -> ImageError {
    if error.kind() == io::ErrorKind::FileTooLarge {
        ImageError::TooLarge { limit }
    } else {
        ImageError::Read(error)
    }
}

fn one(tree: &mut Tree, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), ImageError> {
    let path = entry.path_bytes().into_owned();
    let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
    let (folder, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
        Some(at) => trimmed.split_at(at + 1),
        None => (&b""[..], trimmed),
    };
    if name == OPAQUE {
        return tree.make_opaque(folder);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if hidden.is_empty() || hidden.starts_with(WHITEOUT) {
            return Err(refused(&path, "no such whiteout is known"));
        }
        return tree.white_out(&[folder, hidden].concat());
    }
    let header = entry.header().clone();
    let link = || {
        let target = entry.link_name_bytes().ok_or_else(|| refused(&path, "it is a link to nothing"))?;
        Ok::<_, ImageError>(target.into_owned())
    };
    let device = || {
        let major = header.device_major().map_err(ImageError::Read)?;
        let minor = header.device_minor().map_err(ImageError::Read)?;
        Ok::<_, ImageError>((major.unwrap_or_default(), minor.unwrap_or_default()))
    };
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File(Contents::default()),
        EntryType::Directory => Kind::Directory(BTreeMap::new()),
        EntryType::Symlink => Kind::Symlink(link()?),
        EntryType::Link => return tree.put_hard_link(&path, &link()?),
        EntryType::Char => device().map(|(major, minor)| Kind::CharacterDevice(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        // Of the archive, not of a file.
        EntryType::XGlobalHeader => return Ok(()),
        _ => return Err(refused(&path, "the archive holds a kind of entry that is not known here")),
    };
    let attributes = attributes(&path, &header, entry)?;
    let kind = if let Kind::File(_) = kind { Kind::File(tree.store(&mut *entry)?) } else { kind };
    tree.put(&path, attributes, kind)
}

fn attributes(
    path: &[u8],
    header: &tar::Header,
    entry: &mut tar::Entry<'_, impl Read>,
) -> Result<Attributes, ImageError> {
    let mut xattrs = BTreeMap::new();
    let mut bytes = 0;
    for extension in entry.pax_extensions().map_err(ImageError::Read)?.into_iter().flatten() {
        let extension = extension.map_err(ImageError::Read)?;
        let Some(name) = extension.key_bytes().strip_prefix(PAX_XATTR) else { continue };
        if !erofs::keeps_xattr(name) {
            continue;
        }
        // Names and values share their fields with lengths of one and two bytes.
        bytes += name.len() + extension.value_bytes().len() + 8;
        if bytes > MAX_XATTR_BYTES || name.len() > usize::from(u8::MAX) {
            return Err(refused(path, "its extended attributes are too large"));
        }
        xattrs.insert(name.to_vec(), extension.value_bytes().to_vec());
    }
    let id = |id: io::Result<u64>| u32::try_from(id?).map_err(io::Error::other);
    let fields = || {
        io::Result::Ok(Attributes {
            // The mask leaves twelve bits.
            mode: u16::try_from(header.mode()? & 0o7777).unwrap_or_default(),
            uid: id(header.uid())?,
            gid: id(header.gid())?,
            mtime_unix_s: header.mtime()?,
            xattrs: BTreeMap::new(),
        })
    };
    Ok(Attributes { xattrs, ..fields().map_err(ImageError::Read)? })
}

/// Counts and hashes what is read, and ends where a hostile archive would take too much.
struct Metered<R> {
    inner: R,
    /// What may still be read until the next entry.
    budget: Rc<Cell<u64>>,
    /// What may still be read at all.
    left: u64,
    hash: Sha256,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let taken = read as u64;
        let over = || io::Error::from(io::ErrorKind::FileTooLarge);
        self.left = self.left.checked_sub(taken).ok_or_else(over)?;
        self.budget.set(self.budget.get().checked_sub(taken).ok_or_else(over)?);
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
