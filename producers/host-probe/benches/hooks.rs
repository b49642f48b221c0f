//! What hooks cost, with an empty program on each: why the probe has one program on `sys_exit`. Needs root.
//!
//! `cargo bench -p glasshouse-host-probe --bench hooks -- [--rounds N]`
//!
//! In each round every set of hooks is attached once while the workload runs, in an order that moves on. A set that this kernel
//! refuses is said with its reason.

use std::process::ExitCode;

#[path = "cost/entry.rs"]
mod entry;
#[cfg(target_os = "linux")]
#[path = "../tests/support/held.rs"]
#[allow(dead_code, reason = "the bench `cost` uses the rest")]
mod held;
#[cfg(target_os = "linux")]
#[path = "cost/work.rs"]
#[allow(dead_code, reason = "the bench `cost` uses the rest")]
mod work;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    return entry::main(linux::run);
    #[cfg(not(target_os = "linux"))]
    return entry::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;
    use std::ffi::OsString;
    use std::path::Path;
    use std::time::Duration;

    use aya::programs::Program;
    use aya::{Btf, Ebpf, EbpfLoader};

    use super::held::{self, Gate, Held};
    use super::work;

    type Result<T> = std::result::Result<T, Box<dyn Error>>;

    const DEADLINE: Duration = Duration::from_secs(120);
    const ROWS: [(&str, u64); 2] = [("same", 200_000), ("rw", 600_000)];
    /// What is attached, and by which programs of `empty.bpf.c`.
    const SETS: [(&str, &[&str]); 6] = [
        ("nothing", &[]),
        ("tp_btf sys_exit", &["empty_sys_exit"]),
        ("tp_btf sys_enter and sys_exit", &["empty_sys_enter", "empty_sys_exit"]),
        (
            "a tracepoint per call made",
            &["exit_of_openat", "exit_of_close", "exit_of_pread64", "exit_of_pwrite64"],
        ),
        ("a tracepoint of a call not made", &["exit_of_chdir"]),
        ("fexit per function", &["after_do_sys_openat2", "after_ksys_pread64", "after_ksys_pwrite64"]),
    ];

    fn rounds() -> Result<(usize, u64)> {
        let (mut rounds, mut is_bench) = (7, false);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // `cargo test --benches` gives no such flag: one short round shows that it works.
                "--bench" => is_bench = true,
                "--rounds" => rounds = arguments.next().ok_or("--rounds wants a number")?.parse()?,
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        Ok(if is_bench { (rounds.max(1), 1) } else { (1, 20) })
    }

    pub(super) fn run() -> Result<()> {
        let (rounds, share) = rounds()?;
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: attaching needs root (CAP_BPF and CAP_PERFMON)");
            return Ok(());
        }
        let dir = held::scratch("glasshouse-hooks-")?;
        work::prepare(dir.path(), 0)?;
        let btf = Btf::from_sys_fs()?;
        let object = glasshouse_bpf::object(glasshouse_bpf::EMPTY).ok_or("this build embeds no objects")?;
        let mut programs = EbpfLoader::new().btf(Some(&btf)).load(object.bytes)?;
        let mut refused = [const { None::<String> }; SETS.len()];
        for ((_, names), refused) in SETS.iter().zip(&mut refused) {
            *refused =
                names.iter().find_map(|name| load(&mut programs, name, &btf).err()).map(|e| e.to_string());
        }
        for (row, operations) in ROWS {
            let mut times = [const { Vec::<f64>::new() }; SETS.len()];
            attached(&mut programs, &[], dir.path(), row, operations / share)?;
            for round in 0..rounds {
                for turn in 0..SETS.len() {
                    let set = (round + turn) % SETS.len();
                    if refused[set].is_none() {
                        times[set].push(attached(
                            &mut programs,
                            SETS[set].1,
                            dir.path(),
                            row,
                            operations / share,
                        )?);
                    }
                }
            }
            println!("\n{row}, {rounds} rounds: median ns per operation, ratio to nothing attached");
            let plain = median(&mut times[0]);
            for (((name, _), times), refused) in SETS.iter().zip(&mut times).zip(&refused) {
                match refused {
                    // Behind that stands what the verifier said, which is nothing where the kernel refuses the kind.
                    Some(why) => {
                        let why = why.split(" Verifier output").next().unwrap_or(why);
                        println!("  {name:<34} not here: {why}");
                    }
                    None => {
                        let time = median(times);
                        println!("  {name:<34} {time:>9.1} {:>7.3}x", time / plain);
                    }
                }
            }
        }
        Ok(())
    }

    fn median(times: &mut [f64]) -> f64 {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn load(programs: &mut Ebpf, name: &str, btf: &Btf) -> Result<()> {
        match programs.program_mut(name).ok_or_else(|| format!("empty.bpf.c has no {name}"))? {
            Program::BtfTracePoint(program) if program.fd().is_err() => {
                program.load(name.trim_start_matches("empty_"), btf)?;
            }
            Program::TracePoint(program) => program.load()?,
            Program::FExit(program) => {
                program.load(name.trim_start_matches("after_"), btf)?;
                // Some kernels refuse only this.
                let link = program.attach()?;
                program.detach(link)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Runs the workload while programs are attached and gives the nanoseconds of one operation.
    fn attached(programs: &mut Ebpf, names: &[&str], dir: &Path, row: &str, operations: u64) -> Result<f64> {
        let mut argv: Vec<OsString> = vec![std::env::current_exe()?.into()];
        argv.extend([work::ROLE.into(), row.into(), operations.to_string().into(), dir.into()]);
        let gate = Gate::new()?;
        let mut held = Held::start(&argv, &gate)?;
        // Detached when dropped.
        let mut links: Vec<Box<dyn std::any::Any>> = Vec::new();
        for name in names {
            links.push(match programs.program_mut(name) {
                Some(Program::BtfTracePoint(program)) => {
                    let link = program.attach()?;
                    Box::new(program.take_link(link)?)
                }
                Some(Program::TracePoint(program)) => {
                    let call = name.trim_start_matches("exit_of_");
                    let link = program.attach("syscalls", &format!("sys_exit_{call}"))?;
                    Box::new(program.take_link(link)?)
                }
                Some(Program::FExit(program)) => {
                    let link = program.attach()?;
                    Box::new(program.take_link(link)?)
                }
                _ => return Err(format!("empty.bpf.c has no {name}").into()),
            });
        }
        std::thread::sleep(Duration::from_millis(80));
        gate.open();
        let (status, printed) = held.finish(DEADLINE)?;
        drop(links);
        let (done, took) = work::parse(&printed)
            .filter(|_| status.success())
            .ok_or_else(|| format!("{row}: {status}, it printed {printed:?}"))?;
        Ok(took.as_nanos() as f64 / done as f64)
    }
}
