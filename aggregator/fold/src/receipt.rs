//! The finished receipt: every list sorted, every missing thing named.

use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::errno::result_name;
use glasshouse_schema::event::{Class, PathFlags};
use glasshouse_schema::lifecycle::{Attached, ClosedReason, Exited, Failed, LifecycleEvent, Outcome, Phase, PhaseName};
use glasshouse_schema::receipt::{
    Artifacts, Attempt, Cap, ChainHead, ClassCoverage, Completeness, Connection, Coverage, Exec, Execution, File,
    Filesystem, FlatProcess, Incomplete, Network, ProbeCost, Process, Provenance, Receipt, Redaction, Resources, Socket,
    Syscalls, Timing, VantageCoverage,
};
use glasshouse_schema::time::rfc3339;
use glasshouse_schema::{ids::Vantage, version};

use crate::ExecutionFold;
use crate::chain::{Chain, ChainKey};
use crate::facts::{self, ByStart, ExecFact, ProcessFacts};

/// `-EINPROGRESS`: a connect that was begun and whose end was not waited for.
const EINPROGRESS: i32 = -115;

/// An attached vantage point with its chain, if any frame of it came.
type Watched<'f> = (&'f Attached, Option<&'f Chain>);

pub(crate) fn build(fold: &ExecutionFold) -> Option<Receipt> {
    let profiled = fold.profiled()?;
    let claimed = fold.claimed();
    // A vantage point that is named twice is one.
    let mut vantages = BTreeSet::new();
    let watched: Vec<Watched<'_>> = profiled
        .attached
        .iter()
        .filter(|attached| vantages.insert(attached.vantage))
        .map(|attached| (attached, fold.chain_key(attached.vantage).and_then(|key| fold.chains.get(&key))))
        .collect();
    let chains: Vec<(Vantage, &Chain)> =
        watched.iter().filter_map(|(attached, chain)| chain.map(|chain| (attached.vantage, chain))).collect();

    let observed = Provenance::of(profiled.attached.iter().map(|attached| attached.vantage))?;
    let provenance = Provenance::of(chains.iter().map(|(vantage, _)| *vantage)).unwrap_or(observed);
    let requested = fold.event(PhaseName::Requested).and_then(|event| match &event.phase {
        Phase::Requested(requested) => Some(requested),
        _ => None,
    });
    let admitted = fold.event(PhaseName::Admitted).and_then(|event| match &event.phase {
        Phase::Admitted(admitted) => Some(admitted),
        _ => None,
    });
    let prepared = fold.event(PhaseName::Prepared).and_then(|event| match &event.phase {
        Phase::Prepared(prepared) => Some(prepared),
        _ => None,
    });
    let end = End::of(fold);
    let processes: Vec<Process> = chains.iter().flat_map(|(vantage, chain)| processes(*vantage, chain)).collect();
    let incomplete = incomplete(fold, &watched);

    Some(Receipt {
        version: version::RECEIPT.into(),
        execution_id: fold.execution.to_string(),
        provenance,
        timestamp: rfc3339(end.start_unix_ns),
        start_time: rfc3339(end.start_unix_ns),
        end_time: rfc3339(end.end_unix_ns),
        observation_mode: observed,
        completeness: if incomplete.is_empty() { Completeness::Closed } else { Completeness::Partial },
        exit_code: end.outcome.exit_code,
        outcome: end.outcome,
        duration_ms: end.duration_ms,
        timing: Timing {
            duration_ms: end.duration_ms,
            cpu_time_ms: end.resources.as_ref().map_or(0, |resources| resources.cpu_time_ms),
        },
        processes: processes.iter().map(flat).collect(),
        process_tree: processes,
        filesystem: filesystem(&chains),
        network: network(&chains),
        syscalls: syscalls(&chains),
        environment: prepared.map(|prepared| prepared.environment.clone()).unwrap_or_default(),
        execution: Execution {
            backend: prepared.map_or_else(|| "unknown".into(), |prepared| prepared.backend.clone()),
            isolation: prepared.map_or("unknown", |prepared| prepared.isolation.as_str()).into(),
            node: claimed.map(|claimed| claimed.node.clone()),
        },
        artifacts: end.artifacts,
        resources: end.resources,
        redactions: redactions(&chains),
        policy: None,
        coverage: Coverage {
            vantages: watched.iter().map(|watched| vantage_coverage(*watched)).collect(),
            unavailable: profiled.unavailable.clone(),
            incomplete,
            caps: caps(&chains),
        },
        files: chains.iter().flat_map(|(vantage, chain)| files(*vantage, chain)).collect(),
        sockets: chains.iter().flat_map(|(vantage, chain)| sockets(*vantage, chain)).collect(),
        chain: chains
            .iter()
            .filter_map(|(vantage, chain)| {
                let (head, frames) = chain.head();
                let ChainKey { node, epoch, .. } = fold.chain_key(*vantage)?;
                Some(ChainHead { vantage: *vantage, node, epoch, frames, head })
            })
            .collect(),
        labels: requested.map(|requested| requested.labels.clone()).unwrap_or_default(),
        trace_id: requested.and_then(|requested| requested.trace_id.clone()),
        policies: admitted.map(|admitted| admitted.policies.clone()).unwrap_or_default(),
        probe_cost: cost(&chains),
    })
}

