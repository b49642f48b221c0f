//! What two receipts of the same workload must agree about: everything but what is dropped or replaced here.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Not facts about the workload: identities, clocks, costs, and the machine itself.
const DROPPED_AT_TOP: [&str; 10] = [
    "chain",
    "duration_ms",
    "end_time",
    "environment",
    "execution_id",
    "probe_cost",
    "resources",
    "start_time",
    "timestamp",
    "timing",
];
/// The same below the top: when a process ran and what it used, the machine's name, and which capabilities root has there.
const DROPPED_BELOW: [&str; 6] = ["start_time", "end_time", "time", "node", "usage", "capabilities"];
/// What depends on who was faster, by the end of its path. Events of one kind are collapsed when they are drained together:
/// only the sum is a fact, and that it adds up is checked by [`flaws`]. A thread that is waited for is met by a futex call
/// if it is still running.
const DROPPED_RACES: [&str; 4] =
    [".delivered", ".collapsed", "syscalls.counts.futex", "coverage.vantages.classes.syscall.observed"];
/// Fields that hold process ids, alone or in lists.
const PROCESS_IDS: [&str; 3] = ["pid", "ppid", "pids"];
/// An object of lists of process ids, by operation.
const PROCESS_IDS_BY: &str = "by";
/// The only lists whose order means something.
const ORDERED: &str = "argv";
/// Ports from here on are the kernel's choice.
const FIRST_EPHEMERAL_PORT: u16 = 32_768;

/// The facts of a receipt in lines that can be compared: the path of each value, a list's elements as wholes.
/// Paths that are elsewhere in another machine are replaced by what stands beside them.
pub(crate) fn facts(receipt: &Value, paths: &[(&str, &str)]) -> BTreeMap<String, usize> {
    let replace = Replace { paths, processes: labels(receipt) };
    let mut lines = BTreeMap::new();
    if let Value::Object(fields) = receipt {
        for (name, value) in fields.iter().filter(|(name, _)| !DROPPED_AT_TOP.contains(&name.as_str())) {
            flatten(name, &replace.value(name, value), &mut lines);
        }
    }
    lines
}

/// What one vantage point says of the command, out of the lists that name who says it. How long the files of /proc are is
/// the kernel's.
pub(crate) fn seen_from(vantage: &str, receipt: &Value) -> Value {
    let of = |list: &Value| -> Value {
        let mine = list.as_array().into_iter().flatten().filter(|entry| entry["vantage"] == vantage);
        mine.map(|entry| {
            let of_kernel = entry["path"].as_str().is_some_and(|path| path.starts_with("/proc/"));
            let dropped = |name: &str| name == "vantage" || (of_kernel && name == "bytes_read");
            let fields = entry.as_object().into_iter().flatten().filter(|(name, _)| !dropped(name));
            fields.map(|(name, value)| (name.clone(), value.clone())).collect::<Value>()
        })
        .collect()
    };
    let mut classes = of(&receipt["coverage"]["vantages"])[0]["classes"].clone();
    // Another machine has another clock to read, so a program may call the kernel or not; and no list is of it.
    classes.as_object_mut().map(|classes| classes.remove("syscall"));
    json!({
        "completeness": receipt["completeness"],
        "outcome": receipt["outcome"],
        "artifacts": receipt["artifacts"],
        "process_tree": of(&receipt["process_tree"]),
        "files": of(&receipt["files"]),
        "sockets": of(&receipt["sockets"]),
        "dns": of(&receipt["dns"]),
        "operations": of(&receipt["operations"]),
        "coverage": {"incomplete": of(&receipt["coverage"]["incomplete"]), "vantages": [{"classes": classes}]},
    })
}

/// How something was seen, not what was done: other kernels offer other hooks. The start of such a line, after the name of
/// the receipt.
const HOW_IT_WAS_SEEN: [&str; 2] = ["coverage.vantages.hooks: ", "coverage.vantages.blind_spots: "];

