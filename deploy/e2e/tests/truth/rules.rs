//! Every way in which the two sets may differ, and why. A difference that no rule takes fails its program's test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::facts::{Fact, Facts, Kind};

/// Why a fact stands on one side only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Explained {
    /// `/proc/<pid>` and `/proc/<pid>/task/<tid>`: two runs have different process ids. Taken in pairs: as many facts with
    /// the ids left out on one side as on the other.
    ProcessId,
    /// A name that the program draws by lot ([`RANDOM_NAMES`]). Taken in pairs, as above.
    RandomName,
    /// A file that never had a name (`O_TMPFILE`) is `#inode`, and two runs make two inodes. Taken in pairs.
    Inode,
    /// `openat` of a pipe through `/proc/self/fd` (`/dev/stdin`): strace gives `pipe:[inode]`, the inode differing between
    /// two runs; the receipt gives a path of no letters, flagged `unlinked`, because a pipe has no name. Taken in pairs.
    Nameless,
    /// A program run from memory: `/memfd:name (deleted)` in `/proc/<pid>/fd`, which `-y` reads; the receipt gives
    /// `memfd:name`, flagged `unlinked`, because it lies in no directory. Taken in pairs.
    Memory,
    /// A script: strace shows what was given to execve, the receipt the program that the kernel then ran, which is the
    /// interpreter on the script's first line (or that one's interpreter). The script itself is among the opens.
    Interpreter,
    /// An exec through a symlink: strace shows what was given to execve, the receipt where it leads.
    Symlink,
    /// A connect with AF_UNSPEC takes an association back and contacts nobody: no attempt in the receipt.
    Disconnect,
    /// A connect whose address is shorter than one of its family is refused before it could contact anybody: no attempt
    /// in the receipt, and no address in strace's line (it gives the bytes as `sa_data`).
    NoAddress,
    /// An exec that failed ran nothing, and the receipt holds what ran.
    FailedExec,
    /// The receipt lists a failed rename at its old name, without the new one: compared up to that.
    RenameTarget,
    /// io_uring opened it in the kernel, without a system call that strace could stop at. Ours alone.
    IoUring,
    /// A sandbox refused what strace's run was free to do: the watched program said so and did not get that far.
    Refused,
    /// A 32-bit system call of a receipt that names them in `coverage` and is partial. strace's alone.
    Compat,
}

/// Letters before and how many letters by lot: temporary files of the compiler driver and of ar, git's temporary objects
/// and the file by which `git init` tries whether symlinks work.
const RANDOM_NAMES: [(&str, usize); 4] = [("cc", 6), ("st", 6), ("tmp_obj_", 6), ("t", 6)];

/// Whose fact it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Ours,
    Strace,
}

/// What a program's test says of its run before the rules are applied.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// Paths that only io_uring opens.
    pub(crate) by_io_uring: Vec<String>,
    /// Paths that only 32-bit calls touch.
    pub(crate) by_compat: Vec<String>,
    /// Paths that only refused calls would have touched.
    pub(crate) refused: Vec<String>,
    /// What the coverage says was passed beside the hooks.
    pub(crate) bypassed: Vec<String>,
}

impl Expected {
    fn names(&self, what: &str) -> bool {
        self.bypassed.iter().any(|bypassed| bypassed.contains(what))
    }
}

pub(crate) type Difference = (Side, Fact);

