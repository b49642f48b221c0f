//! `up`: a supervised nats-server with the whole pipeline around it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use glasshouse_nats::{ConnectOptions, NatsServer, ServerOptions, Topology, without_secrets, write_secret};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::args::UpArgs;

/// How long a worker may take to finish what is in hand.
const STOP_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn main(args: UpArgs) -> anyhow::Result<ExitCode> {
    let policies = super::read_policies(&args.policy)?;
    let producer_grace =
        grace(glasshouse_aggregator::PRODUCER_GRACE_VARIABLE, glasshouse_aggregator::parse_grace)?;
    let heartbeat_grace =
        grace(glasshouse_aggregator::HEARTBEAT_GRACE_VARIABLE, glasshouse_aggregator::parse_heartbeat_grace)?;
    let mut options = ServerOptions::new(&args.dir);
    options.binary = args.nats_server;
    options.port = args.port;
    options.private = args.private;
    let server = NatsServer::start(options).await?;
    let url = server.url().to_owned();
    let url_file = args.dir.join("nats.url");

    let (stop, stopping) = watch::channel(false);
    let stopped = || {
        let mut stopping = stopping.clone();
        async move {
            // An error says that `up` itself is gone.
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    };
    let bus = glasshouse_nats::connect(ConnectOptions::new(&url, "glasshouse up")).await?;
    let applied = Topology::embedded(1)?.apply(&bus).await?;
    drop(bus);
    for difference in &applied.differences {
        crate::say(format_args!("glasshouse: {difference}"));
    }
    let mut aggregator = glasshouse_aggregator::Config::new(&url, "up");
    aggregator.producer_grace = producer_grace.unwrap_or(aggregator.producer_grace);
    aggregator.heartbeat_grace = heartbeat_grace.unwrap_or(aggregator.heartbeat_grace);
    let mut aggregator = tokio::spawn(glasshouse_aggregator::run(aggregator, stopped()));
    let policy_worker = glasshouse_policy_worker::Config::new(&url, "up", policies);
    let mut policy_worker = tokio::spawn(glasshouse_policy_worker::run(policy_worker, stopped()));

    let line = format!("{url}\n");
    let written = if args.private { write_secret(&url_file, &line) } else { std::fs::write(&url_file, line) };
    written.with_context(|| format!("cannot write {}", url_file.display()))?;
    let (shown, file) = (without_secrets(&url), url_file.display());
    let named = if args.private { format!("\"$(cat {file})\"") } else { url.clone() };
    crate::say(format_args!("glasshouse: ready at {shown}; data in {}; Ctrl-C stops", args.dir.display()));
    crate::say(format_args!(
        "glasshouse: try `sudo glasshouse run --profile host --nats {named} -- ls` and `glasshouse receipt tail --nats {named}`"
    ));

    let ended: anyhow::Result<()> = tokio::select! {
        () = glasshouse_telemetry::stop_signal() => Ok(()),
        status = server.exited() => {
            let status = status.map_or_else(|| "for an unknown reason".to_owned(), |status| format!("with {status}"));
            Err(anyhow::anyhow!("nats-server ended {status}; its log is {}/nats-server.log", args.dir.display()))
        }
        ended = &mut aggregator => Err(why("the aggregator", ended)),
        ended = &mut policy_worker => Err(why("the policy worker", ended)),
    };
    crate::say(format_args!("glasshouse: stopping"));
    // Workers first: they finish what is in hand while the server is still there.
    stop.send_replace(true);
    tokio::join!(finish("the aggregator", aggregator), finish("the policy worker", policy_worker),);
    // Before the server is gone: then the next `up` may write its own.
    remove_own(&url_file, &url);
    server.stop().await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// A grace that the environment says, as for `glasshouse-aggregator`.
fn grace(
    variable: &str,
    parse: impl FnOnce(&str) -> Result<Duration, String>,
) -> anyhow::Result<Option<Duration>> {
    match std::env::var(variable) {
        Ok(text) => parse(&text).map(Some).map_err(|error| anyhow::anyhow!("{variable}: {error}")),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(anyhow::anyhow!("{variable}: {error}")),
    }
}

/// Waits for a worker that was asked to stop, but not for ever. One that ended before was spoken of.
async fn finish<E: std::fmt::Display>(who: &str, mut worker: JoinHandle<Result<(), E>>) {
    if worker.is_finished() {
        return;
    }
    match tokio::time::timeout(STOP_WITHIN, &mut worker).await {
        Ok(ended) => say_failure(who, ended),
        Err(_) => {
            worker.abort();
            crate::say(format_args!(
                "glasshouse: {who} did not stop within {STOP_WITHIN:?}; the next one goes on where it was"
            ));
        }
    }
}

/// Removes the file with our address, unless another `up` has written its own there.
fn remove_own(url_file: &Path, url: &str) {
    let is_own = std::fs::read_to_string(url_file).is_ok_and(|text| text.trim_end() == url);
    if is_own
        && let Err(error) = std::fs::remove_file(url_file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        crate::say(format_args!("glasshouse: cannot remove {}: {error}", url_file.display()));
    }
}

type Ended<E> = Result<Result<(), E>, tokio::task::JoinError>;

fn why<E: std::fmt::Display>(who: &str, ended: Ended<E>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("{who} ended by itself"),
        Ok(Err(error)) => anyhow::anyhow!("{who} ended: {error}"),
        Err(error) => anyhow::anyhow!("{who} failed: {error}"),
    }
}

fn say_failure<E: std::fmt::Display>(who: &str, ended: Ended<E>) {
    if !matches!(ended, Ok(Ok(()))) {
        crate::say(format_args!("glasshouse: {:#}", why(who, ended)));
    }
}
