//! The allow-list of a sandbox's network: what is on it is reached, and nothing else is, by any way that a hostile command may try.
//!
//! Every attempt is made without a sandbox as well, where it gets through: that it is stopped otherwise proves something.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use glasshouse_backends::ProcessBackend;
use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::{Engine, EngineReport, ExecutionSpec};
use glasshouse_schema::SandboxLevel;
use glasshouse_schema::lifecycle::{Phase, PhaseName};

/// Prints `NAME ok` or `NAME ERRNO` for each attempt. `ours` and `other` are ports of the node: those that are allowed and those
/// that are not, as tcp4, tcp6, udp4, udp6.
const ATTEMPTS: &str = r#"
import ctypes, errno, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, what):
    try: what()
    except OSError as error: print(name, errno.errorcode.get(error.errno, error))
    else: print(name, 'ok')
def tcp(family, to): socket.socket(family, socket.SOCK_STREAM).connect(to)
def udp(family): return socket.socket(family, socket.SOCK_DGRAM)
v4, v6, mapped = '127.0.0.1', '::1', '::ffff:127.0.0.1'
for list, (tcp4, tcp6, udp4, udp6) in (('allowed', ours), ('other', other)):
    def of(name, what): attempt(f'{list} {name}', what)
    of('connect4', lambda: tcp(socket.AF_INET, (v4, tcp4)))
    of('connect6', lambda: tcp(socket.AF_INET6, (v6, tcp6)))
    of('connect mapped', lambda: tcp(socket.AF_INET6, (mapped, tcp4)))
    of('udp connect4', lambda: udp(socket.AF_INET).connect((v4, udp4)))
    of('udp connect6', lambda: udp(socket.AF_INET6).connect((v6, udp6)))
    of('sendto4', lambda: udp(socket.AF_INET).sendto(b'x', (v4, udp4)))
    of('sendto6', lambda: udp(socket.AF_INET6).sendto(b'x', (v6, udp6)))
    of('sendto mapped', lambda: udp(socket.AF_INET6).sendto(b'x', (mapped, udp4)))
    of('sendmsg4', lambda: udp(socket.AF_INET).sendmsg([b'x'], [], 0, (v4, udp4)))
    of('sendmsg6', lambda: udp(socket.AF_INET6).sendmsg([b'x'], [], 0, (v6, udp6)))
    of('fast open', lambda: socket.socket().sendto(b'x', 0x20000000, (v4, tcp4)))
# By way of an address that no call names: a source route, over loopback to itself.
def route():
    routed = udp(socket.AF_INET)
    routed.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton(v4) + b'\0')
    routed.sendto(b'x', (v4, ours[2]))
attempt('route', route)
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt('mptcp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
attempt('netlink', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))
def io_uring():
    if libc.syscall(ctypes.c_long(425), 4, ctypes.create_string_buffer(248)) < 0: raise OSError(ctypes.get_errno(), '')
attempt('io_uring', io_uring)
attempt('route table', lambda: socket.if_nameindex())
"#;

/// What another one on the node sends to a socket of the sandbox does not come, what is allowed does.
const INBOUND: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
s.sendto(b'here', ('127.0.0.1', ours[2]))
print(s.recv(100).decode())
"#;

/// Somebody who listens on the node.
struct Listeners {
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
}

impl Listeners {
    fn new() -> std::io::Result<Self> {
        let loopback = ["127.0.0.1:0", "[::1]:0"];
        let tcp = [TcpListener::bind(loopback[0])?, TcpListener::bind(loopback[1])?];
        Ok(Self { tcp, udp: [UdpSocket::bind(loopback[0])?, UdpSocket::bind(loopback[1])?] })
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let tcp = self.tcp.iter().map(|socket| socket.local_addr().unwrap());
        tcp.chain(self.udp.iter().map(|socket| socket.local_addr().unwrap())).collect()
    }

    fn ports(&self) -> String {
        let ports: Vec<String> = self.addresses().iter().map(|address| address.port().to_string()).collect();
        format!("({})", ports.join(", "))
    }
}

/// The code in a sandbox that can reach `ours`; at `none` it can reach everything.
fn confined(level: SandboxLevel, ours: &Listeners, other: &Listeners, code: &str) -> ExecutionSpec {
    let code = format!("ours, other = {}, {}\n{code}", ours.ports(), other.ports());
    let mut spec = spec(["/usr/bin/python3", "-c", &code]);
    spec.sandbox.level = level;
    spec.limits.wall_ms = Some(30_000);
    if level != SandboxLevel::None {
        let targets = ours.addresses().iter().map(|address| address.to_string().parse().unwrap()).collect();
        spec.sandbox.connect = targets;
    }
    spec
}

