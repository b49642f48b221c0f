//! Watches real commands in cgroups of their own and collects what the probe says about them.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use glasshouse_host_probe::{HostProbe, LoadOptions, SealReport, Watch, WatchRequest, cgroup};
use glasshouse_schema::event::{FileChange, Operation, SocketOperation};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::RedactionRules;
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{
    Digest, EncodedFrame, ExecutionId, Frame, FrameWriter, NodeId, PathFlags, ProcessKey, Vantage,
};

/// Everything in a test ends within this.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The probe, or `None` after saying why this host can't run the test.
pub fn probe() -> Option<HostProbe> {
    probe_with(&LoadOptions::default())
}

pub fn probe_with(options: &LoadOptions) -> Option<HostProbe> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: the probe needs root (CAP_BPF and CAP_PERFMON)");
        return None;
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        eprintln!("skipped: this kernel has no BTF at /sys/kernel/btf/vmlinux");
        return None;
    }
    if let Err(error) = cgroup::mount_point() {
        eprintln!("skipped: {error}");
        return None;
    }
    // To try other objects than those that are built in.
    let object_dir =
        options.object_dir.clone().or_else(|| std::env::var_os("GLASSHOUSE_TEST_BPF_DIR").map(PathBuf::from));
    Some(HostProbe::load(&LoadOptions { object_dir, ..options.clone() }).unwrap())
}

pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < DEADLINE, "timed out waiting for {what}");
        std::thread::yield_now();
    }
}

/// A fresh cgroup, removed when dropped.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("glasshouse-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = cgroup::mount_point().unwrap().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    pub fn is_populated(&self) -> bool {
        std::fs::read_to_string(self.0.join("cgroup.events")).unwrap().contains("populated 1")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let began = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(2) {
            std::thread::yield_now();
        }
    }
}

/// An owned path of a fact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Known {
    pub path: String,
    pub flags: u8,
}

/// A fact, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Fork {
        process: ProcessKey,
        child: ProcessKey,
    },
    Exec {
        process: ProcessKey,
        ppid: u32,
        exe: String,
        cwd: String,
        argv: Vec<String>,
        truncated: bool,
        uid: u32,
        gid: u32,
    },
    Exit {
        process: ProcessKey,
        code: u8,
        signal: u8,
        core_dumped: bool,
    },
    Open {
        process: ProcessKey,
        path: Known,
        flags: u32,
        result: i32,
    },
    Delete {
        path: Known,
        directory: bool,
        result: i32,
    },
    Rename {
        from: Known,
        to: Known,
        result: i32,
    },
    Socket {
        operation: SocketOperation,
        address: Vec<u8>,
        port: Option<u16>,
        protocol: u8,
        result: i32,
    },
    Change {
        change: FileChange,
        path: Known,
        other: Option<Known>,
        value: u64,
        result: i32,
    },
    Io {
        process: ProcessKey,
        path: Known,
        reads: u64,
        writes: u64,
        read_bytes: u64,
        written_bytes: u64,
    },
    Traffic {
        address: Vec<u8>,
        port: Option<u16>,
        protocol: u8,
        sends: u64,
        receives: u64,
        sent_bytes: u64,
        received_bytes: u64,
    },
    Dns {
        name: String,
        query_type: u16,
        answers: Vec<Vec<u8>>,
        response_code: Option<u8>,
    },
    Operation {
        operation: Operation,
        value: u64,
        target_tgid: u32,
        result: i32,
    },
    Credentials {
        process: ProcessKey,
        uid: u32,
        euid: u32,
        capabilities: u64,
        gained: bool,
    },
}

/// One finished execution.
#[derive(Debug)]
pub struct Run {
    pub pid: u32,
    pub status: ExitStatus,
    pub report: SealReport,
    pub seen: Vec<Seen>,
    /// As they were sent: what [`Seen`] leaves out is read from here.
    pub frames: Vec<EncodedFrame>,
}

