//! The paths of a frame.

use serde::{Deserialize, Deserializer};

use crate::event::{PathFlags, PathRef};

/// Paths by their index, one behind the other in memory of their own: in a frame of version 3 they share their beginnings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    begin: u32,
    end: u32,
    flags: PathFlags,
}

impl Paths {
    /// The path with an index, which must be one: those in a decoded frame are.
    pub fn at(&self, index: u32) -> PathRef<'_> {
        let Span { begin, end, flags } = self.spans[index as usize];
        PathRef { bytes: &self.bytes[begin as usize..end as usize], flags }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Every path, in the order of the indexes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PathRef<'_>> + Clone {
        let bytes = &self.bytes;
        self.spans.iter().map(|Span { begin, end, flags }| PathRef {
            bytes: &bytes[*begin as usize..*end as usize],
            flags: *flags,
        })
    }

    /// How many bytes all of them have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds one, with the next index.
    pub fn push(&mut self, path: PathRef<'_>) {
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_slice(path.bytes);
        self.spans.push(Span { begin, end: self.bytes.len() as u32, flags: path.flags });
    }

    /// Adds one that begins with the first `shared` bytes of the one `back` before it; `None` if there are none.
    pub(super) fn push_sharing(
        &mut self,
        back: usize,
        shared: usize,
        rest: &[u8],
        flags: PathFlags,
    ) -> Option<()> {
        let begin = self.bytes.len() as u32;
        if shared > 0 {
            let base = self.spans[self.spans.len().checked_sub(back)?..].first()?;
            let from = base.begin as usize;
            if shared > (base.end - base.begin) as usize {
                return None;
            }
            self.bytes.extend_from_within(from..from + shared);
        }
        self.bytes.extend_from_slice(rest);
        self.spans.push(Span { begin, end: self.bytes.len() as u32, flags });
        Some(())
    }

    pub(super) fn with_room(paths: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), spans: Vec::with_capacity(paths) }
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }
}

impl<'p> FromIterator<PathRef<'p>> for Paths {
    fn from_iter<I: IntoIterator<Item = PathRef<'p>>>(paths: I) -> Self {
        let mut all = Self::default();
        paths.into_iter().for_each(|path| all.push(path));
        all
    }
}

/// As frames up to version 2 have them: a list of paths in full.
impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<PathRef<'de>>::deserialize(deserializer).map(Self::from_iter)
    }
}