fn run(mut spec: ExecutionSpec) -> (EngineReport, Arc<RecordingSink>) {
    // Not in /tmp, which is hidden.
    let workdir = tempfile::Builder::new().prefix("glasshouse-allow-").tempdir_in("/root").unwrap();
    spec.workdir = Some(workdir.path().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let sink = Arc::new(RecordingSink::new());
    let engine = Engine::new(Arc::new(ProcessBackend::new()), Arc::clone(&sink) as _);
    let report = runtime.block_on(engine.run(spec, None));
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    (report, sink)
}

/// Listeners of the node, or why there is nothing to try.
fn listeners() -> Result<[Listeners; 2], String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("a sandbox needs root".into());
    }
    if !std::path::Path::new("/usr/bin/python3").exists() {
        return Err("there is no /usr/bin/python3".into());
    }
    ProcessBackend::try_allow_list(spec(["true"]).id)?;
    let made = || Listeners::new().map_err(|error| format!("no IPv6 on loopback: {error}"));
    Ok([made()?, made()?])
}

fn results(report: &EngineReport) -> BTreeMap<String, String> {
    let printed = String::from_utf8_lossy(&report.output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&report.output.stderr).into_owned();
    assert_eq!(report.outcome.exit_code, 0, "{:?} {printed} {errors}", report.outcome);
    let pairs = printed.lines().filter_map(|line| line.rsplit_once(' '));
    pairs.map(|(name, result)| (name.to_owned(), result.to_owned())).collect()
}

#[test]
fn what_is_allowed_is_reached_and_nothing_else_is() {
    let [ours, other] = match listeners() {
        Ok(listeners) => listeners,
        Err(reason) => return report_skipped("what_is_allowed_is_reached_and_nothing_else_is", &reason),
    };
    let free = results(&run(confined(SandboxLevel::None, &ours, &other, ATTEMPTS)).0);
    for level in [SandboxLevel::Standard, SandboxLevel::Strict] {
        let (report, sink) = run(confined(level, &ours, &other, ATTEMPTS));
        let found = results(&report);
        assert_eq!(found.len(), free.len(), "{level}: {found:?}");
        for (attempt, result) in &found {
            let said = format!("{attempt} at {level}: {result}, without a sandbox {}", free[attempt]);
            if attempt.starts_with("allowed") || attempt == "route table" {
                assert_eq!(result, "ok", "{said}");
            } else if free[attempt] == "ok" {
                assert_eq!(result, "EPERM", "{said}");
            } else {
                report_skipped(attempt, &said);
            }
        }
        // Those that every node lets through.
        for attempt in
            ["connect4", "connect6", "connect mapped", "sendto4", "sendto6", "sendto mapped", "sendmsg4"]
        {
            assert_eq!(free[&format!("other {attempt}")], "ok", "{free:?}");
        }
        let Some(Phase::Prepared(prepared)) = sink.phase(PhaseName::Prepared) else { panic!("not prepared") };
        let told = prepared.environment.sandbox;
        assert_eq!((told.network.as_str(), told.connect.len()), ("allow-list", 4), "{told:?}");
        assert_eq!(told.not_applied, Vec::<String>::new(), "{level}");
    }
}

#[test]
fn nobody_else_gets_through_to_the_command() {
    let [ours, other] = match listeners() {
        Ok(listeners) => listeners,
        Err(reason) => return report_skipped("nobody_else_gets_through_to_the_command", &reason),
    };
    for (level, first) in [
        (SandboxLevel::None, "intruder"),
        (SandboxLevel::Standard, "answer"),
        (SandboxLevel::Strict, "answer"),
    ] {
        let answering = ours.udp[0].try_clone().unwrap();
        let intruding = other.udp[0].try_clone().unwrap();
        answering.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let answerer = std::thread::spawn(move || {
            let (_, from) = answering.recv_from(&mut [0; 16]).unwrap();
            intruding.send_to(b"intruder", from).unwrap();
            answering.send_to(b"answer", from).unwrap();
        });
        let (report, _) = run(confined(level, &ours, &other, INBOUND));
        answerer.join().unwrap();
        assert_eq!(String::from_utf8_lossy(&report.output.stdout).trim_end(), first, "{level}: {report:?}");
    }
}

#[test]
fn a_name_that_has_no_address_runs_nothing() {
    let [ours, other] = match listeners() {
        Ok(listeners) => listeners,
        Err(reason) => return report_skipped("a_name_that_has_no_address_runs_nothing", &reason),
    };
    let mut spec = confined(SandboxLevel::Standard, &ours, &other, "print('ran')");
    spec.sandbox.connect.push("no-such-host.invalid:443".parse().unwrap());
    let (report, _) = run(spec);
    assert_eq!(report.outcome.exit_code, 125);
    assert!(report.output.stdout.is_empty());
    assert!(report.outcome.error.unwrap().contains("no-such-host.invalid"));
}
