//! Identical opens and bytes, folded in the kernel: sums must be those of the calls, whoever held the descriptor.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use super::{AT_FDCWD, Io, at, call, closed, each_probe, place};
use crate::support::run_workload;

pub fn workload(name: &str) -> bool {
    match name {
        "bytes" => bytes(),
        "bytes_held" => held(),
        "bytes_threads" => threads(),
        "bytes_rotation" => rotation(),
        "opens" => opens(),
        "opens_threads" => opens_threads(),
        _ => return false,
    }
    true
}

fn bytes() {
    let mut buffer = [0u8; 4096];
    let (mut left, mut right) = ([0u8; 30], [0u8; 40]);
    let mut one = File::open("one").unwrap();
    assert_eq!(one.read(&mut buffer[..100]).unwrap(), 100);
    assert_eq!(one.read_at(&mut buffer[..50], 900).unwrap(), 50);
    let mut vectors = [IoSliceMut::new(&mut left), IoSliceMut::new(&mut right)];
    assert_eq!(one.read_vectored(&mut vectors).unwrap(), 70);
    let vector = [buffer.as_ptr() as i64, 33];
    assert_eq!(call!(libc::SYS_preadv, one.as_raw_fd(), vector.as_ptr(), 1, 0), 33);
    assert_eq!(call!(libc::SYS_preadv2, one.as_raw_fd(), vector.as_ptr(), 1, 0, 0, 0), 33);
    // At its end, and refused: the one is a call that read nothing, the other is none.
    assert_eq!(one.read_at(&mut buffer, 1 << 20).unwrap(), 0);
    assert!(call!(libc::SYS_read, one.as_raw_fd(), 0, 10) < 0);

    let mut two = File::create("two").unwrap();
    assert_eq!(two.write(&buffer[..111]).unwrap(), 111);
    assert_eq!(two.write_at(&buffer[..222], 500).unwrap(), 222);
    assert_eq!(two.write_vectored(&[IoSlice::new(&buffer[..5]), IoSlice::new(&buffer[..6])]).unwrap(), 11);
    assert_eq!(call!(libc::SYS_pwritev, two.as_raw_fd(), vector.as_ptr(), 1, 0), 33);
    assert_eq!(call!(libc::SYS_pwritev2, two.as_raw_fd(), vector.as_ptr(), 1, 0, 0, 0), 33);

    let (source, sent, copied) =
        (File::open("source").unwrap(), File::create("sent").unwrap(), File::create("copied").unwrap());
    assert_eq!(call!(libc::SYS_sendfile, sent.as_raw_fd(), source.as_raw_fd(), 0, 1234), 1234);
    assert_eq!(call!(libc::SYS_copy_file_range, source.as_raw_fd(), 0, copied.as_raw_fd(), 0, 321, 0), 321);
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    assert_eq!(call!(libc::SYS_splice, source.as_raw_fd(), 0, writer.as_raw_fd(), 0, 77, 0), 77);
}

#[test]
fn bytes_are_those_of_the_calls() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for name in ["one", "source"] {
            fs::write(root.join(name), [7; 10_000]).unwrap();
        }
        let facts = closed(&run_workload(probe, "bytes", &root));
        let io = |name: &str| facts.io(&root.join(name), None);
        assert_eq!(io("one"), Io { reads: 6, read_bytes: 100 + 50 + 70 + 33 + 33, ..Io::default() });
        assert_eq!(io("two"), Io { writes: 5, written_bytes: 111 + 222 + 11 + 33 + 33, ..Io::default() });
        assert_eq!(io("source"), Io { reads: 3, read_bytes: 1234 + 321 + 77, ..Io::default() });
        assert_eq!(io("sent"), Io { writes: 1, written_bytes: 1234, ..Io::default() });
        assert_eq!(io("copied"), Io { writes: 1, written_bytes: 321, ..Io::default() });
    });
}

