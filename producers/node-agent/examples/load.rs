//! Many short requests through one agent: throughput beside a plain loop of `sh`, the time from submitting to the start, and
//! what is left afterwards.
//!
//! `cargo build --release -p glasshouse-node-agent --bins --examples && target/release/examples/load [REQUESTS] [CONCURRENCY]
//! [disabled|host]`
//!
//! 10000 requests, 8 slots and no profiling unless said otherwise. Needs a nats-server. Exit status 1 when a request did not
//! run exactly once, did not end with 0, or left anything.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use glasshouse_execution::engine::system_unix_ns;
use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, StreamStart, Topology, connect};
use glasshouse_schema::lifecycle::{Phase, PhaseName};
use glasshouse_schema::{ExecutionId, LifecycleEvent, PoolName, Request, subject};

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
    let ran = tokio::runtime::Runtime::new()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(requests, concurrency, &profile)));
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(requests: usize, concurrency: usize, profile: &str) -> Result<bool, Failure> {
    let dir = tempfile::tempdir()?;
    let server = NatsServer::start(ServerOptions::new(dir.path().join("nats"))).await?;
    let bus = connect(ConnectOptions::new(server.url(), "load")).await?;
    Topology::embedded(1)?.apply(&bus).await?;

    let own = std::env::current_exe()?;
    let program =
        own.ancestors().nth(2).ok_or("this program has no directory")?.join("glasshouse-node-agent");
    let mut agent = Command::new(program)
        .args([
            "--nats",
            server.url(),
            "--node",
            "load",
            "--socket",
            "none",
            "--profile",
            profile,
            "--concurrency",
        ])
        .arg(concurrency.to_string())
        .arg("--state")
        .arg(dir.path().join("agent"))
        .stderr(Stdio::piped())
        .spawn()?;
    let mut log = BufReader::new(agent.stderr.take().ok_or("no log")?).lines();
    let ready = log.by_ref().map_while(Result::ok).find(|line| line.contains("taking requests"));
    std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("agent: {line}")));
    let pid = agent.id();
    let measured = match ready {
        Some(_) => measure(&bus, pid, requests, concurrency, profile).await,
        None => Err("the agent did not start".into()),
    };
    // In order, so that nothing of it is left whatever was found.
    let stopped = Command::new("kill").arg(pid.to_string()).status().and_then(|_| agent.wait())?;
    let spool = std::fs::read_dir(dir.path().join("agent/spool")).map_or(0, Iterator::count);
    println!("left: {spool} spools; the agent ended with {stopped}");
    Ok(measured? && spool == 0 && stopped.success())
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

async fn measure(
    bus: &Bus,
    pid: u32,
    requests: usize,
    concurrency: usize,
    profile: &str,
) -> Result<bool, Failure> {
    // One at a time: the time from before submitting to the release of the command.
    let mut latencies = Vec::new();
    for _ in 0..IDLE {
        let request = request()?;
        let submitted = system_unix_ns();
        let seen = all(bus, vec![request]).await?;
        latencies.extend(seen.values().map(|seen| seen.start_unix_ns - submitted));
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100] as f64 / 1e6;
    println!(
        "idle agent, profile {profile}: {IDLE} requests, submit to start p50 {:.2} ms, p99 {:.2} ms",
        at(50),
        at(99)
    );

    let before = descriptors(pid);
    let many = (0..requests).map(|_| request()).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<ExecutionId> = many.iter().map(|request| request.execution_id).collect();
    let began = Instant::now();
    let seen = all(bus, many).await?;
    let took = began.elapsed();
    let rate = requests as f64 / took.as_secs_f64();
    println!("agent, {concurrency} slots: {requests} requests in {took:.2?}, {rate:.0} executions/s");

    let loops = requests.min(4_000);
    let began = Instant::now();
    let plain = Command::new("sh")
        .args(["-c", &format!("i=0; while [ $i -lt {loops} ]; do sh -c 'exit 0'; i=$((i+1)); done")])
        .status()?;
    let plain_rate = loops as f64 / began.elapsed().as_secs_f64();
    println!("plain loop of sh: {loops} in {:.2?}, {plain_rate:.0}/s ({plain})", began.elapsed());
    println!("ratio: {:.2} of the plain loop", rate / plain_rate);

    let once = ids
        .iter()
        .filter(|id| seen.get(id).is_some_and(|seen| (seen.exits, seen.claims, seen.exit_code) == (1, 1, 0)));
    let once = once.count();
    let left = bus.position(glasshouse_nats::REQUESTS).await?.messages;
    let (after, children) = (descriptors(pid), children(pid));
    println!("{once} of {requests} ran once and ended with 0; {left} requests are left in the queue");
    println!("descriptors of the agent: {before} before, {after} after; {children} child processes");
    Ok(once == requests && left == 0 && children == 0 && after <= before + concurrency)
}

fn request() -> Result<Request, Failure> {
    Ok(Request::new(glasshouse_runner::new_execution_id()?, ["sh", "-c", "exit 0"]))
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
