//! Heartbeats of producers: a key per process in the bucket of nodes, which the server removes unless it is written again.
//!
//! ```text
//! GH_NODES   <node>.<instance>  {"node": "..."}     written every 5 s; gone 15 s after the last time, by its own `Nats-TTL`
//! GH_CLAIMS  <execution>        {"node": "...", "instance": "...", ...}     which process speaks for an execution
//! ```
//! Whether a key is there is decided by the server and its clock alone. A claim names an instance only if its first heartbeat
//! was stored, so a claim without one is of a producer that never had any.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_TTL;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use glasshouse_schema::node::{AgentStatus, NodeStatus};
use glasshouse_schema::{NodeId, subject};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::connect::Bus;
use crate::error::Error;
use crate::keys::{Claim, KV_OPERATION, is_removed, key_subject};
use crate::pipeline::{Outgoing, publish};
use crate::store::{Put, StoredMessage, Write};

/// How often a heartbeat is written.
const EVERY: Duration = Duration::from_secs(5);
/// How long a change may wait to be told.
const TOLD_AFTER: Duration = Duration::from_millis(250);
/// How long one is good for: two may be lost. Whole seconds.
const GOOD_FOR: Duration = Duration::from_secs(15);
/// How long the first may take: a command waits for it.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
/// How long the end may take: a process that is about to exit waits for it.
const END_WITHIN: Duration = Duration::from_millis(100);
const STREAM: &str = "KV_GH_NODES";
/// Longest instance that is read from a claim.
const MAX_INSTANCE_BYTES: usize = 64;

/// A process that has, or had, a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Producer {
    key: String,
}

impl Producer {
    fn new(node: &NodeId, instance: &str) -> Self {
        // What a subject takes and a key does not: ADR-8 allows `=` and no `%`, and the token has no `=` of its own.
        let node = subject::encode_token(node.as_str()).replace('%', "=");
        Self { key: format!("{node}.{instance}") }
    }

    fn subject(&self) -> String {
        key_subject(crate::NODES, &self.key)
    }
}

impl Claim {
    /// The process that took the execution; `None` if it had no heartbeat, or names none that there can be.
    pub fn producer(&self) -> Option<Producer> {
        let instance = self.instance.as_deref()?;
        let is_plain = (1..=MAX_INSTANCE_BYTES).contains(&instance.len())
            && instance.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_plain.then(|| Producer::new(&self.node, instance))
    }
}

impl Bus {
    /// Whether the heartbeat of a producer is there: the server has heard of it within the last 15 seconds, and it did not
    /// say goodbye. Asked once: an error says nothing about the producer.
    pub async fn has_heartbeat(&self, producer: &Producer) -> Result<bool, Error> {
        let stream = self.jetstream().get_stream_no_info(STREAM).await;
        let stream = stream.map_err(|error| Error::broker("open stream", STREAM, error))?;
        match stream.get_last_raw_message_by_subject(&producer.subject()).await {
            Ok(message) => Ok(!is_removed(&StoredMessage::from_stream(STREAM, message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(Error::broker("look for a heartbeat in", STREAM, error)),
        }
    }
}

/// A process that has a heartbeat now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// What it says of itself.
    pub status: NodeStatus,
    /// The process.
    pub instance: String,
    /// When it was heard last, nanoseconds since the Unix epoch by the server's clock.
    pub heard_unix_ns: i128,
}

impl Bus {
    /// Every process that has a heartbeat, in the order of their nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeEntry>, Error> {
        let mut nodes = Vec::new();
        for message in self.messages_of(STREAM, &key_subject(crate::NODES, ">")).await? {
            let instance = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
            if is_removed(&message) {
                continue;
            }
            match serde_json::from_slice(&message.payload) {
                Ok(status) => {
                    nodes.push(NodeEntry { status, instance, heard_unix_ns: message.stored_unix_ns })
                }
                Err(error) => tracing::warn!(subject = message.subject, %error, "heartbeat cannot be read"),
            }
        }
        nodes.sort_by(|a, b| (&a.status.node, &a.instance).cmp(&(&b.status.node, &b.instance)));
        Ok(nodes)
    }
}

/// The heartbeat of this process, as long as it lives. Dropped, it stops, and the server removes it within 15 seconds, as it
/// does when the process is killed.
#[derive(Debug)]
pub struct Heartbeat {
    bus: Bus,
    node: NodeId,
    instance: String,
    payload: watch::Sender<Bytes>,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Writes the first, and goes on. Call it inside a tokio runtime.
    pub async fn start(bus: &Bus, node: &NodeId) -> Result<Self, Error> {
        Self::start_as(bus, node, None).await
    }

