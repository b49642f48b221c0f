//! What containerd keeps of an execution, and of those whose runner was killed.
//!
//! A container's record is the first that a run makes and the last that it removes. Its labels say which process runs it, and where
//! its pipes are. So whoever finds the record of a process that is gone can remove everything else.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use glasshouse_backends::Runner;
use tonic::Status;

use crate::api::{
    Container, DeleteContainer, DeleteTask, KillTask, ListContainers, RemoveSnapshot, WaitTask,
};
use crate::client::{Client, is_gone};
use crate::pump;

/// What containerd takes when it is told none.
pub(crate) const SNAPSHOTTER: &str = "overlayfs";
const EXECUTION: &str = "glasshouse.execution";
const RUNNER: &str = "glasshouse.runner";
const PIPES: &str = "glasshouse.pipes";
/// How long a task may take to end once it is killed.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// What the record of an execution says that this process runs.
pub(crate) fn labels(id: &str) -> HashMap<String, String> {
    let runner = Runner::this().map(|runner| (RUNNER, runner.to_string()));
    let pipes = (PIPES, pump::dir_of(id).to_string_lossy().into_owned());
    let all = [(EXECUTION, id.to_owned()), pipes].into_iter().chain(runner);
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Removes what there is of every execution whose runner is gone; gives what is left, in words.
pub(crate) async fn sweep(client: &Client) -> Vec<String> {
    let filters = vec![format!("labels.\"{RUNNER}\"")];
    let found = match client.call(ListContainers { filters }).await {
        Ok(found) => found.containers,
        Err(status) => {
            return vec![format!("what containerd has of earlier runs is not known: {}", status.message())];
        }
    };
    let mut left = Vec::new();
    for container in found.iter().filter(|container| has_no_runner(container)) {
        let id = &container.id;
        tracing::warn!(execution_id = id, "an execution has lost its runner: it is ended");
        let mut of_it = end(client, id).await;
        of_it.extend(
            remove_pipes(container).err().map(|error| format!("the pipes of {id} are left: {error}")),
        );
        if of_it.is_empty() {
            of_it = forget(client, id).await;
        }
        left.extend(of_it);
    }
    left
}

/// Ends an execution's task and removes its snapshot; gives what is left, in words.
pub(crate) async fn end(client: &Client, id: &str) -> Vec<String> {
    let snapshot = RemoveSnapshot { snapshotter: SNAPSHOTTER.to_owned(), key: id.to_owned() };
    let task = told("the task", id, end_task(client, id).await);
    let snapshot = told("the snapshot", id, client.remove(snapshot).await);
    task.into_iter().chain(snapshot).collect()
}

/// Removes the record, once nothing else is left.
pub(crate) async fn forget(client: &Client, id: &str) -> Vec<String> {
    let removed = client.remove(DeleteContainer { id: id.to_owned() }).await;
    told("the container", id, removed).into_iter().collect()
}

fn told(what: &str, id: &str, removed: Result<(), Status>) -> Option<String> {
    removed.err().map(|status| format!("{what} {id} is left: {}", status.message()))
}

/// Kills a task if it is there, and removes it.
async fn end_task(client: &Client, id: &str) -> Result<(), Status> {
    let kill = KillTask { container_id: id.to_owned(), signal: libc::SIGKILL as u32, all: true };
    client.remove(kill).await?;
    let ended = client.call(WaitTask { container_id: id.to_owned() });
    match tokio::time::timeout(GONE_WITHIN, ended).await {
        Ok(Err(status)) if is_gone(&status) => return Ok(()),
        Ok(ended) => ended.map(drop)?,
        Err(_) => return Err(Status::deadline_exceeded("it does not end though it was killed")),
    }
    client.remove(DeleteTask { container_id: id.to_owned() }).await
}

fn has_no_runner(container: &Container) -> bool {
    container
        .labels
        .get(RUNNER)
        .and_then(|runner| Runner::parse(runner))
        .is_some_and(|runner| runner.is_gone())
}

/// Only what a run names so is removed, whatever the label says.
fn remove_pipes(container: &Container) -> io::Result<()> {
    let Some(dir) = container.labels.get(PIPES).map(Path::new) else { return Ok(()) };
    if dir.file_name() != pump::dir_of(&container.id).file_name() {
        return Ok(());
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_does_not_lead_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: &Path| Container {
            id: "x".into(),
            labels: HashMap::from([(PIPES.to_owned(), path.display().to_string())]),
            ..Container::default()
        };
        remove_pipes(&of(dir.path())).unwrap();
        assert!(dir.path().exists());
        let own = dir.path().join("glasshouse-kata-x");
        fs::create_dir(&own).unwrap();
        remove_pipes(&of(&own)).unwrap();
        remove_pipes(&of(&own)).unwrap();
        assert!(!own.exists());
    }
}
