//! Machines of Firecracker that wait for requests, with the API server of its contract tests and a played guest in place of each: what
//! the agent asks of Firecracker, and what becomes of its machines. docs/firecracker.md says what was tried with a real one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod common;
#[path = "../../vm/tests/support/played.rs"]
#[allow(dead_code, reason = "the tests of guests use the rest of it")]
mod played;
#[path = "../../firecracker/tests/contract/rules.rs"]
#[allow(dead_code, reason = "the contract tests use the rest of it")]
mod rules;
#[path = "../../firecracker/tests/contract/server.rs"]
#[allow(dead_code, reason = "the contract tests use the rest of it")]
mod server;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::{Agent, Broker, broker, processes, request, until};
use glasshouse_guest_link::{Sealed, ToHost};
use glasshouse_schema::lifecycle::{Environment, Phase, ProfilingMode};
use glasshouse_schema::{Digest, Request};
use glasshouse_vm::{KERNEL_VARIABLE, PROBE_VARIABLE, Parts};
use nix::sys::signal::Signal;

/// To a process that is to play a Firecracker with its guest: the socket of its API.
const SOCKET: &str = "GLASSHOUSE_TEST_API_SOCKET";
const PLAYED: &str = "a_played_firecracker";

/// Serves the API by the published rules until its guest runs, then is that guest: whatever its command, it ends with 0.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of the test of this file"]
async fn a_played_firecracker() {
    let socket = std::env::var_os(SOCKET).expect("only as a part of the other test");
    let server = server::Server::at(socket.into());
    let vsock = server.runs().await;
    let guest = tokio::task::spawn_blocking(move || {
        let mut host = played::Host::at(Path::new(&format!("{}_1024", vsock.display())));
        host.up_to_running();
        host.end(|host| {
            let seal = host.seal();
            host.say(played::frame(seal.bytes));
            host.say(ToHost::Sealed(Ok(Sealed { frames: 1, head: seal.digest })));
        });
    });
    guest.await.unwrap();
}

/// A program that says what a Firecracker says, where the KVM of this machine boots kernels.
fn program(dir: &Path) -> PathBuf {
    let (program, test) = (dir.join("firecracker"), std::env::current_exe().unwrap());
    let script = format!(
        "#!/bin/sh\ncase $1 in\n--version) echo Firecracker v1.17.0; exit ;;\n\
         --no-api) echo 'Kernel panic - not syncing: VFS'; exit ;;\nesac\n\
         export {SOCKET}=\"$4\"\nexec {} --exact {PLAYED} --ignored --nocapture\n",
        test.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// What looks like an image to whoever brings its module.
fn image(dir: &Path) -> PathBuf {
    let image = dir.join("root.ext4");
    let mut bytes = vec![0; 2048];
    bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(&image, bytes).unwrap();
    image
}

fn agent(broker: &Broker) -> Agent {
    let dir = broker.dir.path();
    let temporary = dir.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut environment: Vec<(String, OsString)> = vec![
        ("GLASSHOUSE_FIRECRACKER".into(), program(dir).into()),
        ("XDG_CACHE_HOME".into(), dir.join("cache").into()),
        ("TMPDIR".into(), temporary.into()),
    ];
    for name in [KERNEL_VARIABLE, PROBE_VARIABLE] {
        environment.extend(std::env::var_os(name).map(|value| (name.into(), value)));
    }
    let image = image(dir);
    let options = ["--backends", "firecracker", "--warm-machines", "2", "--image", image.to_str().unwrap()];
    Agent::start_in(broker.server.url(), &dir.join("node"), "node", &options, environment)
}

/// Runs it; gives what it ran on.
async fn environment_of(broker: &Broker, request: &Request) -> Environment {
    broker.submit(request).await;
    let outcome = broker.outcome(request.execution_id).await;
    assert_eq!((outcome.exit_code, outcome.error), (0, None));
    let record = broker.record(request.execution_id).await;
    let prepared = record.iter().find_map(|event| match &event.phase {
        Phase::Prepared(prepared) => Some((*prepared.environment).clone()),
        _ => None,
    });
    prepared.expect("it was prepared")
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_wait_and_are_replaced_and_nothing_is_left_of_them() {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let lacks = kvm.err().map(|error| format!("/dev/kvm: {error}"));
    if let Some(reason) = lacks.or(Parts::find().err().map(|error| error.to_string())) {
        return eprintln!("skipped: {reason}");
    }
    let broker = broker().await;
    let mut agent = agent(&broker);
    let waiting = || processes(PLAYED).len() == 2;
    until("two machines wait", waiting).await;

    let mut snapshots: Vec<Option<Digest>> = Vec::new();
    for profile in [ProfilingMode::Disabled, ProfilingMode::Guest] {
        let before = processes(PLAYED);
        let request = Request { profile: Some(profile), ..request("exit 0") };
        snapshots.push(environment_of(&broker, &request).await.snapshot);
        until("it is replaced", || waiting() && processes(PLAYED) != before).await;
        let after = processes(PLAYED);
        let taken = before.iter().filter(|machine| !after.contains(machine)).count();
        assert_eq!(taken, 1, "{before:?} {after:?}");
    }
    assert!(snapshots[0].is_some());
    assert_eq!(snapshots[0], snapshots[1]);

    // One that needs more than they have boots.
    let mut large = request("exit 0");
    large.limits.memory_bytes = Some(1 << 30);
    assert_eq!(environment_of(&broker, &large).await.snapshot, None);

    // New settings have machines of their own, and what a killed agent left goes with the next one.
    let reload = |agent: &mut Agent| agent.signal(Signal::SIGHUP);
    let crash = |agent: &mut Agent| {
        agent.crash();
        agent.restart();
    };
    for replace in [reload, crash] {
        until("only those that wait are left", waiting).await;
        let before = processes(PLAYED);
        replace(&mut agent);
        let are_others = || processes(PLAYED).iter().all(|one| !before.contains(one));
        until("two others wait", || waiting() && are_others()).await;
    }
    assert_eq!(agent.stop(), Some(0));
    until("no machine is left", || processes(PLAYED).is_empty()).await;
    let left = std::fs::read_dir(broker.dir.path().join("tmp")).unwrap();
    let left: Vec<OsString> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, Vec::<OsString>::new());
}
