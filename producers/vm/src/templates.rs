//! Templates of machines in the user's cache, which any later run restores.
//!
//! One file each, called `VMM-KEY-DIGEST`: what its machine was made of, and the SHA-256 of what is in it, which is looked at before every
//! use. It is written under another name and renamed, so that whoever finds it finds all of it; of two runs that make the same one, the
//! last one's stays. What takes more than [`MAX_BYTES`] goes, the longest unused first. Only its owner can read or write it:
//! a VMM gets what is in it from us.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use glasshouse_schema::ids::Digest;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// What all templates may take together.
const MAX_BYTES: u64 = 1 << 30;
/// What is being written is called so.
const UNFINISHED: &str = ".new-";
/// When nobody writes it any more.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
/// Permissions by which others than the owner could write.
const OTHERS_WRITE: u32 = 0o022;
const BUFFER_BYTES: usize = 1 << 20;

/// What a machine is made of: two with the same key are the same machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// Of a VMM of this name, by all that a machine is made of. A template is of no use after the host booted anew: its processor, and
    /// how fast its clock runs, may be another's by then.
    pub(crate) fn new(vmm: &str, parts: &[&[u8]]) -> io::Result<Self> {
        let host = fs::read("/proc/sys/kernel/random/boot_id")?;
        let mut hash = Sha256::new();
        for part in [&[host.as_slice(), env!("CARGO_PKG_VERSION").as_bytes()], parts].concat() {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = Digest::from_bytes(hash.finalize().into());
        Ok(Self(format!("{vmm}-{digest}-")))
    }
}

/// Which file this is, and which version of it: what no program can make another file have.
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let of = fs::metadata(path)?;
    let times = [(of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())];
    Ok(format!("{} {} {} {} {times:?}", path.display(), of.dev(), of.ino(), of.size()))
}

/// Whether only this user can have written something.
pub(crate) fn is_own(of: &Metadata) -> bool {
    of.uid() == nix::unistd::geteuid().as_raw() && of.mode() & OTHERS_WRITE == 0
}

/// Makes a folder, unless there is one that only this user can write to.
pub(crate) fn own_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if is_own(&fs::metadata(folder)?) {
        return Ok(());
    }
    let reason = format!("others can write to {}", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// The templates of a folder.
#[derive(Debug, Clone)]
pub struct Templates {
    folder: PathBuf,
    max_bytes: u64,
}

/// One that was found, whole.
#[derive(Debug)]
pub(crate) struct Template {
    path: PathBuf,
    file: File,
    digest: Digest,
}

impl Template {
    /// The SHA-256 of its file.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// What is in it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// For one that a VMM does not take: the next run boots.
    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a template that cannot be used stays");
        }
    }
}

impl Templates {
    /// Those in this cache folder.
    pub fn in_cache(cache: &Path) -> Self {
        Self { folder: cache.join("templates"), max_bytes: MAX_BYTES }
    }

    /// Where they are. To remove it removes them.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many there are, and their bytes.
    pub fn usage(&self) -> (usize, u64) {
        let found = self.entries(|name| !name.starts_with(UNFINISHED));
        (found.len(), found.iter().map(|(_, of)| of.len()).sum())
    }

    /// Files of these names.
    fn entries(&self, wanted: impl Fn(&str) -> bool) -> Vec<(PathBuf, Metadata)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
        let files = named.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)));
        files.filter(|(_, of)| of.is_file()).collect()
    }

    /// Makes the folder, unless it is there. Without it nothing is to be looked for.
    pub(crate) fn open(&self) -> io::Result<()> {
        own_folder(&self.folder)
    }

    /// Whether there seems to be one of such a machine.
    pub(crate) fn has(&self, key: &Key) -> bool {
        !self.entries(|name| name.starts_with(&key.0)).is_empty()
    }

    /// The template of such a machine. One that is not what its name says is removed.
    pub(crate) fn find(&self, key: &Key) -> Option<Template> {
        for (path, _) in self.entries(|name| name.starts_with(&key.0)) {
            match whole(&path, key) {
                Ok(template) => return Some(template),
                // Another run has made room.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let removed = fs::remove_file(&path);
                    let (path, removed) = (path.display(), removed.is_ok());
                    tracing::warn!(%path, removed, %error, "a template of machines is broken: this one boots");
                }
            }
        }
        None
    }

    /// Begins to write one.
    pub(crate) fn begin(&self) -> io::Result<Unfinished> {
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
        Ok(Unfinished { file, hash: Sha256::new(), bytes: 0, max_bytes: self.max_bytes })
    }

    /// Keeps what was written.
    pub(crate) fn keep(&self, written: Unfinished, key: &Key) -> io::Result<Digest> {
        let digest = Digest::from_bytes(written.hash.finalize().into());
        let path = self.folder.join(format!("{}{digest}", key.0));
        written.file.persist(&path)?;
        self.make_room(&path, key);
        Ok(digest)
    }

    /// Removes what is too much, and what was never finished; `newest` stays, and no other of its key.
    fn make_room(&self, newest: &Path, key: &Key) {
        let age = |of: &Metadata| {
            let used = of.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            used.elapsed().unwrap_or_default()
        };
        let is_same = |name: &str| name.starts_with(&key.0);
        let doubled = self.entries(is_same).into_iter().filter(|(path, _)| path != newest);
        let mut all = self.entries(|name| !name.starts_with(UNFINISHED) && !is_same(name));
        all.sort_by_key(|(_, of)| age(of));
        let mut bytes = fs::metadata(newest).map_or(0, |of| of.len());
        let too_much = all.into_iter().filter(|(_, of)| {
            bytes += of.len();
            bytes > self.max_bytes
        });
        let unfinished = self.entries(|name| name.starts_with(UNFINISHED));
        let abandoned = unfinished.into_iter().filter(|(_, of)| age(of) > ABANDONED_AFTER);
        for (path, _) in too_much.chain(doubled).chain(abandoned) {
            match fs::remove_file(&path) {
                Ok(()) => tracing::debug!(path = %path.display(), "a template made room"),
                // Another run was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "a template is not removed"),
            }
        }
    }
}

