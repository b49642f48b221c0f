//! Many short requests through one agent: throughput beside a plain loop of `sh`, in a sandbox beside bubblewrap too, the time
//! from submitting to the start, receipts, and what is left afterwards.
//!
//! `cargo build --release -p glasshouse-node-agent --bins --examples &&
//! target/release/examples/load [REQUESTS] [CONCURRENCY] [disabled|host] [none|standard|strict]`
//!
//! 10000 requests, 8 slots, no profiling and no sandbox unless said otherwise. Needs a nats-server. With profiling an aggregator
//! runs in this process, on the same processors as all the rest. Exit status 1 when a request did not run exactly once, did not end with 0, has
//! not exactly one receipt, which is complete, or left anything.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use glasshouse_execution::engine::system_unix_ns;
use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, StreamStart, Topology, connect};
use glasshouse_schema::lifecycle::{Phase, PhaseName};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{
    ExecutionId, LifecycleEvent, PoolName, Receipt, Request, SandboxLevel, SandboxRequest, subject,
};

/// How many requests are submitted one after the other to an idle agent.
const IDLE: usize = 200;
/// How many are submitted at a time when there are many.
const AT_ONCE: usize = 64;
/// Nothing may take longer to end than this.
const WITHIN: Duration = Duration::from_secs(120);

type Failure = Box<dyn Error + Send + Sync>;

