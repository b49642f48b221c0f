//! Receipts and verdicts for a person: a process tree with what each process touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use glasshouse_schema::receipt::{Completeness, Dns, File, Operation, Process, Receipt, Socket};
use glasshouse_schema::verdict::{Decision, RuleResult, Verdict};

/// The word of `coverage.incomplete` for what `contradictions` has.
const CONTRADICTION: &str = "contradiction";
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
    if let Some(image) = &receipt.environment.image {
        let _ = writeln!(
            out,
            "  image {}, sha256 {}",
            image.name.replace(char::is_control, "\u{fffd}"),
            image.digest
        );
    }
    if let Some(snapshot) = &receipt.environment.snapshot {
        let _ = writeln!(out, "  its machine was cloned from the snapshot {snapshot}");
    }
    let _ = writeln!(out, "  {completeness}");
    for contradiction in &receipt.contradictions {
        let _ = writeln!(out, "    contradiction: {}", contradiction.kind);
        for said in &contradiction.said {
            let _ = writeln!(out, "      {}: {}", said.vantage, said.says);
        }
    }
    for incomplete in receipt.coverage.incomplete.iter().filter(|why| why.reason != CONTRADICTION) {
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
    /// What stands before the files, because there is little of it and all of it matters.
    special: BTreeMap<u32, Vec<String>>,
    network: BTreeMap<u32, Vec<String>>,
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
        let mut special = BTreeMap::new();
        for operation in &receipt.operations {
            add_line(&mut special, &operation.pids, &operation_line(operation));
        }
        let mut network = BTreeMap::new();
        for dns in &receipt.dns {
            add_line(&mut network, &dns.pids, &dns_line(dns));
        }
        for socket in &receipt.sockets {
            add_line(&mut network, &socket.pids, &socket_line(socket));
        }
        Self { children, roots, processes, files, special, network, all }
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
        let mut lines = own_lines(process, self.all);
        lines.extend(self.special.get(&process.pid).into_iter().flatten().cloned());
        lines.extend(files.iter().filter_map(|file| file_line(file, process.pid, self.all)));
        lines.extend(self.network.get(&process.pid).into_iter().flatten().cloned());
        if !self.all && lines.len() > LIST_LINES {
            let more = lines.len() - LIST_LINES;
            lines.truncate(LIST_LINES);
            lines.push(format!("… and {more} more (--all shows them)"));
        }
        lines
    }
}

fn add_line(lines: &mut BTreeMap<u32, Vec<String>>, pids: &[u32], line: &str) {
    for pid in pids {
        lines.entry(*pid).or_default().push(line.to_owned());
    }
}

/// What is special about a process itself.
fn own_lines(process: &Process, all: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if !process.exec_flags.is_empty() {
        lines.push(format!("runs {}", process.exec_flags.join(", ")));
    }
    if !process.environment.is_empty() {
        lines.push(format!("with {} set", process.environment.join(", ")));
    }
    for change in process.credentials.iter().filter(|change| all || change.gained) {
        let gained = if change.gained { " (gained)" } else { "" };
        lines.push(format!(
            "becomes uid {} (effective {}), gid {} (effective {}), capabilities {}{gained}",
            change.uid, change.euid, change.gid, change.egid, change.capabilities
        ));
    }
    if let Some(usage) = process.usage.as_ref().filter(|_| all) {
        let ms = |us: u64| us / 1_000;
        lines.push(format!(
            "used {} ms user, {} ms system, {} at most, {} page faults",
            ms(usage.user_us),
            ms(usage.system_us),
            bytes(usage.max_rss_kb.saturating_mul(1024)),
            usage.minor_faults.saturating_add(usage.major_faults)
        ));
    }
    lines
}

/// Results but plain success.
fn outcome(results: &BTreeMap<String, u64>) -> String {
    let results: Vec<&str> = results.keys().map(String::as_str).collect();
    if results.is_empty() || results == ["ok"] {
        String::new()
    } else {
        format!(" -> {}", results.join(", "))
    }
}

fn operation_line(operation: &Operation) -> String {
    let detail = if operation.detail.is_empty() { String::new() } else { format!(" {}", operation.detail) };
    let target = operation.target.map(|target| format!(" of {target}")).unwrap_or_default();
    let times = if operation.count > 1 { format!(" x{}", operation.count) } else { String::new() };
    format!("{}{detail}{target}{times}{}", operation.operation, outcome(&operation.results))
}

