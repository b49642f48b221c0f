//! What carries the link to machines of QEMU, beside each other: how fast the output of a command is, and how long a byte takes to a
//! command and back.
//!
//! Each round boots a machine per link, in turns, so that a noisy neighbour hits all alike. Prints medians of ROUNDS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{PipeWriter, Write as _};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use glasshouse_backends::conformance::spec;
use glasshouse_execution::backend::{ExecutionBackend as _, ExitStatus};
use glasshouse_execution::{OutputTap, StdStreams};
use glasshouse_vm::qemu::{Config, Qemu};
use glasshouse_vm::{Link, VmBackend};

const LINKS: [Link; 2] = [Link::VirtioSerial, Link::SharedMemory];
const ROUNDS: usize = 5;
const OUTPUT_BYTES: usize = 128 << 20;
const ROUND_TRIPS: usize = 1000;

/// What one machine gave.
struct Measured {
    /// From the start of its VMM until its command could be let go.
    boot: Duration,
    /// From the first byte of output to the last.
    output: Duration,
    /// One round trip, the median of them.
    round_trip: Duration,
}

/// Writes a byte to the command and waits for it, so many times.
fn round_trips(mut stdin: PipeWriter, stdout: &mpsc::Receiver<(Instant, usize)>) -> Duration {
    let mut took = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        stdin.write_all(b"x").unwrap();
        let (came, length) = stdout.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(length, 1);
        took.push(came - began);
    }
    median(took)
}

/// All of the output.
fn output(stdout: &mpsc::Receiver<(Instant, usize)>) -> Duration {
    let (mut first, mut bytes) = (None, 0);
    loop {
        let (came, length) = stdout.recv_timeout(Duration::from_secs(60)).unwrap();
        let first = *first.get_or_insert(came);
        bytes += length;
        if bytes >= OUTPUT_BYTES {
            assert_eq!(bytes, OUTPUT_BYTES);
            return came - first;
        }
    }
}

async fn run(config: &Config) -> Measured {
    let backend = VmBackend::new(Qemu::new(config.clone(), Default::default()));
    let (came, stdout) = mpsc::channel();
    let tap = OutputTap::new(move |_, bytes| came.send((Instant::now(), bytes.len())).unwrap());
    let (stdin, to_command) = std::io::pipe().unwrap();
    // Of the standard streams' buffers none is the command's: `dd` and `cat` do no more than read and write.
    let script = format!("cat; dd if=/dev/zero bs=64k count={} 2>/dev/null", OUTPUT_BYTES / (64 << 10));
    let mut spec = spec(["/bin/sh", "-c", &script]);
    spec.streams = StdStreams::Connected { stdin: Arc::new(stdin.into()), output: tap };
    let began = Instant::now();
    backend.prepare(&spec).await.unwrap();
    backend.start(&spec).await.unwrap();
    let boot = began.elapsed();
    backend.release().await.unwrap();
    let measured = tokio::task::spawn_blocking(move || {
        let round_trip = round_trips(to_command, &stdout);
        Measured { boot, output: output(&stdout), round_trip }
    });
    let measured = measured.await.unwrap();
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Code(0));
    backend.drain(false).await.unwrap();
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
    measured
}

fn median(mut these: Vec<Duration>) -> Duration {
    these.sort();
    these[these.len() / 2]
}

fn main() {
    // `cargo test --benches` only wants to know whether it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let config = match support::config() {
        Ok(config) => config,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut all = LINKS.map(|link| (link, Vec::new()));
    for _ in 0..ROUNDS {
        for (link, measured) in &mut all {
            let config = Config { link: link.clone(), ..config.clone() };
            let one = runtime.block_on(run(&config));
            eprintln!("{link:?}: {:?} {:?} {:?}", one.boot, one.output, one.round_trip);
            measured.push(one);
        }
    }
    println!("medians of {ROUNDS} machines each, guest kernel {}", config.parts.kernel.release);
    println!("{:<16} {:>12} {:>14} {:>16}", "link", "boot, ms", "output, MB/s", "round trip, us");
    for (link, measured) in all {
        let of = |pick: fn(&Measured) -> Duration| median(measured.iter().map(pick).collect());
        let (boot, output, round_trip) = (of(|it| it.boot), of(|it| it.output), of(|it| it.round_trip));
        println!(
            "{:<16} {:>12.0} {:>14.0} {:>16.0}",
            format!("{link:?}"),
            boot.as_secs_f64() * 1e3,
            OUTPUT_BYTES as f64 / output.as_secs_f64() / 1e6,
            round_trip.as_secs_f64() * 1e6,
        );
    }
}
