//! Loading, attaching, and watching one more execution.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use aya::maps::{Map, MapData};
use aya::programs::{BtfTracePoint, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, Endianness};
use glasshouse_bpf::abi;
use nix::sys::eventfd::EventFd;
use tokio::sync::oneshot;

use crate::clock;
use crate::decode::Decoder;
use crate::direct_reads;
use crate::drain::{Command, Drain, Tally, Watched};
use crate::error::ProbeError;
use crate::kernel_types;
use crate::maps::{Maps, Slot, take};
use crate::options::LoadOptions;
use crate::ring::Ring;
use crate::watch::{SealReport, WatchRequest};

/// What a program watches, for the attribution of runs that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watches {
    Processes = 0,
    Syscalls = 1,
    Cgroups = 2,
    Signals = 3,
}

/// How often programs of each kind of [`Watches`] could not run since they were loaded; `None` when that of any could not
/// be read.
pub(crate) type MissedRuns = Option<[u64; 4]>;

/// Program, tracepoint, what it watches.
const PROGRAMS: [(&str, &str, Watches); 8] = [
    ("glasshouse_cgroup_mkdir", "cgroup_mkdir", Watches::Cgroups),
    ("glasshouse_cgroup_rmdir", "cgroup_rmdir", Watches::Cgroups),
    ("glasshouse_cgroup_attach", "cgroup_attach_task", Watches::Cgroups),
    ("glasshouse_fork", "sched_process_fork", Watches::Processes),
    ("glasshouse_exec", "sched_process_exec", Watches::Processes),
    ("glasshouse_exit", "sched_process_exit", Watches::Processes),
    ("glasshouse_signal", "signal_generate", Watches::Signals),
    ("glasshouse_sys_exit", "sys_exit", Watches::Syscalls),
];

/// The probe of a node: programs attached, one drain thread. Serves every execution until it is dropped.
pub struct HostProbe {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    reads_directly: bool,
}

struct Inner {
    maps: Arc<Mutex<Maps>>,
    missed: Arc<dyn Fn() -> MissedRuns + Send + Sync>,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    // Dropping this detaches every program.
    _ebpf: Mutex<Ebpf>,
}

impl std::fmt::Debug for HostProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostProbe").finish_non_exhaustive()
    }
}

impl Inner {
    fn maps(&self) -> MutexGuard<'_, Maps> {
        // The maps hold no invariant that a panic elsewhere could have broken.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) -> Result<(), ProbeError> {
        self.commands.send(command).map_err(|_| ProbeError::Stopped)?;
        // Fails only when the counter is about to overflow, and then the thread is awake anyway.
        let _ = self.wake.write(1);
        Ok(())
    }
}

