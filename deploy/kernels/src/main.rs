//! Whether Glasshouse sees the same on every kernel that Debian offers. `docs/kernels.md` is what it found.
//!
//! ```text
//!   catalogue ──► image of each kernel ──► relocations of the objects against its types      (amd64, arm64)
//!                        ├──────────────► machine: QEMU, initramfs of static programs ──► receipts ─┐
//!                        ├──────────────► guest of `glasshouse run --backend qemu` ─────► receipts ─┤
//!   programs  ──► the same workload on this machine ──────────────────────────────────► receipts ─┴► facts ──► tables
//! ```

mod catalogue;
mod facts;
mod guests;
mod image;
mod machine;
mod object_types;
mod programs;
mod relocations;
mod run;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use glasshouse_images::Initramfs;
use serde_json::Value;

use crate::catalogue::{Arch, Catalogue, Kernel, Unpacked};
use crate::guests::Guests;
use crate::machine::Report;
use crate::programs::Programs;
use crate::relocations::Fit;
use crate::table::{Compared, Outcome, Ran, Row};

/// bpf_loop, which the probe walks paths with.
const OLDEST: (u32, u32) = (5, 17);
/// What `--quick` boots: Debian 12's kernel.
const QUICK: &str = "6.1";
/// How often a kernel is watched at most until nothing is lost.
const LOSSES: u32 = 3;
const PROGRAM_TYPES: [&str; 7] =
    ["tp_btf", "raw_tp", "tracepoint", "cgroup_sock_addr", "fentry", "lsm", "kprobe"];
/// What `guest/init.c` runs, and where.
const GUEST_PROGRAM: &str = "/workload";
const GUEST_DIRECTORY: &str = "/tmp/work";

/// Boots every kernel that Debian offers, runs Glasshouse in it and compares the receipts with this machine's.
///
/// Needs root (to watch the workload here), apt, gcc, libc6-dev, clang and qemu-system-x86; xz, zstd and lz4 unpack kernels.
/// Everything is below target/; nothing is installed, and apt's own lists and sources stay as they are.
#[derive(Parser)]
#[command(
    after_help = "Exit codes: 0 every kernel is as it should be, 1 one is not, 2 it could not be found out\n\n\
    Examples:\n  cargo run -p glasshouse-kernels -- --quick\n  cargo run -p glasshouse-kernels"
)]
struct Arguments {
    /// Only Debian 12's kernel, as `--series 6.1`
    #[arg(long)]
    quick: bool,
    /// Only this series; writes no document
    #[arg(long, value_name = "X.Y", conflicts_with = "quick")]
    series: Option<String>,
    /// Boot nothing: only check the relocations, which needs neither root nor QEMU; writes no document
    #[arg(long, conflicts_with = "quick")]
    relocations: bool,
    /// Every build of a series, not just its newest
    #[arg(long, conflicts_with = "quick")]
    every_build: bool,
}