/// Opens a template, if that is what its name says.
fn whole(path: &Path, key: &Key) -> io::Result<Template> {
    let bad = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let name = path.file_name().and_then(|name| name.to_str()?.strip_prefix(&key.0));
    let digest: Digest =
        name.and_then(|digest| digest.parse().ok()).ok_or_else(|| bad("it has another name"))?;
    let mut file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if !is_own(&file.metadata()?) {
        return Err(bad("others can write it"));
    }
    if digest_of(&mut file)? != digest {
        return Err(bad("its content is not what was kept"));
    }
    file.rewind()?;
    // For whoever makes room; a folder that cannot be written to does no harm.
    let _ = file.set_modified(SystemTime::now());
    Ok(Template { path: path.to_owned(), file, digest })
}

/// What is in a file from here on.
pub(crate) fn digest_of(file: &mut File) -> io::Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// A template that is being written, and that is gone unless it is kept.
#[derive(Debug)]
pub(crate) struct Unfinished {
    file: NamedTempFile,
    hash: Sha256,
    bytes: u64,
    max_bytes: u64,
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes + bytes.len() as u64 > self.max_bytes {
            let reason = format!("it takes more than {} MiB", self.max_bytes >> 20);
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        let written = self.file.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn kept(templates: &Templates, key: &Key, bytes: &[u8]) -> PathBuf {
        templates.open().unwrap();
        let mut writing = templates.begin().unwrap();
        writing.write_all(bytes).unwrap();
        let digest = templates.keep(writing, key).unwrap();
        templates.folder.join(format!("{}{digest}", key.0))
    }

    fn names(templates: &Templates) -> usize {
        fs::read_dir(templates.folder()).unwrap().count()
    }

    #[test]
    fn what_is_kept_is_found_by_what_its_machine_is_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::in_cache(dir.path());
        let key = |parts: [&str; 2]| Key::new("vmm", &parts.map(str::as_bytes)).unwrap();
        let path = kept(&templates, &key(["a", "b"]), b"machine");
        let found = templates.find(&key(["a", "b"])).unwrap();
        assert_eq!((found.digest(), templates.usage()), (Digest::of(b"machine"), (1, 7)));
        let mut read = String::new();
        found.file().read_to_string(&mut read).unwrap();
        assert_eq!(read, "machine");
        let modes = [path.as_path(), templates.folder()].map(|of| fs::metadata(of).unwrap().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o700]);
        // Where one part ends is part of the key.
        for other in [["a", "c"], ["ab", ""], ["", "ab"]] {
            assert!(templates.find(&key(other)).is_none(), "{other:?}");
        }
        assert!(templates.find(&Key::new("other", &["a", "b"].map(str::as_bytes)).unwrap()).is_none());
        found.remove();
        assert_eq!(names(&templates), 0);
    }

    #[test]
    fn a_file_that_changes_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["file", "other"].map(|name| dir.path().join(name));
        fs::write(&file, "1").unwrap();
        let before = identity(&file).unwrap();
        assert_eq!(before, identity(&file).unwrap());
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&other, "2").unwrap();
        File::options().write(true).open(&other).unwrap().set_modified(modified).unwrap();
        fs::rename(&other, &file).unwrap();
        assert_ne!(before, identity(&file).unwrap());
    }

    #[test]
    fn what_is_broken_is_removed_and_what_others_can_write_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::in_cache(dir.path());
        let key = Key::new("vmm", &[]).unwrap();
        let breaks: [&dyn Fn(&Path); 4] = [
            &|path| File::options().write(true).open(path).unwrap().set_len(3).unwrap(),
            &|path| fs::write(path, "macHine").unwrap(),
            &|path| fs::write(path, "").unwrap(),
            &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap(),
        ];
        for broken in breaks {
            broken(&kept(&templates, &key, b"machine"));
            assert!(templates.find(&key).is_none());
            assert_eq!(names(&templates), 0);
        }
        kept(&templates, &key, b"machine");
        fs::set_permissions(templates.folder(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(templates.open().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs::set_permissions(templates.folder(), fs::Permissions::from_mode(0o700)).unwrap();
        templates.open().unwrap();
        assert!(templates.find(&key).is_some());
    }

    #[test]
    fn the_longest_unused_makes_room_and_what_is_not_kept_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates { max_bytes: 20, ..Templates::in_cache(dir.path()) };
        let keys = ["a", "b", "c"].map(|part| Key::new("vmm", &[part.as_bytes()]).unwrap());
        let back = |path: &Path, hours: u64| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        };
        for (key, hours) in keys.iter().zip([3, 2]) {
            back(&kept(&templates, key, b"machine"), hours);
        }
        // A use counts.
        assert!(templates.find(&keys[0]).is_some());
        back(&templates.begin().unwrap().file.keep().unwrap().1, 2);
        drop(templates.begin().unwrap());
        kept(&templates, &keys[2], b"machines");
        let found = keys.each_ref().map(|key| templates.find(key).is_some());
        assert_eq!((found, names(&templates)), ([true, false, true], 2));
        // Of those that were made at once, one is enough.
        kept(&templates, &keys[2], b"machined");
        assert_eq!((templates.usage(), templates.has(&keys[1])), ((2, 15), false));
        let mut too_large = templates.begin().unwrap();
        assert!(too_large.write_all(&[0; 21]).is_err());
    }
}
