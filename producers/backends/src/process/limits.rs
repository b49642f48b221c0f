//! Limits that are held for all processes of an execution together.
//!
//! Memory and processes are held by the kernel, in the execution's cgroup v2 where its controllers are there, else in a
//! cgroup of the same name of the v1 controller. CPU time, output and the growth of the working directory are watched,
//! and whoever waits for [`Enforced::exceeded`] ends the execution.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use glasshouse_execution::spec::RunAs;
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::limits::{Limit, Limits};

use super::cgroup::{Cgroup, PARENT};
use super::user::with_rights_of;

/// How often is looked. What is exceeded between two looks is over the limit by as much as can be had in that time.
const LOOK_AFTER: Duration = Duration::from_millis(20);
/// A look at a large directory may take this part of one CPU at most.
const SHARE_OF_LOOKING: u32 = 10;
/// How long a v1 cgroup may stay busy after its last process.
const REMOVED_WITHIN: Duration = Duration::from_millis(500);

/// Bytes that may still be printed.
#[derive(Debug)]
pub struct OutputBudget {
    limit: u64,
    used: AtomicU64,
}

impl OutputBudget {
    /// So many.
    pub fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    /// Takes room for `bytes`; gives how many of them have it.
    pub(super) fn take(&self, bytes: usize) -> usize {
        let before = self.used.fetch_add(bytes as u64, Ordering::Relaxed);
        let room = self.limit.saturating_sub(before);
        usize::try_from(room).unwrap_or(usize::MAX).min(bytes)
    }

    fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }

    /// Returns once more was to be printed; never, if there is no budget. For backends that hold to no other limit by looking.
    pub async fn exceeded(budget: Option<Arc<Self>>) -> Limit {
        let Some(budget) = budget else { return std::future::pending().await };
        while !budget.is_exceeded() {
            tokio::time::sleep(LOOK_AFTER).await;
        }
        Limit::Output
    }
}

/// What an execution is held to.
#[derive(Debug, Default)]
pub(super) struct Enforced {
    /// Cgroups of v1 controllers.
    v1: Vec<PathBuf>,
    /// Files whose named line counts from 0 how often a limit was run into.
    events: Vec<(Limit, PathBuf, &'static str)>,
    cpu: Option<(PathBuf, u64)>,
    disk: Option<(PathBuf, u64)>,
    /// Whose working directory it is.
    user: Option<RunAs>,
    pub(super) output: Option<Arc<OutputBudget>>,
    /// What is not held, and why.
    pub(super) not_applied: Vec<String>,
}

impl Enforced {
    /// Makes what the limits need.
    pub(super) fn prepare(
        execution: ExecutionId,
        limits: &Limits,
        cgroup: Option<&Cgroup>,
        workdir: &Path,
        user: Option<&RunAs>,
    ) -> Self {
        let mut enforced = Self {
            user: user.cloned(),
            output: limits.output_bytes.map(|limit| Arc::new(OutputBudget::new(limit))),
            disk: limits
                .disk_bytes
                .map(|limit| (workdir.to_owned(), limit.saturating_add(used_by(user, workdir)))),
            ..Self::default()
        };
        if let Some(bytes) = limits.memory_bytes {
            enforced.controller(Limit::Memory, execution, cgroup, bytes);
        }
        if let Some(count) = limits.pids {
            enforced.controller(Limit::Pids, execution, cgroup, count);
        }
        if let Some(milliseconds) = limits.cpu_ms {
            match cgroup.map(|cgroup| cgroup.path().join("cpu.stat")).filter(|stat| stat.exists()) {
                Some(stat) => enforced.cpu = Some((stat, milliseconds)),
                None => {
                    enforced.not_applied.push("the limit `cpu`: there is no cgroup v2 to count in".into())
                }
            }
        }
        enforced
    }

    /// Cgroup v2, else v1, else a word about it.
    fn controller(&mut self, limit: Limit, execution: ExecutionId, cgroup: Option<&Cgroup>, value: u64) {
        let name = limit.as_str();
        let tried =
            cgroup.ok_or("there is no cgroup v2".to_owned()).and_then(|cgroup| self.v2(limit, cgroup, value));
        let Err(of_v2) = tried else { return };
        if let Err(of_v1) = self.v1(limit, execution, cgroup, value) {
            self.not_applied.push(format!("the limit `{name}`: {of_v2}; {of_v1}"));
        }
    }

