//! The command line of whoever asks node agents to run something.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use glasshouse_schema::ids::{ExecutionId, PoolName};
use glasshouse_schema::time::parse_duration;

use crate::args::{BusArgs, Profile, label};
use crate::sandbox::SandboxArgs;

const SUBMIT_HELP: &str = "\
The command runs on a node of the pool, in an environment of its own: nothing of this shell's is passed on but what --env
names. Ctrl-C cancels it (SIGTERM, then SIGKILL), a second one kills it, a third one leaves it alone and ends.

Exit codes:
  the command's own; 128+n when signal n ended it
    2  the command line is wrong; nothing was submitted
  125  Glasshouse failed, or nobody knows how the command ended (a line on stderr says which)
  126  the command cannot be executed
  127  the command was not found

Examples:
  glasshouse submit -- make test
  glasshouse submit --pool build --profile host --label job=42 --limit wall=10m -- ./build.sh
  glasshouse submit --sandbox standard --limit memory=512MiB --limit pids=64 -- ./untrusted
  echo hello | glasshouse submit --stdin -- cat
  glasshouse submit --file build.sh --file in.txt:data/in.txt --artifact 'out/**' --artifacts-dir . -- ./build.sh
  id=$(glasshouse submit --detach -- ./long.sh) && glasshouse logs -f $id && glasshouse wait $id";

#[derive(Debug, Args)]
#[command(after_help = SUBMIT_HELP)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// What runs the command (default: what the agent says)
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Option<String>,
    /// Where to watch from (default: what the agent says)
    #[arg(long, value_enum)]
    pub(crate) profile: Option<Profile>,
    /// Do not run it unwatched
    #[arg(long)]
    pub(crate) profile_required: bool,
    /// A label for the receipt; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// A variable of the command's environment; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) env: Vec<(String, String)>,
    /// Directory on the node to run the command in (default: an empty one of its own with --file, --artifact or --sandbox,
    /// else /)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["file", "artifact"])]
    pub(crate) workdir: Option<String>,
    /// Put a file of this machine into the command's working directory, as PATH there (default: by its name); may be given
    /// several times
    #[arg(long, value_name = "LOCAL[:PATH]")]
    pub(crate) file: Vec<String>,
    /// Keep files that the command leaves in its working directory; may be given several times
    ///
    /// A path, in which * and ? stand for parts of a name, and ** for any directories. A directory stands for all that is in
    /// it. Files are kept for three days, `glasshouse artifact get` fetches them.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) artifact: Vec<String>,
    /// Fetch these files into this directory once the command has ended
    #[arg(long, value_name = "DIR", requires = "artifact", conflicts_with = "detach")]
    pub(crate) artifacts_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// Run it again, so often at most, when nobody knows how it ended: it may then have run twice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
    /// Read standard input to its end (at most 256 KiB) and give it to the command
    #[arg(long)]
    pub(crate) stdin: bool,
    /// Id of the execution, a UUIDv7 (default: a new one)
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<ExecutionId>,
    /// Print the id and do not wait
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print how it ended on stderr as one JSON line
    #[arg(long)]
    pub(crate) json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PoolArgs {
    /// The pool of node agents
    #[arg(long, env = "GLASSHOUSE_POOL", value_name = "NAME", default_value = "default")]
    pub(crate) pool: PoolName,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  glasshouse ps\n  glasshouse ps --json | jq -r .execution_id")]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// One JSON document per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Output is kept for an hour.\n\nExamples:\n  \
    glasshouse logs 0198c0de-0000-7000-8000-000000000000\n  \
    glasshouse logs -f 0198c0de-0000-7000-8000-000000000000")]
pub(crate) struct LogsArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Go on until the execution has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// One JSON document per line: stream, offset, and the bytes as text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 whoever runs it was told, or it will never run; 125 it could not be cancelled\n\n\
    Examples:\n  glasshouse cancel 0198c0de-0000-7000-8000-000000000000\n  \
    glasshouse cancel --kill 0198c0de-0000-7000-8000-000000000000"
)]
pub(crate) struct CancelArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// SIGKILL at once, instead of SIGTERM and some time
    #[arg(long)]
    pub(crate) kill: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is the command's own, as with `submit`; 125 too when the time is over.\n\n\
    Examples:\n  glasshouse wait 0198c0de-0000-7000-8000-000000000000\n  \
    glasshouse wait --timeout 5m --json 0198c0de-0000-7000-8000-000000000000"
)]
pub(crate) struct WaitExecutionArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How long to wait (default: for ever)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Print how it ended as one JSON line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  glasshouse nodes\n  glasshouse nodes --json | jq .agent.free_slots")]
pub(crate) struct NodesArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// One JSON document per line
    #[arg(long)]
    pub(crate) json: bool,
}

const BATCH_HELP: &str = "\
A line of FILE is a request (schema/json/request.schema.json); only `argv` is needed. In `files`, a string is a file of this
machine, as with `submit --file`. A line of the output says how one ended, in the order in which they end. A progress bar is shown on
a terminal.

Exit codes: 0 every command ended with 0, 1 some did not, 125 Glasshouse failed

Examples:
  glasshouse batch requests.jsonl > results.jsonl
  seq 100 | jq -c '{argv: [\"sh\", \"-c\", \"echo \\(.)\"], labels: {job: \"42\"}}' | glasshouse batch -
  echo '{\"argv\": [\"sort\", \"-o\", \"out\", \"in\"], \"files\": [\"words.txt:in\"], \"artifacts\": [\"out\"]}' \\
    | glasshouse batch --artifacts-dir results -";

#[derive(Debug, Args)]
#[command(after_help = BATCH_HELP)]
pub(crate) struct BatchArgs {
    /// Requests, one JSON document per line; `-` is standard input
    #[arg(default_value = "-")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// How many may be submitted and not ended at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: u32,
    /// Fetch artifacts into this directory, those of an execution into one of its id
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ArtifactCommand {
    #[command(subcommand)]
    pub(crate) action: ArtifactAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactAction {
    /// List the files that an execution was given, and those that were kept of it
    #[command(after_help = "Examples:\n  glasshouse artifact list 0198c0de-0000-7000-8000-000000000000\n  \
        glasshouse artifact list --json 0198c0de-0000-7000-8000-000000000000 | jq .outputs")]
    List(ListArtifactsArgs),
    /// Fetch the files that were kept of an execution
    #[command(
        after_help = "What is there already is replaced. Exit codes: 0 all of them are there, 125 something is missing\n\n\
        Examples:\n  glasshouse artifact get 0198c0de-0000-7000-8000-000000000000\n  \
        glasshouse artifact get -o results 0198c0de-0000-7000-8000-000000000000"
    )]
    Get(GetArtifactsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArtifactsArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Print them as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GetArtifactsArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Where to put them
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) output: PathBuf,
}
