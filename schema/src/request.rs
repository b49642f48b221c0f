//! A request: what a submitter asks the node agents of a pool to run.
//!
//! A field that a reader does not know is refused: it may be a limit, and a command that runs without one was not what was
//! asked for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::canonical;
use crate::files::{self, FilesError, StoredFile};
use crate::ids::{Digest, ExecutionId, NodeId};
use crate::lifecycle::ProfilingMode;
use crate::limits::Limits;
use crate::sandbox::SandboxRequest;
use crate::version;

/// Largest request that is read, in bytes.
pub const MAX_REQUEST_BYTES: usize = 768 * 1024;
/// Most bytes of standard input that a request carries.
pub const MAX_STDIN_BYTES: usize = 256 * 1024;

/// One command to run once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Version of this document.
    pub schema_version: u32,
    /// The execution, chosen by whoever submits; the same id never runs twice.
    pub execution_id: ExecutionId,
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
    /// The command's environment, beside the few variables that every agent sets. Nothing of the agent's own is inherited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working directory on the node, absolute. If absent: one of its own, which is empty before and removed after, for a
    /// command with files, artifacts or a sandbox; `/` for any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Standard input, base64 (RFC 4648 §4); at most [`MAX_STDIN_BYTES`] once decoded. Empty if absent.
    #[serde(default, skip_serializing_if = "Stdin::is_empty")]
    pub stdin_base64: Stdin,
    /// Files that are in the working directory when it starts. Not with `workdir`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<StoredFile>,
    /// Which files are taken out of the working directory after its end: paths below it, in which `*`, `?` and `[…]` stand for
    /// parts of a name and `**` for any directories. One that matches a directory takes all that is in it. Not with
    /// `workdir`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Which backend is to run it; the agent's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Which vantage points are to watch it; the agent's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfilingMode>,
    /// Refuse to run unobserved.
    #[serde(default, skip_serializing_if = "is_false")]
    pub profile_required: bool,
    /// Labels for the receipt.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How far the command is kept from the node; not at all if absent. Paths are the node's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sandbox: SandboxRequest,
    /// What the command may use; without end if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// How often it may be run again, under another id, when nobody knows how it ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// The execution of unknown outcome that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<ExecutionId>,
}

/// What somebody asks of an execution that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// SIGTERM, and SIGKILL after the agent's grace.
    Cancel,
    /// SIGKILL at once.
    Kill,
}

/// The message under the control subject of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// What is asked for.
    pub action: Action,
}

/// The answer: the node that runs the execution has taken the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReply {
    /// The node.
    pub node: NodeId,
}

/// Bytes for a command's standard input, base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stdin(pub Vec<u8>);

impl Stdin {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Stdin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Stdin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine;
        let text = String::deserialize(deserializer)?;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

impl JsonSchema for Stdin {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Stdin".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "contentEncoding": "base64"})
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is larger than a reader takes.
    #[error("the request has {0} bytes, more than the {MAX_REQUEST_BYTES} that are taken")]
    TooLarge(usize),
    /// It is not JSON of this shape.
    #[error("the document is not a request: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It has no canonical form.
    #[error(transparent)]
    NotCanonical(#[from] canonical::CanonicalError),
    /// It was written by something newer.
    #[error("the request has version {0}, newer than {supported}, the newest this reader knows", supported = version::REQUEST)]
    TooNew(u32),
    /// There is nothing to run.
    #[error("there is no command to run")]
    NoCommand,
    /// Standard input is too long.
    #[error("standard input has {0} bytes, more than the {MAX_STDIN_BYTES} that a request carries")]
    StdinTooLarge(usize),
    /// The working directory depends on where the agent stands.
    #[error("the working directory `{0}` is not an absolute path")]
    RelativeWorkdir(String),
    /// Files are put into, and taken out of, a directory that nobody else has.
    #[error("files and artifacts need a working directory of the command's own: leave out `{0}`")]
    SharedWorkdir(String),
    /// The files cannot be given or taken.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl Request {
    /// A request for `argv` that leaves everything else to the agent.
    pub fn new(execution_id: ExecutionId, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            schema_version: version::REQUEST,
            execution_id,
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            workdir: None,
            stdin_base64: Stdin::default(),
            files: Vec::new(),
            artifacts: Vec::new(),
            backend: None,
            profile: None,
            profile_required: false,
            labels: BTreeMap::new(),
            sandbox: SandboxRequest::default(),
            limits: Limits::default(),
            retries: 0,
            retry_of: None,
        }
    }

