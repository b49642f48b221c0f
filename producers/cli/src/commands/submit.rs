//! `submit`: a command for a node agent, and what it prints.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use glasshouse_nats::Bus;
use glasshouse_runner::files::{LocalFile, Patterns};
use glasshouse_runner::new_execution_id;
use glasshouse_schema::Request;
use glasshouse_schema::request::{Action, MAX_STDIN_BYTES, Stdin};
use tokio::signal::unix::{SignalKind, signal};

use super::artifact;
use super::executions::{self, End, Shown};
use crate::client::SubmitArgs;
use crate::{bus, say};

/// How long output may take that was printed before the end.
const OUTPUT_WITHIN: Duration = Duration::from_secs(2);
/// What a shell says of SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

pub(crate) async fn main(args: SubmitArgs) -> anyhow::Result<ExitCode> {
    let files: Vec<LocalFile> =
        args.file.iter().map(|text| LocalFile::read(text)).collect::<Result<_, _>>()?;
    let mut request = request(&args, &files)?;
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    for file in &files {
        file.store(&bus).await?;
    }
    let trace = glasshouse_telemetry::current_traceparent().or_else(|| std::env::var("TRACEPARENT").ok());
    if args.detach {
        bus.submit(&args.pool.pool, &request, trace.as_deref()).await?;
        super::print(format!("{}\n", request.execution_id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut is_submitted = false;
    loop {
        let submit = async {
            match is_submitted {
                true => Ok(()),
                false => bus.submit(&args.pool.pool, &request, trace.as_deref()).await,
            }
        };
        let Some(end) = follow(&bus, &request, submit).await? else {
            say(format_args!("glasshouse: left alone; `glasshouse cancel {}` ends it", request.execution_id));
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        };
        if args.json {
            say(serde_json::to_string(&end)?);
        }
        if let Some(error) = &end.outcome.error {
            say(format_args!("glasshouse: {error}"));
        }
        artifact::say_skipped(&end.files);
        // The agent that found out submitted it.
        let is_unknown = end.outcome.error.as_ref().is_some_and(|error| error.starts_with("outcome unknown"));
        match request.retry().filter(|_| is_unknown) {
            Some(retry) => (request, is_submitted) = (retry, true),
            None => {
                if let Some(dir) = &args.artifacts_dir {
                    artifact::fetch(&bus, &end.files, dir).await.with_context(|| {
                        format!(
                            "the command ended with {}, and not all of its files are there",
                            end.outcome.exit_code
                        )
                    })?;
                }
                return Ok(end.exit_code());
            }
        }
    }
}

fn request(args: &SubmitArgs, files: &[LocalFile]) -> anyhow::Result<Request> {
    Patterns::new(&args.artifact)?;
    let id = match args.id {
        Some(id) => id,
        None => new_execution_id()?,
    };
    let mut stdin = Vec::new();
    if args.stdin {
        let at_most = MAX_STDIN_BYTES as u64 + 1;
        std::io::stdin()
            .lock()
            .take(at_most)
            .read_to_end(&mut stdin)
            .context("cannot read standard input")?;
    }
    Ok(Request {
        env: args.env.iter().cloned().collect(),
        workdir: args.workdir.clone(),
        files: files.iter().map(|file| file.stored.clone()).collect(),
        artifacts: args.artifact.clone(),
        stdin_base64: Stdin(stdin),
        backend: args.backend.clone(),
        profile: args.profile.map(Into::into),
        profile_required: args.profile_required,
        labels: args.label.iter().cloned().collect(),
        sandbox: args.sandbox.elsewhere()?,
        limits: args.sandbox.limits()?,
        retries: args.retries,
        ..Request::new(id, args.command.clone())
    })
}

/// Submits, shows what the command prints, and gives how it ended; `None` if the caller does not want to wait any more.
async fn follow(
    bus: &Bus,
    request: &Request,
    submit: impl Future<Output = Result<(), glasshouse_nats::Error>>,
) -> anyhow::Result<Option<End>> {
    let execution = request.execution_id;
    // Before it is submitted: nothing is waited for then once it runs.
    let mut output = bus.output(execution).await?;
    let mut record = executions::record(bus, execution).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    submit.await?;
    tracing::info!(execution_id = %execution, "submitted");
    let (mut end, mut shown) = (End::unknown(execution), Shown::default());
    let mut asked = 0;
    let mut ended_at: Option<tokio::time::Instant> = None;
    loop {
        if ended_at.is_some() && (shown.is_over() || end.duration_ms.is_none()) {
            return Ok(Some(end));
        }
        let signalled = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::select! {
            chunk = output.next() => shown.show(&chunk?)?,
            event = executions::next_event(&mut record), if ended_at.is_none() => {
                if end.take(event?) {
                    ended_at = Some(tokio::time::Instant::now());
                }
            }
            () = tokio::time::sleep_until(ended_at.unwrap_or_else(tokio::time::Instant::now) + OUTPUT_WITHIN),
                if ended_at.is_some() =>
            {
                say(format_args!("glasshouse: the end of the output is not shown: the bus does not have it"));
                return Ok(Some(end));
            }
            () = signalled => {
                asked += 1;
                let action = match asked {
                    1 => Action::Cancel,
                    2 => Action::Kill,
                    _ => return Ok(None),
                };
                if let Err(error) = executions::end(bus, execution, action).await {
                    say(format_args!("glasshouse: error: {error:#}"));
                }
            }
        }
    }
}