/// What was seen of one execution.
#[derive(Default)]
struct Seen {
    start_unix_ns: i64,
    exits: u32,
    exit_code: i32,
    claims: u32,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let number = |text: Option<String>, default| text.and_then(|text| text.parse().ok()).unwrap_or(default);
    let (requests, concurrency) = (number(args.next(), 10_000), number(args.next(), 8));
    let profile = args.next().unwrap_or_else(|| "disabled".into());
    let level = args.next().map_or(Ok(SandboxLevel::None), |level| level.parse());
    let ran = level.map_err(Failure::from).and_then(|level| {
        let load = Load { requests, concurrency, profile, level };
        tokio::runtime::Runtime::new()?.block_on(load.run())
    });
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Load {
    requests: usize,
    concurrency: usize,
    profile: String,
    level: SandboxLevel,
}

/// A task that ends when this is dropped.
struct Ended<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Ended<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A program that was built beside this one.
fn beside(name: &str) -> Result<Command, Failure> {
    let own = std::env::current_exe()?;
    Ok(Command::new(own.ancestors().nth(2).ok_or("this program has no directory")?.join(name)))
}

impl Load {
    async fn run(self) -> Result<bool, Failure> {
        let dir = tempfile::tempdir()?;
        let server = NatsServer::start(ServerOptions::new(dir.path().join("nats"))).await?;
        let bus = connect(ConnectOptions::new(server.url(), "load")).await?;
        Topology::embedded(1)?.apply(&bus).await?;

        let mounts_before = mounts()?;
        let _aggregator = self.is_watched().then(|| {
            let config = glasshouse_aggregator::Config::new(server.url(), "load");
            Ended(tokio::spawn(glasshouse_aggregator::run(config, std::future::pending())))
        });
        let mut agent = beside("glasshouse-node-agent")?
            .args([
                "--nats",
                server.url(),
                "--node",
                "load",
                "--socket",
                "none",
                "--profile",
                &self.profile,
                "--concurrency",
            ])
            .arg(self.concurrency.to_string())
            .arg("--state")
            .arg(dir.path().join("agent"))
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(agent.stderr.take().ok_or("no log")?).lines();
        let ready = log.by_ref().map_while(Result::ok).find(|line| line.contains("taking requests"));
        std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("agent: {line}")));
        let pid = agent.id();
        let measured = match ready {
            Some(_) => self.measure(&bus, pid).await,
            None => Err("the agent did not start".into()),
        };
        // In order, so that nothing of it is left whatever was found.
        let stopped = Command::new("kill").arg(pid.to_string()).status().and_then(|_| agent.wait())?;
        let spool = std::fs::read_dir(dir.path().join("agent/spool")).map_or(0, Iterator::count);
        println!("left: {spool} spools; the agent ended with {stopped}");
        let work = std::fs::read_dir(dir.path().join("agent/work")).map_or(0, Iterator::count);
        let (cgroups, mounts) = (cgroups(), mounts()?.saturating_sub(mounts_before));
        println!("left: {cgroups} cgroups of executions, {work} working directories, {mounts} mounts");
        Ok(measured? && spool + cgroups + work + mounts == 0 && stopped.success())
    }

    fn is_watched(&self) -> bool {
        self.profile != "disabled"
    }

    async fn measure(&self, bus: &Bus, pid: u32) -> Result<bool, Failure> {
        let Self { requests, concurrency, profile, level } = self;
        let (requests, concurrency) = (*requests, *concurrency);
        // One at a time: the time from before submitting to the release of the command.
        let mut latencies = Vec::new();
        for _ in 0..IDLE {
            let request = self.request()?;
            let submitted = system_unix_ns();
            let seen = all(bus, vec![request]).await?;
            latencies.extend(seen.values().map(|seen| seen.start_unix_ns - submitted));
        }
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100] as f64 / 1e6;
        println!(
            "idle agent, profile {profile}, sandbox {level}: {IDLE} requests, submit to start p50 {:.2} ms, p99 {:.2} ms",
            at(50),
            at(99)
        );

        let before = descriptors(pid);
        let many = (0..requests).map(|_| self.request()).collect::<Result<Vec<_>, _>>()?;
        let ids: HashSet<ExecutionId> = many.iter().map(|request| request.execution_id).collect();
        let began = Instant::now();
        let seen = all(bus, many).await?;
        let took = began.elapsed();
        let rate = requests as f64 / took.as_secs_f64();
        println!("agent, {concurrency} slots: {requests} requests in {took:.2?}, {rate:.0} executions/s");
        let receipts = if self.is_watched() { Some(receipts(bus, &ids, began).await?) } else { None };
        beside_loops(requests.min(4_000), *level, rate)?;

        let once = ids.iter().filter(|id| {
            seen.get(id).is_some_and(|seen| (seen.exits, seen.claims, seen.exit_code) == (1, 1, 0))
        });
        let once = once.count();
        let left = bus.position(glasshouse_nats::REQUESTS).await?.messages;
        let (after, children) = (descriptors(pid), children(pid));
        println!("{once} of {requests} ran once and ended with 0; {left} requests are left in the queue");
        println!("descriptors of the agent: {before} before, {after} after; {children} child processes");
        let has_all = receipts.is_none_or(|complete| complete == requests);
        Ok(once == requests && has_all && left == 0 && children == 0 && after <= before + concurrency)
    }

    fn request(&self) -> Result<Request, Failure> {
        let mut request = Request::new(glasshouse_runner::new_execution_id()?, ["sh", "-c", "exit 0"]);
        request.sandbox = SandboxRequest::of(self.level);
        if self.level != SandboxLevel::None {
            request.workdir = Some("/opt".into());
        }
        Ok(request)
    }
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Processes whose parent is the agent: none once all has ended.
fn children(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.map(|list| list.split_whitespace().count()).sum()
}

/// Waits for the receipt of every one; gives how many have exactly one, which is complete.
async fn receipts(bus: &Bus, ids: &HashSet<ExecutionId>, began: Instant) -> Result<usize, Failure> {
    let mut tail = bus.tail_receipts(StreamStart::Oldest).await?;
    let mut found: HashMap<ExecutionId, Vec<Completeness>> = HashMap::new();
    while found.len() < ids.len() {
        let document = tokio::time::timeout(WITHIN, tail.next()).await??;
        let receipt = Receipt::decode(&document.body)?;
        let execution = receipt.execution_id.parse()?;
        if ids.contains(&execution) {
            found.entry(execution).or_default().push(receipt.completeness);
        }
    }
    println!("the last receipt came {:.2?} after the first request was submitted", began.elapsed());
    // All that there are: the stream keeps one per execution and refuses others.
    let stored = bus.position(glasshouse_nats::RECEIPTS).await?.messages;
    let complete = found.values().filter(|of| **of == [Completeness::Closed]).count();
    println!(
        "receipts: {} of {} executions, {complete} complete, {stored} stored in all",
        found.len(),
        ids.len()
    );
    Ok(complete)
}

