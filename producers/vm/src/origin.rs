//! What a machine begins with, whatever VMM runs it: it boots, or it goes on where the guest of another waited for a command.
//!
//! No execution was in that other one: a clone has nothing of another's but the memory of a guest that booted. What two clones must not
//! share they get with their commands, the host's clock and random bytes.

use std::sync::Arc;

/// The guest's link ends when its machine is kept: it connects again wherever it is restored.
pub(crate) const CONNECTS_AGAIN: &str = " glasshouse.template";
/// The guest loads what watches commands before it waits for one.
pub(crate) const WATCHES: &str = " glasshouse.watch";

/// What a machine begins with.
#[derive(Debug)]
pub(crate) enum Origin<T> {
    /// It boots.
    Boot,
    /// It boots, and others are cloned from it.
    Template,
    /// It goes on where a template stood.
    Clone(Arc<T>),
}

impl<T> Origin<T> {
    /// What a clone goes on from.
    pub(crate) fn template(&self) -> Option<&Arc<T>> {
        match self {
            Self::Clone(template) => Some(template),
            Self::Boot | Self::Template => None,
        }
    }
}
