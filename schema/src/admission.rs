//! What is known of an execution before it is admitted: what `pre` rules of policies see as `request`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::StoredFile;
use crate::ids::{ExecutionId, NodeId};
use crate::lifecycle::ProfilingMode;
use crate::limits::Limits;
use crate::sandbox::{NetworkAccess, SandboxRequest};

/// An execution that somebody asks for, as the node that is to run it understands the request: with its defaults filled in and
/// nothing masked. It stays on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Admission {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The node.
    pub node: NodeId,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Names of the variables in the command's environment, sorted; absent where it inherits one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// The working directory; empty where it inherits one.
    pub workdir: String,
    /// Who it is to run as.
    pub user: AdmissionUser,
    /// Which backend is to run it.
    pub backend: String,
    /// Which vantage points are asked for.
    pub profile: ProfilingMode,
    /// Whether to refuse to run unobserved.
    pub profile_required: bool,
    /// The labels, with those of the node.
    pub labels: BTreeMap<String, String>,
    /// The sandbox that is asked for.
    pub sandbox: SandboxRequest,
    /// The network that the command gets, asked for or not.
    pub network: NetworkAccess,
    /// The limits that it is held to.
    pub limits: Limits,
    /// Files that are put into its working directory.
    pub files: Vec<StoredFile>,
    /// Which files are taken out of it.
    pub artifacts: Vec<String>,
}

/// A user of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdmissionUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}
