//! The command line: exit codes, fail-open and fail-closed, and errors that say what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use glasshouse_e2e::{Pipeline, Process, command, output, skip_unless_watching_works, stderr, wait_for};
use nix::sys::signal::Signal;

fn glasshouse(args: &[&str]) -> Output {
    let mut run = command("glasshouse");
    run.args(args);
    output(run)
}

#[test]
fn the_exit_code_is_the_commands_own() {
    for (script, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 125", 125),
        ("kill -TERM $$", 128 + 15),
        ("kill -9 $$", 128 + 9),
    ] {
        let output = glasshouse(&["run", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", stderr(&output));
        // The line on stderr tells the command's own 125 from ours.
        assert_eq!(stderr(&output), "", "{script}");
    }
}

#[test]
fn what_cannot_run_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let missing = glasshouse(&["run", "--", "/no/such/program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(stderr(&missing).contains("command not found"), "{}", stderr(&missing));
    let not_executable = glasshouse(&["run", "--", plain.to_str().unwrap()]);
    assert_eq!(not_executable.status.code(), Some(126), "{}", stderr(&not_executable));
    let no_backend = glasshouse(&["run", "--backend", "cloud", "--", "true"]);
    assert_eq!(no_backend.status.code(), Some(2));
    assert!(stderr(&no_backend).contains("invalid value 'cloud'"), "{}", stderr(&no_backend));
    let unknown_flag = glasshouse(&["run", "--no-such-flag", "--", "true"]);
    assert_eq!(unknown_flag.status.code(), Some(2));
    assert!(stderr(&unknown_flag).contains("--no-such-flag"));
}

#[test]
fn streams_pass_through() {
    let mut run = command("glasshouse");
    run.args(["run", "--", "sh", "-c", "cat; echo err >&2"]);
    run.stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = run.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), stderr(&output).as_str()), (&b"through"[..], "err\n"));
}

/// Runs with profiling that cannot work, open and closed, and gives what stderr said.
fn fails_open_and_closed(prefix: &[&str], options: &[&str], why: &str) {
    let why = &why.to_lowercase();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let receipt = dir.path().join("receipt.json");
    let run = |required: &[&str], marker: &Path| {
        let program = glasshouse_e2e::program("glasshouse");
        let mut words: Vec<&str> = prefix.to_vec();
        words.push(program.to_str().unwrap());
        let mut run = std::process::Command::new(words[0]);
        run.args(&words[1..]).args(["run", "--profile", "host", "--json", "--receipt"]).arg(&receipt);
        run.args(options).args(required).args([
            "--",
            "sh",
            "-c",
            &format!("echo ran > {}; exit 5", marker.display()),
        ]);
        output(run)
    };
    let marker = dir.path().join("open");
    let open = run(&[], &marker);
    let said = stderr(&open);
    assert_eq!(open.status.code(), Some(5), "{said}");
    assert!(marker.exists(), "the command ran");
    assert!(said.contains("ran unwatched") && said.to_lowercase().contains(why.as_str()), "{said}");
    let summary: serde_json::Value =
        serde_json::from_str(said.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert!(summary["unprofiled"].as_str().unwrap().to_lowercase().contains(why.as_str()), "{summary}");
    assert!(!receipt.exists(), "there is no receipt");

    let marker = dir.path().join("closed");
    let closed = run(&["--profile-required"], &marker);
    assert_eq!(closed.status.code(), Some(125), "{}", stderr(&closed));
    assert!(!marker.exists(), "the command never ran");
    assert!(stderr(&closed).contains("glasshouse: error:"), "{}", stderr(&closed));
    assert!(!receipt.exists());
}

#[test]
fn without_root_profiling_fails_open_and_closed() {
    if !nix::unistd::geteuid().is_root() {
        return fails_open_and_closed(&["env"], &[], "root");
    }
    // The build directory may be closed to others: check before blaming the product.
    let program = glasshouse_e2e::program("glasshouse");
    let prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let probe = output({
        let mut probe = std::process::Command::new(prefix[0]);
        probe.args(&prefix[1..]).args([program.to_str().unwrap(), "--version"]);
        probe
    });
    if !probe.status.success() {
        eprintln!("skipped: another user cannot run {}: {}", program.display(), stderr(&probe));
        return;
    }
    fails_open_and_closed(&prefix, &[], "root");
}

#[test]
fn without_btf_profiling_fails_open_and_closed() {
    skip_unless_watching_works!();
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    fails_open_and_closed(&["unshare", "-m", "sh", "-c", hide], &[], "btf");
}

#[test]
fn with_broken_objects_profiling_fails_open_and_closed() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    fails_open_and_closed(
        &["env"],
        &["--bpf-dir", dir.path().to_str().unwrap()],
        dir.path().to_str().unwrap(),
    );
    for object in std::fs::read_dir(glasshouse_e2e::root().join("bpf/probe")).unwrap() {
        let name = object.unwrap().file_name().into_string().unwrap();
        if let Some(stem) = name.strip_suffix(".bpf.c") {
            std::fs::write(dir.path().join(format!("{stem}.bpf.o")), b"\x7fELF broken").unwrap();
        }
    }
    fails_open_and_closed(
        &["env"],
        &["--bpf-dir", dir.path().to_str().unwrap()],
        dir.path().to_str().unwrap(),
    );
}

