//! The command line: exit codes, fail-open and fail-closed, and errors that say what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use glasshouse_e2e::{command, output, skip_unless_watching_works, stderr};

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
    assert_eq!(no_backend.status.code(), Some(125));
    assert!(stderr(&no_backend).contains("there is no backend `cloud`"));
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
        let url = format!("nats://{address}");
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
        assert!(receipt.exists(), "the local receipt is written");
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
