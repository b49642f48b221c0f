//! Receipts and verdicts for a person: a process tree with what each process touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use glasshouse_schema::receipt::{Completeness, File, Process, Receipt};
use glasshouse_schema::verdict::{Decision, RuleResult, Verdict};

/// Lines of one list before the rest is only counted.
const LIST_LINES: usize = 12;

/// The receipt as text. `all` shows what is usually noise: library and locale reads and failed attempts.
pub(crate) fn receipt(receipt: &Receipt, all: bool) -> String {
    let mut out = String::new();
    let outcome = match (&receipt.outcome.signal, &receipt.outcome.error) {
        (_, Some(error)) => format!("exit {}, {error}", receipt.exit_code),
        (Some(signal), None) => format!("exit {}, ended by {signal}", receipt.exit_code),
        (None, None) => format!("exit {}", receipt.exit_code),
    };
    let completeness = match receipt.completeness {
        Completeness::Closed => "closed: nothing is missing",
        Completeness::Partial => "partial: see below",
    };
    let _ = writeln!(out, "execution {}", receipt.execution_id);
    let _ = writeln!(
        out,
        "  {outcome}, {} ms ({} ms CPU), {} on {}",
        receipt.duration_ms,
        receipt.timing.cpu_time_ms,
        receipt.execution.backend,
        receipt.execution.node.as_ref().map_or("an unknown node", |node| node.as_str()),
    );
    let _ = writeln!(out, "  {completeness}");
    for incomplete in &receipt.coverage.incomplete {
        let class = incomplete.class.map(|class| format!(" {}", class.as_str())).unwrap_or_default();
        let _ = writeln!(out, "    missing: {}{class}: {}", incomplete.reason, incomplete.detail);
    }
    for (key, value) in &receipt.labels {
        let _ = writeln!(out, "  label {key}={value}");
    }
    out.push_str("\nprocesses\n");
    Tree::of(receipt, all).write(&mut out);
    summary(&mut out, receipt, all);
    out
}

/// The process tree: children under their parents, facts under the process that made them.
struct Tree<'r> {
    children: BTreeMap<usize, Vec<usize>>,
    roots: Vec<usize>,
    processes: &'r [Process],
    files: BTreeMap<u32, Vec<&'r File>>,
    sockets: BTreeMap<u32, Vec<String>>,
    all: bool,
}

impl<'r> Tree<'r> {
    fn of(receipt: &'r Receipt, all: bool) -> Self {
        let processes = &receipt.process_tree;
        let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut roots = Vec::new();
        // Processes come in the order of their start: the parent is the last one before with its pid.
        let mut latest: BTreeMap<u32, usize> = BTreeMap::new();
        for (index, process) in processes.iter().enumerate() {
            match latest.get(&process.ppid) {
                Some(parent) => children.entry(*parent).or_default().push(index),
                None => roots.push(index),
            }
            latest.insert(process.pid, index);
        }
        let mut files: BTreeMap<u32, Vec<&File>> = BTreeMap::new();
        for file in &receipt.files {
            let pids: BTreeSet<&u32> = file.by.values().flatten().collect();
            for pid in pids {
                files.entry(*pid).or_default().push(file);
            }
        }
        let mut sockets: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for socket in &receipt.sockets {
            let results: Vec<&str> = socket.results.keys().map(String::as_str).collect();
            let line = format!("connect {} {} -> {}", socket.protocol, socket.dst, results.join(", "));
            for pid in &socket.pids {
                sockets.entry(*pid).or_default().push(line.clone());
            }
        }
        Self { children, roots, processes, files, sockets, all }
    }

    fn write(&self, out: &mut String) {
        // A stack, because a tree may be as deep as its hundred thousand processes.
        let mut stack: Vec<(usize, String, bool)> =
            self.roots.iter().rev().map(|root| (*root, String::from("  "), true)).collect();
        while let Some((index, indent, is_last)) = stack.pop() {
            let process = &self.processes[index];
            let is_root = self.roots.contains(&index);
            let branch = match (is_root, is_last) {
                (true, _) => "",
                (false, true) => "└─ ",
                (false, false) => "├─ ",
            };
            let _ = writeln!(out, "{indent}{branch}{}", title(process));
            let below = match (is_root, is_last) {
                (true, _) => indent.clone(),
                (false, true) => format!("{indent}   "),
                (false, false) => format!("{indent}│  "),
            };
            let children = self.children.get(&index).map(Vec::as_slice).unwrap_or_default();
            let bar = if children.is_empty() { "     " } else { "│    " };
            for line in self.facts(process) {
                let _ = writeln!(out, "{below}{bar}{line}");
            }
            for (position, child) in children.iter().enumerate().rev() {
                stack.push((*child, below.clone(), position + 1 == children.len()));
            }
        }
    }

    fn facts(&self, process: &Process) -> Vec<String> {
        let files = self.files.get(&process.pid).map(Vec::as_slice).unwrap_or_default();
        let mut lines: Vec<String> =
            files.iter().filter_map(|file| file_line(file, process.pid, self.all)).collect();
        lines.extend(self.sockets.get(&process.pid).into_iter().flatten().cloned());
        if !self.all && lines.len() > LIST_LINES {
            let more = lines.len() - LIST_LINES;
            lines.truncate(LIST_LINES);
            lines.push(format!("… and {more} more (--all shows them)"));
        }
        lines
    }
}

