//! A name that means another file, a file that has another name: never a path that was not.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{AT_FDCWD, Facts, at, call, closed, each_probe, place};
use crate::support::run_workload;

pub fn workload(name: &str) -> bool {
    match name {
        "names" => names(),
        "names_mounted" => mounted(),
        "names_recycled" => recycled(),
        "torture" => torture(""),
        "torture_deep" => torture(&DEEP),
        "deep" => deep(),
        "twins" => twins(),
        _ => return false,
    }
    true
}

const TURNS: u64 = 200;

fn read(path: &str, bytes: usize) {
    let file = File::open(path).unwrap();
    let mut buffer = [0u8; 64];
    assert_eq!(file.read_at(&mut buffer[..bytes], 0).unwrap(), bytes);
}

fn names() {
    fs::create_dir_all("d1/x").unwrap();
    fs::write("d1/x/f", [7; 64]).unwrap();
    for _ in 0..TURNS {
        // Renamed, and another one in its place.
        fs::write("a", [7; 64]).unwrap();
        read("a", 3);
        fs::rename("a", "b").unwrap();
        read("b", 5);
        fs::write("a", [7; 64]).unwrap();
        read("a", 3);
        fs::rename("b", "a").unwrap();
        read("a", 3);
        fs::remove_file("a").unwrap();
        // By a directory two above.
        read("d1/x/f", 7);
        fs::rename("d1", "d2").unwrap();
        read("d2/x/f", 11);
        fs::rename("d2", "d1").unwrap();
        // Two names that change places, and two of one file.
        fs::write("left", [7; 64]).unwrap();
        fs::write("right", [7; 64]).unwrap();
        read("left", 13);
        assert_eq!(
            call!(libc::SYS_renameat2, AT_FDCWD, at(c"left"), AT_FDCWD, at(c"right"), libc::RENAME_EXCHANGE),
            0
        );
        read("left", 13);
        read("right", 17);
        fs::remove_file("right").unwrap();
        fs::hard_link("left", "right").unwrap();
        read("right", 17);
        fs::remove_file("left").unwrap();
    }
}

#[test]
fn the_same_name_twice_is_the_right_path_each_time() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let facts = closed(&run_workload(probe, "names", &root));
        let reads = |name: &str| {
            let opens: u64 = facts
                .opens_of(&root.join(name))
                .filter(|open| open.flags & 3 == 0)
                .map(|open| open.count)
                .sum();
            let io = facts.io(&root.join(name), None);
            (opens, io.reads, io.read_bytes)
        };
        let of = |opens: u64, bytes: u64| (opens * TURNS, opens * TURNS, opens * TURNS * bytes);
        assert_eq!(reads("a"), of(3, 3));
        assert_eq!(reads("b"), of(1, 5));
        assert_eq!(reads("d1/x/f"), of(1, 7));
        assert_eq!(reads("d2/x/f"), of(1, 11));
        assert_eq!(reads("left"), of(2, 13));
        assert_eq!(reads("right"), of(2, 17));
    });
}

/// A name in whose place another file system appears.
fn mounted() {
    for _ in 0..20 {
        read("place/file", 3);
        assert_eq!(call!(libc::SYS_mount, at(c"other"), at(c"place"), 0, libc::MS_BIND, 0), 0);
        read("place/file", 5);
        read("place/file", 5);
        assert_eq!(call!(libc::SYS_umount2, at(c"place"), 0), 0);
        read("place/file", 3);
        // One file by two mounts.
        assert_eq!(call!(libc::SYS_mount, at(c"place"), at(c"twin"), 0, libc::MS_BIND, 0), 0);
        read("twin/file", 7);
        read("place/file", 3);
        assert_eq!(call!(libc::SYS_umount2, at(c"twin"), 0), 0);
    }
}

#[test]
fn what_is_mounted_over_is_another_file_of_that_name() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for name in ["place", "other", "twin"] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), [7; 64]).unwrap();
        }
        let facts = closed(&run_workload(probe, "names_mounted", &root));
        let reads = |name: &str| {
            let io = facts.io(&root.join(name), None);
            (facts.opened(&root.join(name)), io.reads, io.read_bytes)
        };
        assert_eq!(reads("place/file"), (100, 100, 20 * (3 + 3 + 3 + 5 + 5)));
        assert_eq!(reads("twin/file"), (20, 20, 140));
        assert_eq!(reads("other/file"), (0, 0, 0));
    });
}

