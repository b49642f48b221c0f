//! A link over a real server: what is said arrives whole and in order, or the link ends and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Broker, execution, way};
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::{
    Guest, LinkError, MAX_CHUNK_BYTES, Receiver as _, Sender as _, StreamReceiver, StreamSender, ToGuest,
    ToHost, Transport as _,
};
use glasshouse_guest_nats::{GuestEnd, HostEnd, MAX_PIECE_BYTES, WINDOW};
use tokio::sync::oneshot;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

/// The guest's end, opened on a way of its own.
async fn opened(broker: &Broker, by: &str) -> (HostEnd, Guest) {
    let (host, credential) = HostEnd::open(&broker.issuer(), execution(1), HOUR).await.unwrap();
    let by = by.to_owned();
    let guest = tokio::task::spawn_blocking(move || GuestEnd::new(&by, credential).open()).await.unwrap();
    (host, guest.unwrap())
}

/// Both ends, once the guest has sent its first message.
async fn linked(broker: &Broker, by: &str) -> (UnixStream, oneshot::Receiver<String>, Guest) {
    let (host, mut guest) = opened(broker, by).await;
    guest.sender.send(&ToHost::Held).unwrap();
    let (socket, broken) = tokio::time::timeout(SOON, host.accept()).await.unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut hears = StreamReceiver::<_, ToHost>::new(socket.try_clone().unwrap());
    assert_eq!(hears.receive().unwrap(), Some(ToHost::Held));
    (socket, broken, guest)
}