/// Whether a line tells how something was seen, not what was done.
pub(crate) fn is_means(line: &str) -> bool {
    HOW_IT_WAS_SEEN.iter().any(|start| line.contains(start))
}

/// One line for each difference, none if there are none.
pub(crate) fn differences(host: &BTreeMap<String, usize>, guest: &BTreeMap<String, usize>) -> Vec<String> {
    let only = |what: &str, these: &BTreeMap<String, usize>, those: &BTreeMap<String, usize>| {
        these
            .iter()
            .filter(|(line, count)| those.get(*line).is_none_or(|other| other < count))
            .map(|(line, _)| format!("only {what}: {line}"))
            .collect::<Vec<_>>()
    };
    let mut all = only("on the host", host, guest);
    all.extend(only("in the guest", guest, host));
    all
}

/// In a flaw: the receipt says itself that something was lost.
pub(crate) const LOST: &str = "something was lost";

/// What is wrong with a receipt that should have seen everything: not closed, something lost, sums that do not add up.
pub(crate) fn flaws(receipt: &Value, closed: bool) -> Vec<String> {
    let mut flaws = Vec::new();
    let wanted = if closed { "closed" } else { "partial" };
    if receipt["completeness"] != wanted {
        flaws.push(format!(
            "it is {}, not {wanted}: {}",
            receipt["completeness"], receipt["coverage"]["incomplete"]
        ));
    }
    let vantages = receipt["coverage"]["vantages"].as_array();
    if vantages.is_none_or(Vec::is_empty) {
        flaws.push("it has no vantage".to_owned());
    }
    for vantage in vantages.into_iter().flatten() {
        for (class, counters) in vantage["classes"].as_object().into_iter().flatten() {
            let count = |name: &str| counters[name].as_str().and_then(|text| text.parse::<u64>().ok());
            let sum =
                count("delivered").zip(count("collapsed")).zip(count("lost")).map(|((a, b), c)| a + b + c);
            if count("observed") != sum || sum.is_none() {
                flaws.push(format!("{class}: the counters do not add up: {counters}"));
            }
            if count("lost") != Some(0) {
                flaws.push(format!("{class}: {LOST}: {counters}"));
            }
        }
    }
    flaws
}

/// A name for each process that is the same in every run: the order in which they began.
fn labels(receipt: &Value) -> BTreeMap<u64, String> {
    let mut processes: Vec<(&str, u64)> = receipt["process_tree"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|process| Some((process["start_time"].as_str()?, process["pid"].as_u64()?)))
        .collect();
    processes.sort_unstable();
    processes.iter().enumerate().map(|(index, (_, pid))| (*pid, format!("process {index}"))).collect()
}

struct Replace<'a> {
    paths: &'a [(&'a str, &'a str)],
    processes: BTreeMap<u64, String>,
}

impl Replace<'_> {
    fn value(&self, name: &str, value: &Value) -> Value {
        match value {
            Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| !DROPPED_BELOW.contains(&name.as_str()))
                .map(|(inner, value)| {
                    let name = if name == PROCESS_IDS_BY { "pids" } else { inner.as_str() };
                    (self.text(inner), self.value(name, value))
                })
                .collect(),
            Value::Array(elements) => {
                let mut elements: Vec<Value> =
                    elements.iter().map(|element| self.value(name, element)).collect();
                if name != ORDERED {
                    elements.sort_by_key(Value::to_string);
                }
                Value::Array(elements)
            }
            Value::Number(number) if PROCESS_IDS.contains(&name) => number
                .as_u64()
                .and_then(|pid| self.processes.get(&pid))
                .map_or("outside", String::as_str)
                .into(),
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        let text = self.paths.iter().fold(text.to_owned(), |text, (path, name)| text.replace(path, name));
        // A file of O_TMPFILE is called by its inode's number.
        if let Some((parent, number)) = text.rsplit_once("/#")
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            return format!("{parent}/#$INODE");
        }
        if let Some(rest) = text.strip_prefix("/proc/") {
            let after = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
            return if after.len() < rest.len() { format!("/proc/$PID{after}") } else { text };
        }
        match text.rsplit_once(':') {
            Some((address, port)) if port.parse::<u16>().is_ok_and(|port| port >= FIRST_EPHEMERAL_PORT) => {
                format!("{address}:$PORT")
            }
            _ => text,
        }
    }
}

