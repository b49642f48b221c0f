//! What the end-to-end tests share: the built programs, a command under watch, a pipeline that ends with its test.
//!
//! The tests run the programs that `cargo build --workspace` made, against the real kernel and a real nats-server. What
//! a machine cannot run is reported with `skipped: <reason>` on stderr.

#![allow(clippy::panic, clippy::expect_used, reason = "this crate exists for tests, which fail by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long any one thing may take before its test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

/// A program of this workspace, built beside the tests.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    // target/<profile>/deps/<test> -> target/<profile>/<name>
    let dir = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let path = dir.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// Settings of this machine, not of whoever uses it: where a server and the parts of virtual machines are.
const KEPT: [&str; 4] =
    ["GLASSHOUSE_NATS_SERVER", "GLASSHOUSE_QEMU", "GLASSHOUSE_GUEST_KERNEL", "GLASSHOUSE_GUEST_PROBE"];

/// A command line of a program of this workspace, without the settings of whoever runs the tests.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    for (key, _) in std::env::vars_os() {
        let key_text = key.to_string_lossy();
        if key_text.starts_with("OTEL_")
            || (key_text.starts_with("GLASSHOUSE_") && !KEPT.contains(&&*key_text))
        {
            command.env_remove(&key);
        }
    }
    command.stdin(Stdio::null());
    // Not where this machine keeps its own.
    command.env("GLASSHOUSE_SPOOL", std::env::temp_dir().join("glasshouse-e2e-spool"));
    command
}

/// Why this machine cannot watch a command from its kernel; `None` when it can.
pub fn cannot_watch() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("watching from the host needs root".into());
    }
    (!Path::new("/sys/kernel/btf/vmlinux").exists()).then(|| "this kernel has no BTF".into())
}

/// Leaves a test that this machine cannot run, saying why.
#[macro_export]
macro_rules! skip_unless_watching_works {
    () => {
        if let Some(reason) = $crate::cannot_watch() {
            eprintln!("skipped: {reason}");
            return;
        }
    };
}

/// Waits until `condition` gives something, or fails the test at the deadline.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, condition)
}

/// The same with a deadline of its own.
pub fn wait_within<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begin.elapsed() < deadline, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs to the end, or fails the test at the deadline.
pub fn output(command: Command) -> Output {
    output_within(DEADLINE, command)
}

/// The same with a deadline of its own.
pub fn output_within(deadline: Duration, mut command: Command) -> Output {
    let what = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Process(command.spawn().expect("the program starts"));
    let read = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = read(child.0.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = read(child.0.stderr.take().map(|stream| Box::new(stream) as _));
    let status = wait_within(deadline, &what, || child.0.try_wait().expect("the child can be waited for"));
    let join = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().expect("reading does not panic");
    Output { status, stdout: join(stdout), stderr: join(stderr) }
}

/// The text of an output's stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `argv` watched from the host and gives its receipt with the output.
pub fn watched(dir: &Path, options: &[&str], argv: &[&str]) -> (Value, Output) {
    let receipt = dir.join(format!("receipt-{}.json", std::process::id()));
    let mut command = command("glasshouse");
    command.args(["run", "--profile", "host", "--receipt"]).arg(&receipt).args(options).arg("--").args(argv);
    let output = output(command);
    let bytes = std::fs::read(&receipt)
        .unwrap_or_else(|error| panic!("no receipt ({error}); stderr: {}", stderr(&output)));
    (serde_json::from_slice(&bytes).expect("a receipt is JSON"), output)
}

/// Strings of an array in a receipt, by JSON pointer.
pub fn strings(receipt: &Value, pointer: &str) -> Vec<String> {
    let array = receipt.pointer(pointer).and_then(Value::as_array);
    let array = array.unwrap_or_else(|| panic!("the receipt has no array at {pointer}"));
    array.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The entry of a path in `files`.
pub fn file<'r>(receipt: &'r Value, path: &Path) -> &'r Value {
    let files = receipt["files"].as_array().expect("the receipt has files");
    let path = path.to_str().expect("test paths are UTF-8");
    files.iter().find(|file| file["path"] == path).unwrap_or_else(|| panic!("{path} is not in the receipt"))
}

/// A process that does not outlive its test.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// Starts it.
    pub fn spawn(mut command: Command) -> Self {
        Self(command.spawn().expect("the program starts"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("the process can be signalled");
    }

    /// Ends it in order and gives its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGINT);
        wait_for("the process stops", || self.0.try_wait().expect("the child can be waited for")).code()
    }

    /// Ends it as a crash would.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A nats-server with aggregator and policy worker around it, as `glasshouse up` runs them.
#[derive(Debug)]
pub struct Pipeline {
    up: Process,
    /// The server's URL, with its token.
    pub url: String,
    _dir: tempfile::TempDir,
}

impl Pipeline {
    /// Starts it on a free port with a store and a token of its own.
    pub fn start(options: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = command("glasshouse");
        command.args(["up", "--private", "--port", "0", "--dir"]).arg(dir.path()).args(options);
        command.envs(env.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut up = Process::spawn(command);
        let log = up.0.stderr.take().expect("stderr is piped");
        std::thread::spawn(move || {
            BufReader::new(log).lines().map_while(Result::ok).for_each(|line| eprintln!("up: {line}"))
        });
        let url = wait_for("glasshouse up is ready", || {
            assert!(matches!(up.0.try_wait(), Ok(None)), "glasshouse up ended before it was ready");
            std::fs::read_to_string(dir.path().join("nats.url")).ok().filter(|url| !url.trim().is_empty())
        });
        Self { up, url: url.trim().to_owned(), _dir: dir }
    }

    /// Stops it in order and gives the exit code of `glasshouse up`.
    pub fn stop(&mut self) -> Option<i32> {
        self.up.stop()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if matches!(self.up.0.try_wait(), Ok(None)) {
            let _ = self.up.stop();
        }
    }
}
