//! Connecting: fast to fail, and never to a server that would ignore what our streams ask for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context, ContextBuilder};
use async_nats::{Client, ConnectErrorKind, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

use crate::encoding::Encoding;
use crate::error::Error;

/// The oldest server that will do: older ones ignore unknown stream settings in silence.
pub const MIN_SERVER_VERSION: &str = "2.12.0";
const MIN_SERVER: (u32, u32) = (2, 12);

/// How to reach the bus.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// One address, or several with commas between them. They may say who this is, `nats://USER:PASSWORD@HOST` or
    /// `nats://TOKEN@HOST`.
    pub url: String,
    /// A credentials file (`nsc generate creds`).
    pub credentials: Option<PathBuf>,
    /// The name of this client in the server's logs and `nats server report connections`.
    pub name: String,
    /// How long connecting, a request or an acknowledgement may take.
    pub timeout: Duration,
    /// How the frames that are published here are compressed.
    pub frame_encoding: Encoding,
}

impl ConnectOptions {
    /// Connects to `url` as `name`, without credentials, within five seconds.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            name: name.into(),
            timeout: Duration::from_secs(5),
            frame_encoding: Encoding::Identity,
        }
    }

    /// Compresses the frames that are published.
    #[must_use]
    pub fn frame_encoding(mut self, encoding: Encoding) -> Self {
        self.frame_encoding = encoding;
        self
    }

    /// Uses a credentials file.
    #[must_use]
    pub fn credentials(mut self, path: Option<PathBuf>) -> Self {
        self.credentials = path;
        self
    }
}

/// A connection to a server that is new enough and has JetStream. Cheap to clone; it reconnects by itself for ever.
#[derive(Debug, Clone)]
pub struct Bus {
    client: Client,
    jetstream: Context,
    timeout: Duration,
    frame_encoding: Encoding,
    connections: watch::Receiver<u64>,
}

impl Bus {
    /// The NATS client, for request and reply.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The JetStream context, for what this crate has no words for.
    pub fn jetstream(&self) -> &Context {
        &self.jetstream
    }

    /// The version of the connected server.
    pub fn server_version(&self) -> String {
        self.client.server_info().version
    }

    /// Whether the connection is up at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Counts connections: a change says that what was under way on the one before may be lost.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    pub(crate) fn frame_encoding(&self) -> Encoding {
        self.frame_encoding
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A stream as it is called, without asking the server about it: for one message, that would be a second question.
    pub(crate) async fn stream_called(&self, name: &str) -> Result<jetstream::stream::Stream<()>, Error> {
        let stream = self.jetstream.get_stream_no_info(name).await;
        stream.map_err(|error| Error::broker("open stream", name, error))
    }

    pub(crate) async fn stream(&self, name: &str) -> Result<jetstream::stream::Stream, Error> {
        self.jetstream.get_stream(name).await.map_err(|error| Error::broker("open stream", name, error))
    }
}

/// Connects, or says within the timeout why not.
pub async fn connect(options: ConnectOptions) -> Result<Bus, Error> {
    let ConnectOptions { url: addresses, credentials, name, timeout, frame_encoding } = options;
    // What is printed from here on holds no password.
    let url = without_secrets(&addresses);
    let bad = |reason: String| Error::BadUrl { url: url.clone(), reason };
    let addresses = addresses
        .split(',')
        .map(|address| address.trim().parse::<ServerAddr>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    let identity = identity(&addresses).map_err(|reason| bad(reason.to_owned()))?;

    let (connected, connections) = watch::channel(0);
    let connected = Arc::new(connected);
    let mut client = async_nats::ConnectOptions::new()
        .name(name)
        .connection_timeout(timeout)
        .request_timeout(Some(timeout))
        .event_callback(move |event| {
            let connected = connected.clone();
            async move {
                log(&event);
                if matches!(event, Event::Connected) {
                    connected.send_modify(|count| *count += 1);
                }
            }
        });
    client = match identity {
        Some(Identity { user, password: Some(password) }) => client.user_and_password(user, password),
        Some(Identity { user: token, password: None }) => client.token(token),
        None => client,
    };
    if let Some(path) = credentials {
        client = client
            .credentials_file(&path)
            .await
            .map_err(|source| Error::Credentials { path: path.clone(), source })?;
    }
    let unreachable = |reason: String| Error::Unreachable { url: url.clone(), timeout, reason };
    let client = match tokio::time::timeout(timeout, client.connect(addresses)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    Error::Unauthorized { url, reason: error.to_string() }
                }
                _ => unreachable(error.to_string()),
            });
        }
        Err(_) => {
            return Err(unreachable("the time is over and nothing that speaks NATS has answered".into()));
        }
    };

    let info = client.server_info();
    if parse_version(&info.version).is_none_or(|found| found < MIN_SERVER) {
        return Err(Error::TooOld { url, found: info.version, needed: MIN_SERVER_VERSION });
    }
    if !info.jetstream {
        return Err(Error::NoJetStream { url });
    }
    let jetstream =
        ContextBuilder::new().timeout(timeout).backpressure_on_inflight(true).build(client.clone());
    Ok(Bus { client, jetstream, timeout, frame_encoding, connections })
}

