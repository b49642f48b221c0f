//! One agent and what it promises, on a real server with real commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{DEADLINE, broker, request, until};
use glasshouse_schema::lifecycle::{Phase, PhaseName, ProfilingMode, Step};
use glasshouse_schema::receipt::Receipt;
use glasshouse_schema::request::{Action, Stdin};
use glasshouse_schema::subject::OutputStream;
use nix::sys::signal::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_runs_and_its_output_outcome_and_receipt_come_back() {
    let broker = broker().await;
    let mut config = glasshouse_aggregator::Config::new(broker.server.url(), "test");
    config.producer_grace = DEADLINE;
    let aggregator = tokio::spawn(glasshouse_aggregator::run(config, std::future::pending()));
    let mut agent = broker.agent("node-1", &["--concurrency", "2", "--label", "rack=7"]);

    let mut request = request("cat; echo \"$WHO in $PWD\" >&2; exit 7");
    request.stdin_base64 = Stdin(b"from stdin\n".to_vec());
    request.env.insert("WHO".into(), "somebody".into());
    request.workdir = Some("/tmp".into());
    request.labels.insert("job".into(), "42".into());
    request.profile = Some(ProfilingMode::Host);
    let execution = request.execution_id;
    let mut output = broker.bus.output(execution).await.unwrap();
    broker.submit(&request).await;
    // The same again is the same.
    broker.submit(&request).await;

    let (mut streams, mut open) = ([Vec::new(), Vec::new()], 2);
    while open > 0 {
        let chunk = tokio::time::timeout(DEADLINE, output.next()).await.expect("output comes").unwrap();
        let stream = &mut streams[usize::from(chunk.stream == OutputStream::Stderr)];
        assert_eq!(chunk.offset, stream.len() as u64);
        stream.extend_from_slice(&chunk.bytes);
        open -= u32::from(chunk.is_end());
    }
    assert_eq!(String::from_utf8_lossy(&streams[0]), "from stdin\n");
    assert_eq!(String::from_utf8_lossy(&streams[1]), "somebody in /tmp\n");
    assert_eq!(broker.outcome(execution).await.exit_code, 7);
    let record = broker.record(execution).await;
    let labels = record.iter().find_map(|event| match &event.phase {
        Phase::Requested(requested) => Some(requested.labels.clone()),
        _ => None,
    });
    let labels = labels.unwrap();
    assert_eq!((labels["job"].as_str(), labels["rack"].as_str()), ("42", "7"));
    broker.queue_is_empty().await;

    let watched = record.iter().any(|event| event.phase.name() == PhaseName::Profiled);
    match watched {
        true => {
            let receipt = broker.bus.wait_receipt(execution, DEADLINE).await.unwrap().expect("a receipt");
            let receipt = Receipt::decode(&receipt.body).unwrap();
            assert_eq!(receipt.exit_code, 7);
            assert!(receipt.processes.iter().any(|process| process.cmd.contains("cat")), "{receipt:?}");
        }
        false => eprintln!("skipped: nothing can be watched from the host here"),
    }
    assert_eq!(agent.stop(), Some(0));
    aggregator.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_ends_with_the_reason() {
    let broker = broker().await;
    let _agent = broker.agent("node-1", &["--concurrency", "1"]);
    let mut unknown = request("true");
    unknown.backend = Some("qemu".into());
    let mut missing = request("true");
    missing.argv = vec!["no-such-program".into()];
    let mut unwatched = request("true");
    unwatched.profile_required = true;
    for (request, code, word) in
        [(&unknown, 125, "qemu"), (&missing, 127, "no-such-program"), (&unwatched, 125, "profile")]
    {
        broker.submit(request).await;
        let outcome = broker.outcome(request.execution_id).await;
        assert_eq!(outcome.exit_code, code, "{outcome:?}");
        assert!(outcome.error.as_ref().is_some_and(|error| error.contains(word)), "{outcome:?}");
    }
    // What no agent can read is set aside, and whoever waits is told all the same.
    let strange = request("true");
    let mut document = serde_json::to_value(&strange).unwrap();
    document["memory_limit"] = 1.into();
    let subject = glasshouse_schema::subject::requests(&common::pool());
    let stored = broker.bus.jetstream().publish(subject, document.to_string().into()).await.unwrap();
    stored.await.unwrap();
    let outcome = broker.outcome(strange.execution_id).await;
    assert!(outcome.error.as_ref().is_some_and(|error| error.contains("memory_limit")), "{outcome:?}");
    broker.queue_is_empty().await;
    assert_eq!(broker.bus.position(glasshouse_nats::DEAD).await.unwrap().messages, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_command_is_cancelled_at_once_and_has_its_end() {
    let broker = broker().await;
    let _agent = broker.agent("node-1", &["--concurrency", "4", "--kill-grace", "100ms"]);
    let polite = request("exec sleep 1000");
    let up = broker.work().join("up");
    let deaf = format!("trap '' TERM; echo x > {}; while :; do sleep 0.05; done", up.display());
    let deaf = request(&deaf);
    for (request, action, signal) in [
        (&polite, Action::Cancel, "SIGTERM"),
        (&deaf, Action::Cancel, "SIGKILL"),
        (&request("exec sleep 1000"), Action::Kill, "SIGKILL"),
    ] {
        let execution = request.execution_id;
        assert_eq!(broker.bus.control(execution, action).await.unwrap(), None, "nobody runs it yet");
        broker.submit(request).await;
        broker.wait_phase(execution, PhaseName::Unprofiled).await;
        if execution == deaf.execution_id {
            // It hears the signal until its first line has run.
            until("it is deaf", || up.exists()).await;
        }
        let asked = Instant::now();
        let reply = broker.bus.control(execution, action).await.unwrap().expect("somebody runs it");
        assert_eq!(reply.node.as_str(), "node-1");
        broker.wait_phase(execution, PhaseName::Exited).await;
        let took = asked.elapsed();
        eprintln!("{action:?} with {signal}: {took:?} from asking to the stored end");
        if signal == "SIGTERM" || action == Action::Kill {
            assert!(took < Duration::from_millis(200), "{took:?}");
        }
        let outcome = broker.outcome(execution).await;
        assert_eq!(outcome.signal.as_deref(), Some(signal));
        assert!(outcome.error.is_some(), "{outcome:?}");
    }
    let mut late = request("exec sleep 1000");
    late.limits.wall_ms = Some(50);
    broker.submit(&late).await;
    let outcome = broker.outcome(late.execution_id).await;
    assert_eq!(outcome.limit_exceeded, Some(glasshouse_schema::Limit::Wall), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_limits_of_its_own_and_a_request_can_only_ask_for_less() {
    let broker = broker().await;
    let _agent = broker.agent("node-1", &["--concurrency", "2", "--limits", "wall=300ms,files=50"]);
    for asked in [None, Some(1_000_000), Some(100)] {
        let mut long = request("ulimit -n; exec sleep 1000");
        long.limits.wall_ms = asked;
        broker.submit(&long).await;
        let outcome = broker.outcome(long.execution_id).await;
        assert_eq!(outcome.limit_exceeded, Some(glasshouse_schema::Limit::Wall), "{outcome:?}");
        let record = broker.record(long.execution_id).await;
        let limits = record.iter().find_map(|event| match &event.phase {
            Phase::Admitted(admitted) => Some(admitted.limits),
            _ => None,
        });
        let limits = limits.unwrap();
        assert_eq!((limits.wall_ms, limits.open_files), (Some(asked.unwrap_or(300).min(300)), Some(50)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_what_it_offers_drains_and_reads_its_settings_again() {
    let broker = broker().await;
    let file = broker.dir.path().join("agent.toml");
    std::fs::write(&file, "concurrency = 1\n[labels]\nrack = \"7\"\n").unwrap();
    let mut agent = broker.agent("node-1", &["--config", file.to_str().unwrap(), "--drain-grace", "30s"]);
    let nodes = broker.bus.nodes().await.unwrap();
    let status = nodes[0].status.agent.clone().unwrap();
    assert_eq!((nodes.len(), nodes[0].status.node.as_str(), status.slots), (1, "node-1", 1));
    assert!(!status.machine.kernel.is_empty() && status.machine.memory_bytes > 0, "{status:?}");
    assert_eq!(status.backends, ["process"]);

    // One slot: the second waits, until there are two.
    let work = broker.work();
    let gate = |name: &str| work.join(name).to_str().unwrap().to_owned();
    let script =
        |name| format!("echo x > {}; while [ ! -e {} ]; do sleep 0.02; done", gate(name), gate("go"));
    let (first, second) = (request(&script("first")), request(&script("second")));
    for request in [&first, &second] {
        broker.submit(request).await;
    }
    broker.wait_phase(first.execution_id, PhaseName::Unprofiled).await;
    assert_eq!(broker.bus.queued().await.unwrap().len(), 2);
    assert!(
        broker.bus.lifecycle_of(second.execution_id).await.unwrap().is_empty(),
        "one slot takes one request"
    );
    std::fs::write(&file, "concurrency = 2\n[labels]\nrack = \"8\"\n").unwrap();
    agent.signal(Signal::SIGHUP);
    broker.wait_phase(second.execution_id, PhaseName::Unprofiled).await;
    let told = async {
        loop {
            let status = broker.bus.nodes().await.unwrap()[0].status.agent.clone().unwrap();
            if status.labels["rack"] == "8" && status.slots == 2 && status.free_slots == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("the new settings are told");

    // Both may end, and nothing more is taken.
    agent.signal(Signal::SIGTERM);
    let third = request("true");
    broker.submit(&third).await;
    std::fs::write(work.join("go"), "").unwrap();
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    for request in [&first, &second] {
        assert_eq!(broker.outcome(request.execution_id).await.exit_code, 0);
    }
    assert!(broker.bus.nodes().await.unwrap().is_empty(), "it said goodbye");
    assert_eq!(broker.bus.queued().await.unwrap().len(), 1);
    agent.restart();
    assert_eq!(broker.outcome(third.execution_id).await.exit_code, 0);

    // Asked twice, it ends what runs, and the record says why.
    let long = request("exec sleep 1000");
    broker.submit(&long).await;
    broker.wait_phase(long.execution_id, PhaseName::Unprofiled).await;
    agent.signal(Signal::SIGTERM);
    let draining = async {
        while !broker.bus.nodes().await.unwrap()[0].status.agent.as_ref().unwrap().draining {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, draining).await.expect("it says that it drains");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    let outcome = broker.outcome(long.execution_id).await;
    assert!(outcome.error.as_ref().is_some_and(|error| error.contains("stopped")), "{outcome:?}");
    broker.queue_is_empty().await;
}

/// A policy whose name a refusal names.
const POLICY: &str = "version: v1\nname: house\nrules:\n\
    - {id: no-reboot, phase: pre, expression: '!(request.argv[0] in [\"reboot\"])', message: nobody reboots here}\n\
    - {id: team, phase: pre, expression: request.labels.team != '', message: whose is it}\n\
    - {id: short, phase: pre, action: warn, expression: has(request.limits.wall_ms), message: it may take for ever}\n\
    - {id: after, expression: receipt.exit_code == 0, message: it failed}\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_policy_does_not_let_pass_does_not_run() {
    let broker = broker().await;
    let (file, policy) = (broker.dir.path().join("agent.toml"), broker.dir.path().join("house.yaml"));
    std::fs::write(&policy, POLICY).unwrap();
    std::fs::write(&file, format!("concurrency = 1\npolicies = [{:?}]\n", policy.display())).unwrap();
    let agent = broker.agent("node-1", &["--config", file.to_str().unwrap()]);
    let ran = broker.work().join("ran");
    let labelled = |argv: &[&str], team: Option<&str>| {
        let mut request = request(&format!("echo x > {}", ran.display()));
        request.labels.extend(team.map(|team| ("team".to_owned(), team.to_owned())));
        if !argv.is_empty() {
            request.argv = argv.iter().map(|&argument| argument.to_owned()).collect();
        }
        request
    };
    // Violated, and what cannot be evaluated: both are refused, each with policy, rule and reason.
    for (request, rule, reason) in [
        (labelled(&["reboot"], Some("a")), "no-reboot", "nobody reboots here"),
        (labelled(&[], None), "team", "nobody knows"),
        (labelled(&[], Some("")), "team", "whose is it"),
    ] {
        broker.submit(&request).await;
        let outcome = broker.outcome(request.execution_id).await;
        assert_eq!(outcome.exit_code, 125);
        let error = outcome.error.unwrap();
        assert!(
            error.contains(&format!("policy `house`, rule `{rule}`: ")) && error.contains(reason),
            "{error}"
        );
        let record = broker.record(request.execution_id).await;
        let phases: Vec<PhaseName> = record.iter().map(|event| event.phase.name()).collect();
        assert_eq!(phases, [PhaseName::Failed, PhaseName::Cleaned]);
        assert!(matches!(&record[0].phase, Phase::Failed(failed) if failed.step == Step::Admit));
    }
    assert!(!ran.exists());
    // What passes says by which policies.
    let passes = labelled(&[], Some("a"));
    broker.submit(&passes).await;
    assert_eq!(broker.outcome(passes.execution_id).await.exit_code, 0);
    assert!(ran.exists());
    let record = broker.record(passes.execution_id).await;
    let pinned = record.iter().find_map(|event| match &event.phase {
        Phase::Admitted(admitted) => Some(admitted.policies.clone()),
        _ => None,
    });
    assert_eq!(pinned.unwrap()[0].name.as_str(), "house");
    broker.queue_is_empty().await;

    // A reload takes what is right, and what is wrong leaves what there was.
    std::fs::write(&policy, POLICY.replace("== 0", "== zero")).unwrap();
    agent.signal(Signal::SIGHUP);
    let still = labelled(&["reboot"], Some("a"));
    broker.submit(&still).await;
    assert!(broker.outcome(still.execution_id).await.error.unwrap().contains("no-reboot"));
    std::fs::write(&file, "concurrency = 2\n").unwrap();
    agent.signal(Signal::SIGHUP);
    let two_slots = async {
        while broker.bus.nodes().await.unwrap()[0].status.agent.as_ref().unwrap().slots != 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, two_slots).await.expect("the new settings are told");
    let free = labelled(&[], None);
    broker.submit(&free).await;
    assert_eq!(broker.outcome(free.execution_id).await.exit_code, 0, "no policy any more");
}

#[test]
fn a_single_command_runs_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_glasshouse-node-agent"));
    command.args(["--backend", "process", "--profile", "disabled", "--", "sh", "-c", "echo hello; exit 3"]);
    let output = command.current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"hello\n");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "no receipt of what was not watched");

    std::fs::write(dir.path().join("house.yaml"), POLICY).unwrap();
    let mut refused = std::process::Command::new(env!("CARGO_BIN_EXE_glasshouse-node-agent"));
    refused.args(["--policy", "house.yaml", "--label", "team=a", "--", "reboot"]);
    let output = refused.current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("rule `no-reboot`"), "{output:?}");
}
