//! Reads a policy document: every key known, every value checked, every problem reported.

use std::collections::BTreeSet;

use glasshouse_schema::PolicyName;
use glasshouse_schema::verdict::{MAX_VERDICT_BYTES, RuleAction, RulePhase, Severity};
use serde::Serialize;

use crate::REASON_BYTES;
use crate::diagnostic::{Diagnostics, PolicyError, nearest};
use crate::document::{self, Scalar};
use crate::expression::{self, Node};

/// Largest policy document, in bytes.
pub const MAX_POLICY_BYTES: usize = 256 * 1024;
/// Most rules of one policy.
pub const MAX_RULES: usize = 1000;
/// Most compiled patterns of one policy (each is bounded in size).
const MAX_PATTERNS: usize = 256;

/// A rule as its document says it; the canonical form that the policy's digest covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RuleText {
    pub(crate) id: String,
    pub(crate) description: String,
    pub(crate) phase: RulePhase,
    pub(crate) expression: String,
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) action: RuleAction,
}

/// A policy as its document says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PolicyText {
    pub(crate) version: &'static str,
    pub(crate) name: PolicyName,
    pub(crate) description: String,
    pub(crate) rules: Vec<RuleText>,
}

/// Reads a document; the compiled expressions stand in the order of the rules.
pub(crate) fn read(source: &str, source_name: &str) -> Result<(PolicyText, Vec<Node>), PolicyError> {
    if source.len() > MAX_POLICY_BYTES {
        let mut problems = Diagnostics::new("");
        problems.push(0, format!("the policy has {} bytes, more than {MAX_POLICY_BYTES}", source.len()));
        return Err(problems.into_error(source_name));
    }
    let mut problems = Diagnostics::new(source);
    let read = Reader { source, problems: &mut problems, patterns: 0 }.document();
    match (problems.is_empty(), read) {
        (true, Some(read)) => Ok(read),
        _ => Err(problems.into_error(source_name)),
    }
}

/// One key's value with its place.
type Entry = (Scalar, document::Node);

struct Reader<'a, 'p> {
    source: &'a str,
    problems: &'p mut Diagnostics<'a>,
    patterns: usize,
}

impl Reader<'_, '_> {
    fn document(&mut self) -> Option<(PolicyText, Vec<Node>)> {
        let root = document::read(self.source, self.problems)?;
        let offset = root.offset();
        let mut entries = self.mapping(root, &["version", "name", "description", "rules"])?;
        match self.required(&mut entries, "version", offset) {
            Some(version) if version.text != glasshouse_schema::version::POLICY => {
                let message = format!(
                    "policy version `{}` is not known, this reader knows {}",
                    version.text,
                    glasshouse_schema::version::POLICY
                );
                self.problems.push(version.range.start, message);
            }
            _ => {}
        }
        let name = self.required(&mut entries, "name", offset).and_then(|name| {
            PolicyName::new(name.text)
                .map_err(|error| self.problems.push(name.range.start, error.to_string()))
                .ok()
        });
        let description = self.text(&mut entries, "description", 4096).unwrap_or_default();
        let rules = match take(&mut entries, "rules") {
            Some(document::Node::Sequence(offset, rules)) if rules.is_empty() => {
                self.problems.push(offset, "a policy needs at least one rule");
                Vec::new()
            }
            Some(document::Node::Sequence(offset, rules)) if rules.len() > MAX_RULES => {
                self.problems.push(offset, format!("{} rules, more than {MAX_RULES}", rules.len()));
                Vec::new()
            }
            Some(document::Node::Sequence(_, rules)) => rules,
            Some(other) => {
                self.problems.push(other.offset(), format!("`rules` must be a list, found {}", other.kind()));
                Vec::new()
            }
            None => {
                self.problems.push(offset, "the policy has no `rules`");
                Vec::new()
            }
        };
        let mut ids = BTreeSet::new();
        let mut texts = Vec::with_capacity(rules.len());
        let mut nodes = Vec::with_capacity(rules.len());
        for rule in rules {
            if let Some((text, node)) = self.rule(rule, &mut ids) {
                texts.push(text);
                nodes.push(node);
            }
        }
        let policy = PolicyText {
            version: glasshouse_schema::version::POLICY,
            name: name?,
            description,
            rules: texts,
        };
        self.check_verdict_size(&policy, offset);
        Some((policy, nodes))
    }

