//! The VMM `firecracker`: a microVM without firmware, disks or network but what is named here, under KVM only.
//!
//! The guest speaks over vsock, which Firecracker hands on to a Unix socket of the machine's directory. The serial port is
//! Firecracker's standard output, so its own log stands in the same console.
//!
//! With a jailer and as root, Firecracker is a user of its own in a root of its own (`place`); without, it runs as whoever runs
//! us, with the seccomp filters that its build has. Either way it stays in the execution's cgroup.

pub mod kvm;
mod place;
mod pool;
mod template;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_firecracker::api::{BootSource, Drive, MachineConfiguration, Metrics, Vsock};
use glasshouse_firecracker::{Client, ClientError, Machine, guest_link, metrics};
use glasshouse_schema::lifecycle::{Environment, Sandbox, VmmBounds};
use glasshouse_schema::limits::Limits;

use self::place::Place;
pub use self::pool::Pool;
pub use self::template::Template;
use crate::image;
use crate::origin::{CONNECTS_AGAIN, Origin, WATCHES};
use crate::parts::{Parts, ROOT_WORD, Root};
use crate::vmm::{GuestLink, Launch, Vmm, bounds, memory_mib};

/// Names the Firecracker program; without it, `firecracker` of the PATH.
pub const FIRECRACKER_VARIABLE: &str = "GLASSHOUSE_FIRECRACKER";
/// Names its jailer, which needs root; without it there is none.
pub const JAILER_VARIABLE: &str = "GLASSHOUSE_JAILER";
/// The port of the host that the guest connects to.
const PORT: u32 = 1024;
/// Every guest's own: their sockets are not shared.
const GUEST_CID: u32 = 3;
/// How long Firecracker may take until it listens to us.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);
/// File names of a machine.
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";
const IMAGE: &str = "image";
const METRICS: &str = "metrics";
const UDS: &str = "vsock";
const PREPARING: &str = "preparing the virtual machine";
const BOOTING: &str = "booting the virtual machine";

/// How machines are made.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kernel and probe.
    pub parts: Parts,
    /// The Firecracker program, by an absolute path.
    pub firecracker: PathBuf,
    /// Its jailer, by an absolute path; only for root.
    pub jailer: Option<PathBuf>,
    /// The command's root filesystem: an image of ext4, erofs or squashfs. Without it the command sees the probe's own,
    /// which holds nothing else.
    pub image: Option<PathBuf>,
    /// Virtual processors: one, or an even number.
    pub vcpus: u8,
}

/// The Firecracker program of this node, if it runs.
pub fn program() -> Result<PathBuf, String> {
    let program = named(FIRECRACKER_VARIABLE).map_or_else(|| on_path("firecracker"), Ok)?;
    let program = program.canonicalize().map_err(|error| format!("{}: {error}", program.display()))?;
    match Command::new(&program).arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => Err(format!("{} --version ended with {}", program.display(), output.status)),
        Err(error) => Err(format!("{} cannot be run: {error}", program.display())),
    }
}

/// The jailer, if one is named.
pub fn jailer() -> Result<Option<PathBuf>, String> {
    let canonical = |jailer: PathBuf| {
        jailer
            .canonicalize()
            .map_err(|error| format!("{JAILER_VARIABLE} names {}: {error}", jailer.display()))
    };
    named(JAILER_VARIABLE).map(canonical).transpose()
}

fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|name| !name.is_empty()).map(PathBuf::from)
}

fn on_path(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()).ok_or_else(|| {
        format!("there is no {program} on the PATH: name the Firecracker program in {FIRECRACKER_VARIABLE}")
    })
}

/// One machine.
#[derive(Debug)]
pub struct Firecracker {
    config: Config,
    limits: Limits,
    origin: Origin<Template>,
    plan: Arc<OnceLock<Plan>>,
}

/// What was made of a machine before its process.
#[derive(Debug)]
struct Plan {
    place: Place,
    machine: Machine,
}

impl Plan {
    /// The API of its Firecracker, once that listens.
    async fn client(&self) -> Result<Client, ClientError> {
        let client = Client::new(&self.place.api());
        client.ready(LISTENS_WITHIN).await?;
        Ok(client)
    }
}

impl Firecracker {
    /// A machine for a command with these limits.
    pub fn new(config: Config, limits: Limits) -> Self {
        Self::of(config, limits, Origin::Boot)
    }

    fn of(config: Config, limits: Limits, origin: Origin<Template>) -> Self {
        Self { config, limits, origin, plan: Arc::default() }
    }

    /// Where the guest's connection arrives.
    fn socket(&self, dir: &Path) -> PathBuf {
        let uds = self.plan.get().map_or_else(|| dir.join(UDS), |plan| plan.place.here(UDS));
        guest_link(&uds, PORT)
    }