impl HostProbe {
    /// Loads and attaches the programs and starts the drain thread. Well under 100 ms in a release build.
    ///
    /// Needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) in the initial user namespace, and Linux 5.17 with BTF.
    pub fn load(options: &LoadOptions) -> Result<Self, ProbeError> {
        options.check()?;
        check_kernel()?;
        let began = Instant::now();
        raise_memlock();
        // aya's loader parses all of the kernel's BTF when it is made, wanted or not, and attaching needs it as well: the
        // two parses run side by side. Relocation gets an extract, in which its searches are short.
        let (mut loader, types) = std::thread::scope(|scope| {
            let loader = scope.spawn(|| {
                let mut loader = EbpfLoader::new();
                loader.btf(None);
                loader
            });
            let types = KernelTypes::read();
            (loader.join().unwrap_or_else(|_| EbpfLoader::new()), types)
        });
        let types = types?;
        let parsed = began.elapsed();
        loader
            .override_global(abi::ABI_SYMBOL, &abi::ABI_VERSION, true)
            .override_global("gh_wakeup_bytes", &options.wakeup_bytes, true)
            .map_max_entries("process_ring", options.process_ring_bytes)
            .map_max_entries("activity_ring", options.activity_ring_bytes)
            .map_max_entries("executions", options.max_executions)
            .map_max_entries("counters", options.max_executions)
            .map_max_entries("syscalls", options.max_executions)
            .map_max_entries("watched", options.max_cgroups)
            .map_max_entries("members", options.max_processes)
            .map_max_entries("stopped", options.max_processes)
            // The first is nobody's.
            .map_max_entries("tasks", options.max_tasks + 1)
            .map_max_entries("free_tasks", options.max_tasks)
            .map_max_entries("tids", tid_chunks());
        let direct = load_direct(&mut loader, &types, options);
        let reads_directly = direct.is_some();
        let ((mut ebpf, fds), object) = match direct {
            Some(loaded) => loaded,
            None => {
                let (object, bytes) = object_bytes(options, glasshouse_bpf::PROBE)?;
                (load_object(&mut loader, &types, &object, &bytes)?, object)
            }
        };
        let verified = began.elapsed();
        for (name, hook, _) in PROGRAMS {
            let program = program(&mut ebpf, name, &object)?;
            program.attach().map_err(|error| program_error(error, name, hook))?;
        }
        let attached = began.elapsed();

        let maps = Arc::new(Mutex::new(Maps::new(&mut ebpf, options.max_executions)?));
        let process = ring_map(&mut ebpf, "process_ring")?;
        let activity = ring_map(&mut ebpf, "activity_ring")?;
        let ring = |map: &MapData, bytes| {
            Ring::new(map.fd().as_fd(), bytes).map_err(|source| ProbeError::Ring { step: "mmap", source })
        };
        let (commands, receiver) = channel();
        let missed: Arc<dyn Fn() -> MissedRuns + Send + Sync> = Arc::new(move || missed_runs(&fds));
        let drain = Drain::new(
            (ring(&process, options.process_ring_bytes)?, process.fd().as_fd()),
            (ring(&activity, options.activity_ring_bytes)?, activity.fd().as_fd()),
            Arc::clone(&maps),
            Arc::clone(&missed),
            receiver,
            options.drain_interval,
        )?;
        let wake = drain.waker();
        let thread = std::thread::Builder::new()
            .name("glasshouse-drain".to_owned())
            .spawn(move || {
                // The map descriptors must stay open for as long as epoll watches them.
                let _rings = (process, activity);
                clock::hurry();
                drain.run();
            })
            .map_err(|source| ProbeError::Ring { step: "starting the drain thread", source })?;
        tracing::debug!(
            btf_us = parsed.as_micros() as u64,
            object,
            load_us = (verified - parsed).as_micros() as u64,
            attach_us = (attached - verified).as_micros() as u64,
            total_us = began.elapsed().as_micros() as u64,
            "host probe loaded"
        );
        // Freeing 150,000 parsed types takes milliseconds that nobody should wait for.
        let _ = std::thread::Builder::new().spawn(move || {
            drop(types);
            give_memory_back();
        });
        let inner = Arc::new(Inner { maps, missed, commands, wake, _ebpf: Mutex::new(ebpf) });
        Ok(Self { inner, thread: Some(thread), reads_directly })
    }

    /// Watches one more execution, armed until its root's exec. A few map inserts.
    pub fn watch(&self, request: WatchRequest) -> Result<Watch, ProbeError> {
        let WatchRequest { cgroup_id, root_tgid, writer, redactor, sink, lossless } = request;
        if lossless && !clock::is_initial_pid_namespace() {
            return Err(ProbeError::LosslessElsewhere);
        }
        let slot = self.inner.maps().reserve(cgroup_id)?;
        let watched = Watched {
            slot,
            cgroup_id,
            writer,
            decoder: Decoder::default(),
            redactor,
            sink,
            lossless,
            missed_before: (self.inner.missed)(),
            tally: Tally::default(),
        };
        // The drain thread is told first, so that it knows the slot when its first record comes.
        if let Err(error) = self.inner.send(Command::Watch(Box::new(watched))) {
            self.inner.maps().give_back(slot);
            return Err(error);
        }
        let armed = self.inner.maps().arm(slot, cgroup_id, root_tgid, lossless);
        // Dropped on an error, it takes back whatever was done.
        let watch = Watch { inner: Arc::clone(&self.inner), slot, sealed: false };
        armed.map(|()| watch)
    }

    /// Whether kernel fields are read by one instruction each (Linux 6.2) or by helper calls, which cost several times as much.
    pub fn reads_directly(&self) -> bool {
        self.reads_directly
    }

    /// The tracepoints that are attached.
    pub fn hooks(&self) -> Vec<&'static str> {
        PROGRAMS.iter().map(|(_, hook, _)| *hook).collect()
    }
}

