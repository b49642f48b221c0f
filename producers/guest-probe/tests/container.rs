//! The probe as the first process of a container, which `unshare` makes here: no host, and what it would be told as JSON lines.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use serde_json::Value;

const PROBE: &str = env!("CARGO_BIN_EXE_glasshouse-guest-probe");
/// The bit of CAP_CHOWN alone.
const CAP_CHOWN: &str = "0000000000000001";

/// A cgroup as a container has one, empty once the container has ended.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Below the root of the hierarchy; `Err` says what this machine lacks.
    fn new(name: &str) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root makes such a container".to_owned());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let mount = mount.and_then(|line| line.split(' ').nth(1)).ok_or("no cgroup v2 is mounted")?;
        let path = Path::new(mount).join(format!("glasshouse-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("no cgroup can be made: {error}"))?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for below in ["glasshouse-probe", "glasshouse", ""] {
            // It was never made, or something is left, which the test has found by then.
            let _ = std::fs::remove_dir(self.0.join(below));
        }
    }
}

/// What a host is told of a command in a container.
fn told(cgroup: &Cgroup, user: &str, script: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let enter =
        "echo $$ > \"$1/cgroup.procs\"; shift; exec unshare --fork --pid --mount-proc --cgroup --net \"$@\"";
    let mut run = Command::new("sh");
    run.args(["-c", enter, "sh"]).arg(&cgroup.0).arg(PROBE);
    run.arg("--transport").arg(format!("jsonl:{}", file.path().display()));
    run.args(["--user", user, "--capabilities", "CAP_CHOWN", "--", "sh", "-c", script]).current_dir("/");
    let ran = run.output().unwrap();
    let console = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{}: {console}", ran.status);
    let lines = std::fs::read_to_string(file.path()).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of all messages of a kind.
fn of<'v>(told: &'v [Value], kind: &str) -> Vec<&'v Value> {
    told.iter().filter(|message| message["kind"] == kind).map(|message| &message["is"]).collect()
}

fn printed(told: &[Value]) -> String {
    let decode =
        |bytes: &Value| base64::engine::general_purpose::STANDARD.decode(bytes.as_str().unwrap()).unwrap();
    let bytes: Vec<u8> = of(told, "stdout").into_iter().flat_map(decode).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_first_process_of_a_container_runs_a_command_with_fewer_rights() {
    let cgroup = match Cgroup::new("first") {
        Ok(cgroup) => cgroup,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let script = "echo $$ $PPID; grep -E 'Cap(Bnd|Eff)|NSpid' /proc/self/status; cat /proc/self/cgroup | grep ^0; \
                  ls /sys/fs/cgroup; (sleep 0.05 &) ; exit 9";
    let told = told(&cgroup, "0:0", script);
    assert_eq!(of(&told, "hello")[0]["is_init"], false);
    assert_eq!(of(&told, "hello")[0]["problems"], serde_json::json!([]));
    assert_eq!(of(&told, "exit")[0]["status"]["code"], 9, "{told:#?}");
    let said = printed(&told);
    // PID 1 reaps, the next one is the probe.
    let pids: Vec<u32> = said.lines().next().unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids[0] > 2 && pids[1] == 2, "{said}");
    for set in ["CapBnd", "CapEff"] {
        assert!(said.contains(&format!("{set}:\t{CAP_CHOWN}")), "{said}");
    }
    // Of the container's cgroup, below which its own is; where that is mounted there is what was there before.
    let own = said.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(own.starts_with("0::/glasshouse/"), "{own}");
    assert!(!said.contains("cgroup.procs"), "{said}");
    let left: Vec<_> = std::fs::read_dir(cgroup.0.join("glasshouse"))
        .unwrap()
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_type().unwrap().is_dir()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_command_of_another_user_has_no_capabilities() {
    let cgroup = match Cgroup::new("user") {
        Ok(cgroup) => cgroup,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let told = told(&cgroup, "65534:65533", "id -u; id -g; grep CapEff /proc/self/status");
    assert_eq!(printed(&told), "65534\n65533\nCapEff:\t0000000000000000\n");
}
