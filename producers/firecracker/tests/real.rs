//! The client against the Firecracker that `GLASSHOUSE_FIRECRACKER` names, with a KVM that works and the uncompressed
//! kernel that `GLASSHOUSE_VMLINUX` names: a machine starts, its console is captured, it is paused and kept, and two clones of
//! it run at once. `GLASSHOUSE_CONFORMANCE=firecracker` makes it a failure that there is none.
//!
//! The guest has no init, so its kernel boots as far as it comes and panics. What a command sees in a guest is not tried here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use glasshouse_firecracker::api::{
    Action, BootSource, InstanceState, LogLevel, Logger, MachineConfiguration, Metrics, SerialDevice, Vsock,
};
use glasshouse_firecracker::{Client, GuestClock, Machine, Snapshot};
use tokio::process::{Child, Command};

/// Emulated machines in emulated machines are slow.
const DEADLINE: Duration = Duration::from_secs(120);

struct Firecracker {
    client: Client,
    process: Child,
}

impl Firecracker {
    async fn start(program: &Path, dir: &Path, name: &str) -> Self {
        let socket = dir.join(format!("{name}.api"));
        let process = Command::new(program)
            .args(["--id", name, "--api-sock"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let client = Client::new(&socket);
        let info = client.ready(DEADLINE).await.unwrap();
        assert_eq!((info.id.as_str(), info.state), (name, InstanceState::NotStarted));
        println!("Firecracker {} answers", info.vmm_version);
        Self { client, process }
    }

    async fn is(&self, state: InstanceState) {
        assert_eq!(self.client.instance().await.unwrap().state, state);
    }
}

async fn says(path: &Path, text: &str) {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let found = std::fs::read_to_string(path).unwrap_or_default();
        if found.contains(text) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{} never said {text:?}: {found}", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_real_machine_starts_and_is_cloned() {
    let named = |variable| std::env::var_os(variable).filter(|name| !name.is_empty()).map(PathBuf::from);
    let (Some(program), Some(vmlinux)) = (named("GLASSHOUSE_FIRECRACKER"), named("GLASSHOUSE_VMLINUX"))
    else {
        let required = std::env::var("GLASSHOUSE_CONFORMANCE")
            .is_ok_and(|names| names.split(',').any(|name| name == "firecracker"));
        assert!(
            !required,
            "GLASSHOUSE_FIRECRACKER and GLASSHOUSE_VMLINUX have to name a Firecracker and a kernel"
        );
        println!("unverified: no real Firecracker; GLASSHOUSE_FIRECRACKER and GLASSHOUSE_VMLINUX name none");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["log", "metrics", "serial"] {
        std::fs::write(at(name), "").unwrap();
    }
    let machine = Machine {
        config: MachineConfiguration { vcpu_count: 1, mem_size_mib: 128, track_dirty_pages: false },
        boot: BootSource {
            kernel_image_path: vmlinux,
            initrd_path: None,
            boot_args: Some("console=ttyS0 reboot=t nomodule".to_owned()),
        },
        drives: Vec::new(),
        networks: Vec::new(),
        vsock: Some(Vsock { guest_cid: 3, uds_path: at("v.sock") }),
        serial: Some(SerialDevice { serial_out_path: Some(at("serial")) }),
        logger: Some(Logger { log_path: at("log"), level: LogLevel::Info }),
        metrics: Some(Metrics { metrics_path: at("metrics") }),
    };
    machine.check().unwrap();

    let first = Firecracker::start(&program, dir.path(), "first").await;
    machine.configure(&first.client).await.unwrap();
    Machine::start(&first.client).await.unwrap();
    first.is(InstanceState::Running).await;
    says(&at("serial"), "Linux version").await;
    says(&at("serial"), "Kernel panic - not syncing: VFS").await;
    println!("its kernel booted as far as looking for a root");
    first.client.action(Action::FlushMetrics).await.unwrap();
    says(&at("metrics"), "utc_timestamp_ms").await;

    let snapshot = Snapshot::create(&first.client, dir.path(), dir.path()).await.unwrap();
    first.is(InstanceState::Paused).await;
    snapshot.verify().await.unwrap();
    println!("snapshot {}", snapshot.digest);

    let mut clones = Vec::new();
    for name in ["one", "two"] {
        let clone = Firecracker::start(&program, dir.path(), name).await;
        snapshot.load(&clone.client, &at(&format!("{name}.v")), GuestClock::Kept).await.unwrap();
        clones.push(clone);
    }
    for clone in &clones {
        clone.is(InstanceState::Running).await;
    }
    assert!(at("one.v").exists() && at("two.v").exists(), "each has its own vsock");
    snapshot.verify().await.unwrap();
    println!("two clones run, and the snapshot is as it was");
    for mut machine in clones.into_iter().chain([first]) {
        machine.process.kill().await.unwrap();
    }
}
