//! The finished receipt: every list sorted, every missing thing named.

use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::event::{Class, SocketOperation};
use glasshouse_schema::lifecycle::{
    Attached, ClosedReason, Exited, Failed, LifecycleEvent, Outcome, Phase, PhaseName,
};
use glasshouse_schema::receipt::{
    Artifacts, Attempt, Cap, ChainHead, ClassCoverage, Completeness, Connection, Contradiction, Coverage,
    Execution, File, Filesystem, FlatProcess, Incomplete, MAX_RECEIPT_BYTES, Network, ProbeCost, Process,
    Provenance, Receipt, Redaction, Resources, Socket, Syscalls, Timing, VantageCoverage,
};
use glasshouse_schema::time::rfc3339;
use glasshouse_schema::{ids::Vantage, version};

use crate::ExecutionFold;
use crate::chain::{Chain, ChainKey};
use crate::entries::{self, Budget};
use crate::facts;
use crate::files::{ChangeFacts, FileFacts};
use crate::reconcile::{self, Told};
use crate::sockets::DnsFacts;

/// Bytes of JSON that each list of facts, with the established lists made from it, may take: together they and the rest
/// stay below what a reader takes. One long argument list and a hundred thousand forks would otherwise do.
const MAX_LIST_BYTES: [(&str, u64); 5] = [
    ("process_tree", 24 << 20),
    ("files", 24 << 20),
    ("sockets", 4 << 20),
    ("dns", 2 << 20),
    ("operations", 2 << 20),
];
const _: () = {
    let [(_, tree), (_, files), (_, sockets), (_, dns), (_, operations)] = MAX_LIST_BYTES;
    assert!(tree + files + sockets + dns + operations < MAX_RECEIPT_BYTES as u64);
};

/// An attached vantage point with its chain, if any frame of it came.
type Watched<'f> = (&'f Attached, Option<&'f Chain>);

pub(crate) fn build(fold: &ExecutionFold) -> Option<Receipt> {
    let profiled = fold.expected()?;
    let claimed = fold.claimed();
    // A vantage point that is named twice is one.
    let mut vantages = BTreeSet::new();
    let watched: Vec<Watched<'_>> = profiled
        .attached
        .iter()
        .filter(|attached| vantages.insert(attached.vantage))
        .map(|attached| (attached, fold.chain_of(attached.vantage)))
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
    let mut budgets = MAX_LIST_BYTES.map(|(list, bytes)| Budget::new(list, bytes));
    let [of_tree, of_files, of_sockets, of_dns, of_operations] = &mut budgets;
    let processes = entries::processes(&chains, of_tree);
    let files = entries::files(&chains, of_files);
    let sockets = entries::sockets(&chains, of_sockets);
    let dns = entries::dns(&chains, of_dns);
    let operations = entries::operations(&chains, of_operations);
    let environment = prepared.map(|prepared| *prepared.environment.clone()).unwrap_or_default();
    let vantages: Vec<VantageCoverage> = watched.iter().map(|watched| vantage_coverage(*watched)).collect();
    let caps = caps(&chains, &budgets);
    let has_all_sockets = !caps.iter().any(|cap| cap.list.split(' ').next() == Some("sockets"));
    let contradictions = reconcile::contradictions(&Told {
        isolation: prepared.map(|prepared| prepared.isolation),
        environment: &environment,
        ended: end.is_told.then_some(&end.outcome),
        vantages: &vantages,
        processes: &processes,
        files: &files,
        sockets: &sockets,
        has_all_sockets,
    });
    let incomplete = incomplete(fold, &watched, &contradictions);

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
        filesystem: filesystem(&files),
        network: network(&chains, &sockets),
        syscalls: syscalls(&chains),
        environment,
        execution: Execution {
            backend: prepared.map_or_else(|| "unknown".into(), |prepared| prepared.backend.clone()),
            isolation: prepared.map_or("unknown", |prepared| prepared.isolation.as_str()).into(),
            node: claimed.map(|claimed| claimed.node.clone()),
        },
        artifacts: end.artifacts,
        resources: end.resources,
        redactions: redactions(&chains),
        policy: None,
        coverage: Coverage { vantages, unavailable: profiled.unavailable.clone(), incomplete, caps },
        contradictions,
        files,
        sockets,
        dns,
        operations,
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
    /// The engine says that the command ended, and not for an error.
    is_told: bool,
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
                // Not the `closed` event: its time is that of the worker that gave the execution up.
                let told = fold.phases.iter().filter(|(name, _)| **name != PhaseName::Closed);
                let last = told.map(|(_, event)| event.as_ref()).max_by_key(|event| event.unix_ns);
                let error = Some("the outcome is unknown: the producer ended without saying".into());
                let outcome = Outcome { exit_code: 125, error, ..Outcome::default() };
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
        end.resources = exited.rusage.map(|rusage| Resources {
            cpu_time_ms: rusage.cpu_time_ms.min(MAX_INTEGER),
            max_rss_kb: rusage.max_rss_kb.min(MAX_INTEGER),
        });
        end.artifacts = Artifacts {
            stdout_hash: exited.stdout_hash,
            stderr_hash: exited.stderr_hash,
            files: exited.files.as_ref().clone().sorted(),
        };
        end.is_told = exited.outcome.error.is_none();
        end
    }

    /// A command that never ran began when it was asked for.
    fn without_exit(fold: &ExecutionFold, last: &LifecycleEvent, outcome: Outcome) -> Self {
        let start = fold.event(PhaseName::Started).or(fold.event(PhaseName::Requested)).unwrap_or(last);
        Self::at(start.unix_ns.into(), last.unix_ns.into(), outcome)
    }

    fn at(start_unix_ns: i128, end_unix_ns: i128, outcome: Outcome) -> Self {
        let duration_ms = u64::try_from((end_unix_ns - start_unix_ns) / 1_000_000).unwrap_or(0);
        Self {
            outcome,
            start_unix_ns,
            end_unix_ns,
            duration_ms,
            resources: None,
            artifacts: Artifacts::default(),
            is_told: false,
        }
    }
}

