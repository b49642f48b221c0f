//! The finished receipt: every list sorted, every missing thing named.

use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::errno::result_name;
use glasshouse_schema::event::{Class, PathFlags};
use glasshouse_schema::lifecycle::{
    Attached, ClosedReason, Exited, Failed, LifecycleEvent, Outcome, Phase, PhaseName,
};
use glasshouse_schema::receipt::{
    Artifacts, Attempt, Cap, ChainHead, ClassCoverage, Completeness, Connection, Coverage, Exec, Execution,
    File, Filesystem, FlatProcess, Incomplete, MAX_RECEIPT_BYTES, Network, ProbeCost, Process, Provenance,
    Receipt, Redaction, Resources, Socket, Syscalls, Timing, VantageCoverage,
};
use glasshouse_schema::time::rfc3339;
use glasshouse_schema::{ids::Vantage, version};

use crate::ExecutionFold;
use crate::chain::{Chain, ChainKey};
use crate::facts::{self, ByStart, Deed, ExecFact, FileFacts, Named, ProcessFacts};

/// Bytes of JSON that `process_tree`, `files` and `sockets`, each with the established lists made from it, may take:
/// together they and the rest stay below what a reader takes. One long argument list and a hundred thousand forks
/// would otherwise do.
const MAX_LIST_BYTES: [u64; 3] = [24 << 20, 24 << 20, 4 << 20];
const _: () = assert!(MAX_LIST_BYTES[0] + MAX_LIST_BYTES[1] + MAX_LIST_BYTES[2] < MAX_RECEIPT_BYTES as u64);

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
    let [tree_bytes, file_bytes, socket_bytes] = MAX_LIST_BYTES;
    let mut budgets = [
        Budget::new("process_tree", tree_bytes),
        Budget::new("files", file_bytes),
        Budget::new("sockets", socket_bytes),
    ];
    let [of_tree, of_files, of_sockets] = &mut budgets;
    let processes = processes(&chains, of_tree);
    let files = files(&chains, of_files);
    let sockets = sockets(&chains, of_sockets);
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
        filesystem: filesystem(&files),
        network: network(&sockets),
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
            caps: caps(&chains, &budgets),
        },
        files,
        sockets,
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
                // Not the `closed` event: its time is that of the worker that gave the execution up.
                let told = fold.phases.iter().filter(|(name, _)| **name != PhaseName::Closed);
                let last = told.map(|(_, (_, event))| event).max_by_key(|event| event.unix_ns);
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
        end.resources = exited.rusage.map(|rusage| Resources {
            cpu_time_ms: rusage.cpu_time_ms.min(MAX_INTEGER),
            max_rss_kb: rusage.max_rss_kb.min(MAX_INTEGER),
        });
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
        Self {
            outcome,
            start_unix_ns,
            end_unix_ns,
            duration_ms,
            resources: None,
            artifacts: Artifacts::default(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn texts(argv: &[Vec<u8>]) -> Vec<String> {
    argv.iter().map(|argument| text(argument)).collect()
}

/// Keeps the entries of a list that sort first, until their text is all that the list may take.
struct Budget {
    list: &'static str,
    bytes: u64,
    left: u64,
    events_left_out: u64,
}

impl Budget {
    fn new(list: &'static str, bytes: u64) -> Self {
        Self { list, bytes, left: bytes, events_left_out: 0 }
    }

    /// Adds the entry that `events` events are about, if there is room; once there is not, none is added.
    fn push<T>(&mut self, list: &mut Vec<T>, events: u64, entry: impl FnOnce() -> (T, u64)) {
        let entry = (self.left > 0).then(entry).filter(|(_, bytes)| *bytes <= self.left);
        match entry {
            Some((entry, bytes)) => {
                self.left -= bytes;
                list.push(entry);
            }
            None => {
                self.left = 0;
                self.events_left_out = self.events_left_out.saturating_add(events);
            }
        }
    }

    fn cap(&self) -> Option<Cap> {
        (self.events_left_out > 0).then(|| Cap {
            list: format!("{} (bytes)", self.list),
            limit: self.bytes,
            events_left_out: self.events_left_out,
        })
    }
}

/// How many bytes a string takes in JSON.
fn json_bytes(text: &str) -> u64 {
    let escaped = |byte| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<u64>() + 3
}

fn all_json_bytes<'t>(texts: impl IntoIterator<Item = &'t String>) -> u64 {
    texts.into_iter().map(|text| json_bytes(text)).sum()
}

fn processes(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<Process> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        // What a process ran when it began, for the children that it forked before it ran anything else.
        let mut ran_at_start: BTreeMap<ByStart, &ExecFact> = BTreeMap::new();
        // Sorted by start, so a parent has been seen before its children.
        for (key, facts, events) in chain.facts.processes.iter() {
            let inherited = facts.fork.and_then(|(forked_at, parent)| {
                let ran_then = chain
                    .facts
                    .processes
                    .get(&parent)
                    .and_then(|parent| last_before(&parent.execs, forked_at));
                ran_then.or_else(|| ran_at_start.get(&parent).copied())
            });
            if let Some(exec) = inherited {
                ran_at_start.insert(*key, exec);
            }
            budget.push(&mut list, events, || {
                let process = process(*vantage, chain, *key, facts, inherited);
                let bytes = process_bytes(&process);
                (process, bytes)
            });
        }
    }
    list
}

