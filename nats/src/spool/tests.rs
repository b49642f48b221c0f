//! The files themselves: what a crash, a bad disk and a full one leave.

use std::io::BufRead;
use std::process::{Command, Stdio};

use async_nats::HeaderMap;
use proptest::prelude::*;

use super::*;

const CHILD: &str = "GLASSHOUSE_TEST_SPOOL_CHILD";

fn message(n: u64, bytes: usize) -> Outgoing {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("m:{n}"));
    headers.append("traceparent", "a");
    headers.append("traceparent", "b");
    let payload = (0..bytes as u64).map(|at| (n * 31 + at) as u8).collect::<Vec<_>>().into();
    Outgoing { subject: format!("glasshouse.v1.frames.node.{n}.host"), headers, payload }
}

fn same(a: &Outgoing, b: &Outgoing) -> bool {
    a.subject == b.subject && a.headers == b.headers && a.payload == b.payload
}

fn small() -> SpoolOptions {
    SpoolOptions { segment_bytes: 2_000, ..SpoolOptions::default() }
}

fn open(dir: &Path) -> Spool {
    Spool::open(dir, small()).unwrap()
}

fn rest(spool: &mut Spool) -> Vec<Outgoing> {
    std::iter::from_fn(|| spool.read().unwrap()).map(|(_, message)| message).collect()
}

/// Writes messages of these sizes and gives them.
fn filled(dir: &Path, sizes: &[usize]) -> Vec<Outgoing> {
    let mut spool = open(dir);
    let messages: Vec<_> = (0..).zip(sizes).map(|(n, bytes)| message(n, *bytes)).collect();
    for message in &messages {
        spool.append(message, true).unwrap();
    }
    messages
}

fn assert_same(found: &[Outgoing], wanted: &[Outgoing]) {
    assert_eq!(found.len(), wanted.len());
    assert!(found.iter().zip(wanted).all(|(a, b)| same(a, b)));
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == SEGMENT)).collect();
    paths.sort();
    paths
}

#[test]
fn what_is_appended_is_read_in_order_across_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("spool");
    let messages = filled(&dir, &[100; 40]);
    assert!(segments(&dir).len() > 3);
    let mut spool = open(&dir);
    assert_same(&rest(&mut spool), &messages);
    assert_eq!(spool.damaged(), 0);
    // Not acknowledged: again.
    spool.rewind();
    let (_, first) = spool.read().unwrap().unwrap();
    let (second, _) = spool.read().unwrap().unwrap();
    assert!(same(&first, &messages[0]));
    spool.ack(second).unwrap();
    spool.unsynced().unwrap().run().unwrap();
    drop(spool);
    let mut spool = open(&dir);
    assert_eq!(spool.leftover().messages, 38);
    // What is new comes behind, in a segment of its own.
    spool.append(&message(40, 1), true).unwrap();
    let found = rest(&mut spool);
    assert_same(&found[..38], &messages[2..]);
    assert!(same(&found[38], &message(40, 1)));
    spool.ack(spool.position()).unwrap();
    assert!(spool.is_empty() && segments(&dir).is_empty());
    assert_eq!(spool.finish().unwrap().messages, 0);
    assert!(!dir.exists());
}

#[test]
fn nobody_else_may_look_into_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("a/spool");
    filled(&dir, &[1]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&segments(&dir)[0]), 0o600);
}

#[test]
fn one_process_has_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let error = Spool::open(dir.path(), small()).unwrap_err();
    assert!(matches!(error, SpoolError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    assert!(Spool::peek(dir.path()).unwrap().1);
    drop(spool);
    assert!(!Spool::peek(dir.path()).unwrap().1);
    open(dir.path());
}

#[test]
fn a_directory_that_is_removed_while_somebody_opens_it_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("spool");
    // Each takes it, or finds it in use; whoever had it last removes it under the others.
    let use_it = || {
        for n in 0..200 {
            let mut spool = match Spool::open(&dir, small()) {
                Ok(spool) => spool,
                Err(SpoolError::InUse { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            spool.append(&message(n, 10), true).unwrap();
            assert_same(&rest(&mut spool), &[message(n, 10)]);
            spool.ack(spool.position()).unwrap();
            assert_eq!(spool.finish().unwrap().messages, 0);
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(use_it))));
    assert!(!dir.exists());
}

#[test]
fn a_directory_says_for_which_stream_it_is_if_anybody_noted_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    assert_eq!(Spool::destination(dir.path()), None);
    spool.set_destination(i128::MAX).unwrap();
    spool.set_destination(-17).unwrap();
    drop(spool);
    open(dir.path());
    assert_eq!(Spool::destination(dir.path()), Some(-17));
    for torn in ["", "1", "x\n", "1\n2\n"] {
        std::fs::write(dir.path().join(LOCK), torn).unwrap();
        assert_eq!(Spool::destination(dir.path()), None, "{torn:?}");
    }
    assert_eq!(Spool::destination(&dir.path().join("nowhere")), None);
}

#[test]
fn another_process_gets_a_clear_error() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "spool::tests::child_that_appends");
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("taken ")).unwrap().unwrap();
    let error = Spool::open(dir.path(), small()).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(error, SpoolError::InUse { .. }), "{error}");
    open(dir.path());
}

