//! Three servers, started as an operator starts them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use glasshouse_nats::server::find_binary;
use glasshouse_nats::{Bus, ConnectOptions, ErrorKind, ServerOptions, Topology, connect};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/nats-cluster.conf");

/// A member with the documented file, and what has to differ where three share a machine. Killed when dropped.
struct Member(Child);

impl Member {
    fn start(options: &ServerOptions) -> Self {
        let cluster = options.cluster.as_ref().unwrap();
        let routes: Vec<String> = cluster.routes.iter().map(|route| format!("nats://{route}")).collect();
        let mut command = Command::new(find_binary(None).unwrap());
        command.args(["-c", CONFIG, "--name", &cluster.name, "-p", &options.port.to_string(), "-m", "0"]);
        command.args(["--cluster", &format!("nats://{}", cluster.listen), "--routes", &routes.join(",")]);
        command.arg("-sd").arg(&options.dir);
        let log = std::fs::File::create(options.dir.with_extension("log")).unwrap();
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until it succeeds: until there is a leader, nothing does.
async fn eventually<T>(
    what: &str,
    dir: &Path,
    attempt: impl AsyncFn() -> Result<T, glasshouse_nats::Error>,
) -> T {
    let tries = async {
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(error) if error.kind() == ErrorKind::Retryable => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    };
    let log = || std::fs::read_to_string(dir.join("n1.log")).unwrap_or_default();
    let done = tokio::time::timeout(Duration::from_secs(60), tries).await;
    done.unwrap_or_else(|_| panic!("{what} does not succeed:\n{}", log()))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_of_the_documented_file_keep_every_stream_three_times() {
    let dir = tempfile::tempdir().unwrap();
    let options = ServerOptions::local_cluster(dir.path(), 3).unwrap();
    let mut members: Vec<Member> = options.iter().map(Member::start).collect();
    let urls: Vec<String> =
        options.iter().map(|options| format!("nats://127.0.0.1:{}", options.port)).collect();
    let url = urls.join(",");
    let bus: Bus =
        eventually("connecting", dir.path(), async || connect(ConnectOptions::new(&url, "test")).await).await;
    let topology = Topology::embedded(3).unwrap();
    let applied = eventually("apply", dir.path(), async || topology.apply(&bus).await).await;
    assert_eq!(applied.differences, [], "{applied}");
    let events = bus.jetstream().get_stream("GH_EVENTS").await.unwrap();
    let cluster = events.cached_info().cluster.clone().unwrap();
    assert_eq!((cluster.name.as_deref(), cluster.replicas.len()), (Some("glasshouse"), 2), "{cluster:?}");

    // Two of three are enough, whichever they are.
    let leader = cluster.leader.unwrap();
    let index = options.iter().position(|options| options.cluster.as_ref().unwrap().name == leader).unwrap();
    members.remove(index);
    eventually("looking at the streams", dir.path(), async || topology.check(&bus).await).await;
}