    fn plan(&self) -> Result<&Plan, BackendError> {
        self.plan.get().ok_or_else(|| BackendError::failed(BOOTING, "it was not prepared"))
    }

    /// The machine, by the paths that its Firecracker sees.
    fn machine(&self, place: &Place, vmlinux: &Path) -> Machine {
        let image = self.config.image.as_ref().map(|image| Drive {
            drive_id: "root".into(),
            path_on_host: place.brought(image, IMAGE),
            // Its guest mounts it, and not as its root.
            is_root_device: false,
            is_read_only: true,
        });
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 reboot=k random.trust_cpu=1 cryptomgr.notests 8250.nr_uarts=1 \
             i8042.noaux i8042.nomux i8042.dumbkbd glasshouse.transport=vsock:{PORT}"
        );
        if image.is_some() {
            line.push_str(ROOT_WORD);
        }
        if matches!(self.origin, Origin::Template) {
            // A clone that is not to be watched lets go of it.
            line.extend([CONNECTS_AGAIN, WATCHES]);
        }
        Machine {
            config: MachineConfiguration {
                vcpu_count: self.config.vcpus,
                mem_size_mib: u32::try_from(memory_mib(&self.limits)).unwrap_or(u32::MAX),
                track_dirty_pages: false,
            },
            boot: BootSource {
                kernel_image_path: place.brought(vmlinux, KERNEL),
                initrd_path: Some(place.inside(INITRAMFS)),
                boot_args: Some(line),
            },
            drives: image.into_iter().collect(),
            networks: Vec::new(),
            vsock: Some(Vsock { guest_cid: GUEST_CID, uds_path: place.inside(UDS) }),
            serial: None,
            logger: None,
            metrics: Some(Metrics { metrics_path: place.inside(METRICS) }),
        }
    }

    /// What Firecracker reads, where it finds it.
    fn bring(config: &Config, place: &Place, vmlinux: &Path, from: Option<&Template>) -> Result<(), String> {
        let words = |error: std::io::Error| format!("{}: {error}", place.root().display());
        place.make(METRICS).map_err(words)?;
        if let Some(image) = &config.image {
            place.bring(image, IMAGE).map_err(words)?;
        }
        if let Some(template) = from {
            return template.bring(place).map_err(words);
        }
        place.bring(vmlinux, KERNEL).map_err(words)?;
        let mut devices = vec!["virtio_mmio", "vmw_vsock_virtio_transport"];
        // For entropy, also after a restore. Without them a guest has what the host tells it.
        devices.extend(
            config.parts.kernel.offers(&["virtio_rng", "vmgenid"]).map_err(|error| error.to_string())?,
        );
        let initramfs = place.here(INITRAMFS);
        let root = config.image.as_deref().map(Root::of).transpose();
        root.and_then(|root| config.parts.initramfs(&initramfs, &devices, root, None))
            .map_err(|error| error.to_string())?;
        place.own(&initramfs).map_err(words)
    }
}

