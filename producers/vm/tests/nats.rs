//! The link over a real NATS server, with a real guest probe that runs as a service of this host: it is in no machine, and everything
//! else is as with one. Skipped, with the reason, where there is no static guest probe.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../guest-nats/tests/common/mod.rs"]
mod common;
#[path = "support/played.rs"]
#[allow(dead_code, reason = "what is played here ends earlier")]
mod played;
mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use common::{Broker, way};
use glasshouse_backends::conformance::{Factory, Scenario, Subject, report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::backend::{BackendError, ExecutionBackend as _, ExitStatus};
use glasshouse_execution::{
    Engine, EngineReport, EventSink, ExecutionSpec, OutputTap, ProfilingController, SinkError, StdStreams,
};
use glasshouse_guest_link::ToHost;
use glasshouse_guest_nats::{Credential, GuestEnd};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Environment, ProfilingMode};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{EncodedFrame, LifecycleEvent, Receipt};
use glasshouse_vm::nats::{CREDENTIALS, Issuer};
use glasshouse_vm::qemu::{self, Qemu};
use glasshouse_vm::remote::{self, Remote};
use glasshouse_vm::{Launch, Link, PROBE_VARIABLE, VmBackend, Vmm};
use played::{Host, frame};

type Guest = Box<dyn FnOnce(Host) + Send>;

/// What speaks at the other end of the server.
enum Who {
    /// The probe, as a process of this host.
    Probe(PathBuf),
    /// A thread of the test.
    Played(Mutex<Option<Guest>>),
}

/// A VMM that is no machine.
struct Service {
    issuer: Issuer,
    /// The guest's way to the server.
    by: SocketAddr,
    who: Who,
    /// Lives as long as its link.
    _broker: Option<Arc<Broker>>,
}

#[async_trait]
impl Vmm for Service {
    fn name(&self) -> &'static str {
        "service"
    }

    fn environment(&self) -> Environment {
        Environment::default()
    }

    fn check(&self, _: &ExecutionSpec) -> Result<(), BackendError> {
        Ok(())
    }

    fn nats(&self) -> Option<&Issuer> {
        Some(&self.issuer)
    }

    async fn command(&self, _: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError> {
        let argv = match &self.who {
            Who::Probe(probe) => vec![
                probe.into(),
                "--transport".into(),
                format!("nats:{}", self.by).into(),
                "--credentials".into(),
                dir.join(CREDENTIALS).into(),
            ],
            Who::Played(_) => vec!["sleep".into(), "1000".into()],
        };
        Ok(Launch { argv, ..Launch::default() })
    }

    async fn boot(&self, dir: &Path) -> Result<(), BackendError> {
        if let Who::Played(guest) = &self.who {
            let credential = Credential::take(&dir.join(CREDENTIALS)).unwrap();
            let (guest, end) =
                (guest.lock().unwrap().take().unwrap(), GuestEnd::new(&self.by.to_string(), credential));
            std::thread::spawn(move || guest(Host::over(end.socket().unwrap(), None)));
        }
        Ok(())
    }
}

fn probe() -> Result<PathBuf, String> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/glasshouse-guest-probe");
    let probe = std::env::var_os(PROBE_VARIABLE).map_or_else(built, PathBuf::from);
    match nix::unistd::geteuid().is_root() {
        _ if !probe.is_file() => {
            Err(format!("there is no guest probe at {}: scripts/guest-probe.sh", probe.display()))
        }
        false => Err("the probe needs root".into()),
        true => Ok(probe),
    }
}

fn started() -> Arc<Broker> {
    let start = || tokio::runtime::Runtime::new().unwrap().block_on(Broker::start());
    // A runtime does not block on another of its thread.
    Arc::new(std::thread::spawn(start).join().unwrap())
}

fn service(broker: &Arc<Broker>, by: SocketAddr) -> Result<VmBackend, String> {
    let issuer = broker.issuer();
    Ok(VmBackend::new(Service { issuer, by, who: Who::Probe(probe()?), _broker: Some(Arc::clone(broker)) }))
}

