//! Which worker is to have which range of partitions. Pure: whoever knows the same workers comes to the same result.

use std::collections::BTreeSet;

use glasshouse_schema::ids::{Digest, ExecutionId};
use glasshouse_schema::subject::{self, PARTITIONS};

/// How many ranges there are. A range is what moves: it has one lease and one checkpoint. Fewer than partitions, because each
/// worker writes a checkpoint per range and second; enough that sixteen workers share evenly.
pub(crate) const RANGES: u16 = 32;
const PARTITIONS_PER_RANGE: u16 = PARTITIONS / RANGES;

/// The range in which everything about an execution lies.
pub(crate) fn range_of(execution: ExecutionId) -> u16 {
    glasshouse_nats::partition_of(execution) / PARTITIONS_PER_RANGE
}

/// What a reader of these ranges asks the server for; nothing, which is everything, for all of them.
pub(crate) fn filters(ranges: &BTreeSet<u16>) -> Vec<String> {
    if ranges.len() == usize::from(RANGES) {
        return Vec::new();
    }
    let partitions =
        ranges.iter().flat_map(|range| range * PARTITIONS_PER_RANGE..(range + 1) * PARTITIONS_PER_RANGE);
    partitions.map(subject::stored_partition).collect()
}

/// The worker that is to have each range; none if there are no workers.
///
/// Rendezvous hashing, the best pairs first, and nobody gets more than an even share: with few ranges chance alone would give
/// one of two workers up to twice as much as the other.
pub(crate) fn owners<'a>(workers: &BTreeSet<&'a str>) -> Vec<Option<&'a str>> {
    let mut owners = vec![None; usize::from(RANGES)];
    if workers.is_empty() {
        return owners;
    }
    let share = usize::from(RANGES).div_ceil(workers.len());
    let mut pairs: Vec<(Digest, u16, &str)> = workers
        .iter()
        .flat_map(|worker| {
            (0..RANGES).map(move |range| (Digest::of(format!("{range} {worker}").as_bytes()), range, *worker))
        })
        .collect();
    pairs.sort_unstable();
    let mut held = std::collections::BTreeMap::<&str, usize>::new();
    for (_, range, worker) in pairs {
        let held = held.entry(worker).or_default();
        if let Some(owner @ None) = owners.get_mut(usize::from(range))
            && *held < share
        {
            *owner = Some(worker);
            *held += 1;
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| Digest::of(&n.to_be_bytes()).short()).collect()
    }

    fn of(names: &[String]) -> Vec<Option<&str>> {
        owners(&names.iter().map(String::as_str).collect())
    }

    #[test]
    fn every_range_has_an_owner_and_nobody_more_than_a_share() {
        for count in 1..=40 {
            let names = names(count);
            let owners = of(&names);
            let share = usize::from(RANGES).div_ceil(count);
            for name in &names {
                let held = owners.iter().filter(|owner| **owner == Some(name)).count();
                assert!(held <= share, "{held} of {count} workers");
            }
            assert!(owners.iter().all(Option::is_some), "{count}");
        }
        assert!(of(&[]).iter().all(Option::is_none));
    }

    #[test]
    fn of_a_join_and_a_death_at_least_half_of_the_ranges_hear_nothing() {
        for count in 1..16 {
            let names = names(count + 1);
            let (before, after) = (of(&names[..count]), of(&names));
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!(
                moved * 2 <= usize::from(RANGES),
                "{moved} of {RANGES} moved when {count} became {}",
                count + 1
            );
        }
    }

    /// Ids of one millisecond differ in their random bits only, those of a day also in their time.
    #[test]
    fn real_ids_spread_evenly_over_ranges() {
        const IDS: usize = 64_000;
        let mut counts = vec![0_usize; usize::from(RANGES)];
        for _ in 0..IDS {
            counts[usize::from(range_of(
                ExecutionId::from_bytes(*uuid::Uuid::now_v7().as_bytes()).unwrap(),
            ))] += 1;
        }
        let even = IDS / usize::from(RANGES);
        // The standard deviation is the root of 2,000: six of it is 13 %.
        for (range, count) in counts.iter().enumerate() {
            assert!(count.abs_diff(even) * 100 < even * 14, "range {range} has {count} of {IDS}");
        }
    }

    #[test]
    fn filters_name_each_partition_once() {
        assert!(filters(&(0..RANGES).collect()).is_empty());
        let one = filters(&BTreeSet::from([31]));
        assert_eq!(one.len(), usize::from(PARTITIONS_PER_RANGE));
        assert_eq!(one.last().map(String::as_str), Some("glasshouse.v1.events.255.>"));
    }
}
