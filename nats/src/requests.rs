//! The work queues of the node agents: a subject of GH_REQUESTS and a durable consumer per pool.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, Consumer};
use async_nats::jetstream::message::PublishMessage;
use futures::StreamExt;
use glasshouse_schema::request::RequestError;
use glasshouse_schema::{ExecutionId, PoolName, Request, headers, subject, version};

use crate::connect::Bus;
use crate::delivery::Delivery;
use crate::error::{self, Error, ErrorKind};
use crate::publisher::set;
use crate::retry::Backoff;
use crate::trace;

/// How long one pull waits for a request before it is made anew.
const PULL_FOR: Duration = Duration::from_secs(30);
/// How long an agent waits after an error.
const PAUSE: Duration = Duration::from_millis(250);
/// How long submitting is tried.
const DEADLINE: Duration = Duration::from_secs(15);
/// Pulls that may wait at the server, over all slots of all agents of a pool.
const MAX_WAITING: i64 = 16_384;
/// Requests that may be in hand, over all agents of a pool.
const MAX_IN_HAND: i64 = 65_536;

/// A pool's queue as its agents see it.
#[derive(Debug, Clone)]
pub struct RequestQueue {
    bus: Bus,
    consumer: Consumer<Config>,
    ack_wait: Duration,
}

impl RequestQueue {
    /// Joins the agents of a pool. `ack_wait` is how long a request may be in hand without a word before it is given to
    /// another; whoever comes first decides it for all ([`Self::ack_wait`]).
    pub async fn join(bus: &Bus, pool: &PoolName, ack_wait: Duration) -> Result<Self, Error> {
        let durable = format!("agents-{}", subject::encode_token(pool.as_str()));
        let config = Config {
            durable_name: Some(durable.clone()),
            filter_subject: subject::requests(pool),
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // No limit: what nobody can run is ended by an agent, with a reason, not dropped in silence here.
            max_deliver: -1,
            max_ack_pending: MAX_IN_HAND,
            max_waiting: MAX_WAITING,
            ..Config::default()
        };
        let stream = bus.stream(crate::REQUESTS).await?;
        let consumer: Consumer<Config> = stream
            .get_or_create_consumer(&durable, config)
            .await
            .map_err(|error| Error::broker("open consumer", &durable, error))?;
        let ack_wait = consumer.cached_info().config.ack_wait;
        Ok(Self { bus: bus.clone(), consumer, ack_wait })
    }

    /// How long a request may be in hand without a word.
    pub fn ack_wait(&self) -> Duration {
        self.ack_wait
    }

    /// The next request: one, asked for when this is called and not before. Waits for ever if none comes, also while the
    /// server is away. Dropped, it asks no more; a request that was on its way comes again after [`Self::ack_wait`].
    pub async fn next(&self) -> Result<Delivery, Error> {
        let mut connections = self.bus.connections();
        loop {
            connections.mark_unchanged();
            let pulled = async {
                let pull = self.consumer.batch().max_messages(1).expires(PULL_FOR);
                let mut messages = pull
                    .messages()
                    .await
                    .map_err(|error| Error::broker("pull from", crate::REQUESTS, error))?;
                match messages.next().await {
                    Some(Ok(message)) => Delivery::new(&self.bus, message).map(Some),
                    Some(Err(error)) => Err(Error::broker("pull from", crate::REQUESTS, error)),
                    None => Ok(None),
                }
            };
            let pulled = tokio::select! {
                pulled = pulled => pulled,
                // The server forgot the pull with the connection.
                Ok(()) = connections.changed() => continue,
            };
            match pulled {
                Ok(Some(delivery)) => return Ok(delivery),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Fatal => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "pulling interrupted, trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A request that no agent has acknowledged: it waits, or it runs.
#[derive(Debug)]
pub struct QueuedRequest {
    /// Its pool.
    pub pool: PoolName,
    /// The request, or why it cannot be read.
    pub request: Result<Request, RequestError>,
    /// Its sequence in GH_REQUESTS.
    pub stream_seq: u64,
    /// When it was submitted, nanoseconds since the Unix epoch by the server's clock.
    pub stored_unix_ns: i128,
}

impl Bus {
    /// Queues a request for the agents of a pool and returns once it is stored. The same request again is none within the
    /// stream's duplicate window, and later it is found out by its claim.
    pub async fn submit(
        &self,
        pool: &PoolName,
        request: &Request,
        traceparent: Option<&str>,
    ) -> Result<(), Error> {
        let payload = request.encode()?;
        let to = subject::requests(pool);
        let mut headers = HeaderMap::new();
        headers.insert(headers::CONTENT_TYPE, headers::JSON_TYPE);
        headers.insert(headers::SCHEMA_VERSION, version::REQUEST.to_string());
        set(&mut headers, headers::MSG_ID, &headers::request_msg_id(request.execution_id))?;
        trace::stamp(&mut headers, traceparent);
        let mut backoff = Backoff::until(DEADLINE);
        loop {
            let message = PublishMessage::build().headers(headers.clone()).payload(payload.clone().into());
            let answer = match self.jetstream().send_publish(to.clone(), message).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let kind = error::publish_kind(&error);
            if kind != ErrorKind::Retryable || !backoff.wait().await {
                let reason = error::publish_reason(&error);
                return Err(Error::NotStored { messages: 1, subject: to, reason, kind });
            }
        }
    }

    /// Every request that is not acknowledged, oldest first.
    pub async fn queued(&self) -> Result<Vec<QueuedRequest>, Error> {
        let messages = self.messages_of(crate::REQUESTS, &subject::requests_of_all()).await?;
        let queued = messages.into_iter().filter_map(|message| {
            Some(QueuedRequest {
                pool: subject::pool_of(&message.subject)?,
                request: Request::decode(&message.payload),
                stream_seq: message.stream_seq,
                stored_unix_ns: message.stored_unix_ns,
            })
        });
        Ok(queued.collect())
    }

    /// The request of an execution, if it is not acknowledged.
    pub async fn queued_request(&self, execution: ExecutionId) -> Result<Option<QueuedRequest>, Error> {
        let is_it = |queued: &QueuedRequest| {
            queued.request.as_ref().is_ok_and(|request| request.execution_id == execution)
        };
        Ok(self.queued().await?.into_iter().find(is_it))
    }

    /// Takes a request out of the queue, whether an agent has it or not.
    pub async fn unqueue(&self, stream_seq: u64) -> Result<(), Error> {
        let stream = self.stream(crate::REQUESTS).await?;
        stream
            .delete_message(stream_seq)
            .await
            .map(|_| ())
            .map_err(|error| Error::broker("remove a request from", crate::REQUESTS, error))
    }
}
