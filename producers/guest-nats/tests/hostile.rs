//! A guest that writes its messages by hand: the first one that no honest end sends ends the link, with words, and is not handed on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Read as _;
use std::time::Duration;

use common::{Broker, execution};
use glasshouse_guest_nats::{Header, HostEnd, Kind, MAX_PIECE_BYTES, Subjects, WINDOW};

const SOON: Duration = Duration::from_secs(20);

fn message(kind: Kind, number: u64, taken: u64, rest: &[u8]) -> Vec<u8> {
    [&Header { kind, number, taken }.write(), rest].concat()
}

/// What the host says of such a guest, and what it handed on. Nobody reads what is handed on before the link is over.
async fn after(broker: &Broker, number: u8, messages: Vec<Vec<u8>>) -> (String, Vec<u8>) {
    let id = execution(number);
    let (host, credential) = HostEnd::open(&broker.issuer(), id, Duration::from_secs(600)).await.unwrap();
    let options = async_nats::ConnectOptions::new().credentials(credential.text()).unwrap();
    let guest = options.connect(broker.server.url()).await.unwrap();
    for message in messages {
        guest.publish(Subjects::of(id).up, message.into()).await.unwrap();
    }
    guest.flush().await.unwrap();
    let (mut socket, broken) = match tokio::time::timeout(SOON, host.accept()).await.unwrap() {
        Ok(accepted) => accepted,
        // It was found out before anybody waited for it.
        Err(reason) => return (reason, Vec::new()),
    };
    let reason = tokio::time::timeout(SOON, broken).await.unwrap().expect("it was believed");
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut handed_on = Vec::new();
    socket.read_to_end(&mut handed_on).unwrap();
    (reason, handed_on)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_honest_guest_sends_ends_the_link() {
    let broker = Broker::start().await;
    let piece = |number| message(Kind::Piece, number, 0, b"x");
    let other_version = {
        let mut message = piece(0);
        message[2] = 9;
        message
    };
    let cases: [(&str, Vec<Vec<u8>>, &str); 10] = [
        ("what came over NATS is no message of the link", vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()], ""),
        ("is no message of the link", vec![Vec::new()], ""),
        ("speaks version 9", vec![other_version], ""),
        ("piece 1 came, and 0 was to come", vec![piece(1)], ""),
        ("piece 0 came, and 1 was to come", vec![piece(0), piece(0)], "x"),
        ("piece 18446744073709551615 came, and 1 was", vec![piece(0), piece(u64::MAX)], "x"),
        ("took 1 pieces, of 0 that were sent", vec![message(Kind::Piece, 0, 1, b"x")], ""),
        ("says nothing", vec![piece(0), message(Kind::Taken, 1, 0, b"")], "x"),
        ("a piece of 0 bytes", vec![message(Kind::Piece, 0, 0, b"")], ""),
        ("gave up: [31mlater", vec![message(Kind::End, 0, 0, b"\x1b[31mlater\n")], ""),
    ];
    for (number, (expected, messages, most)) in (1..).zip(cases) {
        let (reason, handed_on) = after(&broker, number, messages).await;
        assert!(reason.contains(expected), "{reason}");
        // What came before may have been handed on, or not any more.
        assert!(most.as_bytes().starts_with(&handed_on), "{expected}: {handed_on:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_sends_without_room_is_cut_off() {
    let broker = Broker::start().await;
    let flood = (0..20 * WINDOW).map(|number| message(Kind::Piece, number, 0, &vec![7; MAX_PIECE_BYTES]));
    let (reason, handed_on) = after(&broker, 1, flood.collect()).await;
    assert!(
        reason.contains("before they were taken") || reason.contains("faster than the link's window"),
        "{reason}"
    );
    // Nobody read: what the socket took, and no more.
    assert!(handed_on.len() <= WINDOW as usize * MAX_PIECE_BYTES, "{}", handed_on.len());
}
