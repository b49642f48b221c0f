//! `glasshouse-node-agent`: runs what a pool's queue asks for.

#![deny(clippy::print_stdout)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use glasshouse_node_agent::{Layer, Settings, run, run_one};

/// What an execution needs is made and dropped with it, by many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "\
Settings come from the command line, then GLASSHOUSE_* variables, then the file (TOML, the same names), then defaults.
SIGTERM stops taking requests, lets what runs end (--drain-grace), and kills the rest; SIGHUP reads the file again.
With a command after `--` that command is run once, here, without a server; the exit code is the command's own.

Examples:
  glasshouse-node-agent --nats nats://bus:4222 --concurrency 8
  glasshouse-node-agent --pool build --profile host --label rack=7
  glasshouse-node-agent --config /etc/glasshouse/node-agent.toml
  glasshouse-node-agent --backend process --profile disabled -- ls";

/// Runs the executions that a pool's queue asks for
#[derive(Debug, Parser)]
#[command(version, after_help = HELP)]
struct Args {
    /// File with settings (default: /etc/glasshouse/node-agent.toml, if it is there)
    #[arg(long, env = "GLASSHOUSE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Layer,
    /// Where a single command's receipt is written, if it was watched
    #[arg(long, value_name = "FILE", default_value = "receipt.json")]
    receipt: PathBuf,
    /// Log lines as JSON
    #[arg(long, env = "GLASSHOUSE_JSON_LOGS")]
    json_logs: bool,
    /// Run this command once and end
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "glasshouse-node-agent: {line}");
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let level = if args.command.is_empty() { "info" } else { "warn" };
    let telemetry = match glasshouse_telemetry::init("glasshouse-node-agent", level, args.json_logs) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            say(format_args!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = match args.command.is_empty() {
        true => run(args.settings, args.config).await.map(|()| ExitCode::SUCCESS),
        false => once(args).await,
    };
    telemetry.shutdown();
    code.unwrap_or_else(|error| {
        say(format_args!("error: {error}"));
        ExitCode::from(125)
    })
}

async fn once(args: Args) -> Result<ExitCode, glasshouse_node_agent::Error> {
    let settings = Settings::load(&args.settings, args.config.as_deref())?;
    let (outcome, problems) = run_one(&settings, args.command, &args.receipt).await?;
    for problem in outcome.error.iter().chain(&problems) {
        say(problem);
    }
    Ok(ExitCode::from(u8::try_from(outcome.exit_code).unwrap_or(125)))
}
