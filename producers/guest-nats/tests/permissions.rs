//! What a credential lets its holder do, as a real server in operator mode sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use common::{Broker, execution};
use futures::StreamExt as _;
use glasshouse_guest_nats::{Credential, HostEnd, MAX_MESSAGE_BYTES, Role, Subjects};
use glasshouse_nats::{NatsServer, ServerOptions};
use tokio::sync::mpsc;
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

/// A client as a guest may write it, and what the server tells it.
async fn client(
    broker: &Broker,
    credential: &Credential,
) -> Result<(Client, mpsc::UnboundedReceiver<Event>), async_nats::ConnectError> {
    let (told, tells) = mpsc::unbounded_channel();
    let client = ConnectOptions::new()
        .credentials(credential.text())
        .unwrap()
        .event_callback(move |event| {
            let told = told.clone();
            async move {
                let _ = told.send(event);
            }
        })
        .connect(broker.server.url())
        .await?;
    Ok((client, tells))
}

async fn told(tells: &mut mpsc::UnboundedReceiver<Event>) -> String {
    loop {
        match timeout(SOON, tells.recv()).await.expect("the server said nothing").unwrap() {
            Event::Connected => {}
            event => return event.to_string(),
        }
    }
}

#[tokio::test]
async fn a_guest_publishes_up_and_hears_down_and_nothing_else() {
    let broker = Broker::start().await;
    let (issuer, own, other) = (broker.issuer(), Subjects::of(execution(1)), Subjects::of(execution(2)));
    let guest = issuer.mint(execution(1), Role::Guest, HOUR).unwrap();
    let host = issuer.mint(execution(1), Role::Host, HOUR).unwrap();
    let (guest, mut guest_tells) = client(&broker, &guest).await.unwrap();
    let (host, _host_tells) = client(&broker, &host).await.unwrap();

    let mut up = host.subscribe(own.up.clone()).await.unwrap();
    host.flush().await.unwrap();
    for subject in [
        &*own.down,
        &own.host,
        &other.up,
        &other.down,
        "glasshouse.v1.frames.node-1.018bcfe5-6800-7303-8303-030303030303.guest",
        "glasshouse.v1.lifecycle.node-1.018bcfe5-6800-7303-8303-030303030303.exited",
        "glasshouse.v1.receipts.018bcfe5-6800-7303-8303-030303030303",
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$KV.GH_LEASES.0",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.USER.INFO",
        "_INBOX.of.somebody",
        "anything",
    ] {
        guest.publish(subject.to_owned(), "lie".into()).await.unwrap();
        let said = told(&mut guest_tells).await;
        assert!(
            said.contains("Permissions Violation for Publish") && said.contains(subject),
            "{subject}: {said}"
        );
    }
    for subject in
        [">", &own.up, &own.host, &other.down, "glasshouse.v1.guest.*.down", "$SYS.>", "_INBOX.>", "$JS.>"]
    {
        let _refused = guest.subscribe(subject.to_owned()).await.unwrap();
        let said = told(&mut guest_tells).await;
        assert!(
            said.contains("Permissions Violation for Subscription") && said.contains(subject),
            "{subject}: {said}"
        );
    }
    let mut down = guest.subscribe(own.down.clone()).await.unwrap();
    guest.publish(own.up.clone(), "up".into()).await.unwrap();
    // Of all that the guest published, this is what anybody hears.
    assert_eq!(timeout(SOON, up.next()).await.unwrap().unwrap().payload, "up");
    host.publish(own.down.clone(), "down".into()).await.unwrap();
    assert_eq!(timeout(SOON, down.next()).await.unwrap().unwrap().payload, "down");

    let _second = guest.subscribe(own.down.clone()).await.unwrap();
    let said = told(&mut guest_tells).await;
    assert!(said.contains("maximum subscriptions exceeded"), "{said}");
}

