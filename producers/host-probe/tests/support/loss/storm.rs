//! The processes that make the events, and count for themselves what they did.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, wait, waitpid};
use nix::unistd::{ForkResult, fork};

/// The first argument of the root of an execution.
pub(crate) const ROLE: &str = "storm";
/// The first argument of a process that only burns CPU.
pub(crate) const HOG_ROLE: &str = "hog";
/// Children that a worker has at once.
const IN_FLIGHT: usize = 4;
/// What each execution of [`Kind::Few`] does.
const FEW: u64 = 5;

/// What one execution does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Opens, writes, renames and deletes files.
    Writers,
    /// Forks, and executes a tiny program.
    Forks,
    /// Half of the workers do this, half do that.
    Mixed,
    /// A few commands and files, then ends.
    Few,
    /// Nothing: what the start of a program by itself makes.
    Nothing,
}

impl Kind {
    const NAMES: [(&'static str, Self); 5] = [
        ("writers", Self::Writers),
        ("forks", Self::Forks),
        ("mixed", Self::Mixed),
        ("few", Self::Few),
        ("nothing", Self::Nothing),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// How one execution is run.
#[derive(Debug, Clone)]
pub(crate) struct Storm {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    pub(crate) workers: u64,
    pub(crate) lasts: Duration,
    /// Its own directory.
    pub(crate) dir: PathBuf,
    /// The program to execute.
    pub(crate) tiny: PathBuf,
}

impl Storm {
    /// The command line, after the binary.
    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let Self { kind, seed, workers, lasts, dir, tiny } = self;
        let lasts = lasts.as_millis().to_string();
        vec![
            ROLE.into(),
            kind.name().into(),
            seed.to_string().into(),
            workers.to_string().into(),
            lasts.into(),
            dir.into(),
            tiny.into(),
        ]
    }

    fn parse(arguments: &[String]) -> Option<Self> {
        let [kind, seed, workers, lasts, dir, tiny] = arguments else { return None };
        Some(Self {
            kind: Kind::NAMES.iter().find(|(name, _)| name == kind)?.1,
            seed: seed.parse().ok()?,
            workers: workers.parse().ok()?,
            lasts: Duration::from_millis(lasts.parse().ok()?),
            dir: dir.into(),
            tiny: tiny.into(),
        })
    }
}

/// Calls that were made, by who made them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) opens: u64,
    pub(crate) writes: u64,
    pub(crate) deletes: u64,
    pub(crate) renames: u64,
    pub(crate) forks: u64,
    pub(crate) execs: u64,
}

impl Counts {
    fn print(&self) -> io::Result<()> {
        let Self { opens, writes, deletes, renames, forks, execs } = self;
        // One write: the workers share the pipe.
        let line = format!("{opens} {writes} {deletes} {renames} {forks} {execs}\n");
        io::stdout().write_all(line.as_bytes())?;
        io::stdout().flush()
    }

    /// The sum of what every process of an execution printed.
    pub(crate) fn sum(printed: &str) -> io::Result<Self> {
        let mut sum = Self::default();
        for line in printed.lines() {
            let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
            let Ok([opens, writes, deletes, renames, forks, execs]) = numbers.as_deref() else {
                return Err(io::Error::other(format!("a worker printed {line:?}")));
            };
            sum.opens += opens;
            sum.writes += writes;
            sum.deletes += deletes;
            sum.renames += renames;
            sum.forks += forks;
            sum.execs += execs;
        }
        Ok(sum)
    }
}

/// Becomes root or hog if the arguments say so; returns if this is none.
pub(crate) fn role() -> io::Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((role, rest)) if role == ROLE => {
            let storm =
                Storm::parse(rest).ok_or_else(|| io::Error::other("a storm without its arguments"))?;
            run(&storm)?;
            Ok(true)
        }
        Some((role, _)) if role == HOG_ROLE => loop {
            std::hint::spin_loop();
        },
        _ => Ok(false),
    }
}

/// The root: its workers are forks of it, so that none has a start of its own.
fn run(storm: &Storm) -> io::Result<()> {
    let mut counts = Counts::default();
    if storm.kind == Kind::Few {
        let mut worker = Worker::new(storm, 0)?;
        for _ in 0..FEW {
            worker.spawn_some(1)?;
            worker.rewrite()?;
            worker.create_and_delete()?;
        }
        return worker.counts.print();
    }
    let workers = if storm.kind == Kind::Nothing { 0 } else { storm.workers };
    let deadline = Instant::now() + storm.lasts;
    for index in 0..workers {
        counts.forks += 1;
        if is_child()? {
            let done = work(storm, index, deadline);
            std::process::exit(i32::from(done.is_err()));
        }
    }
    counts.print()?;
    for _ in 0..workers {
        match wait()? {
            WaitStatus::Exited(_, 0) => {}
            other => return Err(io::Error::other(format!("a worker ended: {other:?}"))),
        }
    }
    Ok(())
}

