//! The facts of one chain: processes, files and sockets, as sets and sums.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::event::{PathFlags, PathRef};
use glasshouse_schema::frame::{Body, Connect, Open};
use glasshouse_schema::ids::{Digest, ProcessKey};

use crate::capped::CappedMap;

/// Entries of a receipt's lists; those that sort first stay and `coverage.caps` says how much was left out.
pub(crate) const MAX_PROCESSES: usize = 100_000;
pub(crate) const MAX_EXECS: usize = 1_000;
pub(crate) const MAX_FILES: usize = 100_000;
pub(crate) const MAX_SOCKETS: usize = 10_000;
/// Processes named at one file or socket, and names that a file was renamed to or from.
pub(crate) const MAX_NAMED: usize = 64;

/// Negated `MAX_ERRNO` (`include/linux/err.h`): no result is below it.
const LAST_ERRNO: i32 = -4095;

/// `O_*` bits that are the same on x86-64 and arm64 (`include/uapi/asm-generic/fcntl.h`).
const O_ACCMODE: u32 = 0o3;
const O_WRONLY: u32 = 0o1;
const O_RDWR: u32 = 0o2;
const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const O_PATH: u32 = 0o10_000_000;
/// `O_TMPFILE` without its `O_DIRECTORY` bit, which differs between architectures.
const O_TMPFILE: u32 = 0o20_000_000;

/// Processes sort by their start, so that the first of an execution are the ones that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    pub(crate) sockets: CappedMap<(String, String), SocketFacts>,
    /// Digests of the paths that are longer than the probe carries: frames name one again, and it counts once.
    truncated_paths: BTreeSet<Digest>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            processes: CappedMap::new(MAX_PROCESSES),
            files: CappedMap::new(MAX_FILES),
            sockets: CappedMap::new(MAX_SOCKETS),
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
    /// The first execs and the last one, at most [`MAX_EXECS`].
    pub(crate) execs: BTreeSet<ExecFact>,
    exec_events: u64,
    pub(crate) exit: Option<ExitFact>,
}

impl ProcessFacts {
    fn exec(&mut self, fact: ExecFact) {
        self.exec_events += 1;
        self.execs.insert(fact);
        // The last one stays, because it is what the process is in the end. Whatever the order of arrival, the
        // first MAX_EXECS - 1 and the last are what remains.
        if self.execs.len() > MAX_EXECS
            && let (Some(last), Some(_)) = (self.execs.pop_last(), self.execs.pop_last())
        {
            self.execs.insert(last);
        }
    }

    /// How many execs are not in the list.
    pub(crate) fn execs_left_out(&self) -> u64 {
        match self.execs.len() < MAX_EXECS {
            true => 0,
            false => self.exec_events.saturating_sub(MAX_EXECS as u64),
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExitFact {
    pub(crate) boot_ns: u64,
    pub(crate) code: u8,
    pub(crate) signal: u8,
}

/// What was tried on a file, as a failure is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Open,
    Delete,
    Rmdir,
    Rename,
}

impl Operation {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Delete => "delete",
            Self::Rmdir => "rmdir",
            Self::Rename => "rename",
        }
    }
}

/// What a process did with a file, as bits.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Deed {
    Read = 1,
    Write = 1 << 1,
    Path = 1 << 2,
    Create = 1 << 3,
    Delete = 1 << 4,
    Rename = 1 << 5,
    Failed = 1 << 6,
}

