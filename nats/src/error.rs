//! What can go wrong on the bus, and whether trying again can help.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};

/// What the caller should do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The same call can succeed later.
    Retryable,
    /// This message can never succeed: set it aside as a dead letter and go on.
    Poison,
    /// Nothing will succeed until somebody changes a setting or the server.
    Fatal,
}

/// The cause that an error keeps.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server answered in time.
    #[error(
        "no NATS server answered at {url} within {timeout:?}: {reason}; is it running, and is the address right? \
         `glasshouse up` starts a local one"
    )]
    Unreachable {
        /// The address that was tried.
        url: String,
        /// How long.
        timeout: Duration,
        /// What the client said.
        reason: String,
    },
    /// The server does not let this client in.
    #[error("the NATS server at {url} refused the credentials: {reason}; check the credentials file")]
    Unauthorized {
        /// The server's address.
        url: String,
        /// What the client said.
        reason: String,
    },
    /// The credentials file cannot be used.
    #[error("cannot use the NATS credentials file {}: {source}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The address is not one.
    #[error("`{url}` is not a NATS address: {reason}; expected something like nats://127.0.0.1:4222")]
    BadUrl {
        /// The address as it was given.
        url: String,
        /// Why.
        reason: String,
    },
    /// The server is too old.
    #[error(
        "the NATS server at {url} has version {found}, and {needed} or newer is needed: older servers ignore the settings \
         of our streams in silence; upgrade it, or run scripts/setup.sh for a current one in .tools/"
    )]
    TooOld {
        /// The server's address.
        url: String,
        /// The server's version.
        found: String,
        /// The oldest version that will do.
        needed: &'static str,
    },
    /// The server runs without JetStream.
    #[error(
        "the NATS server at {url} runs without JetStream; start it with -js, or see nats/conf/nats-server.conf"
    )]
    NoJetStream {
        /// The server's address.
        url: String,
    },
    /// A stream or bucket is not there.
    #[error("{name} does not exist on the NATS server; run `glasshouse nats apply`")]
    Missing {
        /// The stream.
        name: String,
    },
    /// The definitions of the streams cannot be read.
    #[error("cannot read the stream definitions in {file}: {problem}")]
    Topology {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A message is larger than the server takes.
    #[error("the message for {subject} has {bytes} bytes, and the server takes {limit}")]
    TooLarge {
        /// Its subject.
        subject: String,
        /// Its size with headers.
        bytes: usize,
        /// The server's limit.
        limit: usize,
    },
    /// A header value holds a line break.
    #[error("`{value}` cannot be the value of header {name}: it holds a line break")]
    BadHeader {
        /// The header.
        name: &'static str,
        /// Its value, escaped.
        value: String,
    },
    /// A message cannot be understood.
    #[error("message {stream_seq} of {stream} is not usable: {problem}")]
    BadMessage {
        /// The stream.
        stream: String,
        /// Its sequence there.
        stream_seq: u64,
        /// What is wrong.
        problem: String,
    },
    /// A stream is not the one that was read before: it was restored from an older copy, or deleted and made anew.
    #[error(
        "{stream} was restored from an older copy or made anew while it was read ({found}); what was read so far may not be \
         in it any more: begin anew"
    )]
    Rewound {
        /// The stream.
        stream: String,
        /// What does not fit.
        found: String,
    },
    /// A document cannot be written as canonical JSON.
    #[error("cannot write the document for {subject}: {source}")]
    Encode {
        /// Its subject.
        subject: String,
        /// Why.
        source: glasshouse_schema::canonical::CanonicalError,
    },
    /// Messages were not stored before the deadline. They may be published again under the same message ids.
    #[error("{messages} message(s) were not stored, {subject} first: {reason}")]
    NotStored {
        /// How many.
        messages: u64,
        /// The first one's subject.
        subject: String,
        /// What the last attempt said.
        reason: String,
        /// Whether publishing them again can help.
        kind: ErrorKind,
    },
    /// A call to the server failed.
    #[error("cannot {operation} {target}: {source}")]
    Broker {
        /// What was tried.
        operation: &'static str,
        /// On which stream, subject or object.
        target: String,
        /// Whether trying again can help.
        kind: ErrorKind,
        /// What the client or the server said.
        source: Cause,
    },
    /// A file of an execution cannot be stored or fetched.
    #[error("the file with SHA-256 {sha256}: {problem}")]
    File {
        /// Its digest.
        sha256: glasshouse_schema::Digest,
        /// What is wrong.
        problem: String,
    },
    /// A request that no agent would take.
    #[error(transparent)]
    Request(#[from] glasshouse_schema::request::RequestError),
    /// The spool did not take a message, or cannot be used.
    #[error(transparent)]
    Spool(#[from] crate::SpoolError),
    /// The supervised local server failed.
    #[error("local nats-server: {problem}")]
    Server {
        /// What happened and what to do.
        problem: String,
    },
}

impl Error {
    /// Whether trying again can help.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } => ErrorKind::Retryable,
            Self::NotStored { kind, .. } | Self::Broker { kind, .. } => *kind,
            Self::Spool(error) if error.is_full() => ErrorKind::Retryable,
            Self::Spool(crate::SpoolError::TooLarge { .. }) => ErrorKind::Poison,
            Self::Spool(_) => ErrorKind::Fatal,
            Self::TooLarge { .. }
            | Self::BadMessage { .. }
            | Self::BadHeader { .. }
            | Self::Encode { .. }
            | Self::File { .. }
            | Self::Request(_) => ErrorKind::Poison,
            Self::Unauthorized { .. }
            | Self::Credentials { .. }
            | Self::BadUrl { .. }
            | Self::TooOld { .. }
            | Self::NoJetStream { .. }
            | Self::Missing { .. }
            | Self::Topology { .. }
            | Self::Rewound { .. }
            | Self::Server { .. } => ErrorKind::Fatal,
        }
    }

    /// A failed call: what the server's error code says decides whether to try again; a time-out or a lost
    /// connection is worth another try.
    pub(crate) fn broker(operation: &'static str, target: &str, source: impl Into<Cause>) -> Self {
        let source = source.into();
        match server_code(source.as_ref()) {
            Some(ErrorCode::STREAM_NOT_FOUND) => Self::Missing { name: target.to_owned() },
            code => Self::Broker {
                operation,
                target: target.to_owned(),
                kind: code.map_or(ErrorKind::Retryable, kind_of_code),
                source,
            },
        }
    }
}

