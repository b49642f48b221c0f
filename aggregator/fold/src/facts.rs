//! The facts of one chain: processes, files and sockets, as sets and sums.

use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::errno::result_name;
use glasshouse_schema::event::{PathFlags, PathRef};
use glasshouse_schema::frame::{Body, Connect, Open};
use glasshouse_schema::ids::ProcessKey;

use crate::capped::CappedMap;

/// Entries of a receipt's lists; those that sort first stay and `coverage.caps` says how much was left out.
pub(crate) const MAX_PROCESSES: usize = 100_000;
pub(crate) const MAX_EXECS: usize = 1_000;
pub(crate) const MAX_FILES: usize = 100_000;
pub(crate) const MAX_SOCKETS: usize = 10_000;
/// Processes named at one file or socket, and names of one rename chain.
pub(crate) const MAX_NAMED: usize = 64;

/// `O_*` bits that are the same on x86-64 and arm64 (`include/uapi/asm-generic/fcntl.h`).
const O_ACCMODE: u32 = 0o3;
const O_WRONLY: u32 = 0o1;
const O_RDWR: u32 = 0o2;
const O_CREAT: u32 = 0o100;
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

#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) processes: CappedMap<ByStart, ProcessFacts>,
    pub(crate) files: CappedMap<Vec<u8>, FileFacts>,
    pub(crate) sockets: CappedMap<(String, String), SocketFacts>,
    pub(crate) truncated_paths: u64,
    pub(crate) execs_left_out: u64,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            processes: CappedMap::new(MAX_PROCESSES),
            files: CappedMap::new(MAX_FILES),
            sockets: CappedMap::new(MAX_SOCKETS),
            truncated_paths: 0,
            execs_left_out: 0,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessFacts {
    /// Fork time and parent.
    pub(crate) forks: BTreeSet<(u64, ByStart)>,
    pub(crate) execs: BTreeSet<ExecFact>,
    pub(crate) exits: BTreeSet<ExitFact>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExecFact {
    pub(crate) boot_ns: u64,
    pub(crate) ppid: u32,
    pub(crate) exe: Vec<u8>,
    pub(crate) cwd: Vec<u8>,
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

#[derive(Debug, Clone, Default)]
pub(crate) struct FileFacts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) path_only: u64,
    pub(crate) creates: u64,
    pub(crate) deletes: u64,
    pub(crate) renamed_to: BTreeSet<Vec<u8>>,
    pub(crate) renamed_from: BTreeSet<Vec<u8>>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) pids: BTreeSet<u32>,
    pub(crate) flags: u8,
}

impl FileFacts {
    /// Whether anything about the file succeeded.
    pub(crate) fn was_written(&self) -> bool {
        self.writes > 0 || !self.renamed_from.is_empty()
    }

    pub(crate) fn was_deleted(&self) -> bool {
        self.deletes > 0 || !self.renamed_to.is_empty()
    }

    fn touched(&mut self, pid: u32, flags: PathFlags) {
        keep_first(&mut self.pids, pid);
        self.flags |= flags.0;
    }

