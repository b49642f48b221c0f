//! Commands in virtual machines, by the programs that users run: an image is built, and what a machine's receipt says is
//! what it says of the same command without one; a machine that lies is found out; nothing is left of any.
//!
//! `GLASSHOUSE_MACHINES=20,4` runs so many machines one after the other, and so many at once; without it, few.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machines {
    mod agents;
    pub(crate) mod image;
    pub(crate) mod traces;
}
// What two receipts must agree about is said once.
#[path = "../../kernels/src/facts.rs"]
#[allow(dead_code, reason = "the runner of kernels uses the rest of it")]
mod facts;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use glasshouse_e2e::{command, output_within, skip_unless_watching_works, stderr};
use serde_json::{Value, json};

use machines::{image, traces};

/// An emulated machine on a busy host takes its time.
const DEADLINE: Duration = Duration::from_secs(180);
/// Where the workload runs in the guest.
const GUEST_DIR: &str = "/srv";
/// The environment that a command in a machine has, and so the other one too.
const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/")];
/// Opens, writes, renames, links, deletes, forks, executes, fails, connects, and is told apart by its exit code.
const WORKLOAD: &str = r#"
echo one > a; cat a >> b; cat < b
mv b c; ln c d; ln -s c e; mkdir f; chmod 600 c; touch f/g; rm a d; rm -r f
cat nothing 2> errors
(exec head -n 1 /etc/hostname > h)
(sleep 0; exit 3); sh -c 'kill -9 $$'
setsid bash -c ': < /dev/tcp/127.0.0.1/9' 2>> errors
cat c | head -n 1 > i
exit 7
"#;

macro_rules! skip_unless_machines_work {
    () => {{
        skip_unless_watching_works!();
        match image::made() {
            Ok(image) => image,
            Err(reason) => {
                let required = std::env::var("GLASSHOUSE_CONFORMANCE")
                    .is_ok_and(|names| names.split(',').any(|name| name == "qemu"));
                assert!(!required, "GLASSHOUSE_CONFORMANCE=qemu, and {reason}");
                return eprintln!("skipped: {reason}");
            }
        }
    }};
}
pub(crate) use skip_unless_machines_work;

/// Where machines are kept that tests share.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// `glasshouse run` in a machine, with its temporary files in `dir`. Which machine of a test comes first, boots and is kept is not
/// said, but for those that have a cache of their own.
fn in_machine(dir: &Path, image: &Path, profile: &str, receipt: &Path) -> Command {
    let mut command = command("glasshouse");
    command.env("XDG_CACHE_HOME", cache()).env("TMPDIR", dir);
    command.args(["run", "--backend", "qemu", "--profile", profile, "--receipt"]);
    command.arg(receipt).arg("--image").arg(image);
    command
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Begin {
    /// It boots, and is not kept.
    Cold,
    /// It boots, and is kept.
    Kept,
    /// It is restored.
    Restored,
}

impl Begin {
    /// In this order, with a cache that is empty at first.
    const ALL: [Self; 3] = [Self::Cold, Self::Kept, Self::Restored];

    fn of(self, run: &mut Command, cache: &Path) {
        run.env("XDG_CACHE_HOME", cache).args((self == Self::Cold).then_some("--cold-boot"));
    }

    /// Whether the receipt says it, and the cache has what it is to have.
    fn is_told(self, receipt: &Value, cache: &Path) {
        let kept = std::fs::read_dir(cache.join("glasshouse/templates")).map_or(0, |kept| kept.count());
        assert_eq!(kept, usize::from(self != Self::Cold), "{self:?}");
        let snapshot = &receipt["environment"]["snapshot"];
        assert_eq!(snapshot.is_string(), self == Self::Restored, "{self:?}: {snapshot}");
    }
}

fn read(receipt: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(receipt).expect("a receipt")).expect("it is JSON")
}

