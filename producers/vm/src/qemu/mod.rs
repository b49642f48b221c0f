//! The VMM `qemu`: a microVM without firmware, disks or network but what is named here.
//!
//! The machine is QEMU's `microvm`: a serial port for the console, one port of virtio-serial to the host, and the root
//! filesystem as a read-only block device; with an allow-list also a network. It runs under KVM where that was seen to boot
//! ([`accel`]), else emulated.
//!
//! QEMU itself is a user of its own on the node: it is given a seccomp filter by which it starts nothing, and if we are root
//! either the sandbox `standard` of the backend `process` (emulated, or with an allow-list: no capabilities, no network but what is
//! allowed, nothing to write but the machine's directory), or, because there is no /dev/kvm in there, a user id of its own.

pub mod accel;
mod network;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::connect::ConnectTarget;
use glasshouse_schema::lifecycle::{Environment, Sandbox, VmmBounds};
use glasshouse_schema::limits::Limits;
use glasshouse_schema::sandbox::{NetworkAccess, SandboxLevel, SandboxRequest};

use self::accel::Accel;
use crate::parts::Parts;
use crate::vmm::{Launch, Vmm, bounds, memory_mib, own_uid};

/// Names the QEMU program; without it, `qemu-system-x86_64` of the PATH.
pub const QEMU_VARIABLE: &str = "GLASSHOUSE_QEMU";
/// The name of our port of virtio-serial.
const PORT: &str = "glasshouse";
/// What QEMU's libraries look up beside what every program does.
const READS: [&str; 7] =
    ["/etc/ssl", "/etc/gnutls", "/etc/libnl", "/etc/qemu", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"];
const KVM: &str = "/dev/kvm";

/// How machines are made.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kernel and probe.
    pub parts: Parts,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// The command's root filesystem: an image of ext4, erofs or squashfs. Without it the command sees the probe's own,
    /// which holds nothing else.
    pub image: Option<PathBuf>,
    /// Virtual processors.
    pub vcpus: u32,
    /// The machine is QEMU's `q35` with a KVM of its own: emulated, that of AMD's processors.
    pub nested: bool,
}

/// The QEMU program of this node, if it is one that we may run. It is not asked for its version: that takes it 50 ms.
pub fn program() -> Result<PathBuf, String> {
    let named = std::env::var_os(QEMU_VARIABLE).filter(|name| !name.is_empty());
    let program = on_path(Path::new(&named.unwrap_or_else(|| "qemu-system-x86_64".into())));
    match nix::unistd::access(&program, nix::unistd::AccessFlags::X_OK) {
        Ok(()) => Ok(program),
        Err(error) => Err(format!(
            "{} cannot be run: {error}; apt-get install --no-install-recommends qemu-system-x86, or name one in {QEMU_VARIABLE}",
            program.display()
        )),
    }
}

/// How a machine is run on this node.
#[derive(Debug, Clone, Copy)]
struct How {
    accel: Accel,
    own_uid: Option<u32>,
    has_network: bool,
}

/// One machine.
#[derive(Debug)]
pub struct Qemu {
    config: Config,
    limits: Limits,
}

impl Qemu {
    /// A machine for a command with these limits.
    pub fn new(config: Config, limits: Limits) -> Self {
        Self { config, limits }
    }