/// How and when the execution ended, from whichever event says it.
struct End {
    outcome: Outcome,
    start_unix_ns: i128,
    end_unix_ns: i128,
    duration_ms: u64,
    resources: Option<Resources>,
    artifacts: Artifacts,
}

impl End {
    fn of(fold: &ExecutionFold) -> Self {
        let exited = fold.event(PhaseName::Exited).and_then(|event| match &event.phase {
            Phase::Exited(exited) => Some(exited),
            _ => None,
        });
        let failed = fold.event(PhaseName::Failed).and_then(|event| match &event.phase {
            Phase::Failed(failed) => Some((event, failed)),
            _ => None,
        });
        match (exited, failed) {
            (Some(exited), failed) => Self::exited(exited, failed.map(|(_, failed)| failed)),
            (None, Some((event, failed))) => Self::without_exit(fold, event, failed.outcome.clone()),
            (None, None) => {
                let last = fold.phases.values().map(|(_, event)| event).max_by_key(|event| event.unix_ns);
                let error = Some("the outcome is unknown: the producer ended without saying".into());
                let outcome = Outcome { exit_code: 125, signal: None, error };
                match last {
                    Some(event) => Self::without_exit(fold, event, outcome),
                    None => Self::at(0, 0, outcome),
                }
            }
        }
    }

    fn exited(exited: &Exited, failed: Option<&Failed>) -> Self {
        let mut outcome = exited.outcome.clone();
        if let Some(failed) = failed {
            outcome.error.get_or_insert_with(|| format!("{}: {}", failed.step.as_str(), failed.error));
        }
        let mut end = Self::at(exited.start_unix_ns.into(), exited.end_unix_ns.into(), outcome);
        end.resources = exited
            .rusage
            .map(|rusage| Resources { cpu_time_ms: rusage.cpu_time_ms, max_rss_kb: rusage.max_rss_kb });
        end.artifacts = Artifacts { stdout_hash: exited.stdout_hash, stderr_hash: exited.stderr_hash };
        end
    }

    /// A command that never ran began when it was asked for.
    fn without_exit(fold: &ExecutionFold, last: &LifecycleEvent, outcome: Outcome) -> Self {
        let start = fold.event(PhaseName::Started).or(fold.event(PhaseName::Requested)).unwrap_or(last);
        Self::at(start.unix_ns.into(), last.unix_ns.into(), outcome)
    }

