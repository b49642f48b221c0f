//! The entries of the receipt's lists of facts, and how much of them it holds.

use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::errno::result_name;
use glasshouse_schema::event::{self, ExecFlags, PathFlags, SocketOperation};
use glasshouse_schema::receipt::{Cap, CredentialChange, Dns, Exec, File, Operation, Process, Socket, Usage};
use glasshouse_schema::time::rfc3339;
use glasshouse_schema::{Vantage, words};

use crate::capped::Entry;
use crate::chain::Chain;
use crate::facts::{self, ByStart, CredentialFact, ExecFact, Named, ProcessFacts};
use crate::files::{ChangeFacts, Deed, FileFacts};
use crate::sockets::{Outcomes, SocketFacts};

fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn texts(argv: &[Vec<u8>]) -> Vec<String> {
    argv.iter().map(|argument| text(argument)).collect()
}

/// Keeps the entries of a list that sort first, until their text is all that the list may take.
pub(crate) struct Budget {
    list: &'static str,
    bytes: u64,
    left: u64,
    events_left_out: u64,
}

impl Budget {
    pub(crate) fn new(list: &'static str, bytes: u64) -> Self {
        Self { list, bytes, left: bytes, events_left_out: 0 }
    }

    /// Adds the entry that `events` events are about, if there is room; once there is not, none is added.
    fn push<T>(&mut self, list: &mut Vec<T>, events: u64, entry: impl FnOnce() -> (T, u64)) {
        self.push_all(list, events, || {
            let (entry, bytes) = entry();
            ([entry], bytes)
        });
    }

    /// Adds entries that `events` events are about together, as [`Self::push`] does.
    fn push_all<T, E>(&mut self, list: &mut Vec<T>, events: u64, entries: impl FnOnce() -> (E, u64))
    where
        E: IntoIterator<Item = T>,
    {
        let entries = (self.left > 0).then(entries).filter(|(_, bytes)| *bytes <= self.left);
        match entries {
            Some((entries, bytes)) => {
                self.left -= bytes;
                list.extend(entries);
            }
            None => {
                self.left = 0;
                self.events_left_out = self.events_left_out.saturating_add(events);
            }
        }
    }

    pub(crate) fn cap(&self) -> Option<Cap> {
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

pub(crate) fn processes(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<Process> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        // What a process ran when it began, for the children that it forked before it ran anything else.
        let mut ran_at_start: BTreeMap<ByStart, &ExecFact> = BTreeMap::new();
        // Sorted by start, so a parent has been seen before its children.
        for Entry { key, value: facts, events, .. } in chain.facts.processes.sorted() {
            let inherited = facts.fork.and_then(|(forked_at, parent)| {
                let ran_then = chain
                    .facts
                    .processes
                    .get(&parent)
                    .and_then(|parent| last_before(parent.execs.facts(), forked_at));
                ran_then.or_else(|| ran_at_start.get(&parent).copied())
            });
            if let Some(exec) = inherited {
                ran_at_start.insert(*key, exec);
            }
            budget.push(&mut list, *events, || {
                let process = process(*vantage, chain, *key, facts, inherited);
                let bytes = process_bytes(&process);
                (process, bytes)
            });
        }
    }
    list
}

/// The last of `execs` at or before a time.
fn last_before(execs: &BTreeSet<Box<ExecFact>>, boot_ns: u64) -> Option<&ExecFact> {
    execs.iter().map(Box::as_ref).rfind(|exec| exec.boot_ns <= boot_ns)
}

/// About what a process takes in `process_tree` and `processes`.
fn process_bytes(process: &Process) -> u64 {
    let execs = process.execs.iter().map(|exec| {
        let words = exec.argv.iter().chain(&exec.exec_flags).chain(&exec.environment);
        150 + json_bytes(&exec.exe) + json_bytes(&exec.working_dir) + all_json_bytes(words)
    });
    600 + json_bytes(&process.exe)
        + all_json_bytes(process.exec_flags.iter().chain(&process.environment))
        + 200 * process.credentials.len() as u64
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
    let execs = facts.execs.facts();
    let last = execs.last().map(Box::as_ref);
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
        exec_flags: fact.flags.names().map(str::to_owned).collect(),
        environment: texts(&fact.env),
    };
    let credentials = |fact: &CredentialFact| CredentialChange {
        time: rfc3339(chain.unix_ns(fact.boot_ns)),
        uid: fact.uid,
        euid: fact.euid,
        gid: fact.gid,
        egid: fact.egid,
        capabilities: format!("{:016x}", fact.capabilities),
        gained: fact.gained,
    };
    let exec_flags = execs.iter().fold(ExecFlags::default(), |flags, exec| flags.with(exec.flags));
    let environment: BTreeSet<&Vec<u8>> = execs.iter().flat_map(|exec| &exec.env).collect();
    Process {
        pid: key.tgid,
        ppid: parent.or(execs.first().map(|exec| exec.ppid)).unwrap_or(0),
        exe: program.map(|exec| text(&exec.exe)).unwrap_or_default(),
        argv: program.map(|exec| texts(&exec.argv)).unwrap_or_default(),
        working_dir: program.map(|exec| text(&exec.cwd)).unwrap_or_default(),
        start_time: rfc3339(chain.unix_ns(key.start_boot_ns)),
        end_time: exit.map(|exit| rfc3339(chain.unix_ns(exit.boot_ns))),
        exit_code: code,
        signal,
        execs: if execs.len() > 1 { execs.iter().map(|fact| exec(fact)).collect() } else { Vec::new() },
        forked_only: last.is_none(),
        argv_truncated: program.is_some_and(|exec| exec.argv_truncated),
        exe_flags: program.map(|exec| flags(PathFlags(exec.exe_flags))).unwrap_or_default(),
        uid: program.map(|exec| exec.uid),
        gid: program.map(|exec| exec.gid),
        exec_flags: exec_flags.names().map(str::to_owned).collect(),
        environment: environment.into_iter().map(|name| text(name)).collect(),
        environment_truncated: execs.iter().any(|exec| exec.env_truncated),
        credentials: facts.credentials.facts().iter().map(|fact| credentials(fact)).collect(),
        usage: exit.and_then(|exit| usage(exit.usage)),
        vantage,
    }
}