    fn rule(&mut self, node: document::Node, ids: &mut BTreeSet<String>) -> Option<(RuleText, Node)> {
        let keys = ["id", "description", "phase", "expression", "severity", "message", "action"];
        let offset = node.offset();
        let mut entries = self.mapping(node, &keys)?;
        let id = self.required(&mut entries, "id", offset);
        if let Some(id) = &id {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            if id.text.is_empty() || id.text.len() > 64 || !id.text.chars().all(valid) {
                let message = "an id has 1 to 64 characters of a-z, 0-9, `-`, `_` and `.`";
                self.problems.push(id.range.start, message);
            } else if !ids.insert(id.text.clone()) {
                self.problems.push(id.range.start, format!("there are two rules `{}`", id.text));
            }
        }
        let description = self.text(&mut entries, "description", 4096).unwrap_or_default();
        let phase = self.choice(
            &mut entries,
            "phase",
            &[("pre", RulePhase::Pre), ("runtime", RulePhase::Runtime), ("post", RulePhase::Post)],
        );
        let severity = self.choice(
            &mut entries,
            "severity",
            &[
                ("low", Severity::Low),
                ("medium", Severity::Medium),
                ("high", Severity::High),
                ("critical", Severity::Critical),
            ],
        );
        let action =
            self.choice(&mut entries, "action", &[("deny", RuleAction::Deny), ("warn", RuleAction::Warn)]);
        let message = self.required(&mut entries, "message", offset);
        if let Some(message) = &message
            && (message.text.trim().is_empty()
                || message.text.trim().len() > REASON_BYTES
                || message.text.trim().contains(char::is_control))
        {
            let text = format!("a message has 1 to {REASON_BYTES} bytes on one line");
            self.problems.push(message.range.start, text);
        }
        let expression = self.required(&mut entries, "expression", offset);
        // A rule whose phase is wrong would be judged by the variables of another.
        let node = match (&expression, phase) {
            (Some(expression), Some(phase)) => self.expression(expression, phase.unwrap_or_default()),
            _ => None,
        };
        let text = RuleText {
            id: id?.text,
            description,
            phase: phase?.unwrap_or_default(),
            expression: expression::canonical(&expression?.text),
            severity: severity?.unwrap_or_default(),
            message: message?.text.trim().to_owned(),
            action: action?.unwrap_or_default(),
        };
        Some((text, node?))
    }

