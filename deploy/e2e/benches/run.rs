//! What `glasshouse run` adds to a command, beside a plain spawn and beside strace, in one run.
//!
//! Not a criterion bench: what is timed is a whole process, and each contestant takes turns with a plain spawn, so
//! that a noisy neighbour hits both alike. Prints medians of RUNS rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use glasshouse_e2e::{cannot_watch, command, program};

const RUNS: usize = 31;
/// A user and a group without rights.
const NOBODY: u32 = 65_534;

struct Contestant {
    name: &'static str,
    /// What the issue of performance allows it over a plain spawn.
    goal: Option<Duration>,
    make: Box<dyn Fn() -> Command>,
    took: Vec<Duration>,
}

impl Contestant {
    fn new(name: &'static str, goal_ms: Option<u64>, make: impl Fn() -> Command + 'static) -> Self {
        Self { name, goal: goal_ms.map(Duration::from_millis), make: Box::new(make), took: Vec::new() }
    }

    fn print(&self, plain: Duration) {
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        let over = median(&self.took).saturating_sub(plain);
        let goal = match self.goal {
            Some(goal) if over <= goal => format!("<= {} ms: met", goal.as_millis()),
            Some(goal) => format!("<= {} ms: NOT met", goal.as_millis()),
            None => String::new(),
        };
        println!(
            "{:<19} {:>9.2} {:>9.2} {:>9.2} {:>9.2}  {goal}",
            self.name,
            ms(*self.took.iter().min().unwrap()),
            ms(median(&self.took)),
            ms(*self.took.iter().max().unwrap()),
            ms(over),
        );
    }

    fn run(&self) -> Duration {
        let mut command = (self.make)();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status().expect("the program starts");
        let took = begin.elapsed();
        assert!(status.success(), "{} failed: {status}", self.name);
        took
    }
}

fn median(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn glasshouse(dir: &Path, profile: &'static str) -> impl Fn() -> Command + use<> {
    let receipt = dir.join("receipt.json");
    move || {
        let mut run = command("glasshouse");
        run.args(["run", "--profile", profile, "--profile-required", "--receipt"]).arg(&receipt);
        if profile == "disabled" {
            run = command("glasshouse");
            run.args(["run", "--profile", profile]);
        }
        run.args(["--", "/bin/true"]);
        run
    }
}

/// The agent whose socket commands are run through, its probe loaded; ended when this is dropped.
struct Agent(std::process::Child);

impl Agent {
    fn start(dir: &Path) -> Self {
        let mut agent = command("glasshouse-node-agent");
        agent.args(["--local-only", "--profile", "host", "--socket-mode", "666", "--socket"]);
        agent.arg(dir.join("agent.sock")).arg("--state").arg(dir.join("agent"));
        let mut agent = agent.stderr(Stdio::piped()).spawn().expect("the agent starts");
        let mut log = BufReader::new(agent.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(log.any(|line| line.contains("serving users")), "the agent serves users");
        std::thread::spawn(move || log.for_each(|line| eprintln!("agent: {line}")));
        Self(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command line as a user without rights runs it. Not in the build directory, which may not be open to all.
fn by_agent(dir: &Path) -> impl Fn() -> Command + use<> {
    let (socket, own) = (dir.join("agent.sock"), dir.join("glasshouse"));
    std::fs::copy(program("glasshouse"), &own).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let work = dir.join("work");
    std::fs::create_dir(&work).unwrap();
    std::os::unix::fs::chown(&work, Some(NOBODY), Some(NOBODY)).unwrap();
    move || {
        let mut run = Command::new(&own);
        run.args(["run", "--agent", "always", "--profile", "host", "--profile-required", "--socket"]);
        run.arg(&socket).args(["--", "/bin/true"]).current_dir(&work).uid(NOBODY).gid(NOBODY);
        run
    }
}

fn main() {
    // `cargo test --benches` runs this too: one round shows that it works.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let rounds = if is_test { 1 } else { RUNS };
    let dir = tempfile::tempdir().unwrap();
    let mut contestants =
        vec![Contestant::new("glasshouse run", Some(3), glasshouse(dir.path(), "disabled"))];
    match cannot_watch() {
        Some(reason) => println!("skipped: --profile host: {reason}"),
        None => {
            contestants.push(Contestant::new("… --profile host", Some(120), glasshouse(dir.path(), "host")))
        }
    }
    let agent = cannot_watch().is_none().then(|| Agent::start(dir.path()));
    if agent.is_some() {
        contestants.push(Contestant::new("… through the agent", Some(3), by_agent(dir.path())));
    }
    match in_path("strace") {
        None => println!("skipped: strace: it is not installed"),
        Some(strace) => contestants.push(Contestant::new("strace -f", None, move || {
            let mut command = Command::new(&strace);
            command.args(["-f", "-o", "/dev/null", "/bin/true"]);
            command
        })),
    }
    println!(
        "{} running /bin/true, medians of {rounds} rounds after one to warm up",
        program("glasshouse").display()
    );
    println!("{:<19} {:>9} {:>9} {:>9} {:>9}  goal", "", "min ms", "median", "max", "over");
    // Each beside a plain spawn of its own, taking turns with nothing else: a contestant that loads megabytes of kernel
    // types leaves cold caches to whoever comes next.
    for contestant in &mut contestants {
        let mut plain = Contestant::new("plain spawn", None, || Command::new("/bin/true"));
        for round in 0..=rounds {
            for contestant in [&mut plain, &mut *contestant] {
                let took = contestant.run();
                if round > 0 {
                    contestant.took.push(took);
                }
            }
        }
        let baseline = median(&plain.took);
        plain.print(baseline);
        contestant.print(baseline);
    }
}