#[test]
fn the_image_of_these_tests_stays_one_file() {
    let identity = |image: &Path| {
        let of = std::fs::metadata(image).unwrap();
        (of.ino(), of.ctime(), of.ctime_nsec())
    };
    let image = image::make().unwrap();
    let before = identity(&image);
    assert_eq!(image::make().unwrap(), image);
    assert_eq!(identity(&image), before);
}

#[test]
fn a_guest_tells_the_same_facts_as_the_host() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (on_host, in_guest) = (dir.join("host.json"), dir.join("guest.json"));
    let work = dir.join("work");
    std::fs::create_dir(&work).unwrap();
    let argv = ["--", "/bin/sh", "-c", WORKLOAD];

    let mut run = command("glasshouse");
    run.args(["run", "--profile", "host", "--receipt"]).arg(&on_host).arg("--workdir").arg(&work).args(argv);
    run.env_clear().envs(ENVIRONMENT);
    let host = output_within(DEADLINE, run);
    assert_eq!(host.status.code(), Some(7), "{}", stderr(&host));
    let on_host = read(&on_host);
    let on_host = facts::facts(&facts::seen_from("host", &on_host), &[(work.to_str().unwrap(), "$DIR")]);
    assert!(on_host.len() > 50, "only {} facts were compared", on_host.len());

    let cache = dir.join("cache");
    for begin in Begin::ALL {
        let mut run = in_machine(&dir, &image, "combined", &in_guest);
        begin.of(&mut run, &cache);
        run.args(["--workdir", GUEST_DIR]).args(argv);
        let guest = output_within(DEADLINE, run);
        assert_eq!(guest.status.code(), Some(7), "{begin:?}: {}", stderr(&guest));
        assert_eq!(String::from_utf8_lossy(&host.stdout), String::from_utf8_lossy(&guest.stdout));
        let in_guest = read(&in_guest);
        begin.is_told(&in_guest, &cache);
        assert_eq!(in_guest["completeness"], "closed", "{:#}", in_guest["coverage"]["incomplete"]);
        assert_eq!(in_guest["provenance"], "host+guest");
        assert_eq!(in_guest["contradictions"], Value::Null);
        let digest = glasshouse_schema::Digest::of(&std::fs::read(&image).unwrap());
        let told = serde_json::json!({"name": image, "digest": digest});
        assert_eq!(in_guest["environment"]["image"], told);
        let guest = facts::facts(&facts::seen_from("guest", &in_guest), &[(GUEST_DIR, "$DIR")]);
        assert_eq!(facts::differences(&on_host, &guest), Vec::<String>::new(), "{begin:?}");
        eprintln!("{begin:?}: {} facts are the same", on_host.len());
        // Beside them stands what the host saw of the machine.
        let tree = in_guest["process_tree"].as_array().unwrap();
        let vmm: Vec<_> = tree.iter().filter(|process| process["vantage"] == "host").collect();
        assert_eq!((vmm.len(), &vmm[0]["exe"]), (1, &in_guest["environment"]["vmm"]["programs"][0]));
    }
}

/// A command that cannot be run is no fault of its guest: the receipt says that nothing ran, and is whole.
#[test]
fn what_cannot_be_run_has_a_whole_receipt() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir().unwrap();
    let receipt = dir.path().join("receipt.json");
    for (program, code) in [("/etc", 126), ("/nonexistent", 127)] {
        let mut run = in_machine(dir.path(), &image, "combined", &receipt);
        run.args(["--", program]);
        let ran = output_within(DEADLINE, run);
        assert_eq!(ran.status.code(), Some(code), "{}", stderr(&ran));
        let receipt = read(&receipt);
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
        assert_eq!(receipt["outcome"]["exit_code"], code);
        let tree = receipt["process_tree"].as_array().unwrap();
        assert!(tree.iter().all(|process| process["vantage"] == "host"), "{tree:#?}");
    }
}