struct AsService;

impl Factory for AsService {
    fn make(&self, scenario: &Scenario) -> Result<Subject, String> {
        let broker = started();
        let backend = service(&broker, broker.address())?;
        let spec = match scenario {
            Scenario::CannotExecute => spec(["/etc/passwd"]),
            // Its own process is of this host, as no machine's is.
            Scenario::Touches(path) => spec(["/bin/touch".into(), path.as_os_str().to_owned()]),
            scenario => support::spec_of(scenario)?,
        };
        let id = spec.id.to_string();
        Ok(Subject { backend: Arc::new(backend), spec, left: Box::new(move || support::left_of(&id)) })
    }
}

glasshouse_backends::conformance!(service, super::AsService);

macro_rules! service_or_skip {
    ($name:literal, $broker:expr, $by:expr) => {
        match service($broker, $by) {
            Ok(backend) => backend,
            Err(reason) => return report_skipped($name, &reason),
        }
    };
}

fn shell(script: &str) -> ExecutionSpec {
    let mut spec = spec(["/bin/sh", "-c", script]);
    spec.profile = ProfilingMode::Guest;
    spec
}

/// Runs a command, watched from inside and from wherever else it asks for.
async fn run(backend: VmBackend, spec: ExecutionSpec) -> (EngineReport, Receipt, usize) {
    let sink = Arc::new(RecordingSink::new());
    run_into(backend, spec, Arc::clone(&sink), sink).await
}

