//! The sandbox levels: what the held process does to itself before it becomes the command. docs/sandbox.md says what
//! each level stops and what it does not.
//!
//! - The tree stays the node's, read-only: no other root is entered, so that every path means the same inside, outside
//!   and in the receipt. What is private lies on top: /tmp, /var/tmp, /run, /dev, /proc.
//! - What may be written is taken out of the tree first, and put back once the rest is read-only.
//! - Everything is a list of [`Step`]s, made before the fork.

mod init;
mod landlock;
mod network;
mod seccomp;
mod step;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::{ExecutionSpec, RunAs};
use glasshouse_schema::limits::Limits;
use glasshouse_schema::sandbox::{NetworkAccess, SandboxLevel};

use self::landlock::{Allowed, Domain};
use self::step::{Ids, NO_DEVICES, NO_SETUID, READ_ONLY};

pub(super) use self::init::Init;
pub(super) use self::network::{AllowList, Peers};
pub(super) use self::step::{Descriptors, Step, carry_out};

/// Most paths that one sandbox can be given; the held process keeps a descriptor of each for a moment.
pub(super) const MAX_SLOTS: usize = 128;

/// Directories that are empty and writable inside, whatever they hold outside.
const PRIVATE: [(&str, &str); 3] = [("/tmp", "1777"), ("/var/tmp", "1777"), ("/run", "755")];
/// Device files, beside which there are none. At `strict` there is no terminal.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
const DEVICES_OF_STRICT: usize = 5;
const DEVICE_LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"fd/0", c"/dev/stdin"),
    (c"fd/1", c"/dev/stdout"),
    (c"fd/2", c"/dev/stderr"),
];
/// What the container engines hide: files, and directories.
const HIDDEN_FILES: [&str; 5] =
    ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug"];
const HIDDEN_DIRS: [&str; 5] =
    ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];
/// What a strict command can read and execute without being given it: programs, libraries and what these look up.
const READABLE: [&str; 27] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/fonts",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki",
    "/etc/python3",
    "/etc/ssl",
    "/sys/devices/system/cpu",
];

/// What is to be done to the held process.
#[derive(Debug, Default)]
pub(super) struct Sandbox {
    level: SandboxLevel,
    steps: Vec<Step>,
    ruleset: Option<OwnedFd>,
    workdir: Option<PathBuf>,
    /// Who the command runs as, where that is not us.
    user: Option<Ids>,
    not_applied: Vec<String>,
}

impl Sandbox {
    /// The plan for a spec. What `strict` promises and this node lacks is an error; at `standard` it is in
    /// [`Sandbox::not_applied`].
    pub(super) fn plan(spec: &ExecutionSpec) -> Result<Self, BackendError> {
        let level = spec.sandbox.level;
        let user = spec.run_as.as_ref();
        let ids = user.map(|user| Ids { uid: user.uid, gid: user.gid });
        let steps = resource_limits(&spec.limits, user);
        let mut sandbox = Self { level, steps, user: ids, ..Self::default() };
        if level == SandboxLevel::None {
            if let (Some(user), Some(ids)) = (user, ids) {
                let groups = Step::Groups(user.groups.clone());
                let umask = Step::Umask(user.umask);
                sandbox.steps.extend([groups, umask, Step::NoNewPrivileges, Step::Become(ids)]);
            }
            return Ok(sandbox);
        }
        sandbox
            .confine(spec)
            .map_err(|reason| BackendError::failed(format!("preparing the sandbox ({level})"), reason))?;
        Ok(sandbox)
    }

    /// Whether the command runs in namespaces of its own, of which an init is needed.
    pub(super) fn has_namespaces(&self) -> bool {
        self.level > SandboxLevel::None
    }

