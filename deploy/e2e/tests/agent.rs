//! A node agent and its clients, as a user runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use glasshouse_e2e::{
    Pipeline, Process, command, output, output_within, skip_unless_watching_works, stderr, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::Value;

#[path = "../../../producers/kata/tests/support/containerd.rs"]
#[allow(dead_code, reason = "the tests of containers use the rest of it")]
mod containerd;
#[path = "machines/image.rs"]
mod image;

use containerd::Containerd;

/// A pipeline and an agent with two slots.
struct Fleet {
    agent: Process,
    pipeline: Pipeline,
    _state: tempfile::TempDir,
}

impl Fleet {
    fn start() -> Self {
        Self::started_by(&[])
    }

    /// With these variables in the agent's environment.
    fn started_by(environment: &[(&str, &str)]) -> Self {
        let pipeline = Pipeline::start(&[], &[]);
        let state = tempfile::tempdir().unwrap();
        let mut agent = command("glasshouse-node-agent");
        agent.args([
            "--nats",
            &pipeline.url,
            "--node",
            "node-1",
            "--concurrency",
            "2",
            "--socket",
            "none",
            "--kill-grace",
            "1s",
            "--state",
        ]);
        agent.arg(state.path()).envs(environment.iter().copied()).stderr(Stdio::piped());
        let mut agent = Process::spawn(agent);
        let mut log = BufReader::new(agent.0.stderr.take().unwrap()).lines();
        assert!(log.by_ref().map_while(Result::ok).any(|line| line.contains("taking requests")));
        std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("agent: {line}")));
        Self { agent, pipeline, _state: state }
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = command("glasshouse");
        command.env("GLASSHOUSE_NATS", &self.pipeline.url).args(args);
        command
    }

    fn json(&self, args: &[&str]) -> Vec<Value> {
        let output = output(self.client(args));
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    /// Submits without waiting, and gives the id.
    fn detached(&self, script: &str) -> String {
        let output = output(self.client(&["submit", "--detach", "--", "sh", "-c", script]));
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn wait_until_it_runs(&self, id: &str) {
        wait_for("the execution runs", || {
            let all = self.json(&["ps", "--json"]);
            all.iter().any(|one| one["execution_id"] == id && one["state"] == "running").then_some(())
        });
    }
}

#[test]
fn what_a_command_prints_and_how_it_ends_comes_back() {
    let mut fleet = Fleet::start();
    let submitted = output(fleet.client(&[
        "submit",
        "--env",
        "A=b",
        "--",
        "sh",
        "-c",
        "echo out $A; echo err >&2; exit 3",
    ]));
    assert_eq!(submitted.status.code(), Some(3), "{}", stderr(&submitted));
    assert_eq!(submitted.stdout, b"out b\n");
    assert_eq!(stderr(&submitted), "err\n");

    let mut echo = fleet.client(&["submit", "--stdin", "--", "cat"]);
    let mut child = echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"in\n").unwrap();
    let echoed = child.wait_with_output().unwrap();
    assert_eq!((echoed.status.code(), echoed.stdout.as_slice()), (Some(0), &b"in\n"[..]));

    let missing = output(fleet.client(&["submit", "--json", "--", "no-such-program"]));
    assert_eq!(missing.status.code(), Some(127), "{}", stderr(&missing));
    let end = stderr(&missing);
    let end: Value = serde_json::from_str(end.lines().next().unwrap()).unwrap();
    assert_eq!((end["node"].as_str(), end["outcome"]["exit_code"].as_i64()), (Some("node-1"), Some(127)));

    let id = fleet.detached("echo kept; exit 4");
    let waited = output(fleet.client(&["wait", &id]));
    assert_eq!(waited.status.code(), Some(4));
    for follow in [&["logs", &id][..], &["logs", "-f", &id]] {
        assert_eq!(output(fleet.client(follow)).stdout, b"kept\n", "{follow:?}");
    }
    let nodes = fleet.json(&["nodes", "--json"]);
    let nodes: Vec<_> =
        nodes.iter().map(|node| (node["node"].as_str(), node["agent"]["slots"].as_i64())).collect();
    assert_eq!(nodes, [(Some("node-1"), Some(2))]);
    assert_eq!(fleet.agent.stop(), Some(0));
}

