//! The command line. Every subcommand's help has an example.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use glasshouse_nats::Encoding;
use glasshouse_schema::dead::DeadKind;
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::{Isolation, ProfilingMode};
use glasshouse_schema::time::parse_duration;

use crate::client::{
    ArtifactCommand, BatchArgs, CancelArgs, LogsArgs, NodesArgs, PsArgs, SubmitArgs, WaitExecutionArgs,
};
use crate::image::ImageCommand;
use crate::sandbox::SandboxArgs;
use crate::spool::{RunSpoolArgs, SpoolCommand};

#[derive(Debug, Parser)]
#[command(
    name = "glasshouse",
    version,
    about = "Run anything; know what it really did",
    long_about = "Runs a command in an isolation backend, watches it from the kernel, and writes a receipt of what it did: \
                  files, processes, connections, system calls, and what could not be seen.",
    after_help = "Examples:\n  \
                  glasshouse run -- make test\n  \
                  sudo glasshouse run --profile host -- ./install.sh\n  \
                  glasshouse receipt show receipt.json\n  \
                  glasshouse doctor",
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// [`Cli`] with one subcommand alone. A command that is run waits for the parser, and making all the others took longer
/// than everything else that it does.
#[derive(Debug, Parser)]
#[command(name = "glasshouse", disable_help_subcommand = true)]
struct RunCli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: RunCommand,
}

#[derive(Debug, Subcommand)]
enum RunCommand {
    Run(Box<RunArgs>),
}

impl Cli {
    /// The command line of this process. What is wrong with it, or asks for help, is answered by the whole parser, and the
    /// process ends.
    pub(crate) fn of_process() -> Self {
        let is_run = std::env::args_os().nth(1).is_some_and(|name| name == "run");
        match is_run.then(RunCli::try_parse) {
            Some(Ok(RunCli { log, command: RunCommand::Run(args) })) => {
                Self { log, command: Command::Run(args) }
            }
            _ => Self::parse(),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// More log lines on stderr (-v info, -vv debug); GLASSHOUSE_LOG takes a filter such as `glasshouse_nats=debug`
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Log lines as JSON
    #[arg(long, global = true, env = "GLASSHOUSE_JSON_LOGS")]
    pub(crate) json_logs: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command, watched if asked
    Run(Box<RunArgs>),
    /// Run a nats-server with the whole pipeline around it
    Up(UpArgs),
    /// Show, fetch or follow receipts
    Receipt(ReceiptCommand),
    /// Fetch or follow verdicts
    Verdict(VerdictCommand),
    /// Check a receipt against the evidence it was made from
    Verify(VerifyArgs),
    /// Look at what could not be processed, and publish it again
    Dead(DeadCommand),
    /// Evaluate policies over receipts
    Policy(PolicyCommand),
    /// Create or check what Glasshouse needs on a NATS server
    Nats(NatsCommand),
    /// List or send what earlier runs could not publish
    Spool(SpoolCommand),
    /// Make or look at root filesystem images for microVMs
    Image(ImageCommand),
    /// Run a command on a node of a pool, and show what it prints
    Submit(Box<SubmitArgs>),
    /// Run many commands on the nodes of a pool
    Batch(BatchArgs),
    /// List or fetch the files that were kept of an execution
    Artifact(ArtifactCommand),
    /// List executions that wait or run
    Ps(PsArgs),
    /// Show what an execution printed
    Logs(LogsArgs),
    /// End an execution before its time
    Cancel(CancelArgs),
    /// Wait for the end of an execution
    Wait(WaitExecutionArgs),
    /// List node agents
    Nodes(NodesArgs),
    /// Find out what this machine can do, and what to do about the rest
    Doctor(DoctorArgs),
    /// Print a shell's completion script
    #[command(after_help = "Example:\n  glasshouse completions bash > /etc/bash_completion.d/glasshouse")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per subcommand to a directory
    #[command(
        after_help = "Examples:\n  glasshouse man | man -l -\n  glasshouse man /usr/local/share/man/man1"
    )]
    Man {
        /// Directory to write to
        dir: Option<PathBuf>,
    },
}

