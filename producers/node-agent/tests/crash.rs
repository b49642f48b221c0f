//! What agents survive: being killed, being frozen, and each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use common::{DEADLINE, broker, cgroups_of, processes, request, until};
use glasshouse_schema::lifecycle::Phase;
use glasshouse_schema::request::retry_id;
use glasshouse_schema::{ExecutionId, Request};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A command that leaves a line under its name each time it runs.
fn traced(work: &Path, then: &str) -> Request {
    let mut request = request("true");
    let trace = work.join(request.execution_id.to_string());
    request.argv[2] = format!("echo ran >> {}; {then}", trace.display());
    request
}

/// How often a command ran.
fn runs(work: &Path, execution: ExecutionId) -> usize {
    std::fs::read_to_string(work.join(execution.to_string())).unwrap_or_default().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_leaves_no_request_without_an_end_and_runs_none_twice() {
    const REQUESTS: usize = 300;
    const RUNNING: usize = 200;
    let broker = broker().await;
    let work = broker.work();
    let mut agent = broker.agent("node-1", &["--concurrency", "200", "--ack-wait", "2s"]);
    // The mark tells our processes from all others.
    let mark = format!("glasshouse-crash-{}", std::process::id());
    let go = work.join("go");
    mkfifo(&go, Mode::S_IRWXU).unwrap();
    // Each takes one line and ends. Read and write, so that nobody waits for the other side.
    let wait = format!(": {mark}; read line < {}", go.display());
    let mut gate = std::fs::File::options().read(true).write(true).open(&go).unwrap();
    let requests: Vec<Request> = (0..REQUESTS).map(|_| traced(&work, &wait)).collect();
    let executions: Vec<ExecutionId> = requests.iter().map(|request| request.execution_id).collect();
    for request in &requests {
        broker.submit(request).await;
    }
    let started = async {
        while executions.iter().filter(|execution| runs(&work, **execution) > 0).count() < RUNNING {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, started).await.expect("as many run as there are slots");
    assert!(!cgroups_of(&executions).is_empty() || !Path::new("/sys/fs/cgroup/unified").exists());
    agent.crash();
    assert!(!processes(&mark).is_empty(), "a killed agent leaves its commands running");
    agent.restart();
    // Whoever runs now is of the new life: what was left was ended before the first request was taken.
    gate.write_all(&[b'\n'; REQUESTS]).unwrap();

    let mut ends: HashMap<&str, usize> = HashMap::new();
    for execution in &executions {
        let outcome = broker.outcome(*execution).await;
        let ran = runs(&work, *execution);
        match &outcome.error {
            Some(error) => {
                assert!(error.starts_with("outcome unknown"), "{error}");
                assert!(ran <= 1, "{execution} ran {ran} times");
                *ends.entry("unknown").or_default() += 1;
            }
            None => {
                assert_eq!((outcome.exit_code, ran), (0, 1), "{execution}");
                *ends.entry("ended").or_default() += 1;
            }
        }
    }
    eprintln!("{ends:?}");
    assert_eq!(ends["unknown"], RUNNING);
    broker.queue_is_empty().await;
    // What the first life could not publish any more is sent beside everything else.
    let spool = broker.dir.path().join("node-1/spool");
    until("no spool is left", || std::fs::read_dir(&spool).map_or(0, Iterator::count) == 0).await;
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(processes(&mark), Vec::<i32>::new());
    assert_eq!(cgroups_of(&executions), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_repeated_is_repeated_under_another_id() {
    let broker = broker().await;
    let work = broker.work();
    let mut agent = broker.agent("node-1", &["--concurrency", "1", "--ack-wait", "1s"]);
    let go = work.join("go");
    let mut request = traced(&work, &format!("while [ ! -e {} ]; do sleep 0.02; done", go.display()));
    request.retries = 1;
    let execution = request.execution_id;
    broker.submit(&request).await;
    until("it runs", || runs(&work, execution) == 1).await;
    agent.crash();
    std::fs::write(&go, "").unwrap();
    agent.restart();
    let outcome = broker.outcome(execution).await;
    let again = retry_id(execution);
    assert!(outcome.error.as_ref().is_some_and(|error| error.contains(&again.to_string())), "{outcome:?}");
    assert_eq!(broker.outcome(again).await.exit_code, 0);
    broker.queue_is_empty().await;
    // One trace of each life: the command is the same.
    assert_eq!(runs(&work, execution), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_share_a_pool_and_one_that_was_frozen_runs_nothing_twice() {
    let broker = broker().await;
    let work = broker.work();
    let options = ["--concurrency", "2", "--ack-wait", "1s", "--lost-after", "1s"];
    let mut frozen = broker.agent("node-1", &options);
    let mut other = broker.agent("node-2", &options);
    let requests: Vec<Request> = (0..40).map(|_| traced(&work, "sleep 0.05")).collect();
    for request in &requests[..20] {
        broker.submit(request).await;
    }
    let mut by_node: HashMap<String, usize> = HashMap::new();
    for request in &requests[..20] {
        let record = broker.record(request.execution_id).await;
        *by_node.entry(record[0].node.as_ref().unwrap().to_string()).or_default() += 1;
    }
    assert!(by_node.len() == 2 && by_node.values().all(|count| *count >= 5), "shared: {by_node:?}");

    // One holds a command of its own while it is frozen, and the server may hand it requests that it cannot take.
    let held_by = format!("glasshouse-held-{}", std::process::id());
    let held = traced(&work, &format!(": {held_by}; while :; do sleep 0.02; done"));
    other.signal(Signal::SIGSTOP);
    broker.submit(&held).await;
    until("it runs", || runs(&work, held.execution_id) == 1).await;
    other.signal(Signal::SIGCONT);
    frozen.signal(Signal::SIGSTOP);
    for request in &requests[20..] {
        broker.submit(request).await;
    }
    for request in &requests[20..] {
        assert_eq!(broker.outcome(request.execution_id).await.exit_code, 0);
    }
    let outcome = broker.outcome(held.execution_id).await;
    assert!(outcome.error.as_ref().is_some_and(|error| error.starts_with("outcome unknown")), "{outcome:?}");
    // It is ended once its agent is back: whoever waited was told that nobody knows of it.
    assert!(!processes(&held_by).is_empty());
    frozen.signal(Signal::SIGCONT);
    until("what was given up is ended", || processes(&held_by).is_empty()).await;
    broker.queue_is_empty().await;
    assert_eq!((frozen.stop(), other.stop()), (Some(0), Some(0)));
    for request in requests.iter().chain([&held]) {
        assert_eq!(runs(&work, request.execution_id), 1, "{}", request.execution_id);
    }
}

/// So many agents share one broker; more by GLASSHOUSE_TEST_AGENTS.
const AGENTS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn many_agents_share_a_pool_fairly_and_lose_nothing_when_one_is_frozen() {
    const EACH: usize = 20;
    let agents = std::env::var("GLASSHOUSE_TEST_AGENTS").ok();
    let agents = agents.map_or(AGENTS, |text| text.parse().expect("a number of agents"));
    let broker = broker().await;
    let work = broker.work();
    let options = ["--concurrency", "2", "--ack-wait", "1s", "--lost-after", "1s"];
    let mut fleet: Vec<_> =
        (0..agents).map(|number| broker.agent(&format!("node-{number}"), &options)).collect();
    let requests: Vec<Request> = (0..2 * agents * EACH).map(|_| traced(&work, "sleep 0.1")).collect();
    let (first, second) = requests.split_at(agents * EACH);
    let began = std::time::Instant::now();
    for request in first {
        broker.submit(request).await;
    }
    let by_node = async |requests: &[Request]| {
        // A request is acknowledged once its record has its end. To wait for each would take a consumer each.
        broker.queue_is_empty().await;
        let mut by_node: HashMap<String, usize> = HashMap::new();
        let mut unknown = 0;
        for request in requests {
            let record = broker.bus.lifecycle_of(request.execution_id).await.unwrap();
            *by_node.entry(record[0].node.as_ref().unwrap().to_string()).or_default() += 1;
            let ended = record.iter().find_map(|event| match &event.phase {
                Phase::Exited(exited) => Some(exited.outcome.exit_code == 0),
                Phase::Failed(failed) if failed.error.starts_with("outcome unknown") => Some(false),
                _ => None,
            });
            unknown += usize::from(!ended.expect("it has an outcome"));
        }
        (by_node, unknown)
    };
    let (shared, unknown) = by_node(first).await;
    let (least, most) = (shared.values().min().unwrap(), shared.values().max().unwrap());
    eprintln!("{agents} agents, {} requests in {:?}: {least} to {most} each", first.len(), began.elapsed());
    assert_eq!((shared.len(), unknown), (agents, 0));
    assert!(*least >= EACH / 2 && *most <= EACH * 2, "{shared:?}");

    // One is frozen in the middle, and comes back when all is done.
    for request in &second[..second.len() / 2] {
        broker.submit(request).await;
    }
    fleet[0].signal(Signal::SIGSTOP);
    for request in &second[second.len() / 2..] {
        broker.submit(request).await;
    }
    let (_, unknown) = by_node(second).await;
    eprintln!("one frozen: {unknown} of {} ended as unknown", second.len());
    // No more than it had slots.
    assert!(unknown <= 2, "{unknown}");
    fleet[0].signal(Signal::SIGCONT);
    broker.queue_is_empty().await;
    for agent in &mut fleet {
        assert_eq!(agent.stop(), Some(0));
    }
    for request in &requests {
        assert!(runs(&work, request.execution_id) <= 1, "{}", request.execution_id);
    }
}
