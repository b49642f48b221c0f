//! What containerd keeps of an execution, and of those whose runner was killed.
//!
//! A container's record is the first that a run makes and the last that it removes. Its labels say which process runs it, and where
//! its pipes are. So whoever finds the record of a process that is gone can remove everything else.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

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

/// A process, so that others can tell that it is gone: its id alone may be another's by then.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Runner {
    /// Of the machine's start.
    boot_id: String,
    /// In which pid namespace it has its id, by that one's inode.
    namespace: String,
    pid: u32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5)).
    start_ticks: u64,
}

impl Runner {
    /// This process; `None` where /proc does not tell.
    fn this() -> Option<Self> {
        let (pid, start_ticks) = alive("self")?;
        Some(Self { boot_id: boot_id()?, namespace: namespace()?, pid, start_ticks })
    }

    fn parse(text: &str) -> Option<Self> {
        let [boot_id, namespace, pid, start_ticks] =
            <[&str; 4]>::try_from(text.split(' ').collect::<Vec<_>>()).ok()?;
        Some(Self {
            boot_id: boot_id.to_owned(),
            namespace: namespace.to_owned(),
            pid: pid.parse().ok()?,
            start_ticks: start_ticks.parse().ok()?,
        })
    }

    /// Whether it is known to be gone. Of another pid namespace nothing is known while the machine is up.
    fn is_gone(&self) -> bool {
        match (boot_id(), namespace()) {
            (Some(boot_id), _) if boot_id != self.boot_id => true,
            (Some(_), Some(namespace)) if namespace == self.namespace => {
                alive(&self.pid.to_string()) != Some((self.pid, self.start_ticks))
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.boot_id, self.namespace, self.pid, self.start_ticks)
    }
}

fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

fn namespace() -> Option<String> {
    fs::read_link("/proc/self/ns/pid").ok()?.to_str().map(str::to_owned)
}

/// Id and start of a process, if it has not ended.
fn alive(process: &str) -> Option<(u32, u64)> {
    stat(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// proc_pid_stat(5): `pid (name) state …`, the start as the 22nd field; `None` of one that nobody has waited for yet.
fn stat(line: &str) -> Option<(u32, u64)> {
    let pid = line.split(' ').next()?.parse().ok()?;
    // The name may hold anything.
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some((pid, start_ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_id() {
        let this = Runner::this().unwrap();
        assert_eq!(Runner::parse(&this.to_string()), Some(this.clone()));
        assert!(!this.is_gone());
        assert!(Runner { start_ticks: this.start_ticks + 1, ..this.clone() }.is_gone());
        assert!(
            Runner { boot_id: "an-earlier-one".into(), namespace: "another".into(), ..this.clone() }
                .is_gone()
        );
        assert!(
            !Runner { namespace: "pid:[1]".into(), pid: 0, ..this }.is_gone(),
            "of that nothing is known"
        );
        assert_eq!(Runner::parse("x"), None);
    }

    #[test]
    fn the_line_of_a_process_is_read_whatever_its_name() {
        let line = |state: &str| {
            format!("7 (a) b) c) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n")
        };
        assert_eq!(stat(&line("S")), Some((7, 4711)));
        assert_eq!(stat(&line("Z")), None);
        assert_eq!(stat(""), None);
    }

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