#[tokio::test]
async fn a_message_has_its_most_bytes() {
    let broker = Broker::start().await;
    let guest = broker.issuer().mint(execution(1), Role::Guest, HOUR).unwrap();
    let (guest, mut tells) = client(&broker, &guest).await.unwrap();
    let up = Subjects::of(execution(1)).up;
    guest.publish(up.clone(), vec![0; MAX_MESSAGE_BYTES].into()).await.unwrap();
    // Past the client's own check, which goes by what the server says of itself.
    match guest.publish(up, vec![0; MAX_MESSAGE_BYTES + 1].into()).await {
        Err(refused) => assert!(refused.to_string().contains("payload"), "{refused}"),
        Ok(()) => {
            let said = told(&mut tells).await;
            assert!(said.to_lowercase().contains("maximum payload"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_credential_ends() {
    let broker = Broker::start().await;
    let guest = broker.issuer().mint(execution(1), Role::Guest, Duration::from_secs(8)).unwrap();
    let (_client, mut tells) = client(&broker, &guest).await.unwrap();
    // Whoever is connected then is cut off.
    let said = told(&mut tells).await;
    assert!(said.to_lowercase().contains("authentication expired"), "{said}");
    // Its last second is one whole.
    let again = async {
        loop {
            if let Err(refused) = client(&broker, &guest).await {
                return refused.to_string().to_lowercase();
            }
        }
    };
    let again = timeout(SOON, again).await.expect("it is let in");
    assert!(again.contains("authorization violation") || again.contains("expired"), "{again}");
}

#[tokio::test]
async fn keys_of_others_mint_nothing() {
    let broker = Broker::start().await;
    let (another, own) = (glasshouse_guest_nats::operator::setup().unwrap(), broker.issuer());
    let key = &another.secrets.iter().find(|(name, _)| *name == "guests.key").unwrap().1;
    let forged = glasshouse_guest_nats::Issuer::new(broker.server.url(), key).unwrap();
    let forged = forged.mint(execution(1), Role::Guest, HOUR).unwrap();
    assert!(client(&broker, &forged).await.is_err());
    // What the guest itself has is a user's key, which signs for nobody.
    let guest = own.mint(execution(1), Role::Guest, HOUR).unwrap();
    let seed = guest.text().lines().find(|line| line.starts_with("SU")).unwrap();
    assert!(glasshouse_guest_nats::Issuer::new(broker.server.url(), seed).is_err());
}

#[tokio::test]
async fn a_server_that_lets_anybody_in_is_refused() {
    let broker = Broker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let open = NatsServer::start(ServerOptions::new(dir.path())).await.unwrap();
    let error =
        HostEnd::open(&broker.issuer_at(open.url()), execution(1), HOUR).await.err().unwrap().to_string();
    for part in ["lets in whoever connects", "operator", open.url()] {
        assert!(error.contains(part), "{error}");
    }
    HostEnd::open(&broker.issuer(), execution(1), HOUR).await.map(drop).unwrap();
    let nobody = HostEnd::open(&broker.issuer_at("nats://127.0.0.1:1"), execution(1), HOUR).await;
    assert!(nobody.err().unwrap().to_string().contains("there is no connection"));
}

/// The account of the bus is another: its members have the streams, and guests have none.
#[tokio::test]
async fn the_bus_is_in_an_account_of_its_own() {
    let broker = Broker::start().await;
    let creds = broker.dir.path().join("glasshouse.creds");
    std::fs::write(&creds, broker.secret(glasshouse_guest_nats::operator::GLASSHOUSE_CREDENTIALS)).unwrap();
    let options = glasshouse_nats::ConnectOptions::new(broker.server.url(), "test").credentials(Some(creds));
    let bus = glasshouse_nats::connect(options).await.unwrap();
    let applied = glasshouse_nats::Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
    assert_eq!(applied.differences, [], "{applied}");
    // Nothing that is said in the guests' account is heard in this one.
    let mut all = bus.client().subscribe("glasshouse.v1.guest.>").await.unwrap();
    bus.client().flush().await.unwrap();
    let guest = broker.issuer().mint(execution(1), Role::Guest, HOUR).unwrap();
    let (guest, _tells) = client(&broker, &guest).await.unwrap();
    guest.publish(Subjects::of(execution(1)).up, "up".into()).await.unwrap();
    guest.flush().await.unwrap();
    bus.client().publish("glasshouse.v1.guest.mark", "mark".into()).await.unwrap();
    assert_eq!(timeout(SOON, all.next()).await.unwrap().unwrap().payload, "mark");
}
