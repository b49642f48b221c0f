//! `receipt`: show, get, tail.

use std::process::ExitCode;

use glasshouse_schema::receipt::{Completeness, MAX_RECEIPT_BYTES, ReceiptV03};
use glasshouse_schema::{Receipt, version};

use crate::args::{GetReceiptArgs, ReceiptAction, ReceiptCommand, ShowArgs, TailArgs};
use crate::{bus, render, say};

pub(crate) fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let bytes = super::read_bounded(&args.file, MAX_RECEIPT_BYTES, "receipt")?;
    let receipt = Receipt::decode(&bytes)?;
    match args.grammar.as_deref() {
        Some(version::RECEIPT_V0_3) => super::print_json(&ReceiptV03::from(&receipt))?,
        Some(_) => super::print_json(&receipt)?,
        None if args.json => super::print_json(&receipt)?,
        None => super::print(render::receipt(&receipt, args.all))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn main(command: ReceiptCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        ReceiptAction::Show(args) => show(args),
        ReceiptAction::Get(args) => get(args).await,
        ReceiptAction::Tail(args) => tail(args).await,
    }
}

async fn get(args: GetReceiptArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let found = match args.wait.wait {
        true => bus.wait_receipt(args.execution, args.wait.timeout).await?,
        false => bus.get_receipt(args.execution).await?,
    };
    let Some(document) = found else {
        let hint = if args.wait.wait { "none came in time" } else { "--wait waits for it" };
        anyhow::bail!("there is no receipt of {} ({hint}); an unprofiled execution has none", args.execution);
    };
    match args.json {
        true => super::print(&document.body)?,
        false => super::print(render::receipt(&Receipt::decode(&document.body)?, false))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn tail(args: TailArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let mut tail = bus.tail_receipts(super::start(args.all)).await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(document) = super::next_unless_stopped(&mut tail).await? else { break };
        left -= 1;
        if args.json {
            super::print([document.body.as_ref(), b"\n"].concat())?;
            continue;
        }
        match Receipt::decode(&document.body) {
            Ok(receipt) => super::print(line(&receipt, &document.digest.short()))?,
            Err(error) => {
                say(format_args!("glasshouse: receipt {} is unreadable: {error}", document.digest.short()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line per receipt.
fn line(receipt: &Receipt, digest: &str) -> String {
    let completeness = match receipt.completeness {
        Completeness::Closed => "closed",
        Completeness::Partial => "partial",
    };
    let command = receipt.processes.first().map(|process| process.cmd.replace('\n', " ")).unwrap_or_default();
    let command: String = command.chars().take(60).collect();
    format!(
        "{} {} exit {:<3} {:<7} {:>7} ms  {digest}  {command}\n",
        receipt.end_time, receipt.execution_id, receipt.exit_code, completeness, receipt.duration_ms
    )
}
