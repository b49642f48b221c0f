//! The conformance suite of backends and the tests of machines, on machines of QEMU that are restored; and how they are kept.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "machines.rs"]
mod machines;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_execution::ExecutionSpec;
use glasshouse_execution::backend::{ExecutionBackend as _, ExitStatus};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_vm::qemu::{Config, Qemu};
use glasshouse_vm::{Templates, VmBackend};

use machines::support::{apart::apart, config, image_with};
use machines::watched::{cat, run, tells};

glasshouse_backends::conformance!(qemu, super::machines::support::InMachine);

/// Machines with a cache of their own.
struct Kept {
    config: Config,
    dir: tempfile::TempDir,
}

impl Kept {
    fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let templates = Some(Templates::in_cache(dir.path()));
        Ok(Self { config: Config { templates, ..config()? }, dir })
    }

    fn machine(&self) -> VmBackend {
        VmBackend::new(Qemu::new(self.config.clone(), Default::default()))
    }

    /// Every file of the cache.
    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.dir.path().join("templates")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// What a command does in the next machine, and what that descends from.
    async fn ran(&self, spec: &ExecutionSpec) -> (ExitStatus, Vec<u8>, Option<Digest>) {
        let backend = self.machine();
        backend.prepare(spec).await.unwrap();
        backend.start(spec).await.unwrap();
        backend.release().await.unwrap();
        let status = backend.wait().await.unwrap().status;
        let stdout = backend.drain(false).await.unwrap().stdout;
        let snapshot = backend.environment().snapshot;
        assert_eq!(backend.cleanup().await, Vec::<String>::new());
        (status, stdout, snapshot)
    }
}

macro_rules! kept_or_skip {
    ($name:literal) => {
        match Kept::new() {
            Ok(kept) => kept,
            Err(reason) => return report_skipped($name, &reason),
        }
    };
}

fn hello() -> ExecutionSpec {
    spec(["/bin/sh", "-c", "echo hello; cat /etc/no-program; exit 5"])
}