/// The differences of two sets: those that a rule takes, with it, and the rest.
pub(crate) fn judge(
    ours: &Facts,
    strace: &Facts,
    expected: &Expected,
) -> (Vec<(Explained, Difference)>, Vec<Difference>) {
    let only = |side, of: &Facts, other: &Facts| -> Vec<Difference> {
        of.keys().filter(|fact| !other.contains_key(fact)).map(|fact| (side, fact.clone())).collect()
    };
    let mut left = only(Side::Ours, ours, strace);
    left.extend(only(Side::Strace, strace, ours));
    let mut explained = Vec::new();

    for (rule, normal) in [
        (Explained::ProcessId, without_process_ids as fn(&Fact) -> Option<Fact>),
        (Explained::RandomName, without_random_names),
        (Explained::Inode, without_inodes),
        (Explained::Nameless, of_pipes),
        (Explained::Memory, of_memory),
    ] {
        let mut pairs: BTreeMap<Fact, [usize; 2]> = BTreeMap::new();
        for (side, fact) in &left {
            if let Some(normal) = normal(fact) {
                pairs.entry(normal).or_default()[*side as usize] += 1;
            }
        }
        left.retain(|(side, fact)| {
            let pair = normal(fact).and_then(|normal| pairs.get(&normal));
            let is_even = pair.is_some_and(|[ours, theirs]| ours == theirs);
            if is_even {
                explained.push((rule, (*side, fact.clone())));
            }
            !is_even
        });
    }

    let runs: BTreeMap<Side, BTreeSet<Run>> = [(Side::Ours, ours), (Side::Strace, strace)]
        .map(|(side, facts)| (side, facts.keys().filter_map(Run::of).collect()))
        .into();
    left.retain(|(side, fact)| {
        let rule = match (fact.kind, side) {
            // What strace was given must have led to something of ours, and something of ours come from there.
            (Kind::Exec, Side::Strace) if fact.what != "ok" => Some(Explained::FailedExec),
            (Kind::Exec, Side::Strace) => Run::of(fact).and_then(|run| {
                let is_ours = ours.contains_key(&fact.with_path(run.ran.clone()));
                is_ours.then_some(run.why)
            }),
            (Kind::Exec, Side::Ours) => {
                runs[&Side::Strace].iter().find(|run| run.ran == fact.path).map(|run| run.why)
            }
            (Kind::Connect, Side::Strace) if contains(&fact.path, "sa_family=AF_UNSPEC") => {
                Some(Explained::Disconnect)
            }
            (Kind::Connect, Side::Strace) if contains(&fact.path, "sa_data=") && fact.what == "EINVAL" => {
                Some(Explained::NoAddress)
            }
            (Kind::Rename, Side::Strace) if fact.what != "ok" => {
                let at_old_name = Fact { to: String::new(), ..fact.clone() };
                ours.contains_key(&at_old_name).then_some(Explained::RenameTarget)
            }
            (Kind::Rename, Side::Ours) if fact.what != "ok" => {
                let is_strace = |other: &Fact| Fact { to: String::new(), ..other.clone() } == *fact;
                strace.keys().any(is_strace).then_some(Explained::RenameTarget)
            }
            (_, Side::Strace) if is_one_of(&fact.path, &expected.refused) => Some(Explained::Refused),
            (Kind::Open, Side::Ours) => {
                is_one_of(&fact.path, &expected.by_io_uring).then_some(Explained::IoUring)
            }
            (_, Side::Strace) if is_one_of(&fact.path, &expected.by_compat) => {
                expected.names("compat").then_some(Explained::Compat)
            }
            _ => None,
        };
        explained.extend(rule.map(|rule| (rule, (*side, fact.clone()))));
        rule.is_none()
    });
    explained.sort();
    (explained, left)
}

fn contains(path: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(path).contains(text)
}

fn is_one_of(path: &[u8], paths: &[String]) -> bool {
    paths.iter().any(|one| one.as_bytes() == path)
}

/// What an exec of strace's leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    ran: Vec<u8>,
    why: Explained,
}

impl Run {
    /// As the kernel goes: through symlinks, then from interpreter to interpreter, at most five deep.
    fn of(fact: &Fact) -> Option<Self> {
        if fact.kind != Kind::Exec || fact.what != "ok" {
            return None;
        }
        let given = String::from_utf8(fact.path.clone()).ok()?;
        let mut ran = Path::new(&given).canonicalize().ok()?;
        let mut why = Explained::Symlink;
        for _ in 0..5 {
            let Some(interpreter) = interpreter(&ran) else { break };
            why = Explained::Interpreter;
            ran = Path::new(&interpreter).canonicalize().ok()?;
        }
        let ran = ran.into_os_string().into_encoded_bytes();
        (ran != fact.path).then_some(Self { ran, why })
    }
}

/// The program on a script's first line.
fn interpreter(script: &Path) -> Option<String> {
    use std::io::Read;
    let mut first = Vec::new();
    std::fs::File::open(script).ok()?.take(256).read_to_end(&mut first).ok()?;
    let line = first.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    String::from_utf8_lossy(line).split_whitespace().next().map(str::to_owned)
}