fn main() -> ExitCode {
    match work(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("glasshouse-kernels: error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn work(arguments: &Arguments) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let cache = root.join("target/kernels");
    std::fs::create_dir_all(&cache)?;
    let machines = if arguments.relocations { None } else { Some(Machines::prepare(&root, &cache)?) };
    println!("asking what kernels there are");
    let catalogue = Catalogue::read(&cache)?;

    let only = if arguments.quick { Some(QUICK) } else { arguments.series.as_deref() };
    let mut complaints = catalogue.complaints.clone();
    // Hooks that a series was seen to do without on the architecture that runs here.
    let mut done_without: BTreeMap<(u32, u32), BTreeSet<String>> = BTreeMap::new();
    let mut rows = Vec::new();
    for arch in [Arch::Amd64, Arch::Arm64] {
        let objects = programs::objects(&root, &cache, arch)?;
        if let (Arch::Amd64, Some(machines)) = (arch, &machines) {
            rows.push(host_row(&machines.host, &objects));
        }
        for builds in catalogue.series(arch)? {
            let name = builds.first().map(|kernel| format!("{}.{}", kernel.series.0, kernel.series.1));
            if only.is_some() && name.as_deref() != only {
                continue;
            }
            let mut gone = Vec::new();
            for kernel in builds {
                // A mirror may list what it no longer or not yet has: then the next newest stands for the series.
                let unpacked = match catalogue.unpacked(&kernel) {
                    Ok(unpacked) => unpacked,
                    Err(error) => {
                        let error = format!("{error:#}");
                        let reason = error.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
                        let reason = reason.rsplit_once(".deb").map_or(reason, |(_, reason)| reason.trim());
                        gone.push(format!("{} is listed and could not be had: {reason}", kernel.release));
                        continue;
                    }
                };
                let mut row = examine(&catalogue, &kernel, &unpacked, &objects, machines.as_ref())?;
                row.gone = std::mem::take(&mut gone);
                if let Ok(fit) = &mut row.fit {
                    let works = matches!(&row.ran, Ran::Yes(ran) if ran.refused.is_none() && ran.compared.differences.is_empty());
                    let known = done_without.entry(kernel.series).or_default();
                    if works {
                        known.extend(fit.hooks.iter().cloned());
                    }
                    fit.settle(known);
                }
                println!(
                    "{}: {}",
                    row.release,
                    if row.passes() { "as it should be" } else { "NOT as it should be" }
                );
                for note in row.notes() {
                    println!("    {note}");
                }
                rows.push(row);
                if !arguments.every_build {
                    break;
                }
            }
            complaints.extend(gone);
        }
    }
    for complaint in &complaints {
        println!("apt: {complaint}");
    }
    if rows.iter().all(|row| row.is_host) {
        bail!("no repository offers a kernel {}", only.unwrap_or_default());
    }
    println!("\n{}\n{}", table::table(&rows), table::guests(&rows));
    if machines.is_some() && only.is_none() {
        let path = root.join("docs/kernels.md");
        let date = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        std::fs::write(&path, table::document(&rows, &complaints, &date))?;
        println!("{} is written", path.display());
    }
    Ok(rows.iter().all(Row::passes))
}

/// What is needed to boot kernels, and what this machine's own saw.
struct Machines {
    qemu: String,
    initramfs: PathBuf,
    guests: Guests,
    scratch: PathBuf,
    host: Seen,
}

impl Machines {
    fn prepare(root: &Path, cache: &Path) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("root is needed to watch the workload on this machine; run it with sudo -E");
        }
        let qemu = machine::qemu()?;
        println!("building the static programs (some minutes the first time)");
        let programs = programs::build(root, cache)?;
        println!("watching the workload on this machine");
        let host = on_this_machine(&programs)?;
        let initramfs = cache.join("initramfs.cpio");
        write_initramfs(&programs, &initramfs)?;
        let guests = Guests::prepare(&programs, cache)?;
        Ok(Self { qemu, initramfs, guests, scratch: cache.to_owned(), host })
    }
}

/// The receipts and findings of one machine.
struct Seen {
    program: String,
    directory: String,
    doctor: Value,
    receipt: Value,
    bypass: Value,
}

impl Seen {
    /// All that both receipts say, or one vantage point in them, and what is wrong with them by themselves.
    fn facts(&self, vantage: Option<&str>) -> (BTreeMap<String, usize>, Vec<String>) {
        let mut all = BTreeMap::new();
        let mut flaws = Vec::new();
        let paths = [(self.program.as_str(), "$PROGRAM"), (self.directory.as_str(), "$DIR")];
        for (name, receipt, closed) in [("run", &self.receipt, true), ("bypass", &self.bypass, false)] {
            let seen = vantage.map(|vantage| facts::seen_from(vantage, receipt));
            let facts = facts::facts(seen.as_ref().unwrap_or(receipt), &paths);
            all.extend(facts.into_iter().map(|(line, count)| (format!("{name}: {line}"), count)));
            flaws.extend(facts::flaws(receipt, closed).into_iter().map(|flaw| format!("{name}: {flaw}")));
        }
        (all, flaws)
    }
}

