//! Room beyond a stream's limit, for a while.
//!
//! A stream that refuses what is new can be full of executions that cannot end, because the events that end them are what it refuses.
//! So it may be lent a sixteenth of its limit, once, and has its limit back when it holds less. What the operator set stands in the
//! stream's metadata meanwhile, and is what [`crate::Topology::check`] compares. The limit can be changed by nobody else in the same
//! moment without being noticed: JetStream has no compare-and-set for configurations, so a change within these milliseconds is lost.

use async_nats::jetstream::stream::Config;

use crate::connect::Bus;
use crate::error::Error;

/// What the operator set, while the limit is another one.
const OWN_LIMIT: &str = "glasshouse.max_bytes";
/// What is lent of it, and the least that is: the largest message has room twice.
const SHARE: i64 = 16;
const LEAST: i64 = 2 << 20;

/// The limit that the operator set.
pub(crate) fn own_limit(config: &Config) -> i64 {
    lent_from(config).unwrap_or(config.max_bytes)
}

/// The limit that the operator set, if another one is in force.
fn lent_from(config: &Config) -> Option<i64> {
    config.metadata.get(OWN_LIMIT)?.parse().ok()
}

impl Bus {
    /// Lets a stream that has a limit hold more than that; gives how much it may hold then. Lent once until it is
    /// [taken back](Self::take_room_back): `None` if it is lent, or has no limit.
    ///
    /// # Errors
    /// [`Error::Broker`]: it may not be changed by us, or the server has no more storage.
    pub async fn lend_room(&self, stream: &str) -> Result<Option<u64>, Error> {
        let mut config = self.stream(stream).await?.cached_info().config.clone();
        let own = config.max_bytes;
        if own <= 0 || lent_from(&config).is_some() {
            return Ok(None);
        }
        let limit = own.saturating_add((own / SHARE).max(LEAST));
        config.max_bytes = limit;
        config.metadata.insert(OWN_LIMIT.to_owned(), own.to_string());
        self.change(config).await?;
        Ok(Some(limit.unsigned_abs()))
    }

    /// Gives a stream the limit back that it had; whether it had another one.
    ///
    /// # Errors
    /// As [`Self::lend_room`] has them.
    pub async fn take_room_back(&self, stream: &str) -> Result<bool, Error> {
        let mut config = self.stream(stream).await?.cached_info().config.clone();
        let Some(own) = lent_from(&config) else { return Ok(false) };
        config.max_bytes = own;
        config.metadata.remove(OWN_LIMIT);
        self.change(config).await?;
        Ok(true)
    }

    async fn change(&self, config: Config) -> Result<(), Error> {
        let name = config.name.clone();
        let changed = self.jetstream().update_stream(config).await;
        changed.map(drop).map_err(|error| Error::broker("change the limit of", &name, error))
    }
}
