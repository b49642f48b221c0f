//! The enforcement of `pre` rules: an execution that a policy does not let pass is not admitted, and nothing of it runs.
//!
//! Fails closed: a rule that cannot be evaluated over a request does not let it pass. Rules whose action is `warn` are said in the
//! log, and never in the way.

use std::sync::Arc;

use async_trait::async_trait;
use glasshouse_eval::{Policy, PreVerdict};
use glasshouse_execution::{Enforcement, ExecutionSpec};
use glasshouse_schema::admission::{Admission, AdmissionUser};
use glasshouse_schema::files::StoredFile;
use glasshouse_schema::lifecycle::{Isolation, PolicyRef};
use glasshouse_schema::verdict::{RuleAction, RuleOutcome, RuleResult};

/// Rules that are named of those which refuse an execution.
const MAX_NAMED: usize = 8;

/// Policies in force, shared by all executions.
#[derive(Debug, Clone, Default)]
pub struct Policies(Arc<[Policy]>);

impl Policies {
    /// All of these.
    pub fn new(policies: Vec<Policy>) -> Self {
        Self(policies.into())
    }

    /// The policies.
    pub fn iter(&self) -> std::slice::Iter<'_, Policy> {
        self.0.iter()
    }

    /// What pins them in a record.
    pub fn references(&self) -> Vec<PolicyRef> {
        self.0.iter().map(Policy::reference).collect()
    }
}

/// A policy is what its digest covers.
impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        self.references() == other.references()
    }
}

impl Eq for Policies {}

/// The enforcement of one execution.
#[derive(Debug, Clone)]
pub struct PolicyGate {
    /// Whose `pre` rules decide.
    pub policies: Policies,
    /// The backend that is to run it.
    pub backend: String,
    /// How far that keeps it from the node.
    pub isolation: Isolation,
    /// Files that it is given.
    pub files: Vec<StoredFile>,
    /// Which files are taken from it.
    pub artifacts: Vec<String>,
}

impl PolicyGate {
    /// Without files.
    pub fn new(policies: Policies, backend: &str, isolation: Isolation) -> Self {
        Self { policies, backend: backend.to_owned(), isolation, files: Vec::new(), artifacts: Vec::new() }
    }

    /// Whether the policies let it pass; `Err` says which does not, by which rules, and why.
    pub fn judge(&self, spec: &ExecutionSpec) -> Result<(), String> {
        let mut refusals = Vec::new();
        let request = self.request(spec);
        for policy in self.policies.iter().filter(|policy| policy.pre_rules() > 0) {
            let name = policy.reference().name;
            let PreVerdict { rules, .. } =
                policy.evaluate_pre(&request).map_err(|error| format!("policy `{name}`: {error}"))?;
            for RuleOutcome { rule, action, result, reason, .. } in rules {
                let why = match result {
                    RuleResult::Passed => continue,
                    RuleResult::Violated => reason,
                    RuleResult::Unknown => format!("nobody knows whether it may run: {reason}"),
                };
                match action {
                    RuleAction::Deny => refusals.push(format!("policy `{name}`, rule `{rule}`: {why}")),
                    RuleAction::Warn => {
                        tracing::warn!(execution_id = %spec.id, policy = %name, rule, reason = why, "a rule only warns");
                    }
                }
            }
        }
        if refusals.is_empty() {
            return Ok(());
        }
        let more = refusals.len().saturating_sub(MAX_NAMED);
        refusals.truncate(MAX_NAMED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(format!("{}{more}", refusals.join("; ")))
    }

    fn request(&self, spec: &ExecutionSpec) -> Admission {
        let text = |text: &std::ffi::OsString| text.to_string_lossy().into_owned();
        let env = spec.env.as_ref().map(|env| {
            let mut names: Vec<String> = env.iter().map(|(name, _)| text(name)).collect();
            names.sort();
            names
        });
        let user = match &spec.run_as {
            Some(user) => AdmissionUser { uid: user.uid, gid: user.gid },
            None => {
                AdmissionUser { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
            }
        };
        Admission {
            execution_id: spec.id,
            node: spec.node.clone(),
            argv: spec.argv.iter().map(text).collect(),
            env,
            workdir: spec.workdir.as_ref().map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default(),
            user,
            backend: self.backend.clone(),
            profile: spec.profile,
            profile_required: spec.profile_required,
            labels: spec.labels.clone(),
            sandbox: spec.sandbox.clone(),
            network: spec.sandbox.network_in(self.isolation),
            limits: spec.limits,
            files: self.files.clone(),
            artifacts: self.artifacts.clone(),
        }
    }
}

#[async_trait]
impl Enforcement for PolicyGate {
    fn name(&self) -> &'static str {
        "policy"
    }

    async fn admit(&self, spec: &ExecutionSpec) -> Result<(), String> {
        self.judge(spec)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use glasshouse_schema::ids::{ExecutionId, NodeId};

    use super::*;

    #[test]
    fn a_machine_has_not_the_nodes_network() {
        let policy = "version: v1\nname: offline\nrules:\n- {id: network, phase: pre, expression: request.network != 'host', message: m}\n";
        let policies = Policies::new(vec![Policy::parse(policy, "offline").unwrap()]);
        let spec = ExecutionSpec::new(
            ExecutionId::from_parts(1, [1; 10]),
            NodeId::new("node").unwrap(),
            vec!["true".into()],
        );
        let judged = |isolation| PolicyGate::new(policies.clone(), "any", isolation).judge(&spec);
        assert!(judged(Isolation::Process).unwrap_err().contains("rule `network`"));
        for isolation in [Isolation::Container, Isolation::Vm] {
            assert_eq!(judged(isolation), Ok(()));
        }
    }
}
