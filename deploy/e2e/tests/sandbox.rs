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
open('/tmp/private', 'w').close()
open('kept', 'w').close()
"#;

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
        for name in ["mount", "unshare", "bpf", "io_uring_setup"] {
            assert!(denied.iter().any(|denied| denied == name), "{name} is not in {denied:?}");
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
        (&["--network", "none"], "--sandbox <LEVEL>"),
        (&["--sandbox", "strict", "--network", "host"], "strict has no network"),
        (&["--sandbox", "standard", "--workdir", "/"], "cannot be writable"),
    ] {
        let mut run = command("glasshouse");
        run.arg("run").args(options).args(["--", "echo", "ran"]);
        let output = output(run);
        assert!(!output.status.success() && output.stdout.is_empty(), "{options:?}");
        assert!(stderr(&output).contains(expected), "{options:?}: {}", stderr(&output));
    }
}
