//! What became of executions: `ps`, `logs`, `cancel`, `wait`, `nodes`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use glasshouse_execution::engine::system_unix_ns;
use glasshouse_nats::{Bus, ClaimOutcome, Claims, OutputChunk, Publisher, PublisherOptions, StreamStart};
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::{Claimed, Cleaned, Failed, Outcome, Phase, PhaseName, Step};
use glasshouse_schema::request::Action;
use glasshouse_schema::subject::{self, OutputStream};
use glasshouse_schema::{Files, LifecycleEvent, version};
use serde::Serialize;
use serde_json::json;

use crate::client::{CancelArgs, LogsArgs, NodesArgs, PsArgs, WaitExecutionArgs};
use crate::{EXIT_GLASSHOUSE_FAILED, bus, say};

/// How long an execution that is between its claim and its start may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(3);

/// How an execution ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct End {
    pub(crate) execution_id: ExecutionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<NodeId>,
    pub(crate) outcome: Outcome,
    /// Why it ran unwatched, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unprofiled: Option<String>,
    /// Milliseconds from the start to the end of the root, if it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duration_ms: Option<i64>,
    /// What was put into its working directory and taken out of it.
    #[serde(skip_serializing_if = "Files::is_empty")]
    pub(crate) files: Files,
}

impl End {
    /// As far as nothing is known.
    pub(crate) fn unknown(execution_id: ExecutionId) -> Self {
        let error = Some("its record says nothing of an outcome".to_owned());
        let outcome = Outcome { exit_code: 125, error, ..Outcome::default() };
        Self {
            execution_id,
            node: None,
            outcome,
            unprofiled: None,
            duration_ms: None,
            files: Files::default(),
        }
    }

    /// Takes an event of the record; true at its end.
    pub(crate) fn take(&mut self, event: LifecycleEvent) -> bool {
        match event.phase {
            Phase::Exited(exited) => {
                self.outcome = exited.outcome;
                self.files = *exited.files;
                self.duration_ms = Some((exited.end_unix_ns - exited.start_unix_ns) / 1_000_000);
            }
            Phase::Failed(failed) if self.duration_ms.is_none() => self.outcome = failed.outcome,
            Phase::Claimed(claimed) => self.node = Some(claimed.node),
            Phase::Unprofiled(unprofiled) => self.unprofiled = Some(unprofiled.reason),
            Phase::Cleaned(_) | Phase::Closed(_) => return true,
            _ => {}
        }
        false
    }

    /// What a shell is told.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::try_from(self.outcome.exit_code).unwrap_or(EXIT_GLASSHOUSE_FAILED))
    }
}

/// The record of one execution, from its beginning.
pub(crate) async fn record(
    bus: &Bus,
    execution: ExecutionId,
) -> anyhow::Result<glasshouse_nats::EventReader> {
    let filter = subject::stored_lifecycle_of(glasshouse_nats::partition_of(execution), execution);
    Ok(bus.events(StreamStart::Oldest, vec![filter]).await?)
}

/// The next event of a record that can be read.
pub(crate) async fn next_event(record: &mut glasshouse_nats::EventReader) -> anyhow::Result<LifecycleEvent> {
    loop {
        let message = record.next().await?;
        match LifecycleEvent::decode(&message.payload) {
            Ok(event) => return Ok(event),
            Err(error) => tracing::warn!(%error, "an event of the record cannot be read"),
        }
    }
}

pub(crate) async fn wait(args: WaitExecutionArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let mut record = record(&bus, args.execution).await?;
    let mut end = End::unknown(args.execution);
    let ended = async {
        while !end.take(next_event(&mut record).await?) {}
        anyhow::Ok(())
    };
    match args.timeout {
        None => ended.await?,
        Some(timeout) => tokio::time::timeout(timeout, ended)
            .await
            .with_context(|| format!("{} has not ended within {timeout:?}", args.execution))??,
    }
    if args.json {
        super::print_json(&end)?;
    } else if let Some(error) = &end.outcome.error {
        say(format_args!("glasshouse: {error}"));
    }
    Ok(end.exit_code())
}

