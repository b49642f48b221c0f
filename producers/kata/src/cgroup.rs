//! Which cgroup a task is in, as the kernel tells it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where cgroup v2 is mounted, alone or beside the controllers of v1.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Where v1's controller of memory is.
const MEMORY_V1: &str = "/sys/fs/cgroup/memory";

/// The cgroup of a task's first process: for Kata that of the sandbox, with the VMM in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroup {
    unified: Option<PathBuf>,
    memory_v1: Option<PathBuf>,
}

impl Cgroup {
    /// The cgroup that a process is in.
    pub(crate) fn of(pid: u32) -> Self {
        let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let unified = find(&table, |controllers| controllers.is_empty());
        let memory = find(&table, |controllers| controllers.split(',').any(|name| name == "memory"));
        let is_v2 = |root: &&&str| Path::new(root).join("cgroup.controllers").exists();
        Self {
            unified: unified
                .and_then(|path| UNIFIED.iter().find(is_v2).map(|root| Path::new(root).join(path))),
            memory_v1: memory.map(|path| Path::new(MEMORY_V1).join(path)),
        }
    }

    /// The id by which BPF programs know it: the inode of its directory. The root is nobody's own.
    pub(crate) fn id(&self) -> Option<u64> {
        let path = self.unified.as_ref()?;
        let is_root = UNIFIED.iter().any(|root| path == Path::new(root));
        std::fs::metadata(path).ok().filter(|_| !is_root).map(|dir| dir.ino())
    }

    /// How often the kernel killed in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v1 = self.memory_v1.iter().map(|path| path.join("memory.oom_control"));
        let files = v1.chain(self.unified.iter().map(|path| path.join("memory.events")));
        files.filter_map(|file| std::fs::read_to_string(file).ok()).map(|text| oom_kills(&text)).sum()
    }
}

/// proc_pid_cgroup(5): `hierarchy:controllers:path`; the path without its first `/`.
fn find(table: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        wanted(controllers).then(|| path.trim_start_matches('/'))
    })
}

fn oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_a_hybrid_host_is_read() {
        let table = "5:memory,hugetlb:/glasshouse/x\n1:name=systemd:/\n0::/glasshouse/y:z\n";
        assert_eq!(find(table, str::is_empty), Some("glasshouse/y:z"));
        assert_eq!(
            find(table, |controllers| controllers.split(',').any(|name| name == "memory")),
            Some("glasshouse/x")
        );
        assert_eq!(find("", str::is_empty), None);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
    }
}
