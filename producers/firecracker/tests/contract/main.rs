//! Every request of the client against the published rules of the API. No machine runs here: that is contract evidence
//! only.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod published;
mod rules;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use glasshouse_firecracker::api::{
    Action, BootSource, Drive, InstanceState, LogLevel, Logger, MachineConfiguration, Metrics,
    NetworkInterface, SerialDevice, Vm, Vsock,
};
use glasshouse_firecracker::{Client, ClientError, GuestClock, Machine, Snapshot, SnapshotError, guest_link};
use serde_json::json;

use server::Server;

const SOON: Duration = Duration::from_secs(10);

/// A machine that has all there is.
fn machine() -> Machine {
    Machine {
        config: MachineConfiguration { vcpu_count: 2, mem_size_mib: 512, track_dirty_pages: true },
        boot: BootSource {
            kernel_image_path: "/vmlinux".into(),
            initrd_path: Some("/initramfs".into()),
            boot_args: Some("console=ttyS0".to_owned()),
        },
        drives: vec![Drive {
            drive_id: "root".to_owned(),
            path_on_host: "/image".into(),
            is_root_device: false,
            is_read_only: true,
        }],
        networks: vec![NetworkInterface {
            iface_id: "eth0".to_owned(),
            host_dev_name: "tap0".to_owned(),
            guest_mac: Some("06:00:00:00:00:01".to_owned()),
        }],
        vsock: Some(Vsock { guest_cid: 3, uds_path: "/run/v.sock".into() }),
        serial: Some(SerialDevice { serial_out_path: Some("/serial".into()) }),
        logger: Some(Logger { log_path: "/log".into(), level: LogLevel::Warning }),
        metrics: Some(Metrics { metrics_path: "/metrics".into() }),
    }
}

#[tokio::test]
async fn a_machine_is_told_and_started_by_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = Client::new(&server.socket);
    let info = client.ready(SOON).await.unwrap();
    assert_eq!((info.id.as_str(), info.state), ("test", InstanceState::NotStarted));
    let machine = machine();
    machine.check().unwrap();
    machine.configure(&client).await.unwrap();
    Machine::start(&client).await.unwrap();
    assert_eq!(server.runs().await, Path::new("/run/v.sock"));
    assert_eq!(client.instance().await.unwrap().state, InstanceState::Running);
    client.action(Action::FlushMetrics).await.unwrap();
    client.action(Action::SendCtrlAltDel).await.unwrap();
    assert_eq!(
        server.paths(),
        [
            "/logger",
            "/metrics",
            "/machine-config",
            "/boot-source",
            "/drives/root",
            "/network-interfaces/eth0",
            "/vsock",
            "/entropy",
            "/serial",
            "/actions",
            "/actions",
            "/actions",
        ]
    );
    assert_eq!(server.body("/vsock"), json!({"guest_cid": 3, "uds_path": "/run/v.sock"}));
    assert_eq!(
        server.body("/drives/root"),
        json!({"drive_id": "root", "path_on_host": "/image", "is_root_device": false, "is_read_only": true})
    );
}

#[tokio::test]
async fn what_is_absent_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let machine = Machine {
        boot: BootSource { initrd_path: None, boot_args: None, ..machine().boot },
        drives: Vec::new(),
        networks: Vec::new(),
        vsock: None,
        serial: None,
        logger: None,
        metrics: None,
        ..machine()
    };
    machine.configure(&Client::new(&server.socket)).await.unwrap();
    assert_eq!(server.paths(), ["/machine-config", "/boot-source", "/entropy"]);
    assert_eq!(server.body("/boot-source"), json!({"kernel_image_path": "/vmlinux"}));
}

