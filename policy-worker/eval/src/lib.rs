//! Policies over receipts: YAML rules whose CEL expressions must be true when all is well, and three-valued verdicts.
//!
//! ```yaml
//! version: v1
//! name: no-network
//! rules:
//!   - id: no-connect
//!     expression: receipt.network.attempts.all(a, a.protocol == 'unix')
//!     severity: high                      # low, medium (the default), high, critical
//!     message: the command tried to connect to the network
//!     action: deny                        # deny (the default) or warn
//!     phase: post                         # pre, runtime or post (the default)
//! ```
//!
//! Invariants:
//! - pure: no I/O, no clock, no randomness; the same policy and receipt give the same verdict bytes anywhere;
//! - bounded: the document, its rules, nesting, patterns and the steps of an evaluation have limits, so neither a hostile
//!   policy nor a large receipt can hold up a worker (a rule whose steps are spent is `unknown`);
//! - honest: `passed` is said only on evidence that is complete for what the rule reads; `violated` is said when what the
//!   receipt holds proves it, whatever else is missing; all else is `unknown`, with the reason.
//!
//! What an expression sees and may call is in `deploy/policies/README.md`. A misspelt variable, field or function is an
//! error when the policy is loaded, at its line and column.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod diagnostic;
mod document;
mod eval;
mod evidence;
mod expression;
mod functions;
mod policy;
mod shape;

pub use diagnostic::{Diagnostic, PolicyError};
pub use policy::{MAX_POLICY_BYTES, MAX_RULES};

use glasshouse_schema::admission::Admission;
use glasshouse_schema::canonical::{self, CanonicalError};
use glasshouse_schema::lifecycle::PolicyRef;
use glasshouse_schema::verdict::{Decision, RuleAction, RuleOutcome, RulePhase, RuleResult, Verdict};
use glasshouse_schema::{Digest, ExecutionId, IdError, Receipt};

use eval::{Fault, Steps, Value};
use evidence::Gaps;
use expression::Node;
use policy::{PolicyText, RuleText};

/// Steps that one rule may take. A step is a node evaluated, an element looked at, or some bytes of text read: tens of
/// nanoseconds.
const RULE_STEPS: u64 = 10_000_000;
/// Steps that all rules of a policy may take together.
const POLICY_STEPS: u64 = 50_000_000;
/// Longest reason of an outcome, in bytes.
pub(crate) const REASON_BYTES: usize = 320;

/// A policy, checked and compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    text: PolicyText,
    nodes: Vec<Node>,
    reference: PolicyRef,
}

/// What a policy says before an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreVerdict {
    /// What it says.
    pub decision: Decision,
    /// Every `pre` rule's outcome, in the policy's order.
    pub rules: Vec<RuleOutcome>,
}

