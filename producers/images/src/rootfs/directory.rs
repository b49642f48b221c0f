//! A folder of this machine as the root of an image.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::ImageError;
use super::tree::{Attributes, Kind, Tree};

/// Adds all that is in a folder, in the order of the names. Times and owners are of whoever laid the folder out, and not
/// taken: files belong to root and are of 1970. Returns how many sockets were left out, which no image can hold.
pub(super) fn add(tree: &mut Tree, root: &Path) -> Result<usize, ImageError> {
    let mut left_out = 0;
    // Hard links within the folder, by device and inode: the path that was first.
    let mut linked: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut paths: Vec<_> =
            entries.map_err(ImageError::file(&folder))?.iter().map(std::fs::DirEntry::path).collect();
        paths.sort();
        // The root itself stays open to all: this folder may be a temporary one that is not.
        if folder != root {
            let metadata = std::fs::symlink_metadata(&folder).map_err(ImageError::file(&folder))?;
            tree.put(within(root, &folder), attributes(&metadata), Kind::Directory(BTreeMap::new()))?;
        }
        for path in paths {
            let metadata = std::fs::symlink_metadata(&path).map_err(ImageError::file(&path))?;
            let (kind, at) = (metadata.file_type(), within(root, &path));
            if kind.is_dir() {
                folders.push(path);
                continue;
            }
            if metadata.nlink() > 1 {
                let key = (metadata.dev(), metadata.ino());
                if let Some(first) = linked.get(&key) {
                    tree.put_hard_link(at, first)?;
                    continue;
                }
                linked.insert(key, at.to_vec());
            }
            // Both types differ between systems.
            let device = metadata.rdev() as libc::dev_t;
            let (major, minor) = (libc::major(device) as u32, libc::minor(device) as u32);
            let kind = if kind.is_file() {
                Kind::File(tree.store(open(&path)?)?)
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).map_err(ImageError::file(&path))?;
                Kind::Symlink(target.as_os_str().as_bytes().to_vec())
            } else if kind.is_char_device() {
                Kind::CharacterDevice(major, minor)
            } else if kind.is_block_device() {
                Kind::BlockDevice(major, minor)
            } else if kind.is_fifo() {
                Kind::Fifo
            } else {
                left_out += 1;
                continue;
            };
            tree.put(at, attributes(&metadata), kind)?;
        }
    }
    Ok(left_out)
}

/// What was a file a moment ago may be a link or a fifo by now.
fn open(path: &Path) -> Result<File, ImageError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(ImageError::file(path))
}

fn within<'a>(root: &Path, path: &'a Path) -> &'a [u8] {
    path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes()
}

fn attributes(metadata: &Metadata) -> Attributes {
    // The mask leaves twelve bits.
    let mode = u16::try_from(metadata.mode() & 0o7777).unwrap_or_default();
    Attributes { mode, ..Attributes::default() }
}
