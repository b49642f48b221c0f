//! What is full: a stream, the disk of the producers' spools, the disk of the server.

use std::path::{Path, PathBuf};

use glasshouse_nats::{Bus, DEAD, EVENTS, RECEIPTS, VERDICTS};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common;
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::round::{Round, Server};
use crate::script::Shape;

/// Sets how much a stream may hold, and gives what it was.
async fn limit(bus: &Bus, stream: &str, max_bytes: i64) -> i64 {
    let found = bus.jetstream().get_stream(stream).await.unwrap();
    let mut config = found.cached_info().config.clone();
    let before = std::mem::replace(&mut config.max_bytes, max_bytes);
    bus.jetstream().update_stream(config).await.unwrap();
    before
}

/// GH_EVENTS has room for a few executions only, the workers remove what they have folded, and lend it room where that is all of open
/// ones. Every other stream that something is written to is full at times.
pub(crate) async fn streams(mut round: Round) -> Tally {
    let server = Server::start(&round.path("nats")).await;
    limit(server.bus(), EVENTS, round.random.i64(150_000..250_000)).await;
    let mut fleet = Fleet::start(server.url(), &round.dir, &["--replay-window", "0s"], None);
    let mut producers = round.produce(round.jobs(server.url(), 6, 36, Shape::SMALL, 40));
    let others = [RECEIPTS, VERDICTS, DEAD, "KV_GH_CHECKPOINTS", "KV_GH_LEASES", "KV_GH_CLAIMS"];
    while !producers.are_done() {
        producers.run_for(round.random.u64(200..1_500)).await;
        if round.random.bool() {
            let other = others[round.random.usize(..others.len())];
            let before = limit(server.bus(), other, 1).await;
            producers.run_for(round.random.u64(200..1_500)).await;
            limit(server.bus(), other, before).await;
        } else {
            fleet.attack(&mut round.random).await;
        }
    }
    let expect = Expect { is_trimmed: true, ..Expect::ALL };
    fleet.tend(verify(server.bus(), round.ledger, expect)).await
}

/// The spools lie on a disk that is full long before they have their size, while the server is away.
pub(crate) async fn spool_disk(mut round: Round) -> Tally {
    let disk = Disk::mount(round.path("disk"), 1 << 20);
    let mut server = Server::start(&round.path("nats")).await;
    // What was refused is not said again.
    let mut fleet = Fleet::start(server.url(), &round.dir, &["--producer-grace", "3s"], None);
    let shape = Shape { files: 2_000, path_bytes: 400 };
    let mut jobs = round.jobs(server.url(), 3, 9, shape, 60);
    for job in &mut jobs {
        job.spool = disk.0.join(job.spool.file_name().unwrap());
    }
    let mut producers = round.produce(jobs);
    let mut refused = 0;
    while !producers.are_done() {
        refused += producers.run_for(round.random.u64(100..800)).await;
        // Longer than a message waits for room.
        server = server.kill_and(async || common::pause(round.random.u64(2_000..4_000)).await).await;
        refused += producers.run_for(round.random.u64(0..3_000)).await;
        fleet.attack(&mut round.random).await;
    }
    let expect = Expect { shape, may_lose: true, ..Expect::ALL };
    let tally = fleet.tend(verify(server.bus(), round.ledger, expect)).await;
    assert!(tally.missed() <= refused, "{refused} are counted as refused, and these are missing: {tally}");
    tally
}

/// The disk of the server is full for a while. Then there is room, and somebody starts it again.
pub(crate) async fn server_disk(mut round: Round) -> Tally {
    const BYTES: u64 = 32 << 20;
    let disk = Disk::mount(round.path("disk"), BYTES);
    let mut server = Server::start(&disk.0.join("nats")).await;
    let mut fleet = Fleet::start(server.url(), &round.dir, &[], None);
    let mut producers = round.produce(round.jobs(server.url(), 6, 72, Shape::SMALL, 60));
    let ballast = disk.0.join("ballast");
    while !producers.are_done() {
        producers.run_for(round.random.u64(300..1_500)).await;
        match round.random.u32(0..3) {
            0 => fleet.attack(&mut round.random).await,
            _ => {
                disk.fill(&ballast, round.random.u64(0..100_000));
                producers.run_for(round.random.u64(500..3_000)).await;
                server = server.kill_and(async || std::fs::remove_file(&ballast).unwrap()).await;
            }
        }
    }
    fleet.tend(verify(server.bus(), round.ledger, Expect::ALL)).await
}

/// Why there is no disk to fill.
pub(crate) fn no_mounts() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m"));
    match mounted {
        Ok(()) => {
            umount2(dir.path(), MntFlags::MNT_DETACH).err().map(|error| format!("cannot unmount: {error}"))
        }
        Err(error) => Some(format!("a small disk cannot be mounted: {error}")),
    }
}

/// A small disk. Gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: PathBuf, bytes: u64) -> Self {
        std::fs::create_dir(&dir).unwrap();
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(dir)
    }

    /// Leaves so much room.
    fn fill(&self, ballast: &Path, leave: u64) {
        let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        let bytes = usize::try_from(free.saturating_sub(leave)).unwrap();
        // Somebody else may take the last of it meanwhile.
        let _ = std::fs::write(ballast, vec![0; bytes]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What is on it is wanted, and it is gone with the mount.
            let _ = std::process::Command::new("cp")
                .arg("-a")
                .arg(&self.0)
                .arg(self.0.with_extension("kept"))
                .status();
        }
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
