//! A containerd of the tests' own, with an image made by hand. The end-to-end tests have it too.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::Image;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the image is called.
pub(crate) const IMAGE: &str = "glasshouse.test/busybox:latest";
pub(crate) const RUNTIME: &str = "io.containerd.runc.v2";
pub(crate) const NAMESPACE: &str = "glasshouse-test";
/// How long containerd may take to answer.
const UP_WITHIN: Duration = Duration::from_secs(30);
const PROGRAMS: [&str; 5] = ["sh", "cat", "sleep", "ls", "tr"];

/// Whether what this host lacks is a failure.
pub(crate) fn is_required() -> bool {
    std::env::var("GLASSHOUSE_CONFORMANCE").is_ok_and(|names| names.split(',').any(|name| name == "kata"))
}

/// A running containerd. The last who has it ends it.
pub(crate) struct Containerd {
    dir: TempDir,
    process: Child,
}

impl Containerd {
    /// The one of this process, started if nobody has it; `Err` says what this host lacks.
    pub(crate) fn shared() -> Result<Arc<Self>, String> {
        static RUNNING: Mutex<Weak<Containerd>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(containerd) = running.upgrade() {
            return Ok(containerd);
        }
        let missing: Vec<&str> = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "tar"]
            .into_iter()
            .filter(|name| !have(name))
            .collect();
        let reason = if !nix::unistd::geteuid().is_root() {
            Some("containerd needs root".to_owned())
        } else if !missing.is_empty() {
            Some(format!("this machine lacks {} (apt: containerd, runc)", missing.join(", ")))
        } else if busybox().is_none() {
            Some("this machine lacks a static busybox (apt: busybox-static)".to_owned())
        } else {
            None
        };
        if let Some(reason) = reason {
            assert!(!is_required(), "GLASSHOUSE_CONFORMANCE wants kata, but {reason}");
            return Err(reason);
        }
        let started = Arc::new(Self::start());
        *running = Arc::downgrade(&started);
        Ok(started)
    }

    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("glasshouse-containerd-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock"),
            at("ttrpc"),
        );
        fs::write(at("config.toml"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let process = Command::new("containerd")
            .args(["--config", &at("config.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { dir, process };
        let end = Instant::now() + UP_WITHIN;
        while !containerd.ctr(&["version"]).status.success() {
            assert!(Instant::now() < end, "containerd does not answer: {}", containerd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let archive = image(&containerd.dir.path().join("image"));
        let imported = containerd.ctr(&["images", "import", archive.to_str().unwrap()]);
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        containerd
    }

    /// Runs containerd's own client.
    /// What the image of the tests is, as containerd's own client tells it.
    pub(crate) fn image(&self) -> Image {
        let listed = self.ctr(&["images", "ls", &format!("name=={IMAGE}")]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        let digest = listed.split_whitespace().find_map(|word| word.strip_prefix("sha256:")).unwrap();
        Image { name: IMAGE.to_owned(), digest: digest.parse().unwrap() }
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("ctr")
            .args(["--address", self.address().to_str().unwrap(), "--namespace", NAMESPACE])
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn address(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// What is left of an execution.
    pub(crate) fn left(&self, id: &str) -> Vec<String> {
        let mut left = Vec::new();
        for what in [["tasks", "ls"], ["containers", "ls"], ["snapshots", "ls"]] {
            let listed = self.ctr(&what);
            assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            left.extend(
                listed.lines().filter(|line| line.contains(id)).map(|line| format!("{}: {line}", what[0])),
            );
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(id)).map(str::to_owned));
        left.extend(dirs_named(id, Path::new("/sys/fs/cgroup")));
        let pipes = std::env::temp_dir().join(format!("glasshouse-kata-{id}"));
        left.extend(pipes.exists().then(|| format!("pipes: {}", pipes.display())));
        left
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Every directory of that name below one.
fn dirs_named(name: &str, below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![below.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == *name {
                    found.push(entry.path().display().to_string());
                }
                dirs.push(entry.path());
            }
        }
    }
    found
}

fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// One that needs nothing beside it: it has no interpreter.
fn busybox() -> Option<PathBuf> {
    let candidates = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    candidates.into_iter().find(|path| {
        fs::read(path).is_ok_and(|program| !program.windows(8).take(4096).any(|bytes| bytes == b"ld-linux"))
    })
}

/// Makes an image of one layer, as the OCI image layout has it; gives the archive.
fn image(dir: &Path) -> PathBuf {
    let bin = dir.join("rootfs/bin");
    let blobs = dir.join("layout/blobs/sha256");
    for dir in [&bin, &blobs, &dir.join("rootfs/tmp")] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::copy(busybox().unwrap(), bin.join("busybox")).unwrap();
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for program in PROGRAMS {
        symlink("busybox", bin.join(program)).unwrap();
    }
    let blob = |bytes: &[u8], kind: &str| -> Value {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.to_string()), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layer = fs::read(pack(&dir.join("rootfs"), &dir.join("layer.tar"))).unwrap();
    let layer = blob(&layer, "layer.v1.tar");
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({"io.containerd.image.name": IMAGE});
    let layout = dir.join("layout");
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
    pack(&layout, &dir.join("image.tar"))
}

fn pack(dir: &Path, archive: &Path) -> PathBuf {
    let packed = Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(archive).arg(".").status().unwrap();
    assert!(packed.success());
    archive.to_owned()
}
