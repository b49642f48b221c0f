//! Backoff with jitter and a deadline.

use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The waits between the attempts of one operation.
pub(crate) struct Backoff {
    attempt: u32,
    give_up: Option<Instant>,
}

impl Backoff {
    /// Gives up when `deadline` from now has passed.
    pub(crate) fn until(deadline: Duration) -> Self {
        Self { attempt: 0, give_up: Instant::now().checked_add(deadline) }
    }

    /// Never gives up.
    pub(crate) fn forever() -> Self {
        Self { attempt: 0, give_up: None }
    }

    /// The operation succeeded: the next failure starts with short waits again.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How long to wait before the next attempt, for who waits for other things too.
    pub(crate) fn delay(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.attempt.min(8)).min(LONGEST);
        self.attempt = self.attempt.saturating_add(1);
        // Half fixed, half random, so that the workers of a fleet do not come back in step.
        full / 2 + full.mul_f64(0.5 * unit(random_u64()))
    }

    /// Waits before the next attempt; `false` when the deadline would pass first.
    pub(crate) async fn wait(&mut self) -> bool {
        let delay = self.delay();
        if self.give_up.is_some_and(|end| Instant::now() + delay > end) {
            return false;
        }
        tokio::time::sleep(delay).await;
        true
    }
}

/// A number that differs from call to call and from process to process; not for secrets.
pub(crate) fn random_u64() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn unit(random: u64) -> f64 {
    f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}