fn flat(process: &Process) -> FlatProcess {
    FlatProcess { pid: process.pid, ppid: process.ppid, cmd: process.argv.join(" ") }
}

/// Changes that leave something else at a path than there was.
const WRITES: [&str; 7] = ["link", "symlink", "mkdir", "mknod", "truncate", "chmod", "chown"];

fn filesystem(files: &[File]) -> Filesystem {
    let paths = |is: fn(&File) -> bool| {
        // Sorted already, unless there are two vantage points.
        let mut paths: Vec<&String> = files.iter().filter(|file| is(file)).map(|file| &file.path).collect();
        paths.sort();
        paths.dedup();
        paths.into_iter().cloned().collect()
    };
    Filesystem {
        reads: paths(|file| file.reads > 0 || file.read_calls > 0),
        writes: paths(|file| {
            let writes = file.writes > 0 || file.write_calls > 0 || file.created > 0;
            writes
                || !file.renamed_from.is_empty()
                || WRITES.iter().any(|change| file.changes.contains_key(*change))
        }),
        deletes: paths(|file| file.deletes > 0 || file.renames > 0),
        policy_violations: Vec::new(),
    }
}

fn network(chains: &[(Vantage, &Chain)], sockets: &[Socket]) -> Network {
    let mut connections = BTreeSet::new();
    let mut attempts = BTreeSet::new();
    let reaches_out = [SocketOperation::Connect.as_str(), SocketOperation::Send.as_str()];
    for Socket { dst, protocol, results, .. } in
        sockets.iter().filter(|socket| reaches_out.contains(&socket.operation.as_str()))
    {
        for result in results.keys() {
            let (dst, protocol) = (dst.clone(), protocol.clone());
            // EINPROGRESS is a connect that was begun and whose end was not waited for.
            if matches!(result.as_str(), "ok" | "EINPROGRESS") {
                connections.insert(Connection {
                    dst: dst.clone(),
                    protocol: protocol.clone(),
                    attempted: true,
                });
            }
            attempts.insert(Attempt { dst, protocol, result: result.clone(), policy: String::new() });
        }
    }
    // Two vantage points see the same bytes.
    let traffic = || chains.iter().filter_map(|(_, chain)| chain.facts.traffic);
    Network {
        connections: connections.into_iter().collect(),
        attempts: attempts.into_iter().collect(),
        bytes_sent: traffic().map(|(sent, _)| sent).max(),
        bytes_received: traffic().map(|(_, received)| received).max(),
    }
}

