//! What a sandbox refuses, and which limit was exceeded, stands in the receipt.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use glasshouse_e2e::{command, output, skip_unless_watching_works, stderr, strings, watched};

const TRIES: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None)
os.system('true')
libc.mount(b'none', b'.', b'tmpfs', 0, None)
libc.unshare(0x10000000)
libc.syscall(ctypes.c_long(321), 0, ctypes.create_string_buffer(128), 128)
libc.syscall(ctypes.c_long(425), 4, ctypes.create_string_buffer(248))
libc.syscall(ctypes.c_long(101), 0x4206, 1, 0, 0)
libc.syscall(ctypes.c_long(302), 0, 7, (ctypes.c_ulong * 2)(1 << 30, 1 << 30), 0)
libc.syscall(ctypes.c_long(304), 0, ctypes.create_string_buffer(148), 0)
try: open('/usr/glasshouse', 'w')
except OSError: pass
try: open('/proc/sys/kernel/core_pattern', 'w')
except OSError: pass
open('/tmp/private', 'w').close()
open('kept', 'w').close()
"#;

/// What of it each level refuses by a permission.
const DENIED: [&str; 7] =
    ["mount", "unshare", "bpf", "io_uring_setup", "ptrace", "prlimit64", "open_by_handle_at"];

#[test]
fn refused_calls_and_own_paths_are_in_a_closed_receipt() {
    skip_unless_watching_works!();
    for level in ["standard", "strict"] {
        let dir = tempfile::tempdir_in("/root").unwrap();
        let workdir = dir.path().canonicalize().unwrap();
        let options = ["--sandbox", level, "--workdir", workdir.to_str().unwrap()];
        let (receipt, output) = watched(dir.path(), &options, &["/usr/bin/python3", "-c", TRIES]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
        assert_eq!(receipt["environment"]["sandbox"]["level"], level);
        assert_eq!(receipt["environment"]["sandbox"]["not_applied"], serde_json::Value::Null);
        let denied = strings(&receipt, "/syscalls/denied");
        for name in DENIED {
            assert!(denied.iter().any(|denied| denied == name), "{name} is not in {denied:?}");
        }
        // What is not to be written to says so in words of its own at each level.
        for path in ["/usr/glasshouse", "/proc/sys/kernel/core_pattern"] {
            let files = receipt["files"].as_array().unwrap();
            let file = files.iter().find(|file| file["path"] == path);
            assert!(file.is_some_and(|file| file["errors"].is_object()), "{path}: {file:?}");
        }
        let writes = strings(&receipt, "/filesystem/writes");
        for path in ["/tmp/private".to_owned(), format!("{}/kept", workdir.display())] {
            assert!(writes.contains(&path), "{path} is not in {writes:?}");
        }
        assert!(workdir.join("kept").exists());
        // The command is the first of its tree, by the node's ids; neither the init nor the set-up is in it.
        let tree = receipt["process_tree"].as_array().unwrap();
        assert_eq!(tree[0]["argv"][0], "/usr/bin/python3");
        assert!(tree[0]["pid"].as_u64().unwrap() > 2, "{:?}", tree[0]["pid"]);
        assert!(
            tree.iter().all(|process| process["forked_only"] != true || process["ppid"] == tree[0]["pid"])
        );
    }
}

/// One address is allowed, and a listener at another one is tried.
#[test]
fn a_connection_that_is_not_allowed_is_in_the_receipt_with_its_refusal() {
    skip_unless_watching_works!();
    let [allowed, other] = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |of: &std::net::TcpListener| of.local_addr().unwrap().port();
    let code = format!(
        "import socket\nfor port in ({}, {}):\n    try: socket.create_connection(('127.0.0.1', port))\n    except PermissionError: print('refused', port)",
        port(&allowed),
        port(&other)
    );
    for level in ["standard", "strict"] {
        let dir = tempfile::tempdir_in("/root").unwrap();
        let target = format!("127.0.0.1:{}", port(&allowed));
        let workdir = dir.path().canonicalize().unwrap();
        let options =
            ["--sandbox", level, "--allow-connect", &target, "--workdir", workdir.to_str().unwrap()];
        let (receipt, output) = watched(dir.path(), &options, &["/usr/bin/python3", "-c", &code]);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(printed, format!("refused {}\n", port(&other)), "{}", stderr(&output));
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
        let sandbox = &receipt["environment"]["sandbox"];
        assert_eq!((&sandbox["network"], &sandbox["connect"][0]), (&"allow-list".into(), &target.into()));
        assert!(strings(&receipt, "/syscalls/denied").iter().any(|name| name == "connect"), "{receipt:#}");
        let sockets = receipt["sockets"].as_array().unwrap();
        let of = |port: u16| sockets.iter().find(|socket| socket.to_string().contains(&port.to_string()));
        assert!(of(port(&other)).unwrap().to_string().contains("EPERM"), "{sockets:#?}");
        assert!(!of(port(&allowed)).unwrap().to_string().contains("EPERM"), "{sockets:#?}");
    }
}

#[test]
fn a_limit_is_named_in_the_receipt() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let (receipt, output) = watched(dir.path(), &["--limit", "wall=300ms"], &["sleep", "1000"]);
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));
    assert_eq!(receipt["outcome"]["limit_exceeded"], "wall");
    assert_eq!(receipt["outcome"]["error"], "limit exceeded: wall: 300 ms");
    assert_eq!(receipt["environment"]["sandbox"]["limits"]["wall_ms"], 300);
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
}

#[test]
fn what_makes_no_sense_says_so_and_runs_nothing() {
    for (options, expected) in [
        (&["--limit", "ram=1"][..], "there is no limit `ram`"),
        (&["--limit", "memory=much"], "is not a size"),
        (&["--network", "none"], "choose the level standard or strict"),
        (&["--sandbox", "strict", "--network", "host"], "strict has no network"),
        (&["--sandbox", "standard", "--workdir", "/"], "cannot be writable"),
        (&["--sandbox", "strict", "--allow-connect", "example.org"], "a name needs a port"),
        (&["--sandbox", "none", "--allow-connect", "192.0.2.1:1"], "choose the level standard or strict"),
        (
            &["--sandbox", "standard", "--network", "host", "--allow-connect", "192.0.2.1"],
            "cannot be used with",
        ),
    ] {
        let mut run = command("glasshouse");
        run.arg("run").args(options).args(["--", "echo", "ran"]);
        let output = output(run);
        assert!(!output.status.success() && output.stdout.is_empty(), "{options:?}");
        assert!(stderr(&output).contains(expected), "{options:?}: {}", stderr(&output));
    }
}