const RUN_HELP: &str = "\
Exit codes:
  the command's own; 128+n when signal n ended it
    2  the command line is wrong; nothing ran
  124  --fail-on matched the verdict and the command itself succeeded
  125  Glasshouse failed (a line on stderr says how; the receipt's outcome.error too); when only the receipt could not
       be written, stderr and --json say how the command ended
  126  the command cannot be executed
  127  the command was not found

Examples:
  glasshouse run -- make test
  sudo glasshouse run --profile host -- sh -c 'cc -o hello hello.c && ./hello'
  sudo glasshouse run --profile host --policy deploy/policies/baseline.yaml --fail-on deny -- ./install.sh
  sudo glasshouse run --sandbox standard --limit memory=512MiB --limit wall=10s -- ./untrusted
  sudo glasshouse run --sandbox strict --allow-read /srv/model --workdir /srv/job -- python3 job.py
  sudo glasshouse run --sandbox strict --allow-connect registry.example:443 -- ./fetch
  glasshouse run --profile host -- make test                   (through the node agent's socket, without root)
  glasshouse run --agent always --profile host --sandbox standard -- ./untrusted
  sudo glasshouse run --backend qemu --image root.ext4 --profile combined -- /bin/sh -c 'ls /'
  sudo glasshouse run --backend qemu --image root.ext4 --profile combined --keep-only      (so that the first run is as fast)
  sudo glasshouse run --backend kata --runtime io.containerd.runc.v2 --image docker.io/library/busybox:latest -- sh -c 'ls /'
  glasshouse run --backend remote --guest-socket /run/vm/link.sock --profile guest -- make test      (in a machine of yours)
  sudo glasshouse run --profile host --nats nats://127.0.0.1:4222 --label job=42 -- ./build.sh
  sudo glasshouse run --profile host --nats nats://bus:4222 --spool /srv/ci/spool --spool-bytes 1GiB -- ./build.sh

Events that the NATS server does not take wait on disk and are sent when it does. What is left at the end of the run is said
on stderr; `glasshouse spool send` sends it.";

#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArgs {
    /// Where to watch from
    #[arg(long, value_enum, default_value_t = Profile::Disabled, env = "GLASSHOUSE_PROFILE")]
    pub(crate) profile: Profile,
    /// Exit with 125 instead of running unwatched
    #[arg(long)]
    pub(crate) profile_required: bool,
    /// Stop the command's processes for moments (SIGSTOP, SIGCONT) rather than lose facts about them
    ///
    /// Parents can see the stops, some waits return EINTR, and shells with job control take a job for stopped. Needs
    /// profiling, and the initial pid namespace. See docs/probe.md.
    #[arg(long)]
    pub(crate) lossless: bool,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// Prepare the machine first (mount proc, sysfs, bpf; reap orphans), as PID 1 of a VM or container must
    #[arg(long)]
    pub(crate) guest: bool,
    /// What runs the command
    #[arg(long, value_enum, default_value_t = Backend::Process, env = "GLASSHOUSE_BACKEND")]
    pub(crate) backend: Backend,
    #[command(flatten)]
    pub(crate) machine: crate::machine::MachineArgs,
    #[command(flatten)]
    pub(crate) bus: OptionalBusArgs,
    /// How frames are compressed on their way to the NATS server: identity (not at all) or lz4, a third smaller
    #[arg(long, env = "GLASSHOUSE_FRAME_ENCODING", value_name = "ENCODING", default_value_t = Encoding::Identity)]
    pub(crate) frame_encoding: Encoding,
    #[command(flatten)]
    pub(crate) spool: RunSpoolArgs,
    /// Evaluate this policy over the receipt; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Vec<PathBuf>,
    /// Exit with 124 when a verdict is `deny`, or at `unknown` when it is deny or unknown
    #[arg(long, value_enum, value_name = "DECISION", requires = "policy")]
    pub(crate) fail_on: Option<FailOn>,
    /// Where to write the receipt (only written when the command was watched)
    #[arg(long, value_name = "FILE", default_value = "receipt.json")]
    pub(crate) receipt: PathBuf,
    /// A label for the receipt; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// Mask paths under this prefix; may be given several times
    #[arg(long, value_name = "PREFIX", value_parser = absolute)]
    pub(crate) mask: Vec<String>,
    /// Leave token-like values in arguments as they are
    #[arg(long)]
    pub(crate) no_mask_tokens: bool,
    /// Name of this node
    #[arg(long, env = "GLASSHOUSE_NODE", value_name = "NAME")]
    pub(crate) node: Option<NodeId>,
    /// Id of the execution, a UUIDv7 (default: a new one)
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<ExecutionId>,
    /// Directory to run the command in
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// Wait for every process of the command instead of ending those that outlive it; a signal then goes to all of them,
    /// a second one ends them
    #[arg(long)]
    pub(crate) wait_descendants: bool,
    /// Directory with compiled BPF objects to use instead of the built-in ones
    #[arg(long, env = "GLASSHOUSE_BPF_DIR", value_name = "DIR")]
    pub(crate) bpf_dir: Option<PathBuf>,
    /// Whether this machine's node agent runs the command, as this user, so that it can be watched and limited without root
    #[arg(long, value_enum, default_value_t = UseAgent::Auto, value_name = "WHEN", env = "GLASSHOUSE_AGENT")]
    pub(crate) agent: UseAgent,
    /// The node agent's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "GLASSHOUSE_SOCKET",
        default_value = "/run/glasshouse/agent.sock"
    )]
    pub(crate) socket: PathBuf,
    /// Print a summary of the execution on stderr as one JSON line
    #[arg(long)]
    pub(crate) json: bool,
    /// Run nothing: boot the machine of such a run and keep it, so that runs restore it from the first on (--backend qemu)
    ///
    /// What a machine is made of counts, so the other options are to be those of the runs: image, profile, limits, processors, a network.
    #[arg(long, conflicts_with_all = ["cold_boot", "command"])]
    pub(crate) keep_only: bool,
    /// The command and its arguments
    #[arg(last = true, required_unless_present = "keep_only", value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UseAgent {
    /// When this is not root, the socket is there, and profiling, a sandbox or a limit is asked for
    Auto,
    /// Always: without the agent the command does not run
    Always,
    /// Never
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// A process of this node in its own cgroup
    Process,
    #[cfg(target_os = "linux")]
    /// A virtual machine of its own, under KVM where that works, else emulated (see --image)
    Qemu,
    #[cfg(target_os = "linux")]
    /// A microVM of the Firecracker that GLASSHOUSE_FIRECRACKER names, under KVM only (see --image)
    Firecracker,
    #[cfg(target_os = "linux")]
    /// A container that containerd makes, by Kata's runtime or by another (see --image and --runtime)
    Kata,
    #[cfg(target_os = "linux")]
    /// A machine of yours that runs already, and in which glasshouse-guest-probe is started (see --guest-transport and --guest-socket)
    Remote,
}