impl Run {
    pub fn opens(&self) -> Vec<(&str, u8, u32, i32)> {
        self.seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Open { path, flags, result, .. } => {
                    Some((path.path.as_str(), path.flags, *flags, *result))
                }
                _ => None,
            })
            .collect()
    }

    #[track_caller]
    pub fn opened(&self, path: &Path) -> (u8, u32, i32) {
        let wanted = path.to_str().unwrap();
        let found = self.opens().into_iter().find(|open| open.0 == wanted);
        let (_, path_flags, flags, result) =
            found.unwrap_or_else(|| panic!("{wanted} was not opened: {:#?}", self.opens()));
        (path_flags, flags, result)
    }

    #[track_caller]
    pub fn has(&self, wanted: &Seen) {
        assert!(self.seen.contains(wanted), "{wanted:#?} is not among {:#?}", self.seen);
    }

    /// Every class adds up and nothing is lost; the chain is whole.
    #[track_caller]
    pub fn assert_closed(&self) {
        assert!(self.report.recorded);
        assert_eq!(self.report.counters.lost(), 0, "{:#?}", self.report);
        assert_eq!(self.report.unexplained, 0);
        assert_eq!(self.report.still_alive, 0);
        assert_eq!(self.report.seal.escaped_tasks, 0);
        assert!(self.report.seal.blind_spots.is_empty(), "{:?}", self.report.seal.blind_spots);
        for class in glasshouse_schema::Class::ALL {
            assert!(self.report.counters.class(class).adds_up());
        }
        let delivered: u64 = glasshouse_schema::Class::ALL
            .iter()
            .filter(|class| **class != glasshouse_schema::Class::Syscall)
            .map(|class| self.report.counters.class(*class).delivered)
            .sum();
        assert_eq!(delivered, self.seen.len() as u64);
    }

    pub fn syscall(&self, name: &str) -> u64 {
        self.report.seal.syscalls.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Decodes the frames of one chain and checks its links.
pub fn decode(frames: &[EncodedFrame]) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut prev = Digest::ZERO;
    for (seq, encoded) in frames.iter().enumerate() {
        let frame = Frame::decode(&encoded.bytes).unwrap();
        assert_eq!(frame.header.seq, seq as u64);
        assert_eq!(frame.header.prev, prev);
        prev = encoded.digest;
        let body = &frame.body;
        let process = |index: u32| body.processes[index as usize];
        let path = |index: u32| {
            let path = body.paths.at(index);
            Known { path: text(path.bytes), flags: path.flags.0 }
        };
        for fork in &body.forks {
            seen.push(Seen::Fork { process: process(fork.process), child: process(fork.child) });
        }
        for exec in &body.execs {
            seen.push(Seen::Exec {
                process: process(exec.process),
                ppid: exec.ppid,
                exe: path(exec.exe).path,
                cwd: path(exec.cwd).path,
                argv: exec.argv.iter().map(|argument| text(argument)).collect(),
                truncated: exec.argv_truncated,
                uid: exec.uid,
                gid: exec.gid,
            });
        }
        for exit in &body.exits {
            seen.push(Seen::Exit {
                process: process(exit.process),
                code: exit.code,
                signal: exit.signal,
                core_dumped: exit.core_dumped,
            });
        }
        for open in &body.opens {
            let process = process(open.process);
            seen.push(Seen::Open { process, path: path(open.path), flags: open.flags, result: open.result });
        }
        for delete in &body.deletes {
            let (path, directory) = (path(delete.path), delete.directory);
            seen.push(Seen::Delete { path, directory, result: delete.result });
        }
        for rename in &body.renames {
            let (from, to) = (path(rename.from), path(rename.to));
            seen.push(Seen::Rename { from, to, result: rename.result });
        }
        for socket in &body.sockets {
            seen.push(Seen::Socket {
                operation: socket.operation,
                address: socket.address.to_vec(),
                port: socket.port,
                protocol: socket.protocol,
                result: socket.result,
            });
        }
        for change in &body.changes {
            seen.push(Seen::Change {
                change: change.change,
                path: path(change.path),
                other: change.other.map(path),
                value: change.value,
                result: change.result,
            });
        }
        for io in &body.ios {
            seen.push(Seen::Io {
                process: process(io.process),
                path: path(io.path),
                reads: io.reads,
                writes: io.writes,
                read_bytes: io.read_bytes,
                written_bytes: io.written_bytes,
            });
        }
        for traffic in &body.traffic {
            seen.push(Seen::Traffic {
                address: traffic.address.to_vec(),
                port: traffic.port,
                protocol: traffic.protocol,
                sends: traffic.sends,
                receives: traffic.receives,
                sent_bytes: traffic.sent_bytes,
                received_bytes: traffic.received_bytes,
            });
        }
        for dns in &body.dns {
            seen.push(Seen::Dns {
                name: text(dns.name),
                query_type: dns.query_type,
                answers: dns.answers.iter().map(|answer| answer.to_vec()).collect(),
                response_code: dns.response_code,
            });
        }
        for operation in &body.operations {
            seen.push(Seen::Operation {
                operation: operation.operation,
                value: operation.value,
                target_tgid: operation.target_tgid,
                result: operation.result,
            });
        }
        for of in &body.credentials {
            seen.push(Seen::Credentials {
                process: process(of.process),
                uid: of.uid,
                euid: of.euid,
                capabilities: of.capabilities,
                gained: of.gained,
            });
        }
    }
    seen
}

