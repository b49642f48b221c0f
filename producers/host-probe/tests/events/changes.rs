//! File changes, in every form that the calls have, with their values.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use glasshouse_schema::event::FileChange;

use super::{AT_FDCWD, Change, at, call, closed, each_probe, place, whole};
use crate::support::{run_shell, run_workload};

pub fn workload(name: &str) -> bool {
    match name {
        "changes" => changes(),
        "mounts" => mounts(),
        "pivot" => pivot(),
        "made_executable" => made_executable(),
        _ => return false,
    }
    true
}

/// Beyond what the argument holds: not the caller's.
const ABOVE: i64 = 0x7654_3210 << 32;

fn changes() {
    let sub = fs::File::open("sub").unwrap();
    let dir = sub.as_raw_fd();
    let file = fs::File::options().write(true).open("sub/file").unwrap();
    let fd = file.as_raw_fd();
    let absolute = std::ffi::CString::new(fs::canonicalize("sub/file").unwrap().to_str().unwrap()).unwrap();
    let name = absolute.as_ptr();

    assert_eq!(call!(libc::SYS_link, at(c"sub/file"), at(c"link1")), 0);
    assert_eq!(call!(libc::SYS_linkat, dir, at(c"file"), AT_FDCWD, at(c"link2"), 0), 0);
    assert_eq!(call!(libc::SYS_linkat, fd, at(c""), dir, at(c"link3"), libc::AT_EMPTY_PATH), 0);
    assert_eq!(call!(libc::SYS_link, at(c"absent"), at(c"link4")), -i64::from(libc::ENOENT));

    assert_eq!(call!(libc::SYS_symlink, at(c"../any text"), at(c"symlink1")), 0);
    assert_eq!(call!(libc::SYS_symlinkat, at(c"/etc/passwd"), dir, at(c"symlink2")), 0);
    assert_eq!(call!(libc::SYS_symlink, at(c"x"), at(c"symlink1")), -i64::from(libc::EEXIST));

    assert_eq!(call!(libc::SYS_mkdir, at(c"./dir1"), 0o750), 0);
    assert_eq!(call!(libc::SYS_mkdirat, dir, at(c"dir2"), 0o701), 0);
    assert_eq!(call!(libc::SYS_mkdir, at(c"dir1"), 0o755), -i64::from(libc::EEXIST));
    assert_eq!(call!(libc::SYS_mknod, at(c"fifo1"), libc::S_IFIFO | 0o622, 0), 0);
    assert_eq!(call!(libc::SYS_mknodat, dir, at(c"fifo2"), libc::S_IFIFO | 0o600, 0), 0);

    assert_eq!(call!(libc::SYS_chmod, name, 0o4711), 0);
    assert_eq!(call!(libc::SYS_fchmod, fd, 0o640), 0);
    assert_eq!(call!(libc::SYS_fchmodat, dir, at(c"file"), 0o604), 0);
    assert_eq!(call!(libc::SYS_fchmodat2, dir, at(c"file"), 0o600, 0), 0);
    assert_eq!(call!(libc::SYS_fchmod, fd, ABOVE | 0o641), 0);
    assert_eq!(call!(libc::SYS_fchmod, 999, 0o777), -i64::from(libc::EBADF));

    assert_eq!(call!(libc::SYS_chown, at(c"sub/file"), 1001, 1002), 0);
    assert_eq!(call!(libc::SYS_lchown, at(c"symlink1"), 1003, 1004), 0);
    assert_eq!(call!(libc::SYS_fchown, fd, -1, 1005), 0);
    assert_eq!(call!(libc::SYS_fchownat, dir, at(c"file"), 1006, -1, 0), 0);
    assert_eq!(call!(libc::SYS_fchownat, fd, at(c""), 1007, 1008, libc::AT_EMPTY_PATH), 0);

    assert_eq!(call!(libc::SYS_truncate, name, 5_000_000_000i64), 0);
    assert_eq!(call!(libc::SYS_ftruncate, fd, 12), 0);
    assert_eq!(call!(libc::SYS_truncate, at(c"absent"), 1), -i64::from(libc::ENOENT));

    // Mapped executable, writable and not; a plain mapping is none.
    let library = fs::File::open("library").unwrap();
    for protection in [
        libc::PROT_READ | libc::PROT_EXEC,
        libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        libc::PROT_READ,
    ] {
        for _ in 0..3 {
            let mapped =
                call!(libc::SYS_mmap, 0, 4096, protection, libc::MAP_PRIVATE, library.as_raw_fd(), 0);
            assert!(mapped > 0);
        }
    }
    // One name for the other, at once.
    assert_eq!(
        call!(libc::SYS_renameat2, dir, at(c"file"), AT_FDCWD, at(c"library"), libc::RENAME_EXCHANGE),
        0
    );
    assert_eq!(
        call!(libc::SYS_renameat2, AT_FDCWD, at(c"library"), dir, at(c"file"), libc::RENAME_NOREPLACE),
        -i64::from(libc::EEXIST)
    );
}

