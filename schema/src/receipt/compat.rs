//! Receipts of other grammars: v0.3.0 is exported on request, v0.2 and v0.3 are read.

use serde::{Deserialize, Serialize};

use super::{
    Artifacts, Completeness, Coverage, Execution, Filesystem, FlatProcess, Incomplete, MAX_RECEIPT_BYTES,
    Network, Policy, Process, Provenance, Receipt, Redaction, Resources, Syscalls, Timing,
};
use crate::files::Files;
use crate::ids::{Digest, Vantage};
use crate::lifecycle::{Environment, Outcome, Sandbox};
use crate::version;

/// Why a receipt document was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// It is larger than a reader takes.
    #[error("the document has {0} bytes, more than the {MAX_RECEIPT_BYTES} that are read")]
    TooLarge(usize),
    /// It is not JSON of the shape that its version says.
    #[error("the document is not a receipt: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It names no version.
    #[error("the document is not a receipt: it has neither `version` nor `receipt_version`")]
    NoVersion,
    /// It has a version that this reader does not know.
    #[error("the receipt has version {0}; this reader knows v0.2, v0.3 and v0.4")]
    UnknownVersion(String),
}

impl Receipt {
    /// Reads a receipt of any known version, its size and version checked first.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReceiptError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: Option<String>,
            receipt_version: Option<String>,
        }
        if bytes.len() > MAX_RECEIPT_BYTES {
            return Err(ReceiptError::TooLarge(bytes.len()));
        }
        let versioned: Versioned = serde_json::from_slice(bytes)?;
        let version = versioned.version.or(versioned.receipt_version).ok_or(ReceiptError::NoVersion)?;
        match version.trim_start_matches('v') {
            v if v == "0.4" || v.starts_with("0.4.") => Ok(serde_json::from_slice(bytes)?),
            v if v == "0.3" || v.starts_with("0.3.") || v == "0.2" || v.starts_with("0.2.") => {
                Ok(serde_json::from_slice::<ReceiptV03>(bytes)?.into())
            }
            _ => Err(ReceiptError::UnknownVersion(version.chars().take(32).collect())),
        }
    }
}

/// Writers of the older grammars wrote `null` for an empty list or map.
fn null_is_empty<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A receipt of grammar v0.3.0, to the letter. Reading is lenient enough for v0.2, which called `version`
/// `receipt_version` and lacked `provenance`, `observation_mode`, `completeness`, `execution` and `policy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct ReceiptV03 {
    #[serde(alias = "receipt_version")]
    pub version: String,
    pub execution_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    #[serde(default)]
    pub timestamp: String,
    #[serde(default)]
    pub start_time: String,
    #[serde(default)]
    pub end_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observation_mode: Option<Provenance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completeness: Option<Completeness>,
    #[serde(default)]
    pub outcome: Outcome,
    #[serde(default)]
    pub timing: Timing,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub process_tree: Vec<ProcessV03>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub processes: Vec<FlatProcess>,
    #[serde(default)]
    pub filesystem: FilesystemV03,
    #[serde(default)]
    pub network: NetworkV03,
    #[serde(default)]
    pub syscalls: SyscallsV03,
    #[serde(default)]
    pub environment: EnvironmentV03,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<ExecutionV03>,
    #[serde(default)]
    pub artifacts: ArtifactsV03,
    #[serde(default)]
    pub exit_code: i32,
    #[serde(default)]
    pub duration_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub redactions: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// `process_tree` entry of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct ProcessV03 {
    pub pid: u32,
    pub ppid: u32,
    pub exe: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub argv: Vec<String>,
    #[serde(default)]
    pub working_dir: String,
}

/// `filesystem` of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct FilesystemV03 {
    #[serde(deserialize_with = "null_is_empty")]
    pub reads: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub writes: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub deletes: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub policy_violations: Vec<String>,
}

/// `network` of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct NetworkV03 {
    #[serde(deserialize_with = "null_is_empty")]
    pub connections: Vec<super::Connection>,
    #[serde(deserialize_with = "null_is_empty")]
    pub attempts: Vec<super::Attempt>,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// `syscalls` of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct SyscallsV03 {
    #[serde(deserialize_with = "null_is_empty")]
    pub counts: std::collections::BTreeMap<String, u64>,
    #[serde(deserialize_with = "null_is_empty")]
    pub denied: Vec<String>,
}

/// `environment` of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct EnvironmentV03 {
    pub runtime: String,
    pub os: String,
    pub arch: String,
    pub sandbox: Sandbox,
}

/// `execution` of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct ExecutionV03 {
    pub backend: String,
    pub isolation: String,
}

/// `artifacts` of v0.3.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the established grammar, documented at Receipt")]
pub struct ArtifactsV03 {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_hash: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_hash: Option<Digest>,
}