impl Backend {
    pub(crate) fn isolation(self) -> Isolation {
        match self {
            Self::Process => Isolation::Process,
            #[cfg(target_os = "linux")]
            Self::Qemu | Self::Firecracker => Isolation::Vm,
            #[cfg(target_os = "linux")]
            Self::Kata => Isolation::Container,
            #[cfg(target_os = "linux")]
            Self::Remote => Isolation::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Nowhere: nothing is loaded
    Disabled,
    /// The node's kernel (needs root or CAP_BPF, CAP_PERFMON)
    Host,
    /// The kernel inside the backend's virtual machine
    Guest,
    /// Both
    Combined,
}

impl From<Profile> for ProfilingMode {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Disabled => Self::Disabled,
            Profile::Host => Self::Host,
            Profile::Guest => Self::Guest,
            Profile::Combined => Self::Combined,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// A policy denies
    Deny,
    /// A policy denies or cannot tell
    Unknown,
}

/// A bus that may be left out.
#[derive(Debug, Clone, Args)]
pub(crate) struct OptionalBusArgs {
    /// NATS server to publish to; without it everything happens in this process
    #[arg(long, env = "GLASSHOUSE_NATS", value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// NATS credentials file
    #[arg(long, env = "GLASSHOUSE_NATS_CREDS", value_name = "FILE", requires = "nats")]
    pub(crate) creds: Option<PathBuf>,
}

/// A bus that is needed.
#[derive(Debug, Clone, Args)]
pub(crate) struct BusArgs {
    /// NATS server
    #[arg(long, env = "GLASSHOUSE_NATS", value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    pub(crate) nats: String,
    /// NATS credentials file
    #[arg(long, env = "GLASSHOUSE_NATS_CREDS", value_name = "FILE")]
    pub(crate) creds: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    glasshouse up\n  \
    glasshouse up --dir /var/lib/glasshouse --port 4222 --policy deploy/policies/baseline.yaml\n\n\
    Ctrl-C stops everything in order. DIR/nats.url holds the server's URL once it is ready.")]
pub(crate) struct UpArgs {
    /// Where the server keeps its data
    #[arg(long, default_value = ".glasshouse", env = "GLASSHOUSE_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 4222, env = "GLASSHOUSE_PORT")]
    pub(crate) port: u16,
    /// Let in only who has the server's token: DIR/nats.url, which only you can read then, holds the URL with it
    #[arg(long)]
    pub(crate) private: bool,
    /// The nats-server program (default: .tools/nats-server, then PATH)
    #[arg(long, env = "GLASSHOUSE_NATS_SERVER", value_name = "FILE")]
    pub(crate) nats_server: Option<PathBuf>,
    /// Policy that the policy worker evaluates; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiptCommand {
    #[command(subcommand)]
    pub(crate) action: ReceiptAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptAction {
    /// Show a receipt file as a process tree with files and network
    Show(ShowArgs),
    /// Fetch the receipt of an execution
    #[command(
        after_help = "Example:\n  glasshouse receipt get 0198c0de-0000-7000-8000-000000000000 --wait --timeout 10s"
    )]
    Get(GetReceiptArgs),
    /// Follow receipts as they are published
    #[command(
        after_help = "Examples:\n  glasshouse receipt tail\n  glasshouse receipt tail --all --json | jq .exit_code"
    )]
    Tail(TailArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    glasshouse receipt show receipt.json\n  \
    glasshouse receipt show --json receipt.json | jq .coverage\n  \
    glasshouse receipt show --grammar v0.3.0 receipt.json")]
pub(crate) struct ShowArgs {
    /// The file, `-` for standard input
    #[arg(default_value = "receipt.json")]
    pub(crate) file: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print it as JSON in an older grammar
    #[arg(long, value_name = "VERSION", value_parser = ["v0.3.0", "v0.4.0"])]
    pub(crate) grammar: Option<String>,
    /// Show every file, library loads and failed attempts too
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GetReceiptArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    /// Print the receipt as JSON, byte for byte as it is stored
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait until it is there
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "DURATION", requires = "wait")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Begin with what is stored, not with what is new
    #[arg(long)]
    pub(crate) all: bool,
    /// End after this many
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// One JSON document per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerdictCommand {
    #[command(subcommand)]
    pub(crate) action: VerdictAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VerdictAction {
    /// Fetch the verdicts over an execution
    #[command(after_help = "Example:\n  glasshouse verdict get 0198c0de-0000-7000-8000-000000000000 --wait")]
    Get(GetVerdictArgs),
    /// Follow verdicts as they are published
    #[command(
        after_help = "Example:\n  glasshouse verdict tail --json | jq 'select(.decision == \"denied\")'"
    )]
    Tail(TailArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GetVerdictArgs {
    /// The execution
    pub(crate) execution: ExecutionId,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    /// One JSON document per line
    #[arg(long)]
    pub(crate) json: bool,
}

const VERIFY_HELP: &str = "\
Reads every stored event of the execution, walks the frame chain of every vantage point, folds all of it again as an \
aggregator does, and compares the result with the receipt, byte for byte.

Exit codes:
    0  same: the receipt follows from its evidence
    1  different: a frame is missing or altered, or the evidence says something else
    2  the command line is wrong
    3  evidence expired: the events were removed from the stream, so nothing can be said
  125  it could not be tried (a line on stderr says why)

Examples:
  glasshouse verify --replay 0198c0de-0000-7000-8000-000000000000
  glasshouse verify --replay receipt.json --nats nats://127.0.0.1:4222
  glasshouse verify --replay receipt.json --json | jq .chains";

#[derive(Debug, Args)]
#[command(after_help = VERIFY_HELP)]
pub(crate) struct VerifyArgs {
    /// Fold the stored events again and compare: with the stored receipt of this execution, or with this receipt file
    /// (`-` for standard input)
    #[arg(long, value_name = "EXECUTION|FILE", required = true)]
    pub(crate) replay: Replay,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which receipt is held against its evidence.
#[derive(Debug, Clone)]
pub(crate) enum Replay {
    Execution(ExecutionId),
    File(PathBuf),
}

/// What reads as an execution id is one; a file of that name is written `./NAME`.
impl std::str::FromStr for Replay {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::File(text.into()), Self::Execution))
    }
}