/// Which program types doctor found to work, and which not.
fn program_types(doctor: &Value) -> (Vec<String>, Vec<String>) {
    let works = |name: &&str| {
        doctor["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|finding| finding["name"] == **name && finding["status"] == "ok")
    };
    let (yes, no): (Vec<&str>, Vec<&str>) = PROGRAM_TYPES.iter().copied().partition(works);
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    (owned(yes), owned(no))
}

/// A folder that goes away with this.
struct Scratch(PathBuf);

impl Scratch {
    /// On a tmpfs, as in the test machine, where there is one.
    fn new() -> Result<Self> {
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("glasshouse-kernels-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in memory: what stays is gone at the next boot.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What `guest/init.c` does, here.
fn on_this_machine(programs: &Programs) -> Result<Seen> {
    let scratch = Scratch::new()?;
    let directory = scratch.0.join("work");
    let workload = scratch.0.join("workload");
    std::fs::copy(&programs.workload, &workload)?;
    let doctor = Command::new(&programs.glasshouse)
        .args(["doctor", "--json"])
        .current_dir(&scratch.0)
        .stdin(Stdio::null())
        .output()?;
    let receipt = |name: &str, directory: &Path, arguments: &[&str]| -> Result<Value> {
        let path = scratch.0.join(name);
        let output = Command::new(&programs.glasshouse)
            .args(["run", "--profile", "host", "--profile-required", "--json", "--receipt"])
            .arg(&path)
            .args(["--workdir", "/", "--"])
            .arg(&workload)
            .arg(directory)
            .args(arguments)
            // As in the test machine; an ignored or set variable here must make no difference there.
            .env_clear()
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || said.contains("line ") {
            bail!("the workload did not run as expected on this machine ({}):\n{said}", output.status);
        }
        Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
    };
    Ok(Seen {
        program: workload.display().to_string(),
        directory: directory.display().to_string(),
        doctor: serde_json::from_slice(&doctor.stdout).context("doctor printed no JSON")?,
        receipt: receipt("receipt.json", &directory, &[])?,
        bypass: receipt("bypass.json", &scratch.0.join("work-bypass"), &["bypass"])?,
    })
}

fn write_initramfs(programs: &Programs, path: &Path) -> Result<()> {
    let read =
        |program: &Path| std::fs::read(program).with_context(|| format!("cannot read {}", program.display()));
    let mut archive = Initramfs::new(read(&programs.init)?);
    archive.file("workload", 0o755, read(&programs.workload)?)?;
    archive.file("glasshouse", 0o755, read(&programs.glasshouse)?)?;
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(archive.write(std::io::BufWriter::new(file))?)
}

fn host_row(host: &Seen, objects: &[(String, Vec<u8>)]) -> Row {
    let (facts, flaws) = host.facts(None);
    let (types, types_missing) = program_types(&host.doctor);
    let mut fit = std::fs::read("/sys/kernel/btf/vmlinux")
        .map_err(anyhow::Error::from)
        .and_then(|types| fit(objects, &types))
        .map_err(|error| format!("{error:#}"));
    if let Ok(fit) = &mut fit {
        // It has a receipt: what it has not it does without.
        fit.settle(&fit.hooks.clone());
    }
    let uname = nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned());
    Row {
        arch: "amd64",
        release: uname.unwrap_or_default(),
        origin: "the machine that made this table".to_owned(),
        is_host: true,
        too_old: false,
        gone: Vec::new(),
        ran: Ran::Yes(Outcome {
            btf: true,
            types,
            types_missing,
            refused: None,
            compared: Compared { facts: facts.len(), differences: flaws, ..Compared::default() },
            attempts: 1,
        }),
        guest: None,
        fit,
    }
}

fn fit(objects: &[(String, Vec<u8>)], kernel_types: &[u8]) -> Result<Fit> {
    let mut all = Fit::default();
    for (name, object) in objects {
        all = all.and(relocations::check(object, kernel_types).with_context(|| name.clone())?);
    }
    Ok(all)
}

fn examine(
    catalogue: &Catalogue,
    kernel: &Kernel,
    unpacked: &Unpacked,
    objects: &[(String, Vec<u8>)],
    machines: Option<&Machines>,
) -> Result<Row> {
    let fit = image::types(&unpacked.image)
        .and_then(|types| fit(objects, &types))
        .map_err(|error| format!("{error:#}"));
    let (ran, guest) = match machines {
        Some(machines) if kernel.arch == Arch::Amd64 => {
            let ran = until_nothing_is_lost(
                || run(kernel, &unpacked.image, machines),
                |ran| match ran {
                    Ran::Yes(outcome) => Some(&mut outcome.compared),
                    Ran::Not | Ran::Failed(_) => None,
                },
            );
            let guest = until_nothing_is_lost(
                || machines.guests.watch(&unpacked.folder, &machines.host),
                |guest| Some(&mut guest.compared),
            );
            (ran, Some(guest))
        }
        _ => (Ran::Not, None),
    };
    Ok(Row {
        arch: kernel.arch.debian(),
        release: kernel.release.clone(),
        origin: format!("{}, {}", kernel.version, catalogue.suites(kernel)?),
        is_host: false,
        too_old: kernel.series < OLDEST,
        gone: Vec::new(),
        ran,
        guest,
        fit,
    })
}

/// Watches until nothing was lost, at most [`LOSSES`] times: a receipt that says so is right, and no comparison. What was
/// lost before stays in the notes.
fn until_nothing_is_lost<T>(
    mut watch: impl FnMut() -> T,
    compared: impl Fn(&mut T) -> Option<&mut Compared>,
) -> T {
    let mut lossy = Vec::new();
    let mut boot = 1;
    loop {
        let mut found = watch();
        let Some(of) = compared(&mut found) else { return found };
        let lost = of.differences.iter().filter(|line| line.contains(facts::LOST));
        let lost: Vec<_> = lost.map(|line| format!("watched again, because at boot {boot} {line}")).collect();
        if lost.is_empty() || boot == LOSSES {
            of.lossy = lossy;
            return found;
        }
        lossy.extend(lost);
        boot += 1;
    }
}

fn run(kernel: &Kernel, image: &Path, machines: &Machines) -> Ran {
    let report = match machine::boot(&machines.qemu, image, &machines.initramfs, &machines.scratch) {
        Ok(report) => report,
        Err(error) => return Ran::Failed(format!("{error:#}")),
    };
    println!("{}: up and down again in {:.1} s", kernel.release, report.took.as_secs_f64());
    outcome(kernel, &report, &machines.host)
}

fn outcome(kernel: &Kernel, report: &Report, host: &Seen) -> Ran {
    if report.text("release") != kernel.release {
        return Ran::Failed(format!("another kernel came up: {}", report.text("release")));
    }
    let json = |name: &str| serde_json::from_str::<Value>(&report.text(name)).unwrap_or(Value::Null);
    let guest = Seen {
        program: GUEST_PROGRAM.to_owned(),
        directory: GUEST_DIRECTORY.to_owned(),
        doctor: json("doctor.out"),
        receipt: json("receipt"),
        bypass: json("bypass-receipt"),
    };
    let (types, types_missing) = program_types(&guest.doctor);
    let mut outcome = Outcome {
        btf: report.has("btf"),
        types,
        types_missing,
        refused: None,
        compared: Compared::default(),
        attempts: report.attempts,
    };
    if guest.receipt.is_null() || guest.bypass.is_null() {
        let said = report.text("run.err");
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with('{')).collect();
        outcome.refused = Some(format!("exit {}: {}", report.text("run.status"), said.join("\n")));
        return Ran::Yes(outcome);
    }
    outcome.compared = Compared::of(&host.facts(None).0, guest.facts(None));
    // A step that went otherwise in the machine is why facts differ; what the machine lacked may be too.
    for part in ["run.err", "bypass.err", "problem"] {
        let said = report.text(part);
        let odd = said.lines().filter(|line| !line.starts_with('{'));
        outcome.compared.differences.extend(odd.map(|line| format!("{part}: {line}")));
    }
    Ran::Yes(outcome)
}