/// Entries of directories, made and freed and used again for other names.
fn recycled() {
    for number in 0..3000 {
        let (dir, name) = (format!("dir{number}"), format!("dir{number}/name{number}"));
        fs::create_dir(&dir).unwrap();
        fs::write(&name, [7; 64]).unwrap();
        for _ in 0..3 {
            read(&name, 2);
        }
        fs::remove_file(&name).unwrap();
        fs::remove_dir(&dir).unwrap();
    }
}

#[test]
fn a_freed_name_is_not_taken_for_the_next() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let facts = closed(&run_workload(probe, "names_recycled", &root));
        for number in 0..3000 {
            let path = root.join(format!("dir{number}/name{number}"));
            assert_eq!(facts.opened(&path), 4, "{}", path.display());
            assert_eq!(facts.io(&path, None).read_bytes, 6, "{}", path.display());
        }
    });
}

/// More directories than the identity of a path looks at.
static DEEP: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| "n/".repeat(80));

/// Directories that go from place to place while others open files in them.
fn torture(below: &str) {
    let homes = [["p1/c1", "p2/c2"], ["p3/c3", "p4/c4"]];
    for (number, [first, second]) in homes.iter().enumerate() {
        for home in [first, second] {
            fs::create_dir_all(PathBuf::from(home).parent().unwrap()).unwrap();
        }
        fs::create_dir_all(format!("{first}/{below}")).unwrap();
        fs::write(format!("{first}/{below}file{number}"), [7; 64]).unwrap();
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for [first, second] in homes {
                    fs::rename(first, second).unwrap();
                }
                for [first, second] in homes {
                    fs::rename(second, first).unwrap();
                }
            }
        });
        let names: Vec<String> = homes
            .iter()
            .enumerate()
            .flat_map(|(number, homes)| homes.map(|home| format!("{home}/{below}file{number}")))
            .collect();
        let began = Instant::now();
        let mut found = 0u64;
        let mut buffer = [0u8; 8];
        while began.elapsed() < Duration::from_secs(2) {
            for name in &names {
                if let Ok(file) = File::open(name) {
                    found += 1;
                    assert_eq!(file.read_at(&mut buffer[..1], 0).unwrap(), 1);
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        fs::write("found", found.to_string()).unwrap();
    });
}

fn judge_torture(facts: &Facts, root: &std::path::Path, below: &str) {
    let allowed = [("p1/c1", 0), ("p2/c2", 0), ("p3/c3", 1), ("p4/c4", 1)]
        .map(|(home, number)| root.join(format!("{home}/{below}file{number}")).to_str().unwrap().to_owned());
    let found: u64 = fs::read_to_string(root.join("found")).unwrap().parse().unwrap();
    let inside = |path: &str| path.ends_with("/file0") || path.ends_with("/file1");
    let (mut told, mut unstable, mut wrong) = (0, 0, Vec::new());
    for open in
        facts.opens.iter().filter(|open| open.result == 0 && open.flags & 3 == 0 && inside(&open.path.path))
    {
        told += open.count;
        if open.path.is_unresolved() {
            unstable += open.count;
        } else if !allowed.contains(&open.path.path) {
            wrong.push(open.path.path.clone());
        }
    }
    let of_io: u64 =
        facts.ios.iter().filter(|(_, at, _)| inside(&at.path)).map(|(_, _, io)| io.read_bytes).sum();
    eprintln!("{found} opens, {unstable} of them marked, {} wrong", wrong.len());
    assert_eq!((told, of_io), (found, found));
    assert!(wrong.is_empty(), "{} of {found}: {:?}", wrong.len(), &wrong[..wrong.len().min(4)]);
    for (_, at, _) in facts.ios.iter().filter(|(_, at, _)| inside(&at.path)) {
        assert!(at.is_unresolved() || allowed.contains(&at.path), "{at:?}");
    }
    assert!(found > 1000 && unstable * 10 < found, "{unstable} of {found}");
}

#[test]
fn no_path_is_told_that_never_was() {
    each_probe(|probe| {
        let (_dir, root) = place();
        let facts = closed(&run_workload(probe, "torture", &root));
        judge_torture(&facts, &root, "");
    });
}