/// The fact with each name of its path changed, if any is.
fn renamed(fact: &Fact, change: impl Fn(&[&str], &str) -> Option<String>) -> Option<Fact> {
    let mut changed = false;
    let mut path = |path: &str| -> String {
        let mut names: Vec<&str> = Vec::new();
        let mut new = Vec::new();
        for name in path.split('/') {
            let other = change(&names, name);
            changed |= other.is_some();
            new.push(other.unwrap_or_else(|| name.to_owned()));
            names.push(name);
        }
        new.join("/")
    };
    let from = path(std::str::from_utf8(&fact.path).ok()?);
    let to = path(&fact.to);
    changed.then(|| Fact { to, ..fact.with_path(from) })
}

fn without_process_ids(fact: &Fact) -> Option<Fact> {
    renamed(fact, |before, name| {
        let is_id = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        let is_there = matches!(before, ["", "proc"] | ["", "proc", _, "task"]);
        (is_id && is_there).then(|| "<pid>".to_owned())
    })
}

fn without_random_names(fact: &Fact) -> Option<Fact> {
    renamed(fact, |_, name| {
        RANDOM_NAMES.into_iter().find_map(|(prefix, letters)| {
            let rest = name.strip_prefix(prefix)?;
            let (lot, end) = rest.split_at_checked(letters)?;
            let is_lot = lot.bytes().all(|byte| byte.is_ascii_alphanumeric());
            (is_lot && (end.is_empty() || end.starts_with('.'))).then(|| format!("{prefix}<lot>{end}"))
        })
    })
}

fn without_inodes(fact: &Fact) -> Option<Fact> {
    renamed(fact, |_, name| {
        let inode = name.strip_prefix('#')?;
        (!inode.is_empty() && inode.bytes().all(|byte| byte.is_ascii_digit())).then(|| "#<inode>".to_owned())
    })
}

fn of_pipes(fact: &Fact) -> Option<Fact> {
    let is_pipe = fact.path.is_empty() || fact.path.starts_with(b"pipe:[");
    (fact.kind == Kind::Open && is_pipe).then(|| fact.with_path("pipe"))
}

fn of_memory(fact: &Fact) -> Option<Fact> {
    let path = fact.path.strip_prefix(b"/").unwrap_or(&fact.path);
    path.starts_with(b"memfd:").then(|| fact.with_path(path))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn judged(ours: &[Fact], strace: &[Fact]) -> (Vec<Explained>, usize) {
        let set = |facts: &[Fact]| facts.iter().map(|fact| (fact.clone(), 1)).collect::<Facts>();
        let (explained, left) = judge(&set(ours), &set(strace), &Expected::default());
        (explained.into_iter().map(|(rule, _)| rule).collect(), left.len())
    }

    fn open(path: &str) -> Fact {
        Fact::new(Kind::Open, "read", path)
    }

    #[test]
    fn nothing_is_explained_by_being_alike() {
        assert_eq!(judged(&[open("/a")], &[open("/b")]), (vec![], 2));
        assert_eq!(judged(&[open("/etc/passwd")], &[]), (vec![], 1));
        assert_eq!(judged(&[], &[open("/data/12/maps")]), (vec![], 1));
    }

    #[test]
    fn pairs_are_taken_only_when_both_sides_have_as_many() {
        let [one, two, three] = ["/proc/1/maps", "/proc/2/maps", "/proc/3/maps"].map(open);
        let both = vec![Explained::ProcessId; 2];
        assert_eq!(judged(from_ref(&one), from_ref(&two)), (both, 0));
        assert_eq!(judged(from_ref(&one), &[two, three]), (vec![], 3));
        assert_eq!(judged(&[open("/proc/1/maps")], &[open("/proc/2/stat")]), (vec![], 2));
        assert_eq!(judged(&[open("/t/ccAbC123.s")], &[open("/t/ccZ9z9Z9.s")]).1, 0);
        assert_eq!(judged(&[open("/t/ccAbC123.s")], &[open("/t/ccZ9z9Z9.o")]).1, 2);
    }

    #[test]
    fn a_32_bit_call_is_explained_only_by_a_receipt_that_names_it() {
        let strace: Facts = [(open("/x"), 1)].into();
        let mut expected = Expected { by_compat: vec!["/x".into()], ..Expected::default() };
        assert_eq!(judge(&Facts::new(), &strace, &expected).1.len(), 1);
        expected.bypassed.push("compat syscalls: 3".into());
        assert_eq!(judge(&Facts::new(), &strace, &expected).1.len(), 0);
    }
}
