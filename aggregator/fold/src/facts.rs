//! The facts of one chain, as sets and sums.

use std::collections::BTreeSet;
use std::sync::Arc;

use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::event::{ExecFlags, FileChange, Operation, PathFlags, PathRef, Usage};
use glasshouse_schema::frame::{self, Body, Entry};
use glasshouse_schema::ids::{Digest, ProcessKey};

use smallvec::SmallVec;

use crate::capped::CappedMap;
use crate::files::{Deed, FileFacts};
use crate::sockets::{DnsFacts, Outcomes, SocketFacts, destination, protocol};

/// Entries of a receipt's lists; those that sort first stay and `coverage.caps` says how much was left out.
pub(crate) const MAX_PROCESSES: usize = 100_000;
pub(crate) const MAX_EXECS: usize = 1_000;
pub(crate) const MAX_CREDENTIALS: usize = 1_000;
pub(crate) const MAX_FILES: usize = 100_000;
pub(crate) const MAX_SOCKETS: usize = 10_000;
pub(crate) const MAX_DNS: usize = 10_000;
pub(crate) const MAX_OPERATIONS: usize = 10_000;
/// Processes, other names, modes or answers that are named at one entry.
pub(crate) const MAX_NAMED: usize = 64;

/// Most entries that a first frame makes room for.
const MAX_EXPECTED: usize = 1_024;

/// Negated `MAX_ERRNO` (`include/linux/err.h`): no result is below it.
pub(crate) const LAST_ERRNO: i32 = -4095;

/// Processes sort by their start, so that the first of an execution are the ones that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ByStart {
    pub(crate) start_boot_ns: u64,
    pub(crate) tgid: u32,
}

impl From<ProcessKey> for ByStart {
    fn from(key: ProcessKey) -> Self {
        Self { start_boot_ns: key.start_boot_ns, tgid: key.tgid }
    }
}

/// Paths are shared: an exec or a rename is ten bytes in a frame, and must not cost two whole paths here.
pub(crate) type Path = Arc<[u8]>;

#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) processes: CappedMap<ByStart, ProcessFacts>,
    pub(crate) files: CappedMap<Path, FileFacts>,
    /// By destination and protocol.
    pub(crate) sockets: CappedMap<(String, String), SocketFacts>,
    /// Bytes sent to and received from all peers, those that are not in the list included.
    pub(crate) traffic: Option<(u64, u64)>,
    /// By server, name and type.
    pub(crate) dns: CappedMap<(String, Vec<u8>, u16), DnsFacts>,
    /// By operation, value and target.
    pub(crate) operations: CappedMap<(Operation, u64, u32), Outcomes>,
    /// Digests of the paths that are longer than the probe carries: frames name one again, and it counts once.
    truncated_paths: BTreeSet<Digest>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            processes: CappedMap::new(MAX_PROCESSES),
            files: CappedMap::new(MAX_FILES),
            sockets: CappedMap::new(MAX_SOCKETS),
            traffic: None,
            dns: CappedMap::new(MAX_DNS),
            operations: CappedMap::new(MAX_OPERATIONS),
            truncated_paths: BTreeSet::new(),
        }
    }
}

/// What is known of a process. It has one fork and one exit; should a chain tell of several, the first fork and the
/// last exit count.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessFacts {
    /// Fork time and parent.
    pub(crate) fork: Option<(u64, ByStart)>,
    pub(crate) execs: FirstAndLast<ExecFact, MAX_EXECS>,
    pub(crate) credentials: FirstAndLast<CredentialFact, MAX_CREDENTIALS>,
    pub(crate) exit: Option<ExitFact>,
}

/// Facts in the order of their time: the first ones and the last, at most `LIMIT`.
#[derive(Debug, Clone)]
pub(crate) struct FirstAndLast<T, const LIMIT: usize> {
    /// In boxes: a node of the set has room for eleven.
    facts: BTreeSet<Box<T>>,
    events: u64,
}

