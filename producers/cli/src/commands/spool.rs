//! `spool`: list and send what earlier runs could not publish.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use glasshouse_nats::{Bus, Encoding, Leftover, Spool, SpoolError};
use glasshouse_runner::bus;
use glasshouse_runner::spool::Sent;
use glasshouse_schema::ids::ExecutionId;
use serde_json::json;

use crate::say;
use crate::spool::{SpoolAction, SpoolCommand, SpoolListArgs, SpoolSendArgs, human};

pub(crate) async fn main(command: SpoolCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        SpoolAction::List(args) => list(&args),
        SpoolAction::Send(args) => send(args).await,
    }
}

fn list(args: &SpoolListArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.path()?;
    let mut found = false;
    for (execution, dir) in executions(&dir)? {
        // The error says its cause itself.
        let (left, in_use) = Spool::peek(&dir).map_err(|error| anyhow::anyhow!("{error}"))?;
        let Leftover { dir, messages, bytes, rejected } = left;
        if messages == 0 && rejected == 0 && !in_use {
            continue;
        }
        if args.json {
            super::print_json(&json!({
                "execution_id": execution,
                "dir": dir.display().to_string(),
                "messages": messages,
                "bytes": bytes,
                "rejected": rejected,
                "in_use": in_use,
            }))?;
            continue;
        }
        if !found {
            super::print(format!("{:<36}  {:>8}  {:>10}  state\n", "execution", "events", "size"))?;
        }
        found = true;
        let mut state = if in_use { "in use by a running glasshouse" } else { "waits" }.to_owned();
        if rejected > 0 {
            state.push_str(&format!(", {rejected} set aside"));
        }
        super::print(format!(
            "{:<36}  {messages:>8}  {:>10}  {state}\n",
            execution.to_string(),
            human(bytes)
        ))?;
    }
    if !found && !args.json {
        say(format_args!("glasshouse: nothing waits in {}", dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(args: SpoolSendArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.path()?;
    let found = executions(&dir)?;
    if found.is_empty() {
        say(format_args!("glasshouse: nothing waits in {}", dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let (bus, _) =
        bus::connect_to_publish(&args.bus.nats, args.bus.creds.as_deref(), Encoding::Identity).await?;
    let mut is_left = false;
    for (execution, dir) in found {
        match send_one(&bus, execution, &dir).await {
            Ok(Leftover { messages: 0, rejected: 0, .. }) => {}
            Ok(Leftover { messages: 0, .. }) => is_left = true,
            // What the server does not take of one it does not take of the next.
            Ok(_) => return Ok(ExitCode::FAILURE),
            // That run sends its events itself.
            Err(error @ SpoolError::InUse { .. }) => say(format_args!("glasshouse: passed by: {error}")),
            Err(error) => {
                say(format_args!("glasshouse: error: {error}"));
                is_left = true;
            }
        }
    }
    Ok(if is_left { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Sends what one execution left, and says what became of it.
async fn send_one(bus: &Bus, execution: ExecutionId, dir: &Path) -> Result<Leftover, SpoolError> {
    let Sent { messages: sent, left, state } = glasshouse_runner::spool::send(bus, dir).await?;
    if sent > 0 {
        let damaged = match state.damaged {
            0 => String::new(),
            damaged => format!(", but {damaged} of them could not be read any more"),
        };
        super::print(format!("{execution}: {sent} events sent{damaged}\n")).map_err(|error| {
            SpoolError::Io {
                operation: "tell of",
                path: dir.to_owned(),
                source: std::io::Error::other(error),
            }
        })?;
    }
    if left.messages > 0 {
        let reason = state.reason.unwrap_or_default();
        say(format_args!("glasshouse: error: {execution}: {} events are left: {reason}", left.messages));
    }
    if left.rejected > 0 {
        say(format_args!(
            "glasshouse: error: {execution}: {} events are set aside in {}: the server can never take them",
            left.rejected,
            dir.display()
        ));
    }
    Ok(left)
}

/// The directories of executions, oldest first.
fn executions(dir: &Path) -> anyhow::Result<Vec<(ExecutionId, PathBuf)>> {
    glasshouse_runner::spool::executions(dir)
        .with_context(|| format!("cannot list the spool {}", dir.display()))
}