/// Whom addresses name: a user, or a token where there is no password.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    user: String,
    password: Option<String>,
}

/// Whom the addresses say that this is, if they do: the client reads no more of them than host and port.
fn identity(addresses: &[ServerAddr]) -> Result<Option<Identity>, &'static str> {
    let read =
        |text: &str| percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| "it is not UTF-8");
    let mut named = addresses.iter().filter_map(|address| Some((address.username()?, address.password())));
    let Some((user, password)) = named.next() else { return Ok(None) };
    if named.any(|other| other != (user, password)) {
        return Err("its addresses name several users, and one client is one user");
    }
    Ok(Some(Identity { user: read(user)?, password: password.map(read).transpose()? }))
}

/// The addresses as they may be printed: what stands before an `@` is a password or a token.
pub fn without_secrets(url: &str) -> String {
    let shown = |address: &str| match address.rsplit_once('@') {
        Some((secret, host)) => {
            let scheme = secret.find("://").map_or("", |end| &secret[..end + 3]);
            format!("{scheme}***@{host}")
        }
        None => address.to_owned(),
    };
    url.split(',').map(shown).collect::<Vec<_>>().join(",")
}

/// The major and minor version; `None` for what is no version.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::debug!("nats connected"),
        Event::Disconnected | Event::LameDuckMode | Event::SlowConsumer(_) => {
            tracing::warn!(%event, "nats connection disturbed");
        }
        Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(%event, "nats reported an error"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "nats connection closing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let url = "nats://ana:s3cret@one:4222, token@two";
        assert_eq!(without_secrets(url), "nats://***@one:4222,***@two");
        assert_eq!(without_secrets("nats://one"), "nats://one");
    }

    #[test]
    fn addresses_name_one_user_or_none() {
        let of = |urls: &[&str]| {
            let addresses: Vec<ServerAddr> = urls.iter().map(|url| url.parse().unwrap()).collect();
            identity(&addresses).map(|who| who.map(|who| (who.user, who.password)))
        };
        let (ana, password) = ("ana".to_owned(), Some("a@b,c".to_owned()));
        assert_eq!(of(&["nats://one", "two:4222"]), Ok(None));
        assert_eq!(of(&["nats://ana:a%40b%2Cc@one", "two"]), Ok(Some((ana.clone(), password))));
        assert_eq!(of(&["ana@one", "tls://ana@two"]), Ok(Some((ana, None))));
        of(&["ana@one", "bob@two"]).unwrap_err();
        of(&["ana@one", "ana:secret@two"]).unwrap_err();
        of(&["%ff@one"]).unwrap_err();
    }

    #[test]
    fn versions_are_read_as_servers_write_them() {
        assert_eq!(parse_version("2.15.1"), Some((2, 15)));
        assert_eq!(parse_version("v2.12.0-RC.1"), Some((2, 12)));
        assert_eq!(parse_version("2"), None);
        assert_eq!(parse_version(""), None);
        assert!((2, 9) < MIN_SERVER && (3, 0) > MIN_SERVER);
    }
}
