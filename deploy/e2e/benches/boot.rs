//! How long a command in a virtual machine waits for its first instruction, beside a bare boot of the same kernel in the same
//! VMM: an init that says one byte and no more.
//!
//! From the start of the program (`glasshouse`, or QEMU) to the first byte that comes out of it, of machines that boot
//! (`--cold-boot`) and of those that are restored, which is the default. The contestants take turns, so that a noisy neighbour hits
//! all alike. Prints medians of RUNS rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

#[path = "../tests/machines/image.rs"]
mod image;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use glasshouse_e2e::{cannot_watch, command};
use glasshouse_images::initramfs::Initramfs;
use glasshouse_vm::qemu::accel::{self, Accel};
use glasshouse_vm::{Parts, qemu};

const RUNS: usize = 9;
/// Over the bare boot.
const GOAL: f64 = 1.5;
/// Speaks without a driver: to the first serial port.
const INIT: &str = r"
#include <sys/io.h>
#include <unistd.h>
int main(void) {
    if (ioperm(0x3f8, 1, 1) == 0) outb('!', 0x3f8);
    for (;;) pause();
}
";

struct Contestant {
    name: String,
    make: Box<dyn Fn() -> Command>,
    took: Vec<Duration>,
}

impl Contestant {
    fn new(name: &str, make: impl Fn() -> Command + 'static) -> Self {
        Self { name: name.to_owned(), make: Box::new(make), took: Vec::new() }
    }

    /// From the start to the first byte.
    fn run(&mut self) {
        let mut command = (self.make)();
        let begin = Instant::now();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let read = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
        self.took.push(begin.elapsed());
        assert_eq!(read, 1, "{} said nothing", self.name);
        if self.name == BARE {
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }

    fn median(&self) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort();
        sorted[sorted.len() / 2]
    }
}

const BARE: &str = "bare boot";

/// QEMU as the backend has it, without what only a command needs.
fn bare(dir: &Path, parts: &Parts, qemu: &Path) -> Contestant {
    let (source, init) = (dir.join("init.c"), dir.join("init"));
    std::fs::write(&source, INIT).unwrap();
    let built = Command::new("cc").args(["-Os", "-static", "-o"]).arg(&init).arg(&source).status();
    assert!(built.expect("a C compiler").success());
    let initramfs = dir.join("initramfs");
    let archive = Initramfs::new(std::fs::read(&init).unwrap());
    archive.write(std::fs::File::create(&initramfs).unwrap()).unwrap();
    let vmlinux = parts.vmlinux().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let line = "quiet panic=-1 reboot=t random.trust_cpu=1 cryptomgr.notests 8250.nr_uarts=1 tsc=reliable no_timer_check";
    let (accel, line) = match runtime.block_on(accel::choose(qemu, &vmlinux, parts)) {
        Accel::Kvm => ("-accel kvm -cpu host", line.to_owned()),
        Accel::Tcg => (
            "-accel tcg,thread=multi -cpu max",
            format!("{line} tsc_early_khz={} mitigations=off nokaslr", accel::tsc_khz()),
        ),
    };
    println!("{} in QEMU ({accel})", parts.kernel.release);
    let qemu = qemu.to_owned();
    Contestant::new(BARE, move || {
        let mut command = Command::new(&qemu);
        command.args(
            "-M microvm -nodefaults -no-user-config -display none -no-reboot -smp 1 -m 512M".split(' '),
        );
        command.args("-serial stdio".split(' ')).args(accel.split(' '));
        command.arg("-kernel").arg(&vmlinux).arg("-initrd").arg(&initramfs).args(["-append", &line]);
        command
    })
}

fn main() {
    if let Some(reason) = cannot_watch() {
        return println!("skipped: {reason}");
    }
    let image = match image::made() {
        Ok(image) => image,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![bare(dir.path(), &Parts::find().unwrap(), &qemu::program().unwrap())];
    let of_each = |profile| [None, Some("--cold-boot")].map(|cold| (profile, cold));
    for (profile, cold) in ["disabled", "host", "guest", "combined"].into_iter().flat_map(of_each) {
        let (image, receipt) = (image.clone(), dir.path().join("receipt.json"));
        let name = format!("run --profile {profile} {}", cold.unwrap_or_default());
        all.push(Contestant::new(name.trim_end(), move || {
            let mut run = command("glasshouse");
            run.args(["run", "--backend", "qemu", "--profile", profile, "--image"]).arg(&image).args(cold);
            if profile != "disabled" {
                run.arg("--profile-required").arg("--receipt").arg(&receipt);
            }
            run.args(["--", "/bin/sh", "-c", "echo"]);
            run
        }));
    }
    // Once without a clock: whatever is read from disk is read by then, and what is restored is kept.
    for round in 0..=RUNS {
        all.iter_mut().for_each(Contestant::run);
        if round == 0 {
            all.iter_mut().for_each(|contestant| contestant.took.clear());
        }
    }
    println!(
        "{:<34} {:>8} {:>8} {:>8}  over the bare boot",
        "to the first instruction, ms", "min", "median", "max"
    );
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let bare = ms(all[0].median());
    for contestant in &all {
        let ratio = ms(contestant.median()) / bare;
        let verdict = if ratio <= GOAL { "met" } else { "NOT met" };
        println!(
            "{:<34} {:>8.0} {:>8.0} {:>8.0}  {ratio:.2}x (goal <= {GOAL}x: {verdict})",
            contestant.name,
            ms(*contestant.took.iter().min().unwrap()),
            ms(contestant.median()),
            ms(*contestant.took.iter().max().unwrap()),
        );
    }
}
