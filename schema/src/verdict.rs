//! A verdict: what one policy says about one receipt, with every rule's outcome and reason.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, ExecutionId};
use crate::lifecycle::PolicyRef;

/// Largest verdict document that is read, in bytes.
pub const MAX_VERDICT_BYTES: usize = 512 * 1024;

/// What a policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Every rule that can deny passed, on evidence that is complete.
    Allowed,
    /// A rule that can deny was violated.
    Denied,
    /// No rule denied, but at least one could not be answered.
    Unknown,
}

impl Decision {
    /// The decision as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        }
    }
}

/// When a rule is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RulePhase {
    /// Before the execution, over the request.
    Pre,
    /// During the execution, over one event.
    Runtime,
    /// After the execution, over the receipt.
    #[default]
    Post,
}

/// How bad a violation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "a scale whose words explain themselves")]
pub enum Severity {
    Low,
    #[default]
    Medium,
    High,
    Critical,
}

/// What a violated rule does to the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    /// The policy denies.
    #[default]
    Deny,
    /// The violation is recorded; the decision does not change.
    Warn,
}

/// How one rule came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleResult {
    /// Its expression is true on complete evidence.
    Passed,
    /// Its expression is false.
    Violated,
    /// Its expression could not be evaluated, or is true on evidence that may be incomplete.
    Unknown,
}

/// One rule's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleOutcome {
    /// The rule.
    pub rule: String,
    /// When it is evaluated.
    pub phase: RulePhase,
    /// How bad a violation is.
    pub severity: Severity,
    /// What a violation does.
    pub action: RuleAction,
    /// How it came out.
    pub result: RuleResult,
    /// Why: the rule's message for a violation, what is missing for an unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What one policy says about one receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Version of this document.
    pub version: String,
    /// The execution.
    pub execution_id: ExecutionId,
    /// The policy, pinned by its digest.
    pub policy: PolicyRef,
    /// SHA-256 of the receipt's canonical JSON; absent when there is no receipt to judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_digest: Option<Digest>,
    /// What the policy says.
    pub decision: Decision,
    /// Every rule's outcome, in the policy's order.
    pub rules: Vec<RuleOutcome>,
}

/// Why a verdict document was refused.
#[derive(Debug, thiserror::Error)]
pub enum VerdictError {
    /// It is larger than a reader takes.
    #[error("the document has {0} bytes, more than the {MAX_VERDICT_BYTES} that are read")]
    TooLarge(usize),
    /// It is not JSON of this shape.
    #[error("the document is not a verdict: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It was written by something newer.
    #[error("the verdict has version {0}; this reader knows {newest}", newest = crate::version::VERDICT)]
    UnknownVersion(String),
}

impl Verdict {
    /// Reads a document, its size and version checked first.
    pub fn decode(bytes: &[u8]) -> Result<Self, VerdictError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: String,
        }
        if bytes.len() > MAX_VERDICT_BYTES {
            return Err(VerdictError::TooLarge(bytes.len()));
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        match version == crate::version::VERDICT {
            true => Ok(serde_json::from_slice(bytes)?),
            false => Err(VerdictError::UnknownVersion(version.chars().take(32).collect())),
        }
    }

    /// The canonical JSON bytes, as they are published.
    pub fn encode(&self) -> Result<Vec<u8>, crate::canonical::CanonicalError> {
        crate::canonical::to_vec(self)
    }
}