fn chunk(number: usize) -> Vec<u8> {
    // Of any length, so that pieces and packets do not begin together.
    (0..1 + number * 7919 % MAX_CHUNK_BYTES).map(|at| (at * 31 + number) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_arrives_in_both_directions() {
    const MESSAGES: usize = 2000;
    let broker = Broker::start().await;
    let (socket, _broken, Guest { mut receiver, mut sender }) = linked(&broker, broker.server.url()).await;
    let says = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            sender.send(&ToHost::Stdout(Bytes(chunk(number)))).unwrap();
        }
        sender
    });
    let mut writes = StreamSender::new(socket.try_clone().unwrap());
    let tells = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            writes.send(&ToGuest::Stdin(Bytes(chunk(number + 1)))).unwrap();
        }
    });
    let hears = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            assert_eq!(receiver.receive().unwrap(), Some(ToGuest::Stdin(Bytes(chunk(number + 1)))));
        }
        receiver
    });
    let mut reads = StreamReceiver::<_, ToHost>::new(socket.try_clone().unwrap());
    for number in 0..MESSAGES {
        assert_eq!(reads.receive().unwrap(), Some(ToHost::Stdout(Bytes(chunk(number)))), "{number}");
    }
    tells.join().unwrap();
    let (receiver, sender) = (hears.join().unwrap(), says.join().unwrap());
    // An end in order is an end of the stream, without a reason.
    drop((receiver, sender));
    assert_eq!(reads.receive().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_slow_holds_its_guest_up() {
    const MESSAGES: usize = 1000;
    let broker = Broker::start().await;
    let (socket, _broken, Guest { mut sender, receiver: _receiver }) =
        linked(&broker, broker.server.url()).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let says = std::thread::spawn({
        let sent = Arc::clone(&sent);
        move || {
            for number in 0..MESSAGES {
                sender.send(&ToHost::Stdout(Bytes(vec![number as u8; MAX_CHUNK_BYTES]))).unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
            }
            sender
        }
    });
    // A piece may have less than a message, so that the window's pieces can have less than so many messages.
    let (mut before, mut unmoved, end) = (0, 0, Instant::now() + SOON);
    let held_at = loop {
        assert!(Instant::now() < end, "nothing holds the guest up: {before} messages were sent to nobody");
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = sent.load(Ordering::Relaxed);
        unmoved = if now == before && now > 0 { unmoved + 1 } else { 0 };
        if unmoved == 4 {
            break now;
        }
        before = now;
    };
    // Beside what may be under way, only what the sockets at both ends hold.
    assert!(held_at <= 2 * WINDOW as usize, "{held_at} of {MESSAGES} messages were sent to nobody");
    let mut reads = StreamReceiver::<_, ToHost>::new(socket);
    for number in 0..MESSAGES {
        let expected = ToHost::Stdout(Bytes(vec![number as u8; MAX_CHUNK_BYTES]));
        assert!(reads.receive().unwrap() == Some(expected), "{number}");
    }
    says.join().unwrap();
}

/// What the host's session would be told, and that the guest hears of the end too.
async fn breaks(
    (socket, broken, mut guest): (UnixStream, oneshot::Receiver<String>, Guest),
    expected: &str,
) -> String {
    let began = Instant::now();
    let reason = tokio::time::timeout(SOON, broken).await.unwrap().expect("the link ended in order");
    assert!(reason.contains(expected), "{reason}");
    // As the session does once it knows.
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    let told = tokio::task::spawn_blocking(move || {
        loop {
            match guest.receiver.receive() {
                Ok(Some(_)) => {}
                ended => return ended.map(drop),
            }
        }
    });
    let told = tokio::time::timeout(SOON, told).await.expect("the guest hangs").unwrap();
    assert!(matches!(told, Ok(()) | Err(LinkError::Cut | LinkError::Io(_))), "{told:?}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    reason
}

/// Sends until nothing more can be sent.
fn keeps_talking(guest: &mut Guest) -> std::thread::JoinHandle<()> {
    let (_, silent) = closed();
    let mut sender = std::mem::replace(&mut guest.sender, silent);
    std::thread::spawn(move || {
        while sender.send(&ToHost::Stdout(Bytes(vec![7; 10_000]))).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn closed() -> (UnixStream, Box<dyn glasshouse_guest_link::Sender<ToHost>>) {
    let (one, other) = UnixStream::pair().unwrap();
    (one, Box::new(StreamSender::new(other)))
}

/// What becomes of the tenth piece that the guest sends.
async fn on_a_way_that(sends_the_tenth: usize) -> (Broker, UnixStream, oneshot::Receiver<String>, Guest) {
    let broker = Broker::start().await;
    let mut pieces = 0;
    let way = way(broker.address(), move |subject, payload| {
        // The fourth byte of a message is its kind.
        pieces += usize::from(subject.ends_with(".up") && payload[3] == 1);
        if pieces == 10 && payload[3] == 1 { sends_the_tenth } else { 1 }
    });
    let (socket, broken, guest) = linked(&broker, &way.to_string()).await;
    (broker, socket, broken, guest)
}

async fn ends_with(sends_the_tenth: usize, expected: &str) {
    let (_broker, socket, broken, mut guest) = on_a_way_that(sends_the_tenth).await;
    let says = keeps_talking(&mut guest);
    let reads = socket.try_clone().unwrap();
    let read = std::thread::spawn(move || {
        let mut reads = StreamReceiver::<_, ToHost>::new(reads);
        let mut whole = 0;
        while let Ok(Some(message)) = reads.receive() {
            assert_eq!(message, ToHost::Stdout(Bytes(vec![7; 10_000])));
            whole += 1;
        }
        whole
    });
    breaks((socket, broken, guest), expected).await;
    says.join().unwrap();
    // Whatever came before is right; nothing behind the gap was handed on.
    let whole = read.join().unwrap();
    assert!(whole <= 9 * MAX_PIECE_BYTES / 10_000, "{whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_lost_ends_the_link() {
    ends_with(0, "piece 10 came, and 9 was to come").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_doubled_ends_the_link() {
    ends_with(2, "piece 9 came, and 10 was to come").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_ends_the_link_at_both_ends() {
    let broker = Broker::start().await;
    let (socket, broken, mut guest) = linked(&broker, broker.server.url()).await;
    let says = keeps_talking(&mut guest);
    broker.server.kill().await;
    breaks((socket, broken, guest), "the connection to the NATS server broke: the server is gone").await;
    says.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_expires_ends_the_link() {
    let broker = Broker::start().await;
    let lifetime = Duration::from_secs(8);
    let (host, credential) = HostEnd::open(&broker.issuer(), execution(1), lifetime).await.unwrap();
    let url = broker.server.url().to_owned();
    let guest = tokio::task::spawn_blocking(move || GuestEnd::new(&url, credential).open()).await.unwrap();
    let mut guest = guest.unwrap();
    guest.sender.send(&ToHost::Held).unwrap();
    let (socket, broken) = tokio::time::timeout(SOON, host.accept()).await.unwrap().unwrap();
    let reason = breaks((socket, broken, guest), "broke").await;
    assert!(reason.to_lowercase().contains("expired") || reason.contains("gave up"), "{reason}");
}