#[derive(Debug, Args)]
pub(crate) struct DeadCommand {
    #[command(subcommand)]
    pub(crate) action: DeadAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadAction {
    /// List dead letters, the newest last
    #[command(
        after_help = "Examples:\n  glasshouse dead list\n  glasshouse dead list --kind frame --limit 10\n  \
        glasshouse dead list --json | jq -r .reason | sort | uniq -c"
    )]
    List(ListLettersArgs),
    /// Show one dead letter whole, and what it is about
    #[command(
        after_help = "Examples:\n  glasshouse dead show 17\n  glasshouse dead show 17 --payload frame.bin\n  \
        glasshouse dead show 17 --payload - | xxd | head"
    )]
    Show(ShowLetterArgs),
    /// Publish the original messages again, once what kept them from being processed is mended
    #[command(after_help = REPLAY_HELP)]
    Replay(ReplayLettersArgs),
}

const REPLAY_HELP: &str = "\
Only frames and lifecycle events can be published again: receipts and verdicts are made anew by their workers. A letter \
stays in GH_DEAD, because it is a record. What is published again can be set aside again, with a letter of its own.

Exit codes: 0 everything was published (or could be, with --dry-run), 1 something was not, 125 it could not be tried

Examples:
  glasshouse dead replay 17 18
  glasshouse dead replay --all --kind frame --dry-run
  glasshouse dead replay --all";

