//! What executions could not publish: a directory with a spool per execution.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glasshouse_nats::{
    Bus, Leftover, Spool, SpoolError, SpoolOptions, SpoolState, SpooledOptions, SpooledPublisher,
};
use glasshouse_schema::ids::ExecutionId;

/// A server that takes nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The directories of executions in a spool, oldest first: a UUIDv7 begins with its time.
pub fn executions(dir: &Path) -> io::Result<Vec<(ExecutionId, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.parse::<ExecutionId>().ok());
        found.extend(id.map(|id| (id, entry.path())));
    }
    found.sort_by_key(|(id, _)| id.to_string());
    Ok(found)
}

/// What became of a spool that was sent.
#[derive(Debug)]
pub struct Sent {
    /// How many messages were stored.
    pub messages: u64,
    /// What is left on disk.
    pub left: Leftover,
    /// Where the publisher stood at its end: what could not be read, and why not everything was stored.
    pub state: SpoolState,
}

/// Returns when nothing is left of so many messages, or the server takes nothing any more.
pub async fn drain(publisher: &SpooledPublisher, mut messages: u64) -> Result<(), glasshouse_nats::Error> {
    loop {
        let left = publisher.flush(PATIENCE).await?.messages;
        if left == 0 || left == messages {
            return Ok(());
        }
        messages = left;
    }
}

/// Sends what one execution left, and removes it once the server has all.
pub async fn send(bus: &Bus, dir: &Path) -> Result<Sent, SpoolError> {
    let spool = Spool::open(dir, SpoolOptions::default())?;
    let all = spool.leftover().messages;
    let publisher = SpooledPublisher::new(bus, spool, SpooledOptions::default());
    let ended = |error: glasshouse_nats::Error| match error {
        glasshouse_nats::Error::Spool(error) => error,
        other => SpoolError::Io { operation: "send", path: dir.to_owned(), source: io::Error::other(other) },
    };
    drain(&publisher, all).await.map_err(ended)?;
    let state = publisher.state();
    let left = publisher.close().await.map_err(ended)?;
    Ok(Sent { messages: all - left.messages, left, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executions_are_listed_and_the_oldest_comes_first() {
        let dir = std::env::temp_dir().join(format!("glasshouse-spool-{}", std::process::id()));
        let ids = [2, 1].map(|n| ExecutionId::from_parts(1_700_000_000_000 + n, [0; 10]));
        for name in [ids[0].to_string(), ids[1].to_string(), "something".into()] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let found: Vec<_> = executions(&dir).unwrap().into_iter().map(|(id, _)| id).collect();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, [ids[1], ids[0]]);
        assert!(executions(&dir).unwrap().is_empty(), "no directory is no error");
    }
}