    fn at(start_unix_ns: i128, end_unix_ns: i128, outcome: Outcome) -> Self {
        let duration_ms = u64::try_from((end_unix_ns - start_unix_ns) / 1_000_000).unwrap_or(0);
        Self { outcome, start_unix_ns, end_unix_ns, duration_ms, resources: None, artifacts: Artifacts::default() }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn texts(argv: &[Vec<u8>]) -> Vec<String> {
    argv.iter().map(|argument| text(argument)).collect()
}

fn processes(vantage: Vantage, chain: &Chain) -> Vec<Process> {
    chain.facts.processes.iter().map(|(key, facts)| process(vantage, chain, *key, facts)).collect()
}

fn process(vantage: Vantage, chain: &Chain, key: ByStart, facts: &ProcessFacts) -> Process {
    let last = facts.execs.last();
    // A process without a program of its own runs what its parent ran when it forked.
    let inherited = last.is_none().then(|| inherited(chain, facts)).flatten();
    let program: Option<&ExecFact> = last.or(inherited);
    let parent = facts.forks.first().map(|(_, parent)| parent.tgid);
    let exit = facts.exits.last();
    let (signal, code) = match exit {
        Some(exit) if exit.signal != 0 => (Some(exit.signal), None),
        Some(exit) => (None, Some(exit.code)),
        None => (None, None),
    };
    let exec = |fact: &ExecFact| Exec {
        time: rfc3339(chain.unix_ns(fact.boot_ns)),
        exe: text(&fact.exe),
        argv: texts(&fact.argv),
        working_dir: text(&fact.cwd),
    };
    Process {
        pid: key.tgid,
        ppid: parent.or(facts.execs.first().map(|exec| exec.ppid)).unwrap_or(0),
        exe: program.map(|exec| text(&exec.exe)).unwrap_or_default(),
        argv: program.map(|exec| texts(&exec.argv)).unwrap_or_default(),
        working_dir: program.map(|exec| text(&exec.cwd)).unwrap_or_default(),
        start_time: rfc3339(chain.unix_ns(key.start_boot_ns)),
        end_time: exit.map(|exit| rfc3339(chain.unix_ns(exit.boot_ns))),
        exit_code: code,
        signal,
        execs: if facts.execs.len() > 1 { facts.execs.iter().map(exec).collect() } else { Vec::new() },
        forked_only: last.is_none(),
        argv_truncated: program.is_some_and(|exec| exec.argv_truncated),
        uid: program.map(|exec| exec.uid),
        gid: program.map(|exec| exec.gid),
        vantage,
    }
}

fn inherited<'c>(chain: &'c Chain, facts: &ProcessFacts) -> Option<&'c ExecFact> {
    let (mut forked_at, mut parent) = *facts.forks.first()?;
    // As deep as forks go without an exec between; bounded, because a hostile chain may tie a knot.
    for _ in 0..facts::MAX_PROCESSES {
        let facts = chain.facts.processes.get(&parent)?;
        if let Some(exec) = facts.execs.iter().rfind(|exec| exec.boot_ns <= forked_at) {
            return Some(exec);
        }
        let (earlier, grandparent) = *facts.forks.first()?;
        if earlier > forked_at || grandparent == parent {
            return None;
        }
        (forked_at, parent) = (earlier, grandparent);
    }
    None
}

fn flat(process: &Process) -> FlatProcess {
    FlatProcess { pid: process.pid, ppid: process.ppid, cmd: process.argv.join(" ") }
}

fn filesystem(chains: &[(Vantage, &Chain)]) -> Filesystem {
    let mut sets: [BTreeSet<String>; 3] = Default::default();
    for (path, file) in chains.iter().flat_map(|(_, chain)| chain.facts.files.iter()) {
        let [reads, writes, deletes] = &mut sets;
        if file.reads > 0 {
            reads.insert(text(path));
        }
        if file.was_written() {
            writes.insert(text(path));
        }
        if file.was_deleted() {
            deletes.insert(text(path));
        }
    }
    let [reads, writes, deletes] = sets.map(|set| set.into_iter().collect());
    Filesystem { reads, writes, deletes, policy_violations: Vec::new() }
}

fn files(vantage: Vantage, chain: &Chain) -> impl Iterator<Item = File> {
    chain.facts.files.iter().map(move |(path, file)| File {
        path: text(path),
        path_hex: std::str::from_utf8(path)
            .is_err()
            .then(|| path.iter().map(|byte| format!("{byte:02x}")).collect()),
        reads: file.reads,
        writes: file.writes,
        path_only: file.path_only,
        creates: file.creates,
        deletes: file.deletes,
        renamed_to: file.renamed_to.iter().map(|path| text(path)).collect(),
        renamed_from: file.renamed_from.iter().map(|path| text(path)).collect(),
        errors: file.errors.clone(),
        pids: file.pids.iter().copied().collect(),
        flags: flags(PathFlags(file.flags)),
        vantage,
    })
}