/// The same, with frames on their way to `sink` through another.
async fn run_into(
    backend: VmBackend,
    spec: ExecutionSpec,
    sink: Arc<RecordingSink>,
    through: Arc<dyn EventSink>,
) -> (EngineReport, Receipt, usize) {
    let mut controllers: Vec<Arc<dyn ProfilingController>> = vec![Arc::new(backend.controller())];
    if spec.profile == ProfilingMode::Combined {
        controllers.push(Arc::new(EbpfController::new(LoadOptions::default())));
    }
    let execution = spec.id;
    let engine = Engine { controllers, ..Engine::new(Arc::new(backend), through) };
    let report = engine.run(spec, None).await;
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    assert_eq!(support::left_of(&execution.to_string()), Vec::<String>::new());
    let receipt = glasshouse_fold::receipt_of(execution, &sink.events(), &sink.frames()).unwrap();
    (report, receipt.expect("it was profiled"), sink.frames().len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_command_has_a_closed_receipt_and_no_credential() {
    let broker = started();
    let backend = service_or_skip!(
        "a_watched_command_has_a_closed_receipt_and_no_credential",
        &broker,
        broker.address()
    );
    // What its parent, the probe, was started with, and whether that is still there.
    let look = "cat /etc/hostname; tr '\\0' '\\n' < /proc/$PPID/cmdline | tail -1; \
                test -e $(tr '\\0' '\\n' < /proc/$PPID/cmdline | tail -1) || echo gone; \
                grep -c -e SU -e eyJ /proc/$PPID/environ /proc/$PPID/cmdline";
    let (report, receipt, frames) = run(backend, shell(look)).await;
    let printed = String::from_utf8_lossy(&report.output.stdout).into_owned();
    assert_eq!((report.outcome.error, receipt.completeness), (None, Completeness::Closed), "{printed}");
    assert_eq!((receipt.contradictions.len(), receipt.chain.len()), (0, 1));
    assert!(frames > 0);
    assert!(receipt.filesystem.reads.iter().any(|path| path == "/etc/hostname"));
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[1].ends_with(CREDENTIALS), "{printed}");
    assert!(
        lines[2] == "gone" && lines[3].ends_with("environ:0") && lines[4].ends_with("cmdline:0"),
        "{printed}"
    );
}

/// A machine of somebody else's gets its credential as a file, and the file is gone once its probe has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_started_by_hand_runs_the_command() {
    let probe = match probe() {
        Ok(probe) => probe,
        Err(reason) => return report_skipped("a_probe_that_is_started_by_hand_runs_the_command", &reason),
    };
    let broker = started();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("guest.creds");
    let invite = {
        let file = file.clone();
        Box::new(move |command: &str| {
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
            let words = command.strip_prefix("glasshouse-guest-probe ").unwrap().split(' ');
            let mut guest = std::process::Command::new(&probe).args(words).spawn().unwrap();
            std::thread::spawn(move || assert!(guest.wait().unwrap().success()));
        })
    };
    let way = remote::Way::Nats(broker.issuer(), file.clone());
    let backend =
        VmBackend::new(Remote::new(remote::Config { way, within: Duration::from_secs(60), invite }));
    let (report, receipt, _) = run(backend, shell("cat /etc/hostname; exit 6")).await;
    assert_eq!((report.outcome.exit_code, report.outcome.error), (6, None));
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
    assert_eq!((receipt.execution.isolation.as_str(), file.exists()), ("none", false));
    // What is somebody's is not overwritten.
    std::fs::write(&file, "mine").unwrap();
    let way = remote::Way::Nats(broker.issuer(), file.clone());
    let config = remote::Config { way, within: Duration::from_secs(60), invite: Box::new(|_| {}) };
    let backend = VmBackend::new(Remote::new(config));
    let refused = backend.prepare(&shell("true")).await.unwrap_err().to_string();
    assert!(refused.contains("guest.creds"), "{refused}");
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_output_and_input_arrive_byte_for_byte() {
    const BYTES: usize = 100 << 20;
    let broker = started();
    let backend = service_or_skip!("much_output_and_input_arrive_byte_for_byte", &broker, broker.address());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let output = OutputTap::new({
        let taken = Arc::clone(&taken);
        move |_, bytes| taken.lock().unwrap().extend_from_slice(bytes)
    });
    let stdin: Arc<[u8]> = b"glasshouse\n".repeat(1_000_000).into();
    let mut spec = shell(&format!("cat; yes glasshouse | head -c {BYTES}"));
    (spec.profile, spec.streams) =
        (ProfilingMode::Disabled, StdStreams::Handed { stdin: Arc::clone(&stdin), output });
    backend.prepare(&spec).await.unwrap();
    backend.start(&spec).await.unwrap();
    let began = Instant::now();
    backend.release().await.unwrap();
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Code(0));
    let report = backend.drain(false).await.unwrap();
    println!("{} bytes in {:?}", BYTES + stdin.len(), began.elapsed());
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    let expected: Vec<u8> =
        stdin.iter().copied().chain(b"glasshouse\n".iter().copied().cycle().take(BYTES)).collect();
    assert!(taken == expected, "{} of {} bytes came, or others", taken.len(), expected.len());
    assert_eq!(report.stdout_hash, Some(Digest::of(&expected)));
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
}