fn sum(lists: impl Iterator<Item = Vec<(String, u64)>>) -> BTreeMap<String, u64> {
    lists.flatten().fold(BTreeMap::new(), |mut sums, (name, count)| {
        let sum: &mut u64 = sums.entry(name).or_default();
        // Beyond it a JSON number would be rounded: such a count is one no machine reaches.
        *sum = sum.saturating_add(count).min(MAX_INTEGER);
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
        user_cpu_us: cost.user_cpu_us.saturating_add(seal.cost.user_cpu_ns / 1_000).min(MAX_INTEGER),
        kernel_cpu_us: cost.kernel_cpu_us.saturating_add(seal.cost.kernel_ns / 1_000).min(MAX_INTEGER),
        kernel_samples: cost.kernel_samples.saturating_add(seal.cost.kernel_samples).min(MAX_INTEGER),
        frame_bytes: cost.frame_bytes.saturating_add(seal.cost.frame_bytes).min(MAX_INTEGER),
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
        escaped_tasks: seal.map_or(0, |seal| seal.escaped_tasks.min(MAX_INTEGER)),
        bypassed: seal.map(|seal| seal.blind_spots.clone()).unwrap_or_default(),
        truncated_paths: chain.map_or(0, |chain| chain.facts.truncated_paths()),
    }
}

fn caps(chains: &[(Vantage, &Chain)], budgets: &[Budget]) -> Vec<Cap> {
    let mut caps = Vec::new();
    for (_, chain) in chains {
        let facts = &chain.facts;
        let processes = || facts.processes.iter().map(|entry| &entry.value);
        let execs_left_out = processes().map(|process| process.execs.left_out()).sum();
        let credentials_left_out = processes().map(|process| process.credentials.left_out()).sum();
        let cut = |is_cut: fn(&FileFacts) -> bool| {
            facts.files.iter().filter(|entry| is_cut(&entry.value)).count() as u64
        };
        let cut_changed = |is_cut: fn(&ChangeFacts) -> bool| {
            let changed = facts.files.iter().filter_map(|entry| entry.value.changed.as_deref());
            changed.filter(|changed| is_cut(changed)).count() as u64
        };
        let cut_dns = |is_cut: fn(&DnsFacts) -> bool| {
            facts.dns.iter().filter(|entry| is_cut(&entry.value)).count() as u64
        };
        let cut_sockets = facts.sockets.iter().filter(|entry| entry.value.has_more_pids()).count() as u64;
        let cut_operations =
            facts.operations.iter().filter(|entry| entry.value.pids.has_more()).count() as u64;
        let named = facts::MAX_NAMED as u64;
        let lists = [
            ("files[].by", named, cut(|file| file.deeds.has_more())),
            ("files[].renamed_to", named, cut_changed(|file| file.renamed_to.has_more())),
            ("files[].renamed_from", named, cut_changed(|file| file.renamed_from.has_more())),
            ("files[].linked_to", named, cut_changed(|file| file.linked_to.has_more())),
            ("files[].linked_from", named, cut_changed(|file| file.linked_from.has_more())),
            ("files[].symlink_targets", named, cut_changed(|file| file.symlink_targets.has_more())),
            ("files[].mounted_from", named, cut_changed(|file| file.mounted_from.has_more())),
            ("files[].modes", named, cut_changed(|file| file.modes.has_more())),
            ("sockets[].pids", named, cut_sockets),
            ("dns[].answers", named, cut_dns(|dns| dns.answers.has_more() || dns.truncated)),
            ("dns[].pids", named, cut_dns(|dns| dns.outcomes.pids.has_more())),
            ("operations[].pids", named, cut_operations),
            ("process_tree", facts.processes.limit(), facts.processes.events_left_out()),
            ("process_tree[].execs", facts::MAX_EXECS as u64, execs_left_out),
            ("process_tree[].credentials", facts::MAX_CREDENTIALS as u64, credentials_left_out),
            ("files", facts.files.limit(), facts.files.events_left_out()),
            ("sockets", facts.sockets.limit(), facts.sockets.events_left_out()),
            ("dns", facts.dns.limit(), facts.dns.events_left_out()),
            ("operations", facts.operations.limit(), facts.operations.events_left_out()),
        ];
        let capped = lists.into_iter().filter(|(_, _, left_out)| *left_out > 0);
        caps.extend(capped.map(|(list, limit, events_left_out)| Cap {
            list: list.into(),
            limit,
            events_left_out,
        }));
    }
    caps.extend(budgets.iter().filter_map(Budget::cap));
    caps
}

/// Whether the exec that released the command is among the facts. On the host the engine knows the root's id.
fn saw_root_exec(fold: &ExecutionFold, vantage: Vantage, chain: &Chain) -> bool {
    let root = match fold.event(PhaseName::Started).map(|event| &event.phase) {
        Some(Phase::Started(started)) if vantage == Vantage::Host => started.root_pid,
        _ => None,
    };
    let mut execs = chain.facts.processes.iter().filter(|entry| !entry.value.execs.facts().is_empty());
    execs.any(|entry| root.is_none_or(|root| root == entry.key.tgid))
}

/// Why the receipt is not closed. Empty only when completeness is shown.
fn incomplete(
    fold: &ExecutionFold,
    watched: &[Watched<'_>],
    contradictions: &[Contradiction],
) -> Vec<Incomplete> {
    let mut found = BTreeSet::new();
    let mut say = |vantage, reason: &str, class, detail: String| {
        found.insert(Incomplete { vantage, reason: reason.into(), class, detail });
    };
    for contradiction in contradictions {
        let said = contradiction.said.iter().map(|said| format!("{}: {}", said.vantage, said.says));
        let said: Vec<String> = said.collect();
        say(None, "contradiction", None, format!("{} ({})", contradiction.kind, said.join("; ")));
    }
    for phase in [PhaseName::Requested, PhaseName::Admitted, PhaseName::Claimed, PhaseName::Prepared] {
        if !fold.has(phase) {
            say(None, "lifecycle_missing", None, format!("there is no `{}` event", phase.as_str()));
        }
    }
    if !fold.has(PhaseName::Exited) && !fold.has(PhaseName::Failed) {
        say(None, "lifecycle_missing", None, "there is neither an `exited` nor a `failed` event".into());
    }
    if fold.profiled().is_none() {
        say(None, "lifecycle_missing", None, "there is no `profiled` event".into());
    }
    if !fold.has(PhaseName::Sealed) {
        say(None, "lifecycle_missing", None, "there is no `sealed` event".into());
    }
    if fold.claim_disputed {
        say(
            None,
            "lifecycle_conflict",
            None,
            "two nodes claim the execution, so the frames of neither count".into(),
        );
    }
    for phase in &fold.conflicting_phases {
        let detail = format!("there are several `{}` events that differ", phase.as_str());
        say(None, "lifecycle_conflict", None, detail);
    }
    if let Some(LifecycleEvent { phase: Phase::Closed(closed), .. }) = fold.event(PhaseName::Closed)
        && closed.reason == ClosedReason::ProducerDead
    {
        say(None, "producer_dead", None, "the producer ended before it sealed the execution".into());
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
        let reasons: Vec<&str> = missing.map(|missing| missing.reason.as_str()).collect();
        let missing_reason = || (!reasons.is_empty()).then(|| reasons.join("; "));
        let no_seal = || missing_reason().unwrap_or_else(|| "no seal came".into());
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
        if fold.has(PhaseName::Exited) && !saw_root_exec(fold, attached.vantage, chain) {
            let detail = "the command ended, but its program was never seen to start".to_owned();
            say(vantage, "exec_missing", Some(Class::Process), detail);
        }
        let told = fold.sealed().into_iter().flat_map(|sealed| &sealed.vantages);
        let told: Vec<_> = told.filter(|told| told.vantage == attached.vantage).collect();
        if told.is_empty() && chain.seal().is_some() {
            let detail = missing_reason().unwrap_or_else(|| "the engine names no seal".into());
            say(vantage, "seal_missing", None, detail);
        }
        for told in told {
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
