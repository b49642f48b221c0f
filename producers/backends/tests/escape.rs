//! The escape suite: what a hostile command tries, at each sandbox level.
//!
//! Every attempt is real code in a program that says `out` when it got through, and every attempt is made at the level
//! `none` as well, where it has to get through: what a node stops anyhow proves nothing and is reported as skipped.
//! docs/sandbox.md promises what is expected here.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use glasshouse_backends::ProcessBackend;
use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::{Engine, EngineReport, ExecutionSpec};
use glasshouse_schema::lifecycle::{Phase, PhaseName};
use glasshouse_schema::{Limit, SandboxLevel};

/// What both sides know of the C library's numbers.
const PRELUDE: &str = r#"
import ctypes, errno, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result, ctypes.get_errno()
def out(): print("out"); sys.stdout.flush()
def stopped(why): print("stopped", why); sys.stdout.flush()
def attempt(what):
    try: what()
    except (OSError, subprocess.SubprocessError) as error: return stopped(error)
    out()
"#;

struct Place {
    dir: tempfile::TempDir,
    workdir: std::path::PathBuf,
}

impl Place {
    /// A working directory, and a secret beside it that is not the sandbox's. Not in /tmp, which is hidden anyhow.
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("glasshouse-escape-").tempdir_in("/root").unwrap();
        let workdir = dir.path().join("work");
        std::fs::create_dir(&workdir).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        Self { dir, workdir }
    }

    fn spec(&self, level: SandboxLevel, argv: &[&str]) -> ExecutionSpec {
        let mut spec = spec(argv.iter().copied());
        spec.workdir = Some(self.workdir.clone());
        spec.sandbox.level = level;
        spec
    }

    fn python(&self, level: SandboxLevel, code: &str) -> ExecutionSpec {
        let secret = self.dir.path().join("secret");
        let code = format!("{PRELUDE}\nsecret = {:?}\nhost = {}\n{code}", secret, std::process::id());
        self.spec(level, &["/usr/bin/python3", "-c", &code])
    }
}

fn run(spec: ExecutionSpec) -> (EngineReport, Arc<RecordingSink>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let sink = Arc::new(RecordingSink::new());
    let engine = Engine::new(Arc::new(ProcessBackend::new()), Arc::clone(&sink) as _);
    let report = runtime.block_on(engine.run(spec, None));
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    assert_eq!(report.failed, None, "Glasshouse itself failed");
    (report, sink)
}

fn cannot() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("a sandbox needs root");
    }
    (!Path::new("/usr/bin/python3").exists()).then_some("there is no /usr/bin/python3")
}

/// Makes an attempt at every level: it gets through at `none`, and at the others as it is said.
fn attempt(name: &str, code: &str, standard_lets_through: bool) {
    if let Some(reason) = cannot() {
        return report_skipped(name, reason);
    }
    for level in SandboxLevel::ALL {
        let place = Place::new();
        let (report, _) = run(place.python(level, code));
        let printed = String::from_utf8_lossy(&report.output.stdout).into_owned();
        let said = format!("{name} at {level}: {printed} {}", String::from_utf8_lossy(&report.output.stderr));
        let got_through = printed.lines().any(|line| line == "out");
        let was_stopped = printed.contains("stopped") || report.outcome.signal.is_some();
        assert!(got_through != was_stopped, "it neither got through nor was stopped: {said}");
        match level {
            SandboxLevel::None if !got_through => {
                return report_skipped(name, &format!("nothing to stop here: {printed}"));
            }
            SandboxLevel::None => {}
            SandboxLevel::Standard => assert_eq!(got_through, standard_lets_through, "{said}"),
            SandboxLevel::Strict => assert!(!got_through, "{said}"),
        }
    }
}