#[test]
fn guest_profiling_of_a_backend_without_a_guest_says_so() {
    let output = glasshouse(&["run", "--profile", "guest", "--", "true"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("has no guest"), "{}", stderr(&output));
}

#[test]
fn a_bad_policy_is_refused_with_line_and_column_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("bad.yaml");
    let marker = dir.path().join("ran");
    let text = "name: bad\nversion: v1\nrules:\n  - id: typo\n    expression: receipt.netwrok.attempts.size() == 0\n    message: m\n";
    std::fs::write(&policy, text).unwrap();
    let output =
        glasshouse(&["run", "--policy", policy.to_str().unwrap(), "--", "touch", marker.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains(&format!("{}:5:", policy.display())), "{}", stderr(&output));
    assert!(!marker.exists());
}

#[test]
fn a_rule_before_the_run_keeps_a_command_from_running() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, marker) = (dir.path().join("pre.yaml"), dir.path().join("ran"));
    let text = "name: pre\nversion: v1\nrules:\n  - id: no-touch\n    phase: pre\n    \
        expression: request.argv[0] != 'touch' || request.labels.why != ''\n    message: do not touch\n";
    std::fs::write(&policy, text).unwrap();
    let run = |options: &[&str]| {
        let argv = ["--", "touch", marker.to_str().unwrap()];
        glasshouse(&[&["run", "--policy", policy.to_str().unwrap()], options, &argv[..]].concat())
    };
    for (options, reason) in [(&["--label", "why="][..], "do not touch"), (&[], "nobody knows")] {
        let refused = run(options);
        assert_eq!(refused.status.code(), Some(125));
        let said = stderr(&refused);
        assert!(said.contains("policy `pre`, rule `no-touch`: ") && said.contains(reason), "{said}");
        assert!(!marker.exists());
    }
    let passes = run(&["--label", "why=test"]);
    assert!(passes.status.success() && marker.exists(), "{}", stderr(&passes));
}