    fn failed(&mut self, operation: &str, result: i32) {
        *self.errors.entry(format!("{operation} {}", result_name(result))).or_default() += 1;
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SocketFacts {
    pub(crate) results: BTreeMap<i32, u64>,
    pub(crate) pids: BTreeSet<u32>,
}

/// Inserts, and keeps the [`MAX_NAMED`] entries that sort first.
fn keep_first<T: Ord>(set: &mut BTreeSet<T>, value: T) {
    set.insert(value);
    if set.len() > MAX_NAMED {
        set.pop_last();
    }
}

impl Facts {
    /// Adds the events of a frame, whose indexes the decoder has checked.
    pub(crate) fn apply(&mut self, body: &Body<'_>) {
        let process = |index: u32| ByStart::from(body.processes[index as usize]);
        let path = |index: u32| body.paths[index as usize];
        let at = |after_ns: u64| body.base_boot_ns.saturating_add(after_ns);
        let truncated = |path: &&PathRef<'_>| path.flags.contains(PathFlags::TRUNCATED);
        self.truncated_paths += body.paths.iter().filter(truncated).count() as u64;

        for fork in &body.forks {
            let parent = process(fork.process);
            self.processes.change(process(fork.child), 1, |child| {
                child.forks.insert((at(fork.after_ns), parent));
            });
        }
        for exec in &body.execs {
            let fact = ExecFact {
                boot_ns: at(exec.after_ns),
                ppid: exec.ppid,
                exe: path(exec.exe).bytes.to_vec(),
                cwd: path(exec.cwd).bytes.to_vec(),
                argv: exec.argv.iter().map(|argument| argument.to_vec()).collect(),
                argv_truncated: exec.argv_truncated,
                uid: exec.uid,
                gid: exec.gid,
            };
            let left_out = &mut self.execs_left_out;
            self.processes.change(process(exec.process), 1, |facts| {
                facts.execs.insert(fact);
                if facts.execs.len() > MAX_EXECS {
                    facts.execs.pop_last();
                    *left_out += 1;
                }
            });
        }
        for exit in &body.exits {
            let fact = ExitFact { boot_ns: at(exit.after_ns), code: exit.code, signal: exit.signal };
            self.processes.change(process(exit.process), 1, |facts| {
                facts.exits.insert(fact);
            });
        }
        for open in &body.opens {
            self.open(open, path(open.path), process(open.process).tgid);
        }
        for delete in &body.deletes {
            let name = path(delete.path);
            let operation = if delete.directory { "rmdir" } else { "delete" };
            self.files.change(name.bytes.to_vec(), 1, |file| {
                file.touched(process(delete.process).tgid, name.flags);
                match delete.result {
                    0.. => file.deletes += 1,
                    error => file.failed(operation, error),
                }
            });
        }
        for rename in &body.renames {
            let (from, to) = (path(rename.from), path(rename.to));
            let pid = process(rename.process).tgid;
            self.files.change(from.bytes.to_vec(), 1, |file| {
                file.touched(pid, from.flags);
                match rename.result {
                    0.. => keep_first(&mut file.renamed_to, to.bytes.to_vec()),
                    error => file.failed("rename", error),
                }
            });
            if rename.result >= 0 {
                self.files.change(to.bytes.to_vec(), 1, |file| {
                    file.touched(pid, to.flags);
                    keep_first(&mut file.renamed_from, from.bytes.to_vec());
                });
            }
        }
        for connect in &body.connects {
            let key = (destination(connect), protocol(connect));
            self.sockets.change(key, 1, |socket| {
                *socket.results.entry(connect.result.min(0)).or_default() += 1;
                keep_first(&mut socket.pids, process(connect.process).tgid);
            });
        }
    }

    fn open(&mut self, open: &Open, path: PathRef<'_>, pid: u32) {
        let count = u64::from(open.count);
        self.files.change(path.bytes.to_vec(), count, |file| {
            file.touched(pid, path.flags);
            if open.result < 0 {
                *file.errors.entry(format!("open {}", result_name(open.result))).or_default() += count;
                return;
            }
            if open.flags & O_PATH != 0 {
                file.path_only += count;
                return;
            }
            match open.flags & O_ACCMODE {
                O_WRONLY => file.writes += count,
                O_RDWR => {
                    file.reads += count;
                    file.writes += count;
                }
                // 3 asks for ioctl access only; it can neither read nor write, and reading is the nearest.
                _ => file.reads += count,
            }
            if open.flags & (O_CREAT | O_TMPFILE) != 0 {
                file.creates += count;
            }
        });
    }
}

/// `address:port` (IPv6 in brackets), a unix socket's path, or `@name` for an abstract one.
fn destination(connect: &Connect<'_>) -> String {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    let port = connect.port.unwrap_or_default();
    match (connect.port, connect.address) {
        (Some(_), &[a, b, c, d]) => SocketAddr::from((Ipv4Addr::new(a, b, c, d), port)).to_string(),
        (Some(_), address) => match <[u8; 16]>::try_from(address) {
            Ok(address) => SocketAddr::from((Ipv6Addr::from(address), port)).to_string(),
            Err(_) => String::from_utf8_lossy(address).into_owned(),
        },
        (None, [0, name @ ..]) => format!("@{}", String::from_utf8_lossy(name)),
        (None, path) => String::from_utf8_lossy(path).into_owned(),
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