    fn v2(&mut self, limit: Limit, cgroup: &Cgroup, value: u64) -> Result<(), String> {
        let (controller, dir) = (limit.as_str(), cgroup.path());
        let max = dir.join(format!("{controller}.max"));
        if !max.exists() {
            // Where this is not ours to say, or processes stand in the way, it stays as it is.
            for above in dir.ancestors().skip(1).take(2).collect::<Vec<_>>().into_iter().rev() {
                let _ = fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        fs::write(&max, value.to_string()).map_err(|error| format!("{}: {error}", max.display()))?;
        if limit == Limit::Memory {
            for (file, value) in [("memory.swap.max", "0"), ("memory.oom.group", "1")] {
                let _ = fs::write(dir.join(file), value);
            }
        }
        let word = if limit == Limit::Memory { "oom_kill" } else { "max" };
        self.events.push((limit, dir.join(format!("{controller}.events")), word));
        Ok(())
    }

    fn v1(
        &mut self,
        limit: Limit,
        execution: ExecutionId,
        cgroup: Option<&Cgroup>,
        value: u64,
    ) -> Result<(), String> {
        let controller = limit.as_str();
        let own = own_v1(controller).ok_or_else(|| format!("no controller `{controller}` of cgroup v1"))?;
        let parent = own.join(PARENT);
        let path = parent.join(execution.to_string());
        let said = |error: io::Error| format!("{}: {error}", path.display());
        sweep(&parent, cgroup);
        fs::create_dir_all(&path).map_err(said)?;
        self.v1.push(path.clone());
        let (file, events, word) = match limit {
            Limit::Memory => ("memory.limit_in_bytes", "memory.oom_control", "oom_kill"),
            _ => ("pids.max", "pids.events", "max"),
        };
        fs::write(path.join(file), value.to_string()).map_err(said)?;
        if limit == Limit::Memory {
            // Not there without accounting of swap.
            let _ = fs::write(path.join("memory.memsw.limit_in_bytes"), value.to_string());
        }
        self.events.push((limit, path.join(events), word));
        Ok(())
    }

    /// Moves the held process to where the limits are.
    pub(super) fn join(&self, pid: i32) -> io::Result<()> {
        self.v1.iter().try_for_each(|dir| fs::write(dir.join("cgroup.procs"), pid.to_string()))
    }

    /// The limit that the execution has run into by now.
    pub(super) fn ran_into(&self) -> Option<Limit> {
        let counted =
            |(_, file, word): &&(Limit, PathBuf, &str)| number_in(file, word).is_some_and(|count| count > 0);
        if self.output.as_ref().is_some_and(|budget| budget.is_exceeded()) {
            return Some(Limit::Output);
        }
        if self.cpu.as_ref().is_some_and(|(stat, milliseconds)| {
            number_in(stat, "usage_usec").is_some_and(|used| used / 1000 >= *milliseconds)
        }) {
            return Some(Limit::Cpu);
        }
        self.events.iter().find(counted).map(|(limit, ..)| *limit)
    }

    /// Returns once a limit is exceeded for which the execution has to be ended; a refused fork is none.
    pub(super) async fn exceeded(self: Arc<Self>) -> Limit {
        let is_watched = self.cpu.is_some()
            || self.disk.is_some()
            || self.output.is_some()
            || self.events.iter().any(|(limit, ..)| *limit != Limit::Pids);
        if !is_watched {
            return std::future::pending().await;
        }
        let mut next_walk = Instant::now();
        loop {
            if let Some(limit) = self.ran_into().filter(|limit| *limit != Limit::Pids) {
                return limit;
            }
            if let Some((dir, limit)) = self.disk.clone().filter(|_| Instant::now() >= next_walk) {
                let begin = Instant::now();
                let user = self.user.clone();
                let looking = tokio::task::spawn_blocking(move || used_by(user.as_ref(), &dir));
                let used = looking.await.unwrap_or(0);
                if used > limit {
                    return Limit::Disk;
                }
                next_walk = Instant::now() + begin.elapsed() * SHARE_OF_LOOKING;
            }
            tokio::time::sleep(LOOK_AFTER).await;
        }
    }

    /// Removes what [`Enforced::prepare`] made, once no process is left; gives what stays.
    pub(super) fn remove(&self) -> Vec<String> {
        let end = Instant::now() + REMOVED_WITHIN;
        let gone = |path: &PathBuf| loop {
            match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => return Some(format!("the cgroup {} is left: {error}", path.display())),
                Ok(()) => return None,
            }
        };
        self.v1.iter().filter_map(gone).collect()
    }
}

/// Removes what killed runners left: named as an execution that has no cgroup v2 any more. One that is being made has.
fn sweep(parent: &Path, cgroup: Option<&Cgroup>) {
    let Some(of_v2) = cgroup.and_then(|cgroup| cgroup.path().parent()) else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_execution = name.to_str().is_some_and(|name| name.parse::<ExecutionId>().is_ok());
        if is_execution && !of_v2.join(&name).exists() {
            // Fails while a process is left.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The number behind a word at the beginning of a line.
fn number_in(file: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Our own cgroup of a v1 controller.
fn own_v1(controller: &str) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (root, mount) = table.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let is_it = kind.next() == Some("cgroup") && kind.nth(1)?.split(',').any(|name| name == controller);
        let mut fields = mount.split(' ').skip(3);
        is_it.then(|| Some((fields.next()?.to_owned(), PathBuf::from(fields.next()?)))).flatten()
    })?;
    let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next()?.split(',').any(|name| name == controller).then(|| fields.next()).flatten()
    })?;
    let below = Path::new(own).strip_prefix(&root).unwrap_or(Path::new(""));
    Some(mount.join(below))
}

/// [`used_bytes`], as far as the user can look.
fn used_by(user: Option<&RunAs>, dir: &Path) -> u64 {
    with_rights_of(user, || used_bytes(dir)).unwrap_or(0)
}

/// What a directory takes on disk. What cannot be read counts nothing; other file systems below are not looked at.
fn used_bytes(dir: &Path) -> u64 {
    let Ok(device) = fs::symlink_metadata(dir).map(|of| of.dev()) else { return 0 };
    let mut used = 0_u64;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(of) = entry.metadata() else { continue };
            used += of.blocks() * 512;
            if of.is_dir() && of.dev() == device {
                dirs.push(entry.path());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_has_room_until_it_has_none() {
        let budget = OutputBudget::new(10);
        assert_eq!((budget.take(4), budget.take(6), budget.is_exceeded()), (4, 6, false));
        assert_eq!((budget.take(3), budget.is_exceeded()), (0, true));
    }

    #[test]
    fn what_a_directory_takes_is_counted_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let before = used_bytes(dir.path());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), vec![1; 100_000]).unwrap();
        assert!(used_bytes(dir.path()) >= before + 100_000);
        assert_eq!(used_bytes(&dir.path().join("none")), 0);
    }
}
