//! Images are made from every kind of source and read back by another implementation (`erofs-rs`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod directory;
mod oci;
mod tar;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use glasshouse_images::rootfs::{Built, ImageError, Limits, build};

/// What stands at a path: mode with kind, owner, group, time, links, and contents, target or device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime_unix_s: i64,
    links: u32,
    what: What,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Folder,
    File(Vec<u8>),
    Symlink(String),
    Device(u32, u32),
    Other,
}

fn make(from: &Path, tag: Option<&str>) -> Result<(Built, Vec<u8>), ImageError> {
    within(from, tag, Limits::default())
}

fn within(from: &Path, tag: Option<&str>, limits: Limits) -> Result<(Built, Vec<u8>), ImageError> {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("image");
    let built = build(from, tag, &path, limits);
    let left = std::fs::read_dir(out.path()).unwrap().count();
    assert_eq!(left, usize::from(built.is_ok()), "an image or nothing");
    let built = built?;
    assert_eq!(glasshouse_images::rootfs::inspect(&path).unwrap(), built.image);
    Ok((built, std::fs::read(&path).unwrap()))
}

/// Everything in an image, by its path.
fn read(image: &[u8]) -> BTreeMap<String, Found> {
    let erofs = EroFS::new(SliceImage::new(image)).unwrap();
    let mut all = BTreeMap::new();
    let root = erofs.super_block().root_inode_id();
    let mut open = vec![(String::new(), root)];
    while let Some((path, number)) = open.pop() {
        let inode = erofs.get_inode(number).unwrap();
        let what = if inode.is_dir() {
            for entry in erofs.read_dir(format!("/{path}")).unwrap() {
                let entry = entry.unwrap();
                let name = String::from_utf8_lossy(entry.dir_entry.file_name()).into_owned();
                if name != "." && name != ".." {
                    let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                    open.push((path, entry.dir_entry.nid()));
                }
            }
            What::Folder
        } else if inode.is_file() {
            let mut bytes = Vec::new();
            erofs.open_inode_file(inode).unwrap().read_to_end(&mut bytes).unwrap();
            What::File(bytes)
        } else if inode.is_symlink() {
            What::Symlink(erofs.read_link_inode(inode).unwrap().display().to_string())
        } else if let Some((major, minor)) = inode.device() {
            What::Device(major, minor)
        } else {
            What::Other
        };
        let xattrs = erofs.xattrs_inode(inode).unwrap().into_iter().collect();
        let found = Found {
            mode: u16::try_from(std::os::unix::fs::PermissionsExt::mode(&inode.permissions()) & 0o7777)
                .unwrap(),
            uid: inode.uid(),
            gid: inode.gid(),
            mtime_unix_s: inode.modified_unix().0,
            links: inode.nlink(),
            what,
            xattrs,
        };
        all.insert(path, found);
    }
    all
}

fn file(all: &BTreeMap<String, Found>, path: &str) -> Vec<u8> {
    match all.get(path).map(|found| &found.what) {
        Some(What::File(bytes)) => bytes.clone(),
        other => panic!("{path}: {other:?}"),
    }
}
