use std::io::Write as _;

use ::tar::{Builder, EntryType, Header};

use super::*;

/// An archive of entries: path, kind, contents or target.
pub(super) fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (path, kind, text) in entries {
        let is_link = matches!(kind, EntryType::Link | EntryType::Symlink);
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o750 } else { 0o640 });
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_700_000_000);
        header.set_size(if is_link { 0 } else { text.len() as u64 });
        // Straight into the fields: the crate's own setters refuse what a hostile archive has.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        if is_link {
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        archive.append(&header, if is_link { &b""[..] } else { text.as_bytes() }).unwrap();
    }
    archive.into_inner().unwrap()
}

fn plain(header: &mut Header) {
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
}

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;

fn image_of(bytes: &[u8]) -> Result<BTreeMap<String, Found>, ImageError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    make(file.path(), None).map(|(_, image)| read(&image))
}

#[test]
fn an_archives_owners_and_times_are_kept() {
    let bytes = archive(&[
        ("./", FOLDER, ""),
        ("./etc/", FOLDER, ""),
        ("./etc/name", FILE, "me"),
        ("etc/link", SYMLINK, "/etc/name"),
        ("etc/same", EntryType::Link, "./etc/name"),
        ("fifo", EntryType::Fifo, ""),
    ]);
    let all = image_of(&bytes).unwrap();
    let found = &all["etc/name"];
    assert_eq!(found.what, What::File(b"me".to_vec()));
    assert_eq!(
        (found.mode, found.uid, found.gid, found.mtime_unix_s, found.links),
        (0o640, 1000, 100, 1_700_000_000, 2)
    );
    assert_eq!(all["etc/same"], *found);
    assert_eq!(all["etc/link"].what, What::Symlink("/etc/name".to_owned()));
    assert_eq!(all["fifo"].what, What::Other);
    assert_eq!((all[""].mode, all["etc"].mode), (0o750, 0o750));
}

#[test]
fn packed_archives_are_the_same_image() {
    let bytes = archive(&[("a", FILE, "text")]);
    let plain = image_of(&bytes).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    assert_eq!(image_of(&gzip.finish().unwrap()).unwrap(), plain);
    assert_eq!(image_of(&zstd::encode_all(bytes.as_slice(), 1).unwrap()).unwrap(), plain);
}

#[test]
fn devices_and_attributes_are_kept() {
    let mut archive = Builder::new(Vec::new());
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    archive
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.com.apple.quarantine", b"no kernel knows it"),
        ])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_path("null").unwrap();
    plain(&mut header);
    header.set_entry_type(EntryType::Char);
    header.set_device_major(300).unwrap();
    header.set_device_minor(70_000).unwrap();
    header.set_size(0);
    header.set_cksum();
    archive.append(&header, &b""[..]).unwrap();
    let all = image_of(&archive.into_inner().unwrap()).unwrap();
    assert_eq!(all["null"].what, What::Device(300, 70_000));
    let expected =
        [(b"security.capability".to_vec(), capability.to_vec()), (b"user.note".to_vec(), b"hello".to_vec())];
    assert_eq!(all["null"].xattrs, expected);
}

#[test]
fn nothing_leaves_the_image() {
    for (name, entries, why) in [
        ("up", &[("../x", FILE, "")][..], "it leaves the image"),
        ("up within", &[("a/../../x", FILE, "")], "it leaves the image"),
        (
            "through a link",
            &[("a", SYMLINK, "/etc"), ("a/passwd", FILE, "")],
            "it goes through a symbolic link",
        ),
        ("through a file", &[("a", FILE, ""), ("a/b", FILE, "")], "above it is none"),
        ("through a file and on", &[("a", FILE, ""), ("a/b/c", FILE, "")], "above it is none"),
        ("hard link out", &[("a", EntryType::Link, "../../etc/passwd")], "it leaves the image"),
        ("hard link away", &[("a", EntryType::Link, "/etc/passwd")], "is not there"),
        ("hard link to a folder", &[("d", FOLDER, ""), ("a", EntryType::Link, "d")], "is not there"),
        (
            "hard link through a link",
            &[("a", SYMLINK, "/etc"), ("b", EntryType::Link, "a/passwd")],
            "it goes through a symbolic link",
        ),
        ("link to nothing", &[("a", SYMLINK, "")], "link"),
        ("whiteout up", &[("../.wh.x", FILE, "")], "it leaves the image"),
        ("whiteout of up", &[(".wh...", FILE, "")], "it leaves the image"),
        ("whiteout of nothing", &[(".wh.", FILE, "")], "no such whiteout"),
        ("root as a file", &[("./.", FILE, "")], "only a folder can be the root"),
        ("kind", &[("a", EntryType::new(b'V'), "")], "not known here"),
    ] {
        let error = image_of(&archive(entries)).unwrap_err();
        assert!(matches!(error, ImageError::Refused { .. }), "{name}: {error}");
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
    let all = image_of(&archive(&[("/abs", FILE, "")])).unwrap();
    assert!(all.contains_key("abs"), "from the image's root, not from this machine's");
}

#[test]
fn a_later_entry_takes_the_place_of_an_earlier_one() {
    let all = image_of(&archive(&[
        ("a", SYMLINK, "/etc"),
        ("a/", FOLDER, ""),
        ("a/b", FILE, "old"),
        ("a/b", FILE, "new"),
        ("d/e/f", FILE, ""),
        ("d", FILE, "no folder any more"),
    ]));
    let all = all.unwrap();
    assert_eq!(file(&all, "a/b"), b"new");
    assert_eq!(file(&all, "d"), b"no folder any more");
    assert!(!all.contains_key("d/e/f"));
}

#[test]
fn a_cut_archive_is_an_error() {
    let bytes = archive(&[("a", FILE, &"x".repeat(2000)), ("b", FILE, "y")]);
    for length in [1, 511, 700, 2000, 2600] {
        assert!(image_of(&bytes[..length]).is_err(), "{length}");
    }
    assert!(image_of(b"this is no archive at all, however long it may be made to look").is_err());
}

#[test]
fn an_archive_that_unpacks_to_too_much_is_refused() {
    let zeros = vec![0; 4 << 20];
    let mut archive = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    plain(&mut header);
    header.set_size(zeros.len() as u64);
    header.set_path("zeros").unwrap();
    header.set_cksum();
    archive.append(&header, zeros.as_slice()).unwrap();
    let mut packed = tempfile::NamedTempFile::new().unwrap();
    packed.write_all(&zstd::encode_all(archive.into_inner().unwrap().as_slice(), 1).unwrap()).unwrap();
    let limits = Limits { bytes: 1 << 20, inodes: 10 };
    assert!(matches!(within(packed.path(), None, limits), Err(ImageError::TooLarge { .. })));
}

/// A name that would be kept in memory whole before anybody could look at it.
#[test]
fn a_name_without_an_end_is_refused() {
    let name = "x/".repeat(8 << 20);
    let mut archive = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(name.len() as u64);
    header.set_cksum();
    archive.append(&header, name.as_bytes()).unwrap();
    let error = image_of(&archive.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_archive_makes_it_panic(at in 0..3000_usize, byte: u8, cut in 0..3072_usize) {
        let mut bytes = archive(&[("a/b", FILE, "text"), ("a/c", SYMLINK, "b"), ("d", EntryType::Link, "a/b")]);
        bytes[at] = byte;
        let _ = image_of(&bytes[..cut]);
    }
}