#[test]
fn an_unreachable_or_too_old_server_is_said_within_five_seconds_and_the_receipt_stays_local() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let receipt = dir.path().join("receipt.json");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let unreachable = free.local_addr().unwrap();
    drop(free);
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let old_address = old.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in old.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let info = r#"{"server_id":"X","version":"2.9.10","proto":1,"headers":true,"max_payload":1048576,"jetstream":true}"#;
            let _ = stream.write_all(format!("INFO {info}\r\n").as_bytes());
            let mut buffer = [0; 512];
            while std::io::Read::read(&mut stream, &mut buffer).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(b"PONG\r\n");
            }
        }
    });
    for (address, word) in [(unreachable, "nats"), (old_address, "2.12")] {
        let url = format!("nats://ana:s3cret@{address}");
        let begin = Instant::now();
        let output = glasshouse(&[
            "run",
            "--profile",
            "host",
            "--nats",
            &url,
            "--receipt",
            receipt.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            "exit 4",
        ]);
        assert!(begin.elapsed() < Duration::from_secs(8), "took {:?}", begin.elapsed());
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        assert!(stderr(&output).to_lowercase().contains(word), "{}", stderr(&output));
        let doctor = glasshouse(&["doctor", "--json", "--nats", &url]);
        assert!(String::from_utf8_lossy(&doctor.stdout).contains(&address.to_string()));
        let receipt_text = std::fs::read(&receipt).expect("the local receipt is written");
        for said in [&output.stderr, &doctor.stdout, &doctor.stderr, &receipt_text] {
            assert!(!String::from_utf8_lossy(said).contains("s3cret"), "{}", String::from_utf8_lossy(said));
        }
        std::fs::remove_file(&receipt).unwrap();
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(glasshouse(&["completions", shell]).stdout.len() > 1000);
    }
    let dir = tempfile::tempdir().unwrap();
    let man = glasshouse(&["man", dir.path().to_str().unwrap()]);
    assert!(man.status.success());
    assert!(dir.path().join("glasshouse.1").exists() && dir.path().join("glasshouse-run.1").exists());
}

/// A command under watch whose script runs in `dir`.
fn watched_in(dir: &Path, options: &[&str], script: &str) -> Command {
    let mut run = command("glasshouse");
    run.current_dir(dir).args(["run", "--profile", "host"]).args(options).args(["--", "sh", "-c", script]);
    run
}

/// Says that it has started and waits to be let go.
const HELD: &str = "touch started; until [ -e go ]; do sleep 0.01; done; exit 9";

fn started(dir: &Path) {
    wait_for("the command starts", || dir.join("started").exists().then_some(()));
}

fn new_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let random = (now.as_nanos() as u64).to_le_bytes();
    let random = [&random[..], &[0; 2]].concat().try_into().unwrap();
    glasshouse_schema::ids::ExecutionId::from_parts(now.as_millis() as u64, random).to_string()
}

#[test]
fn a_refused_second_run_leaves_the_record_of_the_first_alone() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::start(&[], &[]);
    let id = new_id();
    let options = ["--nats", &pipeline.url, "--id", &id];
    let mut first = Process::spawn(watched_in(dir.path(), &options, HELD));
    started(dir.path());
    let second = output(watched_in(dir.path(), &options, "touch again"));
    assert_eq!(second.status.code(), Some(125), "{}", stderr(&second));
    assert!(stderr(&second).contains("never runs twice"), "{}", stderr(&second));
    assert!(!dir.path().join("again").exists());
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(first.0.wait().unwrap().code(), Some(9));
    let get = glasshouse(&["receipt", "get", &id, "--wait", "--json", "--nats", &pipeline.url]);
    let receipt: serde_json::Value = serde_json::from_slice(&get.stdout).unwrap();
    assert_eq!((&receipt["exit_code"], &receipt["completeness"]), (&9.into(), &"closed".into()));
    assert_eq!(get.stdout, std::fs::read(dir.path().join("receipt.json")).unwrap());
}

#[test]
fn a_closed_stderr_changes_no_exit_code() {
    for (options, code) in [(&["--json"][..], 9), (&["--profile", "guest"], 9), (&["--backend", "cloud"], 2)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut run = command("glasshouse");
        run.arg("run").args(options).args(["--", "sh", "-c", "exit 9"]);
        let status = run.stdout(Stdio::null()).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{options:?}");
    }
}

#[test]
fn what_the_command_plants_is_neither_waited_for_nor_followed() {
    skip_unless_watching_works!();
    for plant in ["mkfifo receipt.json", "ln -s precious receipt.json"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("precious"), "precious").unwrap();
        let done = output(watched_in(dir.path(), &[], &format!("{plant}; exit 9")));
        assert_eq!(done.status.code(), Some(9), "{plant}: {}", stderr(&done));
        let receipt = dir.path().join("receipt.json");
        assert!(receipt.symlink_metadata().unwrap().is_file(), "{plant}");
        let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(receipt).unwrap()).unwrap();
        assert_eq!(receipt["exit_code"], 9);
        assert_eq!(std::fs::read(dir.path().join("precious")).unwrap(), b"precious");
    }
}