impl Drop for HostProbe {
    fn drop(&mut self) {
        // Watches keep the programs alive, not the thread: a seal after this says that the probe has stopped.
        let _ = self.inner.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One execution being watched. Dropped without [`Watch::seal`], it stops watching and leaves the chain unsealed.
pub struct Watch {
    inner: Arc<Inner>,
    slot: Slot,
    sealed: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Watch {
    /// Stops the recording, drains the rings up to where their producers stand now, reads the counters and sends the
    /// last frame. To be called when the cgroup is empty (`populated 0`): what happens in it later is not recorded.
    ///
    /// Blocks for as long as the rings take to drain (bounded by their size) and for the sink.
    pub fn seal(self) -> Result<SealReport, ProbeError> {
        self.begin_seal()?.blocking_recv().map_err(|_| ProbeError::Stopped)?
    }

    /// [`Watch::seal`] for those who must not block.
    pub async fn sealed(self) -> Result<SealReport, ProbeError> {
        self.begin_seal()?.await.map_err(|_| ProbeError::Stopped)?
    }

    fn begin_seal(mut self) -> Result<oneshot::Receiver<Result<SealReport, ProbeError>>, ProbeError> {
        let (reply, answer) = oneshot::channel();
        self.inner.send(Command::Seal(self.slot, reply))?;
        self.sealed = true;
        Ok(answer)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.sealed {
            let _ = self.inner.send(Command::Drop(self.slot));
        }
    }
}

/// The kernel's types, whole and as an extract.
struct KernelTypes {
    all: Btf,
    used: Option<Btf>,
    /// What direct reads take.
    numbers: Option<kernel_types::Numbers>,
}

impl KernelTypes {
    fn read() -> Result<Self, ProbeError> {
        let no_btf = |error: &dyn std::error::Error| ProbeError::NoBtf { reason: with_sources(error) };
        let raw = std::fs::read("/sys/kernel/btf/vmlinux").map_err(|error| no_btf(&error))?;
        let used = kernel_types::extract(&raw, &kernel_types::USED)
            .and_then(|extract| Btf::parse(&extract, Endianness::default()).ok());
        let numbers = kernel_types::numbers(&raw, &direct_reads::TYPES, direct_reads::CAST);
        let all = Btf::parse(&raw, Endianness::default()).map_err(|error| no_btf(&error))?;
        Ok(Self { all, used, numbers })
    }
}

type Loaded = (Ebpf, Vec<(OwnedFd, Watches)>);

/// The object with direct reads, where the kernel takes it.
fn load_direct<'a>(
    loader: &mut EbpfLoader<'a>,
    types: &'a KernelTypes,
    options: &LoadOptions,
) -> Option<(Loaded, String)> {
    let numbers = types.numbers.as_ref().filter(|_| options.direct_reads)?;
    let (object, bytes) = object_bytes(options, glasshouse_bpf::PROBE_DIRECT).ok()?;
    let finished = direct_reads::finish(&bytes, numbers)?;
    match load_object(loader, types, &object, &finished) {
        Ok(loaded) => Some((loaded, object)),
        Err(error) => {
            tracing::debug!(%error, "direct reads are refused: using helper calls");
            None
        }
    }
}

/// Relocates an object, makes its maps, and has its programs verified.
fn load_object<'a>(
    loader: &mut EbpfLoader<'a>,
    types: &'a KernelTypes,
    object: &str,
    bytes: &[u8],
) -> Result<Loaded, ProbeError> {
    let by_extract = types.used.as_ref().and_then(|used| loader.btf(Some(used)).load(bytes).ok());
    let mut ebpf = match by_extract {
        Some(ebpf) => ebpf,
        None => loader.btf(Some(&types.all)).load(bytes).map_err(|error| load_error(error, object))?,
    };
    let fds = load_programs(&mut ebpf, &types.all, object)?;
    Ok((ebpf, fds))
}

/// The object of that name: from the directory that overrides, or embedded.
pub(crate) fn object_bytes(
    options: &LoadOptions,
    name: &str,
) -> Result<(String, Cow<'static, [u8]>), ProbeError> {
    match &options.object_dir {
        Some(dir) => {
            let path = dir.join(name);
            let bytes = std::fs::read(&path)
                .map_err(|source| ProbeError::ObjectMissing { path: path.clone(), source })?;
            Ok((path.display().to_string(), Cow::Owned(bytes)))
        }
        None => glasshouse_bpf::object(name)
            .map(|object| (name.to_owned(), Cow::Borrowed(object.bytes)))
            .ok_or_else(|| ProbeError::ObjectBroken {
                object: name.to_owned(),
                reason: "this build embeds no BPF objects".to_owned(),
            }),
    }
}

/// bpf_loop() is of 5.17 (e6f2dd0f8067).
const OLDEST_KERNEL: (u32, u32) = (5, 17);

/// Older kernels refuse the programs with words about something else.
fn check_kernel() -> Result<(), ProbeError> {
    let Ok(name) = nix::sys::utsname::uname() else { return Ok(()) };
    let release = name.release().to_string_lossy();
    match version(&release) {
        Some(version) if version < OLDEST_KERNEL => {
            Err(ProbeError::KernelTooOld { release: release.into_owned() })
        }
        // One that does not tell is tried.
        _ => Ok(()),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `TIDS_PER_CHUNK` of `bpf/probe/common.h`.
const TIDS_PER_CHUNK: u32 = 4096;
/// `PID_MAX_LIMIT` of include/linux/threads.h.
const MAX_TIDS: u32 = 1 << 22;

/// Enough for every thread id there can be. Should the limit be raised later, threads above it count as lost.
fn tid_chunks() -> u32 {
    let limit =
        std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    limit.unwrap_or(MAX_TIDS).min(MAX_TIDS) / TIDS_PER_CHUNK + 1
}

/// Before Linux 5.11 BPF memory counted against RLIMIT_MEMLOCK. That it can't be raised is no error: newer kernels do
/// not look at it, and older ones say so when a map is made.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK could not be raised");
    }
}

/// Loads every program. The one of system calls takes as long to verify as the rest together: each half has a thread.
fn load_programs(ebpf: &mut Ebpf, btf: &Btf, object: &str) -> Result<Vec<(OwnedFd, Watches)>, ProbeError> {
    let mut found: HashMap<String, &mut Program> =
        ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
    let mut halves = [Vec::new(), Vec::new()];
    for (name, hook, watches) in PROGRAMS {
        let Some(Program::BtfTracePoint(program)) = found.remove(name) else {
            return Err(no_program(name, object));
        };
        halves[usize::from(watches == Watches::Syscalls)].push((name, hook, watches, program));
    }
    let [mut most, mut syscalls] = halves;
    let load = |half: &mut Vec<(&'static str, &'static str, Watches, &mut BtfTracePoint)>| {
        let mut fds = Vec::with_capacity(half.len());
        for (name, hook, watches, program) in half {
            program.load(hook, btf).map_err(|error| program_error(error, name, hook))?;
            let fd = program.fd().and_then(|fd| Ok(fd.as_fd().try_clone_to_owned()?));
            fds.push((fd.map_err(|error| program_error(error, name, hook))?, *watches));
        }
        Ok::<_, ProbeError>(fds)
    };
    std::thread::scope(|scope| {
        let rest = scope.spawn(|| load(&mut most));
        let mut fds = load(&mut syscalls)?;
        fds.extend(rest.join().map_err(|_| ProbeError::Stopped)??);
        Ok(fds)
    })
}

fn no_program(name: &str, object: &str) -> ProbeError {
    ProbeError::ObjectBroken { object: object.to_owned(), reason: format!("it has no tp_btf program {name}") }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str, object: &str) -> Result<&'a mut BtfTracePoint, ProbeError> {
    match ebpf.program_mut(name) {
        Some(Program::BtfTracePoint(program)) => Ok(program),
        _ => Err(no_program(name, object)),
    }
}

