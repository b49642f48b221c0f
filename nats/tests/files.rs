//! Files of executions: stored once, fetched only as what they are said to be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, dead_code, reason = "tests")]

mod common;

use std::path::Path;

use common::{Broker, broker};
use glasshouse_nats::{ErrorKind, FILES, digest_of};
use glasshouse_schema::{Digest, StoredFile};
use tokio::fs::File;

async fn fetch(broker: &Broker, file: &StoredFile, to: &Path) -> Result<Vec<u8>, glasshouse_nats::Error> {
    std::fs::write(to, "what was there before and is longer than all of it").unwrap();
    let mut into = File::options().write(true).open(to).await.unwrap();
    broker.bus.fetch_file(file, &mut into).await.map(|()| std::fs::read(to).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_stored_once_and_is_what_it_was() {
    let broker = broker().await;
    let (from, to) = (broker.dir.path().join("from"), broker.dir.path().join("to"));
    let store = broker.bus.jetstream().get_object_store(FILES).await.unwrap();
    for content in [Vec::new(), b"a".to_vec(), (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect()] {
        std::fs::write(&from, &content).unwrap();
        let (sha256, bytes) = digest_of(&mut std::fs::File::open(&from).unwrap(), 1 << 30).unwrap();
        assert_eq!((sha256, bytes), (Digest::of(&content), content.len() as u64));
        let mut nuids = Vec::new();
        for _ in 0..2 {
            broker.bus.store_file(&mut File::open(&from).await.unwrap(), sha256, bytes).await.unwrap();
            nuids.push(store.info(sha256.to_string()).await.unwrap().nuid);
        }
        assert_eq!(nuids[0], nuids[1], "the second time nothing is stored");
        let file = StoredFile { path: "x".into(), mode: 0o644, bytes, sha256 };
        assert!(fetch(&broker, &file, &to).await.unwrap() == content);
        // Of another length than whoever names it says.
        let error = fetch(&broker, &StoredFile { bytes: bytes + 1, ..file }, &to).await.unwrap_err();
        assert!(error.to_string().contains("bytes in GH_FILES, not"), "{error}");
    }
    assert!(digest_of(&mut std::fs::File::open(&from).unwrap(), 10).is_err(), "it is longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_is_something_else_is_an_error() {
    let broker = broker().await;
    let to = broker.dir.path().join("to");
    let file = StoredFile { path: "x".into(), mode: 0o644, bytes: 4, sha256: Digest::of(b"good") };
    let error = fetch(&broker, &file, &to).await.unwrap_err();
    assert!(error.to_string().contains("never stored there, or longer than 72 h ago"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Poison);

    // Somebody stored something else under its name.
    let store = broker.bus.jetstream().get_object_store(FILES).await.unwrap();
    store.put(file.sha256.to_string().as_str(), &mut &b"evil"[..]).await.unwrap();
    let error = fetch(&broker, &file, &to).await.unwrap_err();
    assert!(error.to_string().contains("is something else"), "{error}");

    // A file that changes between its digest and its storing is not stored under the old one.
    let from = broker.dir.path().join("from");
    for now in ["other", "longer than it was", ""] {
        std::fs::write(&from, now).unwrap();
        let mut open = File::open(&from).await.unwrap();
        let error = broker.bus.store_file(&mut open, Digest::of(b"befor"), 5).await.unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
    }
    assert!(store.info(Digest::of(b"befor").to_string()).await.is_err());
}