    /// Starts the init, and makes this thread's children members of its namespace.
    pub(super) fn enter_init(&self) -> io::Result<Init> {
        let init = Init::start(self.level == SandboxLevel::Strict, self.user)?;
        init.adopt()?;
        Ok(init)
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn ruleset(&self) -> RawFd {
        self.ruleset.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The working directory, where the plan depends on it.
    pub(super) fn workdir(&self) -> Option<&Path> {
        self.workdir.as_deref()
    }

    /// What belongs to the level and this node does not have.
    pub(super) fn not_applied(&self) -> &[String] {
        &self.not_applied
    }

    /// Says which step failed.
    pub(super) fn step_error(&self, number: usize, errno: i32) -> BackendError {
        let error = io::Error::from_raw_os_error(errno);
        match self.steps.get(number) {
            Some(step) => BackendError::failed(format!("entering the sandbox: {step}"), error),
            None => BackendError::failed("entering the sandbox", error),
        }
    }

    fn confine(&mut self, spec: &ExecutionSpec) -> Result<(), String> {
        let is_strict = self.level == SandboxLevel::Strict;
        let workdir = match &spec.workdir {
            Some(dir) => resolve(dir)?,
            None => {
                resolve(&std::env::current_dir().map_err(|error| format!("the working directory: {error}"))?)?
            }
        };
        let mut paths = BTreeMap::new();
        for path in &spec.sandbox.read {
            paths.insert(resolve(path)?, Allowed::Read);
        }
        for path in &spec.sandbox.write {
            paths.insert(resolve(path)?, Allowed::Write);
        }
        paths.insert(workdir.clone(), Allowed::WriteAndExecute);
        check(&paths)?;

        let network = spec.sandbox.network();
        let domain = self.domain(is_strict, network, &paths)?;
        if let Some(user) = &spec.run_as {
            // What is made for the command has the modes that it is made with.
            self.steps.extend([Step::Groups(user.groups.clone()), Step::Umask(0)]);
        }
        if is_strict {
            self.steps.extend([Step::Groups(Vec::new()), Step::JoinUserNamespace]);
        }
        let mut namespaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
        if network == NetworkAccess::None {
            namespaces |= libc::CLONE_NEWNET;
        }
        self.steps.push(Step::Unshare(namespaces));
        if network == NetworkAccess::None {
            self.steps.push(Step::Loopback);
        }
        self.rearrange(&paths, &spec.limits, is_strict)?;
        if let Some(domain) = domain {
            self.seal(domain, is_strict)?;
        }
        self.steps.extend(spec.run_as.as_ref().map(|user| Step::Umask(user.umask)));
        self.steps.extend([Step::DropCapabilities(self.user), Step::NoNewPrivileges]);
        if self.ruleset.is_some() {
            self.steps.push(Step::Landlock);
        }
        let programs =
            seccomp::programs(network).map_err(|error| format!("making the seccomp filter: {error}"))?;
        self.steps.extend(programs.iter().map(|program| Step::Seccomp(program)));
        self.workdir = Some(workdir);
        Ok(())
    }

    /// The Landlock domain, if this node has one for the level.
    fn domain(
        &mut self,
        is_strict: bool,
        network: NetworkAccess,
        paths: &BTreeMap<PathBuf, Allowed>,
    ) -> Result<Option<Domain>, String> {
        let abi = match landlock::abi() {
            Err(reason) if is_strict => return Err(reason),
            Err(reason) => {
                self.not_applied.push(format!("abstract sockets of the node can be reached: {reason}"));
                return Ok(None);
            }
            Ok(abi) => abi,
        };
        // A network of its own has abstract sockets of its own.
        if abi < 6 && network != NetworkAccess::None {
            self.not_applied.push(format!(
                "abstract sockets of the node can be reached: Landlock has ABI {abi}, which is older than 6"
            ));
        }
        if !is_strict && abi < 6 {
            return Ok(None);
        }
        let mut domain = Domain::new(abi, is_strict)?;
        if is_strict {
            for path in READABLE {
                domain = domain.allow(Path::new(path), Allowed::Read)?;
            }
            for (path, allowed) in paths {
                domain = domain.allow(path, *allowed)?;
            }
        }
        Ok(Some(domain))
    }

    /// What exists in the sandbox only gets its rules in there.
    fn seal(&mut self, domain: Domain, is_strict: bool) -> Result<(), String> {
        if is_strict {
            for (path, allowed) in [
                ("/tmp", Allowed::Write),
                ("/var/tmp", Allowed::Write),
                ("/run", Allowed::Write),
                ("/dev", Allowed::Write),
                ("/proc", Allowed::Read),
            ] {
                if Path::new(path).is_dir() {
                    self.steps.push(Step::Allow { path: text(path)?, accesses: domain.bits(allowed, true) });
                }
            }
        }
        self.ruleset = Some(domain.into_fd()?);
        Ok(())
    }

    /// The steps that make the tree what the command sees.
    fn rearrange(
        &mut self,
        paths: &BTreeMap<PathBuf, Allowed>,
        limits: &Limits,
        is_strict: bool,
    ) -> Result<(), String> {
        let private: Vec<(PathBuf, &str)> = PRIVATE
            .into_iter()
            // One that is a symbolic link leads to another of them, or to what is read-only.
            .filter(|(path, _)| Path::new(path).is_dir() && !Path::new(path).is_symlink())
            .map(|(path, mode)| (PathBuf::from(path), mode))
            .filter(|(path, _)| !paths.contains_key(path))
            .collect();
        let hiding = |path: &Path| {
            let mut places = private.iter().map(|(place, _)| place.as_path()).chain([Path::new("/dev")]);
            places.find(|place| path.starts_with(place)).map(Path::to_owned)
        };
        // What is only read and not hidden is there already.
        let moved: Vec<(&PathBuf, Allowed)> = paths
            .iter()
            .map(|(path, allowed)| (path, *allowed))
            .filter(|(path, allowed)| *allowed != Allowed::Read || hiding(path).is_some())
            .collect();
        let devices = &DEVICES[..if is_strict { DEVICES_OF_STRICT } else { DEVICES.len() }];
        let devices: Vec<&str> = devices.iter().copied().filter(|path| Path::new(path).exists()).collect();
        if moved.len() + devices.len() > MAX_SLOTS {
            return Err(format!("{} paths are more than a sandbox takes", paths.len()));
        }

        self.steps.push(Step::Detach);
        // A path that leads elsewhere by now leads to what is the user's to see, too.
        self.steps.extend(self.user.map(Step::FilesOf));
        for (slot, (path, allowed)) in moved.iter().enumerate() {
            let mut attributes = NO_SETUID;
            if *allowed == Allowed::Read {
                attributes |= READ_ONLY;
            }
            if !path.starts_with("/dev") {
                attributes |= NO_DEVICES;
            }
            self.steps.push(Step::Take { path: text(path)?, slot, attributes });
        }
        self.steps.extend(self.user.map(|_| Step::FilesOf(Ids { uid: 0, gid: 0 })));
        for (number, path) in devices.iter().enumerate() {
            let slot = moved.len() + number;
            self.steps.push(Step::Take { path: text(path)?, slot, attributes: 0 });
        }
        self.new_proc()?;
        self.steps.push(Step::SetAll(READ_ONLY | NO_SETUID | NO_DEVICES));
        for (slot, (path, _)) in moved.iter().enumerate().filter(|(_, (path, _))| hiding(path).is_none()) {
            self.steps.push(Step::Put { slot, at: text(path)? });
        }
        let bound = limits.disk_bytes.or(limits.memory_bytes);
        let size = bound.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
        let tmpfs = |at: &Path, data: String, flags: libc::c_ulong| -> Result<Step, String> {
            Ok(Step::Mount {
                kind: c"tmpfs",
                at: text(at)?,
                flags: flags | libc::MS_NOSUID,
                data: text(&data)?,
            })
        };
        for (place, mode) in &private {
            self.steps.push(tmpfs(place, format!("mode={mode}{size}"), libc::MS_NODEV)?);
        }
        self.steps.push(tmpfs(Path::new("/dev"), "mode=755,size=64k".into(), libc::MS_NOEXEC)?);
        for (number, path) in devices.iter().enumerate() {
            let at = text(path)?;
            self.steps.push(Step::MakeFile(at.clone()));
            self.steps.push(Step::Put { slot: moved.len() + number, at });
        }
        for (target, at) in DEVICE_LINKS {
            self.steps.push(Step::Link { target: target.to_owned(), at: at.to_owned() });
        }
        self.steps.push(Step::MakeDir(c"/dev/shm".to_owned(), 0o1777));
        self.steps.push(tmpfs(Path::new("/dev/shm"), format!("mode=1777{size}"), libc::MS_NODEV)?);
        if !is_strict {
            self.new_terminals()?;
        }
        for (slot, (path, _)) in moved.iter().enumerate() {
            let Some(place) = hiding(path) else { continue };
            self.make_place(path, &place)?;
            self.steps.push(Step::Put { slot, at: text(path)? });
        }
        Ok(())
    }

    fn new_proc(&mut self) -> Result<(), String> {
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
        // Without the init, which is not the command's business.
        let data = c"hidepid=ptraceable".to_owned();
        self.steps.push(Step::Mount { kind: c"proc", at: c"/proc".to_owned(), flags, data });
        for path in HIDDEN_FILES.into_iter().filter(|path| Path::new(path).exists()) {
            self.steps.push(Step::Cover { at: text(path)? });
        }
        for path in HIDDEN_DIRS.into_iter().filter(|path| Path::new(path).is_dir()) {
            let data = c"mode=555,size=4k".to_owned();
            self.steps.push(Step::Mount { kind: c"tmpfs", at: text(path)?, flags, data });
        }
        Ok(())
    }

    fn new_terminals(&mut self) -> Result<(), String> {
        self.steps.push(Step::MakeDir(c"/dev/pts".to_owned(), 0o755));
        self.steps.push(Step::Mount {
            kind: c"devpts",
            at: c"/dev/pts".to_owned(),
            flags: libc::MS_NOSUID | libc::MS_NOEXEC,
            data: c"newinstance,ptmxmode=0666,mode=620".to_owned(),
        });
        self.steps.push(Step::Link { target: c"pts/ptmx".to_owned(), at: c"/dev/ptmx".to_owned() });
        Ok(())
    }

    /// Makes the directories of a path in the private place that hides it, and what it is put on.
    fn make_place(&mut self, path: &Path, place: &Path) -> Result<(), String> {
        let mut ancestors: Vec<&Path> =
            path.ancestors().skip(1).take_while(|ancestor| *ancestor != place).collect();
        ancestors.reverse();
        for ancestor in ancestors {
            self.steps.push(Step::MakeDir(text(ancestor)?, 0o755));
        }
        self.steps.push(match path.is_dir() {
            true => Step::MakeDir(text(path)?, 0o755),
            false => Step::MakeFile(text(path)?),
        });
        Ok(())
    }
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    reason = "of another type in each C library, never negative"
)]
const OPEN_FILES: libc::c_uint = libc::RLIMIT_NOFILE as libc::c_uint;
#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    reason = "of another type in each C library, never negative"
)]
const FILE_SIZE: libc::c_uint = libc::RLIMIT_FSIZE as libc::c_uint;