impl Deed {
    pub(crate) const NAMES: [(Self, &'static str); 7] = [
        (Self::Read, "read"),
        (Self::Write, "write"),
        (Self::Path, "path"),
        (Self::Create, "create"),
        (Self::Delete, "delete"),
        (Self::Rename, "rename"),
        (Self::Failed, "failed"),
    ];

    const fn or_failed(self, result: i32) -> u8 {
        if result < 0 { Self::Failed as u8 } else { self as u8 }
    }

    /// What an open did. 3 as access mode asks for ioctl access only; it can neither read nor write, and reading is
    /// the nearest.
    const fn of_open(open: &Open) -> u8 {
        if open.result < 0 {
            return Self::Failed as u8;
        }
        if open.flags & O_PATH != 0 {
            return Self::Path as u8;
        }
        let access = match open.flags & O_ACCMODE {
            O_WRONLY => Self::Write as u8,
            O_RDWR => Self::Read as u8 | Self::Write as u8,
            // Emptying a file is writing to it, whatever it is opened for.
            _ if open.flags & O_TRUNC != 0 => Self::Read as u8 | Self::Write as u8,
            _ => Self::Read as u8,
        };
        if open.flags & (O_CREAT | O_TMPFILE) != 0 { access | Self::Create as u8 } else { access }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct FileFacts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) path_only: u64,
    pub(crate) creates: u64,
    pub(crate) deletes: u64,
    pub(crate) renamed_to: Named<Path>,
    pub(crate) renamed_from: Named<Path>,
    /// Failures per operation and negated errno.
    pub(crate) errors: BTreeMap<(Operation, i32), u64>,
    /// What each process did, as bits of [`Deed`].
    pub(crate) deeds: Named<u32, u8>,
    pub(crate) flags: u8,
}

impl FileFacts {
    /// Notes what a process did; of the processes those that sort first are kept.
    fn did(&mut self, pid: u32, deeds: u8, flags: PathFlags) {
        self.deeds.change(pid, |known| *known |= deeds);
        self.flags |= flags.0;
    }

    fn failed(&mut self, operation: Operation, result: i32, count: u64) {
        add(self.errors.entry((operation, result.max(LAST_ERRNO))).or_default(), count);
    }

    fn opened(&mut self, open: &Open) {
        let count = u64::from(open.count);
        if open.result < 0 {
            self.failed(Operation::Open, open.result, count);
            return;
        }
        let deeds = Deed::of_open(open);
        for (deed, sum) in [
            (Deed::Read, &mut self.reads),
            (Deed::Write, &mut self.writes),
            (Deed::Path, &mut self.path_only),
            (Deed::Create, &mut self.creates),
        ] {
            if deeds & deed as u8 != 0 {
                add(sum, count);
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SocketFacts {
    pub(crate) results: BTreeMap<i32, u64>,
    pub(crate) pids: Named<u32>,
}

/// What is named at one file or socket: the [`MAX_NAMED`] that sort first, and whether there were more.
#[derive(Debug, Clone)]
pub(crate) struct Named<K, V = ()> {
    entries: BTreeMap<K, V>,
    pub(crate) has_more: bool,
}

impl<K, V> Default for Named<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), has_more: false }
    }
}

impl<K: Ord, V: Default> Named<K, V> {
    fn change(&mut self, key: K, change: impl FnOnce(&mut V)) {
        change(self.entries.entry(key).or_default());
        if self.entries.len() > MAX_NAMED {
            self.entries.pop_last();
            self.has_more = true;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }
}

impl<K: Ord> Named<K> {
    fn insert(&mut self, key: K) {
        self.change(key, |()| ());
    }
}

/// Adds to a count that becomes a JSON number.
fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count).min(MAX_INTEGER);
}

/// The paths of a frame; one that becomes part of the facts is copied once.
struct Paths<'f> {
    paths: &'f [PathRef<'f>],
    owned: Vec<Option<Path>>,
}

impl<'f> Paths<'f> {
    fn get(&self, index: u32) -> PathRef<'f> {
        self.paths[index as usize]
    }

    fn own(&mut self, index: u32) -> Path {
        let bytes = self.paths[index as usize].bytes;
        Arc::clone(self.owned[index as usize].get_or_insert_with(|| Arc::from(bytes)))
    }
}

