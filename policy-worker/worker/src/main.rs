//! `glasshouse-policy-worker`: receipts become verdicts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use glasshouse_policy_worker::{Config, load, run};

/// Judges the receipts on a NATS server by policies and publishes the verdicts
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Workers share one queue: start as many as the load needs, all with the same policies.\n\
                  SIGTERM and SIGINT finish the receipt in hand and stop.\n\n\
                  Examples:\n  \
                  glasshouse-policy-worker --policy deploy/policies/baseline.yaml\n  \
                  glasshouse-policy-worker --nats nats://bus:4222 --creds worker.creds --policy /etc/glasshouse/policies\n  \
                  GLASSHOUSE_NATS=nats://bus:4222 GLASSHOUSE_POLICY=a.yaml,b.yaml glasshouse-policy-worker --json-logs"
)]
struct Args {
    /// NATS server
    #[arg(long, env = "GLASSHOUSE_NATS", value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    nats: String,
    /// NATS credentials file
    #[arg(long, env = "GLASSHOUSE_NATS_CREDS", value_name = "FILE")]
    creds: Option<PathBuf>,
    /// Policy file, or directory of .yaml and .yml files; repeat it, or separate several by commas
    #[arg(long, env = "GLASSHOUSE_POLICY", value_name = "PATH", required = true, value_delimiter = ',')]
    policy: Vec<PathBuf>,
    /// Name of this worker in headers and dead letters
    #[arg(long, env = "GLASSHOUSE_WORKER", default_value = "policy-worker")]
    name: String,
    /// Log lines as JSON
    #[arg(long, env = "GLASSHOUSE_JSON_LOGS")]
    json_logs: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("glasshouse-policy-worker: error: {error}");
        ExitCode::FAILURE
    };
    let policies = match load(&args.policy) {
        Ok(policies) => policies,
        Err(error) => return failed(&error),
    };
    let telemetry = match glasshouse_telemetry::init("glasshouse-policy-worker", "info", args.json_logs) {
        Ok(telemetry) => telemetry,
        Err(error) => return failed(&error),
    };
    let config = Config { url: args.nats, credentials: args.creds, name: args.name, policies };
    let result = run(config, glasshouse_telemetry::stop_signal()).await;
    telemetry.shutdown();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}
