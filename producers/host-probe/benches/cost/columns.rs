//! Who watches while a workload runs.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aya::programs::Program;
use aya::programs::tp_btf::BtfTracePointLink;
use aya::{Btf, Ebpf, EbpfLoader};
use glasshouse_host_probe::{HostProbe, LoadOptions, Watch, WatchRequest};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::RedactionRules;
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Class, EncodedFrame, ExecutionId, FrameWriter, NodeId, Vantage};
use nix::time::{ClockId, clock_gettime};

use super::held::{Gate, Held};
use super::work::{self, Workload};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Nothing that is measured takes longer.
const DEADLINE: Duration = Duration::from_secs(600);
/// How long a peer may take to write what it has.
const PEER_STOPS_WITHIN: Duration = Duration::from_secs(60);
/// What loading leaves behind (types being freed, code being patched) is over by then.
const SETTLE: Duration = Duration::from_millis(80);
/// The calls whose facts the probe records.
const CALLS: &str = "trace=open,openat,openat2,creat,unlink,unlinkat,rmdir,rename,renameat,renameat2,connect,\
                     clone,clone3,fork,vfork,execve,execveat,exit_group";

/// One contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    Plain,
    Empty,
    Glasshouse,
    Unwatched,
    StraceSeccomp,
    Strace,
    Bpftrace,
}

impl Column {
    pub(super) const ALL: [Self; 7] = [
        Self::Plain,
        Self::Empty,
        Self::Glasshouse,
        Self::Unwatched,
        Self::StraceSeccomp,
        Self::Strace,
        Self::Bpftrace,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Empty => "empty programs",
            Self::Glasshouse => "glasshouse",
            Self::Unwatched => "glasshouse, unwatched",
            Self::StraceSeccomp => "strace --seccomp-bpf",
            Self::Strace => "strace -f -e trace=",
            Self::Bpftrace => "bpftrace, same facts",
        }
    }

    /// The name that `--columns` takes.
    const fn key(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Empty => "empty",
            Self::Glasshouse => "watched",
            Self::Unwatched => "unwatched",
            Self::StraceSeccomp => "strace-seccomp",
            Self::Strace => "strace",
            Self::Bpftrace => "bpftrace",
        }
    }

    /// Reads what `--columns` takes.
    pub(super) fn of_key(key: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|column| column.key() == key).ok_or_else(|| {
            format!("--columns wants some of {}, with commas between", Self::ALL.map(Self::key).join(","))
        })
    }

    /// The tool that it needs, if any.
    pub(super) const fn tool(self) -> Option<&'static str> {
        match self {
            Self::StraceSeccomp | Self::Strace => Some("strace"),
            Self::Bpftrace => Some("bpftrace"),
            _ => None,
        }
    }
}

/// What one run gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) ns_per_op: f64,
    pub(super) ops: u64,
    pub(super) probe: Option<ProbeSample>,
}

/// What the probe says about a run that it watched.
#[derive(Debug, Clone, Default)]
pub(super) struct ProbeSample {
    /// CPU time of every thread of this process but the main one, from the release to the end of the seal.
    pub(super) cpu_ns: u64,
    /// The probe's own figure of the same.
    pub(super) seal_cpu_ns: u64,
    /// From the release to the end of the seal.
    pub(super) wall_ns: u64,
    /// Of files: `[observed, delivered, collapsed]`.
    pub(super) files: [u64; 3],
    pub(super) lost: u64,
}

/// Runs workloads under contestants.
pub(super) struct Bench {
    dir: PathBuf,
    empty: Ebpf,
}

/// Whoever watches, until dropped.
#[allow(dead_code, reason = "held for what dropping them does")]
enum Watching {
    Nobody,
    Empty(Vec<BtfTracePointLink>),
    Glasshouse(HostProbe, Watch),
    Neighbour(HostProbe, Watch),
    Bpftrace(Bpftrace),
}

