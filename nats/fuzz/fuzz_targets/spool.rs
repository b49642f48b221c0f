//! Whatever lies in the files of a spool: no panic, nothing is allocated that a file only promises, every message is one of ours,
//! what is read once is read again, and the spool goes on.
#![no_main]

use std::cell::OnceCell;
use std::path::Path;

use glasshouse_nats::{Spool, spool_fuzz as spool};
use glasshouse_nats_fuzz::{Files, files};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static DIR: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fuzz_target!(|input: &[u8]| {
    DIR.with(|dir| {
        // In memory where there is such a place: what is tried is not the disk.
        let dir = dir.get_or_init(|| {
            let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
            made.expect("there is room for a directory")
        });
        check(&dir.path().join("spool"), files(input));
    });
});

fn check(dir: &Path, files: Files) {
    std::fs::create_dir_all(dir).expect("a directory can be made");
    if let Some(cursor) = &files.cursor {
        std::fs::write(dir.join("cursor"), cursor).expect("a file can be written");
    }
    for (first, bytes) in &files.segments {
        std::fs::write(spool::path(dir, *first), bytes).expect("a file can be written");
    }
    let (peeked, in_use) = Spool::peek(dir).expect("files that can be read are no error");
    assert!(!in_use);
    let mut opened = spool::open(dir).expect("files that can be read are no error");
    let left = opened.leftover().messages;
    assert!(left <= peeked.messages, "{left} are left of {}", peeked.messages);
    let found = opened.fuzz_rest().expect("files that can be read are no error");
    assert!(found.len() as u64 <= left, "{} messages in {left} records", found.len());
    let damaged = opened.damaged();
    for (subject, ..) in &found {
        assert!(subject.starts_with("glasshouse.v1."), "{subject}");
        assert!(!subject.contains(['*', '>', ' ', '\r', '\n']), "{subject}");
    }
    // Again the same, and damage is counted once.
    opened.fuzz_rewind();
    assert_eq!(opened.fuzz_rest().expect("it was read before"), found);
    assert_eq!(opened.damaged(), damaged);
    // What is taken is there, behind all that, also for the next process.
    let more =
        ("glasshouse.v1.frames.n.e.host".to_owned(), vec![("a".to_owned(), "b".to_owned())], vec![7; 9]);
    opened.fuzz_append(&more).expect("there is room for one");
    drop(opened);
    let mut opened = spool::open(dir).expect("it was opened before");
    let again = opened.fuzz_rest().expect("it was read before");
    assert_eq!(again.last(), Some(&more));
    assert_eq!(&again[..again.len() - 1], &found[..]);
    opened.fuzz_ack().expect("there is room for a cursor");
    assert!(opened.is_empty());
    drop(opened);
    std::fs::remove_dir_all(dir).expect("the directory can be removed");
}
