//! The NATS server that was named, or else the local program.

use std::path::Path;
use std::time::Duration;

use glasshouse_nats::{ConnectOptions, Difference, MIN_SERVER_VERSION, Topology};

use super::report::{Finding, Group, Status};
use crate::args::OptionalBusArgs;

const PATIENCE: Duration = Duration::from_secs(5);
const SERVER: &str = "NATS server";
const STREAMS: &str = "streams and buckets";
const BINARY: &str = "nats-server program";
const FOR_SERVER: &str = "publishing events, and everything that reads them";
const FOR_STREAMS: &str = "storing events, receipts and verdicts";
const FOR_BINARY: &str = "`glasshouse up`, which runs a local server";

pub(super) async fn findings(args: &OptionalBusArgs) -> Vec<Finding> {
    match &args.nats {
        Some(url) => server(url, args.creds.as_deref()).await,
        None => vec![
            binary().await,
            Finding::new(Group::Bus, SERVER, Status::Skipped, "not tried: none was named", FOR_SERVER)
                .action("name one with --nats nats://HOST:4222; without one `run` does everything in its own process"),
        ],
    }
}

async fn server(url: &str, credentials: Option<&Path>) -> Vec<Finding> {
    let options = ConnectOptions::new(url, "glasshouse doctor").credentials(credentials.map(Path::to_owned));
    let url = &glasshouse_nats::without_secrets(url);
    let connected = glasshouse_nats::connect(ConnectOptions { timeout: PATIENCE, ..options }).await;
    let bus = match connected {
        Ok(bus) => bus,
        Err(error) => {
            let (found, action) = split_advice(&error.to_string());
            let mut failed = Finding::new(Group::Bus, SERVER, Status::Fail, found, FOR_SERVER);
            failed.action = action;
            let untried =
                Finding::new(Group::Bus, STREAMS, Status::Skipped, "not tried: no server", FOR_STREAMS);
            return vec![failed, untried];
        }
    };
    let found = format!("{url} has version {} and JetStream", bus.server_version());
    let checked = match Topology::embedded(1) {
        Ok(topology) => match tokio::time::timeout(PATIENCE, topology.check(&bus)).await {
            Ok(Ok(differences)) => Ok((topology.names().count(), differences)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the server did not describe its streams within {PATIENCE:?}")),
        },
        Err(error) => Err(error.to_string()),
    };
    let streams = match checked {
        Ok((count, differences)) => streams(url, count, differences),
        Err(reason) => Finding::new(Group::Bus, STREAMS, Status::Fail, reason, FOR_STREAMS),
    };
    vec![Finding::new(Group::Bus, SERVER, Status::Ok, found, FOR_SERVER), streams]
}

/// How many replicas there are is the operator's choice, so it is no difference here.
fn streams(url: &str, count: usize, differences: Vec<Difference>) -> Finding {
    let (missing, other): (Vec<_>, Vec<_>) = differences
        .into_iter()
        .filter(|found| found.field != "num_replicas")
        .partition(Difference::is_missing);
    let finding = |status, found: String| Finding::new(Group::Bus, STREAMS, status, found, FOR_STREAMS);
    let listed = |list: &[Difference]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match (missing.as_slice(), other.as_slice()) {
        ([], []) => finding(Status::Ok, format!("all {count} are there and as defined")),
        ([], other) => finding(Status::Warn, listed(other)).action(format!(
            "compare with `glasshouse nats check --nats {url}`; what an operator has set is never changed"
        )),
        (missing, other) => {
            let mut found = format!("{} of {count} are missing", missing.len());
            if !other.is_empty() {
                found = format!("{found}; {}", listed(other));
            }
            finding(Status::Fail, found).action(format!("glasshouse nats apply --nats {url}"))
        }
    }
}

/// The errors of the bus end with what to do, after the last semicolon.
fn split_advice(error: &str) -> (String, Option<String>) {
    match error.rsplit_once("; ") {
        Some((what, advice)) => (what.to_owned(), Some(advice.to_owned())),
        None => (error.to_owned(), None),
    }
}

async fn binary() -> Finding {
    let finding = |status, found: String| Finding::new(Group::Bus, BINARY, status, found, FOR_BINARY);
    let advice = format!(
        "run scripts/setup.sh, or set {} to one of version {MIN_SERVER_VERSION} or newer",
        glasshouse_nats::server::BINARY_VARIABLE
    );
    let path = match glasshouse_nats::server::find_binary(None) {
        Ok(path) => path,
        Err(_) => {
            return finding(Status::Warn, "not found in .tools/ or on the PATH".to_owned()).action(advice);
        }
    };
    let mut command = tokio::process::Command::new(&path);
    command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let said = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(error)) => {
            return finding(Status::Warn, format!("{}: {error}", path.display())).action(advice);
        }
        Err(_) => {
            return finding(Status::Warn, format!("{} does not tell its version", path.display()))
                .action(advice);
        }
    };
    match version(&said) {
        Some(version) if numbers(version) >= numbers(MIN_SERVER_VERSION) => {
            finding(Status::Ok, format!("{} {version}", path.display()))
        }
        Some(version) => finding(
            Status::Warn,
            format!("{} {version} is too old: it ignores settings of our streams in silence", path.display()),
        )
        .action(advice),
        None => finding(Status::Warn, format!("{} does not tell its version", path.display())).action(advice),
    }
}

/// `nats-server: v2.15.1`
fn version(said: &str) -> Option<&str> {
    let version = said.trim().rsplit_once(' ')?.1.trim_start_matches('v');
    numbers(version).map(|_| version)
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(field: &str) -> Difference {
        Difference {
            stream: "GH_EVENTS".into(),
            field: field.into(),
            wanted: "new".into(),
            found: "old".into(),
        }
    }

    #[test]
    fn streams_are_judged() {
        let judge =
            |fields: &[&str]| streams("nats://h", 13, fields.iter().copied().map(difference).collect());
        assert_eq!(judge(&[]).status, Status::Ok);
        assert_eq!(judge(&["num_replicas"]).status, Status::Ok);
        let differs = judge(&["discard"]);
        assert_eq!(differs.status, Status::Warn);
        assert_eq!(differs.found, "GH_EVENTS: discard: wanted new, found old");
        let missing = judge(&["stream", "discard"]);
        assert_eq!(missing.status, Status::Fail);
        assert_eq!(missing.found, "1 of 13 are missing; GH_EVENTS: discard: wanted new, found old");
        assert_eq!(missing.action.as_deref(), Some("glasshouse nats apply --nats nats://h"));
    }

    #[test]
    fn advice_is_told_from_what_happened() {
        assert_eq!(split_advice("no; never: x; try y"), ("no; never: x".into(), Some("try y".into())));
        assert_eq!(split_advice("no"), ("no".into(), None));
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("nats-server: v2.15.1\n"), Some("2.15.1"));
        assert_eq!(version("nats-server: v2.12.0-RC.1"), Some("2.12.0-RC.1"));
        assert_eq!(version("usage: something else"), None);
        assert_eq!(version(""), None);
        assert!(numbers("2.9.10") < numbers(MIN_SERVER_VERSION) && numbers("10.0") > numbers("9.99"));
    }
}
