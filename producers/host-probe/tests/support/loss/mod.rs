//! Events at the highest rate, and a probe that is starved: nothing is lost without a count.

mod check;
mod holder;
mod storm;

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use glasshouse_host_probe::cgroup;
use glasshouse_schema::Class;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use self::check::{Base, problems};
pub(crate) use self::holder::LOSSLESS;
use self::holder::{ClassCount, Holder, Memory, Sealed};
use self::storm::{Counts, Kind, Storm, write_tiny};
use super::held::{self, Gate, Held};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long after its end an execution may take to be gone.
const GRACE: Duration = Duration::from_secs(60);
const HOGS: usize = 4;

/// One way to make it hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    Writers,
    Forks,
    Mixed,
    Hogs,
    Stopped,
    #[serde(rename = "watch-1000")]
    WatchMany,
}

impl Scenario {
    pub(crate) const ALL: [Self; 6] =
        [Self::Writers, Self::Forks, Self::Mixed, Self::Hogs, Self::Stopped, Self::WatchMany];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Writers => "writers",
            Self::Forks => "forks",
            Self::Mixed => "mixed",
            Self::Hogs => "hogs",
            Self::Stopped => "stopped",
            Self::WatchMany => "watch-1000",
        }
    }

    /// Whether this class may lose: never with `lossless`, and of processes only while the poller is stopped.
    fn may_lose(self, class: Class, lossless: bool) -> bool {
        !lossless
            && match class {
                Class::File | Class::Network => self != Self::WatchMany,
                Class::Process => self == Self::Stopped,
                Class::Syscall | Class::Other => false,
            }
    }
}

/// How to run one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    pub(crate) lasts: Duration,
    pub(crate) lossless: bool,
    /// How many executions [`Scenario::WatchMany`] watches.
    pub(crate) many: usize,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    pub(crate) executions: usize,
    pub(crate) seconds: f64,
    /// Facts of processes, files and the network, calls not among them.
    pub(crate) events_per_second: f64,
    /// Over all executions, in the order of [`Class::ALL`].
    pub(crate) classes: [ClassCount; 5],
    pub(crate) cpu_seconds: f64,
    pub(crate) stops: u64,
    pub(crate) memory: Memory,
    /// None when all is well.
    pub(crate) problems: Vec<String>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scenario, seed, executions, seconds, events_per_second, .. } = self;
        write!(
            f,
            "{:<10} seed {seed}: {executions} executions, {seconds:.1} s, {:.0} k events/s, probe {:.1} CPU s",
            scenario.name(),
            events_per_second / 1e3,
            self.cpu_seconds
        )?;
        if self.stops > 0 {
            write!(f, ", stopped {} times", self.stops)?;
        }
        for class in Class::ALL {
            let of = &self.classes[class as usize];
            if of.observed > 0 {
                let (name, lost) = (class.as_str(), of.lost);
                write!(f, "; {name} {} = {} + {} + {lost} lost", of.observed, of.delivered, of.collapsed)?;
            }
        }
        if self.executions > 100 || *scenario == Scenario::WatchMany {
            let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
            let Memory { rss_bytes, maps_bytes } = self.memory;
            write!(f, "; rss {:.1} MiB, maps {:.1} MiB", mib(rss_bytes), mib(maps_bytes))?;
        }
        if self.problems.is_empty() {
            return write!(f, ": ok");
        }
        write!(f, ": FAILED")?;
        // A broken build fails everywhere alike: the first few say it.
        self.problems.iter().take(8).try_for_each(|problem| write!(f, "\n    {problem}"))
    }
}

/// Becomes whatever process the arguments name; false if this is the runner.
pub(crate) fn role() -> Result<bool> {
    held::role()?;
    Ok(storm::role()? || holder::role()?)
}

/// Why this host can't run any of it.
pub(crate) fn cannot_run() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the probe needs root (CAP_BPF and CAP_PERFMON)".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("this kernel has no BTF at /sys/kernel/btf/vmlinux".to_owned());
    }
    cgroup::mount_point().err().map(|error| error.to_string())
}

/// A process of the runner's own, killed when dropped.
struct Hog(Child);

