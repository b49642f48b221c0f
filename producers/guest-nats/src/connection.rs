//! A connection that carries one link, and ends with the first thing that goes wrong.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, Event, Subject, Subscriber};
use tokio::sync::watch;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::credential::{Credential, Subjects};
use crate::ledger::{MAX_MESSAGE_BYTES, WINDOW};

/// How long a server may take to let us in.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// Messages that may wait in the client, more than the other end may have under way. What does not fit is dropped there, which ends the link.
const WAITING_MESSAGES: usize = 4 * WINDOW as usize;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there, or in another way than it should.
    #[error("there is no connection to the NATS server at {server}: {reason}")]
    Unreachable {
        /// Its address.
        server: String,
        /// What the client said.
        reason: String,
    },
    /// The server does not take the credential.
    #[error("the NATS server at {server} refused the credential: {reason}")]
    Refused {
        /// Its address.
        server: String,
        /// What the client said.
        reason: String,
    },
    /// A credential that cannot be used.
    #[error("the credential cannot be used: {0}")]
    Credential(String),
    /// The server lets anybody in.
    #[error(
        "the NATS server at {0} lets in whoever connects, so that its guests could publish anything: run it with accounts in operator \
         mode (docs/guest-nats.md)"
    )]
    Open(String),
    /// The server takes only shorter messages.
    #[error(
        "the NATS server at {server} takes messages of {found} bytes, and {MAX_MESSAGE_BYTES} are needed: raise max_payload"
    )]
    ShortMessages {
        /// Its address.
        server: String,
        /// Its limit.
        found: usize,
    },
    /// The server let us in, and then something went wrong.
    #[error("the NATS server at {server} does not serve the link: {reason}")]
    Disturbed {
        /// Its address.
        server: String,
        /// What it said, or what did not happen.
        reason: String,
    },
}

/// One end's connection.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) messages: Subscriber,
    pub(crate) publish: Subject,
    /// The first thing that went wrong.
    pub(crate) disturbed: watch::Receiver<Option<String>>,
}

fn options(name: &str) -> (async_nats::ConnectOptions, watch::Receiver<Option<String>>) {
    let (disturb, disturbed) = watch::channel(None);
    let disturb = Arc::new(disturb);
    let options = async_nats::ConnectOptions::new()
        .name(name)
        .connection_timeout(CONNECTED_WITHIN)
        .subscription_capacity(WAITING_MESSAGES)
        .ignore_discovered_servers()
        // What was under way is lost with a connection, so another one is of no use.
        .max_reconnects(1)
        .event_callback(move |event| {
            let disturb = Arc::clone(&disturb);
            async move {
                let what = match event {
                    Event::Connected => return,
                    // Its message says "client", and the server's limit is meant.
                    Event::SlowConsumer(_) => "messages came faster than the link's window allows".to_owned(),
                    Event::Disconnected => "the server is gone".to_owned(),
                    Event::ServerError(async_nats::ServerError::Other(said)) => {
                        format!("the server says: {said}")
                    }
                    event => event.to_string(),
                };
                disturb.send_if_modified(|first| {
                    let is_first = first.is_none();
                    first.get_or_insert(what);
                    is_first
                });
            }
        });
    (options, disturbed)
}

fn of_connect(server: &str, error: &async_nats::ConnectError) -> ConnectError {
    let (server, reason) = (server.to_owned(), error.to_string());
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Refused { server, reason }
        }
        _ => ConnectError::Unreachable { server, reason },
    }
}

/// Connects with a credential, to publish on one of the link's subjects and to hear another.
pub(crate) async fn connect(
    server: &str,
    name: &str,
    credential: &Credential,
    pick: impl FnOnce(&Subjects) -> (String, String),
) -> Result<Connection, ConnectError> {
    let (options, disturbed) = options(name);
    let options = options
        .credentials(credential.text())
        .map_err(|error| ConnectError::Credential(error.to_string()))?;
    let client = options.connect(server).await.map_err(|error| of_connect(server, &error))?;
    let found = client.server_info().max_payload;
    if found < MAX_MESSAGE_BYTES {
        return Err(ConnectError::ShortMessages { server: server.to_owned(), found });
    }
    let (publish, hear) = pick(credential.subjects());
    let messages = client
        .subscribe(hear)
        .await
        .map_err(|error| ConnectError::Disturbed { server: server.to_owned(), reason: error.to_string() })?;
    Ok(Connection { client, messages, publish: publish.into(), disturbed })
}

/// Finds out what a server does with somebody who has no credential.
pub(crate) async fn refuses_strangers(server: &str) -> Result<(), ConnectError> {
    let (options, _) = options("glasshouse-stranger");
    // What the client logs as an error is what is hoped for.
    let connected = options.connect(server).with_subscriber(NoSubscriber::default()).await;
    match connected {
        Ok(_) => Err(ConnectError::Open(server.to_owned())),
        Err(error) => match of_connect(server, &error) {
            ConnectError::Refused { .. } => Ok(()),
            other => Err(other),
        },
    }
}
