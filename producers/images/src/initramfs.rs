//! The first root filesystem of a guest: a cpio archive in the "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Made without files of this machine, so that device nodes need no root. The same contents give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::kernel::Module;

/// Where the modules are in the guest, without the first `/`.
pub const MODULES_DIR: &str = "lib/modules";
/// Their file names within [`MODULES_DIR`], one a line, in the order in which they are to be loaded.
pub const MODULES_LIST: &str = "lib/modules/load";

/// `/init`, `/dev/console`, and whatever is added.
#[derive(Debug, Clone)]
pub struct Initramfs {
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Initramfs {
    /// With this static program as `/init`, which the kernel runs as PID 1.
    pub fn new(init: Vec<u8>) -> Self {
        Self { files: BTreeMap::from([("init".to_owned(), (0o755, init))]) }
    }

    /// Adds a file, at a path from the root, with its permission bits. The folders above it come by themselves.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is empty, relative to something (`..`), or taken by a folder or `/dev/console`.
    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> io::Result<()> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        let taken = folders(self.files.keys()).contains(path)
            || path == "dev/console"
            || path.match_indices('/').any(|(at, _)| self.files.contains_key(&path[..at]));
        if taken || !path.split('/').all(plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no file can be at {path:?}")));
        }
        self.files.insert(path.to_owned(), (mode & 0o7777, bytes));
        Ok(())
    }

    /// Adds kernel modules in the order in which they are to be loaded, and their list. One that is called `later` is not in the list.
    ///
    /// # Errors
    /// As [`Initramfs::file`].
    pub fn modules(&mut self, modules: Vec<Module>, later: Option<&str>) -> io::Result<()> {
        let first = modules.iter().filter(|module| later.is_none_or(|later| module.name != later));
        let list: String = first.map(|module| format!("{}.ko\n", module.name)).collect();
        for module in modules {
            self.file(&format!("{MODULES_DIR}/{}.ko", module.name), 0o644, module.bytes)?;
        }
        self.file(MODULES_LIST, 0o644, list.into_bytes())
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// What `out` says, and a file of 4 GiB or more, which the form cannot hold.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut inode = 0;
        let mut entry = |name: &str, kind, mode, device: (u32, u32), bytes: &[u8]| {
            inode += 1;
            let length = u32::try_from(bytes.len())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too large")))?;
            let head = Builder::new(name)
                .ino(inode)
                .mode(mode)
                .set_mode_file_type(kind)
                .rdev_major(device.0)
                .rdev_minor(device.1);
            let mut writer = head.write(&mut out, length);
            writer.write_all(bytes)?;
            writer.finish().map(drop)
        };
        let mut folders = folders(self.files.keys());
        folders.insert("dev");
        // A folder sorts before what is in it.
        for folder in folders {
            entry(folder, ModeFileType::Directory, 0o755, (0, 0), &[])?;
        }
        entry("dev/console", ModeFileType::Char, 0o600, (5, 1), &[])?;
        for (path, (mode, bytes)) in &self.files {
            entry(path, ModeFileType::Regular, *mode, (0, 0), bytes)?;
        }
        trailer(out).map(drop)
    }
}

/// Every folder above these paths.
fn folders<'a>(paths: impl Iterator<Item = &'a String>) -> std::collections::BTreeSet<&'a str> {
    paths.flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(archive: &Initramfs) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    /// Name, mode, device and contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn entries(archive: &[u8]) -> Vec<Entry> {
        let mut rest = archive;
        let mut all = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                return all;
            }
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
            all.push((
                entry.name().to_owned(),
                entry.mode(),
                (entry.rdev_major(), entry.rdev_minor()),
                bytes,
            ));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn an_archive_holds_console_init_and_modules_in_their_order() {
        let mut archive = Initramfs::new(b"program".to_vec());
        let module = |name: &str| Module { name: name.to_owned(), bytes: name.as_bytes().to_vec() };
        archive.modules(vec![module("virtio_ring"), module("virtio"), module("disk")], Some("disk")).unwrap();
        let expected = [
            ("dev", 0o040_755, (0, 0), ""),
            ("lib", 0o040_755, (0, 0), ""),
            ("lib/modules", 0o040_755, (0, 0), ""),
            ("dev/console", 0o020_600, (5, 1), ""),
            ("init", 0o100_755, (0, 0), "program"),
            // It is there, and not loaded with the others.
            ("lib/modules/disk.ko", 0o100_644, (0, 0), "disk"),
            ("lib/modules/load", 0o100_644, (0, 0), "virtio_ring.ko\nvirtio.ko\n"),
            ("lib/modules/virtio.ko", 0o100_644, (0, 0), "virtio"),
            ("lib/modules/virtio_ring.ko", 0o100_644, (0, 0), "virtio_ring"),
        ];
        let expected = expected
            .map(|(name, mode, device, text)| (name.to_owned(), mode, device, text.as_bytes().to_vec()));
        assert_eq!(entries(&bytes(&archive)), expected);
    }

    #[test]
    fn the_order_of_adding_changes_no_byte() {
        let of = |paths: [&str; 3]| {
            let mut archive = Initramfs::new(b"program".to_vec());
            for path in paths {
                archive.file(path, 0o644, path.as_bytes().to_vec()).unwrap();
            }
            bytes(&archive)
        };
        assert_eq!(of(["etc/a", "bin/x", "etc/b"]), of(["etc/b", "etc/a", "bin/x"]));
    }

    #[test]
    fn a_path_that_leaves_the_root_or_is_taken_is_refused() {
        let mut archive = Initramfs::new(b"program".to_vec());
        archive.file("/etc/hosts", 0o644, Vec::new()).unwrap();
        for path in
            ["", "/", "../x", "a/../x", "a//b", "a/", "etc", "init/x", "etc/hosts/x", "dev/console", "a\0b"]
        {
            let error = archive.file(path, 0o644, Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        archive.file("init", 0o755, b"another".to_vec()).unwrap();
        assert!(
            entries(&bytes(&archive)).iter().any(|(name, .., bytes)| name == "init" && bytes == b"another")
        );
    }
}