/// This test program once more, in a process of its own, which runs only `test`.
fn child(dir: &Path, test: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a part of other tests: appends until it is killed"]
fn child_that_appends() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let mut spool = open(Path::new(&dir));
    // Ends also if nobody kills it: the spool is full then.
    for n in 0.. {
        let appended = spool.append(&message(n, 300), true);
        if appended.is_err() {
            return;
        }
        println!("taken {n}");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "spool::tests::child_that_appends");
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let number = |line: String| line.strip_prefix("taken ").and_then(|n| n.parse::<u64>().ok());
    let mut taken = 0;
    while taken < 500 {
        taken = number(lines.next().unwrap().unwrap()).unwrap_or(taken);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    taken = lines.map_while(Result::ok).filter_map(number).last().unwrap_or(taken);
    let mut spool = open(dir.path());
    let found = rest(&mut spool);
    assert!(found.len() as u64 > taken, "{} of {taken}", found.len());
    assert!((0..).zip(&found).all(|(n, found)| same(found, &message(n, 300))));
    assert_eq!(spool.damaged(), 0);
}

#[test]
fn a_torn_end_is_cut_and_everything_before_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let messages = filled(dir.path(), &[100; 20]);
    let last = segments(dir.path()).pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    let record = record::encode(19, &messages[19]).unwrap().len();
    for cut in 1..=record {
        std::fs::write(&last, &whole[..whole.len() - cut]).unwrap();
        let mut spool = open(dir.path());
        assert_same(&rest(&mut spool), &messages[..19]);
        assert_eq!(spool.damaged(), 0, "what was never whole was never taken");
        drop(spool);
        // Cut, once.
        assert_eq!(std::fs::metadata(&last).map_or(0, |file| file.len()) as usize, whole.len() - record);
        assert_eq!(Spool::peek(dir.path()).unwrap().0.messages, 19);
    }
    // Zeros, as a file system leaves them, and noise.
    for torn in [vec![0; 5_000], vec![0xff; 5_000], vec![1, 0, 0, 0, 7]] {
        let dir = tempfile::tempdir().unwrap();
        let messages = filled(dir.path(), &[100; 20]);
        let last = segments(dir.path()).pop().unwrap();
        let whole = std::fs::read(&last).unwrap();
        std::fs::write(&last, [&whole[..], &torn].concat()).unwrap();
        let mut spool = open(dir.path());
        spool.append(&message(20, 1), true).unwrap();
        let found = rest(&mut spool);
        assert_same(&found[..20], &messages);
        assert!(found.len() == 21 && same(&found[20], &message(20, 1)));
    }
}

#[test]
fn a_missing_segment_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let messages = filled(dir.path(), &[100; 30]);
    let paths = segments(dir.path());
    std::fs::remove_file(&paths[1]).unwrap();
    let first = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<usize>().unwrap();
    let (from, to) = (first(&paths[1]), first(&paths[2]));
    let mut spool = open(dir.path());
    let kept: Vec<_> = [&messages[..from], &messages[to..]].concat();
    assert_same(&rest(&mut spool), &kept);
    assert_eq!(spool.damaged(), (to - from) as u64);
    // Read again, it is not counted again.
    spool.rewind();
    assert_same(&rest(&mut spool), &kept);
    assert_eq!(spool.damaged(), (to - from) as u64);
}

#[test]
fn a_full_spool_says_so_and_takes_more_once_it_is_drained() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool =
        Spool::open(dir.path(), SpoolOptions { max_bytes: 0, ..SpoolOptions::default() }).unwrap();
    assert_eq!(spool.max_bytes(), SpoolOptions::MIN_BYTES);
    let taken = (0..).take_while(|n| spool.append(&message(*n, 60_000), false).is_ok()).count() as u64;
    let error = spool.append(&message(taken, 60_000), false).unwrap_err();
    let SpoolError::Full { messages, bytes, max_bytes, .. } = error else { panic!("{error}") };
    assert_eq!((messages, max_bytes), (taken, SpoolOptions::MIN_BYTES));
    let on_disk: u64 = segments(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(bytes, on_disk);
    // What ends an execution still fits, in whatever size it comes.
    spool.append(&message(taken, 1 << 20), true).unwrap();
    assert!(spool.append(&message(taken + 1, 1 << 20), true).unwrap_err().is_full());
    assert!(segments(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>() <= max_bytes);
    // A segment that is acknowledged gives its room back.
    let freed =
        std::iter::from_fn(|| spool.read().unwrap().map(|(at, _)| at)).any(|at| spool_ack(dir.path(), at));
    assert!(!freed, "nothing is removed before it is acknowledged");
    spool.rewind();
    while let Some((position, _)) = spool.read().unwrap() {
        if spool.ack(position).unwrap() {
            break;
        }
    }
    spool.append(&message(taken + 1, 60_000), true).unwrap();
    rest(&mut spool);
    spool.ack(spool.position()).unwrap();
    assert!(spool.is_empty() && segments(dir.path()).is_empty());
    spool.append(&message(0, 60_000), false).unwrap();
}

/// Whether a segment before `at` is gone.
fn spool_ack(dir: &Path, at: Position) -> bool {
    !segment_path(dir, at.segment).exists()
}

#[test]
fn a_message_that_is_larger_than_any_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    let error = spool.append(&message(0, MAX_BODY_BYTES), true).unwrap_err();
    let SpoolError::TooLarge { bytes, .. } = error else { panic!("{error}") };
    // The payload with some hundred bytes around it.
    assert!((MAX_BODY_BYTES..MAX_BODY_BYTES + 1_000).contains(&bytes), "{error}");
    assert!(spool.is_empty());
}

