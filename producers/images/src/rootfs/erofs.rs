//! Writes and recognises EROFS, uncompressed: the read-only filesystem that a guest reads with the least work
//! (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h; readable since Linux 5.4).
//!
//! ```text
//!   block 0         superblock at 1024
//!   blocks          whole blocks of files, in the order of the tree
//!   metadata        inodes, each with its attributes and the last, partial block of its data behind it
//! ```
//!
//! Written here, because `mkfs.erofs` of Debian 12 takes only a folder, whose owners and devices need root, and because the
//! bytes must not change with the version of a tool.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use super::tree::{Contents, Inode, InodeId, Kind, ROOT, Tree};

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_AT: u64 = 1024;
pub(super) const SUPERBLOCK_BYTES: usize = 128;
const BLOCK_BYTES: u64 = 4096;
const BLOCK_BITS: u8 = 12;
/// An inode's number is its place in slots of this size.
const SLOT_BYTES: u64 = 32;
/// The root is not number 0, which programs take for an entry that is no more.
const FIRST_INODE_AT: u64 = 2 * SLOT_BYTES;
const INODE_BYTES: u64 = 64;
const DIRENT_BYTES: usize = 12;
/// Inodes of 64 bytes; the data is in whole blocks, or its last part behind the inode.
const EXTENDED_PLAIN: u16 = 1;
const EXTENDED_INLINE: u16 = 1 | (2 << 1);
/// `feature_compat`: the times are those of the files.
const FEATURE_MTIME: u32 = 2;
/// Attribute names are stored without these beginnings (fs/erofs/xattr.h).
const XATTR_PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];

/// Which attributes the guest would know; others say nothing to a Linux kernel.
pub(super) fn keeps_xattr(name: &[u8]) -> bool {
    prefix(name).is_some()
}

fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// One inode of the image, in the order in which they are written.
struct Place {
    id: InodeId,
    parent: usize,
    /// From the start of the metadata.
    at: u64,
    /// The first block of its data.
    block: u32,
    data_bytes: u64,
    links: u32,
    /// Whether the last part of the data is behind the inode.
    inline: bool,
    xattrs: Vec<u8>,
}

impl Place {
    fn whole_blocks(&self) -> u64 {
        if self.inline { self.data_bytes / BLOCK_BYTES } else { self.data_bytes.div_ceil(BLOCK_BYTES) }
    }

    fn tail_bytes(&self) -> u64 {
        if self.inline { self.data_bytes % BLOCK_BYTES } else { 0 }
    }

    fn number(&self) -> u64 {
        self.at / SLOT_BYTES
    }
}

/// Writes the image of a tree and returns how many inodes it has. What the tree holds decides every byte.
pub(super) fn write(tree: &mut Tree, out: &File) -> io::Result<u64> {
    let contents = tree.contents()?.try_clone()?;
    let (mut places, by_id) = order(tree);
    let mut at = FIRST_INODE_AT;
    let mut block = 1_u64;
    for place in &mut places {
        place.lay(&mut at);
        place.block = u32::try_from(block).map_err(io::Error::other)?;
        block += place.whole_blocks();
    }
    let metadata_block = u32::try_from(block).map_err(io::Error::other)?;
    let blocks = u32::try_from(block + at.div_ceil(BLOCK_BYTES)).map_err(io::Error::other)?;

    let mut image = Image { hash: Sha256::new(), out: BufWriter::with_capacity(1 << 20, out), at: 0 };
    image.out.write_all(&[0; BLOCK_BYTES as usize])?;
    for place in &places {
        if place.whole_blocks() > 0 {
            data(tree, &contents, place, &places, &by_id, 0, &mut image)?;
            image.pad_to(BLOCK_BYTES)?;
        }
    }
    image.at = 0;
    for place in &places {
        image.zeros(place.at - image.at)?;
        image.write_all(&inode(tree.inode(place.id), place))?;
        image.write_all(&place.xattrs)?;
        if place.tail_bytes() > 0 {
            let whole = place.whole_blocks() * BLOCK_BYTES;
            data(tree, &contents, place, &places, &by_id, whole, &mut image)?;
        }
    }
    image.pad_to(BLOCK_BYTES)?;
    image.out.flush()?;
    let digest = image.hash.finalize();

    let root = places.first().map(Place::number).unwrap_or_default();
    let mut superblock = Vec::with_capacity(SUPERBLOCK_BYTES);
    superblock.extend(MAGIC.to_le_bytes());
    superblock.extend([0; 4]);
    superblock.extend(FEATURE_MTIME.to_le_bytes());
    superblock.extend([BLOCK_BITS, 0]);
    superblock.extend(u16::try_from(root).map_err(io::Error::other)?.to_le_bytes());
    superblock.extend((places.len() as u64).to_le_bytes());
    // Built at no time.
    superblock.extend([0; 12]);
    superblock.extend(blocks.to_le_bytes());
    superblock.extend(metadata_block.to_le_bytes());
    superblock.extend([0; 4]);
    // The image's identity is what it holds.
    superblock.extend(digest.iter().take(16));
    superblock.resize(SUPERBLOCK_BYTES, 0);
    out.write_all_at(&superblock, SUPERBLOCK_AT)?;
    Ok(places.len() as u64)
}