/// Limits that the kernel holds every process to by itself: another user's own first, which none of ours exceeds.
fn resource_limits(limits: &Limits, user: Option<&RunAs>) -> Vec<Step> {
    let of_user = user.map(|user| user.resources.as_slice()).unwrap_or_default();
    let mut steps: Vec<Step> = of_user
        .iter()
        .map(|&(resource, soft, hard)| Step::Limit { resource, soft, hard, name: "a resource limit" })
        .collect();
    let limit = |resource, value: Option<u64>, name| {
        let most = of_user.iter().find(|of| of.0 == resource).map_or(u64::MAX, |of| of.2);
        let value = value?.min(most);
        Some(Step::Limit { resource, soft: value, hard: value, name })
    };
    steps.extend(limit(OPEN_FILES, limits.open_files, "the limit of open files"));
    // One file alone cannot pass what all of them may have.
    steps.extend(limit(FILE_SIZE, limits.disk_bytes, "the limit of a file's size"));
    steps
}

/// Without symbolic links: what is mounted is mounted where the path leads.
fn resolve(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
}

/// What cannot be given to a sandbox, because it would be none.
fn check(paths: &BTreeMap<PathBuf, Allowed>) -> Result<(), String> {
    for (path, allowed) in paths {
        let is_written = *allowed != Allowed::Read;
        if is_written && (path == Path::new("/") || path == Path::new("/dev")) {
            return Err(format!(
                "{} cannot be writable: choose another directory (the working directory is, by default the one that \
                 this was called in)",
                path.display()
            ));
        }
        if is_written && (path.starts_with("/proc") || path.starts_with("/sys")) {
            return Err(format!("{} cannot be writable in a sandbox", path.display()));
        }
    }
    Ok(())
}

fn text(path: impl AsRef<Path>) -> Result<CString, String> {
    CString::new(path.as_ref().as_os_str().as_bytes()).map_err(|error| error.to_string())
}