#[test]
fn a_request_has_its_sandbox_and_its_limits() {
    let fleet = Fleet::start();
    let limited = output(fleet.client(&["submit", "--json", "--limit", "wall=300ms", "--", "sleep", "1000"]));
    assert_eq!(limited.status.code(), Some(137), "{}", stderr(&limited));
    let end = stderr(&limited);
    let end: Value = serde_json::from_str(end.lines().next().unwrap()).unwrap();
    assert_eq!(end["outcome"]["limit_exceeded"], "wall");

    let relative =
        output(fleet.client(&["submit", "--sandbox", "strict", "--allow-read", "here", "--", "true"]));
    assert!(stderr(&relative).contains("not an absolute path"), "{}", stderr(&relative));

    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: a sandbox needs root");
    }
    let dir = tempfile::tempdir_in("/root").unwrap();
    let (work, outside) = (dir.path().join("work"), dir.path().join("outside"));
    std::fs::create_dir(&work).unwrap();
    let script = format!("echo a > kept; echo b > {}", outside.display());
    for (level, refused) in [("none", false), ("standard", true), ("strict", true)] {
        let workdir = work.to_str().unwrap();
        let options = ["submit", "--sandbox", level, "--workdir", workdir, "--", "sh", "-c", &script];
        let done = output(fleet.client(&options));
        assert_eq!(done.status.success(), !refused, "{level}: {}", stderr(&done));
        assert_eq!(outside.exists(), !refused, "{level}");
        std::fs::remove_file(work.join("kept")).unwrap();
        let _ = std::fs::remove_file(&outside);
    }
}