/// The last of `execs` at or before a time.
fn last_before(execs: &BTreeSet<ExecFact>, boot_ns: u64) -> Option<&ExecFact> {
    execs.iter().rfind(|exec| exec.boot_ns <= boot_ns)
}

/// About what a process takes in `process_tree` and `processes`.
fn process_bytes(process: &Process) -> u64 {
    let execs = process
        .execs
        .iter()
        .map(|exec| 100 + json_bytes(&exec.exe) + json_bytes(&exec.working_dir) + all_json_bytes(&exec.argv));
    400 + json_bytes(&process.exe)
        + json_bytes(&process.working_dir)
        + 2 * all_json_bytes(&process.argv)
        + execs.sum::<u64>()
}

/// `inherited` is what its parent ran when it forked: a process without a program of its own runs that.
fn process(
    vantage: Vantage,
    chain: &Chain,
    key: ByStart,
    facts: &ProcessFacts,
    inherited: Option<&ExecFact>,
) -> Process {
    let last = facts.execs.last();
    let program: Option<&ExecFact> = last.or(inherited);
    let parent = facts.fork.map(|(_, parent)| parent.tgid);
    let exit = facts.exit;
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
        exe_flags: program.map(|exec| flags(PathFlags(exec.exe_flags))).unwrap_or_default(),
        uid: program.map(|exec| exec.uid),
        gid: program.map(|exec| exec.gid),
        vantage,
    }
}

fn flat(process: &Process) -> FlatProcess {
    FlatProcess { pid: process.pid, ppid: process.ppid, cmd: process.argv.join(" ") }
}

fn filesystem(files: &[File]) -> Filesystem {
    let paths = |is: fn(&File) -> bool| {
        let paths: BTreeSet<&String> = files.iter().filter(|file| is(file)).map(|file| &file.path).collect();
        paths.into_iter().cloned().collect()
    };
    Filesystem {
        reads: paths(|file| file.reads > 0),
        writes: paths(|file| file.writes > 0 || !file.renamed_from.is_empty()),
        deletes: paths(|file| file.deletes > 0 || !file.renamed_to.is_empty()),
        policy_violations: Vec::new(),
    }
}

fn files(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<File> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        for (path, facts, events) in chain.facts.files.iter() {
            budget.push(&mut list, events, || {
                let file = file(*vantage, path, facts);
                let bytes = file_bytes(&file);
                (file, bytes)
            });
        }
    }
    list
}

/// About what a file takes in `files` and in the three lists of `filesystem`.
fn file_bytes(file: &File) -> u64 {
    200 + 4 * json_bytes(&file.path)
        + file.path_hex.as_deref().map_or(0, json_bytes)
        + all_json_bytes(file.renamed_to.iter().chain(&file.renamed_from))
        + 40 * file.errors.len() as u64
        + 11 * file.by.values().map(Vec::len).sum::<usize>() as u64
}

