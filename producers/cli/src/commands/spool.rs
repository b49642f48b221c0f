//! `spool`: list and send what earlier runs could not publish.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use glasshouse_nats::{Bus, Leftover, Spool, SpoolError, SpoolOptions, SpooledOptions, SpooledPublisher};
use glasshouse_schema::ids::ExecutionId;
use serde_json::json;

use crate::spool::{SpoolAction, SpoolCommand, SpoolListArgs, SpoolSendArgs, executions, human};
use crate::{bus, say};

/// A server that takes nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let (bus, _) = bus::connect_to_publish(&args.bus.nats, args.bus.creds.as_deref()).await?;
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

/// Returns when nothing is left of so many messages, or the server takes nothing any more.
pub(crate) async fn drain(
    publisher: &SpooledPublisher,
    mut messages: u64,
) -> Result<(), glasshouse_nats::Error> {
    loop {
        let left = publisher.flush(PATIENCE).await?.messages;
        if left == 0 || left == messages {
            return Ok(());
        }
        messages = left;
    }
}

/// Sends what one execution left, and says what became of it.
async fn send_one(bus: &Bus, execution: ExecutionId, dir: &Path) -> Result<Leftover, SpoolError> {
    let spool = Spool::open(dir, SpoolOptions::default())?;
    let all = spool.leftover().messages;
    let publisher = SpooledPublisher::new(bus, spool, SpooledOptions::default());
    let ended = |error: glasshouse_nats::Error| match error {
        glasshouse_nats::Error::Spool(error) => error,
        other => {
            SpoolError::Io { operation: "send", path: dir.to_owned(), source: std::io::Error::other(other) }
        }
    };
    drain(&publisher, all).await.map_err(ended)?;
    let state = publisher.state();
    let left = publisher.close().await.map_err(ended)?;
    let sent = all - left.messages;
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
