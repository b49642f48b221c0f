//! What machines may leave on a node: processes, sockets, files, mounts, cgroups, network devices.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long what belongs to others may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// What a node has whoever runs on it.
#[derive(Debug)]
pub(crate) struct Node {
    network_devices: BTreeSet<String>,
    mounts: BTreeSet<String>,
}

impl Node {
    pub(crate) fn now() -> Self {
        let names = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Without the numbers, which are given anew; other tests mount below their own temporary directories.
        let mounts = mounts.lines().filter_map(|line| line.split_whitespace().nth(4));
        let here = std::env::temp_dir();
        Self {
            network_devices: names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
            mounts: mounts.filter(|at| !Path::new(at).starts_with(&here)).map(str::to_owned).collect(),
        }
    }

    /// What came since `before` and stays. Others of this host come and go meanwhile: a network namespace of another test, say.
    pub(crate) fn left_since(before: &Self) -> Vec<String> {
        let since = || {
            let now = Self::now();
            let devices = now.network_devices.difference(&before.network_devices);
            devices.chain(now.mounts.difference(&before.mounts)).cloned().collect::<BTreeSet<_>>()
        };
        let mut left = since();
        let end = Instant::now() + GONE_WITHIN;
        while !left.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            left = &left & &since();
        }
        left.into_iter().collect()
    }
}

/// What belongs to machines whose temporary files are in `dir`.
pub(crate) fn of_directory(dir: &Path) -> Vec<String> {
    let name = dir.to_str().unwrap();
    let mut left: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|entry| format!("file {}", entry.path().display()))
        .collect();
    for (what, list) in [("socket", "/proc/net/unix"), ("mount", "/proc/self/mountinfo")] {
        let text = fs::read_to_string(list).unwrap();
        left.extend(text.lines().filter(|line| line.contains(name)).map(|line| format!("{what} {line}")));
    }
    left.extend(processes_with(name));
    left
}

/// What has the id of an execution in its name: cgroups, and processes in them or told of it.
pub(crate) fn of_execution(id: &str) -> Vec<String> {
    let mut left = processes_with(id);
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        // Others come and go meanwhile.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(id) {
                    left.push(format!("cgroup {}", entry.path().display()));
                }
                dirs.push(entry.path());
            }
        }
    }
    left
}

/// Processes whose command line or cgroup has this text.
fn processes_with(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let has = |process: &PathBuf| {
        ["cmdline", "cgroup"].iter().any(|file| {
            let bytes = fs::read(process.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(text)
        })
    };
    processes.filter(has).map(|process| format!("process {}", process.display())).collect()
}