macro_rules! attempts {
    ($($name:ident, $through:literal, $code:expr;)*) => {
        $(#[test] fn $name() { attempt(stringify!($name), $code, $through); })*
    };
}

attempts! {
    writing_outside_the_workdir, false, "attempt(lambda: open(secret + '.new', 'w').close())";
    writing_to_the_system, false, "attempt(lambda: (open('/usr/glasshouse', 'w').close(), os.unlink('/usr/glasshouse')))";
    // The system is readable at `standard`, as the files' permissions allow.
    reading_a_secret, true, "attempt(lambda: open(secret).read())";
    reading_what_others_left_in_tmp, false, r#"
import glob
names = os.listdir('/tmp')
out() if any(name != 'work' for name in names) else stopped(names)
"#;
    seeing_processes_of_the_node, false, r#"
out() if os.path.exists(f'/proc/{host}/status') and b'escape' in open(f'/proc/{host}/comm', 'rb').read() else stopped('not there')
"#;
    seeing_the_init, false, r#"
out() if os.path.exists('/proc/1/cmdline') else stopped('not there')
"#;
    signalling_processes_of_the_node, false, r#"
attempt(lambda: os.kill(host, 0))
"#;
    mounting, false, r#"
os.mkdir('m')
result, error = call(165, b'tmpfs', b'm', b'tmpfs', 0, None)
if result == 0: libc.umount(b'm')
out() if result == 0 else stopped(error)
"#;
    a_user_namespace_for_more_rights, false, r#"
out() if libc.unshare(0x10000000) == 0 else stopped('unshare')
"#;
    a_namespace_by_clone3, false, r#"
import struct
arguments = struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0)
result, error = call(435, ctypes.c_char_p(arguments), len(arguments))
if result == 0: os._exit(0)
out() if result > 0 else stopped(error)
"#;
    tracing_a_process_of_the_node, false, r#"
result, error = call(101, 0x4206, host, 0, 0)
if result == 0: call(101, 17, host, 0, 0)
out() if result == 0 else stopped(error)
"#;
    loading_bpf, false, r#"
import struct
# BPF_MAP_CREATE of an array.
attributes = struct.pack('5I', 2, 4, 4, 1, 0) + bytes(100)
result, error = call(321, 0, ctypes.c_char_p(attributes), len(attributes))
out() if result >= 0 else stopped(error)
"#;
    raising_resource_limits, false, r#"
import resource
def raise_it():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard * 2))
try: raise_it()
except (ValueError, OSError) as error: stopped(error)
else: out()
"#;
    io_uring, false, r#"
parameters = ctypes.create_string_buffer(248)
result, error = call(425, 4, parameters)
out() if result >= 0 else stopped(error)
"#;
    // The node's network is there at `standard`, if it is not taken away.
    the_nodes_network, true, r#"
names = [name for _, name in socket.if_nameindex()]
out() if names != ['lo'] else stopped(names)
"#;
    the_nodes_disks, false, r#"
import glob
disks = [path for path in glob.glob('/dev/[svn]*') if os.path.exists(path) and (os.stat(path).st_mode & 0o170000) == 0o060000]
attempt(lambda: os.close(os.open((disks or ['/dev/none'])[0], os.O_RDWR)))
"#;
    core_pattern, false, "attempt(lambda: os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)))";
    another_cgroup, false, r#"
paths = [p for p in ('/sys/fs/cgroup/unified/cgroup.procs', '/sys/fs/cgroup/cgroup.procs') if os.path.exists(p)]
attempt(lambda: os.close(os.open((paths or ['/none'])[0], os.O_WRONLY)))
"#;
    opening_by_handle, false, r#"
handle = ctypes.create_string_buffer(bytes([128, 0, 0, 0]) + bytes(140))
mount_id = ctypes.c_int()
result, error = call(303, -100, b'.', handle, ctypes.byref(mount_id), 0)
root = os.open('.', os.O_RDONLY)
result, error = call(304, root, handle, os.O_RDONLY)
out() if result >= 0 else stopped(error)
"#;
}

