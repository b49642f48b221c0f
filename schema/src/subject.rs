//! The subject space: the only place that builds or reads a subject.
//!
//! ```text
//! glasshouse.v1.frames.<node>.<execution>.<vantage>
//! glasshouse.v1.lifecycle.<node>.<execution>.<phase>
//! glasshouse.v1.events.<partition>.<frames|lifecycle>.<node>.<execution>.<vantage|phase>   as GH_EVENTS stores them
//! glasshouse.v1.receipts.<execution>
//! glasshouse.v1.verdicts.<execution>.<policy>.<policy_digest>
//! glasshouse.v1.requests.<pool>
//! glasshouse.v1.output.<node>.<execution>.<stdout|stderr>
//! glasshouse.v1.control.<execution>
//! glasshouse.v1.admit
//! glasshouse.v1.dead.<kind>
//! ```
//!
//! A name becomes a token by percent-encoding every byte outside `A-Z a-z 0-9 - _` (RFC 3986 §2.1). A lone `_`
//! stands for an unassigned node, so a node of that very name is written `%5F`.

use crate::ids::{Digest, ExecutionId, NodeId, PolicyName, PoolName, Vantage};
use crate::lifecycle::PhaseName;
use crate::version::SUBJECTS;

/// Partitions of GH_EVENTS, for ever: workers own ranges of them, so an execution never moves between partitions.
pub const PARTITIONS: u16 = 256;

/// The token of a node that is not assigned yet.
pub const UNASSIGNED: &str = "_";

/// Encodes a name into one subject token.
pub fn encode_token(name: &str) -> String {
    if name == UNASSIGNED {
        return "%5F".into();
    }
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => token.push(byte as char),
            _ => token.push_str(&format!("%{byte:02X}")),
        }
    }
    token
}

/// Decodes what [`encode_token`] made; `None` for anything it cannot have made.
pub fn decode_token(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode_token(&name) == token).then_some(name)
}

fn node_token(node: Option<&NodeId>) -> String {
    node.map_or_else(|| UNASSIGNED.to_owned(), |node| encode_token(node.as_str()))
}

/// Where a node publishes the frames of one execution and vantage point.
pub fn frames(node: &NodeId, execution: ExecutionId, vantage: Vantage) -> String {
    format!("{SUBJECTS}.frames.{}.{execution}.{vantage}", encode_token(node.as_str()))
}

/// Where one phase of an execution is published. A `closed` event never names a node, so that its subject is one
/// per execution and can be created only once.
pub fn lifecycle(node: Option<&NodeId>, execution: ExecutionId, phase: PhaseName) -> String {
    let node = if phase == PhaseName::Closed { None } else { node };
    format!("{SUBJECTS}.lifecycle.{}.{execution}.{}", node_token(node), phase.as_str())
}

/// Where the one receipt of an execution is published.
pub fn receipt(execution: ExecutionId) -> String {
    format!("{SUBJECTS}.receipts.{execution}")
}

/// Where the verdict of one policy over one execution's receipt is published.
pub fn verdict(execution: ExecutionId, policy: &PolicyName, policy_digest: Digest) -> String {
    format!("{SUBJECTS}.verdicts.{execution}.{}.{}", encode_token(policy.as_str()), policy_digest.short())
}

/// Every verdict of one execution, as a subscription.
pub fn verdicts_of(execution: ExecutionId) -> String {
    format!("{SUBJECTS}.verdicts.{execution}.>")
}

/// The work queue of a pool's node agents.
pub fn requests(pool: &PoolName) -> String {
    format!("{SUBJECTS}.requests.{}", encode_token(pool.as_str()))
}

/// Every work queue, as a subscription.
pub fn requests_of_all() -> String {
    format!("{SUBJECTS}.requests.*")
}

/// The pool whose queue a subject is.
pub fn pool_of(subject: &str) -> Option<PoolName> {
    let token = subject.strip_prefix(SUBJECTS)?.strip_prefix(".requests.")?;
    PoolName::new(decode_token(token)?).ok()
}

/// A standard stream of a command, live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    /// The last token of its subject.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where the live output of an execution is published.
pub fn output(node: &NodeId, execution: ExecutionId, stream: OutputStream) -> String {
    format!("{SUBJECTS}.output.{}.{execution}.{}", encode_token(node.as_str()), stream.as_str())
}

/// The output of one execution wherever it runs, as a filter.
pub fn output_of(execution: ExecutionId) -> String {
    format!("{SUBJECTS}.output.*.{execution}.*")
}

/// The stream that a subject of live output names.
pub fn output_stream(subject: &str) -> Option<OutputStream> {
    let rest = subject.strip_prefix(SUBJECTS)?.strip_prefix(".output.")?;
    let last = rest.rsplit('.').next()?;
    [OutputStream::Stdout, OutputStream::Stderr].into_iter().find(|stream| stream.as_str() == last)
}