#[test]
fn changes_have_their_paths_and_values() {
    each_probe(|probe| {
        let (_dir, root) = place();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), b"x").unwrap();
        fs::write(root.join("library"), [0; 4096]).unwrap();
        let facts = closed(&run_workload(probe, "changes", &root));
        let path = |name: &str| root.join(name);
        let known = |change: &Change| {
            let other = change.other.as_ref().map(|other| other.path.clone());
            (change.value, change.result, other)
        };
        let other = |name: &str| Some(path(name).to_str().unwrap().to_owned());
        let said = |change, name: &str| known(facts.change(change, &path(name)));

        for name in ["link1", "link2", "sub/link3"] {
            assert_eq!(said(FileChange::Link, name), (0, 0, other("sub/file")), "{name}");
        }
        assert_eq!(said(FileChange::Link, "link4"), (0, -libc::ENOENT, other("absent")));
        assert_eq!(said(FileChange::Symlink, "symlink1"), (0, 0, Some("../any text".to_owned())));
        assert_eq!(said(FileChange::Symlink, "sub/symlink2"), (0, 0, Some("/etc/passwd".to_owned())));
        let refused: Vec<_> = facts
            .changes_of(FileChange::Symlink)
            .into_iter()
            .filter(|of| of.result != 0)
            .map(known)
            .collect();
        assert_eq!(refused, [(0, -libc::EEXIST, Some("x".to_owned()))]);
        assert_eq!(said(FileChange::MakeDirectory, "dir1"), (0o750, 0, None));
        assert_eq!(said(FileChange::MakeDirectory, "sub/dir2"), (0o701, 0, None));
        assert_eq!(said(FileChange::MakeNode, "fifo1"), (u64::from(libc::S_IFIFO) | 0o622, 0, None));
        assert_eq!(said(FileChange::MakeNode, "sub/fifo2"), (u64::from(libc::S_IFIFO) | 0o600, 0, None));

        let values = |change| -> Vec<(u64, i32, bool)> {
            let file = path("sub/file");
            facts
                .changes_of(change)
                .into_iter()
                .map(|of| (of.value, of.result, of.path.path == file.to_str().unwrap()))
                .collect()
        };
        let modes: Vec<_> = [0o4711, 0o640, 0o604, 0o600, 0o641].map(|mode| (mode, 0, true)).to_vec();
        assert_eq!(values(FileChange::Mode)[..5], modes, "a mode is 32 bits");
        assert_eq!(values(FileChange::Mode)[5..], [(0o777, -libc::EBADF, false)]);
        const SAME: u64 = 0xffff_ffff;
        let owners: Vec<_> =
            values(FileChange::Owner).into_iter().map(|of| (of.0 >> 32, of.0 & SAME, of.2)).collect();
        assert_eq!(
            owners,
            [
                (1001, 1002, true),
                (1003, 1004, false),
                (SAME, 1005, true),
                (1006, SAME, true),
                (1007, 1008, true)
            ]
        );
        facts.change(FileChange::Owner, &path("symlink1"));
        assert_eq!(
            values(FileChange::Truncate),
            [(5_000_000_000, 0, true), (12, 0, true), (1, -libc::ENOENT, false)]
        );

        let mapped = |writable| -> u64 {
            let of_library = facts.changes_of(FileChange::MapExecutable).into_iter();
            of_library
                .filter(|of| of.value == writable && of.path.path == path("library").to_str().unwrap())
                .map(|of| of.count)
                .sum()
        };
        assert_eq!((mapped(0), mapped(1)), (3, 3));
        // What was opened, not named by a string.
        assert!(facts.changes_of(FileChange::MapExecutable).iter().all(|of| !of.path.is_unresolved()));
        let renames: Vec<_> = facts
            .renames
            .iter()
            .map(|(from, to, exchange, result, _)| (from.path.as_str(), to.path.as_str(), *exchange, *result))
            .collect();
        let (file, library) = (path("sub/file"), path("library"));
        let (file, library) = (file.to_str().unwrap(), library.to_str().unwrap());
        assert_eq!(renames, [(file, library, true, 0), (library, file, false, -libc::EEXIST)]);
        assert_eq!(fs::metadata(path("library")).unwrap().uid(), 1007);
    });
}

/// In the namespace of the test itself: paths are then those of the execution.
fn mounts() {
    let (none, bind) = (0, libc::MS_BIND);
    assert_eq!(call!(libc::SYS_mount, at(c"nothing"), at(c"target"), at(c"tmpfs"), libc::MS_NOSUID, none), 0);
    fs::write("target/inside", b"x").unwrap();
    assert_eq!(call!(libc::SYS_mount, at(c"source"), at(c"target"), none, bind, none), 0);
    fs::read("target/file").unwrap();
    // A detached copy, attached elsewhere.
    let tree = call!(libc::SYS_open_tree, AT_FDCWD, at(c"source"), libc::OPEN_TREE_CLONE);
    assert!(tree >= 0, "{tree}");
    assert_eq!(
        call!(libc::SYS_move_mount, tree, at(c""), AT_FDCWD, at(c"moved"), libc::MOVE_MOUNT_F_EMPTY_PATH),
        0
    );
    fs::read("moved/file").unwrap();
    assert_eq!(call!(libc::SYS_umount2, at(c"moved"), libc::MNT_DETACH), 0);
    assert_eq!(call!(libc::SYS_umount2, at(c"target"), 0), 0);
    assert_eq!(call!(libc::SYS_umount2, at(c"./target"), 0), 0);
    assert_eq!(call!(libc::SYS_umount2, at(c"target"), 0), -i64::from(libc::EINVAL));
    assert_eq!(
        call!(libc::SYS_mount, at(c"x"), at(c"absent"), at(c"tmpfs"), 0, none),
        -i64::from(libc::ENOENT)
    );
}