/// It ends soon, with this reason, and in a partial receipt.
fn is_cut(began: Instant, (report, receipt, _): (EngineReport, Receipt, usize), expected: &str) {
    let error = report.outcome.error.unwrap_or_default();
    assert!(error.contains(expected), "{error}");
    assert_eq!((report.outcome.exit_code, receipt.completeness), (125, Completeness::Partial));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_lost_makes_a_partial_receipt() {
    let broker = started();
    let mut pieces = 0;
    // The fourth byte of a message is its kind. By the hundredth the command runs.
    let by = way(broker.address(), move |subject, payload| {
        pieces += usize::from(subject.ends_with(".up") && payload[3] == 1);
        usize::from(pieces != 100)
    });
    let backend = service_or_skip!("a_message_that_is_lost_makes_a_partial_receipt", &broker, by);
    let began = Instant::now();
    let ended = run(backend, shell("while :; do ls /etc /usr/bin; done")).await;
    is_cut(
        began,
        ended,
        "messages were lost or doubled on their way over NATS: piece 100 came, and 99 was to come",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_makes_a_partial_receipt() {
    let broker = started();
    let pid = broker.server.pid();
    let backend =
        service_or_skip!("a_server_that_is_killed_makes_a_partial_receipt", &broker, broker.address());
    let began = Instant::now();
    let output = OutputTap::new(move |_, _| {
        // Once the command runs.
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    });
    let mut spec = shell("echo here; sleep 1000");
    spec.streams = StdStreams::Handed { stdin: Arc::from([]), output };
    is_cut(began, run(backend, spec).await, "the connection to the NATS server broke: the server is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_killed_makes_a_partial_receipt() {
    let broker = started();
    let backend =
        service_or_skip!("a_probe_that_is_killed_makes_a_partial_receipt", &broker, broker.address());
    let began = Instant::now();
    is_cut(began, run(backend, shell("kill -9 $PPID; sleep 1000")).await, "its VMM ended with SIGKILL");
}

/// In a machine of QEMU: the probe takes its credential from the initramfs and its way through the machine's network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_speaks_over_the_server_and_has_a_closed_receipt() {
    let name = "a_machine_speaks_over_the_server_and_has_a_closed_receipt";
    let broker = started();
    let config = match support::config() {
        _ if !nix::unistd::geteuid().is_root() => return report_skipped(name, "a list takes root"),
        Ok(config) => qemu::Config { link: Link::Nats(broker.issuer()), ..config },
        Err(reason) => return report_skipped(name, &reason),
    };
    let mut spec = shell("cat /proc/cmdline; ls / /dev/vport0p1; exit 7");
    spec.profile = ProfilingMode::Combined;
    let (report, receipt, _) = run(VmBackend::new(Qemu::new(config, spec.limits)), spec).await;
    let printed = String::from_utf8_lossy(&report.output.stdout).into_owned();
    assert_eq!((report.outcome.error, report.outcome.exit_code), (None, 7), "{printed}");
    assert_eq!(receipt.contradictions, Vec::new());
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
    assert_eq!(receipt.chain.len(), 2);
    assert_eq!(receipt.environment.sandbox.connect, [broker.address().to_string()]);
    let port = broker.address().port();
    assert!(printed.contains(&format!("glasshouse.transport=nats:10.0.2.2:{port}")), "{printed}");
    // Nothing of the credential is in what the command sees, and no other way to the host.
    assert!(
        !printed.contains("eyJ") && !printed.contains("creds") && !printed.contains("vport"),
        "{printed}"
    );
}

/// Holds up whoever comes, until the guest has sent nothing for longer than from one heartbeat to the next: until it is held up too.
#[derive(Default)]
struct Slow {
    /// Bytes of the guest that came to the server.
    sent: AtomicUsize,
    /// How many had come when no more did.
    held_at: OnceLock<usize>,
}

impl Slow {
    fn holds_up(&self) {
        self.held_at.get_or_init(|| {
            let (mut before, mut since, end) = (0, Instant::now(), Instant::now() + Duration::from_secs(20));
            loop {
                let now = self.sent.load(Ordering::Relaxed);
                if now != before {
                    (before, since) = (now, Instant::now());
                } else if since.elapsed() > Duration::from_secs(3) {
                    return now;
                }
                assert!(Instant::now() < end, "nothing holds the guest up: {now} bytes came");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    }
}

/// Takes no frame before that.
struct SlowSink(Arc<Slow>, Arc<RecordingSink>);

#[async_trait]
impl EventSink for SlowSink {
    async fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError> {
        self.1.lifecycle(event).await
    }

    fn frame(&self, frame: EncodedFrame) {
        self.0.holds_up();
        self.1.frame(frame);
    }

    async fn flush(&self) -> Result<(), SinkError> {
        self.1.flush().await
    }
}

/// Neither frames nor output are taken for a while, and all of both comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_host_holds_a_watched_command_up_and_loses_nothing_of_it() {
    const FILES: usize = 1_500;
    let name = "a_slow_host_holds_a_watched_command_up_and_loses_nothing_of_it";
    let broker = started();
    let slow = Arc::new(Slow::default());
    let counts = Arc::clone(&slow);
    let by = way(broker.address(), move |subject, payload| {
        let bytes = if subject.ends_with(".up") { payload.len() } else { 0 };
        counts.sent.fetch_add(bytes, Ordering::Relaxed);
        1
    });
    let config = match support::config() {
        _ if !nix::unistd::geteuid().is_root() => return report_skipped(name, "a list takes root"),
        Ok(config) => qemu::Config { link: Link::Nats(broker.issuer_at(&format!("nats://{by}"))), ..config },
        Err(reason) => return report_skipped(name, &reason),
    };
    let taken = Arc::new(Mutex::new(Vec::new()));
    let output = OutputTap::new({
        let (taken, slow) = (Arc::clone(&taken), Arc::clone(&slow));
        move |_, bytes| {
            slow.holds_up();
            taken.lock().unwrap().extend_from_slice(bytes);
        }
    });
    // A file, a process and a line, again and again.
    let rest = "x".repeat(2_000);
    let script =
        format!("i=0; while [ $i -lt {FILES} ]; do : > /tmp/f$i; (:); i=$((i+1)); echo ${{i}}{rest}; done");
    let mut spec = shell(&script);
    spec.streams = StdStreams::Handed { stdin: Arc::from([]), output };
    let sink = Arc::new(RecordingSink::new());
    let through = Arc::new(SlowSink(Arc::clone(&slow), Arc::clone(&sink)));
    let backend = VmBackend::new(Qemu::new(config, spec.limits));
    let (report, receipt, frames) = run_into(backend, spec, sink, through).await;

    assert_eq!((report.outcome.error, report.outcome.exit_code), (None, 0));
    let (held_at, sent) = (*slow.held_at.get().unwrap(), slow.sent.load(Ordering::Relaxed));
    println!("held up at {held_at} bytes of {sent}; {frames} frames");
    assert!(held_at < sent / 2, "it was all but over: held up at {held_at} of {sent}");
    let printed: String = (1..=FILES).map(|line| format!("{line}{rest}\n")).collect();
    assert!(*taken.lock().unwrap() == printed.as_bytes(), "other bytes came");
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
    assert_eq!(receipt.contradictions, Vec::new());
    let written = receipt.filesystem.writes.iter().filter(|path| path.starts_with("/tmp/f")).count();
    let processes = receipt.process_tree.len();
    assert_eq!((written, processes), (FILES, FILES + 1));
}

/// A guest that is played over the server: a lie is found out as over any other link.
async fn is_found_out(lie: impl FnOnce(&mut Host) + Send + 'static, expected: &str) {
    let broker = started();
    let guest: Guest = Box::new(|mut host| {
        host.up_to_running();
        lie(&mut host);
        while host.hear().is_some() {}
    });
    let who = Who::Played(Mutex::new(Some(guest)));
    let by = broker.address();
    let backend = VmBackend::new(Service { issuer: broker.issuer(), by, who, _broker: Some(broker) });
    let began = Instant::now();
    let ended = run(backend, shell("true")).await;
    assert_eq!(ended.2, 0, "a lie was handed on");
    is_cut(began, ended, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_are_found_out() {
    use std::io::Write as _;
    let garbage = |host: &mut Host| {
        let _ = host.socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
    };
    let too_long = |host: &mut Host| {
        let _ = host.socket.write_all(b"GL\x01\x42\xff\xff\xff\xff\0\0\0\0");
    };
    let forged = |host: &mut Host| {
        let seal = host.seal();
        host.say(frame(seal.bytes));
    };
    tokio::join!(
        is_found_out(garbage, "not a packet"),
        is_found_out(too_long, "4294967295 bytes, more than"),
        is_found_out(forged, "before the host asked"),
        is_found_out(|host| host.say(frame(b"no frame".to_vec())), "what it sent as a frame is none"),
        is_found_out(|host| host.say(ToHost::Credit(1)), "more credit was given, than there was"),
        is_found_out(|host| host.socket.shutdown(std::net::Shutdown::Both).unwrap(), "the guest is gone"),
    );
}
