//! `glasshouse`: run a command and know what it really did.
//!
//! A composition root: it links execution, backends, probe, fold, evaluator and bus, and holds none of their logic.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod args;
mod client;
mod commands;
mod image;
mod leftovers;
mod machine;
mod render;
mod sandbox;
mod spool;

use std::process::ExitCode;

use glasshouse_runner::bus;

use args::{Cli, Command};

/// Exit code for what Glasshouse itself could not do. A command's own 125 is told from it by the line on stderr and
/// by `outcome.error`.
pub(crate) const EXIT_GLASSHOUSE_FAILED: u8 = 125;
/// Exit code for `--fail-on` when the verdict says so and the command itself succeeded.
pub(crate) const EXIT_VERDICT: u8 = 124;

/// Says a line on stderr. A caller that closed it loses the words and nothing else: `eprintln!` would end us there.
pub(crate) fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn main() -> ExitCode {
    let cli = Cli::of_process();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("glasshouse: error: {error:#}"));
            ExitCode::from(EXIT_GLASSHOUSE_FAILED)
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    use commands::{
        artifact, batch, dead, doctor, executions, image, nats, policy, receipt, run, shell, spool, submit,
        up, verdict, verify,
    };
    let log = cli.log;
    match cli.command {
        // What needs no runtime and no bus costs neither.
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { dir } => shell::man(dir.as_deref()),
        Command::Policy(args) => policy::main(args),
        Command::Image(args) => image::main(args),
        Command::Receipt(args::ReceiptCommand { action: args::ReceiptAction::Show(args) }) => {
            receipt::show(args)
        }
        Command::Run(args) => run::main(args, &log),
        other => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async {
                let telemetry = commands::telemetry("glasshouse", &log)?;
                let result = match other {
                    Command::Up(args) => up::main(args).await,
                    Command::Receipt(args) => receipt::main(args).await,
                    Command::Verdict(args) => verdict::main(args).await,
                    Command::Verify(args) => verify::main(args).await,
                    Command::Dead(args) => dead::main(args).await,
                    Command::Doctor(args) => doctor::main(args).await,
                    Command::Nats(args) => nats::main(args).await,
                    Command::Spool(args) => spool::main(args).await,
                    Command::Submit(args) => submit::main(*args).await,
                    Command::Batch(args) => batch::main(args).await,
                    Command::Artifact(args) => artifact::main(args).await,
                    Command::Ps(args) => executions::ps(args).await,
                    Command::Logs(args) => executions::logs(args).await,
                    Command::Cancel(args) => executions::cancel(args).await,
                    Command::Wait(args) => executions::wait(args).await,
                    Command::Nodes(args) => executions::nodes(args).await,
                    Command::Completions { .. }
                    | Command::Man { .. }
                    | Command::Image(_)
                    | Command::Policy(_)
                    | Command::Run(_) => Ok(ExitCode::SUCCESS),
                };
                telemetry.shutdown();
                result
            })
        }
    }
}