fn flatten(path: &str, value: &Value, lines: &mut BTreeMap<String, usize>) {
    if DROPPED_RACES.iter().any(|end| path.ends_with(end)) {
        return;
    }
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                flatten(&format!("{path}.{name}"), value, lines);
            }
        }
        Value::Array(elements) if !elements.is_empty() && !path.ends_with(ORDERED) => {
            for element in elements {
                // A vantage is large: what differs in it is wanted, not all of it.
                if path.ends_with("vantages") {
                    flatten(path, element, lines);
                } else {
                    *lines.entry(format!("{path}: {element}")).or_default() += 1;
                }
            }
        }
        other => *lines.entry(format!("{path}: {other}")).or_default() += 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{differences, facts, flaws};

    fn receipt(directory: &str, pid: u64, port: u16, reads: u64) -> Value {
        json!({
            "execution_id": pid,
            "completeness": "closed",
            "process_tree": [
                {"pid": pid, "ppid": 1, "start_time": "1", "argv": [format!("{directory}/workload"), directory]},
            ],
            "files": [
                {"path": format!("{directory}/f"), "reads": reads, "by": {"read": [pid]}},
                {"path": format!("/proc/{pid}/comm"), "reads": 1, "by": {"read": [pid]}},
            ],
            "sockets": [{"dst": format!("127.0.0.1:{port}"), "pids": [pid]}],
            "coverage": {"incomplete": [], "vantages": [
                {"classes": {"file": {"observed": "2", "delivered": "1", "collapsed": "1", "lost": "0"}}},
            ]},
        })
    }

    #[test]
    fn another_machine_is_no_difference_and_another_fact_is_one() {
        let host = facts(&receipt("/dev/shm/x", 4000, 40_000, 1), &[("/dev/shm/x", "$DIR")]);
        assert!(
            differences(&host, &facts(&receipt("/tmp/work", 70, 50_000, 1), &[("/tmp/work", "$DIR")]))
                .is_empty()
        );
        let found =
            differences(&host, &facts(&receipt("/tmp/work", 70, 50_000, 2), &[("/tmp/work", "$DIR")]));
        assert_eq!(found.len(), 2, "{found:?}");
        let found = differences(&host, &facts(&receipt("/tmp/work", 70, 9, 1), &[("/tmp/work", "$DIR")]));
        assert_eq!(found.len(), 2, "a port that the workload chose is a fact: {found:?}");
    }

    #[test]
    fn a_fact_more_in_the_guest_is_a_difference_too() {
        let mut more = receipt("/a", 1, 9, 1);
        more["files"][1] = json!({"path": "/a/g"});
        let mut less = receipt("/a", 1, 9, 1);
        less["files"][1] = json!({"path": "/a/h"});
        let host = facts(&less, &[("/a", "$DIR")]);
        let found = differences(&host, &facts(&more, &[("/a", "$DIR")]));
        let line = |only: &str, name: &str| format!(r#"only {only}: files: {{"path":"$DIR/{name}"}}"#);
        assert_eq!(found, [line("on the host", "h"), line("in the guest", "g")]);
    }

    #[test]
    fn a_receipt_that_lost_something_or_does_not_add_up_is_flawed() {
        let mut one = receipt("/a", 1, 9, 1);
        assert!(flaws(&one, true).is_empty());
        assert_eq!(flaws(&one, false).len(), 1);
        one["coverage"]["vantages"][0]["classes"]["file"]["observed"] = json!("3");
        assert_eq!(flaws(&one, true).len(), 1);
        one["coverage"]["vantages"][0]["classes"]["file"]["lost"] = json!("1");
        assert_eq!(flaws(&one, true).len(), 1);
    }
}