#[async_trait]
impl Vmm for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: "firecracker".into(),
            os: "linux".into(),
            arch: std::env::consts::ARCH.into(),
            kernel: self.config.parts.kernel.release.clone(),
            snapshot: self.origin.template().map(|template| template.digest()),
            image: None,
            sandbox: Sandbox { network: "none".into(), limits: self.limits, ..Sandbox::default() },
            vmm: None,
        }
    }

    fn bounds(&self, dir: &Path, _: bool) -> Option<VmmBounds> {
        let Config { parts, firecracker, jailer, image, .. } = &self.config;
        // In a jail its paths are of another root, and cannot be held against ours.
        if jailer.is_some() {
            return None;
        }
        let origin = match self.origin.template() {
            Some(template) => vec![template.dir()],
            None => vec![parts.cache.as_path(), &parts.kernel.image],
        };
        Some(bounds(firecracker, origin.into_iter().chain(image.as_deref()), dir))
    }

    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let failed = |why: &str| Err(BackendError::failed(PREPARING, why));
        if std::env::consts::ARCH != "x86_64" {
            return failed("guests of other machines than x86_64 are not built");
        }
        if self.config.jailer.is_some() && !nix::unistd::geteuid().is_root() {
            return failed(&format!("the jailer needs root: unset {JAILER_VARIABLE}, or run as root"));
        }
        if !spec.sandbox.connect.is_empty() {
            return failed(
                "its machines have no network: leave out --allow-connect, or choose the backend qemu",
            );
        }
        let (has, needs) = (memory_mib(&self.limits), memory_mib(&spec.limits));
        if spec.limits.memory_bytes.is_some() && needs > has {
            return failed(&format!(
                "the command may use more memory than its machine can have: {needs} MiB of {has}"
            ));
        }
        Ok(())
    }

    async fn command(&self, spec: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError> {
        let failed = |error: String| BackendError::failed(PREPARING, error);
        let place = Place::new(dir, &self.config, spec);
        let parts = &self.config.parts;
        let vmlinux = tokio::task::spawn_blocking({
            let parts = parts.clone();
            move || parts.vmlinux()
        });
        let vmlinux = vmlinux.await.map_err(|error| failed(error.to_string()))?;
        let vmlinux = vmlinux.map_err(|error| failed(error.to_string()))?;
        let machine = self.machine(&place, &vmlinux);
        machine.check().map_err(|error| failed(error.to_string()))?;
        let argv = place.command(&self.config.firecracker).map_err(|error| failed(error.to_string()))?;
        kvm::boots(&self.config.firecracker, &vmlinux, &parts.cache).await.map_err(failed)?;
        let brought = tokio::task::spawn_blocking({
            let (config, place) = (self.config.clone(), place.clone());
            let from = self.origin.template().cloned();
            move || {
                Self::bring(&config, &place, &vmlinux, from.as_deref())?;
                let told = config.image.map(|image| image::told(&image, &config.parts.cache)).transpose();
                told.map_err(|error| format!("reading the image: {error}"))
            }
        });
        let image = brought.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
        // It cannot be there yet.
        let _ = self.plan.set(Plan { place, machine });
        Ok(Launch { argv, image, ..Launch::default() })
    }

    fn link(&self, dir: &Path) -> GuestLink {
        GuestLink::Socket(self.socket(dir))
    }

    async fn boot(&self, dir: &Path) -> Result<(), BackendError> {
        let plan = self.plan()?;
        let failed = |error: ClientError| BackendError::failed(BOOTING, error);
        plan.place.own(&self.socket(dir)).map_err(|error| BackendError::failed(BOOTING, error))?;
        let client = plan.client().await.map_err(failed)?;
        if let Some(template) = self.origin.template() {
            return template.load(&client, plan).await.map_err(|error| BackendError::failed(BOOTING, error));
        }
        plan.machine.configure(&client).await.map_err(failed)?;
        Machine::start(&client).await.map_err(failed)
    }

    fn troubles(&self) -> Option<String> {
        let told = std::fs::read_to_string(self.plan.get()?.place.here(METRICS)).ok()?;
        let troubles = metrics::troubles(&told);
        (!troubles.is_empty()).then(|| format!("its metrics count {}", troubles.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use glasshouse_images::kernel::Kernel;

    use super::*;

    fn machine(dir: &Path, jailer: Option<&str>) -> Firecracker {
        let kernel = dir.join("vmlinuz-6.1");
        std::fs::write(&kernel, "").unwrap();
        let kernel = Kernel { release: "6.1".into(), image: kernel, modules_dir: Some(dir.join("modules")) };
        let parts = Parts { kernel, probe: dir.join("probe"), cache: dir.join("cache") };
        let firecracker = dir.join("firecracker");
        std::fs::write(dir.join("firecracker-1.17"), "").unwrap();
        std::os::unix::fs::symlink("firecracker-1.17", &firecracker).unwrap();
        let (image, jailer) = (Some(dir.join("root.erofs")), jailer.map(PathBuf::from));
        Firecracker::new(Config { parts, firecracker, jailer, image, vcpus: 1 }, Limits::default())
    }

    /// What the host may see of it without a contradiction: the program by its real name, its own files, and no more.
    #[test]
    fn it_is_bound_to_its_program_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let of = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let bounds = machine(&dir, None).bounds(&dir.join("machine"), false).unwrap();
        assert_eq!(bounds.programs, [of("firecracker-1.17")]);
        for read in ["/proc", "/usr", &of("cache"), &of("vmlinuz-6.1"), &of("root.erofs")] {
            assert!(bounds.reads.iter().any(|known| known == read), "{read}: {:?}", bounds.reads);
        }
        for strange in ["/", "/etc", "/etc/passwd", "/root", &of("probe"), &of("modules")] {
            assert!(!bounds.reads.iter().chain(&bounds.writes).any(|known| known == strange), "{strange}");
        }
        assert_eq!(bounds.writes, ["/dev/null", "/dev/kvm", "/dev/urandom", "/dev/random", &of("machine")]);
    }

    #[test]
    fn nothing_is_known_of_a_jail() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(machine(dir.path(), Some("/usr/bin/jailer")).bounds(dir.path(), false), None);
    }
}