/// Where an execution is cancelled or killed, by request and reply.
pub fn control(execution: ExecutionId) -> String {
    format!("{SUBJECTS}.control.{execution}")
}

/// Where pre-execution policy is asked, by request and reply.
pub fn admit() -> String {
    format!("{SUBJECTS}.admit")
}

/// Where what could not be processed goes.
pub fn dead(kind: crate::dead::DeadKind) -> String {
    format!("{SUBJECTS}.dead.{}", kind.as_str())
}

/// Every stored event of one execution in any partition, as a consumer filter.
pub fn stored_events_of(execution: ExecutionId) -> [String; 2] {
    ["frames", "lifecycle"].map(|kind| format!("{SUBJECTS}.events.*.{kind}.*.{execution}.*"))
}

/// Every stored event of one execution, as one filter, by which they are removed all at once.
pub fn stored_of(execution: ExecutionId) -> String {
    format!("{SUBJECTS}.events.*.*.*.{execution}.*")
}

/// Every stored `closed` event, as a consumer filter.
pub fn stored_closed() -> String {
    format!("{SUBJECTS}.events.*.lifecycle.{UNASSIGNED}.*.{}", PhaseName::Closed.as_str())
}

/// The lifecycle of one execution as GH_EVENTS stores it in its partition, as a consumer filter.
pub fn stored_lifecycle_of(partition: u16, execution: ExecutionId) -> String {
    format!("{SUBJECTS}.events.{partition}.lifecycle.*.{execution}.*")
}

/// One phase of every execution as GH_EVENTS stores it, as a consumer filter.
pub fn stored_phase(phase: PhaseName) -> String {
    format!("{SUBJECTS}.events.*.lifecycle.*.*.{}", phase.as_str())
}

/// Every stored event of one partition, as a consumer filter.
pub fn stored_partition(partition: u16) -> String {
    format!("{SUBJECTS}.events.{partition}.>")
}

/// The subject under which GH_EVENTS stores what was published to `published`, for a known partition.
pub fn stored(partition: u16, published: &str) -> Option<String> {
    let rest = published.strip_prefix(SUBJECTS)?.strip_prefix('.')?;
    Some(format!("{SUBJECTS}.events.{partition}.{rest}"))
}

/// The subject to which a message was published that GH_EVENTS stores under `stored`; `None` for what [`stored`] cannot
/// have made. It inverts the stream's transform.
pub fn published(stored: &str) -> Option<String> {
    let rest = stored.strip_prefix(SUBJECTS)?.strip_prefix(".events.")?;
    let (partition, rest) = rest.split_once('.')?;
    partition_number(partition)?;
    Some(format!("{SUBJECTS}.{rest}"))
}

/// The execution that a subject of an event, a receipt or a verdict names.
pub fn execution_of(subject: &str) -> Option<ExecutionId> {
    if let Ok(event) = EventSubject::parse(subject) {
        return Some(event.execution);
    }
    let rest = subject.strip_prefix(SUBJECTS)?;
    let rest = rest.strip_prefix(".receipts.").or_else(|| rest.strip_prefix(".verdicts."))?;
    rest.split('.').next()?.parse().ok()
}

/// Reads the token of a partition. One spelling only: `+1` and `01` are numbers to Rust and other subjects to the broker.
fn partition_number(token: &str) -> Option<u16> {
    token.parse().ok().filter(|number: &u16| *number < PARTITIONS && number.to_string() == token)
}

/// What a subject of GH_EVENTS says about the message under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSubject {
    /// The partition, when the subject is one that the stream stored.
    pub partition: Option<u16>,
    /// The node that published it; `None` for `_`.
    pub node: Option<NodeId>,
    /// The execution it is about.
    pub execution: ExecutionId,
    /// Frame or lifecycle phase.
    pub kind: EventSubjectKind,
}

/// The last token of an event's subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSubjectKind {
    /// A frame of a vantage point.
    Frame(Vantage),
    /// A lifecycle phase.
    Lifecycle(PhaseName),
}

/// Why a subject is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{subject}` is not an event subject: {problem}")]
pub struct SubjectError {
    subject: String,
    problem: String,
}