/// Why a document could not be judged at all.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Its execution has no id that a verdict could be published under (a record of an older grammar).
    #[error("the receipt's execution id is none of this grammar: {0}")]
    ExecutionId(#[from] IdError),
    /// It cannot be written as JSON.
    #[error("it cannot be read as a document: {0}")]
    Document(#[from] serde_json::Error),
}

impl Policy {
    /// Reads a policy document. `source_name` stands before each problem's line and column.
    pub fn parse(yaml: &str, source_name: &str) -> Result<Self, PolicyError> {
        let (text, nodes) = policy::read(yaml, source_name)?;
        let digest = digest(&text).map_err(|error| {
            let mut problems = diagnostic::Diagnostics::new(yaml);
            problems.push(0, error.to_string());
            problems.into_error(source_name)
        })?;
        let reference = PolicyRef { name: text.name.clone(), version: text.version.to_owned(), digest };
        Ok(Self { text, nodes, reference })
    }

    /// Name, version and digest. The digest is the SHA-256 of the canonical JSON of what the document says, defaults
    /// filled in and expressions without space and comments: formatting does not change it.
    pub fn reference(&self) -> PolicyRef {
        self.reference.clone()
    }

    /// How many rules are evaluated over a receipt.
    pub fn post_rules(&self) -> usize {
        self.rules_of(RulePhase::Post)
    }

    /// How many rules are evaluated before an execution.
    pub fn pre_rules(&self) -> usize {
        self.rules_of(RulePhase::Pre)
    }

    /// Whether it has something to say of receipts: not if every rule of it is for before a run.
    pub fn judges_receipts(&self) -> bool {
        self.post_rules() > 0 || self.pre_rules() == 0
    }

    fn rules_of(&self, phase: RulePhase) -> usize {
        self.text.rules.iter().filter(|rule| rule.phase == phase).count()
    }

    /// Judges an execution that is asked for by the `pre` rules. Nothing of what is asked for is unknown, so a rule is only where
    /// it cannot be evaluated.
    pub fn evaluate_pre(&self, request: &Admission) -> Result<PreVerdict, EvalError> {
        let rules = self.judge(RulePhase::Pre, &serde_json::to_value(request)?, &Gaps::default());
        Ok(PreVerdict { decision: decision(&rules), rules })
    }

    /// Judges a receipt by the `post` rules. `receipt_digest` is that of the receipt's canonical bytes.
    pub fn evaluate_post(&self, receipt: &Receipt, receipt_digest: Digest) -> Result<Verdict, EvalError> {
        let execution_id: ExecutionId = receipt.execution_id.parse()?;
        let rules = self.judge(RulePhase::Post, &serde_json::to_value(receipt)?, &Gaps::of(receipt));
        Ok(self.verdict(execution_id, Some(receipt_digest), rules))
    }

    /// Every rule of a phase over its document.
    fn judge(&self, phase: RulePhase, document: &serde_json::Value, gaps: &Gaps) -> Vec<RuleOutcome> {
        let mut left = POLICY_STEPS;
        self.outcomes(phase, |node| {
            let mut steps = Steps(left.min(RULE_STEPS));
            let granted = steps.0;
            let value = eval::evaluate(node, document, gaps.open, &mut steps);
            left -= granted - steps.0;
            match value {
                Ok(Value::Bool(true)) => (RuleResult::Passed, String::new()),
                Ok(Value::Bool(false)) => (RuleResult::Violated, String::new()),
                Ok(Value::Unknown(classes)) => (RuleResult::Unknown, gaps.reason(classes)),
                Ok(other) => {
                    let reason = format!("the expression is {}, not a bool", eval::kind(&other));
                    (RuleResult::Unknown, reason)
                }
                Err(Fault::Error(error)) => {
                    (RuleResult::Unknown, format!("the expression cannot be evaluated: {error}"))
                }
                Err(Fault::TooCostly) => {
                    let reason = "the expression takes more steps over this document than a rule may";
                    (RuleResult::Unknown, reason.to_owned())
                }
            }
        })
    }

    /// The verdict over an execution that has no receipt: every rule is unknown, for that reason.
    pub fn without_receipt(&self, execution: ExecutionId, reason: &str) -> Verdict {
        let rules = self.outcomes(RulePhase::Post, |_| (RuleResult::Unknown, reason.to_owned()));
        self.verdict(execution, None, rules)
    }

    fn outcomes(
        &self,
        phase: RulePhase,
        mut judge: impl FnMut(&Node) -> (RuleResult, String),
    ) -> Vec<RuleOutcome> {
        let rules = self.text.rules.iter().zip(&self.nodes);
        rules
            .filter(|(rule, _)| rule.phase == phase)
            .map(|(rule, node)| {
                let (result, reason) = judge(node);
                let reason = match result {
                    RuleResult::Violated => rule.message.clone(),
                    _ => plain(&reason),
                };
                let RuleText { id, phase, severity, action, .. } = rule;
                RuleOutcome {
                    rule: id.clone(),
                    phase: *phase,
                    severity: *severity,
                    action: *action,
                    result,
                    reason,
                }
            })
            .collect()
    }

    fn verdict(
        &self,
        execution_id: ExecutionId,
        receipt_digest: Option<Digest>,
        rules: Vec<RuleOutcome>,
    ) -> Verdict {
        Verdict {
            version: glasshouse_schema::version::VERDICT.to_owned(),
            execution_id,
            policy: self.reference(),
            receipt_digest,
            decision: decision(&rules),
            rules,
        }
    }
}

fn decision(rules: &[RuleOutcome]) -> Decision {
    let denies = |result| rules.iter().any(|rule| rule.action == RuleAction::Deny && rule.result == result);
    match () {
        () if denies(RuleResult::Violated) => Decision::Denied,
        () if denies(RuleResult::Unknown) => Decision::Unknown,
        () => Decision::Allowed,
    }
}

fn digest(text: &PolicyText) -> Result<Digest, CanonicalError> {
    canonical::digest(text)
}

/// A reason of bounded length without anything that JSON escapes: it may quote what a guest or a path said.
fn plain(reason: &str) -> String {
    let mut text = String::with_capacity(reason.len().min(REASON_BYTES));
    for c in reason.chars() {
        let c = match c {
            '"' => '\'',
            '\\' => '/',
            c if c.is_control() => ' ',
            c => c,
        };
        if text.len() + c.len_utf8() > REASON_BYTES - '…'.len_utf8() {
            text.push('…');
            break;
        }
        text.push(c);
    }
    text
}
