//! This binary is also the producers and the policy worker of a round, so that they can be killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;

use glasshouse_eval::Policy;
use serde::{Deserialize, Serialize};

use crate::producer::{Book, Job, produce};

const VARIABLE: &str = "GLASSHOUSE_CHAOS_ROLE";
const POLICY: &str = "version: v1\nname: chaos\nrules:\n  - {id: ended, message: it failed, expression: \"receipt.exit_code == 0\"}\n";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Producer { job: Job, journal: PathBuf },
    PolicyWorker { url: String },
}

impl Role {
    /// What this process is, if it is not the tests.
    pub(crate) fn of_this_process() -> Option<Self> {
        let role = std::env::var(VARIABLE).ok()?;
        Some(serde_json::from_str(&role).unwrap_or_else(|error| panic!("{VARIABLE}: {error}")))
    }

    pub(crate) fn start(&self, log: &Path, namespace: Option<&Namespace>) -> Child {
        let mut command = command(std::env::current_exe().unwrap().as_os_str(), namespace);
        command.env(VARIABLE, serde_json::to_string(self).unwrap());
        spawn(command, log)
    }

    pub(crate) fn play(self) -> ExitCode {
        let _telemetry = glasshouse_telemetry::init("chaos", "info", false).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            match self {
                Self::Producer { job, journal } => {
                    let journal = File::options().create(true).append(true).open(journal).unwrap();
                    produce(job, Book::Journal(Mutex::new(journal))).await;
                }
                Self::PolicyWorker { url } => {
                    let policy = Policy::parse(POLICY, "chaos.yaml").unwrap();
                    let config = glasshouse_policy_worker::Config::new(url, "policy", vec![policy]);
                    if let Err(error) = glasshouse_policy_worker::run(config, std::future::pending()).await {
                        tracing::error!(%error, "ended");
                        return ExitCode::FAILURE;
                    }
                }
            }
            ExitCode::SUCCESS
        })
    }
}

/// A network namespace, by its name.
#[derive(Debug, Clone)]
pub(crate) struct Namespace(pub(crate) String);

/// A program that runs there, or here.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, namespace: Option<&Namespace>) -> Command {
    match namespace {
        None => Command::new(program),
        Some(Namespace(name)) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
    }
}

/// What it logs stands in `log`, for whoever looks into a failure.
pub(crate) fn spawn(mut command: Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}