/// Descriptors that the reader did not open itself, or that mean another file than before.
fn held() {
    let mut buffer = [0u8; 64];
    // Two descriptors of one open, and one file opened twice.
    let five = File::open("five").unwrap();
    let copy = five.try_clone().unwrap();
    let again = File::open("five").unwrap();
    for file in [&five, &copy, &again] {
        assert_eq!(file.read_at(&mut buffer[..10], 0).unwrap(), 10);
    }
    // The same number for another file, and by dup2 for a third.
    let six = File::open("six").unwrap();
    let number = six.as_raw_fd();
    assert_eq!(six.read_at(&mut buffer[..6], 0).unwrap(), 6);
    drop(six);
    let seven = File::open("seven").unwrap();
    assert_eq!(seven.as_raw_fd(), number);
    assert_eq!(seven.read_at(&mut buffer[..7], 0).unwrap(), 7);
    let eight = File::open("eight").unwrap();
    assert_eq!(call!(libc::SYS_dup3, eight.as_raw_fd(), number, 0), i64::from(number));
    assert_eq!(seven.read_at(&mut buffer[..8], 0).unwrap(), 8);
    // Inherited by a program that reads from its standard input.
    let stdin = File::open("stdin").unwrap();
    let status = std::process::Command::new("head")
        .args(["-c", "999"])
        .stdin(stdin)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(status.stdout.len(), 999);
    // By a child that is a copy.
    let parent = File::open("parent").unwrap();
    #[allow(unsafe_code, reason = "the child makes two system calls")]
    // SAFETY: the child reads into memory of its own and ends, without the allocator or anybody's lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        call!(libc::SYS_pread64, parent.as_raw_fd(), buffer.as_mut_ptr(), 55, 0);
        call!(libc::SYS_exit_group, 0);
    }
    assert_eq!(parent.read_at(&mut buffer[..44], 0).unwrap(), 44);
    assert_eq!(call!(libc::SYS_wait4, child, 0, 0, 0), i64::from(child));
    // Unlinked, and a memfd.
    let gone = File::open("gone").unwrap();
    fs::remove_file("gone").unwrap();
    assert_eq!(gone.read_at(&mut buffer[..11], 0).unwrap(), 11);
    let memory = nix::sys::memfd::memfd_create(c"nowhere", nix::sys::memfd::MFdFlags::empty()).unwrap();
    assert_eq!(nix::unistd::write(&memory, &buffer[..13]).unwrap(), 13);
}

#[test]
fn descriptors_are_known_whoever_opened_them() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for name in ["five", "six", "seven", "eight", "stdin", "parent", "gone"] {
            fs::write(root.join(name), [7; 999]).unwrap();
        }
        let run = run_workload(probe, "bytes_held", &root);
        let facts = closed(&run);
        let reads = |name: &str, of| {
            let io = facts.io(&root.join(name), of);
            assert_eq!((io.writes, io.written_bytes), (0, 0));
            (io.reads, io.read_bytes)
        };
        assert_eq!(reads("five", None), (3, 30));
        assert_eq!(reads("six", None), (1, 6));
        assert_eq!(reads("seven", None), (1, 7));
        assert_eq!(reads("eight", None), (1, 8));
        assert_eq!(reads("stdin", None).1, 999);
        assert_eq!(reads("stdin", Some(run.pid)), (0, 0));
        assert_eq!((reads("parent", None), reads("parent", Some(run.pid))), ((2, 99), (1, 44)));
        assert_eq!(reads("gone", None), (1, 11));
        let memory: Vec<_> = facts.ios.iter().filter(|(_, at, _)| at.path == "memfd:nowhere").collect();
        assert_eq!(memory.len(), 1, "{:?}", facts.ios);
        assert_eq!(memory[0].2, Io { writes: 1, written_bytes: 13, ..Io::default() });
    });
}

/// Two threads read what a third opened, at once and in turns, while they open files of their own.
fn threads() {
    let shared: Vec<File> = (0..4).map(|number| File::open(format!("shared{number}")).unwrap()).collect();
    std::thread::scope(|scope| {
        for number in 0..2usize {
            let shared = &shared;
            scope.spawn(move || {
                let mut buffer = [0u8; 64];
                for turn in 0..3000 {
                    let file = &shared[(turn + number) % 4];
                    assert_eq!(file.read_at(&mut buffer[..13], 0).unwrap(), 13);
                    if turn % 100 == 0 {
                        // Their numbers come and go between the two threads.
                        let own = File::open(format!("own{number}")).unwrap();
                        assert_eq!(own.read_at(&mut buffer[..3], 0).unwrap(), 3);
                    }
                }
            });
        }
    });
}

#[test]
fn threads_that_share_descriptors_count_each_byte_once() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for name in ["shared0", "shared1", "shared2", "shared3", "own0", "own1"] {
            fs::write(root.join(name), [7; 100]).unwrap();
        }
        let facts = closed(&run_workload(probe, "bytes_threads", &root));
        for number in 0..4 {
            let io = facts.io(&root.join(format!("shared{number}")), None);
            assert_eq!((io.reads, io.read_bytes), (1500, 1500 * 13), "{number}");
        }
        for number in 0..2 {
            let own = root.join(format!("own{number}"));
            assert_eq!(facts.opened(&own), 30);
            assert_eq!((facts.io(&own, None).reads, facts.io(&own, None).read_bytes), (30, 90));
        }
    });
}

/// More files than a table has entries, each again and again.
fn rotation() {
    let files: Vec<File> = (0..100).map(|number| File::open(format!("file{number}")).unwrap()).collect();
    let mut buffer = [0u8; 256];
    for turn in 0..20 {
        for (number, file) in files.iter().enumerate() {
            assert_eq!(file.read_at(&mut buffer[..number + 1], 0).unwrap(), number + 1);
            if turn % 5 == 0 {
                drop(File::open(format!("file{number}")).unwrap());
            }
        }
    }
}

