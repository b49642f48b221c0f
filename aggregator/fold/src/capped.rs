//! A map with a limit that keeps the entries whose keys sort first, whatever came first.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// At most `limit` entries once it is settled, and half as many more until then; the number of events about the others is
/// kept. Sorted only when asked: to find an entry takes a hash.
///
/// Which entries stay does not depend on the order of arrival: a key that once fell out had `limit` smaller keys
/// beside it, and those never go, so it cannot come back.
#[derive(Debug, Clone)]
pub(crate) struct CappedMap<K, V> {
    limit: usize,
    entries: Vec<Entry<K, V>>,
    index: HashTable<u32>,
    hasher: RandomState,
    /// The last of the keys that stayed when others fell out: what sorts behind it has no entry.
    last: Option<Box<K>>,
    events_left_out: u64,
}

/// An entry and how many events are about it.
#[derive(Debug, Clone)]
pub(crate) struct Entry<K, V> {
    hash: u64,
    pub(crate) key: K,
    pub(crate) value: V,
    pub(crate) events: u64,
}

impl<K: Ord + Hash + Clone, V: Default> CappedMap<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        let (entries, index, hasher) = (Vec::new(), HashTable::new(), RandomState::default());
        Self { limit, entries, index, hasher, last: None, events_left_out: 0 }
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
        Q: Ord + Hash + ?Sized,
    {
        self.make_room();
        let slot = self.slot(key, own);
        if let Some(value) = self.at(slot, events) {
            change(value);
        }
    }

    /// Where the entry of `key` lies until the next [`Self::make_room`], made if there is none; `None` if it has no place.
    pub(crate) fn slot<Q>(&mut self, key: &Q, own: impl FnOnce() -> K) -> Option<u32>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let known = self.index.find(hash, |at| {
            let entry = &self.entries[*at as usize];
            entry.hash == hash && entry.key.borrow() == key
        });
        if let Some(at) = known {
            return Some(*at);
        }
        if self.last.as_deref().is_some_and(|last| last.borrow() < key) {
            return None;
        }
        let at = self.entries.len() as u32;
        self.entries.push(Entry { hash, key: own(), value: V::default(), events: 0 });
        self.index.insert_unique(hash, at, |at| self.entries[*at as usize].hash);
        Some(at)
    }

    /// The value in a slot, for `events` events about it; those of no slot are counted.
    pub(crate) fn at(&mut self, slot: Option<u32>, events: u64) -> Option<&mut V> {
        let Some(slot) = slot else {
            self.events_left_out = self.events_left_out.saturating_add(events);
            return None;
        };
        let entry = &mut self.entries[slot as usize];
        entry.events = entry.events.saturating_add(events);
        Some(&mut entry.value)
    }

    /// Makes room for the first entries, of which so many are expected, and no more.
    pub(crate) fn expect(&mut self, entries: usize) {
        if self.entries.is_empty() {
            self.entries.reserve_exact(entries);
            self.index.reserve(entries, |_| 0);
        }
    }

    /// Lets go of what is beyond the limit, if that is much.
    pub(crate) fn make_room(&mut self) {
        if self.entries.len() > self.limit + self.limit / 2 {
            self.settle();
        }
    }

    /// Lets go of what is beyond the limit.
    pub(crate) fn settle(&mut self) {
        if self.is_settled() {
            return;
        }
        let (_, last, _) = self.entries.select_nth_unstable_by(self.limit - 1, |a, b| a.key.cmp(&b.key));
        self.last = Some(Box::new(last.key.clone()));
        let out = self.entries.drain(self.limit..);
        self.events_left_out = out.fold(self.events_left_out, |sum, entry| sum.saturating_add(entry.events));
        let Self { entries, index, .. } = self;
        index.clear();
        for (at, entry) in entries.iter().enumerate() {
            index.insert_unique(entry.hash, at as u32, |at| entries[*at as usize].hash);
        }
    }

    /// Whether nothing is beyond the limit.
    pub(crate) fn is_settled(&self) -> bool {
        self.entries.len() <= self.limit
    }

    /// Every entry, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<K, V>> {
        self.entries.iter()
    }

    /// Every entry, by key.
    pub(crate) fn sorted(&self) -> Vec<&Entry<K, V>> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        entries
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let at = self.index.find(hash, |at| self.entries[*at as usize].key == *key)?;
        Some(&self.entries[*at as usize].value)
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
                assert!(map.iter().count() <= 8);
                map.settle();
                assert!(map.iter().all(|entry| map.get(&entry.key) == Some(&entry.events)));
                let kept = map.sorted().into_iter().map(|entry| (entry.key, entry.value));
                (kept.collect::<Vec<_>>(), map.events_left_out())
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
