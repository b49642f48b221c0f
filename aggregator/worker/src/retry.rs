//! Calls that can succeed later.

use std::future::Future;
use std::time::Duration;

use glasshouse_nats::ErrorKind;

use crate::Error;

/// How long a call that can succeed later rests before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Tries until it succeeds or cannot: the events stay where they are meanwhile. Whoever is to stop drops it.
pub(crate) async fn retry<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, glasshouse_nats::Error>>,
{
    loop {
        match attempt().await {
            Err(error) if error.kind() == ErrorKind::Retryable => {
                tracing::warn!(%error, "the bus cannot take it now, trying again");
                rest().await;
            }
            result => return Ok(result?),
        }
    }
}

pub(crate) async fn rest() {
    tokio::time::sleep(RETRY_AFTER).await;
}
