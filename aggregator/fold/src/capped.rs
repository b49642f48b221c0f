//! A map with a limit that keeps the entries whose keys sort first, whatever came first.

use std::borrow::Borrow;
use std::collections::BTreeMap;

/// At most `limit` entries; the number of events about the others is kept.
///
/// Which entries stay does not depend on the order of arrival: a key that once fell out had `limit` smaller keys
/// beside it, and those never go, so it cannot come back.
#[derive(Debug, Clone)]
pub(crate) struct CappedMap<K, V> {
    limit: usize,
    entries: BTreeMap<K, (V, u64)>,
    events_left_out: u64,
}

impl<K: Ord, V: Default> CappedMap<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, entries: BTreeMap::new(), events_left_out: 0 }
    }

    /// Changes the entry of `key` for `events` events about it. Only a new entry needs a key of its own.
    pub(crate) fn change<Q>(
        &mut self,
        key: &Q,
        own: impl FnOnce() -> K,
        events: u64,
        change: impl FnOnce(&mut V),
    ) where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        if let Some((value, count)) = self.entries.get_mut(key) {
            *count = count.saturating_add(events);
            change(value);
            return;
        }
        if self.entries.len() >= self.limit {
            let is_beyond = self.entries.last_key_value().is_none_or(|(last, _)| last.borrow() < key);
            let left_out = match is_beyond {
                true => events,
                false => self.entries.pop_last().map_or(0, |(_, (_, count))| count),
            };
            self.events_left_out = self.events_left_out.saturating_add(left_out);
            if is_beyond {
                return;
            }
        }
        let mut value = V::default();
        change(&mut value);
        self.entries.insert(own(), (value, events));
    }

    /// Every entry with the number of events about it, sorted by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V, u64)> {
        self.entries.iter().map(|(key, (value, events))| (key, value, *events))
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit as u64
    }

    pub(crate) fn events_left_out(&self) -> u64 {
        self.events_left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_stays_does_not_depend_on_the_order(keys in proptest::collection::vec(0u8..40, 0..80)) {
            let fold = |keys: &[u8]| {
                let mut map = CappedMap::<u8, u64>::new(5);
                keys.iter().for_each(|key| map.change(key, || *key, 1, |count| *count += 1));
                (map.iter().map(|(k, v, _)| (*k, *v)).collect::<Vec<_>>(), map.events_left_out())
            };
            let mut sorted = keys.clone();
            sorted.sort();
            let reversed: Vec<u8> = sorted.iter().rev().copied().collect();
            prop_assert_eq!(fold(&keys), fold(&sorted));
            prop_assert_eq!(fold(&keys), fold(&reversed));
            let (kept, left_out) = fold(&keys);
            prop_assert_eq!(kept.iter().map(|(_, count)| count).sum::<u64>() + left_out, keys.len() as u64);
        }
    }
}