/// A command behind its barrier, watched and armed.
pub struct Started {
    pub cgroup: Cgroup,
    child: Child,
    watch: Watch,
    frames: Arc<Mutex<Vec<EncodedFrame>>>,
    /// While this is locked, the sink takes no frame and the drain thread waits.
    pub gate: Arc<Mutex<()>>,
}

/// Starts `program` in a cgroup of its own. It waits for [`Started::release`].
pub fn start(
    probe: &HostProbe,
    program: &Path,
    arguments: &[&str],
    env: &[(&str, &str)],
    dir: &Path,
) -> Started {
    let cgroup = Cgroup::new();
    // The shell reads a line before it becomes the command: until then nothing may be recorded.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "echo; read line; exec \"$@\" > /dev/null", "sh"])
        .arg(program)
        .args(arguments)
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // `spawn` may return before the kernel is done with the shell's own exec; once it speaks, it is.
    let mut ready = [0];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut ready).unwrap();
    cgroup.add(child.id());
    let frames = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Mutex::new(()));
    let (sink, closed) = (Arc::clone(&frames), Arc::clone(&gate));
    let cgroup_id = cgroup::id(&cgroup.0).unwrap();
    let id = ExecutionId::from_parts(1_700_000_000_000, [child.id() as u8; 10]);
    let config = FrameWriterConfig::new(id, NodeId::new("test").unwrap(), Vantage::Host, 1, 0);
    let watched = probe.watch(WatchRequest {
        cgroup_id,
        root_tgid: child.id(),
        writer: FrameWriter::new(config),
        redactor: Redactor::new([7; 32], id, RedactionRules { path_prefixes: Vec::new(), tokens: true }),
        lossless: false,
        sink: Box::new(move |frame: EncodedFrame| {
            let _open = closed.lock().unwrap();
            sink.lock().unwrap().push(frame);
        }),
    });
    let watch = watched.unwrap_or_else(|error| {
        let _ = child.kill();
        panic!("{error}");
    });
    Started { cgroup, child, watch, frames, gate }
}