fn work(storm: &Storm, index: u64, deadline: Instant) -> io::Result<()> {
    let mut worker = Worker::new(storm, index)?;
    let forks = match storm.kind {
        Kind::Forks => true,
        Kind::Mixed => index.is_multiple_of(2),
        _ => false,
    };
    while Instant::now() < deadline {
        match (forks, worker.random() % 4) {
            (true, _) => worker.spawn_some(IN_FLIGHT)?,
            (false, 0) => worker.create_and_delete()?,
            (false, 1) => worker.miss()?,
            (false, _) => worker.rewrite()?,
        }
    }
    worker.counts.print()
}

#[allow(unsafe_code, reason = "a fork without an exec")]
fn is_child() -> io::Result<bool> {
    // SAFETY: this process has one thread, so the child may do whatever it could.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(true),
        ForkResult::Parent { .. } => Ok(false),
    }
}

struct Worker {
    counts: Counts,
    random: u64,
    made: u64,
    prefix: PathBuf,
    same: CString,
    missing: CString,
    tiny: PathBuf,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

impl Worker {
    fn new(storm: &Storm, index: u64) -> io::Result<Self> {
        let path = |name: &str| storm.dir.join(format!("{name}-{index}"));
        Ok(Self {
            counts: Counts::default(),
            random: (storm.seed ^ (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).max(1),
            made: 0,
            prefix: path("made"),
            same: c_path(&path("same"))?,
            missing: c_path(&path("missing"))?,
            tiny: storm.tiny.clone(),
        })
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn write(&mut self, path: &CString) -> io::Result<()> {
        self.counts.opens += 1;
        let file = open(path.as_c_str(), OFlag::O_WRONLY | OFlag::O_CREAT, Mode::from_bits_truncate(0o600))?;
        self.counts.writes += 1;
        nix::unistd::write(&file, &[1; 64])?;
        Ok(())
    }

    /// The same file again.
    fn rewrite(&mut self) -> io::Result<()> {
        let same = self.same.clone();
        self.write(&same)
    }

    /// A file that is not there.
    fn miss(&mut self) -> io::Result<()> {
        self.counts.opens += 1;
        match open(self.missing.as_c_str(), OFlag::O_RDONLY, Mode::empty()) {
            Ok(_) => Err(io::Error::other("the missing file is there")),
            Err(_) => Ok(()),
        }
    }

    /// A file with a name of its own, renamed every second time.
    fn create_and_delete(&mut self) -> io::Result<()> {
        self.made += 1;
        let path = PathBuf::from(format!("{}-{}", self.prefix.display(), self.made));
        let mut name = c_path(&path)?;
        self.write(&name)?;
        if self.made.is_multiple_of(2) {
            let renamed = c_path(&path.with_extension("renamed"))?;
            self.counts.renames += 1;
            nix::fcntl::renameat(
                nix::fcntl::AT_FDCWD,
                name.as_c_str(),
                nix::fcntl::AT_FDCWD,
                renamed.as_c_str(),
            )?;
            name = renamed;
        }
        self.counts.deletes += 1;
        nix::unistd::unlink(name.as_c_str())?;
        Ok(())
    }

    /// Children, one of them without an exec.
    fn spawn_some(&mut self, children: usize) -> io::Result<()> {
        let mut spawned = Vec::with_capacity(children);
        for _ in 0..children {
            spawned.push(Command::new(&self.tiny).spawn()?);
            self.counts.forks += 1;
            self.counts.execs += 1;
        }
        self.fork_only()?;
        for mut child in spawned {
            if !child.wait()?.success() {
                return Err(io::Error::other("the tiny program failed"));
            }
        }
        Ok(())
    }

    #[allow(unsafe_code, reason = "a fork without an exec")]
    fn fork_only(&mut self) -> io::Result<()> {
        self.counts.forks += 1;
        // SAFETY: this process has one thread, so the child may do whatever it could.
        match unsafe { fork() }? {
            // SAFETY: ends the process at once, without what its parent registered to run at exit.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { child } => waitpid(child, None)?,
        };
        Ok(())
    }
}

/// Writes the smallest program there is: it exits with 0, needs no loader and opens nothing.
pub(crate) fn write_tiny(path: &Path) -> io::Result<()> {
    let (machine, code): (u16, &[u8]) = if cfg!(target_arch = "x86_64") {
        // xor edi, edi; mov eax, 60 (exit); syscall
        (62, &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05])
    } else {
        // mov x0, 0; mov x8, 93 (exit); svc 0
        (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4])
    };
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, machine].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    elf.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // One segment, readable and executable: the whole file.
    elf.extend([1u32, 5].map(u32::to_le_bytes).concat());
    elf.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    elf.extend(code);
    std::fs::write(path, elf)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}