#[test]
fn a_receipt_that_cannot_be_written_is_said_before_or_does_not_hide_the_end() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let before = output(watched_in(dir.path(), &["--receipt", "missing/receipt.json"], "touch ran"));
    assert_eq!(before.status.code(), Some(125));
    assert!(stderr(&before).contains("missing/receipt.json"), "{}", stderr(&before));
    assert!(!dir.path().join("ran").exists(), "the command ran");

    let policy = glasshouse_e2e::root().join("deploy/policies/baseline.yaml");
    for spoil in ["mkdir receipt.json", "rm -r ../here"] {
        let here = dir.path().join("here");
        std::fs::create_dir(&here).unwrap();
        let options = ["--json", "--policy", policy.to_str().unwrap()];
        let after = output(watched_in(&here, &options, &format!("{spoil}; exit 9")));
        let said = stderr(&after);
        assert_eq!(after.status.code(), Some(125), "{spoil}: {said}");
        assert!(said.contains("the command ended with 9"), "{spoil}: {said}");
        let summary = said.lines().find(|line| line.starts_with('{')).unwrap();
        let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
        assert_eq!(summary["outcome"]["exit_code"], 9);
        assert!(summary["receipt_error"].as_str().unwrap().contains("receipt.json"), "{summary}");
        assert_eq!(summary["verdicts"].as_array().unwrap().len(), 1);
        let _ = std::fs::remove_dir_all(&here);
    }
}

/// The process whose command line names `text`.
fn process_with(text: &str) -> nix::unistd::Pid {
    let mut pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_server = line.split(|byte| *byte == 0).next()?.ends_with(b"nats-server");
        (is_server && String::from_utf8_lossy(&line).contains(text)).then_some(pid)
    });
    nix::unistd::Pid::from_raw(pids.next().unwrap())
}

/// Stops it, and waits until every thread of it stands still.
fn freeze(pid: nix::unistd::Pid) {
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    let stands = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    let tasks = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    wait_for("the server stands still", || tasks().all(stands).then_some(()));
}

/// A server with every stream, and its process, so that it can be stopped.
async fn server_in(data: &Path) -> (glasshouse_nats::NatsServer, nix::unistd::Pid) {
    use glasshouse_nats::{ConnectOptions, NatsServer, ServerOptions, Topology};
    let server = NatsServer::start(ServerOptions::private(data)).await.unwrap();
    let bus = glasshouse_nats::connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
    Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
    (server, process_with(data.to_str().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_stops_answering_costs_seconds_and_no_receipt() {
    skip_unless_watching_works!();
    let data = tempfile::tempdir().unwrap();
    let (server, server_pid) = server_in(data.path()).await;
    // One each: what is in it a later run would send.
    let spools =
        [false, true].map(|interrupts| (interrupts, data.path().join(format!("spool-{interrupts}"))));
    for (interrupts, spool) in &spools {
        let dir = tempfile::tempdir().unwrap();
        let mut run = watched_in(dir.path(), &["--json", "--nats", server.url()], HELD);
        run.env("GLASSHOUSE_SPOOL", spool);
        let mut run = Process::spawn({
            run.stderr(Stdio::piped());
            run
        });
        started(dir.path());
        freeze(server_pid);
        std::fs::write(dir.path().join("go"), "").unwrap();
        let begin = Instant::now();
        let receipt = dir.path().join("receipt.json");
        wait_for("the receipt", || receipt.exists().then_some(()));
        let written = begin.elapsed();
        if *interrupts {
            run.signal(Signal::SIGTERM);
        }
        let code = run.0.wait().unwrap().code();
        let ended = begin.elapsed();
        nix::sys::signal::kill(server_pid, Signal::SIGCONT).unwrap();
        let said = std::io::read_to_string(run.0.stderr.take().unwrap()).unwrap();
        assert_eq!(code, Some(9), "{said}");
        assert_eq!(said.lines().count(), 2, "one line of ours and the summary: {said}");
        assert!(said.contains("are not published yet"), "{said}");
        assert!(said.contains(&format!("`glasshouse spool send --spool {}`", spool.display())), "{said}");
        assert!(said.contains("\"published\":false"), "{said}");
        assert!(written < Duration::from_secs(3), "the receipt took {written:?}");
        let limit = if *interrupts { 3 } else { 8 };
        assert!(ended < Duration::from_secs(limit), "took {ended:?}: {said}");
        let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(receipt).unwrap()).unwrap();
        assert_eq!((&receipt["exit_code"], &receipt["completeness"]), (&9.into(), &"closed".into()));
    }
    // The server is back: what the runs left is sent, and the directories are empty.
    for (_, spool) in &spools {
        let spool = spool.to_str().unwrap();
        let listed = glasshouse(&["spool", "list", "--json", "--spool", spool]);
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 1, "{}", stderr(&listed));
        let sent = glasshouse(&["spool", "send", "--spool", spool, "--nats", server.url()]);
        assert_eq!(sent.status.code(), Some(0), "{}", stderr(&sent));
        assert_eq!(String::from_utf8_lossy(&sent.stdout).matches("events sent").count(), 1);
        assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0);
    }
    server.stop().await;
}

