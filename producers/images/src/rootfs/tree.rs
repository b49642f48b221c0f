//! A root filesystem in memory: names and attributes as a tree, the contents of files in one temporary file.
//!
//! Sources never write to the filesystem of this machine, so no path and no link in them can lead anywhere: `..` is refused,
//! and nothing is looked up through a symbolic link.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write as _};
use std::path::Path;

use super::ImageError;

/// What a name and a link's target may have, as in the kernel.
const MAX_NAME_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4096;
pub(super) const ROOT: InodeId = InodeId(0);

/// What one image may hold. A source decides what it unpacks to, and may be hostile.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All bytes of files, and of an archive, unpacked.
    pub bytes: u64,
    /// Files, folders, links and so on.
    pub inodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 30, inodes: 2_000_000 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InodeId(pub(super) usize);

/// What of an inode is no matter of its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The permission bits, with set-user-id and the like.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_unix_s: u64,
    /// By their full names, such as `security.capability`.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory(BTreeMap<Vec<u8>, InodeId>),
    File(Contents),
    Symlink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Where the bytes of a file are in the temporary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Contents {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) attributes: Attributes,
    pub(super) kind: Kind,
    /// The layer that was the last to tell of it.
    layer: usize,
}

#[derive(Debug)]
pub(super) struct Tree {
    inodes: Vec<Inode>,
    /// What is applied now; a whiteout only takes what earlier layers brought.
    layer: usize,
    limits: Limits,
    spool: BufWriter<File>,
    spooled: u64,
}

impl Tree {
    /// An empty root, with its temporary file in `scratch`.
    pub(super) fn new(scratch: &Path, limits: Limits) -> Result<Self, ImageError> {
        let spool = tempfile::tempfile_in(scratch).map_err(ImageError::file(scratch))?;
        let root = Inode {
            attributes: Attributes { mode: 0o755, ..Attributes::default() },
            kind: Kind::Directory(BTreeMap::new()),
            layer: 0,
        };
        Ok(Self { inodes: vec![root], layer: 0, limits, spool: BufWriter::new(spool), spooled: 0 })
    }

    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    pub(super) fn has(&self, name_in_root: &[u8]) -> bool {
        self.children(ROOT).is_some_and(|all| all.contains_key(name_in_root))
    }

    /// All inodes that were ever added; some may be reachable no more.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// The temporary file with everything in it.
    pub(super) fn contents(&mut self) -> std::io::Result<&File> {
        self.spool.flush()?;
        Ok(self.spool.get_ref())
    }

    /// Takes the bytes of a file.
    pub(super) fn store(&mut self, mut bytes: impl Read) -> Result<Contents, ImageError> {
        let room = self.limits.bytes - self.spooled;
        let taken = std::io::copy(&mut bytes.by_ref().take(room.saturating_add(1)), &mut self.spool)
            .map_err(ImageError::Read)?;
        if taken > room {
            return Err(ImageError::TooLarge { limit: self.limits.bytes });
        }
        let contents = Contents { offset: self.spooled, bytes: taken };
        self.spooled += taken;
        Ok(contents)
    }

    /// Puts something at a path, in place of what is there. A folder over a folder keeps what is in it.
    pub(super) fn put(&mut self, path: &[u8], attributes: Attributes, kind: Kind) -> Result<(), ImageError> {
        if let Kind::Symlink(target) = &kind
            && (target.is_empty() || target.len() >= MAX_PATH_BYTES || target.contains(&0))
        {
            return Err(refused(path, "the target of the link cannot be"));
        }
        let is_folder = matches!(kind, Kind::Directory(_));
        let Some((parent, name)) = self.place(path)? else {
            // The root itself.
            if !is_folder {
                return Err(refused(path, "only a folder can be the root"));
            }
            self.inodes[ROOT.0].attributes = attributes;
            return Ok(());
        };
        let layer = self.layer;
        if is_folder
            && let Some(existing) = self.children(parent).and_then(|all| all.get(&name).copied())
            && matches!(self.inode(existing).kind, Kind::Directory(_))
        {
            let inode = &mut self.inodes[existing.0];
            (inode.attributes, inode.layer) = (attributes, layer);
            return Ok(());
        }
        let id = self.add(Inode { attributes, kind, layer })?;
        self.link(parent, name, id);
        Ok(())
    }