#[test]
fn more_files_than_a_table_holds_are_told_in_full() {
    each_probe(|probe| {
        let (_dir, root) = place();
        for number in 0..100 {
            fs::write(root.join(format!("file{number}")), [7; 200]).unwrap();
        }
        let facts = closed(&run_workload(probe, "bytes_rotation", &root));
        for number in 0..100u64 {
            let path = root.join(format!("file{number}"));
            let io = facts.io(&path, None);
            assert_eq!((io.reads, io.read_bytes), (20, 20 * (number + 1)), "{number}");
            assert_eq!(facts.opened(&path), 5, "{number}");
        }
    });
}

fn open(path: &std::ffi::CStr, flags: i32) -> i64 {
    call!(libc::SYS_openat, AT_FDCWD, at(path), flags, 0o600)
}

fn close(fd: i64) {
    assert!(fd >= 0, "{fd}");
    #[allow(unsafe_code, reason = "a descriptor of a raw system call")]
    // SAFETY: it was opened by the caller, which keeps nothing of it.
    drop(unsafe { File::from_raw_fd(fd as i32) });
}

fn opens() {
    for turn in 0..1000 {
        close(open(c"same", libc::O_RDONLY));
        if turn % 2 == 0 {
            close(open(c"same", libc::O_RDWR));
        }
        if turn % 4 == 0 {
            close(open(c"./sub/../same", libc::O_RDONLY));
        }
        if turn % 10 == 0 {
            assert_eq!(open(c"absent", libc::O_RDONLY), -i64::from(libc::ENOENT));
        }
        close(open(c"made", libc::O_WRONLY | libc::O_CREAT));
    }
    // It is there; it has to be new; it is new; it has no name.
    assert_eq!(open(c"made", libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL), -i64::from(libc::EEXIST));
    close(open(c"new", libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL));
    close(open(c".", libc::O_WRONLY | libc::O_TMPFILE));
    close(call!(libc::SYS_creat, at(c"creat"), 0o600));
    close(call!(libc::SYS_creat, at(c"creat"), 0o600));
    // By openat2: struct open_how.
    let how = [(libc::O_WRONLY | libc::O_CREAT) as u64, 0o600, 0];
    for _ in 0..3 {
        close(call!(libc::SYS_openat2, AT_FDCWD, at(c"how"), how.as_ptr(), 24));
    }
}

#[test]
fn identical_opens_are_one_event_with_their_number() {
    each_probe(|probe| {
        let (_dir, root) = place();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("same"), b"x").unwrap();
        let run = run_workload(probe, "opens", &root);
        let facts = closed(&run);
        let count = |name: &str, flags: i32, created: bool, result: i32| -> u64 {
            facts
                .opens_of(&root.join(name))
                .filter(|open| (open.flags, open.created, open.result) == (flags as u32, created, result))
                .map(|open| open.count)
                .sum()
        };
        assert_eq!(count("same", libc::O_RDONLY, false, 0), 1250);
        assert_eq!(count("same", libc::O_RDWR, false, 0), 500);
        assert_eq!(count("absent", libc::O_RDONLY, false, -libc::ENOENT), 100);
        let creates = libc::O_WRONLY | libc::O_CREAT;
        assert_eq!((count("made", creates, true, 0), count("made", creates, false, 0)), (1, 999));
        assert_eq!(count("made", creates | libc::O_EXCL, false, -libc::EEXIST), 1);
        assert_eq!(count("new", creates | libc::O_EXCL, true, 0), 1);
        let emptied = creates | libc::O_TRUNC;
        assert_eq!((count("creat", emptied, true, 0), count("creat", emptied, false, 0)), (1, 1));
        assert_eq!(facts.opened(&root.join("how")), 3);
        assert_eq!(
            facts.opens_of(&root.join("how")).filter(|open| open.created).map(|open| open.count).sum::<u64>(),
            1
        );
        assert!(facts.opens_of(&root.join("how")).all(|open| open.flags & libc::O_CREAT as u32 != 0));
        let file = run.report.counters.class(glasshouse_schema::Class::File);
        assert!(file.delivered < 400 && file.collapsed > 2500, "{file:?}");
    });
}

fn opens_threads() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    close(open(c"same", libc::O_RDONLY));
                    let mut own = File::options().append(true).open("log").unwrap();
                    own.write_all(b"line\n").unwrap();
                }
            });
        }
    });
}

#[test]
fn each_thread_counts_its_own_opens() {
    each_probe(|probe| {
        let (_dir, root) = place();
        fs::write(root.join("same"), b"x").unwrap();
        fs::write(root.join("log"), b"").unwrap();
        let facts = closed(&run_workload(probe, "opens_threads", &root));
        assert_eq!(facts.opened(&root.join("same")), 2000);
        assert_eq!(facts.opened(&root.join("log")), 2000);
        let log = facts.io(&root.join("log"), None);
        assert_eq!((log.writes, log.written_bytes), (2000, 10_000));
        assert_eq!(fs::read(root.join("log")).unwrap().len(), 10_000);
    });
}