/// Fail-open, and said: the local receipt is whole, nothing waits on a disk.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_spool_what_the_bus_does_not_take_is_lost_and_said() {
    skip_unless_watching_works!();
    let data = tempfile::tempdir().unwrap();
    let (server, server_pid) = server_in(data.path()).await;
    let (dir, spool) = (tempfile::tempdir().unwrap(), data.path().join("spool"));
    let mut run = watched_in(dir.path(), &["--json", "--nats", server.url(), "--spool-bytes", "0"], HELD);
    run.env("GLASSHOUSE_SPOOL", &spool).stderr(Stdio::piped());
    let mut run = Process::spawn(run);
    started(dir.path());
    freeze(server_pid);
    std::fs::write(dir.path().join("go"), "").unwrap();
    let code = run.0.wait().unwrap().code();
    nix::sys::signal::kill(server_pid, Signal::SIGCONT).unwrap();
    let said = std::io::read_to_string(run.0.stderr.take().unwrap()).unwrap();
    assert_eq!(code, Some(9), "{said}");
    assert!(said.contains("\"published\":false"), "{said}");
    assert!(!said.contains("spool send"), "there is nothing to send: {said}");
    let receipt = std::fs::read(dir.path().join("receipt.json")).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    assert_eq!((&receipt["exit_code"], &receipt["completeness"]), (&9.into(), &"closed".into()));
    assert!(!spool.exists(), "there is no spool");
    server.stop().await;
}

#[test]
fn a_caller_that_does_not_read_can_still_end_us() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let script = "head -c 100000 /dev/zero; touch started; exit 9";
    let mut run = watched_in(dir.path(), &[], script);
    run.stdout(Stdio::piped());
    let mut run = Process::spawn(run);
    started(dir.path());
    // A signal that comes before the end of the root is for the root.
    let tasks = format!("/proc/{}/task", run.0.id());
    wait_for("the root is gone", || {
        let children =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap();
        std::fs::read_dir(&tasks).unwrap().all(|task| children(task.unwrap()).is_empty()).then_some(())
    });
    run.signal(Signal::SIGTERM);
    let begin = Instant::now();
    assert_eq!(run.0.wait().unwrap().code(), Some(9));
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    assert!(dir.path().join("receipt.json").exists());
}

#[test]
fn a_tail_ends_with_its_reader() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::start(&[], &[]);
    let done = output(watched_in(dir.path(), &["--nats", &pipeline.url], "exit 9"));
    assert_eq!(done.status.code(), Some(9), "{}", stderr(&done));
    let mut tail = command("glasshouse");
    tail.args(["receipt", "tail", "--all", "--nats", &pipeline.url]).stdout(Stdio::piped());
    let mut tail = Process::spawn(tail);
    let mut lines = BufReader::new(tail.0.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("exit 9"), "{line}");
    drop(lines);
    let status = wait_for("the tail ends", || tail.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}
