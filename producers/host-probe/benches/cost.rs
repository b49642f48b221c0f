//! What watching costs, beside an empty program on the same hooks, strace and bpftrace. Needs root.
//!
//! `cargo bench -p glasshouse-host-probe --bench cost -- [--rounds N] [--only ROW] [--columns plain,empty,watched,…]
//! [--seed S] [--quick] [--json]`
//!
//! In each round every contestant runs the workload once, in an order drawn anew, so that what else the host does hits
//! all alike, and a ratio is the median over the rounds of the ratio within each. Behind a ratio stand the bounds between
//! which the true median lies in 95 of 100 cases: with few rounds they are wide, and a goal between them is undecided. Each
//! run is a process in a cgroup of its own, held until whoever watches is ready. Times are taken inside the workload. Peers
//! that stop the process at each call run fewer operations.

#[cfg(target_os = "linux")]
#[path = "cost/columns.rs"]
mod columns;
#[cfg(target_os = "linux")]
#[path = "cost/decode.rs"]
mod decode;
#[path = "cost/entry.rs"]
mod entry;
#[cfg(target_os = "linux")]
#[path = "cost/goals.rs"]
mod goals;
#[cfg(target_os = "linux")]
#[path = "../tests/support/held.rs"]
mod held;
#[cfg(target_os = "linux")]
#[path = "cost/work.rs"]
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    return entry::main(linux::run);
    #[cfg(not(target_os = "linux"))]
    return entry::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;

    use super::columns::{Bench, Column};
    use super::goals::{Goal, Row, goals, median};
    use super::work::{self, TREE_FILES, WORKLOADS, Workload};
    use super::{decode, held};

    const DEFAULT_ROUNDS: usize = 7;
    const DECODED_EVENTS: u64 = 200_000;

    struct Options {
        rounds: usize,
        only: Option<String>,
        columns: Vec<Column>,
        seed: u64,
        quick: bool,
        json: bool,
    }

    fn options() -> Result<Options, String> {
        let mut arguments = std::env::args().skip(1);
        let mut options = Options {
            rounds: DEFAULT_ROUNDS,
            only: None,
            columns: Column::ALL.to_vec(),
            seed: 1,
            quick: false,
            json: false,
        };
        // `cargo test --benches` gives no such flag: one short round shows that it works.
        let (mut is_bench, mut rounds_given) = (false, false);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
            match argument.as_str() {
                "--bench" => is_bench = true,
                "--rounds" => {
                    options.rounds = value()?.parse().map_err(|_| "--rounds wants a number")?;
                    rounds_given = true;
                }
                "--seed" => options.seed = value()?.parse().map_err(|_| "--seed wants a number")?,
                "--only" => options.only = Some(value()?),
                "--columns" => {
                    options.columns = value()?.split(',').map(Column::of_key).collect::<Result<_, _>>()?;
                }
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                other => return Err(format!("unknown argument {other}")),
            }
        }
        if !is_bench {
            options.quick = true;
            if !rounds_given {
                options.rounds = 1;
            }
        }
        if options.rounds == 0 {
            return Err("--rounds wants at least 1".to_owned());
        }
        let known = WORKLOADS.map(|workload| workload.name);
        match &options.only {
            Some(only) if !known.contains(&only.as_str()) => {
                Err(format!("--only wants one of {}", known.join(", ")))
            }
            _ => Ok(options),
        }
    }

    pub(super) fn run() -> Result<(), Box<dyn Error>> {
        let options = options()?;
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: watching needs root (CAP_BPF and CAP_PERFMON)");
            return Ok(());
        }
        // Files of a tmpfs: what is measured is the calls, not a disk.
        let dir = held::scratch("glasshouse-cost-")?;
        let needs_tree = options.only.as_deref().is_none_or(|only| only.starts_with("distinct"));
        work::prepare(dir.path(), if needs_tree { TREE_FILES } else { 0 })?;
        let mut bench = Bench::new(dir.path())?;
        let mut random = options.seed.max(1);
        let columns: Vec<Column> =
            options.columns.iter().copied().filter(|column| is_there(column.tool())).collect();
        if !options.json {
            println!(
                "{} rounds, seed {}; ns per operation; ratio to the plain run; over: ns more than empty programs",
                options.rounds, options.seed
            );
        }
        let mut rows = Vec::new();
        for workload in WORKLOADS {
            if options.only.as_deref().is_some_and(|only| only != workload.name) {
                continue;
            }
            if workload.name == "compile" && !is_there(Some("gcc")) {
                eprintln!("skipped: {}: gcc is not installed", workload.name);
                continue;
            }
            let row = measure(&mut bench, &workload, &columns, &options, &mut random)?;
            print_row(&row, options.json);
            rows.push(row);
        }
        if options.only.is_none() {
            let rates =
                (0..options.rounds).map(|_| decode::rate(DECODED_EVENTS)).collect::<Result<Vec<_>, _>>()?;
            print_decode(median(rates.into_iter()).unwrap_or(0.0) / 1e6, options.json);
        }
        for goal in goals(&rows) {
            print_goal(&goal, options.json);
        }
        Ok(())
    }

    fn measure(
        bench: &mut Bench,
        workload: &Workload,
        columns: &[Column],
        options: &Options,
        random: &mut u64,
    ) -> Result<Row, Box<dyn Error>> {
        let mut samples: Vec<_> = columns.iter().map(|column| (*column, Vec::new())).collect();
        let scale = |ops: u64| if options.quick { (ops / 10).max(1) } else { ops };
        // One round to warm up: caches, and files that the first run makes.
        bench.run(Column::Plain, workload, scale(workload.ops))?;
        for _ in 0..options.rounds {
            shuffle(&mut samples, random);
            for (column, of) in &mut samples {
                let ops = match column {
                    Column::Strace | Column::StraceSeccomp => workload.slow_ops,
                    Column::Bpftrace => workload.ops.min(workload.slow_ops * 5),
                    _ => workload.ops,
                };
                of.push(bench.run(*column, workload, scale(ops))?);
            }
        }
        samples.sort_by_key(|(column, _)| *column);
        Ok(Row { workload: *workload, samples })
    }

    /// Fisher and Yates, by xorshift.
    fn shuffle<T>(items: &mut [T], random: &mut u64) {
        for last in (1..items.len()).rev() {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            items.swap(last, (*random % (last as u64 + 1)) as usize);
        }
    }

    fn is_there(tool: Option<&str>) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        tool.is_none_or(|tool| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
    }

    fn print_row(row: &Row, json: bool) {
        let Workload { name, operation, .. } = row.workload;
        if !json {
            println!("\n{name}: {operation}");
            println!("  {:<22} {:>12} {:>12} {:>22} {:>10}", "", "median", "min", "ratio [bounds]", "over");
        }
        for column in Column::ALL {
            let Some(ns) = row.ns(column) else {
                if !json {
                    println!("  {:<22} {:>12}", column.name(), "not measured");
                }
                continue;
            };
            let least = row.of(column).iter().map(|sample| sample.ns_per_op).fold(f64::INFINITY, f64::min);
            let ratio = row.ratio(column, Column::Plain);
            let (low, high) = ratio.map_or((0.0, 0.0), |ratio| ratio.bounds);
            let ratio = ratio.map_or(0.0, |ratio| ratio.median);
            let over = row.over(column, Column::Empty).unwrap_or(0.0);
            let ops = row.of(column).first().map_or(0, |sample| sample.ops);
            if json {
                println!(
                    "{{\"row\":\"{name}\",\"column\":\"{}\",\"rounds\":{},\"ops\":{ops},\"median_ns\":{ns:.1},\
                     \"min_ns\":{least:.1},\"ratio\":{ratio:.4},\"ratio_bounds\":[{low:.4},{high:.4}],\
                     \"over_empty_ns\":{over:.1}}}",
                    column.name(),
                    row.of(column).len(),
                );
            } else {
                println!(
                    "  {:<22} {ns:>12.1} {least:>12.1} {ratio:>6.3}x [{low:.3}, {high:.3}] {over:>+10.1}",
                    column.name()
                );
            }
        }
        print_probe(row, json);
    }

    /// What the probe itself spent, and whether it kept up: a run that lost facts cost less than it should.
    fn print_probe(row: &Row, json: bool) {
        let probes = || row.of(Column::Glasshouse).iter().filter_map(|sample| sample.probe.as_ref());
        let mid = |of: fn(&super::columns::ProbeSample) -> u64| {
            median(probes().map(|probe| of(probe) as f64)).unwrap_or(0.0)
        };
        let lost: u64 = probes().map(|probe| probe.lost).sum();
        let (cpu, seal_cpu) = (mid(|probe| probe.cpu_ns) / 1e6, mid(|probe| probe.seal_cpu_ns) / 1e6);
        let files: [f64; 3] =
            [mid(|probe| probe.files[0]), mid(|probe| probe.files[1]), mid(|probe| probe.files[2])];
        let (by_wall, by_cpu) = row.delivered().unwrap_or_default();
        if json {
            println!(
                "{{\"row\":\"{}\",\"probe_cpu_ms\":{cpu:.2},\"seal_cpu_ms\":{seal_cpu:.2},\"files_observed\":{},\
                 \"files_delivered\":{},\"files_collapsed\":{},\"lost_in_all_rounds\":{lost},\
                 \"delivered_m_per_s\":{by_wall:.3},\"delivered_m_per_cpu_s\":{by_cpu:.3}}}",
                row.workload.name, files[0], files[1], files[2]
            );
        } else {
            println!(
                "  probe: CPU {cpu:.1} ms (seal says {seal_cpu:.1}); files {} observed, {} delivered, {} collapsed; \
                 {by_wall:.2} M/s delivered, {by_cpu:.2} M per CPU s; lost in all rounds {lost}",
                files[0], files[1], files[2]
            );
        }
    }

    fn print_decode(rate: f64, json: bool) {
        if json {
            println!("{{\"row\":\"decode\",\"m_events_per_s\":{rate:.3}}}");
        } else {
            println!("\ndecode+frame+hash, all paths different, one thread: {rate:.2} M events/s\n");
        }
    }

    fn print_goal(goal: &Goal, json: bool) {
        let Goal { what, value, limit, bounds, at_most } = goal;
        let (is_met, sign) = (goal.is_met(), if *at_most { "<=" } else { ">=" });
        let bounds = bounds.map(|(low, high)| format!("[{low:.3}, {high:.3}]"));
        if json {
            println!(
                "{{\"goal\":\"{what}\",\"limit\":\"{sign} {limit}\",\"value\":{value:.3},\"bounds\":{},\"met\":{is_met}}}",
                bounds.as_deref().unwrap_or("null").replace(", ", ",")
            );
        } else {
            let (met, bounds) = (if is_met { "ok" } else { "MISSED" }, bounds.unwrap_or_default());
            println!("{met:<6} {what} {sign} {limit}: {value:.3} {bounds}");
        }
    }
}