fn dns_line(dns: &Dns) -> String {
    let answers = match dns.answers.is_empty() {
        true => {
            let codes = dns.results.keys().map(String::as_str).filter(|result| *result != "asked");
            codes.collect::<Vec<_>>().join(", ")
        }
        false => dns.answers.iter().take(4).cloned().collect::<Vec<_>>().join(", "),
    };
    let more = if dns.answers.len() > 4 { ", …" } else { "" };
    let answers = if answers.is_empty() { "no answer seen".into() } else { answers };
    format!("asks {} {} of {} -> {answers}{more}", dns.query_type, dns.name, dns.server)
}

fn socket_line(socket: &Socket) -> String {
    let results: Vec<&str> = socket.results.keys().map(String::as_str).collect();
    let results = if results.is_empty() { String::new() } else { format!(" -> {}", results.join(", ")) };
    let traffic = match (socket.bytes_sent, socket.bytes_received) {
        (Some(sent), Some(received)) => format!(" ({} sent, {} received)", bytes(sent), bytes(received)),
        _ => String::new(),
    };
    format!("{} {} {}{results}{traffic}", socket.operation, socket.protocol, socket.dst)
}

/// A number of bytes, to read.
fn bytes(count: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", count / unit, count % unit * 10 / unit),
        None => format!("{count} B"),
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
    if did("execute") && all {
        deeds.push("execute");
    }
    if did("change") {
        // That it was linked to is told at the link, and what maps it executable above.
        deeds.extend(file.changes.keys().map(String::as_str).filter(|change| *change != "map_executable"));
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
    let made_of = file.linked_from.first().or(file.symlink_targets.first());
    let changed = match (did("change"), made_of, file.mounted_from.first(), file.modes.is_empty()) {
        (true, Some(target), _, _) => format!(" -> {target}"),
        (true, None, Some(source), _) => format!(" <- {source}"),
        (true, None, None, false) => format!(" to {}", file.modes.join(", ")),
        _ => String::new(),
    };
    let errors = if all && did("failed") { format!(" ({errors})") } else { String::new() };
    Some(format!("{} {}{renamed}{changed}{}{errors}", deeds.join("+"), file.path, transferred(file)))
}

/// Bytes read and written, if one process alone did both: the receipt has them per file.
fn transferred(file: &File) -> String {
    let of = |deed: &str| file.by.get(deed).into_iter().flatten();
    let pids: BTreeSet<&u32> = of("read").chain(of("write")).collect();
    let (read, written) = (bytes(file.bytes_read), bytes(file.bytes_written));
    match (pids.len(), file.read_calls > 0, file.write_calls > 0) {
        (1, true, true) => format!(" ({read} read, {written} written)"),
        (1, true, false) => format!(" ({read})"),
        (1, false, true) => format!(" ({written})"),
        _ => String::new(),
    }
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
    let total = |of: fn(&File) -> u64| bytes(receipt.files.iter().map(of).fold(0, u64::saturating_add));
    let mut moved = Vec::new();
    if receipt.files.iter().any(|file| file.read_calls > 0 || file.write_calls > 0) {
        let (read, written) = (total(|file| file.bytes_read), total(|file| file.bytes_written));
        moved.push(format!("{read} read and {written} written in files"));
    }
    if let (Some(sent), Some(received)) = (receipt.network.bytes_sent, receipt.network.bytes_received) {
        moved.push(format!("{} sent and {} received", bytes(sent), bytes(received)));
    }
    if !moved.is_empty() {
        let _ = writeln!(out, "bytes: {}", moved.join("; "));
    }
    if !receipt.dns.is_empty() {
        let names: BTreeSet<&str> = receipt.dns.iter().map(|dns| dns.name.as_str()).collect();
        let _ = writeln!(out, "dns: {} names asked", names.len());
    }
    let mut operations: BTreeMap<&str, u64> = BTreeMap::new();
    for operation in &receipt.operations {
        let count = operations.entry(&operation.operation).or_default();
        *count = count.saturating_add(operation.count);
    }
    if !operations.is_empty() {
        let operations: Vec<String> =
            operations.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let _ = writeln!(out, "operations: {}", operations.join(", "));
    }
    let mut counts: Vec<(&String, &u64)> = receipt.syscalls.counts.iter().collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
    let shown = if all { counts.len() } else { 8 };
    let top: Vec<String> = counts.iter().take(shown).map(|(name, count)| format!("{name} {count}")).collect();
    let _ =
        writeln!(out, "syscalls: {}", if top.is_empty() { "none counted".into() } else { top.join(", ") });
    if !receipt.syscalls.denied.is_empty() {
        let _ = writeln!(out, "denied syscalls: {}", receipt.syscalls.denied.join(", "));
    }
    let given = [("given", &receipt.artifacts.files.inputs), ("kept", &receipt.artifacts.files.outputs)];
    for (what, file) in given.into_iter().flat_map(|(what, files)| files.iter().map(move |file| (what, file)))
    {
        let _ = writeln!(out, "{what}: {} ({}, {})", file.path, bytes(file.bytes), file.sha256.short());
    }
    for skipped in &receipt.artifacts.files.skipped {
        let _ = writeln!(out, "not kept: {}: {}", skipped.path, skipped.reason);
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

#[cfg(test)]
mod tests {
    use glasshouse_schema::lifecycle::Image;

    use super::*;

    /// What a person reads of one process that did something of everything.
    #[test]
    fn every_kind_of_fact_is_told_in_a_line() {
        let golden = include_str!("../../../schema/tests/golden/receipt-v0.4.json");
        let mut golden: Receipt = Receipt::decode(golden.as_bytes()).unwrap();
        golden.execution.node = None;
        golden.environment.snapshot = Some(glasshouse_schema::Digest::ZERO);
        golden.environment.image =
            Some(Image { name: "/images/root\n.img".into(), digest: glasshouse_schema::Digest::ZERO });
        let process = &mut golden.process_tree[0];
        process.signal = None;
        let file = golden.files[0].clone();
        let with = |path: &str, change: &dyn Fn(&mut File)| {
            let mut file = File {
                path: path.into(),
                renamed_to: Vec::new(),
                renamed_from: Vec::new(),
                linked_from: Vec::new(),
                symlink_targets: Vec::new(),
                mounted_from: Vec::new(),
                modes: Vec::new(),
                changes: BTreeMap::new(),
                read_calls: 0,
                write_calls: 0,
                ..file.clone()
            };
            change(&mut file);
            file
        };
        let by = |deed: &str, pids: &[u32]| BTreeMap::from([(deed.to_owned(), pids.to_vec())]);
        let changed = |file: &mut File, change: &str| {
            file.changes = BTreeMap::from([(change.to_owned(), 1)]);
            file.by = by("change", &[10]);
        };
        golden.files = vec![
            with("/data", &|file| (file.read_calls, file.bytes_read) = (3, 1_234_567)),
            with("/log", &|file| {
                (file.write_calls, file.bytes_written, file.by) = (2, 999, by("write", &[10]));
            }),
            with("/shared", &|file| (file.read_calls, file.by) = (1, by("read", &[10, 11]))),
            with("/tool", &|file| {
                changed(file, "chmod");
                file.modes = vec!["4755".into()];
            }),
            with("/soft", &|file| {
                changed(file, "symlink");
                file.symlink_targets = vec!["../data".into()];
            }),
            with("/mnt", &|file| {
                changed(file, "mount");
                file.mounted_from = vec!["tmpfs".into()];
            }),
            with("/linked", &|file| file.by = by("change", &[10])),
            with("/usr/lib/libc.so.6", &|file| file.by = by("execute", &[10])),
        ];
        let text = receipt(&golden, false);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let image =
            format!("\n  image /images/root\u{fffd}.img, sha256 {}\n", glasshouse_schema::Digest::ZERO);
        assert!(text.contains(&image), "{text}");
        let cloned = format!("its machine was cloned from the snapshot {}", glasshouse_schema::Digest::ZERO);
        for expected in [
            cloned.as_str(),
            "runs deleted, namespace:pid",
            "with LD_PRELOAD set",
            "becomes uid 1 (effective 2), gid 3 (effective 4), capabilities 000001ffffffffff (gained)",
            "signal SIGTERM of 99 x2 -> EPERM",
            "read /data (1.2 MB)",
            "write /log (999 B)",
            "read /shared",
            "chmod /tool to 4755",
            "symlink /soft -> ../data",
            "mount /mnt <- tmpfs",
            "asks A example.org of 10.0.0.1:53 -> 93.184.216.34",
            "connect tcp 127.0.0.1:80 -> ECONNREFUSED (3 B sent, 4 B received)",
            "dns: 1 names asked",
            "operations: signal 2",
        ] {
            assert!(lines.contains(&expected), "{expected:?} is missing in:\n{text}");
        }
        assert!(text.contains("written in files; 1 B sent and 2 B received"), "{text}");
        assert!(
            !text.contains("/linked") && !text.contains("libc") && !text.contains("page faults"),
            "{text}"
        );
        let all = receipt(&golden, true);
        assert!(all.contains("execute /usr/lib/libc.so.6") && all.contains("9 page faults"), "{all}");
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(
            [0, 999, 1_000, 1_960, 90_000, 5_000_000].map(bytes),
            ["0 B", "999 B", "1.0 kB", "1.9 kB", "90.0 kB", "5.0 MB"]
        );
        assert_eq!(bytes(u64::MAX), "18446744073.7 GB");
    }
}
