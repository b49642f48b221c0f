//! What a receipt says of the image that a guest's root filesystem comes from: its path, and the SHA-256 of the file.
//!
//! A file is read once. What it was found to be is kept by its identity, as long as only this user can have written that.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::Image;

use crate::templates::{digest_of, identity, is_own, own_folder};

const FOLDER: &str = "images";
/// An image that is still used is read again then.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(90 * 24 * 3600);

/// This image, with what is remembered in `cache`. Blocks, for a file that was not seen before as long as it takes to read it.
pub(crate) fn told(path: &Path, cache: &Path) -> io::Result<Image> {
    let identity = identity(path)?;
    let folder = cache.join(FOLDER);
    let known = folder.join(Digest::of(identity.as_bytes()).to_string());
    let digest = match own_folder(&folder).and_then(|()| read(&known)) {
        Ok(digest) => digest,
        Err(_) => {
            let digest = digest_of(&mut File::open(path)?)?;
            // One that was written to meanwhile is none of these two.
            if self::identity(path)? == identity
                && let Err(error) = keep(&known, &folder, digest)
            {
                tracing::debug!(%error, "the image's digest is not kept: the next run reads the image again");
            }
            digest
        }
    };
    Ok(Image { name: path.display().to_string(), digest })
}

fn read(known: &PathBuf) -> io::Result<Digest> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(known)?;
    if !is_own(&file.metadata()?) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    io::read_to_string(io::Read::take(file, 100))?.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn keep(known: &Path, folder: &Path, digest: Digest) -> io::Result<()> {
    own_folder(folder)?;
    // What changed or went away leaves a file behind that nobody looks for.
    for entry in fs::read_dir(folder)?.flatten() {
        let age = entry.metadata().ok().and_then(|of| of.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age > FORGOTTEN_AFTER) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let file = tempfile::NamedTempFile::new_in(folder)?;
    fs::write(file.path(), digest.to_string())?;
    file.persist(known)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn an_image_is_what_is_in_its_file_and_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("image"), dir.path().join("cache"));
        fs::write(&path, "one").unwrap();
        let one = Image { name: path.display().to_string(), digest: Digest::of(b"one") };
        assert_eq!(told(&path, &cache).unwrap(), one);
        // What is remembered is believed, of this file.
        let known = fs::read_dir(cache.join(FOLDER)).unwrap().next().unwrap().unwrap().path();
        fs::write(&known, Digest::of(b"remembered").to_string()).unwrap();
        assert_eq!(told(&path, &cache).unwrap().digest, Digest::of(b"remembered"));
        // Not if others can have written it, nor what is no digest.
        fs::set_permissions(&known, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(told(&path, &cache).unwrap(), one);
        fs::write(&known, "nonsense").unwrap();
        assert_eq!(told(&path, &cache).unwrap(), one);
        fs::write(&path, "another").unwrap();
        assert_eq!(told(&path, &cache).unwrap().digest, Digest::of(b"another"));
        // Of the first content and of the second; what is very old goes when another comes.
        let count = || fs::read_dir(cache.join(FOLDER)).unwrap().count();
        assert_eq!(count(), 2);
        File::open(&known).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::write(&path, "a third").unwrap();
        assert_eq!((told(&path, &cache).unwrap().digest, count()), (Digest::of(b"a third"), 2));
        fs::write(&path, "another").unwrap();
        fs::set_permissions(cache.join(FOLDER), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(told(&path, &cache).unwrap().digest, Digest::of(b"another"));
        assert!(told(&dir.path().join("nothing"), &cache).is_err());
    }
}