    /// How QEMU ends the names of devices.
    fn bus(&self) -> &'static str {
        if self.config.nested { "pci" } else { "device" }
    }

    fn devices(&self, has_network: bool) -> Vec<&'static str> {
        let mut devices = match self.config.nested {
            true => vec!["virtio_pci", "virtio_console", "kvm", "kvm_amd", "kvm_intel"],
            false => vec!["virtio_mmio", "virtio_console"],
        };
        devices.extend(has_network.then_some("virtio_net"));
        devices
    }

    fn arguments(&self, dir: &Path, vmlinux: &Path, how: How) -> Vec<OsString> {
        let How { accel, own_uid, has_network } = how;
        let mut text = format!(
            "-M {} -nodefaults -no-user-config -display none -no-reboot -smp {} -m {}M \
             -sandbox on,obsolete=deny,elevateprivileges=allow,spawn=deny,resourcecontrol=deny \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -device virtio-serial-{} -device virtserialport,chardev=link,name={PORT} ",
            if self.config.nested { "q35" } else { "microvm" },
            self.config.vcpus,
            memory_mib(&self.limits),
            self.bus()
        );
        text.push_str(match accel {
            Accel::Kvm => "-accel kvm -cpu host",
            // With `max`, kernels of its guests do not boot.
            Accel::Tcg if self.config.nested => "-accel tcg,thread=multi -cpu EPYC",
            Accel::Tcg => "-accel tcg,thread=multi -cpu max",
        });
        if let Some(uid) = own_uid {
            text.push_str(&format!(" -runas {uid}:{uid}"));
        }
        let mut arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        arguments.extend(["-chardev".into(), option("socket,id=link,path=", &dir.join("link"))]);
        if let Some(image) = &self.config.image {
            arguments
                .extend(["-drive".into(), option("id=root,if=none,format=raw,readonly=on,file=", image)]);
            arguments.extend(["-device".into(), format!("virtio-blk-{},drive=root", self.bus()).into()]);
        }
        if has_network {
            arguments.extend(["-netdev".into(), network::netdev().into()]);
            // On PCI a network card has a ROM to boot from.
            let card = if self.config.nested { "virtio-net-pci,romfile=" } else { "virtio-net-device" };
            arguments.extend(["-device".into(), format!("{card},netdev=net").into()]);
        }
        arguments.extend(["-kernel".into(), vmlinux.into(), "-initrd".into(), dir.join("initramfs").into()]);
        arguments.extend(["-append".into(), self.kernel_line(accel, has_network).into()]);
        arguments
    }

    fn sandbox(&self, vmlinux: &Path, accel: Accel, connect: &[ConnectTarget]) -> SandboxRequest {
        let own = [vmlinux.to_owned(), on_path(&self.config.qemu)].into_iter();
        SandboxRequest {
            level: SandboxLevel::Standard,
            network: connect.is_empty().then_some(NetworkAccess::None),
            // Wherever they are, also in directories that are hidden inside.
            read: own.chain(self.config.image.clone()).collect(),
            write: (accel == Accel::Kvm).then(|| PathBuf::from(KVM)).into_iter().collect(),
            connect: connect.to_vec(),
        }
    }

    fn kernel_line(&self, accel: Accel, has_network: bool) -> String {
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=1 cryptomgr.notests 8250.nr_uarts=1 \
             tsc=reliable no_timer_check glasshouse.transport=virtio-serial:{PORT}"
        );
        if accel == Accel::Tcg {
            // Without the frequency one emulated boot in five hangs in the calibration against timers that are not there.
            line.push_str(&format!(" tsc_early_khz={} mitigations=off nokaslr", accel::tsc_khz()));
        }
        if self.config.image.is_some() {
            line.push_str(" glasshouse.root=/dev/vda");
        }
        if has_network {
            line.push(' ');
            line.push_str(&network::word());
        }
        line
    }
}

/// An option that ends with a path: a comma in a value of QEMU's is written twice.
fn option(begin: &str, path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let doubled = |byte: &u8| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 });
    let path = path.as_os_str().as_bytes().iter().flat_map(doubled);
    OsString::from_vec(begin.bytes().chain(path).collect())
}

/// Where a program is that is named as a shell names it.
fn on_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

#[async_trait]
impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: "qemu".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            kernel: self.config.parts.kernel.release.clone(),
            snapshot: None,
            sandbox: Sandbox { network: "none".into(), limits: self.limits, ..Sandbox::default() },
            vmm: None,
        }
    }

    fn bounds(&self, dir: &Path, has_network: bool) -> Option<VmmBounds> {
        let Config { parts, qemu, image, .. } = &self.config;
        let own = [&parts.cache, &parts.kernel.image].into_iter().chain(image).map(PathBuf::as_path);
        let bounds = bounds(&on_path(qemu), READS.iter().map(Path::new).chain(own), dir);
        Some(VmmBounds { loopback: has_network.then(|| network::LOOPBACK.to_string()), ..bounds })
    }

    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let checked = match std::env::consts::ARCH {
            "x86_64" => spec.sandbox.connect.iter().try_for_each(network::check),
            arch => Err(format!("{arch} is not supported")),
        };
        checked.map_err(|reason| BackendError::failed("preparing the virtual machine", reason))
    }

    async fn command(&self, spec: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError> {
        let preparing = |error: String| BackendError::failed("preparing the virtual machine", error);
        let has_network = !spec.sandbox.connect.is_empty();
        let (config, devices) = (self.config.clone(), self.devices(has_network));
        let to = dir.join("initramfs");
        let made = tokio::task::spawn_blocking(move || {
            std::thread::scope(|scope| {
                // Mostly sleeps.
                scope.spawn(accel::tsc_khz);
                config.parts.initramfs(&to, &devices, config.image.as_deref())?;
                config.parts.vmlinux()
            })
        });
        let vmlinux = made
            .await
            .map_err(|error| preparing(error.to_string()))?
            .map_err(|error| preparing(error.to_string()))?;
        let accel = accel::choose(&on_path(&self.config.qemu), &vmlinux, &self.config.parts).await;
        let is_root = nix::unistd::geteuid().is_root();
        let (sandbox, own_uid) = match accel {
            // Without rights there is no list either, and the sandbox says so.
            _ if has_network => (self.sandbox(&vmlinux, accel, &spec.sandbox.connect), None),
            Accel::Tcg if is_root => (self.sandbox(&vmlinux, accel, &[]), None),
            Accel::Kvm if is_root => (SandboxRequest::default(), Some(own_uid(spec))),
            _ => (SandboxRequest::default(), None),
        };
        let mut argv = vec![self.config.qemu.clone().into_os_string()];
        argv.extend(self.arguments(dir, &vmlinux, How { accel, own_uid, has_network }));
        Ok(Launch { argv, sandbox })
    }
}