    fn expression(&mut self, scalar: &Scalar, phase: RulePhase) -> Option<Node> {
        let text = scalar.text.as_str();
        // The grammar is recursive: it gets a stack of its own, which also keeps a panic in it from us.
        let compiled = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(expression::STACK_BYTES)
                .spawn_scoped(scope, || expression::compile(text, phase))
                .map(std::thread::ScopedJoinHandle::join)
        });
        let problems = match compiled {
            Ok(Ok(Ok(node))) => {
                self.patterns += node.patterns();
                if self.patterns <= MAX_PATTERNS {
                    return Some(node);
                }
                let message = format!("more than {MAX_PATTERNS} patterns in one policy");
                self.problems.push(scalar.range.start, message);
                return None;
            }
            Ok(Ok(Err(problems))) => problems,
            Ok(Err(_)) => {
                self.problems.push(scalar.range.start, "the expression cannot be parsed");
                return None;
            }
            Err(error) => {
                let message = format!("cannot start a thread to parse the expression: {error}");
                self.problems.push(scalar.range.start, message);
                return None;
            }
        };
        let places = scalar.places(self.source);
        for problem in problems {
            let mut end = problem.offset.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let index = text[..end].chars().count().min(places.len().saturating_sub(1));
            let offset = places.get(index).copied().unwrap_or(scalar.range.start);
            self.problems.push_with(offset, problem.message, problem.help);
        }
        None
    }

    /// The entries of a mapping, unknown and repeated keys refused.
    fn mapping(&mut self, node: document::Node, known: &[&str]) -> Option<Vec<Entry>> {
        let entries = match node {
            document::Node::Mapping(_, entries) => entries,
            other => {
                let message = format!("expected {}, found {}", known.join(", "), other.kind());
                self.problems.push(other.offset(), message);
                return None;
            }
        };
        let mut seen = BTreeSet::new();
        for (key, _) in &entries {
            if !known.contains(&key.text.as_str()) {
                let help = match nearest(&key.text, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the keys are {}", known.join(", ")),
                };
                let name: String = key.text.chars().take(64).collect();
                self.problems.push_with(key.range.start, format!("unknown key `{name}`"), Some(help));
            } else if !seen.insert(key.text.as_str()) {
                self.problems.push(key.range.start, format!("`{}` stands here twice", key.text));
            }
        }
        Some(entries)
    }

    fn scalar(&mut self, entries: &mut Vec<Entry>, key: &str) -> Option<Scalar> {
        match take(entries, key)? {
            document::Node::Scalar(scalar) => Some(scalar),
            other => {
                let message = format!("`{key}` must be a text, found {}", other.kind());
                self.problems.push(other.offset(), message);
                None
            }
        }
    }

    fn required(&mut self, entries: &mut Vec<Entry>, key: &str, offset: usize) -> Option<Scalar> {
        if !entries.iter().any(|(name, _)| name.text == key) {
            self.problems.push(offset, format!("`{key}` is missing"));
            return None;
        }
        self.scalar(entries, key)
    }

    fn text(&mut self, entries: &mut Vec<Entry>, key: &str, most: usize) -> Option<String> {
        let scalar = self.scalar(entries, key)?;
        if scalar.text.len() > most {
            self.problems.push(scalar.range.start, format!("`{key}` has more than {most} bytes"));
        }
        Some(scalar.text.trim().to_owned())
    }

    /// One of some words; the outer `None` is a problem, the inner one an absent key.
    fn choice<T: Copy>(
        &mut self,
        entries: &mut Vec<Entry>,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<Option<T>> {
        if !entries.iter().any(|(name, _)| name.text == key) {
            return Some(None);
        }
        let scalar = self.scalar(entries, key)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == scalar.text) {
            return Some(Some(*value));
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let word: String = scalar.text.chars().take(64).collect();
        let message = format!("`{key}` cannot be `{word}`");
        self.problems.push_with(
            scalar.range.start,
            message,
            Some(format!("it is one of {}", words.join(", "))),
        );
        None
    }

    /// A verdict with every reason at its longest must still be one that a reader takes.
    fn check_verdict_size(&mut self, policy: &PolicyText, offset: usize) {
        // The other keys and values of an outcome; a reason holds nothing that JSON escapes, a message may.
        let outcome = |rule: &RuleText| 128 + rule.id.len() + REASON_BYTES.max(2 * rule.message.len());
        let size: usize = 2048 + policy.rules.iter().map(outcome).sum::<usize>();
        if size > MAX_VERDICT_BYTES {
            let message = format!(
                "its verdict can have {size} bytes, more than the {MAX_VERDICT_BYTES} that are read: split the policy"
            );
            self.problems.push(offset, message);
        }
    }
}

fn take(entries: &mut Vec<Entry>, key: &str) -> Option<document::Node> {
    let index = entries.iter().position(|(name, _)| name.text == key)?;
    Some(entries.swap_remove(index).1)
}
