//! A process in a cgroup of its own, held behind a gate until whoever watches it is ready. Shared by the loss tests and
//! the bench of what watching costs, whose binaries are the held process too.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use glasshouse_host_probe::cgroup;

/// The first argument of a held process; the rest is the command that it becomes.
const ROLE: &str = "held";
const CGROUP_PREFIX: &str = "glasshouse-held-";

/// Does what a held process does, if this is one. To be called before anything else; returns if this is none.
pub(crate) fn role() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|role| role != ROLE) {
        return Ok(());
    }
    let program = arguments.next().ok_or_else(|| io::Error::other("no command to become"))?;
    // Says that the kernel is done with this process's own exec, which must not be taken for the command's.
    io::stdout().write_all(b"\n")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Err(Command::new(program).args(arguments).exec())
}

/// Removes what a runner that was killed left behind in `parent`: `{prefix}{its pid}-…`.
pub(crate) fn sweep(parent: &Path, prefix: &str) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        if !owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            continue;
        }
        let path = entry.path();
        if path.join("cgroup.kill").exists() {
            drop(Cgroup(path));
        } else {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// A fresh directory in memory, named so that [`sweep`] finds it.
pub(crate) fn scratch(prefix: &str) -> io::Result<tempfile::TempDir> {
    let parent = Path::new(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" });
    sweep(parent, prefix);
    sweep(&cgroup::mount_point()?, CGROUP_PREFIX);
    tempfile::Builder::new().prefix(&format!("{prefix}{}-", std::process::id())).tempdir_in(parent)
}

/// Holds every process that was started with it until it is opened.
pub(crate) struct Gate {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Gate {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { reader, writer })
    }

    /// Lets all of them go at once.
    pub(crate) fn open(self) {
        drop(self.writer);
    }
}

/// A fresh cgroup. Dropped, it takes what lives in it along.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new() -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{CGROUP_PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = cgroup::mount_point()?.join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn id(&self) -> io::Result<u64> {
        cgroup::id(&self.0)
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        std::fs::write(self.0.join("cgroup.kill"), "1")
    }

    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        Ok(std::fs::read_to_string(self.0.join("cgroup.events"))?.contains("populated 1"))
    }

    /// Waits until nobody is left in it.
    pub(crate) fn wait_empty(&self, deadline: Instant) -> io::Result<()> {
        while self.is_populated()? {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} is still populated", self.0.display())));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.kill();
        let began = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A held process.
pub(crate) struct Held {
    pub(crate) cgroup: Cgroup,
    pub(crate) child: Child,
    stdout: ChildStdout,
}

impl Held {
    /// Starts it; the command that it becomes is `argv`.
    pub(crate) fn start(argv: &[OsString], gate: &Gate) -> io::Result<Self> {
        let cgroup = Cgroup::new()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .args(argv)
            // Cargo's: with it, the dynamic linker looks for every library in a dozen places.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::from(gate.reader.try_clone()?))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = || {
            let mut stdout = child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
            stdout.read_exact(&mut [0])?;
            std::fs::write(cgroup.0.join("cgroup.procs"), child.id().to_string())?;
            Ok(stdout)
        };
        match ready() {
            Ok(stdout) => Ok(Self { cgroup, child, stdout }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Waits until it and everything that it started has ended; what it printed.
    pub(crate) fn finish(&mut self, within: Duration) -> io::Result<(ExitStatus, String)> {
        let deadline = Instant::now() + within;
        let mut printed = String::new();
        self.stdout.read_to_string(&mut printed)?;
        let status = self.child.wait()?;
        self.cgroup.wait_empty(deadline)?;
        Ok((status, printed))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