/// Frames of version 1 have none, and no process uses nothing.
fn usage(usage: event::Usage) -> Option<Usage> {
    (usage != event::Usage::default()).then(|| Usage {
        user_us: (usage.user_ns / 1_000).min(MAX_INTEGER),
        system_us: (usage.system_ns / 1_000).min(MAX_INTEGER),
        max_rss_kb: usage.max_rss_kib.min(MAX_INTEGER),
        minor_faults: usage.minor_faults.min(MAX_INTEGER),
        major_faults: usage.major_faults.min(MAX_INTEGER),
    })
}

pub(crate) fn files(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<File> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        for Entry { key: path, value: facts, events, .. } in chain.facts.files.sorted() {
            budget.push(&mut list, *events, || {
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
    let others = [
        &file.renamed_to,
        &file.renamed_from,
        &file.linked_to,
        &file.linked_from,
        &file.symlink_targets,
        &file.mounted_from,
        &file.modes,
    ];
    600 + 4 * json_bytes(&file.path)
        + file.path_hex.as_deref().map_or(0, json_bytes)
        + others.into_iter().map(all_json_bytes).sum::<u64>()
        + 40 * (file.errors.len() + file.changes.len()) as u64
        + 11 * file.by.values().map(Vec::len).sum::<usize>() as u64
}

/// Which processes did what, turned around to be read by deed.
fn by(deeds: &Named<u32, u16>) -> BTreeMap<String, Vec<u32>> {
    let done = deeds.iter().fold(0, |done, (_, deeds)| done | deeds);
    let mut by = BTreeMap::new();
    // Not collected: that would sort a list of what is in order first, for every file.
    for (deed, name) in Deed::NAMES.into_iter().filter(|(deed, _)| done & *deed as u16 != 0) {
        let pids = deeds.iter().filter(|(_, deeds)| **deeds & deed as u16 != 0).map(|(pid, _)| *pid);
        by.insert(name.to_owned(), pids.collect());
    }
    by
}

fn file(vantage: Vantage, path: &[u8], file: &FileFacts) -> File {
    let errors = file
        .errors
        .iter()
        .map(|((what, result), count)| (format!("{} {}", what.as_str(), result_name(*result)), *count));
    let unchanged = ChangeFacts::default();
    let changed = file.changed.as_deref().unwrap_or(&unchanged);
    let written = file.written.as_deref().copied().unwrap_or_default();
    let names = |named: &Named<facts::Path, (), 1>| named.keys().map(|path| text(path)).collect();
    File {
        path: text(path),
        path_hex: std::str::from_utf8(path)
            .is_err()
            .then(|| path.iter().map(|byte| format!("{byte:02x}")).collect()),
        reads: file.reads,
        writes: written.writes,
        path_only: written.path_only,
        creates: written.creates,
        created: written.created,
        read_calls: file.read_calls,
        write_calls: written.write_calls,
        bytes_read: file.bytes_read,
        bytes_written: written.bytes_written,
        deletes: changed.deletes,
        renames: changed.renames,
        exchanges: changed.exchanges,
        changes: changed.changes.iter().map(|(change, count)| (change.as_str().to_owned(), *count)).collect(),
        modes: changed.modes.keys().map(|mode| format!("{mode:o}")).collect(),
        linked_to: names(&changed.linked_to),
        linked_from: names(&changed.linked_from),
        symlink_targets: names(&changed.symlink_targets),
        mounted_from: names(&changed.mounted_from),
        renamed_to: names(&changed.renamed_to),
        renamed_from: names(&changed.renamed_from),
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

/// Results by name; names of several numbers add up.
fn results<'r, R: 'r, W: Into<String>>(
    results: &'r BTreeMap<R, u64>,
    word: impl Fn(&'r R) -> W,
) -> BTreeMap<String, u64> {
    results.iter().fold(BTreeMap::new(), |mut words, (result, count)| {
        facts::add(words.entry(word(result).into()).or_default(), *count);
        words
    })
}

pub(crate) fn sockets(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<Socket> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        for Entry { key: (dst, protocol), value: socket, events, .. } in chain.facts.sockets.sorted() {
            // An address has its entries together or not at all, so its events are counted once.
            budget.push_all(&mut list, *events, || {
                let entries = socket_entries(*vantage, dst, protocol, socket);
                let bytes = entries.iter().map(socket_bytes).sum();
                (entries, bytes)
            });
        }
    }
    list
}

fn socket_entries(vantage: Vantage, dst: &str, protocol: &str, facts: &SocketFacts) -> Vec<Socket> {
    let of_traffic = facts.of_traffic();
    let entry = |operation: Option<SocketOperation>, outcomes: &Outcomes| {
        let traffic = facts.traffic.as_ref().filter(|_| operation == of_traffic);
        Socket {
            dst: dst.to_owned(),
            protocol: protocol.to_owned(),
            operation: operation.map_or("traffic", SocketOperation::as_str).into(),
            results: results(&outcomes.results, |result| result_name(*result)),
            pids: facts.pids(operation).keys().copied().collect(),
            sends: traffic.map(|traffic| traffic.sends),
            receives: traffic.map(|traffic| traffic.receives),
            bytes_sent: traffic.map(|traffic| traffic.bytes_sent),
            bytes_received: traffic.map(|traffic| traffic.bytes_received),
            vantage,
        }
    };
    let operations = facts.operations.iter().map(|(operation, outcomes)| entry(Some(*operation), outcomes));
    let alone = (facts.traffic.is_some() && of_traffic.is_none()).then(|| entry(None, &Outcomes::default()));
    operations.chain(alone).collect()
}

/// About what a socket takes in `sockets` and in the two lists of `network`.
fn socket_bytes(socket: &Socket) -> u64 {
    let each = json_bytes(&socket.dst) + json_bytes(&socket.protocol);
    300 + 2 * each + (120 + each) * socket.results.len() as u64 + 11 * socket.pids.len() as u64
}

pub(crate) fn dns(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<Dns> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        for Entry { key: (server, name, query_type), value: facts, events, .. } in chain.facts.dns.sorted() {
            budget.push(&mut list, *events, || {
                let dns = Dns {
                    server: server.clone(),
                    name: text(name),
                    query_type: words::dns_type(*query_type).into_owned(),
                    answers: facts.answers.keys().map(ToString::to_string).collect(),
                    results: results(&facts.outcomes.results, |code| words::dns_result(*code)),
                    pids: facts.outcomes.pids.keys().copied().collect(),
                    vantage: *vantage,
                };
                let bytes = 150
                    + json_bytes(&dns.server)
                    + json_bytes(&dns.name)
                    + all_json_bytes(&dns.answers)
                    + 40 * dns.results.len() as u64
                    + 11 * dns.pids.len() as u64;
                (dns, bytes)
            });
        }
    }
    list
}

pub(crate) fn operations(chains: &[(Vantage, &Chain)], budget: &mut Budget) -> Vec<Operation> {
    let mut list = Vec::new();
    for (vantage, chain) in chains {
        for Entry { key: (operation, value, target), value: facts, events, .. } in
            chain.facts.operations.sorted()
        {
            budget.push(&mut list, *events, || {
                let operation = Operation {
                    operation: operation.as_str().into(),
                    detail: words::operation_detail(*operation, *value),
                    target: (*target != 0).then_some(*target),
                    count: (*events).min(MAX_INTEGER),
                    results: results(&facts.results, |result| result_name(*result)),
                    pids: facts.pids.keys().copied().collect(),
                    vantage: *vantage,
                };
                let bytes = 250 + 40 * operation.results.len() as u64 + 11 * operation.pids.len() as u64;
                (operation, bytes)
            });
        }
    }
    list
}
