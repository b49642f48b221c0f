//! What the figures are held against.

use super::columns::{Column, Sample};
use super::work::Workload;

/// Everything measured of one row.
pub(super) struct Row {
    pub(super) workload: Workload,
    pub(super) samples: Vec<(Column, Vec<Sample>)>,
}

/// A figure and its limit.
pub(super) struct Goal {
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) limit: f64,
    /// Between which the true value lies, where that is known.
    pub(super) bounds: Option<(f64, f64)>,
    /// Otherwise at least.
    pub(super) at_most: bool,
}

/// A ratio of two columns: the median over the rounds of the ratio within each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    pub(super) median: f64,
    /// The order statistics between which the true median lies in at least 95 of 100 cases, whatever the distribution;
    /// with five rounds or fewer the least and the greatest, which hold less often.
    pub(super) bounds: (f64, f64),
}

impl Ratio {
    fn of(mut ratios: Vec<f64>) -> Option<Self> {
        ratios.sort_unstable_by(f64::total_cmp);
        let count = ratios.len();
        // The number of ratios below the true median is binomial: n/2 with a deviation of sqrt(n)/2.
        let outside = (count as f64 / 2.0 - 0.98 * (count as f64).sqrt() - 1.0).max(0.0) as usize;
        Some(Self {
            median: *ratios.get(count / 2)?,
            bounds: (*ratios.get(outside)?, *ratios.get(count - 1 - outside)?),
        })
    }
}

impl Goal {
    pub(super) fn is_met(&self) -> bool {
        if self.at_most { self.value <= self.limit } else { self.value >= self.limit }
    }

    fn at_most(what: &str, limit: f64, value: Option<f64>) -> Option<Self> {
        value.map(|value| Self { what: what.to_owned(), value, limit, bounds: None, at_most: true })
    }

    fn at_least(what: &str, limit: f64, value: Option<f64>) -> Option<Self> {
        Some(Self { at_most: false, ..Self::at_most(what, limit, value)? })
    }

    fn ratio(what: &str, limit: f64, ratio: Option<Ratio>) -> Option<Self> {
        let ratio = ratio?;
        Some(Self { bounds: Some(ratio.bounds), ..Self::at_most(what, limit, Some(ratio.median))? })
    }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Row {
    pub(super) fn of(&self, column: Column) -> &[Sample] {
        let found = self.samples.iter().find(|(of, _)| *of == column);
        found.map_or(&[], |(_, samples)| samples.as_slice())
    }

    /// Median nanoseconds per operation.
    pub(super) fn ns(&self, column: Column) -> Option<f64> {
        median(self.of(column).iter().map(|sample| sample.ns_per_op))
    }

    /// Samples stand in the order of the rounds.
    pub(super) fn ratio(&self, column: Column, to: Column) -> Option<Ratio> {
        let rounds = self.of(column).iter().zip(self.of(to));
        Ratio::of(rounds.map(|(one, other)| one.ns_per_op / other.ns_per_op).collect())
    }

    pub(super) fn over(&self, column: Column, to: Column) -> Option<f64> {
        Some(self.ns(column)? - self.ns(to)?)
    }

    /// Median of what the probe spent per operation, in microseconds.
    fn probe_us_per_op(&self) -> Option<f64> {
        median(
            self.of(Column::Glasshouse)
                .iter()
                .filter_map(|sample| Some(sample.probe.as_ref()?.cpu_ns as f64 / sample.ops as f64 / 1e3)),
        )
    }

    /// Delivered file events in millions per second of wall time and of the probe's CPU time; of runs without loss.
    pub(super) fn delivered(&self) -> Option<(f64, f64)> {
        let lossless = || {
            let probes = self.of(Column::Glasshouse).iter().filter_map(|sample| sample.probe.as_ref());
            probes.filter(|probe| probe.lost == 0)
        };
        let rate = |delivered: u64, ns: u64| delivered as f64 * 1e3 / ns.max(1) as f64;
        Some((
            median(lossless().map(|probe| rate(probe.files[1], probe.wall_ns)))?,
            median(lossless().map(|probe| rate(probe.files[1], probe.cpu_ns)))?,
        ))
    }
}

/// Every goal of which something was measured.
pub(super) fn goals(rows: &[Row]) -> Vec<Goal> {
    use Column::{Empty, Glasshouse, Plain, Unwatched};
    let row = |name: &str| rows.iter().find(|row| row.workload.name == name);
    let ratio = |name: &str, column, to| row(name).and_then(|row| row.ratio(column, to));
    let over = |name: &str, column| row(name).and_then(|row| row.over(column, Empty));
    let cpu = |name: &str| row(name).and_then(Row::probe_us_per_op);
    let goals = [
        Goal::ratio("compile, times plain", 1.02, ratio("compile", Glasshouse, Plain)),
        Goal::ratio("fork+exec, times plain", 1.05, ratio("exec", Glasshouse, Plain)),
        Goal::ratio("open+close of one file, times plain", 1.25, ratio("same", Glasshouse, Plain)),
        Goal::at_most("open+close of one file, ns over empty programs", 350.0, over("same", Glasshouse)),
        Goal::ratio(
            "open+close of 100 k different files, times plain",
            1.6,
            ratio("distinct", Glasshouse, Plain),
        ),
        Goal::ratio("connect, times plain", 1.10, ratio("connect", Glasshouse, Plain)),
        Goal::ratio("4 KiB read/write, times empty programs", 1.05, ratio("rw", Glasshouse, Empty)),
        Goal::ratio("unwatched compile, times plain", 1.01, ratio("compile", Unwatched, Plain)),
        Goal::at_most("unwatched open+close, ns over empty programs", 60.0, over("same", Unwatched)),
        Goal::at_most("unwatched 4 KiB read/write, ns over empty programs", 60.0, over("rw", Unwatched)),
        Goal::at_least(
            "two writers, their rate over plain",
            0.75,
            ratio("writers", Plain, Glasshouse).map(|ratio| ratio.median),
        ),
        Goal::at_most("probe CPU per repeated open, us", 0.1, cpu("same")),
        Goal::at_most("probe CPU per fork+exec+exit of /bin/true, us", 8.0, cpu("exec")),
        Goal::at_least(
            "all paths different: M events/s per CPU second of the probe, nothing lost",
            1.5,
            row("distinct2").and_then(Row::delivered).map(|(_, by_cpu)| by_cpu),
        ),
    ];
    goals.into_iter().flatten().collect()
}