/// The first run of a machine that was kept before boots nothing.
#[test]
fn a_machine_is_kept_before_its_first_run() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir().unwrap();
    let (cache, receipt) = (dir.path().join("cache"), dir.path().join("receipt.json"));
    let of = |rest: &[&str]| {
        let mut run = in_machine(dir.path(), &image, "guest", &receipt);
        run.env("XDG_CACHE_HOME", &cache).args(["--limit", "memory=64MiB"]).args(rest);
        output_within(DEADLINE, run)
    };
    let mut kept = Vec::new();
    for was_kept in [false, true] {
        // A server that is set for all runs is no reason not to.
        let ran = of(&["--keep-only", "--json", "--nats", "nats://127.0.0.1:1"]);
        assert!(ran.status.success(), "{}", stderr(&ran));
        let text = stderr(&ran);
        let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{text}"));
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["was_kept"], was_kept, "{line}");
        kept.push(line["snapshot"].clone());
    }
    assert!(!receipt.exists());
    let ran = of(&["--", "/bin/sh", "-c", "exit 3"]);
    assert_eq!(ran.status.code(), Some(3), "{}", stderr(&ran));
    let snapshot = read(&receipt)["environment"]["snapshot"].clone();
    assert_eq!(kept, [snapshot.clone(), snapshot]);
}

#[test]
fn a_machine_that_is_more_than_it_says_is_found_out() {
    let image = skip_unless_machines_work!();
    // Where the VMM's sandbox has no directory of its own.
    let dir = tempfile::tempdir_in("/root").unwrap();
    let (liar, secret) = (dir.path().join("vmm"), dir.path().join("secret"));
    std::fs::write(&secret, "secret").unwrap();
    let real = std::env::var("GLASSHOUSE_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let script = format!(
        "#!/bin/bash\nread -r line < {}\n(exec 3<> /dev/tcp/127.0.0.1/9) 2> /dev/null\nexec {real} \"$@\"\n",
        secret.display()
    );
    std::fs::write(&liar, script).unwrap();
    std::fs::set_permissions(&liar, PermissionsExt::from_mode(0o755)).unwrap();

    let receipt = dir.path().join("receipt.json");
    let mut run = in_machine(&std::env::temp_dir(), &image, "combined", &receipt);
    run.env("GLASSHOUSE_QEMU", &liar).args(["--", "/bin/sh", "-c", "exit 5"]);
    let output = output_within(DEADLINE, run);
    // The command itself is none the worse for it.
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    let receipt = read(&receipt);
    let found = receipt["contradictions"].as_array().unwrap_or_else(|| panic!("none: {receipt:#}"));
    let kinds: Vec<&str> = found.iter().map(|found| found["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["vmm_file", "vmm_network", "vmm_program"], "{found:#?}");
    let said = |kind: usize, who: usize| &found[kind]["said"][who];
    assert!(said(0, 0)["says"].as_str().unwrap().contains("secret"), "{found:#?}");
    assert!(said(1, 0)["says"].as_str().unwrap().contains("connect 127.0.0.1:9 (tcp)"), "{found:#?}");
    assert_eq!((&said(1, 0)["vantage"], &said(1, 1)["vantage"]), (&json!("host"), &json!("guest")));
    assert!(said(2, 0)["says"].as_str().unwrap().contains("bash"), "{found:#?}");
    assert_eq!(receipt["completeness"], "partial");
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
}

/// Says its name to whoever connects, until the test ends.
fn greeter(address: Ipv4Addr, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // One that has had enough is no failure.
            let _ = writeln!(stream.unwrap(), "{name}");
        }
    });
    at
}