#[derive(Debug, Args)]
pub(crate) struct ListLettersArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    #[command(flatten)]
    pub(crate) kind: KindArgs,
    /// At most this many, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    /// One JSON document per line: all of each letter but the payload
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KindArgs {
    /// Only letters of this kind
    #[arg(long, value_name = "KIND", value_parser = kind())]
    pub(crate) kind: Option<DeadKind>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowLetterArgs {
    /// Its sequence in GH_DEAD, as `dead list` shows it
    #[arg(value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seq: u64,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the original bytes to this file; `-` is standard output, and nothing else is printed
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayLettersArgs {
    /// Sequences in GH_DEAD, as `dead list` shows them
    #[arg(value_name = "SEQ", required_unless_present = "all", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seqs: Vec<u64>,
    /// Every letter, the oldest first
    #[arg(long, conflicts_with = "seqs")]
    pub(crate) all: bool,
    /// Only letters of this kind
    #[arg(long, value_name = "KIND", requires = "all", value_parser = kind())]
    pub(crate) kind: Option<DeadKind>,
    /// Say what would become of each letter; publish nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also publish events of executions that are closed: aggregators set them aside again
    #[arg(long)]
    pub(crate) even_if_closed: bool,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// One JSON document per letter
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads a kind of dead letter, and offers all of them to shells.
fn kind() -> impl TypedValueParser<Value = DeadKind> {
    clap::builder::PossibleValuesParser::new(DeadKind::ALL.map(DeadKind::as_str))
        .try_map(|token: String| DeadKind::parse(&token).ok_or("there is no such kind"))
}

#[derive(Debug, Args)]
pub(crate) struct PolicyCommand {
    #[command(subcommand)]
    pub(crate) action: PolicyAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyAction {
    /// Evaluate a policy over a receipt file
    #[command(
        after_help = "Exit codes: 0 allowed, 1 denied, 2 unknown, 125 the policy or the receipt cannot be read\n\n\
        Example:\n  glasshouse policy eval deploy/policies/baseline.yaml receipt.json"
    )]
    Eval(EvalArgs),
    /// Check a policy without a receipt
    #[command(after_help = "Example:\n  glasshouse policy check deploy/policies/baseline.yaml")]
    Check {
        /// The policy
        policy: PathBuf,
        /// Print its name, version and digest as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The policy
    pub(crate) policy: PathBuf,
    /// The receipt, `-` for standard input
    #[arg(default_value = "receipt.json")]
    pub(crate) receipt: PathBuf,
    /// Print the verdict as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NatsCommand {
    #[command(subcommand)]
    pub(crate) action: NatsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NatsAction {
    /// Create the streams and buckets that are missing; print differences, change nothing that exists
    #[command(after_help = "Exit codes: 0 all is as it should be, 1 something differs\n\n\
        Example:\n  glasshouse nats apply --nats nats://127.0.0.1:4222")]
    Apply(TopologyArgs),
    /// Print what is missing or differs; change nothing
    #[command(after_help = "Exit codes: 0 all is as it should be, 1 something is missing or differs\n\n\
        Example:\n  glasshouse nats check --nats nats://127.0.0.1:4222 --json")]
    Check(TopologyArgs),
    /// Make the keys and accounts of a server in operator mode, for where there is no nsc
    ///
    /// One account has the bus, another the links of guests (docs/guest-nats.md). The directory then has all keys: keep it off the server
    /// and the nodes, which need one file of it each.
    #[command(after_help = "Example:\n  glasshouse nats operator /root/glasshouse-keys\n  \
        cp /root/glasshouse-keys/operator.conf /etc/nats/   and include it in nats-server.conf")]
    Operator {
        /// Directory to write to; what is there already is not overwritten
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Replicas of every stream and bucket, in a cluster 3
    #[arg(long, default_value_t = 1)]
    pub(crate) replicas: usize,
    /// Print differences as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 host profiling works here, 1 it does not\n\n\
    Examples:\n  sudo glasshouse doctor\n  glasshouse doctor --nats nats://127.0.0.1:4222 --json")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) bus: OptionalBusArgs,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("a label is KEY=VALUE".into()),
    }
}

/// Read here, so that what is wrong with it is said with the option.
fn absolute(text: &str) -> Result<String, String> {
    match text.starts_with('/') && text.len() > 1 {
        true => Ok(text.into()),
        false => Err("a prefix is an absolute path other than /".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_sound_and_every_leaf_has_an_example() {
        Cli::command().debug_assert();
        fn leaves(command: &clap::Command, at: &str, found: &mut Vec<String>) {
            let name = format!("{at} {}", command.get_name());
            if command.get_subcommands().next().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                if !help.contains("Example") {
                    found.push(name.clone());
                }
            }
            command.get_subcommands().for_each(|sub| leaves(sub, &name, found));
        }
        let mut without = Vec::new();
        leaves(&Cli::command(), "", &mut without);
        assert_eq!(without, Vec::<String>::new());
    }
}
