//! One program under both, and the table of all of them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use glasshouse_e2e::{cannot_watch, command, output_within, stderr};
use serde_json::Value;
use tempfile::TempDir;

use crate::facts::{Facts, Kind, of_receipt};
use crate::rules::{Difference, Expected, Explained, Side, judge as judge_sets};
use crate::strace;

/// How long one run may take: under strace, on a machine that others use too.
const DEADLINE: Duration = Duration::from_secs(300);

/// Why a program can't be run here.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

/// What completeness a receipt must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completeness {
    /// Closed, nothing passed beside the hooks.
    Closed,
    /// Partial, and for no other reason than what passed beside the hooks.
    Bypassed,
}

/// A program's directories, removed with it.
#[derive(Debug)]
pub(crate) struct Trial {
    _dir: TempDir,
    /// Where the program runs: made anew, at the same path, for each run.
    pub(crate) work: PathBuf,
    begin: Instant,
}

/// Both runs of a program.
#[derive(Debug)]
pub(crate) struct Runs {
    ours: Facts,
    strace: Facts,
    /// What the receipt says.
    pub(crate) receipt: Value,
    /// How the watched program ended.
    pub(crate) status: Option<i32>,
    took: Duration,
}

/// The differences, judged.
#[derive(Debug)]
pub(crate) struct Verdict {
    runs: Runs,
    explained: Vec<(Explained, Difference)>,
    unexplained: Vec<Difference>,
    /// What both saw, how often in the receipt, how often by strace.
    miscounted: Vec<(String, u64, u64)>,
}

impl Trial {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("truth-").tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        Self { _dir: dir, work: root.join("work"), begin: Instant::now() }
    }

    /// A path that stays between the runs.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.work.with_file_name(name)
    }

    /// Compiles one of the C programs beside this file.
    pub(crate) fn build(&self, source: &str, options: &[&str]) -> Result<String, Skipped> {
        let binary = self.beside(source.trim_end_matches(".c"));
        let mut cc = Command::new(tool("cc")?);
        cc.args(["-O1", "-Wall", "-o"]).arg(&binary).arg(source_path(source)).args(options);
        let built = output_within(DEADLINE, cc);
        assert!(built.status.success(), "{source}: {}", stderr(&built));
        Ok(binary.into_os_string().into_string().unwrap())
    }

    /// Runs a program unwatched, as [`Self::run`] does.
    pub(crate) fn plain(&self, prepare: &dyn Fn(&Path), argv: &[&str]) -> Output {
        let mut plain = Command::new(argv[0]);
        plain.args(&argv[1..]);
        self.output(prepare, plain)
    }

    /// Runs a program under strace and under glasshouse. Both must end well and print the same, unless glasshouse may
    /// refuse what the program is for.
    pub(crate) fn run(
        &self,
        prepare: &dyn Fn(&Path),
        argv: &[&str],
        may_be_refused: bool,
    ) -> Result<Runs, Skipped> {
        let log = self.beside("strace.log");
        let mut traced = Command::new(tool("strace")?);
        // Not with --seccomp-bpf: strace 6.1 then loses calls at a thread's exec.
        traced.args(["-f", "-y", "-s", "4096", "-e", strace::TRACED, "-e", "signal=none", "-o"]);
        traced.arg(&log).args(argv);
        let traced = self.output(prepare, traced);

        let receipt = self.beside("receipt.json");
        let mut watched = command("glasshouse");
        watched.args(["run", "--profile", "host", "--profile-required", "--receipt"]);
        watched.arg(&receipt).arg("--").args(argv);
        let watched = self.output(prepare, watched);

        assert!(traced.status.success(), "under strace: {}: {}", traced.status, stderr(&traced));
        if watched.status.success() || !may_be_refused {
            assert!(watched.status.success(), "under glasshouse: {}: {}", watched.status, stderr(&watched));
            let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text(&traced), text(&watched), "the two runs printed different things");
        }
        let log = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        let receipt: Value = serde_json::from_slice(&std::fs::read(&receipt).unwrap()).unwrap();
        Ok(Runs {
            ours: of_receipt(&receipt),
            strace: strace::facts(&log, self.work.as_os_str().as_encoded_bytes()),
            receipt,
            status: watched.status.code(),
            took: self.begin.elapsed(),
        })
    }

    /// [`Self::run`] for a program that ends well and that the receipt must be closed of.
    pub(crate) fn closed(&self, prepare: &dyn Fn(&Path), argv: &[&str]) -> Result<Verdict, Skipped> {
        let runs = self.run(prepare, argv, false)?;
        runs.assert_complete(Completeness::Closed);
        Ok(runs.judge(&Expected::default()))
    }

    fn output(&self, prepare: &dyn Fn(&Path), mut command: Command) -> Output {
        if self.work.exists() {
            std::fs::remove_dir_all(&self.work).unwrap();
        }
        std::fs::create_dir(&self.work).unwrap();
        prepare(&self.work);
        command.env_clear().envs(environment(&self.work)).current_dir(&self.work);
        command.stdin(std::process::Stdio::null());
        output_within(DEADLINE, command)
    }
}

