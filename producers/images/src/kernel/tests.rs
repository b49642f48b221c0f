use std::fs;

use object::write::{Object, StandardSegment};
use object::{Architecture, BinaryFormat, Endianness, SectionKind};
use proptest::prelude::*;

use super::*;

/// An image with a setup header that names a release and encloses a payload.
fn bzimage(release: &str, kernel: &[u8]) -> Vec<u8> {
    let mut payload = zstd::encode_all(kernel, 1).unwrap();
    payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x80_u16.to_le_bytes());
    let text = format!("{release} (someone@somewhere) #1 SMP\0");
    image[0x280..0x280 + text.len()].copy_from_slice(text.as_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend(payload);
    image
}

/// An object whose `.modinfo` says this.
fn module(info: &[&str]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let segment = object.segment_name(StandardSegment::Data).to_vec();
    let section = object.add_section(segment, b".modinfo".to_vec(), SectionKind::ReadOnlyData);
    object.append_section_data(section, info.join("\0").as_bytes(), 1);
    object.write().unwrap()
}

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(builtin: &str, modules: &[(&str, &[&str])]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.write("boot/vmlinuz-6.1.0-9-cloud-amd64", &bzimage("6.1.0-9-cloud-amd64", b"old"));
        tree.write(
            "boot/vmlinuz-6.1.0-56-cloud-amd64",
            &bzimage("6.1.0-56-cloud-amd64", b"\x7fELF and more"),
        );
        tree.write("boot/vmlinuz-rescue", b"no kernel");
        let mut order = String::new();
        for (path, info) in modules {
            order.push_str(&format!("kernel/{path}.ko\n"));
            tree.write(&format!("{MODULES}/kernel/{path}.ko"), &module(info));
        }
        tree.write(&format!("{MODULES}/modules.order"), order.as_bytes());
        tree.write(&format!("{MODULES}/modules.builtin"), builtin.as_bytes());
        tree
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn kernel(&self) -> Kernel {
        Kernel::find(self.0.path()).unwrap()
    }
}

const MODULES: &str = "lib/modules/6.1.0-56-cloud-amd64";

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|module| module.name.as_str()).collect()
}

#[test]
fn the_newest_kernel_of_a_tree_is_found_with_its_modules() {
    let tree = Tree::new("", &[]);
    let kernel = tree.kernel();
    assert_eq!(kernel.release, "6.1.0-56-cloud-amd64");
    assert_eq!(kernel.modules_dir, Some(tree.0.path().join(MODULES)));
    assert_eq!(Kernel::find(&kernel.image).unwrap(), kernel, "and by its file");
}

#[test]
fn a_kernel_beside_its_modules_is_found() {
    let tree = Tree::new("", &[]);
    tree.write("usr/lib/modules/7.3.4-cloud-amd64/vmlinuz", &bzimage("7.3.4-cloud-amd64", b"new"));
    assert_eq!(tree.kernel().release, "7.3.4-cloud-amd64");
}

#[test]
fn an_empty_tree_says_what_to_install() {
    let tree = tempfile::tempdir().unwrap();
    let error = Kernel::find(tree.path()).unwrap_err();
    assert!(matches!(error, KernelError::NotFound(_)));
    assert!(error.to_string().contains("apt-get install linux-image-cloud-amd64"), "{error}");
}

#[test]
fn the_release_becomes_no_path() {
    for release in ["../../etc", "", "6.1/x", &"6".repeat(200)] {
        let path = Path::new("vmlinuz");
        assert!(image::release(path, &bzimage(release, b"kernel")).is_err(), "{release}");
    }
}

#[test]
fn a_bare_kernel_tells_its_release_too() {
    let kernel = b"\x7fELF... Linux version %s ... Linux version 6.1.0 (someone@somewhere)";
    assert_eq!(image::release(Path::new("vmlinux"), kernel).unwrap(), "6.1.0");
}

#[test]
fn vmlinux_is_unpacked_once() {
    let tree = Tree::new("", &[]);
    let cache = tree.0.path().join("cache");
    let path = tree.kernel().vmlinux(&cache).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"\x7fELF and more");
    fs::write(&path, b"seen").unwrap();
    assert_eq!(tree.kernel().vmlinux(&cache).unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), b"seen");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "nothing half written is left");
}

#[test]
fn what_is_packed_must_be_a_kernel() {
    let tree = Tree::new("", &[]);
    let old = Kernel::find(&tree.0.path().join("boot/vmlinuz-6.1.0-9-cloud-amd64")).unwrap();
    assert!(matches!(old.vmlinux(tree.0.path()), Err(KernelError::NoImage { .. })));
}

