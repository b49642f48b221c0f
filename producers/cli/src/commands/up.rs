//! `up`: a supervised nats-server with the whole pipeline around it.

use std::process::ExitCode;

use anyhow::Context;
use glasshouse_nats::{ConnectOptions, NatsServer, ServerOptions, Topology};
use tokio::sync::watch;

use crate::args::UpArgs;

pub(crate) async fn main(args: UpArgs) -> anyhow::Result<ExitCode> {
    let policies = super::read_policies(&args.policy)?;
    let mut options = ServerOptions::new(&args.dir);
    options.binary = args.nats_server;
    options.port = args.port;
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
    for difference in &applied.differences {
        eprintln!("glasshouse: {difference}");
    }
    let aggregator = glasshouse_aggregator::Config { url: url.clone(), credentials: None, name: "up".into() };
    let mut aggregator = tokio::spawn(glasshouse_aggregator::run(aggregator, stopped()));
    let policy_worker = glasshouse_policy_worker::Config::new(&url, "up", policies);
    let mut policy_worker = tokio::spawn(glasshouse_policy_worker::run(policy_worker, stopped()));

    std::fs::write(&url_file, format!("{url}\n"))
        .with_context(|| format!("cannot write {}", url_file.display()))?;
    eprintln!("glasshouse: ready at {url}; data in {}; Ctrl-C stops", args.dir.display());
    eprintln!(
        "glasshouse: try `sudo glasshouse run --profile host --nats {url} -- ls` and `glasshouse receipt tail --nats {url}`"
    );

    let ended: anyhow::Result<()> = tokio::select! {
        () = glasshouse_telemetry::stop_signal() => Ok(()),
        status = server.exited() => {
            let status = status.map_or_else(|| "for an unknown reason".to_owned(), |status| format!("with {status}"));
            Err(anyhow::anyhow!("nats-server ended {status}; its log is {}/nats-server.log", args.dir.display()))
        }
        ended = &mut aggregator => Err(why("the aggregator", ended)),
        ended = &mut policy_worker => Err(why("the policy worker", ended)),
    };
    eprintln!("glasshouse: stopping");
    // Workers first: they finish what is in hand while the server is still there.
    stop.send_replace(true);
    if !aggregator.is_finished() {
        say_failure("the aggregator", aggregator.await);
    }
    if !policy_worker.is_finished() {
        say_failure("the policy worker", policy_worker.await);
    }
    server.stop().await;
    match std::fs::remove_file(&url_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("glasshouse: cannot remove {}: {error}", url_file.display());
        }
        _ => {}
    }
    ended.map(|()| ExitCode::SUCCESS)
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
        eprintln!("glasshouse: {:#}", why(who, ended));
    }
}
