//! `batch`: many requests, one line of result each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use glasshouse_nats::{Bus, StreamStart};
use glasshouse_runner::files::{LocalFile, Patterns};
use glasshouse_runner::new_execution_id;
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::PhaseName;
use glasshouse_schema::request::MAX_REQUEST_BYTES;
use glasshouse_schema::{LifecycleEvent, Request, subject, version};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::artifact;
use super::executions::End;
use crate::bus;
use crate::client::BatchArgs;

/// Files of this machine, by how a request names them.
type LocalFiles = HashMap<String, LocalFile>;

/// What of an execution's record says how it ended.
const PHASES: [PhaseName; 5] =
    [PhaseName::Claimed, PhaseName::Unprofiled, PhaseName::Exited, PhaseName::Failed, PhaseName::Cleaned];

pub(crate) async fn main(args: BatchArgs) -> anyhow::Result<ExitCode> {
    // What is wrong with a line is said before anything is submitted.
    let mut files = HashMap::new();
    let requests = read(&args.file, &mut files)?;
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    for file in files.values() {
        file.store(&bus).await?;
    }
    let bar = ProgressBar::new(requests.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len}  {msg}  {elapsed} (eta {eta})")?);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let failed = run(&bus, requests, &args, &bar).await?;
    bar.finish();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Submits, and prints how each ended; gives how many did not end with 0.
async fn run(bus: &Bus, requests: Vec<Request>, args: &BatchArgs, bar: &ProgressBar) -> anyhow::Result<u64> {
    // Before the first is submitted, so that no end is missed.
    let filters = PHASES.iter().map(|phase| subject::stored_phase(*phase)).collect();
    let mut events = bus.events(StreamStart::New, filters).await?;
    let mut requests = requests.into_iter();
    let mut open: HashMap<ExecutionId, End> = HashMap::new();
    let mut failed = 0;
    let mut stopping = super::stopping();
    loop {
        while open.len() < args.in_flight as usize
            && let Some(request) = requests.next()
        {
            open.insert(request.execution_id, End::unknown(request.execution_id));
            bus.submit(&args.pool.pool, &request, None).await?;
        }
        if open.is_empty() {
            return Ok(failed);
        }
        let message = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => {
                anyhow::bail!("stopped with {} executions under way: `glasshouse ps` lists them", open.len());
            }
            message = events.next() => message?,
        };
        let Ok(event) = LifecycleEvent::decode(&message.payload) else { continue };
        let execution = event.execution_id;
        let Some(end) = open.get_mut(&execution) else { continue };
        if end.take(event)
            && let Some(end) = open.remove(&execution)
        {
            failed += u64::from(end.outcome.exit_code != 0);
            bar.inc(1);
            bar.set_message(format!("{failed} failed"));
            super::print_json(&end)?;
            if let Some(dir) = &args.artifacts_dir {
                artifact::fetch(bus, &end.files, &dir.join(execution.to_string())).await?;
            }
        }
    }
}

/// Requests, and the files of this machine that they bring, each once.
fn read(path: &Path, files: &mut LocalFiles) -> anyhow::Result<Vec<Request>> {
    let input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin().lock()),
        false => {
            let file = std::fs::File::open(path);
            Box::new(file.with_context(|| format!("cannot read the requests {}", path.display()))?)
        }
    };
    let mut input = BufReader::new(input);
    let mut requests = Vec::new();
    for number in 1_u64.. {
        let mut line = Vec::new();
        let at_most = MAX_REQUEST_BYTES as u64 + 1;
        let read = input.by_ref().take(at_most).read_until(b'\n', &mut line);
        if read.with_context(|| format!("cannot read line {number}"))? == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() {
            requests.push(request(&line, files).with_context(|| format!("line {number}"))?);
        }
    }
    Ok(requests)
}

/// A request with what every request has. Strings among its files are files of this machine.
fn request(line: &[u8], known: &mut LocalFiles) -> anyhow::Result<Request> {
    let mut document: Value = serde_json::from_slice(line).context("it is not JSON")?;
    let fields = document.as_object_mut().context("it is not an object")?;
    fields.entry("schema_version").or_insert_with(|| version::REQUEST.into());
    if !fields.contains_key("execution_id") {
        fields.insert("execution_id".into(), new_execution_id()?.to_string().into());
    }
    for file in fields.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(text) = file.as_str() else { continue };
        let local = match known.entry(text.to_owned()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(new) => new.insert(LocalFile::read(text)?),
        };
        *file = serde_json::to_value(&local.stored)?;
    }
    let request = Request::decode(&serde_json::to_vec(&document)?)?;
    Patterns::new(&request.artifacts)?;
    Ok(request)
}

#[cfg(test)]
mod tests {

    #[test]
    fn a_line_needs_a_command_and_nothing_else() {
        let known = &mut super::LocalFiles::new();
        let request = super::request(br#"{"argv": ["ls"], "labels": {"job": "42"}}"#, known).unwrap();
        assert_eq!((request.argv, request.labels["job"].as_str()), (vec!["ls".to_owned()], "42"));
        for bad in ["", "[]", "{}", r#"{"argv": []}"#, r#"{"argv": ["ls"], "argc": 1}"#] {
            assert!(super::request(bad.as_bytes(), known).is_err(), "{bad}");
        }
    }
}