    /// The same for a node agent, which says what it offers; [`Self::tell`] when that changes.
    pub async fn start_agent(bus: &Bus, node: &NodeId, status: AgentStatus) -> Result<Self, Error> {
        Self::start_as(bus, node, Some(status)).await
    }

    async fn start_as(bus: &Bus, node: &NodeId, agent: Option<AgentStatus>) -> Result<Self, Error> {
        let instance = format!("{:016x}{:016x}", crate::retry::random_u64(), crate::retry::random_u64());
        let subject = Producer::new(node, &instance).subject();
        let payload =
            encode(node, agent).map_err(|source| Error::Encode { subject: subject.clone(), source })?;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_TTL, GOOD_FOR.as_secs().to_string());
        let first = Write {
            stream: STREAM,
            subject: &subject,
            stored_as: &subject,
            expected: 0,
            headers: headers.clone(),
            payload: payload.clone(),
        };
        match bus.put(first, FIRST_WITHIN).await? {
            // A conflict can only be with itself, its acknowledgement lost: nobody else has this instance.
            Put::Stored(_) | Put::Conflict(_) => {}
        }
        let (payload, payloads) = watch::channel(payload);
        let first = Outgoing { subject, headers, payload: Bytes::new() };
        let task = tokio::spawn(beat(bus.clone(), first, payloads));
        Ok(Self { bus: bus.clone(), node: node.clone(), instance, payload, task })
    }

    /// The node it is of.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The process it is of.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Says what the agent offers from now on: soon, and with every heartbeat.
    pub fn tell(&self, status: AgentStatus) {
        match encode(&self.node, Some(status)) {
            Ok(payload) => drop(self.payload.send_replace(payload)),
            Err(error) => tracing::warn!(%error, "the agent's status cannot be written"),
        }
    }

    /// Says that nothing more is to come of this process. Does not wait for the server: one that does not hear it removes the
    /// heartbeat by itself.
    pub async fn end(&self) {
        self.task.abort();
        if !self.bus.is_connected() {
            return;
        }
        let mut headers = HeaderMap::new();
        headers.insert(KV_OPERATION, "DEL");
        let subject = Producer::new(&self.node, &self.instance).subject();
        let client = self.bus.client();
        let said = async {
            let published = client.publish_with_headers(subject, headers, Bytes::new()).await;
            published.is_ok() && client.flush().await.is_ok()
        };
        if !tokio::time::timeout(END_WITHIN, said).await.unwrap_or(false) {
            tracing::debug!(node = %self.node, "the heartbeat is left to its age");
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn encode(
    node: &NodeId,
    agent: Option<AgentStatus>,
) -> Result<Bytes, glasshouse_schema::canonical::CanonicalError> {
    glasshouse_schema::canonical::to_vec(&NodeStatus { node: node.clone(), agent }).map(Bytes::from)
}

async fn beat(bus: Bus, mut message: Outgoing, mut payloads: watch::Receiver<Bytes>) {
    let mut connections = bus.connections();
    connections.mark_unchanged();
    loop {
        tokio::select! {
            // At once: the server may have removed it meanwhile.
            Ok(()) = connections.changed() => {}
            // What changes often is told once in a while.
            Ok(()) = async {
                tokio::time::sleep(TOLD_AFTER).await;
                payloads.changed().await
            } => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        message.payload = payloads.borrow_and_update().clone();
        // What the client queues meanwhile would say later that this process was alive then.
        if !bus.is_connected() {
            continue;
        }
        let stored = async { publish(&bus, &message).await.await };
        match tokio::time::timeout(EVERY, stored).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(subject = message.subject, %error, "heartbeat not stored"),
            Err(_) => tracing::debug!(subject = message.subject, "heartbeat not acknowledged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node: &str, instance: Option<&str>) -> Claim {
        let node = NodeId::new(node).unwrap();
        Claim { node, attempt: "1".into(), instance: instance.map(str::to_owned) }
    }

    #[test]
    fn a_key_says_its_node_whatever_the_name_is_made_of() {
        let producer = claim("node-1.example", Some("ab12")).producer().unwrap();
        assert_eq!(producer.subject(), "$KV.GH_NODES.node-1=2Eexample.ab12");
        assert_ne!(claim("a.b", Some("c")).producer(), claim("a", Some("b")).producer());
    }

    #[test]
    fn an_instance_that_is_no_key_counts_as_none() {
        let long = "a".repeat(MAX_INSTANCE_BYTES + 1);
        for instance in [None, Some(""), Some("a.b"), Some("*"), Some(">"), Some("a b"), Some(&long)] {
            assert_eq!(claim("node", instance).producer(), None, "{instance:?}");
        }
    }
}