/// The server's error code, wherever it stands in the chain of causes.
fn server_code(error: &(dyn std::error::Error + 'static)) -> Option<ErrorCode> {
    use async_nats::jetstream::{context, stream};
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(server) = error.downcast_ref::<async_nats::jetstream::Error>() {
            return Some(server.error_code());
        }
        // Some of the client's errors keep the server's answer in their kind and not as their source.
        if let Some(found) = error.downcast_ref::<context::GetStreamError>()
            && let context::GetStreamErrorKind::JetStream(server) = found.kind()
        {
            return Some(server.error_code());
        }
        if let Some(found) = error.downcast_ref::<context::CreateStreamError>()
            && let context::CreateStreamErrorKind::JetStream(server) = found.kind()
        {
            return Some(server.error_code());
        }
        if let Some(found) = error.downcast_ref::<stream::ConsumerError>()
            && let stream::ConsumerErrorKind::JetStream(server) = found.kind()
        {
            return Some(server.error_code());
        }
        if let Some(found) = error.downcast_ref::<stream::LastRawMessageError>()
            && let stream::LastRawMessageErrorKind::JetStream(server) = found.kind()
        {
            return Some(server.error_code());
        }
        next = error.source();
    }
    None
}

fn kind_of_code(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => ErrorKind::Poison,
        ErrorCode::BAD_REQUEST
        | ErrorCode::INVALID_JSON
        | ErrorCode::STREAM_INVALID_CONFIG
        | ErrorCode::STREAM_NAME_EXIST
        | ErrorCode::STREAM_SUBJECT_OVERLAP
        | ErrorCode::STREAM_NOT_FOUND
        | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => ErrorKind::Fatal,
        // Full (10077, 10047, 10023), no leader (10008, 10009) and the like pass.
        _ => ErrorKind::Retryable,
    }
}

/// What to do about a refused publish.
pub(crate) fn publish_kind(error: &PublishError) -> ErrorKind {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => ErrorKind::Poison,
        PublishErrorKind::Other => server_code(error).map_or(ErrorKind::Retryable, kind_of_code),
        // No stream takes the subject: it is not there yet, or its leader is just being elected.
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence => ErrorKind::Retryable,
    }
}

/// What a refused publish says to a person.
pub(crate) fn publish_reason(error: &PublishError) -> String {
    match error.kind() {
        PublishErrorKind::StreamNotFound => {
            format!("{error} (no stream takes this subject: run `glasshouse nats apply`)")
        }
        PublishErrorKind::TimedOut => {
            format!("{error} (no acknowledgement: is the server up, and may this client publish here?)")
        }
        _ => error.to_string(),
    }
}