/// How fast the same command is spawned without us, and in a sandbox by bubblewrap.
fn beside_loops(loops: usize, level: SandboxLevel, rate: f64) -> Result<(), Failure> {
    let time = |name: &str, command: &str| -> Result<(), Failure> {
        let began = Instant::now();
        let script = format!("i=0; while [ $i -lt {loops} ]; do {command} || exit 1; i=$((i+1)); done");
        let ended = Command::new("sh").args(["-c", &script]).status()?;
        let plain = loops as f64 / began.elapsed().as_secs_f64();
        println!("plain loop of {name}: {plain:.0}/s ({ended}); the agent is at {:.2} of it", rate / plain);
        Ok(())
    };
    time("sh", "sh -c 'exit 0'")?;
    if level == SandboxLevel::None {
        return Ok(());
    }
    if Command::new("bwrap").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: bubblewrap: it is not installed");
        return Ok(());
    }
    time(
        "bubblewrap",
        "bwrap --ro-bind / / --bind /opt /opt --chdir /opt --dev /dev --proc /proc --tmpfs /tmp --tmpfs /run --unshare-pid \
         --unshare-ipc --unshare-uts --unshare-cgroup --cap-drop ALL --die-with-parent -- sh -c 'exit 0'",
    )
}

/// How many mounts this machine has.
fn mounts() -> std::io::Result<usize> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?.lines().count())
}

/// Cgroups of executions, wherever cgroup v2 is mounted.
fn cgroups() -> usize {
    ["/sys/fs/cgroup/glasshouse", "/sys/fs/cgroup/unified/glasshouse"]
        .into_iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<ExecutionId>().is_ok()))
        .count()
}

/// Submits requests and reads their records to the end.
async fn all(bus: &Bus, requests: Vec<Request>) -> Result<HashMap<ExecutionId, Seen>, Failure> {
    let phases = [PhaseName::Claimed, PhaseName::Exited, PhaseName::Failed, PhaseName::Cleaned];
    let filters = phases.iter().map(|phase| subject::stored_phase(*phase)).collect();
    let mut events = bus.events(StreamStart::New, filters).await?;
    let mut seen: HashMap<ExecutionId, Seen> =
        requests.iter().map(|request| (request.execution_id, Seen::default())).collect();
    let pool = PoolName::new("default")?;
    let mut open = requests.len();
    let submitting = futures::stream::iter(&requests)
        .map(|request| bus.submit(&pool, request, None))
        .buffer_unordered(AT_ONCE)
        .for_each(|submitted| async {
            if let Err(error) = submitted {
                eprintln!("not submitted: {error}");
            }
        });
    let reading = async {
        while open > 0 {
            let message = tokio::time::timeout(WITHIN, events.next()).await??;
            let event = LifecycleEvent::decode(&message.payload)?;
            let Some(seen) = seen.get_mut(&event.execution_id) else { continue };
            match event.phase {
                Phase::Claimed(_) => seen.claims += 1,
                Phase::Exited(exited) => {
                    seen.exits += 1;
                    seen.start_unix_ns = exited.start_unix_ns;
                    seen.exit_code = exited.outcome.exit_code;
                }
                Phase::Cleaned(_) => open -= 1,
                _ => {}
            }
        }
        Ok::<_, Failure>(())
    };
    let ((), read) = tokio::join!(submitting, reading);
    read?;
    Ok(seen)
}
