//! Frames that travel compressed fold to the same receipt, and those that say they are and are not become dead letters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{begun, broker, dead_letter, ended, exec, execution, node, publish, publisher, receipt, start};
use glasshouse_nats::{ConnectOptions, Encoding, EventReader, StreamStart, connect};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::{
    EncodedFrame, Event, Fact, FrameWriter, PathRef, Phase, ProcessKey, Vantage, headers, subject,
};

const FILES: usize = 300;

/// The frames of a command that opened many files.
fn frames(begin: &[Phase]) -> Vec<EncodedFrame> {
    let epoch = begin.iter().find_map(|phase| match phase {
        Phase::Claimed(claimed) => Some(claimed.epoch),
        _ => None,
    });
    let unix_ns = 1_700_000_000_000_000_000;
    let config = FrameWriterConfig::new(execution(1), node(), Vantage::Host, epoch.unwrap(), unix_ns);
    let mut writer = FrameWriter::new(config);
    let process = ProcessKey { tgid: 1, start_boot_ns: 1_000 };
    writer.push(&Event { boot_ns: 2_000, process, fact: exec("/usr/bin/find", &[b"find"]) });
    for file in 0..FILES {
        let path = format!("/srv/{file}/the/same/again/and/again");
        let path = PathRef::resolved(path.as_bytes());
        let fact = Fact::Open { path, flags: 0, result: 3, created: false };
        writer.push(&Event { boot_ns: 3_000, process, fact });
    }
    writer.flush().into_iter().collect()
}

/// The next frame that the stream holds.
async fn stored_frame(reader: &mut EventReader) -> glasshouse_nats::StoredMessage {
    loop {
        let message = reader.next().await.unwrap();
        if message.header(headers::CONTENT_TYPE) == Some(headers::FRAME_TYPE) {
            return message;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_may_travel_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let options = ConnectOptions::new(broker.server.url(), "test").frame_encoding(Encoding::Lz4);
    let compressing = publisher(&connect(options).await.unwrap());
    let begin = begun(&broker.bus, execution(1)).await;
    let frames = frames(&begin);
    publish(&compressing, execution(1), begin).await;
    for EncodedFrame { bytes, digest, .. } in frames.clone() {
        compressing.publish_frame(&node(), execution(1), Vantage::Host, bytes, digest, None).await.unwrap();
    }
    publish(&compressing, execution(1), ended()).await;

    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let message = stored_frame(&mut reader).await;
    assert_eq!(message.header(headers::CONTENT_ENCODING), Some("lz4"));
    assert!(message.payload.len() < frames[0].bytes.len(), "{}", message.payload.len());
    let digest = frames[0].digest;
    assert_eq!(message.header(headers::MSG_ID).unwrap(), headers::frame_msg_id(&node(), digest));
    assert_eq!(message.decoded().unwrap().payload, frames[0].bytes);

    let worker = start(&broker, "one");
    let receipt = receipt(&broker.bus, execution(1)).await;
    assert_eq!(receipt.files.len(), FILES);
    assert_eq!(receipt.chain[0].head, frames.last().unwrap().digest, "the chain is of what was said");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_not_compressed_as_it_says_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let begin = begun(&broker.bus, execution(1)).await;
    let publisher = publisher(&broker.bus);
    publish(&publisher, execution(1), begin).await;
    let mut header = async_nats::HeaderMap::new();
    header.insert(headers::CONTENT_ENCODING, "lz4");
    let subject = subject::frames(&node(), execution(1), Vantage::Host);
    let bomb = vec![0xff; 64].into();
    let sent = broker.bus.jetstream().publish_with_headers(subject, header, bomb).await.unwrap();
    sent.await.unwrap();
    publish(&publisher, execution(1), ended()).await;

    let worker = start(&broker, "one");
    let letter = dead_letter(&broker.bus).await;
    assert!(letter.reason.contains("4294967295 bytes without compression"), "{}", letter.reason);
    receipt(&broker.bus, execution(1)).await;
    worker.stop().await;
}