/// What both runs are given: nothing of whoever runs the tests.
fn environment(work: &Path) -> Vec<(&'static str, OsString)> {
    let fixed = [
        ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONHASHSEED", "0"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_AUTHOR_DATE", "2024-01-01T00:00:00Z"),
        ("GIT_COMMITTER_DATE", "2024-01-01T00:00:00Z"),
    ];
    let mut environment: Vec<_> = fixed.into_iter().map(|(key, value)| (key, value.into())).collect();
    environment.extend(["HOME", "TMPDIR"].map(|key| (key, work.as_os_str().to_owned())));
    environment
}

/// A program of the system, found where the runs find it.
pub(crate) fn tool(name: &str) -> Result<PathBuf, Skipped> {
    let places = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];
    let found = places.into_iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.ok_or_else(|| Skipped(format!("{name} is not installed (scripts/setup.sh installs it)")))
}

/// A file beside this one.
pub(crate) fn source_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truth").join(name)
}

pub(crate) fn text(path: &impl AsRef<OsStr>) -> &str {
    path.as_ref().to_str().unwrap()
}

impl Runs {
    /// What the coverage says was passed beside the hooks.
    pub(crate) fn bypassed(&self) -> Vec<String> {
        let vantages = self.receipt["coverage"]["vantages"].as_array().into_iter().flatten();
        let lists = vantages.filter_map(|vantage| vantage["bypassed"].as_array());
        lists.flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// The counters add up and nothing was lost; closed, or partial for the one good reason.
    pub(crate) fn assert_complete(&self, completeness: Completeness) {
        let coverage = &self.receipt["coverage"];
        let vantages = coverage["vantages"].as_array().unwrap();
        assert!(!vantages.is_empty(), "nothing watched");
        for vantage in vantages {
            assert_eq!(vantage["sealed"], true, "{coverage:#}");
            for (class, counters) in vantage["classes"].as_object().unwrap() {
                let count = |name: &str| counters[name].as_str().unwrap().parse::<u64>().unwrap();
                let sum = count("delivered") + count("collapsed") + count("lost");
                assert_eq!(count("observed"), sum, "{class}: {counters}");
                assert_eq!(count("lost"), 0, "{class}");
            }
        }
        // A list that was cut could not be compared. Which processes did it is not compared.
        let mut caps = coverage["caps"].as_array().into_iter().flatten();
        assert!(caps.all(|cap| cap["list"] == "files[].by"), "{:#}", coverage["caps"]);
        let reasons: Vec<&Value> =
            coverage["incomplete"].as_array().unwrap().iter().map(|entry| &entry["reason"]).collect();
        match completeness {
            Completeness::Closed => {
                assert_eq!(self.receipt["completeness"], "closed", "{coverage:#}");
                assert!(self.bypassed().is_empty(), "{coverage:#}");
            }
            Completeness::Bypassed => {
                assert_eq!(self.receipt["completeness"], "partial", "{coverage:#}");
                assert!(reasons.iter().all(|reason| *reason == "bypassed"), "{coverage:#}");
                assert!(!self.bypassed().is_empty(), "{coverage:#}");
            }
        }
    }

    /// Judges every difference.
    pub(crate) fn judge(self, expected: &Expected) -> Verdict {
        let (explained, unexplained) = judge_sets(&self.ours, &self.strace, expected);
        let miscounted = miscounted(&self.ours, &self.strace);
        Verdict { runs: self, explained, unexplained, miscounted }
    }

    /// The receipt has a fact of this path, of any kind.
    pub(crate) fn has_seen(&self, path: &str) -> bool {
        self.ours.keys().any(|fact| fact.path == path.as_bytes())
    }
}

impl Verdict {
    /// Both saw at least so many facts of a kind: a comparison of nothing proves nothing.
    pub(crate) fn at_least(self, kind: Kind, count: usize) -> Self {
        for (who, facts) in [("the receipt", &self.runs.ours), ("strace", &self.runs.strace)] {
            let seen = number(facts, kind);
            assert!(seen >= count, "{who} has {seen} of {kind:?}, of which there should be at least {count}");
        }
        self
    }

    /// The rule took some difference: a program that was written to show it does.
    pub(crate) fn shows(self, rule: Explained) -> Self {
        assert!(self.explained.iter().any(|(by, _)| *by == rule), "{rule:?} was not needed");
        self
    }

    pub(crate) fn receipt(&self) -> &Value {
        &self.runs.receipt
    }

