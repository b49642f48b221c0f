//! Guests that lie, over a real link and without a machine: whatever they send, the execution ends with a clear error, its
//! receipt is partial, and nothing of the lie is in it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use glasshouse_backends::conformance::spec;
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::backend::BackendError;
use glasshouse_execution::{Engine, EngineReport, ExecutionSpec};
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::shared::{RING_BYTES, SharedMemory};
use glasshouse_guest_link::{MAX_CHUNK_BYTES, Sealed, ToHost};
use glasshouse_schema::frame::{Seal, SealTotals};
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{Environment, ProfilingMode};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{Event, Fact, PathRef, ProcessKey, Receipt};
use glasshouse_vm::{GuestLink, Launch, VmBackend, Vmm};

#[path = "support/played.rs"]
mod played;

use played::{Host, chain, frame};

type Guest = Box<dyn FnOnce(Host) + Send>;

/// A VMM that is no machine: its process only waits, and a thread of the test plays the guest.
struct Played {
    guest: Mutex<Option<Guest>>,
    link: Link,
    shared: Mutex<Option<SharedMemory>>,
}

/// What carries the messages of a played guest.
#[derive(Clone, Copy, PartialEq)]
enum Link {
    Socket,
    Memory,
}

/// Where the memory has what the guest has written and what it has taken (`glasshouse_guest_link::shared`).
const HEAD: u64 = 512;
const TAIL: u64 = 256;

#[async_trait]
impl Vmm for Played {
    fn name(&self) -> &'static str {
        "played"
    }

    fn environment(&self) -> Environment {
        Environment::default()
    }

    fn check(&self, _: &ExecutionSpec) -> Result<(), BackendError> {
        Ok(())
    }

    async fn command(&self, _: &ExecutionSpec, _: &Path) -> Result<Launch, BackendError> {
        let shared = (self.link == Link::Memory).then(|| SharedMemory::make().unwrap());
        self.shared.lock().unwrap().clone_from(&shared);
        Ok(Launch { argv: vec!["sleep".into(), "1000".into()], shared, ..Launch::default() })
    }

    async fn boot(&self, dir: &Path) -> Result<(), BackendError> {
        let GuestLink::Socket(link) = self.link(dir) else { panic!("it has a socket") };
        let guest = self.guest.lock().unwrap().take().unwrap();
        let shared = self.shared.lock().unwrap().take();
        std::thread::spawn(move || {
            guest(match shared {
                None => Host::at(&link),
                Some(shared) => Host::over(UnixStream::connect(&link).unwrap(), Some(shared)),
            });
        });
        Ok(())
    }
}

/// Runs a command in a played guest; gives the report, the receipt, and how many frames were handed on.
async fn run(guest: impl FnOnce(Host) + Send + 'static) -> (EngineReport, Receipt, usize) {
    run_over(Link::Socket, guest).await
}

async fn run_over(link: Link, guest: impl FnOnce(Host) + Send + 'static) -> (EngineReport, Receipt, usize) {
    let mut spec = spec(["true"]);
    spec.profile = ProfilingMode::Guest;
    let backend =
        VmBackend::new(Played { guest: Mutex::new(Some(Box::new(guest))), link, shared: Mutex::default() });
    let sink = Arc::new(RecordingSink::new());
    let controllers: Vec<Arc<dyn glasshouse_execution::ProfilingController>> =
        vec![Arc::new(backend.controller())];
    let execution = spec.id;
    let engine = Engine { controllers, ..Engine::new(Arc::new(backend), sink.clone()) };
    let report = engine.run(spec, None).await;
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    let frames = sink.frames();
    // What it refuses was handed on though it was a lie.
    let receipt = glasshouse_fold::receipt_of(execution, &sink.events(), &frames).unwrap();
    (report, receipt.expect("it was profiled"), frames.len())
}

