//! Requests over the Unix socket, a connection each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::api::{
    Action, BootSource, Drive, EntropyDevice, Fault, InstanceInfo, Logger, MachineConfiguration, Metrics,
    NetworkInterface, SerialDevice, SnapshotCreate, SnapshotLoad, Vm, Vsock,
};

/// Answers are a few KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// A full snapshot of a large machine is written before its answer comes.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// How often it is tried whether a starting Firecracker listens by now: nothing tells.
const TRY_AFTER: Duration = Duration::from_millis(2);

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("Firecracker cannot be reached at {socket}: {source}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke, as it does when Firecracker ends.
    #[error("{request}: the connection broke: {source}")]
    Broken {
        /// Method and path.
        request: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("{request}: no answer within {} s", ANSWERS_WITHIN.as_secs())]
    Late {
        /// Method and path.
        request: String,
    },
    /// An answer that is no answer: too large, or not of its type.
    #[error("{request}: the answer is not understood: {what}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong.
        what: String,
    },
    /// Firecracker does not do it.
    #[error("{request}: Firecracker refused ({status}): {fault}")]
    Refused {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Its words.
        fault: String,
    },
}

/// The API of one Firecracker process.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// What each method does is what the API's definition says; all fail with [`ClientError`].
#[allow(missing_docs, reason = "they are named after their paths")]
impl Client {
    pub async fn boot_source(&self, body: &BootSource) -> Result<(), ClientError> {
        self.put("/boot-source", body).await
    }

    pub async fn machine_config(&self, body: &MachineConfiguration) -> Result<(), ClientError> {
        self.put("/machine-config", body).await
    }

    pub async fn drive(&self, body: &Drive) -> Result<(), ClientError> {
        self.put(&format!("/drives/{}", body.drive_id), body).await
    }

    pub async fn network_interface(&self, body: &NetworkInterface) -> Result<(), ClientError> {
        self.put(&format!("/network-interfaces/{}", body.iface_id), body).await
    }

    pub async fn vsock(&self, body: &Vsock) -> Result<(), ClientError> {
        self.put("/vsock", body).await
    }

    pub async fn entropy(&self) -> Result<(), ClientError> {
        self.put("/entropy", &EntropyDevice {}).await
    }

    pub async fn serial(&self, body: &SerialDevice) -> Result<(), ClientError> {
        self.put("/serial", body).await
    }

    pub async fn logger(&self, body: &Logger) -> Result<(), ClientError> {
        self.put("/logger", body).await
    }

    pub async fn metrics(&self, body: &Metrics) -> Result<(), ClientError> {
        self.put("/metrics", body).await
    }

    pub async fn action(&self, body: Action) -> Result<(), ClientError> {
        self.put("/actions", &body).await
    }

    pub async fn vm(&self, body: Vm) -> Result<(), ClientError> {
        self.send(Method::PATCH, "/vm", Some(&body)).await.map(drop)
    }

    pub async fn snapshot_create(&self, body: &SnapshotCreate) -> Result<(), ClientError> {
        self.put("/snapshot/create", body).await
    }

    pub async fn snapshot_load(&self, body: &SnapshotLoad) -> Result<(), ClientError> {
        self.put("/snapshot/load", body).await
    }

    pub async fn instance(&self) -> Result<InstanceInfo, ClientError> {
        let answer = self.send(Method::GET, "/", None::<&()>).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| ClientError::Answer { request: "GET /".to_owned(), what: error.to_string() })
    }
}

impl Client {
    /// A client of whoever listens at this socket; nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Waits until a starting Firecracker answers.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when it does not within `deadline`.
    pub async fn ready(&self, deadline: Duration) -> Result<InstanceInfo, ClientError> {
        let end = Instant::now() + deadline;
        loop {
            match self.instance().await {
                Err(ClientError::Unreachable { .. }) if Instant::now() < end => {
                    tokio::time::sleep(TRY_AFTER).await;
                }
                answer => return answer,
            }
        }
    }

    async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.send(Method::PUT, path, Some(body)).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ClientError> {
        let request = format!("{method} {path}");
        let exchange = self.exchange(&request, method, path, body);
        match tokio::time::timeout(ANSWERS_WITHIN, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Late { request }),
        }
    }

    async fn exchange(
        &self,
        request: &str,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ClientError> {
        let broken = |source| ClientError::Broken { request: request.to_owned(), source };
        let wrong = |what: String| ClientError::Answer { request: request.to_owned(), what };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let text = body.map(serde_json::to_vec).transpose().map_err(|error| wrong(error.to_string()))?;
        let mut builder = Request::builder().method(method).uri(path).header("host", "localhost");
        if text.is_some() {
            builder = builder.header("content-type", "application/json");
        }
        let message = builder
            .body(Full::new(Bytes::from(text.unwrap_or_default())))
            .map_err(|error| wrong(error.to_string()))?;
        let answer = sender.send_request(message).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        driver.abort();
        let body = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        if status == StatusCode::OK || status == StatusCode::NO_CONTENT {
            return Ok(body);
        }
        let fault = match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) if !fault.fault_message.is_empty() => fault.fault_message,
            _ => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(ClientError::Refused { request: request.to_owned(), status: status.as_u16(), fault })
    }
}