/// Which processes did what, turned around to be read by deed.
fn by(deeds: &Named<u32, u8>) -> BTreeMap<String, Vec<u32>> {
    let pids = |deed: Deed| -> Vec<u32> {
        deeds.iter().filter(|(_, deeds)| **deeds & deed as u8 != 0).map(|(pid, _)| *pid).collect()
    };
    let named = Deed::NAMES.into_iter().map(|(deed, name)| (name.to_owned(), pids(deed)));
    named.filter(|(_, pids)| !pids.is_empty()).collect()
}

fn file(vantage: Vantage, path: &[u8], file: &FileFacts) -> File {
    let errors = file.errors.iter().map(|((operation, result), count)| {
        (format!("{} {}", operation.as_str(), result_name(*result)), *count)
    });
    File {
        path: text(path),
        path_hex: std::str::from_utf8(path)
            .is_err()
            .then(|| path.iter().map(|byte| format!("{byte:02x}")).collect()),
        reads: file.reads,
        writes: file.writes,
        path_only: file.path_only,
        creates: file.creates,
        deletes: file.deletes,
        renamed_to: file.renamed_to.keys().map(|path| text(path)).collect(),
        renamed_from: file.renamed_from.keys().map(|path| text(path)).collect(),
        errors: errors.collect(),
        by: by(&file.deeds),
        flags: flags(PathFlags(file.flags)),
        vantage,
    }
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

fn network(sockets: &[Socket]) -> Network {
    let mut connections = BTreeSet::new();
    let mut attempts = BTreeSet::new();
    for Socket { dst, protocol, results, .. } in sockets {
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
    Network {
        connections: connections.into_iter().collect(),
        attempts: attempts.into_iter().collect(),
        bytes_sent: None,
        bytes_received: None,
    }
}

fn sockets(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<Socket> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        for ((dst, protocol), socket, events) in chain.facts.sockets.iter() {
            budget.push(&mut list, events, || {
                let results = socket.results.iter().map(|(result, count)| (result_name(*result), *count));
                let socket = Socket {
                    dst: dst.clone(),
                    protocol: protocol.clone(),
                    results: results.collect(),
                    pids: socket.pids.keys().copied().collect(),
                    vantage: *vantage,
                };
                let bytes = socket_bytes(&socket);
                (socket, bytes)
            });
        }
    }
    list
}

/// About what a socket takes in `sockets` and in the two lists of `network`.
fn socket_bytes(socket: &Socket) -> u64 {
    let each = json_bytes(&socket.dst) + json_bytes(&socket.protocol);
    200 + 2 * each + (120 + each) * socket.results.len() as u64 + 11 * socket.pids.len() as u64
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
        let execs_left_out = facts.processes.iter().map(|(_, process, _)| process.execs_left_out()).sum();
        let cut = |is_cut: fn(&FileFacts) -> bool| {
            facts.files.iter().filter(|(_, file, _)| is_cut(file)).count() as u64
        };
        let cut_sockets = facts.sockets.iter().filter(|(_, socket, _)| socket.pids.has_more).count() as u64;
        let named = facts::MAX_NAMED as u64;
        let lists = [
            ("files[].by", named, cut(|file| file.deeds.has_more)),
            ("files[].renamed_to", named, cut(|file| file.renamed_to.has_more)),
            ("files[].renamed_from", named, cut(|file| file.renamed_from.has_more)),
            ("sockets[].pids", named, cut_sockets),
            ("process_tree", facts.processes.limit(), facts.processes.events_left_out()),
            ("process_tree[].execs", facts::MAX_EXECS as u64, execs_left_out),
            ("files", facts.files.limit(), facts.files.events_left_out()),
            ("sockets", facts.sockets.limit(), facts.sockets.events_left_out()),
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
    let mut execs = chain.facts.processes.iter().filter(|(_, facts, _)| !facts.execs.is_empty());
    execs.any(|(process, _, _)| root.is_none_or(|root| root == process.tgid))
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