/// By the number of another architecture, which the filter does not know.
#[test]
fn system_calls_of_32_bits() {
    let name = "system_calls_of_32_bits";
    if let Some(reason) = cannot() {
        return report_skipped(name, reason);
    }
    let dir = tempfile::tempdir_in("/root").unwrap();
    let (source, program) = (dir.path().join("compat.c"), dir.path().join("compat"));
    // getpid of i386.
    let code = "#include <unistd.h>\nint main(void) { int r = 20; __asm__ volatile(\"int $0x80\" : \"+a\"(r) :: \"memory\"); \
                write(1, r > 0 ? \"out\\n\" : \"stopped\\n\", r > 0 ? 4 : 8); return 0; }";
    std::fs::write(&source, code).unwrap();
    let compiled = std::process::Command::new("cc").args(["-o"]).arg(&program).arg(&source).status();
    if !cfg!(target_arch = "x86_64") || !compiled.is_ok_and(|status| status.success()) {
        return report_skipped(name, "no C compiler for x86-64");
    }
    for level in SandboxLevel::ALL {
        let place = Place::new();
        let mut spec = place.spec(level, &[program.to_str().unwrap()]);
        if level == SandboxLevel::Strict {
            spec.sandbox.read = vec![program.clone()];
        }
        let (report, _) = run(spec);
        match level {
            SandboxLevel::None if report.output.stdout != b"out\n" => {
                return report_skipped(name, "this kernel has none");
            }
            SandboxLevel::None => {}
            _ => assert_eq!(report.outcome.signal.as_deref(), Some("SIGSYS"), "{level}"),
        }
    }
}

#[test]
fn abstract_sockets_of_the_node() {
    let name = "abstract_sockets_of_the_node";
    use std::os::linux::net::SocketAddrExt;
    let address = format!("glasshouse-escape-{}", std::process::id());
    let of_node = std::os::unix::net::SocketAddr::from_abstract_name(&address).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&of_node).unwrap();
    let code = format!("s = socket.socket(socket.AF_UNIX); attempt(lambda: s.connect('\\0{address}'))");
    let has_scopes = {
        let Some(place) = cannot().is_none().then(Place::new) else { return };
        let (_, sink) = run(place.python(SandboxLevel::Standard, "pass"));
        match sink.phase(PhaseName::Prepared) {
            Some(Phase::Prepared(prepared)) => prepared.environment.sandbox.not_applied.is_empty(),
            _ => panic!("nothing was prepared"),
        }
    };
    attempt(name, &code, !has_scopes);
}

/// Every level ends what its command leaves behind; that a plain spawn does not shows that it tries.
#[test]
fn running_on_after_the_end() {
    let name = "running_on_after_the_end";
    if let Some(reason) = cannot() {
        return report_skipped(name, reason);
    }
    let code = r#"
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        fd = os.open('alive', os.O_WRONLY | os.O_CREAT)
        while True: os.pwrite(fd, str(time.monotonic_ns()).encode(), 0)
    os._exit(0)
while not os.path.exists('alive') or os.path.getsize('alive') == 0: pass
"#;
    for level in SandboxLevel::ALL {
        let place = Place::new();
        let mut spec = place.spec(level, &["/usr/bin/python3", "-c", code]);
        spec.limits.wall_ms = Some(60_000);
        let (report, _) = run(spec);
        assert_eq!(report.outcome.exit_code, 0, "{level}: {:?}", report.outcome);
        // Nobody writes any more: two reads with other work between them give the same.
        let read = || std::fs::read(place.workdir.join("alive")).unwrap();
        let first = read();
        let other = Place::new();
        run(other.spec(SandboxLevel::None, &["true"]));
        assert_eq!(read(), first, "{level}: something runs on");
    }
}