#[test]
fn an_image_whose_length_is_wrong_is_refused() {
    for length in [0, 3, 5, u32::MAX] {
        let mut image = bzimage("6.1.0", b"four");
        let at = image.len() - 4;
        image[at..].copy_from_slice(&length.to_le_bytes());
        assert!(unpack(&image).is_err(), "{length}");
    }
}

#[test]
fn modules_come_after_what_they_need() {
    let tree = Tree::new(
        "kernel/fs/ext4/ext4.ko\n",
        &[
            ("drivers/block/virtio_blk", &["depends=virtio-ring,virtio"]),
            ("drivers/virtio/virtio", &["license=GPL", "depends=virtio_ring"]),
            ("drivers/virtio/virtio_ring", &["depends="]),
            ("fs/erofs", &["depends=ext4", "softdep=pre: crc32c virtio post: overlay"]),
            ("fs/overlay", &["depends="]),
        ],
    );
    let kernel = tree.kernel();
    assert_eq!(
        names(&kernel.modules(&["virtio-blk", "ext4"]).unwrap()),
        ["virtio_ring", "virtio", "virtio_blk"]
    );
    assert_eq!(names(&kernel.modules(&["erofs"]).unwrap()), ["virtio_ring", "virtio", "erofs"]);
    assert_eq!(kernel.offers(&["ext4", "overlay", "squashfs"]).unwrap(), ["ext4", "overlay"]);
}

#[test]
fn modules_that_need_each_other_end() {
    let tree = Tree::new("", &[("a", &["depends=b"]), ("b", &["depends=a"])]);
    assert_eq!(names(&tree.kernel().modules(&["a"]).unwrap()), ["b", "a"]);
}

#[test]
fn all_missing_modules_are_named_at_once() {
    let tree = Tree::new("", &[("a", &["depends=gone"])]);
    let error = tree.kernel().modules(&["a", "virtiofs"]).unwrap_err();
    assert_eq!(error.to_string(), "kernel 6.1.0-56-cloud-amd64 has no module gone, virtiofs");
}

#[test]
fn packed_modules_are_unpacked() {
    let tree = Tree::new("", &[("a", &["depends="])]);
    let plain = tree.0.path().join(MODULES).join("kernel/a.ko");
    let bytes = fs::read(&plain).unwrap();
    fs::remove_file(&plain).unwrap();
    tree.write(&format!("{MODULES}/kernel/a.ko.zst"), &zstd::encode_all(bytes.as_slice(), 1).unwrap());
    assert_eq!(tree.kernel().modules(&["a"]).unwrap(), [Module { name: "a".to_owned(), bytes }]);
}

#[test]
fn a_damaged_module_is_refused() {
    let tree = Tree::new("", &[("a", &["depends="])]);
    let path = format!("{MODULES}/kernel/a.ko");
    let whole = fs::read(tree.0.path().join(&path)).unwrap();
    for length in [0, 10, whole.len() / 2] {
        tree.write(&path, &whole[..length]);
        assert!(matches!(tree.kernel().modules(&["a"]), Err(KernelError::NoModule(_))), "{length}");
    }
}

#[test]
fn versions_are_ordered_by_their_numbers() {
    let mut releases = ["6.1.0-56", "6.1.0-9", "6.12.1", "6.1.0-9-cloud", "5.10.0-46", "7.3~rc7", ""];
    releases.sort_by(|one, other| by_version(one, other));
    assert_eq!(releases, ["", "5.10.0-46", "6.1.0-9", "6.1.0-9-cloud", "6.1.0-56", "6.12.1", "7.3~rc7"]);
}

proptest! {
    #[test]
    fn no_image_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), kind in 0..4_usize) {
        let marks: [&[(usize, &[u8])]; 4] =
            [&[], &[(0x202, b"HdrS")], &[(0, b"MZ"), (4, b"zimg")], &[(0, &[0x1f, 0x8b])]];
        for (at, mark) in marks[kind] {
            if let Some(place) = bytes.get_mut(*at..at + mark.len()) {
                place.copy_from_slice(mark);
            }
        }
        let _ = unpack(&bytes);
        let _ = image::release(Path::new("vmlinuz"), &bytes);
    }

    #[test]
    fn a_cut_image_is_an_error(at in 0..1100_usize) {
        let image = bzimage("6.1.0", &[7; 4000]);
        let cut = &image[..at.min(image.len() - 1)];
        // Without its header it is bare code.
        prop_assert!(cut.len() < 0x206 || unpack(cut).is_err());
    }
}
