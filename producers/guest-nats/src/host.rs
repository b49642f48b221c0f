//! The host's end: opened before the guest is, and a socket for its session once the guest has spoken.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures::StreamExt as _;
use glasshouse_schema::ids::ExecutionId;
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;

use crate::carry::{carry, reason_of};
use crate::connection::{ConnectError, Connection, connect, refuses_strangers};
use crate::credential::{Credential, Subjects};
use crate::issuer::{Issuer, IssuerError, Role};

/// How long a server may take to give back what it was sent.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no link over NATS.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No credential.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A link that waits for its guest.
pub struct HostEnd {
    connection: Connection,
    wants_tls: bool,
}

impl HostEnd {
    /// Opens the link of an execution, whose guest may use it for a time, and mints its credential. From here on nothing that the
    /// guest says is missed.
    pub async fn open(
        issuer: &Issuer,
        execution: ExecutionId,
        lifetime: Duration,
    ) -> Result<(Self, Credential), OpenError> {
        let server = issuer.server();
        refuses_strangers(server).await?;
        let own = issuer.mint(execution, Role::Host, lifetime)?;
        // A connection of its own: what a guest floods is nobody else's.
        let connection =
            connect(server, "glasshouse-guest-link", &own, |on| (on.down.clone(), on.up.clone())).await?;
        let wants_tls = connection.client.server_info().tls_required || server.starts_with("tls:");
        let mut end = Self { connection, wants_tls };
        end.hear_itself(server, own.subjects()).await?;
        Ok((end, issuer.mint(execution, Role::Guest, lifetime)?))
    }

    /// Whether the server takes only connections with TLS.
    pub fn wants_tls(&self) -> bool {
        self.wants_tls
    }

    /// What a server has given back, it has had what was sent before: the subscription is there.
    async fn hear_itself(&mut self, server: &str, on: &Subjects) -> Result<(), ConnectError> {
        let disturbed = |reason: String| ConnectError::Disturbed { server: server.to_owned(), reason };
        let Connection { client, disturbed: trouble, .. } = &mut self.connection;
        let heard = async {
            let mut itself = client.subscribe(on.host.clone()).await.map_err(|error| error.to_string())?;
            client.publish(on.host.clone(), "here".into()).await.map_err(|error| error.to_string())?;
            itself.next().await.ok_or_else(|| "it was closed".to_owned())?;
            itself.unsubscribe().await.map_err(|error| error.to_string())
        };
        tokio::select! {
            biased;
            reason = trouble.wait_for(Option::is_some) => Err(disturbed(reason_of(reason))),
            heard = tokio::time::timeout(ANSWERS_WITHIN, heard) => match heard {
                Ok(heard) => heard.map_err(disturbed),
                Err(_) => Err(disturbed(format!("it gave nothing back within {ANSWERS_WITHIN:?}"))),
            },
        }
    }

    /// Waits for the guest's first word. Gives the socket of its session, which has all that it says, and why the link broke, if it
    /// did not end in order: the socket then stays open until the session closes it.
    pub async fn accept(self) -> Result<(UnixStream, oneshot::Receiver<String>), String> {
        let Self { mut connection, .. } = self;
        let first = tokio::select! {
            biased;
            reason = connection.disturbed.wait_for(Option::is_some) => return Err(reason_of(reason)),
            first = connection.messages.next() => first.ok_or("the subscription ended")?.payload,
        };
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        theirs.set_nonblocking(true).map_err(|error| error.to_string())?;
        let mut theirs = tokio::net::UnixStream::from_std(theirs).map_err(|error| error.to_string())?;
        let (broke, broken) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(reason) = carry(connection, Some(first), &mut theirs).await
                && broke.send(reason.to_string()).is_ok()
            {
                // Our end of the socket would be taken for the guest's, before the reason is known.
                let mut rest = [0; 4096];
                while theirs.read(&mut rest).await.is_ok_and(|read| read > 0) {}
            }
        });
        Ok((ours, broken))
    }
}