impl From<&Receipt> for ReceiptV03 {
    fn from(receipt: &Receipt) -> Self {
        let receipt = receipt.clone();
        let process = |process: &Process| ProcessV03 {
            pid: process.pid,
            ppid: process.ppid,
            exe: process.exe.clone(),
            argv: process.argv.clone(),
            working_dir: process.working_dir.clone(),
        };
        let Filesystem { reads, writes, deletes, policy_violations } = receipt.filesystem;
        Self {
            version: version::RECEIPT_V0_3.into(),
            execution_id: receipt.execution_id,
            provenance: Some(receipt.provenance),
            timestamp: receipt.timestamp,
            start_time: receipt.start_time,
            end_time: receipt.end_time,
            observation_mode: Some(receipt.observation_mode),
            completeness: Some(receipt.completeness),
            outcome: receipt.outcome,
            timing: receipt.timing,
            process_tree: receipt.process_tree.iter().map(process).collect(),
            processes: receipt.processes,
            filesystem: FilesystemV03 { reads, writes, deletes, policy_violations },
            network: NetworkV03 {
                connections: receipt.network.connections,
                attempts: receipt.network.attempts,
                bytes_sent: receipt.network.bytes_sent.unwrap_or(0),
                bytes_received: receipt.network.bytes_received.unwrap_or(0),
            },
            syscalls: SyscallsV03 { counts: receipt.syscalls.counts, denied: receipt.syscalls.denied },
            environment: EnvironmentV03 {
                runtime: receipt.environment.runtime,
                os: receipt.environment.os,
                arch: receipt.environment.arch,
                sandbox: receipt.environment.sandbox,
            },
            execution: Some(ExecutionV03 {
                backend: receipt.execution.backend,
                isolation: receipt.execution.isolation,
            }),
            artifacts: ArtifactsV03 {
                stdout_hash: receipt.artifacts.stdout_hash,
                stderr_hash: receipt.artifacts.stderr_hash,
            },
            exit_code: receipt.exit_code,
            duration_ms: receipt.duration_ms,
            resources: receipt.resources,
            redactions: receipt
                .redactions
                .iter()
                .map(|redaction| serde_json::json!({"rule": redaction.rule, "count": redaction.count}))
                .collect(),
            policy: receipt.policy,
        }
    }
}

/// An older receipt says nothing of its counters, so it is read as partial unless it says `closed`; what it cannot
/// know is named in `coverage.incomplete`.
impl From<ReceiptV03> for Receipt {
    fn from(old: ReceiptV03) -> Self {
        let provenance = old.provenance.unwrap_or(Provenance::Host);
        let vantage = if provenance == Provenance::Guest { Vantage::Guest } else { Vantage::Host };
        let process = |process: ProcessV03| Process {
            pid: process.pid,
            ppid: process.ppid,
            exe: process.exe,
            argv: process.argv,
            working_dir: process.working_dir,
            start_time: String::new(),
            end_time: None,
            exit_code: None,
            signal: None,
            execs: Vec::new(),
            forked_only: false,
            argv_truncated: false,
            exe_flags: Vec::new(),
            uid: None,
            gid: None,
            exec_flags: Vec::new(),
            environment: Vec::new(),
            environment_truncated: false,
            credentials: Vec::new(),
            usage: None,
            vantage,
        };
        let FilesystemV03 { reads, writes, deletes, policy_violations } = old.filesystem;
        let execution = old.execution.unwrap_or_default();
        let incomplete = Incomplete {
            vantage: None,
            reason: "counters_unknown".into(),
            class: None,
            detail: format!("grammar {} has no loss counters", old.version),
        };
        Self {
            version: old.version,
            execution_id: old.execution_id,
            provenance,
            timestamp: old.timestamp,
            start_time: old.start_time,
            end_time: old.end_time,
            observation_mode: old.observation_mode.unwrap_or(provenance),
            completeness: old.completeness.unwrap_or(Completeness::Partial),
            outcome: old.outcome,
            timing: old.timing,
            process_tree: old.process_tree.into_iter().map(process).collect(),
            processes: old.processes,
            filesystem: Filesystem { reads, writes, deletes, policy_violations },
            network: Network {
                connections: old.network.connections,
                attempts: old.network.attempts,
                bytes_sent: Some(old.network.bytes_sent),
                bytes_received: Some(old.network.bytes_received),
            },
            syscalls: Syscalls {
                counts: old.syscalls.counts,
                denied: old.syscalls.denied,
                denied_counts: Default::default(),
            },
            environment: Environment {
                runtime: old.environment.runtime,
                os: old.environment.os,
                arch: old.environment.arch,
                kernel: String::new(),
                snapshot: None,
                image: None,
                sandbox: old.environment.sandbox,
                vmm: None,
            },
            execution: Execution { backend: execution.backend, isolation: execution.isolation, node: None },
            artifacts: Artifacts {
                stdout_hash: old.artifacts.stdout_hash,
                stderr_hash: old.artifacts.stderr_hash,
                files: Files::default(),
            },
            exit_code: old.exit_code,
            duration_ms: old.duration_ms,
            resources: old.resources,
            redactions: old
                .redactions
                .into_iter()
                .map(|redaction| Redaction {
                    // Some writers gave the rule alone.
                    rule: redaction["rule"]
                        .as_str()
                        .or(redaction.as_str())
                        .map_or_else(|| redaction.to_string(), str::to_owned),
                    count: redaction["count"].as_u64().unwrap_or(1),
                })
                .collect(),
            policy: old.policy,
            coverage: Coverage { incomplete: vec![incomplete], ..Coverage::default() },
            contradictions: Vec::new(),
            files: Vec::new(),
            sockets: Vec::new(),
            dns: Vec::new(),
            operations: Vec::new(),
            chain: Vec::new(),
            labels: Default::default(),
            trace_id: None,
            policies: Vec::new(),
            probe_cost: None,
        }
    }
}