fn title(process: &Process) -> String {
    let end = match (process.exit_code, process.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => format!("exit {code}"),
        (None, None) => "end not seen".into(),
    };
    let command = match process.argv.is_empty() {
        true => process.exe.clone(),
        false => process.argv.iter().map(|argument| shell_word(argument)).collect::<Vec<_>>().join(" "),
    };
    let command = match command.char_indices().nth(100) {
        Some((at, _)) => format!("{}…", &command[..at]),
        None => command,
    };
    let forked = if process.forked_only { " (fork)" } else { "" };
    format!("{} {command}{forked} [{end}]", process.pid)
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+<>".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\n', "⏎").replace('\'', "'\\''")),
    }
}

/// Paths that every program reads to start up.
fn is_noise(path: &str) -> bool {
    [
        "/usr/lib",
        "/lib",
        "/usr/share",
        "/etc/ld.so",
        "/proc/",
        "/sys/",
        "/dev/",
        "/usr/include",
        "/usr/local/lib",
        "/etc/locale",
    ]
    .iter()
    .any(|prefix| path.starts_with(prefix))
}

/// What one process did with a file, in one line; `None` for what is usually noise.
fn file_line(file: &File, pid: u32, all: bool) -> Option<String> {
    let did = |deed: &str| file.by.get(deed).is_some_and(|pids| pids.contains(&pid));
    let mut deeds: Vec<&str> =
        ["read", "write", "delete", "rename"].into_iter().filter(|deed| did(deed)).collect();
    if did("create")
        && let Some(write) = deeds.iter_mut().find(|deed| **deed == "write")
    {
        *write = "create";
    }
    if did("path") && all {
        deeds.push("path");
    }
    let errors = file.errors.keys().cloned().collect::<Vec<_>>().join(", ");
    if deeds.is_empty() {
        let refused = errors.contains("EACCES") || errors.contains("EPERM");
        return (did("failed") && (all || refused)).then(|| format!("{errors} {}", file.path));
    }
    let is_new_name = deeds == ["rename"] && file.renamed_to.is_empty();
    // A rename is told at the old name.
    let is_noise = file.path == "/dev/null" || (deeds == ["read"] && is_noise(&file.path));
    if !all && (is_new_name || is_noise) {
        return None;
    }
    let renamed = match (did("rename"), file.renamed_to.first(), file.renamed_from.first()) {
        (true, Some(to), _) => format!(" -> {to}"),
        (true, None, Some(from)) => format!(" <- {from}"),
        _ => String::new(),
    };
    let errors = if all && did("failed") { format!(" ({errors})") } else { String::new() };
    Some(format!("{} {}{renamed}{errors}", deeds.join("+"), file.path))
}

fn summary(out: &mut String, receipt: &Receipt, all: bool) {
    let filesystem = &receipt.filesystem;
    let _ = writeln!(
        out,
        "\nfiles: {} read, {} written, {} deleted; network: {} connected of {} attempts",
        filesystem.reads.len(),
        filesystem.writes.len(),
        filesystem.deletes.len(),
        receipt.network.connections.len(),
        receipt.network.attempts.len(),
    );
    let mut counts: Vec<(&String, &u64)> = receipt.syscalls.counts.iter().collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
    let shown = if all { counts.len() } else { 8 };
    let top: Vec<String> = counts.iter().take(shown).map(|(name, count)| format!("{name} {count}")).collect();
    let _ =
        writeln!(out, "syscalls: {}", if top.is_empty() { "none counted".into() } else { top.join(", ") });
    if !receipt.syscalls.denied.is_empty() {
        let _ = writeln!(out, "denied syscalls: {}", receipt.syscalls.denied.join(", "));
    }
    for redaction in &receipt.redactions {
        let _ = writeln!(out, "masked: {} by {}", redaction.count, redaction.rule);
    }
    for coverage in &receipt.coverage.vantages {
        let _ = writeln!(out, "coverage of {}:", coverage.attached.vantage);
        for (class, counters) in coverage.classes.iter().filter(|(_, counters)| counters.observed > 0) {
            let _ = writeln!(
                out,
                "  {class:<8} observed {} = delivered {} + collapsed {} + lost {}",
                counters.observed, counters.delivered, counters.collapsed, counters.lost
            );
        }
    }
    for chain in &receipt.chain {
        let _ =
            writeln!(out, "chain of {}: {} frames, head {}", chain.vantage, chain.frames, chain.head.short());
    }
}

/// A verdict as text.
pub(crate) fn verdict(verdict: &Verdict) -> String {
    let mut out = String::new();
    let decision = match verdict.decision {
        Decision::Allowed => "ALLOWED",
        Decision::Denied => "DENIED",
        Decision::Unknown => "UNKNOWN",
    };
    let _ = writeln!(
        out,
        "{decision} by {} {} ({})",
        verdict.policy.name,
        verdict.policy.version,
        verdict.policy.digest.short()
    );
    match &verdict.receipt_digest {
        Some(digest) => drop(writeln!(out, "  over receipt {} of {}", digest.short(), verdict.execution_id)),
        None => drop(writeln!(out, "  without a receipt of {}", verdict.execution_id)),
    }
    for rule in &verdict.rules {
        let (mark, reason) = match rule.result {
            RuleResult::Passed => ("pass", String::new()),
            RuleResult::Violated => ("FAIL", format!(": {}", rule.reason)),
            RuleResult::Unknown => ("?", format!(": {}", rule.reason)),
        };
        let _ = writeln!(out, "  {mark:<4} {}{reason}", rule.rule);
    }
    out
}
