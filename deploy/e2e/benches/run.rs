//! What `glasshouse run` adds to a command, beside a plain spawn and beside strace, in one run.
//!
//! Not a criterion bench: what is timed is a whole process, and each contestant takes turns with a plain spawn, so
//! that a noisy neighbour hits both alike. Prints medians of RUNS rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use glasshouse_e2e::{cannot_watch, command, program};

const RUNS: usize = 31;

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
            "{:<18} {:>9.2} {:>9.2} {:>9.2} {:>9.2}  {goal}",
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
    println!("{:<18} {:>9} {:>9} {:>9} {:>9}  goal", "", "min ms", "median", "max", "over");
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