#[test]
fn files_go_along_and_artifacts_come_back() {
    let fleet = Fleet::start();
    let dir = tempfile::tempdir().unwrap();
    let local = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(
        local("run.sh"),
        "#!/bin/sh\nmkdir out; sort data/in > out/sorted; ln -s sorted out/link\n",
    )
    .unwrap();
    std::fs::set_permissions(local("run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(local("words"), "b\na\n").unwrap();
    let (script, words, results) = (local("run.sh"), format!("{}:data/in", local("words")), local("results"));
    let files = ["--file", &script, "--file", &words, "--artifact", "out"];
    let submit =
        [&["submit", "--json"][..], &files, &["--artifacts-dir", &results, "--", "./run.sh"]].concat();
    let done = output(fleet.client(&submit));
    assert!(done.status.success(), "{}", stderr(&done));
    let sorted = dir.path().join("results/out/sorted");
    assert_eq!(std::fs::read(&sorted).unwrap(), b"a\nb\n");
    assert!(stderr(&done).contains("out/link is not kept: it is a symbolic link"), "{}", stderr(&done));
    let end: Value = serde_json::from_str(stderr(&done).lines().next().unwrap()).unwrap();
    assert_eq!(end["files"]["inputs"].as_array().unwrap().len(), 2);
    assert!(std::fs::symlink_metadata(dir.path().join("results/out/link")).is_err());

    // The same later, by its id; what is there is replaced.
    let id = end["execution_id"].as_str().unwrap();
    let listed = fleet.json(&["artifact", "list", "--json", id]);
    assert_eq!(listed[0]["outputs"][0]["path"], "out/sorted");
    std::fs::write(&sorted, "something else").unwrap();
    assert!(output(fleet.client(&["artifact", "get", "-o", &results, id])).status.success());
    assert_eq!(std::fs::read(&sorted).unwrap(), b"a\nb\n");
    let none = output(fleet.client(&["artifact", "get", "0198c0de-0000-7000-8000-000000000000"]));
    assert_eq!(none.status.code(), Some(125));

    // In a batch, where a file is read and stored once.
    let line =
        serde_json::json!({"argv": ["./run.sh"], "files": [script, words], "artifacts": ["out/sorted"]});
    let mut batch = fleet.client(&["batch", "--artifacts-dir", &results, "-"]);
    let mut child = batch.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{line}\n{line}\n").as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    for end in String::from_utf8(done.stdout).unwrap().lines() {
        let end: Value = serde_json::from_str(end).unwrap();
        let path = dir.path().join("results").join(end["execution_id"].as_str().unwrap()).join("out/sorted");
        assert_eq!(std::fs::read(path).unwrap(), b"a\nb\n");
    }

    // What is wrong is said before anything is submitted.
    for (bad, word) in [
        (&["--file", "/no/such/file"][..], "/no/such/file"),
        (&["--file", &format!("{}:../x", local("words"))], "../x"),
        (&["--artifact", "a["], "not a pattern"),
        (&["--artifact", "a", "--workdir", "/tmp"], "--workdir"),
        (&["--file", &script, "--file", &script], "two files"),
    ] {
        let refused = output(fleet.client(&[&["submit"], bad, &["--", "true"]].concat()));
        assert!(
            !refused.status.success() && stderr(&refused).contains(word),
            "{bad:?}: {}",
            stderr(&refused)
        );
    }
    assert!(fleet.json(&["ps", "--json"]).is_empty());
}

#[test]
fn what_runs_and_what_waits_is_cancelled() {
    let fleet = Fleet::start();
    // Ctrl-C, by whoever submitted it.
    let mut submit = fleet.client(&["submit", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    let mut child = Process::spawn({
        submit.stdout(Stdio::piped());
        submit
    });
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let asked = Instant::now();
    child.signal(Signal::SIGINT);
    let status = wait_for("submit ends", || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(128 + 15));
    eprintln!("Ctrl-C to the end of submit: {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(1));

    // Two that run and one that waits, by their ids.
    let running = [fleet.detached("exec sleep 1000"), fleet.detached("exec sleep 1000")];
    running.iter().for_each(|id| fleet.wait_until_it_runs(id));
    let waiting = fleet.detached("true");
    let cancelled = fleet.json(&["cancel", "--json", &waiting]);
    assert_eq!(cancelled[0]["result"], "unqueued");
    for id in &running {
        assert_eq!(fleet.json(&["cancel", "--kill", "--json", id])[0]["result"], "told");
    }
    for (id, code) in [(&running[0], 137), (&running[1], 137), (&waiting, 125)] {
        assert_eq!(output(fleet.client(&["wait", "--timeout", "30s", id])).status.code(), Some(code));
        assert_eq!(fleet.json(&["cancel", "--json", id])[0]["result"], "over");
    }
    wait_for("the queue is empty", || fleet.json(&["ps", "--json"]).is_empty().then_some(()));
    let never = output(fleet.client(&["cancel", "0198c0de-0000-7000-8000-000000000000"]));
    assert_eq!(never.status.code(), Some(125));
}

/// As sd_notify(3) and sd_watchdog_enabled(3) say; nothing here runs systemd itself.
#[test]
fn a_service_manager_hears_that_the_agent_lives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let heard = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    heard.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let hear = || {
        let mut word = [0; 64];
        let length = heard.recv(&mut word).unwrap();
        String::from_utf8(word[..length].to_vec()).unwrap()
    };
    let mut fleet =
        Fleet::started_by(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")]);
    let mut words = vec![hear()];
    assert_eq!(words[0], "READY=1");
    let since = Instant::now();
    while words.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 {
        words.push(hear());
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{words:?} in {:?}", since.elapsed());
    fleet.agent.signal(Signal::SIGTERM);
    wait_for("it says that it stops", || (hear() == "STOPPING=1").then_some(()));
    assert_eq!(wait_for("the agent ends", || fleet.agent.0.try_wait().unwrap()).code(), Some(0));
}

#[test]
fn a_cancelled_command_leaves_its_receipt() {
    skip_unless_watching_works!();
    let fleet = Fleet::start();
    let dir = tempfile::tempdir().unwrap();
    let up = dir.path().join("up");
    let script = format!("echo > {}; exec sleep 1000", up.display());
    let submitted = ["submit", "--detach", "--profile", "host", "--", "sh", "-c", &script];
    let submitted = output(fleet.client(&submitted));
    assert!(submitted.status.success(), "{}", stderr(&submitted));
    let id = String::from_utf8(submitted.stdout).unwrap().trim().to_owned();
    wait_for("the command runs", || up.exists().then_some(()));
    assert_eq!(fleet.json(&["cancel", "--json", &id])[0]["result"], "told");
    assert_eq!(output(fleet.client(&["wait", "--timeout", "30s", &id])).status.code(), Some(143));
    let receipt = fleet.json(&["receipt", "get", "--wait", "--json", &id]).remove(0);
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
    assert_eq!(receipt["outcome"]["signal"], "SIGTERM", "{:#}", receipt["outcome"]);
}

#[test]
fn a_batch_gives_a_line_for_every_request() {
    let fleet = Fleet::start();
    let mut batch = fleet.client(&["batch", "--in-flight", "8", "-"]);
    let mut child = batch.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = String::new();
    for code in 0..30 {
        lines +=
            &format!("{{\"argv\": [\"sh\", \"-c\", \"exit {code}\"], \"labels\": {{\"n\": \"{code}\"}}}}\n");
    }
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1), "some did not end with 0");
    let ends = String::from_utf8(done.stdout).unwrap();
    let mut codes: Vec<i64> = ends
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["outcome"]["exit_code"].as_i64().unwrap())
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, (0..30).collect::<Vec<i64>>());

    let mut wrong = fleet.client(&["batch", "-"]);
    let mut child = wrong.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\"argv\": [\"true\"]}\n{\"args\": []}\n").unwrap();
    let refused = child.wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert!(stderr(&refused).contains("line 2"), "{}", stderr(&refused));
    assert!(fleet.json(&["ps", "--json"]).is_empty(), "nothing of it was submitted");
}