fn ring_map(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, ProbeError> {
    match take(ebpf, name)? {
        Map::RingBuf(map) => Ok(map),
        _ => Err(ProbeError::ObjectBroken {
            object: glasshouse_bpf::PROBE.to_owned(),
            reason: format!("map {name} is not a ring buffer"),
        }),
    }
}

/// Gives the system what was freed. Whoever forks with it pays for every page: of a node agent 7 MB, 0.4 ms per command.
#[allow(unsafe_code, reason = "the C library's, without pointers")]
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's locks and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `recursion_misses` of every program (since Linux 5.12).
fn missed_runs(fds: &[(OwnedFd, Watches)]) -> MissedRuns {
    let mut missed = [0; 4];
    for (fd, watches) in fds {
        missed[*watches as usize] += recursion_misses(fd.as_fd())?;
    }
    Some(missed)
}

/// Asked of bpf(2): it takes a microsecond, where the same number in /proc/self/fdinfo takes 25, and all of them are wanted
/// twice per execution.
#[allow(unsafe_code, reason = "the library has no API for this field")]
fn recursion_misses(program: BorrowedFd<'_>) -> Option<u64> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    /// Of `recursion_misses` in `struct bpf_prog_info` (include/uapi/linux/bpf.h), in words of eight bytes.
    const AT: usize = 208 / 8;
    #[repr(C)]
    struct Attributes {
        fd: RawFd,
        length: u32,
        info: u64,
    }
    // Zeroes ask for none of the arrays.
    let mut info = [0_u64; AT + 1];
    let length = size_of_val(&info) as u32;
    let mut attributes = Attributes { fd: program.as_raw_fd(), length, info: info.as_mut_ptr() as u64 };
    // SAFETY: the kernel writes at most `length` bytes to `info`, and how many to the attributes; both outlive the call.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw mut attributes,
            size_of::<Attributes>() as libc::c_uint,
        )
    };
    (asked == 0 && attributes.length == length).then(|| info[AT])
}