/// Every inode once, folders before what is in them, names in their order; and where each is in that list.
fn order(tree: &Tree) -> (Vec<Place>, Vec<Option<usize>>) {
    let mut by_id = vec![None; tree.len()];
    let mut places: Vec<Place> = Vec::new();
    // Each with the place of the folder it was found in.
    let mut open = vec![(ROOT, 0)];
    while let Some((id, parent)) = open.pop() {
        if let Some(known) = by_id.get(id.0).copied().flatten() {
            let place: &mut Place = &mut places[known];
            place.links += 1;
            continue;
        }
        let inode = tree.inode(id);
        let here = places.len();
        let (mut links, mut data_bytes) = (1, 0);
        match &inode.kind {
            Kind::Directory(children) => {
                let is_folder = |id: &&InodeId| matches!(tree.inode(**id).kind, Kind::Directory(_));
                // Its own name, its `.`, and the `..` of every folder in it.
                links =
                    2 + u32::try_from(children.values().filter(is_folder).count()).unwrap_or(u32::MAX - 2);
                data_bytes = blocks_of_names(children).1;
                open.extend(children.values().rev().map(|child| (*child, here)));
            }
            Kind::File(contents) => data_bytes = contents.bytes,
            Kind::Symlink(target) => data_bytes = target.len() as u64,
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => {}
        }
        if let Some(place) = by_id.get_mut(id.0) {
            *place = Some(here);
        }
        let xattrs = xattrs(&inode.attributes.xattrs);
        places.push(Place { id, parent, at: 0, block: 0, data_bytes, links, inline: false, xattrs });
    }
    (places, by_id)
}

impl Place {
    /// Takes the next place in the metadata. Inode, attributes and inline data may not cross a block.
    fn lay(&mut self, at: &mut u64) {
        let head = INODE_BYTES + self.xattrs.len() as u64;
        let tail = self.data_bytes % BLOCK_BYTES;
        self.inline = tail > 0 && head + tail <= BLOCK_BYTES;
        let bytes = head + self.tail_bytes();
        if *at % BLOCK_BYTES + bytes > BLOCK_BYTES {
            *at = at.next_multiple_of(BLOCK_BYTES);
        }
        self.at = *at;
        *at = (*at + bytes).next_multiple_of(SLOT_BYTES);
    }
}

