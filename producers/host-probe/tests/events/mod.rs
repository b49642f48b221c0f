//! Facts of every kind but those of the network: what real commands did, and what the probe says they did, to the byte.

mod bytes;
mod changes;
mod operations;
mod paths;
mod processes;
mod tables;

use std::path::{Path, PathBuf};

use glasshouse_host_probe::LoadOptions;
use glasshouse_schema::event::{ExecFlags, FileChange, Operation, Usage};
use glasshouse_schema::{Class, Frame, PathFlags, ProcessKey};

use crate::support::{self, Run, text};

/// Runs what is asked for inside the watched process; false when it is none of these.
pub fn workload(name: &str) -> bool {
    bytes::workload(name)
        || changes::workload(name)
        || operations::workload(name)
        || paths::workload(name)
        || processes::workload(name)
        || tables::workload(name)
}

/// A path of a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    pub path: String,
    pub flags: PathFlags,
}

impl At {
    pub fn is_unresolved(&self) -> bool {
        self.flags.contains(PathFlags::UNRESOLVED)
    }
}

#[derive(Debug, Clone)]
pub struct Open {
    pub path: At,
    pub flags: u32,
    pub result: i32,
    pub created: bool,
    pub count: u64,
}

#[derive(Debug, Clone)]
pub struct Change {
    pub change: FileChange,
    pub path: At,
    pub other: Option<At>,
    pub value: u64,
    pub result: i32,
    pub count: u64,
}

/// Sums over all events of one process and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Io {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct Exec {
    pub process: ProcessKey,
    pub exe: At,
    pub env: Vec<String>,
    pub env_truncated: bool,
    pub flags: ExecFlags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub process: ProcessKey,
    pub ids: [u32; 4],
    pub capabilities: u64,
    pub gained: bool,
}

/// All facts of a run, with what `Seen` leaves out.
#[derive(Debug, Default)]
pub struct Facts {
    pub opens: Vec<Open>,
    pub changes: Vec<Change>,
    pub ios: Vec<(ProcessKey, At, Io)>,
    pub execs: Vec<Exec>,
    pub exits: Vec<(ProcessKey, u8, Usage)>,
    pub credentials: Vec<Credentials>,
    pub renames: Vec<(At, At, bool, i32, u64)>,
    /// Operation, value, target, result, count.
    pub operations: Vec<(Operation, u64, u32, i32, u64)>,
    /// Facts that the events of each class stand for.
    pub counted: [u64; 5],
}

impl Facts {
    pub fn of(run: &Run) -> Self {
        let mut facts = Self::default();
        for encoded in &run.frames {
            let frame = Frame::decode(&encoded.bytes).unwrap();
            let body = &frame.body;
            let process = |index: u32| body.processes[index as usize];
            let at = |index: u32| {
                let path = body.paths.at(index);
                At { path: text(path.bytes), flags: path.flags }
            };
            let counted = &mut facts.counted;
            for of in &body.opens {
                counted[1] += of.count;
                facts.opens.push(Open {
                    path: at(of.path),
                    flags: of.flags,
                    result: of.result,
                    created: of.created,
                    count: of.count,
                });
            }
            for of in &body.changes {
                counted[1] += of.count;
                facts.changes.push(Change {
                    change: of.change,
                    path: at(of.path),
                    other: of.other.map(at),
                    value: of.value,
                    result: of.result,
                    count: of.count,
                });
            }
            for of in &body.ios {
                counted[1] += (of.reads + of.writes).max(1);
                let io = Io {
                    reads: of.reads,
                    read_bytes: of.read_bytes,
                    writes: of.writes,
                    written_bytes: of.written_bytes,
                };
                facts.ios.push((process(of.process), at(of.path), io));
            }
            for of in &body.execs {
                facts.execs.push(Exec {
                    process: process(of.process),
                    exe: at(of.exe),
                    env: of.env.iter().map(|name| text(name)).collect(),
                    env_truncated: of.env_truncated,
                    flags: of.flags,
                });
            }
            for of in &body.exits {
                facts.exits.push((process(of.process), of.code, of.usage));
            }
            for of in &body.credentials {
                facts.credentials.push(Credentials {
                    process: process(of.process),
                    ids: [of.uid, of.euid, of.gid, of.egid],
                    capabilities: of.capabilities,
                    gained: of.gained,
                });
            }
            for of in &body.renames {
                counted[1] += of.count;
                facts.renames.push((at(of.from), at(of.to), of.exchange, of.result, of.count));
            }
            counted[1] += body.deletes.iter().map(|of| of.count).sum::<u64>();
            for of in &body.operations {
                counted[4] += of.count;
                facts.operations.push((of.operation, of.value, of.target_tgid, of.result, of.count));
            }
            counted[0] +=
                (body.forks.len() + body.execs.len() + body.exits.len() + body.credentials.len()) as u64;
        }
        facts
    }