impl Bench {
    /// Loads the empty programs, without attaching them.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let probe = HostProbe::load(&LoadOptions::from_env())?;
        if !probe.reads_directly() {
            eprintln!("note: kernel fields are read by helper calls here, which costs several times as much");
        }
        let hooks = probe.hooks();
        drop(probe);
        let object = glasshouse_bpf::object(glasshouse_bpf::EMPTY).ok_or("this build embeds no objects")?;
        let btf = Btf::from_sys_fs()?;
        let mut empty = EbpfLoader::new().btf(Some(&btf)).load(object.bytes)?;
        for hook in hooks {
            match empty.program_mut(&format!("empty_{hook}")) {
                Some(Program::BtfTracePoint(program)) => program.load(hook, &btf)?,
                _ => return Err(format!("empty.bpf.c has no program on {hook}: add it").into()),
            }
        }
        Ok(Self { dir: dir.to_owned(), empty })
    }

    /// One run.
    pub(super) fn run(&mut self, column: Column, workload: &Workload, ops: u64) -> Result<Sample> {
        let mut argv: Vec<OsString> = match column {
            Column::Strace => ["strace", "-f", "-o", "/dev/null", "-e", CALLS].map(Into::into).to_vec(),
            Column::StraceSeccomp => {
                ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", CALLS].map(Into::into).to_vec()
            }
            _ => Vec::new(),
        };
        argv.extend(self.work(workload.name, ops)?);
        let gate = Gate::new()?;
        let mut held = Held::start(&argv, &gate)?;
        // What it does itself, watched or not, is in every column.
        let neighbour = Held::start(&self.work("idle", 0)?, &gate)?;
        let watching = self.watch(column, &held, &neighbour)?;
        std::thread::sleep(SETTLE);
        let (began, cpu_before) = (Instant::now(), other_threads_cpu_ns()?);
        gate.open();
        let (status, printed) = held.finish(DEADLINE)?;
        neighbour.cgroup.kill()?;
        neighbour.cgroup.wait_empty(Instant::now() + DEADLINE)?;
        let (done, took) = work::parse(&printed).filter(|_| status.success()).ok_or_else(|| {
            format!("{} under {}: {status}, it printed {printed:?}", workload.name, column.name())
        })?;
        let mut sample = Sample { ns_per_op: took.as_nanos() as f64 / done as f64, ops: done, probe: None };
        match watching {
            Watching::Nobody | Watching::Empty(_) => {}
            Watching::Glasshouse(probe, watch) => {
                let report = watch.seal()?;
                let wall_ns = began.elapsed().as_nanos() as u64;
                let cpu_ns = other_threads_cpu_ns()?.saturating_sub(cpu_before);
                drop(probe);
                let files = report.counters.class(Class::File);
                if !report.recorded || !Class::ALL.iter().all(|class| report.counters.class(*class).adds_up())
                {
                    return Err(format!(
                        "the probe did not record, or its counters do not add up: {report:?}"
                    )
                    .into());
                }
                sample.probe = Some(ProbeSample {
                    cpu_ns,
                    seal_cpu_ns: report.seal.cost.user_cpu_ns,
                    wall_ns,
                    files: [files.observed, files.delivered, files.collapsed],
                    lost: report.counters.lost(),
                });
            }
            Watching::Neighbour(probe, watch) => {
                if !watch.seal()?.recorded {
                    return Err("the neighbour was not recorded".into());
                }
                drop(probe);
            }
            Watching::Bpftrace(bpftrace) => bpftrace.stop()?,
        }
        Ok(sample)
    }

    fn work(&self, name: &str, ops: u64) -> Result<Vec<OsString>> {
        let this = std::env::current_exe()?;
        let ops = ops.to_string();
        Ok(vec![this.into(), work::ROLE.into(), name.into(), ops.into(), self.dir.clone().into()])
    }

    fn watch(&mut self, column: Column, held: &Held, neighbour: &Held) -> Result<Watching> {
        Ok(match column {
            Column::Plain | Column::Strace | Column::StraceSeccomp => Watching::Nobody,
            Column::Empty => {
                let mut links = Vec::new();
                for (_, program) in self.empty.programs_mut() {
                    // Those of hooks that the probe does not use are not loaded.
                    if let Program::BtfTracePoint(program) = program
                        && program.fd().is_ok()
                    {
                        let link = program.attach()?;
                        links.push(program.take_link(link)?);
                    }
                }
                Watching::Empty(links)
            }
            Column::Glasshouse => {
                let probe = HostProbe::load(&LoadOptions::from_env())?;
                let watch = probe.watch(request(held)?)?;
                Watching::Glasshouse(probe, watch)
            }
            Column::Unwatched => {
                let probe = HostProbe::load(&LoadOptions::from_env())?;
                let watch = probe.watch(request(neighbour)?)?;
                Watching::Neighbour(probe, watch)
            }
            Column::Bpftrace => Watching::Bpftrace(Bpftrace::start(&self.dir, held.cgroup.id()?)?),
        })
    }
}

fn request(held: &Held) -> Result<WatchRequest> {
    let id = ExecutionId::from_parts(1, [0; 10]);
    let config = FrameWriterConfig::new(id, NodeId::new("bench")?, Vantage::Host, 1, 0);
    Ok(WatchRequest {
        cgroup_id: held.cgroup.id()?,
        root_tgid: held.child.id(),
        writer: FrameWriter::new(config),
        redactor: Redactor::new([0; 32], id, RedactionRules { path_prefixes: Vec::new(), tokens: true }),
        lossless: false,
        sink: Box::new(|_: EncodedFrame| {}),
    })
}

fn other_threads_cpu_ns() -> Result<u64> {
    let ns = |clock| clock_gettime(clock).map(|time| Duration::from(time).as_nanos() as u64);
    Ok(ns(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.saturating_sub(ns(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// A running bpftrace; killed when dropped.
struct Bpftrace {
    child: Child,
    output: PathBuf,
}

impl Bpftrace {
    fn start(dir: &Path, cgroup_id: u64) -> Result<Self> {
        let (script, output) = (dir.join("facts.bt"), dir.join("facts.txt"));
        std::fs::write(&script, include_str!("facts.bt"))?;
        let child = Command::new("bpftrace")
            .args(["-B", "full", "-o"])
            .args([&output, &script])
            .arg(cgroup_id.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut started = Self { child, output };
        // It says nothing once it is attached: its perf events, one per probe and CPU buffer, tell.
        let (began, mut before) = (Instant::now(), 0);
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let now = started.perf_events();
            if now > 0 && now == before {
                return Ok(started);
            }
            before = now;
            if let Some(status) = started.child.try_wait()? {
                return Err(format!("bpftrace ended: {status}").into());
            }
            if began.elapsed() > Duration::from_secs(60) {
                return Err("bpftrace did not attach".into());
            }
        }
    }

    fn perf_events(&self) -> usize {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).into_iter().flatten();
        let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("perf_event")).count()
    }

    fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > PEER_STOPS_WITHIN {
                return Err(format!("bpftrace did not stop within {PEER_STOPS_WITHIN:?}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = std::fs::read_to_string(&self.output)?;
        if !text.lines().any(|line| line.starts_with("exec ")) {
            return Err("bpftrace saw nothing".into());
        }
        Ok(())
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.output);
    }
}
