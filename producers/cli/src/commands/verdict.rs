//! `verdict`: get, tail.

use std::process::ExitCode;

use glasshouse_nats::Document;
use glasshouse_schema::Verdict;

use crate::args::{GetVerdictArgs, TailArgs, VerdictAction, VerdictCommand};
use crate::{bus, render};

pub(crate) async fn main(command: VerdictCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        VerdictAction::Get(args) => get(args).await,
        VerdictAction::Tail(args) => tail(args).await,
    }
}

async fn get(args: GetVerdictArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let found = match args.wait.wait {
        true => bus.wait_verdicts(args.execution, args.wait.timeout).await?,
        false => bus.get_verdicts(args.execution).await?,
    };
    if found.is_empty() {
        let hint = if args.wait.wait { "none came in time" } else { "--wait waits for one" };
        anyhow::bail!("there is no verdict over {} ({hint}); is a policy worker running?", args.execution);
    }
    found.iter().try_for_each(|document| show(document, args.json))?;
    Ok(ExitCode::SUCCESS)
}

async fn tail(args: TailArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let mut tail = bus.tail_verdicts(super::start(args.all)).await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(document) = super::next_unless_stopped(&mut tail).await? else { break };
        left -= 1;
        show(&document, args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(document: &Document, json: bool) -> anyhow::Result<()> {
    if json {
        return super::print([document.body.as_ref(), b"\n"].concat());
    }
    match Verdict::decode(&document.body) {
        Ok(verdict) => super::print(render::verdict(&verdict)),
        Err(error) => {
            crate::say(format_args!(
                "glasshouse: verdict {} is unreadable: {error}",
                document.digest.short()
            ));
            Ok(())
        }
    }
}