/// An address of this host that is not its loopback, if it has one.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: the kernel says by which address it would.
    socket.connect("198.51.100.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// What a machine calls an address of the host.
fn inside(address: SocketAddr) -> String {
    let host = if address.ip().is_loopback() { "10.0.2.2".to_owned() } else { address.ip().to_string() };
    format!("/dev/tcp/{host}/{}", address.port())
}

/// The results of the connects of a vantage point to an address.
fn connects(receipt: &Value, vantage: &str, to: &str) -> Vec<String> {
    let mine = |socket: &&Value| {
        socket["vantage"] == vantage && socket["dst"] == to && socket["operation"] == "connect"
    };
    let found = receipt["sockets"].as_array().unwrap().iter().filter(mine);
    found.flat_map(|socket| socket["results"].as_object().unwrap().keys().cloned()).collect()
}

#[test]
fn a_machine_reaches_what_is_on_its_list_and_nothing_else() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir().unwrap();
    let receipt = dir.path().join("receipt.json");
    let (allowed, other) = (greeter(Ipv4Addr::LOCALHOST, "allowed"), greeter(Ipv4Addr::LOCALHOST, "other"));
    let routed = own_address().map(|address| greeter(address, "routed"));
    let unlisted = own_address().map(|address| greeter(address, "unlisted"));
    if routed.is_none() {
        eprintln!("skipped: addresses beyond loopback: this host has none");
    }

    let cache = dir.path().join("cache");
    for begin in [Begin::Kept, Begin::Restored] {
        let mut run = in_machine(dir.path(), &image, "combined", &receipt);
        begin.of(&mut run, &cache);
        for address in [Some(allowed), routed].into_iter().flatten() {
            run.args(["--allow-connect", &address.to_string()]);
        }
        let all = [Some(allowed), Some(other), routed, unlisted].into_iter().flatten();
        let attempt = |to| format!("(exec 3<> {to} && cat <&3) || echo refused\n", to = inside(to));
        let script: String = all.map(attempt).chain(["exit 9".to_owned()]).collect();
        run.args(["--", "/bin/bash", "-c", &script]);
        let output = output_within(DEADLINE, run);
        assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
        let expected =
            if routed.is_some() { "allowed\nrefused\nrouted\nrefused\n" } else { "allowed\nrefused\n" };
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", stderr(&output));

        let receipt = read(&receipt);
        begin.is_told(&receipt, &cache);
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
        assert_eq!(receipt["contradictions"], Value::Null);
        let sandbox = &receipt["environment"]["sandbox"];
        assert_eq!(
            (&sandbox["network"], &sandbox["connect"][0]),
            (&json!("allow-list"), &json!(allowed.to_string()))
        );
        // Both tell of what was reached, and of what was refused.
        let alias = |address: SocketAddr| format!("10.0.2.2:{}", address.port());
        assert_eq!(connects(&receipt, "guest", &alias(allowed)), ["ok"]);
        assert_eq!(connects(&receipt, "host", &allowed.to_string()), ["EINPROGRESS"]);
        assert_eq!(connects(&receipt, "guest", &alias(other)), ["ENETUNREACH"]);
        assert_eq!(connects(&receipt, "host", &other.to_string()), ["EPERM"]);
        if let Some(unlisted) = unlisted {
            assert_eq!(connects(&receipt, "guest", &unlisted.to_string()), ["ENETUNREACH"]);
            assert_eq!(connects(&receipt, "host", &unlisted.to_string()), ["EPERM"]);
        }
    }
}