/// Runs a command that exceeds a limit at every level, and checks the outcome's name.
fn exceed(limit: Limit, text: &str, code: &str, ends: bool) {
    if let Some(reason) = cannot() {
        return report_skipped(text, reason);
    }
    for level in SandboxLevel::ALL {
        let place = Place::new();
        let mut spec = place.python(level, code);
        spec.limits.set_text(text).unwrap();
        if limit != Limit::Wall {
            // A limit that does not hold fails the test and not the machine.
            spec.limits.wall_ms = Some(30_000);
        }
        let (report, sink) = run(spec);
        let Some(Phase::Prepared(prepared)) = sink.phase(PhaseName::Prepared) else { panic!("not prepared") };
        let not_applied = prepared.environment.sandbox.not_applied;
        if not_applied.iter().any(|what| what.contains(limit.as_str())) {
            report_skipped(&format!("{limit} at {level}"), &not_applied.join("; "));
            continue;
        }
        let printed = String::from_utf8_lossy(&report.output.stdout);
        let said = format!("{level}: {:?} {printed:.200}", report.outcome);
        assert_eq!(report.outcome.limit_exceeded, Some(limit), "{said}");
        if ends {
            assert_eq!(report.outcome.exit_code, 137, "{said}");
            assert!(report.outcome.error.as_deref().unwrap().starts_with("limit exceeded"), "{said}");
        } else {
            assert_eq!((report.outcome.exit_code, &report.outcome.error), (0, &None), "{said}");
        }
        let Some(Phase::Exited(exited)) = sink.phase(PhaseName::Exited) else { panic!("not exited") };
        assert_eq!(exited.outcome, report.outcome, "the record says the same");
    }
}

#[test]
fn a_command_that_never_ends() {
    exceed(Limit::Wall, "wall=500ms", "while True: time.sleep(1)", true);
}

#[test]
fn a_command_that_only_computes() {
    // In children too: each alone stays below.
    let code = "[os.fork() for _ in range(2)]\nwhile True: pass";
    exceed(Limit::Cpu, "cpu=1s", code, true);
}

#[test]
fn a_fork_bomb() {
    let code = r#"
refused = 0
for _ in range(400):
    try:
        if os.fork() == 0: time.sleep(1000)
    except OSError: refused += 1
print(refused)
os._exit(0 if refused >= 300 else 3)
"#;
    exceed(Limit::Pids, "pids=64", code, false);
}

#[test]
fn a_memory_bomb() {
    exceed(Limit::Memory, "memory=64MiB", "kept = []\nwhile True: kept.append(bytearray(1 << 20))", true);
}

#[test]
fn an_output_bomb() {
    exceed(Limit::Output, "output=1MiB", "while True: os.write(1, b'x' * 65536)", true);
}

#[test]
fn a_full_disk() {
    // Many files: one alone is stopped by its size.
    let code = r#"
for number in range(1_000_000):
    with open(str(number), 'wb') as file: file.write(b'x' * (1 << 20))
"#;
    exceed(Limit::Disk, "disk=16MiB", code, true);
}

#[test]
fn a_file_that_is_too_large_and_too_many_files() {
    if let Some(reason) = cannot() {
        return report_skipped("files", reason);
    }
    for level in SandboxLevel::ALL {
        let place = Place::new();
        let code = r#"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for attempt in (lambda: [os.open('/dev/null', os.O_RDONLY) for _ in range(100)],):
    try: attempt()
    except OSError as error: print(error.errno)
os.closerange(3, 100)
try: os.truncate(os.open('large', os.O_WRONLY | os.O_CREAT), 2 << 20)
except OSError as error: print(error.errno)
"#;
        let mut spec = place.python(level, code);
        spec.limits.set_text("files=64").unwrap();
        spec.limits.set_text("disk=1MiB").unwrap();
        let (report, _) = run(spec);
        let expected = format!("{}\n{}\n", libc::EMFILE, libc::EFBIG);
        assert_eq!(String::from_utf8_lossy(&report.output.stdout), expected, "{level}");
    }
}