/// An emulated machine on a busy host takes its time.
const MACHINE_DEADLINE: Duration = Duration::from_secs(180);

/// Submits a command that says where it is, and gives its receipt.
fn receipt_of_submitted(fleet: &Fleet, options: &[&str], script: &str, expected: (i32, &str)) -> Value {
    let submit = [&["submit", "--json"], options, &["--", "/bin/sh", "-c", script]].concat();
    let done = output_within(MACHINE_DEADLINE, fleet.client(&submit));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!((done.status.code(), said.as_str()), (Some(expected.0), expected.1), "{}", stderr(&done));
    let end: Value = serde_json::from_str(stderr(&done).lines().next().unwrap()).unwrap();
    let id = end["execution_id"].as_str().unwrap();
    fleet.json(&["receipt", "get", "--wait", "--json", id]).remove(0)
}

#[test]
fn a_request_runs_in_a_virtual_machine() {
    skip_unless_watching_works!();
    let image = match image::made() {
        Ok(image) => image,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let cache = tempfile::tempdir().unwrap();
    // Of one that cannot run here nobody is told, and the others run.
    let fleet = Fleet::started_by(&[
        ("GLASSHOUSE_BACKENDS", "process,qemu,kata"),
        ("GLASSHOUSE_IMAGE", image.to_str().unwrap()),
        ("GLASSHOUSE_CONTAINER_IMAGE", "glasshouse.test/busybox:latest"),
        ("CONTAINERD_ADDRESS", "/nonexistent"),
        ("XDG_CACHE_HOME", cache.path().to_str().unwrap()),
        ("GLASSHOUSE_PROFILE", "combined"),
        ("GLASSHOUSE_WARM_MACHINES", "1"),
    ]);
    let nodes = fleet.json(&["nodes", "--json"]);
    assert_eq!(nodes[0]["agent"]["backends"], serde_json::json!(["process", "qemu"]));
    let reason = nodes[0]["agent"]["unavailable_backends"]["kata"].as_str().unwrap();
    assert!(reason.contains("is containerd running"), "{reason}");
    let refused = output(fleet.client(&["submit", "--backend", "kata", "--", "true"]));
    assert_eq!(refused.status.code(), Some(125));
    assert!(stderr(&refused).contains("is containerd running"), "{}", stderr(&refused));

    let options = ["--backend", "qemu", "--profile", "combined"];
    let script = "echo x > /srv/made; pwd; exit 5";
    let receipt = receipt_of_submitted(&fleet, &options, script, (5, "/\n"));
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
    let told = (&receipt["environment"]["runtime"], &receipt["provenance"]);
    assert_eq!(told, (&"qemu".into(), &"host+guest".into()));
    assert!(receipt["filesystem"]["writes"].as_array().unwrap().contains(&"/srv/made".into()));
    // It booted when the agent began.
    assert!(receipt["environment"]["snapshot"].is_string(), "{:#}", receipt["environment"]);
}

#[test]
fn a_request_runs_in_a_container() {
    skip_unless_watching_works!();
    let containerd = match Containerd::shared() {
        Ok(containerd) => containerd,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let address = containerd.address();
    let fleet = Fleet::started_by(&[
        ("GLASSHOUSE_BACKENDS", "process,kata"),
        ("GLASSHOUSE_CONTAINER_IMAGE", containerd::IMAGE),
        ("GLASSHOUSE_RUNTIME", containerd::RUNTIME),
        ("CONTAINERD_ADDRESS", address.to_str().unwrap()),
        ("CONTAINERD_NAMESPACE", containerd::NAMESPACE),
    ]);
    assert_eq!(
        fleet.json(&["nodes", "--json"])[0]["agent"]["backends"],
        serde_json::json!(["process", "kata"])
    );
    for profile in ["host", "guest"] {
        let options = ["--backend", "kata", "--profile", profile, "--limit", "memory=64MiB"];
        let script = "echo x > made; pwd; ls /; exit 5";
        let receipt = receipt_of_submitted(&fleet, &options, script, (5, "/tmp\nbin\ndev\nproc\nsys\ntmp\n"));
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
        let told = (&receipt["environment"]["runtime"], &receipt["provenance"]);
        assert_eq!(told, (&containerd::RUNTIME.into(), &profile.into()));
        assert_eq!(receipt["filesystem"]["writes"], serde_json::json!(["/tmp/made"]));
        assert_eq!(containerd.left(receipt["execution_id"].as_str().unwrap()), Vec::<String>::new());
    }
    // And without an agent.
    let receipt = tempfile::NamedTempFile::new().unwrap();
    let mut run = command("glasshouse");
    run.args(["run", "--backend", "kata", "--runtime", containerd::RUNTIME, "--image", containerd::IMAGE]);
    run.args(["--containerd", address.to_str().unwrap(), "--containerd-namespace", containerd::NAMESPACE]);
    run.args(["--profile", "combined", "--receipt", receipt.path().to_str().unwrap()]);
    run.args(["--", "sh", "-c", "cat; exit 6"]);
    let ran = output(run);
    assert_eq!(ran.status.code(), Some(6), "{}", stderr(&ran));
    let receipt: Value = serde_json::from_slice(&std::fs::read(receipt.path()).unwrap()).unwrap();
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
    assert_eq!((&receipt["provenance"], &receipt["contradictions"]), (&"host+guest".into(), &Value::Null));
    let mut doctor = command("glasshouse");
    doctor.args(["doctor", "--json"]).env("CONTAINERD_ADDRESS", &address);
    doctor.env("GLASSHOUSE_RUNTIME", containerd::RUNTIME);
    let report: Value = serde_json::from_slice(&output(doctor).stdout).unwrap();
    for backend in ["backend process", "backend kata"] {
        let mut findings = report["findings"].as_array().unwrap().iter();
        let finding = findings.find(|finding| finding["name"] == backend).unwrap();
        assert_eq!((&finding["group"], &finding["status"]), (&"backends".into(), &"ok".into()), "{finding}");
    }
    let with_files =
        output(fleet.client(&["submit", "--backend", "kata", "--artifact", "made", "--", "true"]));
    assert!(stderr(&with_files).contains("takes no files"), "{}", stderr(&with_files));
}