#[test]
fn a_damaged_cursor_sends_everything_again_and_one_ahead_of_the_data_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let messages = filled(dir.path(), &[100; 5]);
    std::fs::write(dir.path().join("cursor"), [0xff; 16]).unwrap();
    assert_same(&rest(&mut open(dir.path())), &messages);
    let mut cursor = 9_u64.to_le_bytes().to_vec();
    cursor.extend(record::checksum(&9_u64.to_le_bytes()));
    std::fs::write(dir.path().join("cursor"), cursor).unwrap();
    let mut spool = open(dir.path());
    assert!(spool.is_empty());
    spool.append(&messages[0], true).unwrap();
    drop(spool);
    assert_same(&rest(&mut open(dir.path())), &messages[..1]);
}

#[test]
fn what_the_bus_can_never_take_is_set_aside_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    spool.set_aside(&message(1, 10)).unwrap();
    spool.set_aside(&message(1, 10)).unwrap();
    assert_eq!(spool.finish().unwrap().rejected, 1);
    assert_eq!(Spool::peek(dir.path()).unwrap().0.rejected, 1);
    assert_eq!(open(dir.path()).leftover().rejected, 1);
}

#[test]
fn only_our_subjects_are_ever_published_from_a_file() {
    for subject in ["$JS.API.STREAM.DELETE.GH_EVENTS", "glasshouse.v1.frames.>", "glasshouse.v1.a b", ""] {
        let bad = Outgoing { subject: subject.into(), ..message(1, 1) };
        let encoded = record::encode(1, &bad).unwrap();
        let (head, body) = encoded.split_at(HEAD_BYTES);
        assert!(record::decode(1, head.try_into().unwrap(), body).is_none(), "{subject}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is changed in whatever file: no panic, and what is read was written, in order.
    #[test]
    fn damage_never_makes_a_record(
        sizes in prop::collection::vec(0_usize..700, 1..25),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_u8..), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let messages = filled(dir.path(), &sizes);
        let paths = segments(dir.path());
        for (which, at, flip) in &damage {
            let path = which.get(&paths);
            let mut bytes = std::fs::read(path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            std::fs::write(path, bytes).unwrap();
        }
        let mut spool = open(dir.path());
        let found = rest(&mut spool);
        let mut wanted = messages.iter();
        for message in &found {
            prop_assert!(wanted.any(|written| same(written, message)), "never written, or not in order");
        }
        // A flip costs at most its segment.
        let untouched = paths.len().saturating_sub(damage.len());
        prop_assert!(found.len() >= untouched);
        // And the spool goes on.
        spool.append(&message(1_000, 10), true).unwrap();
        let more = rest(&mut spool);
        prop_assert!(more.len() == 1 && same(&more[0], &message(1_000, 10)));
        spool.ack(spool.position()).unwrap();
        prop_assert!(spool.is_empty());
    }

    /// Appends, reads, acknowledgements, crashes and restarts in any order, against a list.
    #[test]
    fn it_behaves_like_a_list(steps in prop::collection::vec((0_u8..6, 0_usize..600), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path());
        let (mut written, mut acked, mut read) = (Vec::new(), 0, 0);
        for (step, bytes) in steps {
            match step {
                0 | 1 => {
                    let message = message(written.len() as u64, bytes);
                    spool.append(&message, true).unwrap();
                    written.push(message);
                }
                2 => match spool.read().unwrap() {
                    Some((_, message)) => {
                        prop_assert!(same(&message, &written[read]));
                        read += 1;
                    }
                    None => prop_assert_eq!(read, written.len()),
                },
                3 => {
                    spool.ack(spool.position()).unwrap();
                    acked = read;
                }
                4 => {
                    spool.rewind();
                    read = acked;
                }
                _ => {
                    // With and without what a power failure would cost.
                    if bytes % 2 == 0 && let Some(unsynced) = spool.unsynced() {
                        unsynced.run().unwrap();
                    }
                    drop(spool);
                    spool = open(dir.path());
                    let left = spool.leftover().messages as usize;
                    prop_assert!(left >= written.len() - acked, "lost");
                    prop_assert!(left <= written.len());
                    read = written.len() - left;
                    acked = read;
                }
            }
            prop_assert_eq!(spool.leftover().messages as usize, written.len() - acked);
            prop_assert_eq!(spool.damaged(), 0);
        }
    }
}