fn flags(flags: PathFlags) -> Vec<String> {
    [
        (PathFlags::MASKED, "masked"),
        (PathFlags::TRUNCATED, "truncated"),
        (PathFlags::UNLINKED, "unlinked"),
        (PathFlags::UNRESOLVED, "unresolved"),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .map(|(_, name)| name.to_owned())
    .collect()
}

fn network(chains: &[(Vantage, &Chain)]) -> Network {
    let mut connections = BTreeSet::new();
    let mut attempts = BTreeSet::new();
    for ((dst, protocol), socket) in chains.iter().flat_map(|(_, chain)| chain.facts.sockets.iter()) {
        for result in socket.results.keys() {
            let (dst, protocol) = (dst.clone(), protocol.clone());
            if matches!(*result, 0 | EINPROGRESS) {
                connections.insert(Connection { dst: dst.clone(), protocol: protocol.clone(), attempted: true });
            }
            attempts.insert(Attempt { dst, protocol, result: result_name(*result), policy: String::new() });
        }
    }
    Network {
        connections: connections.into_iter().collect(),
        attempts: attempts.into_iter().collect(),
        bytes_sent: None,
        bytes_received: None,
    }
}

fn sockets(vantage: Vantage, chain: &Chain) -> impl Iterator<Item = Socket> {
    chain.facts.sockets.iter().map(move |((dst, protocol), socket)| Socket {
        dst: dst.clone(),
        protocol: protocol.clone(),
        results: socket.results.iter().map(|(result, count)| (result_name(*result), *count)).collect(),
        pids: socket.pids.iter().copied().collect(),
        vantage,
    })
}

fn sum(lists: impl Iterator<Item = Vec<(String, u64)>>) -> BTreeMap<String, u64> {
    lists.flatten().fold(BTreeMap::new(), |mut sums, (name, count)| {
        let sum: &mut u64 = sums.entry(name).or_default();
        // Beyond 2^53 a JSON number would be rounded: such a count is one no machine reaches.
        *sum = sum.saturating_add(count).min(1 << 53);
        sums
    })
}

fn syscalls(chains: &[(Vantage, &Chain)]) -> Syscalls {
    let seals = || chains.iter().filter_map(|(_, chain)| chain.seal());
    let denied_counts = sum(seals().map(|seal| seal.denied.clone()));
    Syscalls {
        counts: sum(seals().map(|seal| seal.syscalls.clone())),
        denied: denied_counts.keys().cloned().collect(),
        denied_counts,
    }
}

fn redactions(chains: &[(Vantage, &Chain)]) -> Vec<Redaction> {
    let seals = chains.iter().filter_map(|(_, chain)| chain.seal());
    sum(seals.map(|seal| seal.redactions.clone()))
        .into_iter()
        .map(|(rule, count)| Redaction { rule, count })
        .collect()
}

fn cost(chains: &[(Vantage, &Chain)]) -> Option<ProbeCost> {
    let mut seals = chains.iter().filter_map(|(_, chain)| chain.seal()).peekable();
    seals.peek()?;
    Some(seals.fold(ProbeCost { estimated: true, ..ProbeCost::default() }, |cost, seal| ProbeCost {
        user_cpu_us: cost.user_cpu_us.saturating_add(seal.cost.user_cpu_ns / 1_000).min(1 << 53),
        frame_bytes: cost.frame_bytes.saturating_add(seal.cost.frame_bytes).min(1 << 53),
        estimated: true,
    }))
}

fn vantage_coverage((attached, chain): Watched<'_>) -> VantageCoverage {
    let counters = chain.map(Chain::counters).unwrap_or_default();
    let seal = chain.and_then(Chain::seal);
    let class = |class: Class| {
        let counters = counters.class(class);
        let coverage = ClassCoverage {
            observed: counters.observed,
            delivered: counters.delivered,
            collapsed: counters.collapsed,
            lost: counters.lost,
        };
        (class.as_str().to_owned(), coverage)
    };
    VantageCoverage {
        attached: attached.clone(),
        sealed: seal.is_some(),
        classes: Class::ALL.into_iter().map(class).collect(),
        escaped_tasks: seal.map_or(0, |seal| seal.escaped_tasks.min(1 << 53)),
        bypassed: seal.map(|seal| seal.blind_spots.clone()).unwrap_or_default(),
        truncated_paths: chain.map_or(0, |chain| chain.facts.truncated_paths),
    }
}

fn caps(chains: &[(Vantage, &Chain)]) -> Vec<Cap> {
    let mut caps = Vec::new();
    for (_, chain) in chains {
        let facts = &chain.facts;
        let lists = [
            ("process_tree", facts.processes.limit(), facts.processes.events_left_out()),
            ("process_tree[].execs", facts::MAX_EXECS as u64, facts.execs_left_out),
            ("files", facts.files.limit(), facts.files.events_left_out()),
            ("sockets", facts.sockets.limit(), facts.sockets.events_left_out()),
        ];
        let capped = lists.into_iter().filter(|(_, _, left_out)| *left_out > 0);
        caps.extend(capped.map(|(list, limit, events_left_out)| Cap { list: list.into(), limit, events_left_out }));
    }
    caps
}

/// Why the receipt is not closed. Empty only when completeness is shown.
fn incomplete(fold: &ExecutionFold, watched: &[Watched<'_>]) -> Vec<Incomplete> {
    let mut found = BTreeSet::new();
    let mut say = |vantage, reason: &str, class, detail: String| {
        found.insert(Incomplete { vantage, reason: reason.into(), class, detail });
    };
    for phase in [PhaseName::Requested, PhaseName::Admitted, PhaseName::Claimed, PhaseName::Prepared] {
        if !fold.has(phase) {
            say(None, "lifecycle_missing", None, format!("there is no `{}` event", phase.as_str()));
        }
    }
    if !fold.has(PhaseName::Exited) && !fold.has(PhaseName::Failed) {
        say(None, "lifecycle_missing", None, "there is neither an `exited` nor a `failed` event".into());
    }
    for phase in fold.conflicting_phases.keys() {
        let detail = format!("there are several `{}` events that differ", phase.as_str());
        say(None, "lifecycle_conflict", None, detail);
    }
    if let Some(LifecycleEvent { phase: Phase::Closed(closed), .. }) = fold.event(PhaseName::Closed) {
        if closed.reason == ClosedReason::ProducerDead {
            say(None, "producer_dead", None, "the producer ended before it sealed the execution".into());
        }
    }
    let profiled = fold.profiled();
    for unavailable in profiled.iter().flat_map(|profiled| &profiled.unavailable) {
        say(Some(unavailable.vantage), "vantage_unavailable", None, unavailable.reason.clone());
    }
    if let Some(claimed) = fold.claimed() {
        for key in fold.chains.keys().filter(|key| key.node == claimed.node && key.epoch != claimed.epoch) {
            let detail = format!("there are frames of epoch {}, the claim has {}", key.epoch, claimed.epoch);
            say(Some(key.vantage), "several_epochs", None, detail);
        }
    }
    for (attached, chain) in watched {
        let vantage = Some(attached.vantage);
        let missing = fold.sealed().into_iter().flat_map(|sealed| &sealed.missing);
        let missing = missing.filter(|missing| missing.vantage == attached.vantage);
        let no_seal = || {
            let reasons: Vec<&str> = missing.map(|missing| missing.reason.as_str()).collect();
            if reasons.is_empty() { "no seal came".to_owned() } else { reasons.join("; ") }
        };
        let Some(chain) = chain else {
            say(vantage, "seal_missing", None, no_seal());
            continue;
        };
        match chain.seal() {
            None => say(vantage, "seal_missing", None, no_seal()),
            Some(seal) => {
                if seal.escaped_tasks > 0 {
                    let detail = format!("{} tasks left the execution's cgroup", seal.escaped_tasks);
                    say(vantage, "tasks_escaped", None, detail);
                }
                for bypassed in &seal.blind_spots {
                    say(vantage, "bypassed", None, bypassed.clone());
                }
            }
        }
        for (reason, detail) in chain.faults() {
            say(vantage, reason, None, detail);
        }
        let told = fold.sealed().into_iter().flat_map(|sealed| &sealed.vantages);
        for told in told.filter(|told| told.vantage == attached.vantage) {
            let (head, frames) = chain.head();
            if (told.head, told.frames) != (head, frames) {
                let detail = format!(
                    "the engine says {} frames up to {}, the chain has {frames} up to {}",
                    told.frames,
                    told.head.short(),
                    head.short()
                );
                say(vantage, "chain_broken", None, detail);
            }
        }
        for class in Class::ALL {
            let lost = chain.counters().class(class).lost;
            if lost > 0 {
                say(vantage, "lost_events", Some(class), format!("{lost} lost"));
            }
        }
        for (class, detail) in chain.differing_classes() {
            say(vantage, "counters_differ", Some(class), detail);
        }
    }
    found.into_iter().collect()
}
