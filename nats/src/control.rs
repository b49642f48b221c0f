//! Cancelling and killing, by request and reply: whoever runs the execution has a subscription to its control subject.

use async_nats::client::RequestErrorKind;
use async_nats::{Subject, Subscriber};
use futures::StreamExt;
use glasshouse_schema::request::{Action, Control, ControlReply};
use glasshouse_schema::{ExecutionId, NodeId, canonical, subject};

use crate::connect::Bus;
use crate::error::Error;

/// What is asked of one execution.
#[derive(Debug)]
pub struct Controls {
    bus: Bus,
    node: NodeId,
    messages: Subscriber,
}

/// Something that was asked, to be answered.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub action: Action,
    reply: Option<Subject>,
}

impl Controls {
    /// The next; `None` once the connection is closed for good. Safe to cancel.
    pub async fn next(&mut self) -> Option<Asked> {
        loop {
            let message = self.messages.next().await?;
            match serde_json::from_slice::<Control>(&message.payload) {
                Ok(Control { action }) => return Some(Asked { action, reply: message.reply }),
                Err(error) => tracing::warn!(subject = %message.subject, %error, "control message refused"),
            }
        }
    }

    /// Says that it is done.
    pub async fn answer(&self, asked: Asked) {
        let Some(reply) = asked.reply else { return };
        let answer = match canonical::to_vec(&ControlReply { node: self.node.clone() }) {
            Ok(answer) => answer,
            Err(error) => return tracing::warn!(%error, "control message not answered"),
        };
        if let Err(error) = self.bus.client().publish(reply, answer.into()).await {
            tracing::debug!(%error, "control message not answered");
        }
    }
}

impl Bus {
    /// Listens to what is asked of an execution, in the name of the node that runs it.
    pub async fn controls(&self, execution: ExecutionId, node: &NodeId) -> Result<Controls, Error> {
        let subject = subject::control(execution);
        let messages = self.client().subscribe(subject.clone()).await;
        let messages = messages.map_err(|error| Error::broker("subscribe to", &subject, error))?;
        Ok(Controls { bus: self.clone(), node: node.clone(), messages })
    }

    /// Asks something of an execution; `None` if nobody runs it.
    pub async fn control(
        &self,
        execution: ExecutionId,
        action: Action,
    ) -> Result<Option<ControlReply>, Error> {
        let subject = subject::control(execution);
        let payload = canonical::to_vec(&Control { action })
            .map_err(|source| Error::Encode { subject: subject.clone(), source })?;
        match self.client().request(subject.clone(), payload.into()).await {
            Ok(message) => serde_json::from_slice(&message.payload)
                .map(Some)
                .map_err(|error| Error::broker("read the answer of", &subject, error)),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
            Err(error) => Err(Error::broker("ask", &subject, error)),
        }
    }
}
