//! A map of few entries.

use std::collections::BTreeMap;

/// A map that mostly has one entry, which lies in place. Its order depends on which came first, its content does not.
#[derive(Debug, Clone)]
pub(crate) struct Few<K, V> {
    first: Option<(K, V)>,
    #[allow(
        clippy::box_collection,
        reason = "there is hardly ever one, and a map has thrice the size of a box"
    )]
    more: Option<Box<BTreeMap<K, V>>>,
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self { first: None, more: None }
    }
}

impl<K: Ord, V> Few<K, V> {
    /// Sets a value and gives the one that was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match &mut self.first {
            None => {
                self.first = Some((key, value));
                None
            }
            Some((first, known)) if *first == key => Some(std::mem::replace(known, value)),
            Some(_) => self.more.get_or_insert_default().insert(key, value),
        }
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.first.as_ref().is_some_and(|(first, _)| first == key)
            || self.more.as_ref().is_some_and(|more| more.contains_key(key))
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.len())
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let first = self.first.iter().map(|(key, value)| (key, value));
        first.chain(self.more.iter().flat_map(|more| more.iter()))
    }
}

impl<K: Ord, V: Default> Few<K, V> {
    pub(crate) fn entry(&mut self, key: K) -> &mut V {
        match self.first.as_ref().is_none_or(|(first, _)| *first == key) {
            true => &mut self.first.get_or_insert_with(|| (key, V::default())).1,
            false => self.more.get_or_insert_default().entry(key).or_default(),
        }
    }
}