    fn row(&self, program: &str) -> String {
        let mut row = format!("{program:<32}");
        for (kind, _) in Kind::ALL {
            row += &format!(
                "{:>10}",
                format!("{}/{}", number(&self.runs.ours, kind), number(&self.runs.strace, kind))
            );
        }
        let mut rules: BTreeMap<Explained, usize> = BTreeMap::new();
        for (rule, _) in &self.explained {
            *rules.entry(*rule).or_default() += 1;
        }
        let rules: Vec<String> = rules.into_iter().map(|(rule, count)| format!("{rule:?} {count}")).collect();
        let rules = if rules.is_empty() { "-".to_owned() } else { rules.join(", ") };
        row + &format!(
            "{:>13}{:>8.1}  {rules}",
            self.unexplained.len() + self.miscounted.len(),
            self.runs.took.as_secs_f64()
        )
    }

    /// Every difference that a rule took.
    fn listed(&self, program: &str) -> String {
        let line = |(rule, (side, fact)): &(Explained, Difference)| {
            let who = if *side == Side::Ours { "the receipt" } else { "strace" };
            format!("{program}: {rule:?}: only {who}: {fact}\n")
        };
        self.explained.iter().map(line).collect()
    }

    /// Every unexplained difference, with how often it happened.
    fn complaint(&self) -> String {
        let mut complaint = String::new();
        for (side, fact) in &self.unexplained {
            let (who, facts) = match side {
                Side::Ours => ("only in the receipt", &self.runs.ours),
                Side::Strace => ("only strace saw", &self.runs.strace),
            };
            complaint += &format!("\n  {who}: {fact} ({} times)", facts.get(fact).copied().unwrap_or(0));
        }
        for (what, ours, strace) in &self.miscounted {
            complaint += &format!("\n  {ours} times in the receipt, {strace} by strace: {what}");
        }
        complaint
    }
}

/// Facts of both that did not happen as often. One program has several names in strace's log, so of execs the sums are
/// compared.
fn miscounted(ours: &Facts, strace: &Facts) -> Vec<(String, u64, u64)> {
    let mut counts: Vec<(String, u64, u64)> = ours
        .iter()
        .filter(|(fact, _)| fact.kind != Kind::Exec)
        .filter_map(|(fact, count)| Some((fact.to_string(), *count, *strace.get(fact)?)))
        .collect();
    let [execs, strace_execs] = [ours, strace].map(|facts| {
        let ran = facts.iter().filter(|(fact, _)| fact.kind == Kind::Exec && fact.what == "ok");
        ran.map(|(_, count)| count).sum()
    });
    counts.push(("execs that ran".to_owned(), execs, strace_execs));
    counts.retain(|(_, ours, strace)| ours != strace);
    counts
}

fn number(facts: &Facts, kind: Kind) -> usize {
    facts.keys().filter(|fact| fact.kind == kind).count()
}

/// Rows of the programs that are done. The last one prints them all.
static TABLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A program's row, handed in even if its test fails.
struct Row {
    text: String,
    of: usize,
}

impl Drop for Row {
    fn drop(&mut self) {
        let mut table = TABLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        table.push(std::mem::take(&mut self.text));
        if table.len() < self.of {
            return;
        }
        table.sort();
        let heads: String = Kind::ALL.into_iter().map(|(_, name)| format!("{name:>10}")).collect();
        eprintln!(
            "\nEach pair: in the receipt/seen by strace.\n{:<32}{heads}{:>13}{:>8}  differences by rule\n{}\n",
            "program",
            "unexplained",
            "seconds",
            table.join("\n")
        );
    }
}

/// Runs a program's trial, hands in its row, and fails if a difference is left or a skip is not allowed.
pub(crate) fn judge(program: &str, of: usize, run: fn(&Trial) -> Result<Verdict, Skipped>) {
    let mut row = Row { text: format!("{program:<32}  FAILED before it could be compared"), of };
    let watched = cannot_watch().map_or(Ok(()), |reason| Err(Skipped(reason)));
    match watched.and_then(|()| run(&Trial::new())) {
        Ok(verdict) => {
            row.text = verdict.row(program);
            print!("{}", verdict.listed(program));
            drop(row);
            let complaint = verdict.complaint();
            assert!(complaint.is_empty(), "{program}: unexplained:{complaint}");
        }
        Err(Skipped(reason)) => {
            row.text = format!("{program:<32}  skipped: {reason}");
            drop(row);
            eprintln!("skipped: {program}: {reason}");
            let all = std::env::var_os("GLASSHOUSE_REQUIRE_ALL").is_some_and(|value| value == "1");
            assert!(!all, "GLASSHOUSE_REQUIRE_ALL=1, and {program} was skipped: {reason}");
        }
    }
}