#[tokio::test]
async fn a_refusal_has_firecrackers_words() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = Client::new(&server.socket);
    let error = Machine::start(&client).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "PUT /actions: Firecracker refused (400): Cannot start microvm without kernel configuration."
    );
    let error = client.vm(Vm::Paused).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 400, .. }), "{error}");
    assert!(error.to_string().contains("before starting the microVM"), "{error}");
    // The server's own checks bite.
    let config = MachineConfiguration { vcpu_count: 33, ..machine().config };
    let error = client.machine_config(&config).await.unwrap_err();
    assert!(error.to_string().contains("field `vcpu_count` cannot be 33"), "{error}");
    machine().configure(&client).await.unwrap();
    Machine::start(&client).await.unwrap();
    let error = client.entropy().await.unwrap_err();
    assert!(error.to_string().contains("after starting the microVM"), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_made_of_a_paused_machine_and_cloned() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = Client::new(&server.socket);
    machine().configure(&client).await.unwrap();
    Machine::start(&client).await.unwrap();
    let snapshot = Snapshot::create(&client, dir.path(), dir.path()).await.unwrap();
    assert_eq!(client.instance().await.unwrap().state, InstanceState::Paused);
    assert_eq!(server.body("/snapshot/create")["snapshot_type"], "Full");
    assert_eq!(snapshot.digest.len(), 64);
    snapshot.verify().await.unwrap();

    let other = tempfile::tempdir().unwrap();
    let fresh = Server::start(other.path());
    let clone = Client::new(&fresh.socket);
    let uds = other.path().join("v.sock");
    snapshot.load(&clone, &uds, GuestClock::SetForward).await.unwrap();
    assert_eq!(clone.instance().await.unwrap().state, InstanceState::Running);
    assert_eq!(fresh.runs().await, uds);
    let body = fresh.body("/snapshot/load");
    assert_eq!(body["vsock_override"]["uds_path"], uds.to_str().unwrap());
    assert_eq!(body["mem_backend"]["backend_type"], "File");
    assert_eq!(body["clock_realtime"], true);
    // Once told what it is, it cannot become a clone.
    let error = snapshot.load(&client, &uds, GuestClock::Kept).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Client(ClientError::Refused { .. })), "{error}");
}

#[tokio::test]
async fn an_altered_snapshot_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = Client::new(&server.socket);
    machine().configure(&client).await.unwrap();
    Machine::start(&client).await.unwrap();
    let snapshot = Snapshot::create(&client, dir.path(), dir.path()).await.unwrap();
    // Bytes that only changed files are another snapshot too.
    let (state, memory) = (std::fs::read(&snapshot.state).unwrap(), std::fs::read(&snapshot.memory).unwrap());
    std::fs::write(&snapshot.state, memory).unwrap();
    std::fs::write(&snapshot.memory, state).unwrap();
    assert!(matches!(snapshot.verify().await, Err(SnapshotError::Altered { .. })));
}

#[tokio::test]
async fn who_does_not_listen_is_waited_for_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(&dir.path().join("api.sock"));
    let waiting = tokio::spawn(async move { client.ready(SOON).await });
    let server = Server::start(dir.path());
    waiting.await.unwrap().unwrap();
    drop(server);
    let client = Client::new(Path::new("/nonexistent/api.sock"));
    let error = client.ready(Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/api.sock"), "{error}");
}

#[tokio::test]
async fn what_speaks_no_http_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let noise = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &[0x80; 4096]).await.unwrap();
    });
    let error = Client::new(&socket).instance().await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");
    noise.await.unwrap();
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    let mut machine = machine();
    machine.config = MachineConfiguration { vcpu_count: 3, mem_size_mib: 0, track_dirty_pages: false };
    machine.boot.kernel_image_path = PathBuf::new();
    machine.boot.boot_args = Some("x".repeat(3000));
    machine.drives.push(Drive { is_root_device: true, ..machine.drives[0].clone() });
    machine.drives.push(Drive {
        drive_id: "../x".to_owned(),
        is_root_device: true,
        ..machine.drives[0].clone()
    });
    machine.vsock = Some(Vsock { guest_cid: 2, uds_path: format!("/{}", "x".repeat(100)).into() });
    let wrong = machine.check().unwrap_err();
    let text = wrong.to_string();
    for part in [
        "3 virtual processors",
        "no memory",
        "the kernel: \"\"",
        "command line is longer",
        "two drives are called root",
        "\"../x\" is no name for a drive",
        "more than one drive is the root",
        "CID 2 is not a guest's",
        "is no path for a socket",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(wrong.0.len(), 9, "{text}");
}

#[test]
fn a_guest_finds_its_host_by_the_port() {
    assert_eq!(guest_link(Path::new("/run/v.sock"), 52), Path::new("/run/v.sock_52"));
}
