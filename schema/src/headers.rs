//! Message headers and message ids: the only place that names or builds them.

use crate::ids::{Digest, ExecutionId, NodeId};
use crate::lifecycle::PhaseName;

/// JetStream's deduplication header.
pub const MSG_ID: &str = "Nats-Msg-Id";
/// W3C Trace Context, so that one trace spans submitter, engine, aggregator and policy worker.
pub const TRACEPARENT: &str = "traceparent";
/// Media type of the body.
pub const CONTENT_TYPE: &str = "Content-Type";
/// How the body is compressed; absent means not at all.
pub const CONTENT_ENCODING: &str = "Content-Encoding";
/// Version of the schema of the body.
pub const SCHEMA_VERSION: &str = "Glasshouse-Schema-Version";
/// SHA-256 of the body, lower-case hexadecimal.
pub const DIGEST: &str = "Glasshouse-Digest";
/// Name of the worker that published a receipt or a verdict (outside of every digest).
pub const WORKER: &str = "Glasshouse-Worker";

/// Where the body of an output message begins in its stream, in bytes. One without a body says how long the stream was: it
/// is over.
pub const OUTPUT_OFFSET: &str = "Glasshouse-Output-Offset";

/// Media type of a frame.
pub const FRAME_TYPE: &str = "application/vnd.glasshouse.frame+msgpack";
/// Media type of a command's output.
pub const OUTPUT_TYPE: &str = "application/octet-stream";
/// Media type of every JSON document.
pub const JSON_TYPE: &str = "application/json";

/// Id of a frame: node and frame digest, so that a hostile node cannot shadow another node's frame.
pub fn frame_msg_id(node: &NodeId, digest: Digest) -> String {
    format!("f:{}:{digest}", crate::subject::encode_token(node.as_str()))
}

/// Id of a lifecycle event: publisher, execution, phase and body digest.
pub fn lifecycle_msg_id(
    node: Option<&NodeId>,
    execution: ExecutionId,
    phase: PhaseName,
    digest: Digest,
) -> String {
    let node = node.map(|node| crate::subject::encode_token(node.as_str())).unwrap_or_default();
    format!("l:{node}:{execution}:{}:{}", phase.as_str(), digest.short())
}

/// Id of a request: the same one is queued once within the stream's duplicate window.
pub fn request_msg_id(execution: ExecutionId) -> String {
    format!("q:{execution}")
}

/// Id of a message that is published again from the dead letter `dead_seq` of GH_DEAD: not the one it had at first, which
/// the stream may still remember, and the same for every replay of the letter. The digest tells letters apart that had
/// one sequence, in a stream that was made anew.
pub fn replay_msg_id(dead_seq: u64, digest: Digest) -> String {
    format!("r:{dead_seq}:{digest}")
}