/// An error with everything that caused it, on one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The I/O error at the bottom of it, if there is one.
fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause = Some(error);
    while let Some(of) = cause {
        if let Some(io) = of.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = of.source();
    }
    None
}

fn is_refusal(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied
}

fn load_error(error: EbpfError, object: &str) -> ProbeError {
    match io_cause(&error) {
        Some(io) if is_refusal(io) => not_permitted("load BPF maps", io),
        Some(io) if matches!(error, EbpfError::MapError(_)) => ProbeError::Map {
            map: "(one of the object's)",
            action: "creating it",
            reason: format!(
                "{}; smaller rings or fewer max_executions may help when memory is short ({io})",
                with_sources(&error)
            ),
        },
        _ => ProbeError::ObjectBroken { object: object.to_owned(), reason: with_sources(&error) },
    }
}

fn program_error(error: ProgramError, program: &'static str, hook: &'static str) -> ProbeError {
    match error {
        ProgramError::Btf(error) => ProbeError::HookMissing { program, hook, reason: with_sources(&error) },
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            // The kernel refuses for want of a privilege before it verifies anything.
            if is_refusal(&io_error) && log.trim().is_empty() {
                return not_permitted("load BPF programs", &io_error);
            }
            let lines: Vec<&str> = log.lines().collect();
            let log_tail = lines[lines.len().saturating_sub(20)..].join("\n");
            ProbeError::ProgramRejected { program, log_tail, source: io_error }
        }
        error => match io_cause(&error) {
            Some(io) if is_refusal(io) => not_permitted("attach BPF programs", io),
            _ => ProbeError::HookMissing { program, hook, reason: with_sources(&error) },
        },
    }
}

fn not_permitted(action: &'static str, source: &std::io::Error) -> ProbeError {
    ProbeError::NotPermitted {
        action,
        missing: missing_privilege(),
        source: source.raw_os_error().map_or_else(
            || std::io::Error::new(source.kind(), source.to_string()),
            std::io::Error::from_raw_os_error,
        ),
    }
}

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The effective capabilities of this process, as bits.
pub(crate) fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
}

fn missing_privilege() -> String {
    let has = |capability: u32| effective_capabilities() >> capability & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return "it has CAP_SYS_ADMIN, so a container's seccomp profile, a user namespace or a security module refuses \
                bpf(2): run it outside, or privileged"
            .to_owned();
    }
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| name)
        .collect();
    match missing.as_slice() {
        [] => "CAP_SYS_ADMIN is missing too: run as root (sudo), or grant it to the service".to_owned(),
        missing => format!(
            "{} missing: run as root (sudo), or grant the service these capabilities",
            missing.join(" and ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extract_holds_every_type_that_is_relocated() {
        let Ok(KernelTypes { used: Some(used), .. }) = KernelTypes::read() else {
            eprintln!("skipped: this kernel has no BTF at /sys/kernel/btf/vmlinux");
            return;
        };
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: making maps needs root (CAP_BPF)");
            return;
        }
        let object = glasshouse_bpf::object(glasshouse_bpf::PROBE).unwrap();
        // The whole would do as well, only slower: nothing else tells that a type is missing.
        EbpfLoader::new().btf(Some(&used)).load(object.bytes).unwrap();
    }

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("5.10.0-28-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("7.3~rc7-amd64"), Some((7, 3)));
        assert_eq!(version("7.3-rc7"), Some((7, 3)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn misses_of_what_is_no_program_are_unknown() {
        assert_eq!(recursion_misses(std::fs::File::open("/dev/null").unwrap().as_fd()), None);
    }
}