#[test]
fn a_machine_that_goes_where_its_guest_does_not_is_found_out() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir_in("/root").unwrap();
    let (told, hidden) = (greeter(Ipv4Addr::LOCALHOST, "told"), greeter(Ipv4Addr::LOCALHOST, "hidden"));
    let liar = dir.path().join("vmm");
    let real = std::env::var("GLASSHOUSE_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let script =
        format!("#!/bin/bash\n(exec 3<> /dev/tcp/127.0.0.1/{})\nexec {real} \"$@\"\n", hidden.port());
    std::fs::write(&liar, script).unwrap();
    std::fs::set_permissions(&liar, PermissionsExt::from_mode(0o755)).unwrap();

    let receipt = dir.path().join("receipt.json");
    let mut run = in_machine(&std::env::temp_dir(), &image, "combined", &receipt);
    run.env("GLASSHOUSE_QEMU", &liar).args(["--allow-connect", "127.0.0.1"]);
    run.args(["--", "/bin/bash", "-c", &format!("exec 3<> {} && cat <&3", inside(told))]);
    let output = output_within(DEADLINE, run);
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &b"told\n"[..]),
        "{}",
        stderr(&output)
    );
    let receipt = read(&receipt);
    let found = receipt["contradictions"].as_array().unwrap_or_else(|| panic!("none: {receipt:#}"));
    let found =
        found.iter().find(|found| found["kind"] == "vmm_network").unwrap_or_else(|| panic!("{found:#?}"));
    let (host, guest) = (&found["said"][0], &found["said"][1]);
    let says = format!("the machine's process used the network: connect {hidden} (tcp)");
    assert_eq!((&host["vantage"], &host["says"]), (&json!("host"), &json!(says)));
    assert_eq!((&guest["vantage"], &guest["says"]), (&json!("guest"), &json!("nothing went to there")));
    assert_eq!(receipt["completeness"], "partial");
}

#[test]
fn an_agent_runs_a_command_in_a_machine() {
    let image = skip_unless_machines_work!();
    let dir = tempfile::tempdir().unwrap();
    let receipt = dir.path().join("receipt.json");
    let mut agent = command("glasshouse-node-agent");
    agent.env("XDG_CACHE_HOME", cache());
    agent.args(["--backends", "qemu", "--profile", "combined", "--receipt"]).arg(&receipt);
    agent.arg("--image").arg(&image).args(["--", "/bin/sh", "-c", "cat /etc/hostname; exit 6"]);
    let output = output_within(DEADLINE, agent);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    assert_eq!(output.stdout, std::fs::read("/etc/hostname").unwrap());
    let receipt = read(&receipt);
    assert_eq!(
        (&receipt["execution"]["backend"], &receipt["provenance"]),
        (&json!("qemu"), &json!("host+guest"))
    );
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
}

/// How many machines one after the other, and how many at once.
fn how_many() -> (usize, usize) {
    let Ok(text) = std::env::var("GLASSHOUSE_MACHINES") else { return (3, 2) };
    let (one, other) = text.split_once(',').expect("GLASSHOUSE_MACHINES=SEQUENCE,ATONCE");
    (one.parse().unwrap(), other.parse().unwrap())
}

#[test]
fn nothing_is_left_of_machines() {
    let image = skip_unless_machines_work!();
    let (in_sequence, at_once) = how_many();
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let before = traces::Node::now();
    let run = |number: usize| {
        let began = Instant::now();
        let receipt = dir.path().join(format!("{number}.json"));
        let mut run = in_machine(&temporary, &image, "combined", &receipt);
        run.args(["--", "/bin/sh", "-c", "cat /etc/hostname; sleep 1000 & exit 4"]);
        let output = output_within(DEADLINE, run);
        assert_eq!(output.status.code(), Some(4), "machine {number}: {}", stderr(&output));
        let receipt = read(&receipt);
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
        let id = receipt["execution_id"].as_str().unwrap().to_owned();
        let left = traces::of_execution(&id);
        eprintln!("machine {number}: {:?}, left: {}", began.elapsed(), left.len());
        assert_eq!(left, Vec::<String>::new());
        id
    };
    let mut ids: Vec<String> = (0..in_sequence).map(run).collect();
    ids.extend(std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> =
            (0..at_once).map(|number| scope.spawn(move || run(in_sequence + number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    }));
    let left: Vec<String> = ids.iter().flat_map(|id| traces::of_execution(id)).collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(traces::of_directory(&temporary), Vec::<String>::new());
    assert_eq!(traces::Node::left_since(&before), Vec::<String>::new());
    eprintln!("{in_sequence} machines in sequence and {at_once} at once left nothing behind");
}