impl EventSubject {
    /// Reads a published or a stored event subject.
    pub fn parse(subject: &str) -> Result<Self, SubjectError> {
        let bad = |problem: String| SubjectError { subject: subject.chars().take(256).collect(), problem };
        let rest = subject
            .strip_prefix(SUBJECTS)
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or_else(|| bad(format!("it does not begin with {SUBJECTS}")))?;
        let (partition, rest) = match rest.strip_prefix("events.") {
            None => (None, rest),
            Some(stored) => {
                let (partition, rest) =
                    stored.split_once('.').ok_or_else(|| bad("it ends after the partition".into()))?;
                match partition_number(partition) {
                    Some(number) => (Some(number), rest),
                    None => return Err(bad(format!("`{partition}` is not a partition"))),
                }
            }
        };
        let tokens: Vec<&str> = rest.split('.').collect();
        let [kind, node, execution, last] = tokens[..] else {
            return Err(bad("it has the wrong number of tokens".into()));
        };
        let node = match node {
            UNASSIGNED => None,
            token => Some(
                decode_token(token)
                    .and_then(|name| NodeId::new(name).ok())
                    .ok_or_else(|| bad(format!("`{token}` is not a node token")))?,
            ),
        };
        let execution = execution.parse().map_err(|error| bad(format!("{error}")))?;
        let kind = match kind {
            "frames" => EventSubjectKind::Frame(last.parse().map_err(|error| bad(format!("{error}")))?),
            "lifecycle" => EventSubjectKind::Lifecycle(
                PhaseName::parse(last).ok_or_else(|| bad(format!("`{last}` is not a phase")))?,
            ),
            other => return Err(bad(format!("`{other}` is neither frames nor lifecycle"))),
        };
        Ok(Self { partition, node, execution, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> ExecutionId {
        ExecutionId::from_parts(1, [1; 10])
    }

    proptest! {
        #[test]
        fn any_name_becomes_one_safe_token_and_back(name in "\\PC{1,40}") {
            let token = encode_token(&name);
            prop_assert!(!token.contains(['.', '*', '>', ' ', '\t']) && token != UNASSIGNED);
            prop_assert_eq!(decode_token(&token), Some(name));
        }

        #[test]
        fn what_is_stored_leads_back_to_what_was_published(
            partition in 0..PARTITIONS,
            node in "\\PC{1,40}".prop_filter_map("a node name", |name| NodeId::new(name).ok()),
            random: [u8; 10],
            phase in proptest::sample::select(PhaseName::ALL.to_vec()),
            vantage in proptest::sample::select(vec![Vantage::Host, Vantage::Guest, Vantage::Runner]),
        ) {
            let id = ExecutionId::from_parts(1, random);
            let subjects = [
                frames(&node, id, vantage),
                lifecycle(Some(&node), id, phase),
                lifecycle(None, id, phase),
            ];
            for subject in subjects {
                let stored = stored(partition, &subject).unwrap();
                prop_assert_eq!(published(&stored), Some(subject.clone()));
                prop_assert_eq!(published(&subject), None, "it is the published one already");
                prop_assert_eq!(execution_of(&stored), Some(id));
                prop_assert_eq!(execution_of(&subject), Some(id));
            }
        }

        #[test]
        fn only_what_the_stream_stored_is_inverted(subject in "(glasshouse\\.v1\\.events\\.)?\\PC{0,60}") {
            if let Some(published) = published(&subject) {
                let partition = subject.split('.').nth(3).unwrap().parse().unwrap();
                prop_assert_eq!(stored(partition, &published), Some(subject));
            }
        }

        #[test]
        fn reading_any_subject_never_panics(subject in "\\PC{0,120}") {
            for subject in [subject.clone(), format!("glasshouse.v1.events.{subject}"), format!("glasshouse.v1.{subject}")] {
                let _ = EventSubject::parse(&subject);
                let _ = execution_of(&subject);
            }
        }
    }

    #[test]
    fn event_subjects_round_trip_published_and_stored() {
        let node = NodeId::new("worker-1.example").unwrap();
        let published = frames(&node, id(), Vantage::Host);
        let read = EventSubject::parse(&published).unwrap();
        assert_eq!((read.partition, read.node.as_ref()), (None, Some(&node)));
        let stored = EventSubject::parse(&stored(255, &published).unwrap()).unwrap();
        assert_eq!(stored.partition, Some(255));
        assert_eq!(stored.kind, EventSubjectKind::Frame(Vantage::Host));
        assert!(EventSubject::parse(&published.replace("frames", "events.256.frames")).is_err());
    }

    #[test]
    fn receipts_and_verdicts_name_their_execution() {
        let policy = PolicyName::new("a.b").unwrap();
        assert_eq!(execution_of(&receipt(id())), Some(id()));
        assert_eq!(execution_of(&verdict(id(), &policy, Digest::ZERO)), Some(id()));
        for other in
            ["", "glasshouse.v1.dead.frame", "glasshouse.v1.receipts.x", "glasshouse.v1.events.1.receipts.x"]
        {
            assert_eq!(execution_of(other), None, "{other}");
        }
        assert_eq!(
            published("glasshouse.v1.events.01.frames.n.e.host"),
            None,
            "no stream spells a partition so"
        );
        assert_eq!(published("glasshouse.v1.events.256.frames.n.e.host"), None);
    }

    #[test]
    fn closed_is_one_subject_per_execution() {
        let node = NodeId::new("n").unwrap();
        assert_eq!(lifecycle(Some(&node), id(), PhaseName::Closed), lifecycle(None, id(), PhaseName::Closed));
    }
}
