//! Control groups, version 2: where they are mounted, and their ids.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the version 2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
pub fn mount_point() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, path, kind) = (words.next()?, words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
        })
        .next()
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified",
            )
        })
}

/// The id that programs see (`bpf_get_current_cgroup_id`): the inode number of the directory.
pub fn id(directory: &Path) -> io::Result<u64> {
    std::fs::metadata(directory).map(|metadata| metadata.ino())
}
