//! Calls of containerd, in one namespace.

use std::path::Path;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::api::{Call, ReadContent};

/// Most bytes of a manifest or an image's configuration; they have a few thousand.
const MAX_CONTENT: usize = 4 * 1024 * 1024;

/// A connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Client {
    /// Connects to the socket; `Err` says why not.
    pub(crate) async fn connect(address: &Path, namespace: &str) -> Result<Self, String> {
        let explain = |error: &dyn std::fmt::Display| {
            format!("{}: {error}: is containerd running, and is this root?", address.display())
        };
        let namespace = namespace.parse().map_err(|_| format!("`{namespace}` is not a namespace's name"))?;
        let path = address.to_str().ok_or_else(|| explain(&"the path is not UTF-8"))?;
        // What the transport itself says is only that there was an error.
        tokio::net::UnixStream::connect(address).await.map_err(|error| explain(&error))?;
        let endpoint = Endpoint::try_from(format!("unix://{path}")).map_err(|error| explain(&error))?;
        let channel = endpoint.connect().await.map_err(|error| explain(&error))?;
        Ok(Self { channel, namespace })
    }

    /// Makes a call.
    pub(crate) async fn call<C: Call>(&self, message: C) -> Result<C::Answer, Status> {
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<C, C::Answer>::default();
        let answer = grpc.unary(self.request(message), PathAndQuery::from_static(C::PATH), codec).await?;
        Ok(answer.into_inner())
    }

    /// Makes a call that what is not there cannot fail.
    pub(crate) async fn remove<C: Call>(&self, message: C) -> Result<(), Status> {
        match self.call(message).await {
            Err(status) if is_gone(&status) => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// All of a blob.
    pub(crate) async fn read(&self, digest: &str) -> Result<Vec<u8>, Status> {
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<ReadContent, <ReadContent as Call>::Answer>::default();
        let request = self.request(ReadContent { digest: digest.to_owned() });
        let path = PathAndQuery::from_static(ReadContent::PATH);
        let mut chunks = grpc.server_streaming(request, path, codec).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            bytes.extend(chunk.data);
            if bytes.len() > MAX_CONTENT {
                return Err(Status::out_of_range(format!("{digest} has more than {MAX_CONTENT} bytes")));
            }
        }
        Ok(bytes)
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }
}

/// Whether what a call was about has ended or was removed.
pub(crate) fn is_gone(status: &Status) -> bool {
    status.code() == tonic::Code::NotFound || status.message().contains("process already finished")
}
