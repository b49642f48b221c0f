use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::{Duration, SystemTime};

use super::*;

/// Files of these lengths, around where data no longer fits beside its inode or in its last block.
const LENGTHS: [usize; 11] = [0, 1, 100, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 70_000];

fn contents(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn fill(root: &Path) {
    for length in LENGTHS {
        fs::write(root.join(format!("file-{length}")), contents(length)).unwrap();
    }
    // More names than fit one block, and one as long as they get.
    fs::create_dir_all(root.join("many/deep/er")).unwrap();
    for number in 0..600 {
        fs::write(root.join(format!("many/a-name-{number}")), number.to_string()).unwrap();
    }
    fs::write(root.join("many").join("n".repeat(255)), "long").unwrap();
    fs::write(root.join("many/-before-the-dot"), "").unwrap();
    symlink("../file-100", root.join("many/link")).unwrap();
    symlink("x".repeat(4095), root.join("far")).unwrap();
    fs::hard_link(root.join("file-4097"), root.join("many/same")).unwrap();
    fs::set_permissions(root.join("file-1"), fs::Permissions::from_mode(0o4711)).unwrap();
}

#[test]
fn all_of_a_folder_is_in_its_image() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let (built, image) = make(root.path(), None).unwrap();
    let all = read(&image);
    assert_eq!(built.image.bytes, image.len() as u64);
    // The hard link has no inode of its own.
    assert_eq!(built.image.inodes, all.len() as u64 - 1);
    for length in LENGTHS {
        assert!(file(&all, &format!("file-{length}")) == contents(length), "{length}");
    }
    for number in 0..600 {
        assert_eq!(file(&all, &format!("many/a-name-{number}")), number.to_string().as_bytes());
    }
    assert_eq!(file(&all, &format!("many/{}", "n".repeat(255))), b"long");
    assert_eq!(all["many/link"].what, What::Symlink("../file-100".to_owned()));
    assert_eq!(all["far"].what, What::Symlink("x".repeat(4095)));
    assert_eq!(all["many/deep/er"].what, What::Folder);
    assert_eq!(all["many/same"], all["file-4097"]);
    assert_eq!(all["many/same"].links, 2);
    // Its own name, `.`, and the `..` of `deep`.
    assert_eq!(all["many"].links, 3);
    assert_eq!(all["file-1"].mode, 0o4711);
    assert_eq!(all[""].mode, 0o755);
    assert!(all.values().all(|found| (found.uid, found.gid, found.mtime_unix_s) == (0, 0, 0)));
}

/// Names are found by a search, so their order matters to a kernel.
#[test]
fn every_name_is_found() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let (_, image) = make(root.path(), None).unwrap();
    let erofs = EroFS::new(SliceImage::new(&image)).unwrap();
    for path in
        read(&image).iter().filter(|(_, found)| matches!(found.what, What::File(_))).map(|(path, _)| path)
    {
        assert!(erofs.open(format!("/{path}")).is_ok(), "{path}");
    }
}

#[test]
fn neither_times_nor_owners_nor_the_order_of_creation_change_a_byte() {
    let one = tempfile::tempdir().unwrap();
    fill(one.path());
    let other = tempfile::tempdir().unwrap();
    for number in (0..600).rev() {
        fs::create_dir_all(other.path().join("many")).unwrap();
        fs::write(other.path().join(format!("many/a-name-{number}")), "").unwrap();
    }
    fill(other.path());
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for name in ["file-1", "many"] {
        fs::File::open(other.path().join(name)).unwrap().set_modified(old).unwrap();
    }
    // Only root can give files away; for others this case is the same without it.
    let _ = std::os::unix::fs::chown(other.path().join("file-100"), Some(1234), Some(5678));
    let (built, image) = make(one.path(), None).unwrap();
    let (again, same) = make(other.path(), None).unwrap();
    assert_eq!((&built.image.sha256, &built.image.uuid), (&again.image.sha256, &again.image.uuid));
    assert!(image == same);
    fs::write(other.path().join("file-0"), "x").unwrap();
    assert_ne!(make(other.path(), None).unwrap().0.image.uuid, built.image.uuid);
}

#[test]
fn an_image_that_is_made_again_stays_the_file_that_it_is() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), "one").unwrap();
    let out = tempfile::tempdir().unwrap();
    let image = out.path().join("image");
    let built = |path: &Path| {
        let built = build(root.path(), None, path, Limits::default()).unwrap();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing is beside it");
        (built.unchanged, fs::symlink_metadata(path).unwrap().ino())
    };
    let (unchanged, first) = built(&image);
    assert!(!unchanged);
    assert_eq!(built(&image), (true, first));
    // Other bytes of the same length, another length, a link to the same bytes.
    fs::write(root.path().join("a"), "two").unwrap();
    let (unchanged, second) = built(&image);
    assert!(!unchanged && second != first);
    fs::File::options().append(true).open(&image).unwrap().write_all(b"more").unwrap();
    assert!(!built(&image).0);
    let elsewhere = root.path().with_extension("image");
    fs::rename(&image, &elsewhere).unwrap();
    symlink(&elsewhere, &image).unwrap();
    assert!(!built(&image).0);
    assert!(fs::symlink_metadata(&image).unwrap().is_file());
    fs::remove_file(elsewhere).unwrap();
}

#[test]
fn a_socket_is_left_out_and_told() {
    let root = tempfile::tempdir().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    let (built, image) = make(root.path(), None).unwrap();
    assert_eq!(built.sockets_left_out, 1);
    assert_eq!(read(&image).len(), 1);
}

#[test]
fn a_folder_that_is_too_large_is_refused() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), [0; 100]).unwrap();
    let limits = |bytes, inodes| Limits { bytes, inodes };
    assert!(within(root.path(), None, limits(100, 2)).is_ok());
    assert!(matches!(within(root.path(), None, limits(99, 2)), Err(ImageError::TooLarge { limit: 99 })));
    assert!(matches!(within(root.path(), None, limits(100, 1)), Err(ImageError::TooMany { limit: 1 })));
}

#[test]
fn what_is_no_image_is_not_taken_for_one() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let (_, image) = make(root.path(), None).unwrap();
    let path = root.path().join("other");
    for bytes in [&b""[..], b"text", &[0; 5000], &image[..1100], &image[..image.len() - 4096]] {
        fs::write(&path, bytes).unwrap();
        let error = glasshouse_images::rootfs::inspect(&path).unwrap_err();
        assert!(matches!(error, ImageError::NoImage(_)), "{error}");
    }
}