    /// Calls that opened this path, by whoever and however.
    pub fn opened(&self, path: &Path) -> u64 {
        self.opens_of(path).map(|open| open.count).sum()
    }

    pub fn opens_of(&self, path: &Path) -> impl Iterator<Item = &Open> {
        let path = path.to_str().unwrap().to_owned();
        self.opens.iter().filter(move |open| open.path.path == path)
    }

    /// What one process, or all of them, read from and wrote to a path.
    pub fn io(&self, path: &Path, of: Option<u32>) -> Io {
        let path = path.to_str().unwrap();
        let mut sum = Io::default();
        for (process, at, io) in &self.ios {
            if at.path == path && of.is_none_or(|tgid| process.tgid == tgid) {
                sum.reads += io.reads;
                sum.read_bytes += io.read_bytes;
                sum.writes += io.writes;
                sum.written_bytes += io.written_bytes;
            }
        }
        sum
    }

    #[track_caller]
    pub fn change(&self, change: FileChange, path: &Path) -> &Change {
        let wanted = path.to_str().unwrap();
        let found = self.changes.iter().find(|of| of.change == change && of.path.path == wanted);
        found.unwrap_or_else(|| panic!("no {change:?} of {wanted} among {:#?}", self.changes_of(change)))
    }

    pub fn changes_of(&self, change: FileChange) -> Vec<&Change> {
        self.changes.iter().filter(|of| of.change == change).collect()
    }
}

/// Every fact that the kernel counted is in an event, nothing is lost, and the events' own counts say the same.
#[track_caller]
pub fn closed(run: &Run) -> Facts {
    run.assert_closed();
    whole(run)
}

/// As [`closed`], of a run that shows a blind spot on purpose.
#[track_caller]
pub fn whole(run: &Run) -> Facts {
    let facts = Facts::of(run);
    assert!(run.status.success(), "{:?}", run.status);
    assert_eq!(run.report.counters.lost(), 0, "{:#?}", run.report);
    assert_eq!(run.report.unexplained, 0);
    for class in [Class::Process, Class::File, Class::Other] {
        let counters = run.report.counters.class(class);
        assert!(counters.adds_up(), "{counters:?}");
        assert_eq!(facts.counted[class as usize], counters.observed, "{class:?} {counters:?}");
    }
    facts
}

/// A probe by each object: with direct reads, and the one for kernels before 6.2.
pub fn each_probe(test: impl Fn(&glasshouse_host_probe::HostProbe)) {
    for direct_reads in [true, false] {
        let options = LoadOptions { direct_reads, ..LoadOptions::default() };
        let Some(probe) = support::probe_with(&options) else { return };
        eprintln!("direct reads: {direct_reads}");
        test(&probe);
    }
}

/// A directory of the test's own, by its true path, that everyone may enter.
pub fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let everyone = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777);
    std::fs::set_permissions(&root, everyone).unwrap();
    (dir, root)
}

/// A system call by its number: its result, or the negated errno.
pub fn raw(number: i64, arguments: [i64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    #[allow(unsafe_code, reason = "calls that no wrapper makes, or makes differently")]
    // SAFETY: every caller passes addresses of memory that it keeps for the call, or ones that the kernel refuses.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    match result {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap()),
        result => result,
    }
}

/// [`raw`], with the arguments that matter.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let given: &[i64] = &[$($argument as i64),*];
        let mut arguments = [0i64; 6];
        arguments[..given.len()].copy_from_slice(given);
        $crate::events::raw($number, arguments)
    }};
}
pub(crate) use call;

pub const AT_FDCWD: i64 = libc::AT_FDCWD as i64;

/// The address of a C string.
pub fn at(string: &std::ffi::CStr) -> i64 {
    string.as_ptr() as i64
}