/// The lie ends the execution in good time, with words, and in a partial receipt.
async fn is_found_out(lie: impl FnOnce(&mut Host) + Send + 'static, expected: &str) {
    is_found_out_over(Link::Socket, lie, expected).await;
}

async fn is_found_out_over(link: Link, lie: impl FnOnce(&mut Host) + Send + 'static, expected: &str) {
    let began = Instant::now();
    let (report, receipt, frames) = run_over(link, |mut host| {
        host.up_to_running();
        lie(&mut host);
        // What a guest does after it was found out must not matter.
        while host.hear().is_some() {}
    })
    .await;
    let error = report.outcome.error.unwrap_or_default();
    assert!(error.contains(expected), "{error}");
    assert_eq!(report.outcome.exit_code, 125);
    assert_eq!(frames, 0, "a lie was handed on");
    assert_eq!(receipt.completeness, Completeness::Partial);
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_guest_is_believed() {
    futures::future::join(is_believed(Link::Socket), is_believed(Link::Memory)).await;
}

async fn is_believed(link: Link) {
    let (report, receipt, frames) = run_over(link, |mut host| {
        host.up_to_running();
        host.end(|host| {
            let seal = host.seal();
            host.say(frame(seal.bytes));
            host.say(ToHost::Sealed(Ok(Sealed { frames: 1, head: seal.digest })));
        });
    })
    .await;
    assert_eq!((report.outcome.exit_code, report.outcome.error), (0, None));
    assert_eq!(frames, 1);
    assert_eq!(report.sealed.unwrap().vantages.len(), 1);
    // It saw no exec, and a receipt without the root's exec is not whole.
    assert_eq!(receipt.completeness, Completeness::Partial);
}

/// The guest's end of a chain that tells of one process, which ended with this code; or of none.
fn seal_over(host: &mut Host, exit_code: Option<u8>) {
    let mut chain = host.chain.take().unwrap();
    let process = ProcessKey { tgid: 7, start_boot_ns: 1 };
    let (program, workdir) = (PathRef::resolved(b"/bin/true"), PathRef::resolved(b"/"));
    let exec = Fact::Exec {
        ppid: 1,
        exe: program,
        cwd: workdir,
        argv: &[],
        argv_truncated: false,
        uid: 0,
        gid: 0,
        env: &[],
        env_truncated: false,
        flags: Default::default(),
    };
    let exit = |code| Fact::Exit { code, signal: 0, core_dumped: false, usage: Default::default() };
    let facts = exit_code.map(|code| [exec, exit(code)]).into_iter().flatten();
    for (boot_ns, fact) in (2..).zip(facts) {
        assert!(chain.push(&Event { boot_ns, process, fact }).is_none());
    }
    let frames = chain.seal(SealTotals::default(), Seal::default());
    let sealed = Sealed { frames: frames.len() as u64, head: frames.last().unwrap().digest };
    frames.into_iter().for_each(|sealed| host.say(frame(sealed.bytes)));
    host.say(ToHost::Sealed(Ok(sealed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_says_and_what_its_kernel_saw_is_held_against_each_other() {
    let cases = [(Some(0), None), (Some(7), Some("exit")), (None, Some("nothing_ran"))];
    // At once, because the process of a played machine does not power off.
    futures::future::join_all(cases.map(|(seen, expected): (Option<u8>, Option<&str>)| async move {
        let (report, receipt, _) = run(move |mut host| {
            host.up_to_running();
            host.end(move |host| seal_over(host, seen));
        })
        .await;
        assert_eq!((report.outcome.exit_code, report.outcome.error), (0, None));
        let kinds: Vec<&str> = receipt.contradictions.iter().map(|found| found.kind.as_str()).collect();
        assert_eq!(kinds, Vec::from_iter(expected), "{:?}", receipt.contradictions);
        assert_eq!(receipt.completeness == Completeness::Closed, expected.is_none());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_another_execution_are_not_taken() {
    let lie = |host: &mut Host| {
        let mut other = chain(
            ExecutionId::from_parts(1, [9; 10]),
            NodeId::new("conformance").unwrap(),
            Vantage::Guest,
            1,
        );
        other.count_lost(glasshouse_schema::Class::File, 1);
        let frames = other.seal(SealTotals::default(), Seal::default());
        host.say(frame(frames.into_iter().next().unwrap().bytes));
    };
    is_found_out(lie, "which is not its own").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_not_the_host() {
    let lie = |host: &mut Host| {
        let execution = host.spec.as_ref().unwrap().execution;
        let as_host = chain(execution, NodeId::new("conformance").unwrap(), Vantage::Host, 1);
        host.say(frame(as_host.seal(SealTotals::default(), Seal::default()).pop().unwrap().bytes));
    };
    is_found_out(lie, "vantage point host").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_that_nobody_asked_for_is_no_seal() {
    let lie = |host: &mut Host| {
        let seal = host.seal();
        host.say(frame(seal.bytes));
    };
    is_found_out(lie, "before the host asked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_over_other_frames_is_no_seal() {
    let (report, receipt, frames) = run(|mut host| {
        host.up_to_running();
        host.end(|host| {
            let seal = host.seal();
            host.say(frame(seal.bytes));
            host.say(ToHost::Sealed(Ok(Sealed { frames: 2, head: Digest::ZERO })));
        });
    })
    .await;
    assert_eq!(frames, 1);
    let sealed = report.sealed.unwrap();
    assert_eq!(sealed.vantages, []);
    assert!(sealed.missing[0].reason.contains("not what came"), "{}", sealed.missing[0].reason);
    assert_eq!(receipt.completeness, Completeness::Partial);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_gibibytes_are_not_even_read() {
    let lie = |host: &mut Host| {
        let mut header = b"GL\x01\x42".to_vec();
        header.extend(u32::MAX.to_le_bytes());
        header.extend([0; 4]);
        let _ = host.socket.write_all(&header);
    };
    is_found_out(lie, "4294967295 bytes, more than").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_not_understood() {
    let lie = |host: &mut Host| {
        let _ = host.socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
    };
    is_found_out(lie, "not a packet").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_none_is_not_taken() {
    is_found_out(|host| host.say(frame(b"no frame".to_vec())), "what it sent as a frame is none").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_that_was_not_used_is_not_given_back() {
    is_found_out(|host| host.say(ToHost::Credit(1)), "more credit was given, than there was").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_an_exit_is_an_error() {
    let lie = |host: &mut Host| {
        let _ = host.socket.shutdown(std::net::Shutdown::Both);
    };
    is_found_out(lie, "the guest is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_asked_for_is_not_due() {
    is_found_out(|host| host.say(ToHost::Sealed(Err("x".into()))), "was not due: sealed").await;
}

/// Of its memory a guest may make what it likes: that ends its own execution, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_counter_ends_the_session_of_its_guest_and_no_other() {
    const NONSENSE: &str = "a counter of the shared memory went from";
    let too_far = |host: &mut Host| host.forge(HEAD, |head| head + RING_BYTES as u64 + 1);
    let back = |host: &mut Host| host.forge(HEAD, |_| 0);
    let taken = |host: &mut Host| {
        host.forge(TAIL, |_| u64::MAX);
        // So much that the host gives credit, which needs room.
        for _ in 0..8 {
            host.say(ToHost::Stdout(Bytes(vec![0; MAX_CHUNK_BYTES])));
        }
        host.is_deaf();
    };
    futures::future::join4(
        is_found_out_over(Link::Memory, too_far, NONSENSE),
        is_found_out_over(Link::Memory, back, NONSENSE),
        is_found_out_over(Link::Memory, taken, NONSENSE),
        is_believed(Link::Memory),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_nobody_wrote_are_not_understood() {
    let lie = |host: &mut Host| host.forge(HEAD, |head| head + 100);
    is_found_out_over(Link::Memory, lie, "not a packet").await;
}