#[test]
fn no_deep_path_is_told_that_never_was() {
    let Some(probe) = crate::support::probe() else { return };
    let (_dir, root) = place();
    let facts = closed(&run_workload(&probe, "torture_deep", &root));
    judge_torture(&facts, &root, &DEEP);
}

fn deep() {
    let dir = DEEP.as_str();
    fs::create_dir_all(dir).unwrap();
    fs::write(format!("{dir}file"), [7; 64]).unwrap();
    for _ in 0..10 {
        read(&format!("{dir}file"), 9);
    }
}

#[test]
fn bytes_of_a_deep_file_are_counted_too() {
    let Some(probe) = crate::support::probe() else { return };
    let (_dir, root) = place();
    let facts = closed(&run_workload(&probe, "deep", &root));
    let path = root.join(format!("{}file", DEEP.as_str()));
    assert_eq!(facts.opened(&path), 11);
    assert_eq!((facts.io(&path, None).reads, facts.io(&path, None).read_bytes), (10, 90));
}

/// hash_name() of fs/namei.c (x86-64), before it is folded: of 24 bytes, in a directory at this address.
fn name_hash(name: &[u8], directory: u64) -> (u64, u64) {
    let (words, _) = name.as_chunks::<8>();
    words.iter().fold((0, directory), |(x, y), word| {
        let x = x ^ u64::from_le_bytes(*word);
        let y = y ^ x;
        (x.rotate_left(12).wrapping_add(y), y.rotate_left(45).wrapping_mul(9))
    })
}

/// Two names that have one hash in about every tenth directory, whatever its secret address: what the first word changes
/// is taken back by the second and the third.
fn twin_names(seed: u64) -> [Vec<u8>; 2] {
    let mut state = seed + 1;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    loop {
        let first: Vec<u8> = (0..24).map(|_| b'a' + (random() % 26) as u8).collect();
        let mut second = first.clone();
        for (at, difference) in [(0, 1u64 << 63), (8, 0x8000_9000_0000_0800), (16, 0x0900_0000_0000_0000)] {
            for (byte, change) in second[at..at + 8].iter_mut().zip(difference.to_le_bytes()) {
                *byte ^= change;
            }
        }
        let alike = (0..100).filter(|_| {
            let directory = 0xffff_8880_0000_0000 + random() * 192;
            name_hash(&first, directory) == name_hash(&second, directory)
        });
        if alike.count() >= 10 && !second.contains(&b'/') && !second.contains(&0) {
            return [first, second];
        }
    }
}

const ROUNDS: usize = 60;
const TWINS: usize = 10;

fn twins() {
    use std::os::unix::ffi::OsStrExt;
    for round in 0..ROUNDS {
        let pairs: Vec<_> = (0..TWINS).map(|number| twin_names((round * TWINS + number) as u64)).collect();
        let path = |name: &Vec<u8>| PathBuf::from(std::ffi::OsStr::from_bytes(name));
        // Made without being opened: one entry of the table each.
        let look = |name: &Vec<u8>| {
            let name = std::ffi::CString::new(name.clone()).unwrap();
            assert_eq!(call!(libc::SYS_mknod, at(&name), libc::S_IFREG | 0o600, 0), 0);
            File::open(path(&name.into_bytes())).unwrap();
        };
        pairs.iter().for_each(|[first, _]| look(first));
        for [first, _] in &pairs {
            fs::remove_file(path(first)).unwrap();
        }
        // What was freed can be had again after a grace period.
        std::thread::sleep(Duration::from_millis(40));
        pairs.iter().rev().for_each(|[_, second]| look(second));
        for [_, second] in &pairs {
            fs::remove_file(path(second)).unwrap();
        }
    }
}

#[test]
fn names_of_one_hash_are_not_taken_for_each_other() {
    let Some(probe) = crate::support::probe() else { return };
    // A file system that frees the entry of a name as it is removed.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let root = dir.path().canonicalize().unwrap();
    let facts = closed(&run_workload(&probe, "twins", &root));
    let mut wrong = Vec::new();
    for round in 0..ROUNDS {
        for number in 0..TWINS {
            for name in twin_names((round * TWINS + number) as u64) {
                let path = format!("{}/{}", root.display(), String::from_utf8_lossy(&name));
                let opened = facts.opened(std::path::Path::new(&path));
                if opened != 1 {
                    wrong.push((path, opened));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), ROUNDS * TWINS * 2);
}