fn inode(inode: &Inode, place: &Place) -> Vec<u8> {
    let (kind, number) = match inode.kind {
        Kind::Directory(_) => (libc::S_IFDIR, place.block),
        Kind::File(_) => (libc::S_IFREG, place.block),
        Kind::Symlink(_) => (libc::S_IFLNK, place.block),
        Kind::CharacterDevice(major, minor) => (libc::S_IFCHR, device(major, minor)),
        Kind::BlockDevice(major, minor) => (libc::S_IFBLK, device(major, minor)),
        Kind::Fifo => (libc::S_IFIFO, 0),
    };
    let attributes = &inode.attributes;
    // The kinds stand in the upper four of sixteen bits.
    let mode = u16::try_from(kind).unwrap_or_default() | attributes.mode;
    let xattr_count = match place.xattrs.len() {
        0 => 0,
        bytes => u16::try_from((bytes - 12) / 4 + 1).unwrap_or_default(),
    };
    let mut bytes = Vec::with_capacity(INODE_BYTES as usize);
    bytes.extend(if place.inline { EXTENDED_INLINE } else { EXTENDED_PLAIN }.to_le_bytes());
    bytes.extend(xattr_count.to_le_bytes());
    bytes.extend(mode.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(place.data_bytes.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    // For programs that only know numbers of 32 bits.
    bytes.extend((place.number() as u32).to_le_bytes());
    bytes.extend(attributes.uid.to_le_bytes());
    bytes.extend(attributes.gid.to_le_bytes());
    bytes.extend(attributes.mtime_unix_s.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(place.links.to_le_bytes());
    bytes.resize(INODE_BYTES as usize, 0);
    bytes
}

/// `new_encode_dev` of include/linux/kdev_t.h.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// A header, and each attribute as two lengths, the index of its prefix, the rest of its name, and its value.
fn xattrs(all: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    for (name, value) in all {
        let Some((index, name)) = prefix(name) else { continue };
        // Both are bounded where they were read.
        bytes.extend([u8::try_from(name.len()).unwrap_or_default(), index]);
        bytes.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
        bytes.extend(name.iter().chain(value));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() == 12 { Vec::new() } else { bytes }
}

/// The data of an inode from a byte on: to the end of its whole blocks, or its tail.
fn data(
    tree: &Tree,
    contents: &File,
    place: &Place,
    places: &[Place],
    by_id: &[Option<usize>],
    from: u64,
    image: &mut Image<'_>,
) -> io::Result<()> {
    let whole = place.whole_blocks() * BLOCK_BYTES;
    let to = if from < whole { whole.min(place.data_bytes) } else { place.data_bytes };
    let mut slice = |bytes: &[u8]| {
        let range = usize::try_from(from).ok().zip(usize::try_from(to).ok());
        image.write_all(range.and_then(|(from, to)| bytes.get(from..to)).unwrap_or_default())
    };
    match &tree.inode(place.id).kind {
        Kind::Directory(children) => slice(&folder(tree, children, place, places, by_id)),
        Kind::Symlink(target) => slice(target),
        Kind::File(file) => copy(contents, *file, from, to, image),
        Kind::CharacterDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => Ok(()),
    }
}

fn copy(contents: &File, file: Contents, from: u64, to: u64, image: &mut Image<'_>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = from;
    while at < to {
        let wanted = usize::try_from(to - at).unwrap_or(buffer.len()).min(buffer.len());
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        contents.read_exact_at(piece, file.offset + at)?;
        image.write_all(piece)?;
        at += wanted as u64;
    }
    Ok(())
}

/// The names of each block of a folder, `.` and `..` among them, and how many bytes all blocks take.
fn blocks_of_names(children: &BTreeMap<Vec<u8>, InodeId>) -> (Vec<Vec<&[u8]>>, u64) {
    let dots = [&b"."[..], b".."];
    let mut names: Vec<&[u8]> = children.keys().map(Vec::as_slice).chain(dots).collect();
    names.sort_unstable();
    let mut blocks: Vec<Vec<&[u8]>> = vec![Vec::new()];
    let mut used = 0;
    for name in names {
        let needed = DIRENT_BYTES + name.len();
        if used + needed > BLOCK_BYTES as usize {
            blocks.push(Vec::new());
            used = 0;
        }
        used += needed;
        if let Some(block) = blocks.last_mut() {
            block.push(name);
        }
    }
    let bytes = (blocks.len() as u64 - 1) * BLOCK_BYTES + used as u64;
    (blocks, bytes)
}

/// The data of a folder: in each block its entries, and behind them their names.
fn folder(
    tree: &Tree,
    children: &BTreeMap<Vec<u8>, InodeId>,
    place: &Place,
    places: &[Place],
    by_id: &[Option<usize>],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for names in blocks_of_names(children).0 {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let mut name_at = names.len() * DIRENT_BYTES;
        for name in &names {
            let target = match *name {
                b"." => Some(place),
                b".." => places.get(place.parent),
                name => children.get(name).and_then(|id| places.get((*by_id.get(id.0)?)?)),
            };
            // Every name has an inode, and all of them a place.
            let Some(target) = target else { continue };
            let kind: u8 = match tree.inode(target.id).kind {
                Kind::File(_) => 1,
                Kind::Directory(_) => 2,
                Kind::CharacterDevice(..) => 3,
                Kind::BlockDevice(..) => 4,
                Kind::Fifo => 5,
                Kind::Symlink(_) => 7,
            };
            bytes.extend(target.number().to_le_bytes());
            // Below the size of a block.
            bytes.extend(u16::try_from(name_at).unwrap_or_default().to_le_bytes());
            bytes.extend([kind, 0]);
            name_at += name.len();
        }
        bytes.extend(names.concat());
    }
    bytes
}

/// The image as it is written, and the digest of what was.
struct Image<'a> {
    out: BufWriter<&'a File>,
    hash: Sha256,
    at: u64,
}

impl Image<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        let zeros = [0; BLOCK_BYTES as usize];
        let count = usize::try_from(count).unwrap_or(zeros.len());
        self.write_all(zeros.get(..count).unwrap_or(&zeros))
    }

    fn pad_to(&mut self, size: u64) -> io::Result<()> {
        self.zeros(self.at.next_multiple_of(size) - self.at)
    }
}

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) inodes: u64,
    pub(super) bytes: u64,
    pub(super) uuid: [u8; 16],
}

/// Reads the superblock of an uncompressed image; `None` if it is none.
pub(super) fn superblock(image: &mut File) -> io::Result<Option<Superblock>> {
    let mut head = Vec::new();
    image.seek(SeekFrom::Start(SUPERBLOCK_AT))?;
    image.take(SUPERBLOCK_BYTES as u64).read_to_end(&mut head)?;
    let parse = || {
        let u32_at = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
        if u32_at(0)? != MAGIC || *head.get(12)? != BLOCK_BITS {
            return None;
        }
        Some(Superblock {
            inodes: u64::from_le_bytes(*head.get(16..)?.first_chunk()?),
            bytes: u64::from(u32_at(36)?) * BLOCK_BYTES,
            uuid: *head.get(48..)?.first_chunk()?,
        })
    };
    Ok(parse())
}
