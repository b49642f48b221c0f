//! Files in and artifacts out, on a real server with real commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Broker, DEADLINE, broker, request};
use glasshouse_schema::files::{Files, MAX_FILE_BYTES, MAX_FILES, MAX_SKIPPED, StoredFile};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Failed, Phase, PhaseName, ProfilingMode, Step};
use glasshouse_schema::receipt::Receipt;
use glasshouse_schema::{ExecutionId, Request, SandboxLevel};

/// Stores a file as a submitter does.
async fn stored(broker: &Broker, path: &str, mode: u32, content: &[u8]) -> StoredFile {
    let (local, sha256) = (broker.dir.path().join("local"), Digest::of(content));
    std::fs::write(&local, content).unwrap();
    let bytes = content.len() as u64;
    let mut file = tokio::fs::File::open(&local).await.unwrap();
    broker.bus.store_file(&mut file, sha256, bytes).await.unwrap();
    StoredFile { path: path.into(), mode, bytes, sha256 }
}

/// What is in a file that was kept.
async fn content(broker: &Broker, file: &StoredFile) -> Vec<u8> {
    let local = broker.dir.path().join("fetched");
    let mut into = tokio::fs::File::create(&local).await.unwrap();
    broker.bus.fetch_file(file, &mut into).await.unwrap();
    std::fs::read(local).unwrap()
}

async fn files_of(broker: &Broker, execution: ExecutionId) -> Files {
    let record = broker.record(execution).await;
    let files = record.iter().find_map(|event| match &event.phase {
        Phase::Exited(exited) => Some(exited.files.as_ref().clone()),
        _ => None,
    });
    files.unwrap_or_else(|| panic!("{execution} has not exited: {record:?}"))
}