impl<T, const LIMIT: usize> Default for FirstAndLast<T, LIMIT> {
    fn default() -> Self {
        Self { facts: BTreeSet::new(), events: 0 }
    }
}

impl<T: Ord, const LIMIT: usize> FirstAndLast<T, LIMIT> {
    fn insert(&mut self, fact: T) {
        self.events += 1;
        self.facts.insert(Box::new(fact));
        // The last one stays, because it is what the process is in the end. Whatever the order of arrival, the
        // first LIMIT - 1 and the last are what remains.
        if self.facts.len() > LIMIT
            && let (Some(last), Some(_)) = (self.facts.pop_last(), self.facts.pop_last())
        {
            self.facts.insert(last);
        }
    }

    pub(crate) fn facts(&self) -> &BTreeSet<Box<T>> {
        &self.facts
    }

    /// How many events are not in the list.
    pub(crate) fn left_out(&self) -> u64 {
        match self.facts.len() < LIMIT {
            true => 0,
            false => self.events.saturating_sub(LIMIT as u64),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExecFact {
    pub(crate) boot_ns: u64,
    pub(crate) ppid: u32,
    pub(crate) exe: Path,
    pub(crate) exe_flags: u8,
    pub(crate) cwd: Path,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) argv_truncated: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) env: Vec<Vec<u8>>,
    pub(crate) env_truncated: bool,
    pub(crate) flags: ExecFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CredentialFact {
    pub(crate) boot_ns: u64,
    pub(crate) uid: u32,
    pub(crate) euid: u32,
    pub(crate) gid: u32,
    pub(crate) egid: u32,
    pub(crate) capabilities: u64,
    pub(crate) gained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExitFact {
    pub(crate) boot_ns: u64,
    pub(crate) code: u8,
    pub(crate) signal: u8,
    pub(crate) usage: Usage,
}

/// What is named at one entry: the [`MAX_NAMED`] that sort first, in that order, and whether there were more.
#[derive(Debug, Clone)]
pub(crate) struct Named<K, V = (), const IN_PLACE: usize = 2> {
    /// Most have one or two, and these lie in place. One more than the limit says that there were more.
    entries: SmallVec<[(K, V); IN_PLACE]>,
}

impl<K, V, const IN_PLACE: usize> Default for Named<K, V, IN_PLACE> {
    fn default() -> Self {
        Self { entries: SmallVec::new() }
    }
}

impl<K: Ord, V: Default, const IN_PLACE: usize> Named<K, V, IN_PLACE> {
    pub(crate) fn change(&mut self, key: K, change: impl FnOnce(&mut V)) {
        // Processes come in about the order in which they sort.
        let at = match self.entries.last_mut() {
            Some((last, value)) if *last == key => return change(value),
            Some((last, _)) if *last > key => self.entries.binary_search_by(|(known, _)| known.cmp(&key)),
            _ => Err(self.entries.len()),
        };
        match at {
            Ok(at) => change(&mut self.entries[at].1),
            Err(at) if at > MAX_NAMED => {}
            Err(at) => {
                let mut value = V::default();
                change(&mut value);
                self.entries.insert(at, (key, value));
                self.entries.truncate(MAX_NAMED + 1);
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().take(MAX_NAMED).map(|(key, value)| (key, value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(crate) fn has_more(&self) -> bool {
        self.entries.len() > MAX_NAMED
    }
}

impl<K: Ord, const IN_PLACE: usize> Named<K, (), IN_PLACE> {
    pub(crate) fn insert(&mut self, key: K) {
        self.change(key, |()| ());
    }

    pub(crate) fn extend(&mut self, others: &Self)
    where
        K: Copy,
    {
        others.entries.iter().for_each(|(key, ())| self.insert(*key));
    }
}

/// Adds to a count that becomes a JSON number.
pub(crate) fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count).min(MAX_INTEGER);
}

/// The paths of a frame: one that becomes part of the facts is copied once, and its entry is looked for once.
struct Paths<'f> {
    paths: &'f frame::Paths,
    owned: Vec<Option<Path>>,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
enum Slot {
    Unknown,
    /// Where the path's entry lies; a path that sorts behind those that are kept has none.
    Known(Option<u32>),
}

impl<'f> Paths<'f> {
    fn of(paths: &'f frame::Paths) -> Self {
        Self { paths, owned: vec![None; paths.len()], slots: vec![Slot::Unknown; paths.len()] }
    }

    fn get(&self, index: u32) -> PathRef<'f> {
        self.paths.at(index)
    }

    fn own(&mut self, index: u32) -> Path {
        let path = self.paths.at(index).bytes;
        Arc::clone(self.owned[index as usize].get_or_insert_with(|| Arc::from(path)))
    }
}

impl Facts {
    /// Adds the events of a frame, whose indexes the decoder has checked.
    pub(crate) fn apply(&mut self, body: &Body<'_>) {
        let process = |index: u32| ByStart::from(body.processes[index as usize]);
        let at = |after_ns: u64| body.base_boot_ns.saturating_add(after_ns);
        let mut paths = Paths::of(&body.paths);
        // Slots are known until then.
        self.files.make_room();
        self.files.expect(body.paths.len().min(MAX_EXPECTED));
        self.processes.expect(body.processes.len().min(MAX_EXPECTED));

        for path in body.paths.iter().filter(|path| path.flags.contains(PathFlags::TRUNCATED)) {
            self.truncated_paths.insert(Digest::of(path.bytes));
        }
        while self.truncated_paths.len() > MAX_FILES {
            self.truncated_paths.pop_last();
        }
        for fork in &body.forks {
            let fact = (at(fork.after_ns), process(fork.process));
            self.process(process(fork.child), |child| {
                child.fork = Some(child.fork.map_or(fact, |known| known.min(fact)));
            });
        }
        for exec in &body.execs {
            let fact = ExecFact {
                boot_ns: at(exec.after_ns),
                ppid: exec.ppid,
                exe: paths.own(exec.exe),
                exe_flags: paths.get(exec.exe).flags.0,
                cwd: paths.own(exec.cwd),
                argv: exec.argv.iter().map(|argument| argument.to_vec()).collect(),
                argv_truncated: exec.argv_truncated,
                uid: exec.uid,
                gid: exec.gid,
                env: exec.env.iter().map(|name| name.to_vec()).collect(),
                env_truncated: exec.env_truncated,
                flags: exec.flags,
            };
            self.process(process(exec.process), |facts| facts.execs.insert(fact));
        }
        for exit in &body.exits {
            let boot_ns = at(exit.after_ns);
            let fact = ExitFact { boot_ns, code: exit.code, signal: exit.signal, usage: exit.usage };
            self.process(process(exit.process), |facts| facts.exit = facts.exit.max(Some(fact)));
        }
        for change in &body.credentials {
            let fact = CredentialFact {
                boot_ns: at(change.after_ns),
                uid: change.uid,
                euid: change.euid,
                gid: change.gid,
                egid: change.egid,
                capabilities: change.capabilities,
                gained: change.gained,
            };
            self.process(process(change.process), |facts| facts.credentials.insert(fact));
        }
        self.apply_files(body, &mut paths);
        for socket in &body.sockets {
            let pid = process(socket.process).tgid;
            let key = (destination(socket.address, socket.port), protocol(socket.port, socket.protocol));
            self.sockets.change(
                &key,
                || key.clone(),
                socket.count,
                |facts| {
                    facts.operations.entry(socket.operation).or_default().add(
                        pid,
                        socket.result,
                        socket.count,
                    );
                },
            );
        }
        for traffic in &body.traffic {
            let pid = process(traffic.process).tgid;
            let key = (destination(traffic.address, traffic.port), protocol(traffic.port, traffic.protocol));
            self.sockets.change(
                &key,
                || key.clone(),
                traffic.facts(),
                |facts| facts.transferred(pid, traffic),
            );
            let (sent, received) = self.traffic.get_or_insert_default();
            add(sent, traffic.sent_bytes);
            add(received, traffic.received_bytes);
        }
        for dns in &body.dns {
            let pid = process(dns.process).tgid;
            let key = (destination(dns.server, dns.port), dns.name.to_vec(), dns.query_type);
            self.dns.change(&key, || key.clone(), dns.count, |facts| facts.asked(pid, dns));
        }
        for operation in &body.operations {
            let pid = process(operation.process).tgid;
            let key = (operation.operation, operation.value, operation.target_tgid);
            let (result, count) = (operation.result, operation.count);
            self.operations.change(&key, || key, count, |facts| facts.add(pid, result, count));
        }
    }

    fn apply_files(&mut self, body: &Body<'_>, paths: &mut Paths<'_>) {
        let pid = |index: u32| body.processes[index as usize].tgid;
        for open in &body.opens {
            self.file(paths, open.path, open.count, |file, flags| {
                file.did(pid(open.process), Deed::of_open(open), flags);
                file.opened(open);
            });
        }
        for delete in &body.deletes {
            self.file(paths, delete.path, delete.count, |file, flags| {
                file.did(pid(delete.process), Deed::Delete.or_failed(delete.result), flags);
                file.deleted(delete);
            });
        }
        for rename in &body.renames {
            let pid = pid(rename.process);
            let (from, to) = (paths.own(rename.from), paths.own(rename.to));
            self.file(paths, rename.from, rename.count, |file, flags| {
                file.did(pid, Deed::Rename.or_failed(rename.result), flags);
                file.renamed_away(rename, to);
            });
            if rename.result >= 0 {
                self.file(paths, rename.to, rename.count, |file, flags| {
                    file.did(pid, Deed::Rename as u16, flags);
                    file.renamed_here(rename, from);
                });
            }
        }
        for change in &body.changes {
            let pid = pid(change.process);
            let other = change.other.map(|other| paths.own(other));
            self.file(paths, change.path, change.count, |file, flags| {
                file.did(pid, Deed::of_change(change), flags);
                file.changed(change, other);
            });
            // A link is told at the file that it names, too.
            if let (FileChange::Link, Some(existing), 0..) = (change.change, change.other, change.result) {
                let link = paths.own(change.path);
                self.file(paths, existing, change.count, |file, flags| {
                    file.did(pid, Deed::Change as u16, flags);
                    file.linked(link);
                });
            }
        }
        for io in &body.ios {
            self.file(paths, io.path, io.facts(), |file, flags| {
                file.did(pid(io.process), Deed::of_io(io), flags);
                file.transferred(io);
            });
        }
    }

    /// How many paths are longer than the probe carries.
    pub(crate) fn truncated_paths(&self) -> u64 {
        self.truncated_paths.len() as u64
    }

    fn process(&mut self, key: ByStart, change: impl FnOnce(&mut ProcessFacts)) {
        self.processes.change(&key, || key, 1, change);
    }

    fn file(
        &mut self,
        paths: &mut Paths<'_>,
        index: u32,
        events: u64,
        change: impl FnOnce(&mut FileFacts, PathFlags),
    ) {
        let PathRef { bytes, flags } = paths.get(index);
        let slot = match paths.slots[index as usize] {
            Slot::Known(slot) => slot,
            Slot::Unknown => {
                let slot = self.files.slot(bytes, || paths.own(index));
                paths.slots[index as usize] = Slot::Known(slot);
                slot
            }
        };
        if let Some(file) = self.files.at(slot, events) {
            change(file, flags);
        }
    }

    /// Whether nothing is beyond the limits.
    pub(crate) fn is_settled(&self) -> bool {
        self.processes.is_settled()
            && self.files.is_settled()
            && self.sockets.is_settled()
            && self.dns.is_settled()
            && self.operations.is_settled()
    }

    /// Lets go of what is beyond the limits, as a receipt does.
    pub(crate) fn settle(&mut self) {
        self.processes.settle();
        self.files.settle();
        self.sockets.settle();
        self.dns.settle();
        self.operations.settle();
    }
}
