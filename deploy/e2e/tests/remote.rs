//! Commands in machines that are somebody else's (`--backend remote`). The guest probe runs as a service there; here its machine is this
//! one, and everything else is as with another.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use glasshouse_e2e::{command, skip_unless_watching_works};
use serde_json::Value;

/// A run that waits for its guest; the lines that it says after that.
struct Waiting {
    run: Child,
    invitation: String,
    said: std::thread::JoinHandle<String>,
}

impl Waiting {
    fn start(args: &[&str], script: &[&str]) -> Self {
        let mut run = command("glasshouse");
        run.args(["run", "--backend", "remote"]).args(args).arg("--").args(script);
        run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run = run.spawn().unwrap();
        let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map_while(Result::ok);
        let invitation = lines.find(|line| line.contains("start in its machine")).expect("it waits");
        let said = std::thread::spawn(move || lines.collect::<Vec<_>>().join("\n"));
        Self { run, invitation, said }
    }

    /// Exit code, standard output, and what was said on standard error.
    fn end(mut self, stdin: &[u8]) -> (Option<i32>, Vec<u8>, String) {
        let mut to = self.run.stdin.take().unwrap();
        // One that has ended does not read.
        let _ = to.write_all(stdin);
        drop(to);
        let ended = self.run.wait_with_output().unwrap();
        (ended.status.code(), ended.stdout, self.said.join().unwrap())
    }
}

fn probe() -> Result<PathBuf, String> {
    glasshouse_vm::guest_probe().map_err(|error| error.to_string())
}

#[test]
fn a_command_in_a_machine_of_others_is_watched_by_its_probe() {
    skip_unless_watching_works!();
    let probe = match probe() {
        Ok(probe) => probe,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let (socket, receipt) = (dir.path().join("link"), dir.path().join("receipt.json"));
    let args = ["--guest-socket", socket.to_str().unwrap(), "--profile", "guest", "--receipt"];
    let args = [args.as_slice(), &[receipt.to_str().unwrap()]].concat();
    let waiting = Waiting::start(&args, &["/bin/sh", "-c", "cat; cat /etc/hostname > /dev/null; exit 7"]);
    let (_, invited) = waiting.invitation.split_once("as root: ").unwrap();
    let mut words = invited.split(' ');
    assert_eq!(words.next(), Some("glasshouse-guest-probe"));
    let mut guest = Command::new(probe).args(words).stderr(Stdio::null()).spawn().unwrap();
    let input = b"to a machine of others\n".repeat(1000);
    let (code, stdout, said) = waiting.end(&input);
    assert_eq!((code, stdout == input), (Some(7), true), "{said}");
    assert!(guest.wait().unwrap().success());
    assert!(!socket.exists());
    let receipt: Value = serde_json::from_slice(&std::fs::read(&receipt).unwrap()).unwrap();
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
    assert_eq!(
        (&receipt["provenance"], &receipt["execution"]["backend"]),
        (&"guest".into(), &"remote".into())
    );
    // Nobody knows how far it is.
    assert_eq!(receipt["execution"]["isolation"], "none");
    assert!(receipt["filesystem"]["reads"].as_array().unwrap().contains(&"/etc/hostname".into()));
}

#[test]
fn nobody_waits_for_ever_for_a_machine() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("link");
    let start = |more: &[&str]| {
        Waiting::start(&[&["--guest-socket", socket.to_str().unwrap()], more].concat(), &["true"])
    };
    let (code, _, said) = start(&["--guest-within", "100ms"]).end(b"");
    assert_eq!(code, Some(125));
    assert!(said.contains("did not speak within 100ms"), "{said}");
    assert!(!socket.exists());
    // And who has had enough need not wait.
    let waiting = start(&[]);
    let began = Instant::now();
    nix::sys::signal::kill(pid(&waiting.run), nix::sys::signal::Signal::SIGTERM).unwrap();
    let (code, _, said) = waiting.end(b"");
    assert_eq!(code, Some(125), "{said}");
    assert!(began.elapsed() < Duration::from_secs(30), "{said}");
    assert!(!socket.exists());
    // One way, and not two or none.
    for ways in [&[][..], &["--image", "x", "--guest-socket", "y"]] {
        let mut run = command("glasshouse");
        run.args(["run", "--backend", "remote"]).args(ways).args(["--", "true"]);
        assert_eq!(run.output().unwrap().status.code(), Some(125), "{ways:?}");
    }
    // What is somebody's stays somebody's.
    std::fs::write(&socket, "mine").unwrap();
    let mut run = command("glasshouse");
    run.args(["run", "--backend", "remote", "--guest-socket"]).arg(&socket).args(["--", "true"]);
    assert_eq!(run.output().unwrap().status.code(), Some(125));
    assert_eq!(read(&socket), "mine");
}

fn pid(child: &Child) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