pub(crate) async fn ps(args: PsArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let claims = Claims::new(&bus);
    if !args.json {
        super::print(format!(
            "{:<36}  {:<12}  {:>8}  {:<24}  command\n",
            "execution", "pool", "age", "state"
        ))?;
    }
    for queued in bus.queued().await? {
        let Ok(request) = queued.request else { continue };
        let claim = claims.get(request.execution_id).await?;
        let node = claim.and_then(|(claim, _)| Some(claim?.node));
        let age = (i128::from(system_unix_ns()) - queued.stored_unix_ns).max(0) / 1_000_000;
        if args.json {
            super::print_json(&json!({
                "execution_id": request.execution_id,
                "pool": queued.pool,
                "state": if node.is_some() { "running" } else { "queued" },
                "node": node,
                "argv": request.argv,
                "labels": request.labels,
                "age_ms": i64::try_from(age).unwrap_or(i64::MAX),
            }))?;
            continue;
        }
        let state = node.map_or_else(|| "queued".to_owned(), |node| format!("on {node}"));
        let command: String =
            request.argv.join(" ").replace(char::is_control, " ").chars().take(60).collect();
        super::print(format!(
            "{:<36}  {:<12}  {:>6} s  {state:<24}  {command}\n",
            request.execution_id.to_string(),
            queued.pool.as_str(),
            age / 1000
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn nodes(args: NodesArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    if !args.json {
        super::print(format!(
            "{:<24}  {:<12}  {:>5}  {:>5}  {:<9}  {:<16}  kernel\n",
            "node", "pool", "slots", "free", "profile", "backends"
        ))?;
    }
    for node in bus.nodes().await? {
        let Some(agent) = &node.status.agent else { continue };
        if args.json {
            super::print_json(&json!({
                "node": node.status.node,
                "instance": node.instance,
                "heard_unix_ns": node.heard_unix_ns.to_string(),
                "agent": agent,
            }))?;
            continue;
        }
        super::print(format!(
            "{:<24}  {:<12}  {:>5}  {:>5}  {:<9}  {:<16}  {}{}\n",
            node.status.node.as_str(),
            agent.pool.as_str(),
            agent.slots,
            agent.free_slots,
            agent.profile.as_str(),
            agent.backends.join(","),
            agent.machine.kernel,
            if agent.draining { " (draining)" } else { "" },
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a command printed, each stream where it belongs; a part that is missing is said.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    offsets: [u64; 2],
    ended: [bool; 2],
}

impl Shown {
    pub(crate) fn show(&mut self, chunk: &OutputChunk) -> anyhow::Result<()> {
        let index = usize::from(chunk.stream == OutputStream::Stderr);
        if chunk.offset > self.offsets[index] {
            let (missing, stream) = (chunk.offset - self.offsets[index], chunk.stream.as_str());
            say(format_args!(
                "glasshouse: {missing} bytes of {stream} are not shown: the bus does not have them"
            ));
        }
        self.offsets[index] = chunk.offset + chunk.bytes.len() as u64;
        self.ended[index] |= chunk.is_end();
        match chunk.stream {
            OutputStream::Stdout => super::print(&chunk.bytes),
            OutputStream::Stderr => {
                // A caller that closed it loses the words and nothing else.
                let _ = std::io::stderr().write_all(&chunk.bytes);
                Ok(())
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended == [true; 2]
    }
}

pub(crate) async fn logs(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let mut shown = Shown::default();
    let mut show = |chunk: OutputChunk| match args.json {
        false => shown.show(&chunk).map(|()| shown.is_over()),
        true => {
            if !chunk.is_end() {
                super::print_json(&json!({
                    "stream": chunk.stream.as_str(),
                    "offset": chunk.offset,
                    "text": String::from_utf8_lossy(&chunk.bytes),
                }))?;
            }
            shown.ended[usize::from(chunk.stream == OutputStream::Stderr)] |= chunk.is_end();
            Ok(shown.is_over())
        }
    };
    if !args.follow {
        let filters = vec![subject::output_of(args.execution)];
        let mut snapshot = bus.snapshot(glasshouse_nats::OUTPUT, filters).await?;
        while let Some(message) = snapshot.next().await? {
            if let Some(chunk) = OutputChunk::of(message) {
                show(chunk)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut output = bus.output(args.execution).await?;
    let mut stopping = super::stopping();
    loop {
        tokio::select! {
            biased;
            // The sender is never dropped.
            _ = stopping.wait_for(|stop| *stop) => return Ok(ExitCode::SUCCESS),
            chunk = output.next() => if show(chunk?)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// What a cancellation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// Whoever runs it was told.
    Told,
    /// It will never run.
    Unqueued,
    /// It is over.
    Over,
}

pub(crate) async fn cancel(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let action = if args.kill { Action::Kill } else { Action::Cancel };
    let (word, text) = match end(&bus, args.execution, action).await? {
        Cancelled::Told => ("told", "the node that runs it was told"),
        Cancelled::Unqueued => ("unqueued", "it was not taken yet, and will never run"),
        Cancelled::Over => ("over", "it is over already"),
    };
    match args.json {
        true => super::print_json(&json!({"execution_id": args.execution, "result": word}))?,
        false => say(format_args!("glasshouse: {}: {text}", args.execution)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends an execution wherever it is. One that waits is claimed here, so that no agent can run it any more.
pub(crate) async fn end(bus: &Bus, execution: ExecutionId, action: Action) -> anyhow::Result<Cancelled> {
    let give_up = tokio::time::Instant::now() + LISTENS_WITHIN;
    loop {
        if bus.control(execution, action).await?.is_some() {
            return Ok(Cancelled::Told);
        }
        let record = bus.lifecycle_of(execution).await?;
        if record.iter().any(|event| matches!(event.phase.name(), PhaseName::Cleaned | PhaseName::Closed)) {
            return Ok(Cancelled::Over);
        }
        if let Some(queued) = bus.queued_request(execution).await? {
            let node = NodeId::new(nix::unistd::gethostname()?.to_string_lossy())?;
            if let ClaimOutcome::Taken { epoch } = Claims::new(bus).take(execution, &node).await? {
                refuse(bus, execution, node, epoch).await?;
                bus.unqueue(queued.stream_seq).await?;
                return Ok(Cancelled::Unqueued);
            }
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < give_up,
            "nobody runs {execution}, and it waits in no queue (`glasshouse ps` lists what does)"
        );
        // An agent has it that does not listen yet.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn refuse(bus: &Bus, execution: ExecutionId, node: NodeId, epoch: u64) -> anyhow::Result<()> {
    let publisher = Publisher::new(bus, PublisherOptions::default());
    let reason = "it was cancelled before it ran".to_owned();
    let outcome = Outcome { exit_code: 125, error: Some(reason.clone()), ..Outcome::default() };
    for phase in [
        Phase::Claimed(Claimed { node: node.clone(), epoch }),
        Phase::Failed(Failed { step: Step::Admit, error: reason, outcome }),
        Phase::Cleaned(Cleaned::default()),
    ] {
        let event = LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: execution,
            node: Some(node.clone()),
            unix_ns: system_unix_ns(),
            phase,
        };
        publisher.publish_lifecycle(&event, None).await?;
    }
    Ok(publisher.flush().await?)
}