impl Facts {
    /// Adds the events of a frame, whose indexes the decoder has checked.
    pub(crate) fn apply(&mut self, body: &Body<'_>) {
        let process = |index: u32| ByStart::from(body.processes[index as usize]);
        let at = |after_ns: u64| body.base_boot_ns.saturating_add(after_ns);
        let mut paths = Paths { paths: &body.paths, owned: vec![None; body.paths.len()] };

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
            };
            self.process(process(exec.process), |facts| facts.exec(fact));
        }
        for exit in &body.exits {
            let fact = ExitFact { boot_ns: at(exit.after_ns), code: exit.code, signal: exit.signal };
            self.process(process(exit.process), |facts| facts.exit = facts.exit.max(Some(fact)));
        }
        for open in &body.opens {
            let pid = process(open.process).tgid;
            let flags = paths.get(open.path).flags;
            self.file(&mut paths, open.path, open.count, |file| {
                file.did(pid, Deed::of_open(open), flags);
                file.opened(open);
            });
        }
        for delete in &body.deletes {
            let pid = process(delete.process).tgid;
            let flags = paths.get(delete.path).flags;
            let operation = if delete.directory { Operation::Rmdir } else { Operation::Delete };
            self.file(&mut paths, delete.path, 1, |file| {
                file.did(pid, Deed::Delete.or_failed(delete.result), flags);
                match delete.result {
                    0.. => add(&mut file.deletes, 1),
                    error => file.failed(operation, error, 1),
                }
            });
        }
        for rename in &body.renames {
            let pid = process(rename.process).tgid;
            let (from, to) = (paths.own(rename.from), paths.own(rename.to));
            let (from_flags, to_flags) = (paths.get(rename.from).flags, paths.get(rename.to).flags);
            self.file(&mut paths, rename.from, 1, |file| {
                file.did(pid, Deed::Rename.or_failed(rename.result), from_flags);
                match rename.result {
                    0.. => file.renamed_to.insert(to),
                    error => file.failed(Operation::Rename, error, 1),
                }
            });
            if rename.result >= 0 {
                self.file(&mut paths, rename.to, 1, |file| {
                    file.did(pid, Deed::Rename as u8, to_flags);
                    file.renamed_from.insert(from);
                });
            }
        }
        for connect in &body.connects {
            let key = (destination(connect), protocol(connect));
            self.sockets.change(
                &key,
                || key.clone(),
                1,
                |socket| {
                    add(socket.results.entry(connect.result.clamp(LAST_ERRNO, 0)).or_default(), 1);
                    socket.pids.insert(process(connect.process).tgid);
                },
            );
        }
    }

    /// How many paths are longer than the probe carries.
    pub(crate) fn truncated_paths(&self) -> u64 {
        self.truncated_paths.len() as u64
    }

    fn process(&mut self, key: ByStart, change: impl FnOnce(&mut ProcessFacts)) {
        self.processes.change(&key, || key, 1, change);
    }

    fn file(&mut self, paths: &mut Paths<'_>, index: u32, events: u32, change: impl FnOnce(&mut FileFacts)) {
        let key = paths.get(index).bytes;
        self.files.change(key, || paths.own(index), events.into(), change);
    }
}

/// `address:port` (IPv6 in brackets; an IPv4 address in IPv6 clothes is that IPv4 address, so that one rule covers both),
/// a unix socket's path, or `@name` for an abstract one.
fn destination(connect: &Connect<'_>) -> String {
    use std::net::{IpAddr, SocketAddr};
    let address: Option<IpAddr> = match *connect.address {
        [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
        ref address => <[u8; 16]>::try_from(address).ok().map(IpAddr::from),
    };
    match (connect.port, address, connect.address) {
        (Some(port), Some(address), _) => SocketAddr::new(address.to_canonical(), port).to_string(),
        (None, _, [0, name @ ..]) => format!("@{}", String::from_utf8_lossy(name)),
        (_, _, path) => String::from_utf8_lossy(path).into_owned(),
    }
}

fn protocol(connect: &Connect<'_>) -> String {
    match (connect.port, connect.protocol) {
        (None, _) => "unix".into(),
        (_, 6) => "tcp".into(),
        (_, 17) => "udp".into(),
        (_, 58 | 1) => "icmp".into(),
        (_, other) => other.to_string(),
    }
}