impl Started {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens the barrier.
    pub fn release(&mut self) {
        use std::io::Write;
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    /// Waits for the whole cgroup to end, and seals.
    pub fn finish(mut self) -> Run {
        let status = wait_for("the command to end", || self.child.try_wait().unwrap());
        wait_for("the cgroup to be empty", || (!self.cgroup.is_populated()).then_some(()));
        self.seal(status)
    }

    /// Seals at once, whoever still lives.
    pub fn seal(self, status: ExitStatus) -> Run {
        let pid = self.child.id();
        let report = self.watch.seal().unwrap();
        let frames = self.frames.lock().unwrap();
        assert!(frames.last().unwrap().is_seal);
        assert_eq!(report.frames, frames.len() as u64);
        assert_eq!(report.head, frames.last().unwrap().digest);
        Run { pid, status, report, seen: decode(&frames), frames: frames.clone() }
    }

    /// Seals at once, after the living have been moved to another cgroup: the own one then takes nobody with it.
    pub fn seal_and_keep(self, elsewhere: &Cgroup) -> Run {
        let Self { cgroup, child, watch, frames, gate } = self;
        let pid = child.id();
        let report = watch.seal().unwrap();
        elsewhere.add(pid);
        drop((cgroup, gate));
        let frames = frames.lock().unwrap().clone();
        Run { pid, status: ExitStatus::default(), report, seen: decode(&frames), frames }
    }

    /// The frames that were sent up to now.
    pub fn so_far(&self) -> Vec<EncodedFrame> {
        self.frames.lock().unwrap().clone()
    }

    pub fn wait_root(&mut self) -> ExitStatus {
        wait_for("the command to end", || self.child.try_wait().unwrap())
    }

    /// Stops watching without a seal.
    pub fn abandon(self) {}
}

/// Runs one of the [`WORKLOAD`]s of this test binary.
pub fn run_workload(probe: &HostProbe, name: &str, dir: &Path) -> Run {
    let mut started = start_workload(probe, name, dir);
    started.release();
    started.finish()
}

/// The variable that makes the test `workload` do something.
pub const WORKLOAD: &str = "GLASSHOUSE_TEST_WORKLOAD";

pub fn start_workload(probe: &HostProbe, name: &str, dir: &Path) -> Started {
    let this = std::env::current_exe().unwrap();
    start(probe, &this, &["workload", "--exact", "--nocapture", "--test-threads=1"], &[(WORKLOAD, name)], dir)
}

pub fn run_shell(probe: &HostProbe, script: &str, dir: &Path) -> Run {
    let mut started = start(probe, Path::new("/bin/sh"), &["-c", script], &[], dir);
    started.release();
    started.finish()
}

pub fn resolved(path: &Path) -> Known {
    Known { path: text(path.as_os_str().as_bytes()), flags: 0 }
}

pub fn unresolved(path: &Path) -> Known {
    Known { flags: PathFlags::UNRESOLVED.0, ..resolved(path) }
}

/// As [`start`], of a command that is stopped rather than that anything is lost, and with a sink that takes its time
/// for each frame.
#[allow(dead_code, reason = "not every binary of tests needs it")]
pub fn start_lossless(
    probe: &HostProbe,
    (program, arguments): (&Path, &[&str]),
    env: &[(&str, &str)],
    dir: &Path,
    pace: Duration,
) -> Started {
    let cgroup = Cgroup::new();
    let mut child = Command::new("/bin/sh")
        .args(["-c", "echo; read line; exec \"$@\" > /dev/null", "sh"])
        .arg(program)
        .args(arguments)
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut [0]).unwrap();
    cgroup.add(child.id());
    let frames = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Mutex::new(()));
    let (sink, closed) = (Arc::clone(&frames), Arc::clone(&gate));
    let id = ExecutionId::from_parts(1_700_000_000_000, [child.id() as u8; 10]);
    let config = FrameWriterConfig::new(id, NodeId::new("test").unwrap(), Vantage::Host, 1, 0);
    let watched = probe.watch(WatchRequest {
        cgroup_id: cgroup::id(&cgroup.0).unwrap(),
        root_tgid: child.id(),
        writer: FrameWriter::new(config),
        redactor: Redactor::new([7; 32], id, RedactionRules { path_prefixes: Vec::new(), tokens: true }),
        lossless: true,
        sink: Box::new(move |frame: EncodedFrame| {
            let _open = closed.lock().unwrap();
            std::thread::sleep(pace);
            sink.lock().unwrap().push(frame);
        }),
    });
    let watch = watched.unwrap_or_else(|error| {
        let _ = child.kill();
        panic!("{error}");
    });
    Started { cgroup, child, watch, frames, gate }
}

/// As [`start_workload`], and as [`start_lossless`].
#[allow(dead_code, reason = "not every binary of tests needs it")]
pub fn start_lossless_workload(probe: &HostProbe, name: &str, dir: &Path, pace: Duration) -> Started {
    let this = std::env::current_exe().unwrap();
    let arguments = ["workload", "--exact", "--nocapture", "--test-threads=1"];
    start_lossless(probe, (&this, &arguments), &[(WORKLOAD, name)], dir, pace)
}

impl Started {
    /// The command in its cgroup, and what watches it: each can be dropped by itself.
    #[allow(dead_code, reason = "not every binary of tests needs it")]
    pub fn split(self) -> ((Cgroup, Child), Watch) {
        ((self.cgroup, self.child), self.watch)
    }
}