impl Hog {
    fn start() -> Result<Self> {
        let command =
            Command::new(std::env::current_exe()?).arg(storm::HOG_ROLE).stdin(Stdio::null()).spawn();
        Ok(Self(command?))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Random(u64);

impl Random {
    /// The seed's bits are spread first (splitmix64), so that neighbouring seeds differ.
    fn new(seed: u64) -> Self {
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self((mixed ^ mixed >> 31).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn from(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }
}

/// Runs one scenario.
pub(crate) fn run(run: &Run) -> Result<Outcome> {
    let mut random = Random::new(run.seed.wrapping_mul(16).wrapping_add(run.scenario as u64));
    let dir = held::scratch("glasshouse-loss-")?;
    // Not beside the files: /dev/shm may not allow programs.
    let programs = tempfile::Builder::new().prefix("glasshouse-loss-").tempdir()?;
    let tiny = programs.path().join("tiny");
    write_tiny(&tiny)?;
    let mut holder = Holder::start(run.lossless)?;
    let base = base(&mut holder, dir.path(), &tiny)?;

    let kind = match run.scenario {
        Scenario::Writers => Kind::Writers,
        Scenario::Forks => Kind::Forks,
        Scenario::Mixed | Scenario::Hogs | Scenario::Stopped => Kind::Mixed,
        Scenario::WatchMany => Kind::Few,
    };
    let executions = match run.scenario {
        Scenario::WatchMany => run.many,
        _ => random.from(2..=4) as usize,
    };
    let gate = Gate::new()?;
    let mut started = Vec::with_capacity(executions);
    for index in 0..executions {
        let dir = dir.path().join(index.to_string());
        std::fs::create_dir(&dir)?;
        let (seed, workers) = (random.next(), random.from(2..=3));
        let storm = Storm { kind, seed, workers, lasts: run.lasts, dir, tiny: tiny.clone() };
        let held = start(&storm, &gate)?;
        holder.watch(index, held.cgroup.id()?, held.child.id())?;
        started.push(held);
    }
    let hogs = if run.scenario == Scenario::Hogs { HOGS } else { 0 };
    let hogs: Vec<Hog> = (0..hogs).map(|_| Hog::start()).collect::<Result<_>>()?;
    let began = Instant::now();
    gate.open();
    let (done, stops) = finish(run, &mut started, holder.pid(), &mut random)?;
    let seconds = began.elapsed().as_secs_f64();
    drop(hogs);
    let memory = holder.memory()?;
    let mut sealed = Vec::with_capacity(executions);
    for index in 0..executions {
        sealed.push(holder.seal(index)?);
    }
    Ok(outcome(run, seconds, stops, memory, &sealed, &done, base))
}

fn start(storm: &Storm, gate: &Gate) -> Result<Held> {
    let mut argv: Vec<OsString> = vec![std::env::current_exe()?.into()];
    argv.extend(storm.arguments());
    Ok(Held::start(&argv, gate)?)
}

/// What a program makes that does nothing.
fn base(holder: &mut Holder, dir: &Path, tiny: &Path) -> Result<Base> {
    let (dir, tiny) = (dir.to_owned(), tiny.to_owned());
    let storm = Storm { kind: Kind::Nothing, seed: 1, workers: 0, lasts: Duration::ZERO, dir, tiny };
    let gate = Gate::new()?;
    let mut held = start(&storm, &gate)?;
    holder.watch(usize::MAX, held.cgroup.id()?, held.child.id())?;
    gate.open();
    held.finish(GRACE)?;
    let sealed = holder.seal(usize::MAX)?;
    let base = Base::of(&sealed);
    match problems(&sealed, &Counts::default(), base).first() {
        None => Ok(base),
        Some(problem) => Err(format!("a program that does nothing: {problem}").into()),
    }
}

/// Waits for all of them, and stops the probe meanwhile if the scenario wants that. What they did, and how often.
fn finish(run: &Run, started: &mut [Held], holder: u32, random: &mut Random) -> Result<(Vec<Counts>, u64)> {
    let is_over = AtomicBool::new(false);
    let holder = Pid::from_raw(i32::try_from(holder)?);
    std::thread::scope(|scope| {
        let stopper = (run.scenario == Scenario::Stopped).then(|| {
            scope.spawn(|| {
                let mut stops = 0;
                let mut sleep = |range| std::thread::sleep(Duration::from_millis(random.from(range)));
                while !is_over.load(Ordering::Relaxed) {
                    sleep(20..=300);
                    if kill(holder, Signal::SIGSTOP).is_err() {
                        break;
                    }
                    sleep(50..=500);
                    let _ = kill(holder, Signal::SIGCONT);
                    stops += 1;
                }
                stops
            })
        });
        let done: Result<Vec<Counts>> = started
            .iter_mut()
            .map(|held| {
                let (status, printed) = held.finish(run.lasts + GRACE)?;
                if !status.success() {
                    return Err(format!("an execution failed: {status}").into());
                }
                Ok(Counts::sum(&printed)?)
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        let stops = stopper.map_or(0, |stopper| stopper.join().unwrap_or(0));
        Ok((done?, stops))
    })
}

fn outcome(
    run: &Run,
    seconds: f64,
    stops: u64,
    memory: Memory,
    sealed: &[Sealed],
    done: &[Counts],
    base: Base,
) -> Outcome {
    let mut classes = [ClassCount::default(); 5];
    let mut found = Vec::new();
    for (index, (sealed, done)) in sealed.iter().zip(done).enumerate() {
        let mut of = problems(sealed, done, base);
        for class in Class::ALL {
            let (sum, one) = (&mut classes[class as usize], sealed.class(class));
            sum.observed += one.observed;
            sum.delivered += one.delivered;
            sum.collapsed += one.collapsed;
            sum.lost += one.lost;
            if one.lost > 0 && !run.scenario.may_lose(class, run.lossless) {
                of.push(format!("{} lost: {}; {:?}", class.as_str(), one.lost, sealed.blind_spots));
            }
        }
        found.extend(of.into_iter().map(|problem| format!("execution {index}: {problem}")));
    }
    let facts = [Class::Process, Class::File, Class::Network].map(|class| classes[class as usize].observed);
    Outcome {
        scenario: run.scenario,
        seed: run.seed,
        executions: sealed.len(),
        seconds,
        events_per_second: facts.iter().sum::<u64>() as f64 / seconds,
        classes,
        cpu_seconds: sealed.iter().map(|sealed| sealed.cpu_ns).sum::<u64>() as f64 / 1e9,
        stops,
        memory,
        problems: found,
    }
}
