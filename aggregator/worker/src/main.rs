//! `glasshouse-aggregator`: frames become receipts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use glasshouse_aggregator::{
    Config, HEARTBEAT_GRACE_VARIABLE, PRODUCER_GRACE_VARIABLE, parse_duration, parse_failover, parse_grace,
    parse_heartbeat_grace, run,
};

/// A quarter of the fold's time went to the usual allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Folds the events on a NATS server into receipts
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Start as many as there is work for: they share the partitions among them, and what one had when it died\n\
                  the others take over within seconds. SIGTERM and SIGINT finish what is in hand and stop.\n\nExamples:\n  \
                  glasshouse-aggregator --nats nats://127.0.0.1:4222\n  \
                  GLASSHOUSE_NATS=nats://bus:4222 glasshouse-aggregator --name aggregator-1 --json-logs"
)]
struct Args {
    /// NATS server
    #[arg(long, env = "GLASSHOUSE_NATS", value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    nats: String,
    /// NATS credentials file
    #[arg(long, env = "GLASSHOUSE_NATS_CREDS", value_name = "FILE")]
    creds: Option<PathBuf>,
    /// Name of this worker in headers and dead letters
    #[arg(long, env = "GLASSHOUSE_WORKER", default_value = "aggregator")]
    name: String,
    /// Close an execution whose producer is dead: its heartbeat is gone for this long (30s, 5m, 1h, 2d)
    #[arg(long, env = HEARTBEAT_GRACE_VARIABLE, value_name = "TIME", default_value = "1h", value_parser = parse_heartbeat_grace)]
    heartbeat_grace: Duration,
    /// Close an execution of which nothing comes for this long, if its producer has no heartbeat: it is dead, or quieter than
    /// this
    #[arg(long, env = PRODUCER_GRACE_VARIABLE, value_name = "TIME", default_value = "24h", value_parser = parse_grace)]
    producer_grace: Duration,
    /// Take over the ranges of a worker of which no heartbeat comes for this long (400ms to 30s); the same for all workers
    #[arg(long, env = "GLASSHOUSE_FAILOVER", value_name = "TIME", default_value = "4s", value_parser = parse_failover)]
    failover: Duration,
    /// Keep events for this long after no open execution needs them, for `glasshouse verify --replay` (0s, 30m, 24h, 7d)
    #[arg(long, env = "GLASSHOUSE_REPLAY_WINDOW", value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    replay_window: Duration,
    /// Log lines as JSON
    #[arg(long, env = "GLASSHOUSE_JSON_LOGS")]
    json_logs: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let telemetry = match glasshouse_telemetry::init("glasshouse-aggregator", "info", args.json_logs) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("glasshouse-aggregator: error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let config = Config {
        url: args.nats,
        credentials: args.creds,
        name: args.name,
        producer_grace: args.producer_grace,
        heartbeat_grace: args.heartbeat_grace,
        failover: args.failover,
        replay_window: args.replay_window,
    };
    let result = run(config, glasshouse_telemetry::stop_signal()).await;
    telemetry.shutdown();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("glasshouse-aggregator: error: {error}");
            ExitCode::FAILURE
        }
    }
}