    /// Gives a file one more name.
    pub(super) fn put_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), ImageError> {
        let found = self.find(target)?;
        let Some(found) = found.filter(|id| !matches!(self.inode(*id).kind, Kind::Directory(_))) else {
            return Err(refused(path, "the file that it is a hard link to is not there"));
        };
        let Some((parent, name)) = self.place(path)? else {
            return Err(refused(path, "only a folder can be the root"));
        };
        self.inodes[found.0].layer = self.layer;
        self.link(parent, name, found);
        Ok(())
    }

    /// Takes away what earlier layers have at a path.
    pub(super) fn white_out(&mut self, path: &[u8]) -> Result<(), ImageError> {
        let parts = parts(path)?;
        let Some((name, above)) = parts.split_last() else {
            return Err(refused(path, "the root cannot be removed"));
        };
        let Some(parent) = self.walk(path, above)? else { return Ok(()) };
        let Some(found) = self.step(path, parent, name)? else { return Ok(()) };
        if self.inode(found).layer < self.layer {
            self.children_mut(parent).map(|all| all.remove(*name));
        } else {
            self.empty_of_earlier(found);
        }
        Ok(())
    }

    /// Takes away what earlier layers have in a folder.
    pub(super) fn make_opaque(&mut self, folder: &[u8]) -> Result<(), ImageError> {
        if let Some(folder) = self.find(folder)? {
            self.empty_of_earlier(folder);
        }
        Ok(())
    }

    fn empty_of_earlier(&mut self, folder: InodeId) {
        let layer = self.layer;
        // By a list and not by recursion: a source decides how deep it goes.
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            let Some(children) = self.children(folder) else { continue };
            let (gone, kept): (Vec<_>, Vec<_>) =
                children.clone().into_iter().partition(|(_, id)| self.inode(*id).layer < layer);
            if let Some(children) = self.children_mut(folder) {
                for (name, _) in gone {
                    children.remove(&name);
                }
            }
            folders.extend(kept.into_iter().map(|(_, id)| id));
        }
    }

    /// The folder and the name that a path ends in, with the folders above it made where they are missing; `None` for
    /// the root.
    fn place(&mut self, path: &[u8]) -> Result<Option<(InodeId, Vec<u8>)>, ImageError> {
        let mut parts = parts(path)?;
        let Some(name) = parts.pop() else { return Ok(None) };
        let mut folder = ROOT;
        for part in parts {
            let next = match self.step(path, folder, part)? {
                Some(next) => next,
                None => {
                    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
                    let layer = self.layer;
                    let id = self.add(Inode { attributes, kind: Kind::Directory(BTreeMap::new()), layer })?;
                    self.link(folder, part.to_vec(), id);
                    id
                }
            };
            folder = next;
            // What is in it is of this layer, so the whiteout of an earlier one must not take it.
            self.inodes[folder.0].layer = self.layer;
        }
        // Whether that is a folder, `step` says.
        self.step(path, folder, name)?;
        Ok(Some((folder, name.to_vec())))
    }

    fn find(&self, path: &[u8]) -> Result<Option<InodeId>, ImageError> {
        self.walk(path, &parts(path)?)
    }

    fn walk(&self, path: &[u8], parts: &[&[u8]]) -> Result<Option<InodeId>, ImageError> {
        let mut found = ROOT;
        for part in parts {
            match self.step(path, found, part)? {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    fn step(&self, path: &[u8], folder: InodeId, part: &[u8]) -> Result<Option<InodeId>, ImageError> {
        match &self.inode(folder).kind {
            Kind::Directory(children) => Ok(children.get(part).copied()),
            Kind::Symlink(_) => Err(refused(path, "it goes through a symbolic link")),
            _ => Err(refused(path, "what should be a folder above it is none")),
        }
    }

    fn children(&self, folder: InodeId) -> Option<&BTreeMap<Vec<u8>, InodeId>> {
        if let Kind::Directory(children) = &self.inode(folder).kind { Some(children) } else { None }
    }

    fn children_mut(&mut self, folder: InodeId) -> Option<&mut BTreeMap<Vec<u8>, InodeId>> {
        if let Kind::Directory(children) = &mut self.inodes[folder.0].kind { Some(children) } else { None }
    }

    fn add(&mut self, inode: Inode) -> Result<InodeId, ImageError> {
        if self.inodes.len() >= self.limits.inodes {
            return Err(ImageError::TooMany { limit: self.limits.inodes });
        }
        self.inodes.push(inode);
        Ok(InodeId(self.inodes.len() - 1))
    }

    fn link(&mut self, folder: InodeId, name: Vec<u8>, id: InodeId) {
        self.children_mut(folder).map(|children| children.insert(name, id));
    }
}

pub(super) fn refused(path: &[u8], why: &'static str) -> ImageError {
    ImageError::Refused { path: String::from_utf8_lossy(path).into_owned(), why }
}

/// The names of a path from the root of the image; a `/` at its beginning changes nothing.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, ImageError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(refused(path.get(..64).unwrap_or(path), "the path is too long"));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    for part in &parts {
        if *part == b".." {
            return Err(refused(path, "it leaves the image"));
        }
        if part.len() > MAX_NAME_BYTES || part.contains(&0) {
            return Err(refused(path, "a name in it cannot be"));
        }
    }
    Ok(parts)
}