    /// Reads a document, its size and version checked first.
    pub fn decode(bytes: &[u8]) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLarge(bytes.len()));
        }
        match serde_json::from_slice::<Versioned>(bytes)?.schema_version {
            version if version > version::REQUEST => return Err(RequestError::TooNew(version)),
            _ => {}
        }
        let request: Self = serde_json::from_slice(bytes)?;
        request.check()?;
        Ok(request)
    }

    /// The execution that a document names, whether the rest of it can be read or not.
    pub fn execution_of(bytes: &[u8]) -> Option<ExecutionId> {
        #[derive(Deserialize)]
        struct Named {
            execution_id: ExecutionId,
        }
        let fits = bytes.len() <= MAX_REQUEST_BYTES;
        fits.then(|| serde_json::from_slice::<Named>(bytes).ok()).flatten().map(|named| named.execution_id)
    }

    /// The canonical JSON bytes, as they are published; refuses what no reader would take.
    pub fn encode(&self) -> Result<Vec<u8>, RequestError> {
        self.check()?;
        let bytes = canonical::to_vec(self)?;
        match bytes.len() > MAX_REQUEST_BYTES {
            true => Err(RequestError::TooLarge(bytes.len())),
            false => Ok(bytes),
        }
    }

    fn check(&self) -> Result<(), RequestError> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(RequestError::NoCommand);
        }
        if self.stdin_base64.0.len() > MAX_STDIN_BYTES {
            return Err(RequestError::StdinTooLarge(self.stdin_base64.0.len()));
        }
        if let Some(dir) = self.workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
            return Err(RequestError::RelativeWorkdir(dir.chars().take(256).collect()));
        }
        if let Some(dir) = self.workdir.as_ref().filter(|_| self.has_files()) {
            return Err(RequestError::SharedWorkdir(dir.chars().take(256).collect()));
        }
        files::check_inputs(&self.files)?;
        Ok(files::check_patterns(&self.artifacts)?)
    }

    /// Whether files are to be put into the working directory or taken out of it.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty() || !self.artifacts.is_empty()
    }

    /// Whether the command gets an empty working directory of its own.
    pub fn has_own_workdir(&self) -> bool {
        self.workdir.is_none() && (self.has_files() || !self.sandbox.level.is_none())
    }

    /// The request that repeats this one, if it may be repeated. Its id follows from this one's, so whoever asks for it,
    /// however often, asks for the same execution.
    pub fn retry(&self) -> Option<Self> {
        let retries = self.retries.checked_sub(1)?;
        let id = retry_id(self.execution_id);
        Some(Self { execution_id: id, retries, retry_of: Some(self.execution_id), ..self.clone() })
    }
}

/// The execution that repeats another.
pub fn retry_id(execution: ExecutionId) -> ExecutionId {
    let digest = Digest::of(format!("retry of {execution}").as_bytes());
    let mut random = [0; 10];
    random.copy_from_slice(&digest.as_bytes()[..10]);
    ExecutionId::from_parts(execution.unix_ms(), random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::new(ExecutionId::from_parts(1_700_000_000_000, [7; 10]), ["ls", "-l"])
    }

    #[test]
    fn what_is_written_is_read() {
        let mut all = request();
        all.stdin_base64 = Stdin(vec![0, 255, b'a']);
        all.limits.wall_ms = Some(1500);
        all.retries = 2;
        for request in [request(), all] {
            assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
        }
    }

    #[test]
    fn what_a_reader_does_not_know_is_refused() {
        let mut document = serde_json::to_value(request()).unwrap();
        document["memory_limit"] = 1.into();
        let error = Request::decode(document.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("memory_limit"), "{error}");
        document["schema_version"] = 99.into();
        let bytes = document.to_string();
        assert!(matches!(Request::decode(bytes.as_bytes()), Err(RequestError::TooNew(99))));
        assert_eq!(Request::execution_of(bytes.as_bytes()), Some(request().execution_id));
        assert!(matches!(
            Request::decode(&vec![b' '; MAX_REQUEST_BYTES + 1]),
            Err(RequestError::TooLarge(_))
        ));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_writer_and_reader() {
        let file =
            |path: &str| StoredFile { path: path.into(), mode: 0o644, bytes: 0, sha256: Digest::of(b"") };
        let bad: [&dyn Fn(&mut Request); 8] = [
            &|request| request.argv.clear(),
            &|request| request.argv[0].clear(),
            &|request| request.workdir = Some("tmp".into()),
            &|request| request.stdin_base64 = Stdin(vec![0; MAX_STDIN_BYTES + 1]),
            &|request| request.files = vec![file("../a")],
            &|request| request.files = vec![file("a"), file("a")],
            &|request| request.artifacts = vec!["/etc/*".into()],
            &|request| (request.artifacts, request.workdir) = (vec!["a".into()], Some("/tmp".into())),
        ];
        for make_bad in bad {
            let mut request = request();
            make_bad(&mut request);
            assert!(request.encode().is_err(), "{request:?}");
            assert!(Request::decode(&serde_json::to_vec(&request).unwrap()).is_err(), "{request:?}");
        }
    }

    #[test]
    fn a_retry_is_one_execution_whoever_asks_for_it() {
        let mut first = request();
        assert_eq!(first.retry(), None);
        first.retries = 2;
        let second = first.retry().unwrap();
        assert_eq!(first.retry(), Some(second.clone()));
        assert_eq!((second.retry_of, second.retries), (Some(first.execution_id), 1));
        let third = second.retry().unwrap();
        assert_eq!(third.retry(), None);
        assert_ne!(third.execution_id, first.execution_id);
    }
}
