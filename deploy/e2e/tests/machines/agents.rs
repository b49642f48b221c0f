//! Machines of an agent whose settings say by what their guests speak.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};

use glasshouse_e2e::{Process, command, output, output_within, skip_unless_watching_works, stderr};
use glasshouse_nats::{ConnectOptions, NatsServer, ServerOptions, Topology, connect};
use nix::sys::signal::Signal;

use super::image;
use crate::{DEADLINE, cache, skip_unless_machines_work};

/// A server in operator mode, with accounts for the bus and for the links of guests.
async fn server(dir: &Path, keys: &Path) -> NatsServer {
    let mut operator = command("glasshouse");
    operator.args(["nats", "operator"]).arg(keys);
    assert!(output(operator).status.success());
    let mut options = ServerOptions::new(dir.join("nats"));
    options.more = std::fs::read_to_string(keys.join("operator.conf")).unwrap();
    let server = NatsServer::start(options).await.unwrap();
    let options = ConnectOptions::new(server.url(), "test").credentials(Some(keys.join("glasshouse.creds")));
    Topology::embedded(1).unwrap().apply(&connect(options).await.unwrap()).await.unwrap();
    server
}

/// Waits for a line of the agent's log.
fn says(log: &Receiver<String>, what: &str) {
    let line = |_| log.recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("`{what}`: {error}"));
    (0..).map(line).find(|line| line.contains(what)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_guests_speak_by_what_its_settings_say() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir().unwrap();
    let (file, keys) = (dir.path().join("agent.toml"), dir.path().join("keys"));
    let server = server(dir.path(), &keys).await;
    let (url, creds, key) = (server.url(), keys.join("glasshouse.creds"), keys.join("guests.key"));
    let settings = |guests: &str| {
        let (image, creds, state) = (image.display(), creds.display(), dir.path().join("state"));
        let text = format!(
            "nats = \"{url}\"\ncreds = \"{creds}\"\nnode = \"n1\"\nsocket = \"none\"\nstate = \"{}\"\n\
             backends = [\"qemu\"]\nimage = \"{image}\"\n{guests}\n",
            state.display()
        );
        std::fs::write(&file, text).unwrap();
    };
    let agent = || {
        let mut agent = command("glasshouse-node-agent");
        agent.env("XDG_CACHE_HOME", cache()).env("GLASSHOUSE_CONFIG", &file);
        agent
    };
    // What the guest was told to speak by.
    let spoken = || {
        let mut submit = command("glasshouse");
        submit.env("GLASSHOUSE_NATS", url).env("GLASSHOUSE_NATS_CREDS", &creds);
        submit.args(["submit", "--profile", "guest", "--", "/bin/cat", "/proc/cmdline"]);
        let output = output_within(DEADLINE, submit);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let line = String::from_utf8(output.stdout).unwrap();
        line.split(' ').find_map(|word| word.strip_prefix("glasshouse.transport=")).unwrap().to_owned()
    };

    settings("guest-transport = \"shared-memory\"");
    let mut running = agent();
    running.stderr(Stdio::piped());
    let mut running = Process::spawn(running);
    let lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let (heard, log) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            eprintln!("agent: {line}");
            let _ = heard.send(line);
        }
    });
    says(&log, "taking requests");
    assert!(spoken().starts_with("shared-memory:"));

    // Half of what it needs leaves the agent as it is, and is no agent at a start.
    settings(&format!("guest-transport = \"nats\"\nguest-nats = \"{url}\""));
    running.signal(Signal::SIGHUP);
    says(&log, "--guest-nats-key FILE");
    let mut none = agent();
    none.args(["--state"]).arg(dir.path().join("other"));
    let none = output(none);
    assert_eq!(none.status.code(), Some(125), "{}", stderr(&none));
    assert!(
        stderr(&none).contains("nats needs --guest-nats URL and --guest-nats-key FILE"),
        "{}",
        stderr(&none)
    );

    settings(&format!(
        "guest-transport = \"nats\"\nguest-nats = \"{url}\"\nguest-nats-key = \"{}\"",
        key.display()
    ));
    running.signal(Signal::SIGHUP);
    says(&log, "settings read again");
    let port = url.rsplit(':').next().unwrap();
    assert_eq!(spoken(), format!("nats:10.0.2.2:{port}"));
    assert_eq!(running.stop(), Some(0));
}