const SAID: &[u8] = b"hello\nno program";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_machine_is_kept_while_it_runs_and_the_next_one_is_restored() {
    let kept = kept_or_skip!("the_first_machine_is_kept_while_it_runs_and_the_next_one_is_restored");
    assert_eq!(kept.ran(&hello()).await, (ExitStatus::Code(5), SAID.to_vec(), None));
    let [file] = kept.files().try_into().unwrap();
    let digest = Digest::of(&fs::read(&file).unwrap());
    assert!(file.to_str().unwrap().ends_with(&digest.to_string()), "{}", file.display());
    for _ in 0..2 {
        assert_eq!(kept.ran(&hello()).await, (ExitStatus::Code(5), SAID.to_vec(), Some(digest)));
    }
    assert_eq!(kept.files(), [file]);
    apart(|| kept.machine(), digest).await;
    let boot = spec(["/bin/cat", "/proc/sys/kernel/random/boot_id"]);
    assert_ne!(kept.ran(&boot).await.1, kept.ran(&ExecutionSpec { id: hello().id, ..boot.clone() }).await.1);

    // Another machine is not that one.
    let other = Kept { config: Config { vcpus: 2, ..kept.config.clone() }, dir: kept.dir };
    assert_eq!(other.ran(&hello()).await, (ExitStatus::Code(5), SAID.to_vec(), None));
    let (status, said, snapshot) = other.ran(&hello()).await;
    assert_eq!((status, said.as_slice()), (ExitStatus::Code(5), SAID));
    assert!(snapshot.is_some_and(|snapshot| snapshot != digest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_kept_ahead_of_its_first_command() {
    let kept = kept_or_skip!("a_machine_is_kept_ahead_of_its_first_command");
    let spec = ExecutionSpec { profile: ProfilingMode::Guest, ..hello() };
    let is_kept =
        async || kept.machine().keep(&ExecutionSpec { id: hello().id, ..spec.clone() }).await.unwrap();
    let glasshouse_vm::Kept::Now(digest) = is_kept().await else { panic!("it is not kept") };
    assert_eq!(is_kept().await, glasshouse_vm::Kept::Before(digest));
    assert_eq!(kept.ran(&spec).await, (ExitStatus::Code(5), SAID.to_vec(), Some(digest)));
    // One that is not watched from inside is another.
    assert_eq!(kept.ran(&hello()).await.2, None);
    let cold =
        VmBackend::new(Qemu::new(Config { templates: None, ..kept.config.clone() }, Default::default()));
    assert_eq!(cold.keep(&hello()).await.unwrap(), glasshouse_vm::Kept::Not);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_machine_is_that_of_every_image() {
    let mut kept = kept_or_skip!("a_kept_machine_is_that_of_every_image");
    let spec = ExecutionSpec { profile: ProfilingMode::Guest, ..hello() };
    let again = || ExecutionSpec { id: hello().id, ..spec.clone() };
    assert_eq!(kept.ran(&spec).await.2, None);
    let [file] = kept.files().try_into().unwrap();
    let first = kept.config.image.clone();
    // Larger and smaller than that of the machine that was kept.
    for (said, mib) in [("another image", 56), ("a third one", 32)] {
        kept.config.image = Some(image_with(kept.dir.path(), said, mib).unwrap());
        let (status, stdout, snapshot) = kept.ran(&again()).await;
        assert_eq!((status, stdout), (ExitStatus::Code(5), format!("hello\n{said}").into_bytes()));
        assert!(snapshot.is_some());
    }
    kept.config.image = first;
    let (status, stdout, snapshot) = kept.ran(&again()).await;
    assert_eq!((status, stdout.as_slice(), snapshot.is_some()), (ExitStatus::Code(5), SAID, true));
    assert_eq!(kept.files(), [file]);

    // What has the superblock of an ext4 filesystem and nothing else is no root.
    let broken = kept.dir.path().join("broken");
    let mut bytes = vec![0; 1 << 20];
    bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    fs::write(&broken, bytes).unwrap();
    kept.config.image = Some(broken);
    let (backend, spec) = (kept.machine(), again());
    backend.prepare(&spec).await.unwrap();
    let error = backend.start(&spec).await.unwrap_err().to_string();
    assert!(error.contains("entering the root filesystem") && error.contains("ext4"), "{error}");
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_are_kept_at_once_leave_one() {
    let kept = kept_or_skip!("machines_that_are_kept_at_once_leave_one");
    let (one, other) = (hello(), hello());
    let (one, other) = tokio::join!(kept.ran(&one), kept.ran(&other));
    for (status, said, _) in [one, other] {
        assert_eq!((status, said.as_slice()), (ExitStatus::Code(5), SAID));
    }
    let [file] = kept.files().try_into().unwrap();
    let digest = Digest::of(&fs::read(&file).unwrap());
    assert_eq!(kept.ran(&hello()).await.2, Some(digest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_machine_is_watched_from_its_first_instruction() {
    let name = "a_restored_machine_is_watched_from_its_first_instruction";
    if !nix::unistd::geteuid().is_root() {
        return report_skipped(name, "watching this kernel takes root");
    }
    let kept = kept_or_skip!("a_restored_machine_is_watched_from_its_first_instruction");
    let (_, booted) = run(kept.machine(), cat(ProfilingMode::Combined)).await;
    tells(&booted, ProfilingMode::Combined);
    assert_eq!(booted.environment.snapshot, None);
    for profile in [ProfilingMode::Guest, ProfilingMode::Combined] {
        let (_, restored) = run(kept.machine(), cat(profile)).await;
        tells(&restored, profile);
        assert!(restored.environment.snapshot.is_some());
        // Nothing of the template's own time, and nothing less.
        let of_guest = |receipt: &glasshouse_schema::Receipt| {
            let processes = receipt.process_tree.iter();
            let inside = processes.filter(|process| process.vantage == glasshouse_schema::Vantage::Guest);
            inside.map(|process| (process.exe.clone(), process.argv.clone())).collect::<Vec<_>>()
        };
        assert_eq!(of_guest(&restored), of_guest(&booted));
    }
    assert_eq!(kept.files().len(), 1);
}

/// What becomes of a template that is no longer what was kept: the machine boots, and is kept again.
async fn is_replaced(kept: &Kept, broken: impl Fn(&Path)) {
    kept.ran(&hello()).await;
    let [file] = kept.files().try_into().unwrap();
    broken(&file);
    assert_eq!(kept.ran(&hello()).await, (ExitStatus::Code(5), SAID.to_vec(), None));
    let [again] = kept.files().try_into().unwrap();
    let digest = Digest::of(&fs::read(&again).unwrap());
    assert_eq!(kept.ran(&hello()).await, (ExitStatus::Code(5), SAID.to_vec(), Some(digest)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_was_cut_or_changed_is_replaced() {
    let kept = kept_or_skip!("a_template_that_was_cut_or_changed_is_replaced");
    let opened = |file: &Path| File::options().read(true).write(true).open(file).unwrap();
    is_replaced(&kept, |file| {
        let length = fs::metadata(file).unwrap().len();
        opened(file).set_len(length / 2).unwrap();
    })
    .await;
    is_replaced(&kept, |file| {
        use std::os::unix::fs::FileExt as _;
        let (file, mut byte) = (opened(file), [0]);
        file.read_exact_at(&mut byte, 1 << 20).unwrap();
        file.write_all_at(&[!byte[0]], 1 << 20).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_qemu_does_not_take_is_an_error_once() {
    let kept = kept_or_skip!("a_template_that_qemu_does_not_take_is_an_error_once");
    kept.ran(&hello()).await;
    let [file] = kept.files().try_into().unwrap();
    let name = file.to_str().unwrap();
    let nothing = Digest::of(b"no machine");
    let other = name.replace(name.rsplit('-').next().unwrap(), &nothing.to_string());
    fs::remove_file(&file).unwrap();
    fs::write(&other, "no machine").unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    let (backend, spec) = (kept.machine(), hello());
    backend.prepare(&spec).await.unwrap();
    let error = backend.start(&spec).await.unwrap_err().to_string();
    assert!(error.contains("is removed, so that the next run boots"), "{error}");
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
    assert_eq!(kept.files(), Vec::<PathBuf>::new());
    assert_eq!(kept.ran(&hello()).await, (ExitStatus::Code(5), SAID.to_vec(), None));
}