/// Working directories that are there.
fn workdirs(broker: &Broker) -> Vec<String> {
    let entries = std::fs::read_dir(broker.dir.path().join("node-1/work")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_there_at_the_start_and_artifacts_are_kept() {
    let broker = broker().await;
    let mut config = glasshouse_aggregator::Config::new(broker.server.url(), "test");
    config.producer_grace = DEADLINE;
    let aggregator = tokio::spawn(glasshouse_aggregator::run(config, std::future::pending()));
    let _agent = broker.agent("node-1", &["--concurrency", "2"]);
    let script = b"#!/bin/sh\nset -e\ntest \"$(cat data/in.txt)\" = hello\ntest ! -s empty\nmkdir -p out/sub\n\
        tr a-z A-Z < data/in.txt > out/b.txt\necho log > out/sub/a.log\nchmod 751 out/sub/a.log\npwd > where\n";
    let inputs = vec![
        stored(&broker, "run.sh", 0o755, script).await,
        stored(&broker, "data/in.txt", 0o440, b"hello\n").await,
        stored(&broker, "empty", 0o644, b"").await,
    ];
    for level in SandboxLevel::ALL {
        if level > SandboxLevel::None && !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: {level} needs root");
            continue;
        }
        let mut request = Request { argv: vec!["./run.sh".into()], ..request("") };
        request.files.clone_from(&inputs);
        request.artifacts = vec!["out".into(), "wh*".into(), "none/**".into()];
        request.sandbox.level = level;
        request.profile = Some(ProfilingMode::Host);
        broker.submit(&request).await;
        let outcome = broker.outcome(request.execution_id).await;
        assert_eq!(outcome.exit_code, 0, "{level}: {outcome:?}");
        let files = files_of(&broker, request.execution_id).await;
        let mut sorted = inputs.clone();
        sorted.sort();
        assert_eq!(files.inputs, sorted);
        let kept: Vec<(&str, u32)> =
            files.outputs.iter().map(|file| (file.path.as_str(), file.mode)).collect();
        assert_eq!(kept, [("out/b.txt", 0o644), ("out/sub/a.log", 0o751), ("where", 0o644)], "{level}");
        assert_eq!(content(&broker, &files.outputs[0]).await, b"HELLO\n");
        let skipped: Vec<(&str, &str)> =
            files.skipped.iter().map(|file| (file.path.as_str(), file.reason.as_str())).collect();
        assert_eq!(skipped, [("none/**", "nothing matches it")]);
        // Its path is the same inside, and it is gone.
        let there = String::from_utf8(content(&broker, &files.outputs[2]).await).unwrap();
        assert!(there.contains(&request.execution_id.to_string()), "{there}");
        assert!(!Path::new(there.trim()).exists());

        let record = broker.record(request.execution_id).await;
        if record.iter().any(|event| event.phase.name() == PhaseName::Profiled) {
            let receipt = broker.bus.wait_receipt(request.execution_id, DEADLINE).await.unwrap().unwrap();
            let receipt = Receipt::decode(&receipt.body).unwrap();
            assert_eq!(receipt.artifacts.files, files, "{level}");
        } else {
            eprintln!("skipped: nothing can be watched from the host here");
        }
    }
    // A sandbox alone has a directory of its own too.
    let mut alone = request("echo x > file && test $(ls | wc -l) = 1");
    alone.sandbox.level = SandboxLevel::Standard;
    if nix::unistd::geteuid().is_root() {
        broker.submit(&alone).await;
        assert_eq!(broker.outcome(alone.execution_id).await.exit_code, 0);
    }
    assert_eq!(workdirs(&broker), Vec::<String>::new());
    aggregator.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_given_end_the_record_with_the_reason() {
    let broker = broker().await;
    let _agent = broker.agent("node-1", &["--concurrency", "2"]);
    let good = stored(&broker, "good", 0o644, b"good").await;
    // Under the digest of something else, as whoever can write to the store could put it there.
    let store = broker.bus.jetstream().get_object_store(glasshouse_nats::FILES).await.unwrap();
    store.put(Digest::of(b"well").to_string().as_str(), &mut &b"evil"[..]).await.unwrap();
    let evil = StoredFile { path: "evil".into(), mode: 0o644, bytes: 4, sha256: Digest::of(b"well") };
    let missing = StoredFile { sha256: Digest::of(b"none"), ..evil.clone() };
    let longer = StoredFile { bytes: 5, ..good.clone() };
    for (file, word) in [(&evil, "is something else"), (&missing, "never stored"), (&longer, "4 bytes")] {
        let mut refused = request("echo it ran");
        refused.files = vec![file.clone()];
        broker.submit(&refused).await;
        let outcome = broker.outcome(refused.execution_id).await;
        assert_eq!(outcome.exit_code, 125);
        let error = outcome.error.unwrap();
        assert!(error.contains(word) && error.contains(&format!("`{}`", file.path)), "{error}");
        let record = broker.record(refused.execution_id).await;
        assert!(record.iter().all(|event| event.phase.name() != PhaseName::Started), "{record:?}");
    }
    // What the submitter's own check would have refused, the agent refuses too.
    let mut patterns = request("true");
    patterns.artifacts = vec!["a[".into()];
    broker.submit(&patterns).await;
    let record = broker.record(patterns.execution_id).await;
    let failed = record.iter().find_map(|event| match &event.phase {
        Phase::Failed(Failed { step, error, .. }) => Some((*step, error.clone())),
        _ => None,
    });
    let (step, error) = failed.unwrap();
    assert!(step == Step::Validate && error.contains("a["), "{error}");
    let mut outside = serde_json::to_value(request("true")).unwrap();
    outside["files"] = serde_json::json!([StoredFile { path: "../x".into(), ..good }]);
    let subject = glasshouse_schema::subject::requests(&common::pool());
    let sent = broker.bus.jetstream().publish(subject, outside.to_string().into()).await.unwrap();
    sent.await.unwrap();
    let id = outside["execution_id"].as_str().unwrap().parse().unwrap();
    let outcome = broker.outcome(id).await;
    assert!(outcome.error.as_ref().is_some_and(|error| error.contains("../x")), "{outcome:?}");
    broker.queue_is_empty().await;
    assert_eq!(workdirs(&broker), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_command_leaves_leads_out_of_its_directory() {
    let broker = broker().await;
    let _agent = broker.agent("node-1", &["--concurrency", "2"]);
    let secret = broker.work().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("key"), "secret").unwrap();
    let script = "ln -s $SECRET/key link; ln -s $SECRET dirlink; mkfifo fifo; mkdir -p d/e m; echo x > d/e/f
        printf 'x' > \"$(printf 'd/bad\\377')\"; printf x > \"$(printf 'd/new\\nline')\"
        truncate -s $HUGE d/huge; ln -s . d/loop; mkdir closed; echo y > closed/g; chmod 0 closed
        mount --bind $SECRET m 2>/dev/null || rmdir m; exit 3";
    let mut hostile = request(script);
    hostile.env.insert("SECRET".into(), secret.to_str().unwrap().into());
    hostile.env.insert("HUGE".into(), (MAX_FILE_BYTES + 1).to_string());
    hostile.artifacts = vec!["**/*".into(), "dirlink/key".into()];
    broker.submit(&hostile).await;
    assert_eq!(broker.outcome(hostile.execution_id).await.exit_code, 3);
    let files = files_of(&broker, hostile.execution_id).await;
    let kept: Vec<&str> = files.outputs.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(kept, ["closed/g", "d/e/f"], "{files:?}");
    let reason = |path: &str| {
        let found = files.skipped.iter().find(|skipped| skipped.path == path);
        found.map(|skipped| skipped.reason.as_str()).unwrap_or_default()
    };
    for (path, word) in [
        ("link", "symbolic link"),
        ("dirlink", "symbolic link"),
        ("d/loop", "symbolic link"),
        ("fifo", "regular"),
        ("d/bad\u{fffd}", "UTF-8"),
        ("d/new\nline", "control"),
        ("d/huge", "more than"),
        ("dirlink/key", "nothing matches"),
    ] {
        assert!(reason(path).contains(word), "{path}: {}; {files:?}", reason(path));
    }
    let mounted = reason("m");
    assert!(mounted.is_empty() || mounted.contains("mounted there"), "{mounted}");
    assert_eq!(std::fs::read(secret.join("key")).unwrap(), b"secret", "what was mounted is left alone");
    assert_eq!(workdirs(&broker), Vec::<String>::new());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&hostile.execution_id.to_string()));

    let mut many = request("i=0; while [ $i -lt 300 ]; do : > f$i; i=$((i+1)); done");
    many.artifacts = vec!["f*".into()];
    broker.submit(&many).await;
    let files = files_of(&broker, many.execution_id).await;
    assert_eq!((files.outputs.len(), files.skipped.len()), (MAX_FILES, MAX_SKIPPED));
    assert_eq!(files.more_skipped, (300 - MAX_FILES - MAX_SKIPPED) as u64);
    assert!(files.skipped[0].reason.contains("256 files are taken"), "{:?}", files.skipped[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_leaves_no_directory_and_a_cancelled_command_its_artifacts() {
    let broker = broker().await;
    let mut agent = broker.agent("node-1", &["--concurrency", "2", "--ack-wait", "2s"]);
    let script = "echo partial > result; echo up > up; exec sleep 1000";
    let running = |execution: ExecutionId| {
        let up = broker.dir.path().join("node-1/work").join(execution.to_string()).join("up");
        async move { common::until("it runs", || up.exists()).await }
    };
    let mut cancelled = request(script);
    cancelled.artifacts = vec!["result".into()];
    broker.submit(&cancelled).await;
    running(cancelled.execution_id).await;
    let action = glasshouse_schema::request::Action::Cancel;
    assert!(broker.bus.control(cancelled.execution_id, action).await.unwrap().is_some());
    let files = files_of(&broker, cancelled.execution_id).await;
    assert_eq!(content(&broker, &files.outputs[0]).await, b"partial\n");

    let mut lost = request(script);
    lost.artifacts = vec!["result".into()];
    broker.submit(&lost).await;
    running(lost.execution_id).await;
    agent.crash();
    let dir = broker.dir.path().join("node-1/work").join(lost.execution_id.to_string());
    // What root closed to itself goes too.
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o000)).unwrap();
    assert!(dir.exists());
    agent.restart();
    assert!(!dir.exists(), "it is removed before requests are taken");
    let outcome = broker.outcome(lost.execution_id).await;
    assert!(outcome.error.as_ref().is_some_and(|error| error.starts_with("outcome unknown")), "{outcome:?}");
}