#[test]
fn mounts_have_source_target_and_flags() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for name in ["target", "source", "moved"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("source/file"), b"x").unwrap();
        let facts = closed(&run_workload(probe, "mounts", &root));
        let said = |change| -> Vec<(String, Option<String>, u64, i32, u64)> {
            let name = |path: &str| path.strip_prefix(root.to_str().unwrap()).unwrap_or(path).to_owned();
            let known = |of: &&Change| {
                (
                    name(&of.path.path),
                    of.other.as_ref().map(|at| name(&at.path)),
                    of.value,
                    of.result,
                    of.count,
                )
            };
            facts.changes_of(change).iter().map(known).collect()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            said(FileChange::Mount),
            [
                ("/target".to_owned(), some("nothing"), libc::MS_NOSUID, 0, 1),
                ("/target".to_owned(), some("source"), libc::MS_BIND, 0, 1),
                ("/absent".to_owned(), some("x"), 0, -libc::ENOENT, 1)
            ]
        );
        assert_eq!(
            said(FileChange::MoveMount),
            [("/moved".to_owned(), some("/moved"), u64::from(libc::MOVE_MOUNT_F_EMPTY_PATH), 0, 1)]
        );
        assert_eq!(
            said(FileChange::Unmount),
            [
                ("/moved".to_owned(), None, libc::MNT_DETACH as u64, 0, 1),
                ("/target".to_owned(), None, 0, 0, 2),
                ("/target".to_owned(), None, 0, -libc::EINVAL, 1)
            ]
        );
        for name in ["target/inside", "target/file", "moved/file"] {
            assert_eq!(facts.opened(&root.join(name)), 1, "{name}");
        }
    });
}

fn pivot() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("none"), "new", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::create_dir("new/old").unwrap();
    let (new, old) = (fs::canonicalize("new").unwrap(), fs::canonicalize("new/old").unwrap());
    let c = |path: &std::path::Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let (new, old) = (c(&new), c(&old));
    assert_eq!(call!(libc::SYS_pivot_root, at(&new), at(&old)), 0);
}

#[test]
fn a_root_that_is_exchanged_is_told_and_marked() {
    each_probe(|probe| {
        let (_dir, root) = place();
        fs::create_dir(root.join("new")).unwrap();
        let run = run_workload(probe, "pivot", &root);
        let facts = whole(&run);
        let pivots = facts.changes_of(FileChange::PivotRoot);
        assert_eq!(pivots.len(), 1);
        assert_eq!(pivots[0].result, 0);
        // The namespace is another: whatever the path is, it does not claim to be the execution's.
        assert!(pivots[0].path.is_unresolved() && pivots[0].other.as_ref().unwrap().is_unresolved());
        assert!(
            run.report.seal.blind_spots.iter().any(|spot| spot.starts_with("paths seen from another root"))
        );
    });
}

#[test]
fn a_shell_that_links_and_truncates() {
    let Some(probe) = crate::support::probe() else { return };
    let (_dir, root) = place();
    let script =
        "echo 1234567 > a; ln a b; ln -s a c; mkdir -p d/e; chmod 600 a; truncate -s 3 a; chown 5:6 b";
    let run = run_shell(&probe, script, &root);
    let facts = closed(&run);
    facts.change(FileChange::Link, &root.join("b"));
    facts.change(FileChange::Symlink, &root.join("c"));
    facts.change(FileChange::MakeDirectory, &root.join("d"));
    facts.change(FileChange::MakeDirectory, &root.join("d/e"));
    assert_eq!(facts.change(FileChange::Mode, &root.join("a")).value, 0o600);
    assert_eq!(facts.change(FileChange::Truncate, &root.join("a")).value, 3);
    assert_eq!(facts.change(FileChange::Owner, &root.join("b")).value, 5 << 32 | 6);
    assert_eq!(facts.io(&root.join("a"), None).written_bytes, 8);
}

/// Mapped as data, and executable afterwards.
fn made_executable() {
    let library = fs::File::open("library").unwrap();
    let mapped = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ, libc::MAP_PRIVATE, library.as_raw_fd(), 0);
    assert!(mapped > 0);
    assert_eq!(call!(libc::SYS_mprotect, mapped, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
}

#[test]
fn what_is_made_executable_after_it_was_mapped_is_told() {
    let Some(probe) = crate::support::probe() else { return };
    let (_dir, root) = place();
    fs::write(root.join("library"), [0; 4096]).unwrap();
    let facts = closed(&run_workload(&probe, "made_executable", &root));
    facts.change(FileChange::MapExecutable, &root.join("library"));
}
