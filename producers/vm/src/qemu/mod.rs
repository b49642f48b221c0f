//! The VMM `qemu`: a microVM without firmware, disks or network but what is named here.
//!
//! The machine is QEMU's `microvm`: a serial port for the console, one port of virtio-serial to the host, and the root
//! filesystem as a read-only block device; with an allow-list also a network, with [`Link::SharedMemory`] memory of ours as a
//! device of PCI. It runs under KVM where that was seen to boot
//! ([`accel`]), else emulated.
//!
//! QEMU itself is a user of its own on the node: it is given a seccomp filter by which it starts nothing, and if we are root
//! either the sandbox `standard` of the backend `process` (emulated, or with an allow-list: no capabilities, no network but what is
//! allowed, nothing to write but the machine's directory), or, because there is no /dev/kvm in there, a user id of its own.

pub mod accel;
mod network;
mod qmp;
mod template;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddrV4};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_guest_link::Address;
use glasshouse_guest_link::shared::{SHARED_BYTES, SharedMemory};
use glasshouse_guest_nats::Issuer;
use glasshouse_schema::connect::{ConnectHost, ConnectTarget};
use glasshouse_schema::ids::{Digest, Vantage};
use glasshouse_schema::lifecycle::{Environment, Sandbox, VmmBounds};
use glasshouse_schema::limits::Limits;
use glasshouse_schema::sandbox::{NetworkAccess, SandboxLevel, SandboxRequest};
use tokio::net::UnixListener;

use self::accel::Accel;
use self::qmp::Qmp;
use crate::origin::{Origin, WATCHES};
use crate::parts::{Parts, Root};
use crate::templates::{Key, Template, Templates, identity};
use crate::transport::Link;
use crate::vmm::{Launch, Vmm, bounds, memory_mib, own_uid};
use crate::{image, nats};

/// Names the QEMU program; without it, `qemu-system-x86_64` of the PATH.
pub const QEMU_VARIABLE: &str = "GLASSHOUSE_QEMU";
const NAME: &str = "qemu";
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
    /// Where machines are kept, and restored from; without it, and where it is nested or has another link than virtio-serial, every
    /// machine boots.
    pub templates: Option<Templates>,
    /// By what its guest speaks.
    pub link: Link,
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

const MONITOR: &str = "monitor";
const INITRAMFS: &str = "initramfs";
const PREPARING: &str = "preparing the virtual machine";
const BOOTING: &str = "booting the virtual machine";

/// How a machine is run on this node.
#[derive(Debug, Clone, Copy)]
struct How {
    accel: Accel,
    has_network: bool,
    /// Where the guest finds the server of its link.
    nats: Option<SocketAddrV4>,
}

/// One machine.
#[derive(Debug)]
pub struct Qemu {
    config: Config,
    limits: Limits,
    plan: OnceLock<Plan>,
}

/// What a machine begins with, and what it takes to keep or to restore one.
#[derive(Debug)]
struct Plan {
    origin: Origin<Template>,
    key: Option<Key>,
    /// The server of its link.
    server: Option<SocketAddrV4>,
    /// Where QEMU's monitor connects, if there is anything to ask.
    listener: Mutex<Option<UnixListener>>,
    monitor: Mutex<Option<Qmp>>,
}

impl Qemu {
    /// A machine for a command with these limits.
    pub fn new(config: Config, limits: Limits) -> Self {
        Self { config, limits, plan: OnceLock::new() }
    }

    /// How QEMU ends the names of devices.
    fn bus(&self) -> &'static str {
        if self.config.nested { "pci" } else { "device" }
    }

    fn devices(&self, has_network: bool) -> Vec<&'static str> {
        let mut devices = match self.config.nested {
            true => vec!["virtio_pci", "kvm", "kvm_amd", "kvm_intel"],
            false => vec!["virtio_mmio"],
        };
        devices.extend(self.config.link.issuer().is_none().then_some("virtio_console"));
        devices.extend(has_network.then_some("virtio_net"));
        devices
    }

    /// What the machine is, wherever its own files are.
    fn machine(&self, vmlinux: &Path, how: How) -> Vec<OsString> {
        let How { accel, has_network, nats } = how;
        let shares = matches!(self.config.link, Link::SharedMemory);
        let machine = match self.config.nested {
            true => "q35",
            false if shares => "microvm,pcie=on",
            false => "microvm",
        };
        let mut text = format!(
            "-M {machine} -nodefaults -no-user-config -display none -no-reboot -smp {} -m {}M \
             -sandbox on,obsolete=deny,elevateprivileges=allow,spawn=deny,resourcecontrol=deny \
             -chardev {},id=console -serial chardev:console ",
            self.config.vcpus,
            memory_mib(&self.limits),
            // Of the standard streams only the output, where the input is something else.
            if shares { "file,path=/proc/self/fd/1" } else { "stdio,signal=off" },
        );
        if nats.is_none() {
            let bus = self.bus();
            text.push_str(&format!(
                "-device virtio-serial-{bus} -device virtserialport,chardev=link,name={PORT} "
            ));
        }
        if shares {
            text.push_str(&format!(
                "-object memory-backend-file,id=shared,mem-path=/proc/self/fd/0,size={SHARED_BYTES},share=on \
                 -device ivshmem-plain,memdev=shared "
            ));
        }
        text.push_str(match accel {
            Accel::Kvm => "-accel kvm -cpu host",
            // With `max`, kernels of its guests do not boot.
            Accel::Tcg if self.config.nested => "-accel tcg,thread=multi -cpu EPYC",
            Accel::Tcg => "-accel tcg,thread=multi -cpu max",
        });
        let mut arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        if self.config.image.is_some() {
            arguments.extend(["-device".into(), format!("virtio-blk-{},drive=root", self.bus()).into()]);
        }
        if has_network {
            arguments.extend(["-netdev".into(), network::netdev().into()]);
            // On PCI a network card has a ROM to boot from.
            let card = if self.config.nested { "virtio-net-pci,romfile=" } else { "virtio-net-device" };
            arguments.extend(["-device".into(), format!("{card},netdev=net").into()]);
        }
        arguments.extend(["-kernel".into(), vmlinux.into()]);
        arguments
    }

    /// What this one machine has of its own, with its files in `dir`.
    fn own(&self, dir: &Path, plan: &Plan, line: String) -> Vec<OsString> {
        let mut arguments = Vec::new();
        if let Some(image) = &self.config.image {
            arguments
                .extend(["-drive".into(), option("id=root,if=none,format=raw,readonly=on,file=", image)]);
        }
        if plan.server.is_none() {
            arguments.extend(["-chardev".into(), option("socket,id=link,path=", &dir.join("link"))]);
        }
        match plan.origin {
            // The guest has its kernel line and the first files in its memory.
            Origin::Clone(_) => arguments.extend(["-incoming", "defer"].map(OsString::from)),
            Origin::Boot | Origin::Template => {
                arguments.extend(["-initrd".into(), dir.join(INITRAMFS).into()]);
                arguments.extend(["-append".into(), line.into()]);
            }
        }
        if !matches!(plan.origin, Origin::Boot) {
            arguments.extend(["-chardev".into(), option("socket,id=monitor,path=", &dir.join(MONITOR))]);
            arguments.extend(["-mon", "chardev=monitor,mode=control"].map(OsString::from));
        }
        arguments
    }

    fn plan(&self) -> Result<&Plan, BackendError> {
        self.plan.get().ok_or_else(|| BackendError::failed(BOOTING, "it was not prepared"))
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

    /// What the guest is told, but for what is measured.
    fn kernel_line(&self, how: How, root: Option<Root>, watches: bool) -> String {
        let transport = match (&self.config.link, how.nats) {
            (_, Some(server)) => format!("nats:{}", network::within(server)),
            (Link::SharedMemory, None) => Address::SharedMemory(PORT.to_owned()).to_string(),
            _ => Address::VirtioSerial(PORT.to_owned()).to_string(),
        };
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=1 cryptomgr.notests 8250.nr_uarts=1 \
             tsc=reliable no_timer_check glasshouse.transport={transport}"
        );
        if how.accel == Accel::Tcg {
            line.push_str(" mitigations=off nokaslr");
        }
        if let Some(root) = root {
            line.push_str(&root.word());
        }
        if how.has_network {
            line.push(' ');
            line.push_str(&network::word());
        }
        if watches {
            line.push_str(WATCHES);
        }
        line
    }
}

impl Config {
    /// All that a machine is made of until its command comes. Modules change with the list of them.
    fn key(&self, machine: &[OsString], root: Option<Root>, line: &str) -> std::io::Result<Key> {
        let Self { parts, qemu, .. } = self;
        let lists = parts.kernel.modules_dir.iter().flat_map(|dir| [dir.clone(), dir.join("modules.order")]);
        let program = on_path(qemu).canonicalize()?;
        let files = [program, parts.probe.clone()].into_iter().chain(lists);
        let files = files.map(|file| identity(&file)).collect::<std::io::Result<Vec<String>>>()?;
        let mut all: Vec<&[u8]> = files.iter().map(|file| file.as_bytes()).collect();
        all.extend(machine.iter().map(|word| word.as_bytes()));
        all.extend(root.iter().map(|root| root.filesystem.as_bytes()));
        all.push(line.as_bytes());
        Key::new(NAME, &all)
    }

    /// Whether there is a template of this machine, or it becomes one. Blocks.
    fn origin(
        &self,
        machine: &[OsString],
        root: Option<Root>,
        line: &str,
    ) -> (Origin<Template>, Option<Key>) {
        // A credential is of one execution, and what is in the rings belongs to those who were at their ends.
        let may_be_kept = !self.nested && matches!(self.link, Link::VirtioSerial);
        let Some(templates) = self.templates.as_ref().filter(|_| may_be_kept) else {
            return (Origin::Boot, None);
        };
        match templates.open().and_then(|()| self.key(machine, root, line)) {
            Ok(key) => match templates.find(&key) {
                Some(template) => (Origin::Clone(Arc::new(template)), None),
                None => (Origin::Template, Some(key)),
            },
            Err(error) => {
                tracing::warn!(%error, "this machine boots, and is not kept");
                (Origin::Boot, None)
            }
        }
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
        NAME
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: "qemu".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            kernel: self.config.parts.kernel.release.clone(),
            snapshot: self
                .plan
                .get()
                .and_then(|plan| plan.origin.template())
                .map(|template| template.digest()),
            image: None,
            sandbox: Sandbox { network: "none".into(), limits: self.limits, ..Sandbox::default() },
            vmm: None,
        }
    }

    fn bounds(&self, dir: &Path, has_network: bool) -> Option<VmmBounds> {
        let Config { parts, qemu, image, .. } = &self.config;
        let own = [&parts.cache, &parts.kernel.image].into_iter().chain(image).map(PathBuf::as_path);
        let bounds = bounds(&on_path(qemu), READS.iter().map(Path::new).chain(own), dir);
        let loopback = has_network.then(|| network::LOOPBACK.to_string());
        let server = self.plan.get().and_then(|plan| plan.server);
        Some(VmmBounds { loopback, link: server.map(|server| server.to_string()), ..bounds })
    }

    fn nats(&self) -> Option<&Issuer> {
        self.config.link.issuer()
    }

    fn has_certificates(&self) -> bool {
        false
    }

    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let checked = match std::env::consts::ARCH {
            "x86_64" => spec.sandbox.connect.iter().try_for_each(network::check),
            arch => Err(format!("{arch} is not supported")),
        };
        checked.map_err(|reason| BackendError::failed(PREPARING, reason))
    }

    async fn command(&self, spec: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError> {
        let preparing = |error: String| BackendError::failed(PREPARING, error);
        let (parts, image) = (self.config.parts.clone(), self.config.image.clone());
        let (vmlinux, root, image) = blocking(move || {
            let words = |error: &dyn std::fmt::Display| error.to_string();
            let root = image.as_deref().map(Root::with_command).transpose().map_err(|error| words(&error))?;
            let told = image.map(|image| image::told(&image, &parts.cache)).transpose();
            let told = told.map_err(|error| format!("reading the image: {error}"))?;
            Ok((parts.vmlinux().map_err(|error| words(&error))?, root, told))
        })
        .await?;
        let accel = accel::choose(&on_path(&self.config.qemu), &vmlinux, &self.config.parts).await;
        let mut connect = spec.sandbox.connect.clone();
        let nats = match self.config.link.issuer() {
            Some(issuer) => Some(nats::address(issuer).await?),
            None => None,
        };
        if let Some(server) = nats {
            let host = ConnectHost::Network(IpAddr::V4(*server.ip()), 32);
            let server = ConnectTarget { host, port: Some(server.port()) };
            network::check(&server).map_err(preparing)?;
            connect.push(server);
        }
        let how = How { accel, has_network: !connect.is_empty(), nats };
        let machine = self.machine(&vmlinux, how);
        let line = self.kernel_line(how, root, spec.profile.vantages().contains(&Vantage::Guest));
        let made = blocking({
            let (config, machine, devices) =
                (self.config.clone(), machine.clone(), self.devices(how.has_network));
            let (mut line, initramfs) = (line, dir.join(INITRAMFS));
            let credentials = nats.map(|_| dir.join(nats::CREDENTIALS));
            move || {
                let (origin, key) = config.origin(&machine, root, &line);
                if origin.template().is_none() {
                    std::thread::scope(|scope| {
                        // Mostly sleeps.
                        scope.spawn(accel::tsc_khz);
                        config.parts.initramfs(&initramfs, &devices, root, credentials.as_deref())
                    })
                    .map_err(|error| error.to_string())?;
                    if accel == Accel::Tcg {
                        // Without the frequency one emulated boot in five hangs in the calibration against timers that are not there.
                        line.push_str(&format!(" tsc_early_khz={}", accel::tsc_khz()));
                    }
                }
                Ok((origin, key, line))
            }
        });
        let (origin, key, line) = made.await?;
        let is_root = nix::unistd::geteuid().is_root();
        let (sandbox, own_uid) = match accel {
            // Without rights there is no list either, and the sandbox says so.
            _ if how.has_network => (self.sandbox(&vmlinux, accel, &connect), None),
            Accel::Tcg if is_root => (self.sandbox(&vmlinux, accel, &[]), None),
            Accel::Kvm if is_root => (SandboxRequest::default(), Some(own_uid(spec))),
            _ => (SandboxRequest::default(), None),
        };
        let listener = match origin {
            Origin::Boot => None,
            Origin::Template | Origin::Clone(_) => {
                Some(UnixListener::bind(dir.join(MONITOR)).map_err(|error| preparing(error.to_string()))?)
            }
        };
        let (listener, monitor) = (Mutex::new(listener), Mutex::default());
        let plan = Plan { origin, key, server: nats, listener, monitor };
        let mut argv = vec![self.config.qemu.clone().into_os_string()];
        argv.extend(machine);
        argv.extend(self.own(dir, &plan, line));
        if let Some(uid) = own_uid {
            argv.extend(["-runas".into(), format!("{uid}:{uid}").into()]);
        }
        // It cannot be there yet.
        let _ = self.plan.set(plan);
        let shared = match self.config.link {
            Link::SharedMemory => {
                Some(SharedMemory::make().map_err(|error| preparing(format!("memory to share: {error}")))?)
            }
            Link::VirtioSerial | Link::Nats(_) => None,
        };
        Ok(Launch { argv, sandbox, shared, image, ..Launch::default() })
    }

    /// Opens the monitor, and makes of a clone what its template was.
    async fn boot(&self, dir: &Path) -> Result<(), BackendError> {
        let plan = self.plan()?;
        let Some(listener) = taken(&plan.listener) else { return Ok(()) };
        let failed = |error: std::io::Error| BackendError::failed(BOOTING, error);
        let (stream, _) = listener.accept().await.map_err(failed)?;
        drop(listener);
        // Nobody else is to connect, and nothing is to be left.
        let _ = std::fs::remove_file(dir.join(MONITOR));
        let stream = stream.into_std().map_err(failed)?;
        let template = plan.origin.template().cloned();
        let opened = blocking(move || {
            let mut monitor = Qmp::begin(stream).map_err(|error| format!("QEMU's monitor: {error}"))?;
            let Some(template) = template else { return Ok(Some(monitor)) };
            template::restore(&mut monitor, &template).map(|()| None).map_err(|error| {
                template.remove();
                format!("a template cannot be restored and is removed, so that the next run boots: {error}")
            })
        });
        *plan.monitor.lock().unwrap_or_else(PoisonError::into_inner) = opened.await?;
        Ok(())
    }

    fn greets(&self) -> bool {
        self.plan.get().is_none_or(|plan| plan.origin.template().is_none())
    }

    /// Keeps the machine if there was none to restore.
    async fn waits(&self) -> Result<Option<Digest>, BackendError> {
        let plan = self.plan()?;
        let (Some(mut monitor), Some(key), Some(templates)) =
            (taken(&plan.monitor), plan.key.clone(), self.config.templates.clone())
        else {
            return Ok(None);
        };
        // Another run was faster.
        if templates.has(&key) {
            return Ok(None);
        }
        let kept = blocking(move || {
            template::keep(&mut monitor, &templates, &key)
                .map_err(|error| format!("the machine does not go on after it was kept: {error}"))
        });
        match &kept.await? {
            Ok(snapshot) => {
                tracing::info!(%snapshot, "the machine is kept, and restored by later runs");
                Ok(Some(*snapshot))
            }
            Err(error) => {
                tracing::warn!(%error, "the machine is not kept: the next run boots too");
                Ok(None)
            }
        }
    }
}

fn taken<T>(from: &Mutex<Option<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Does what takes its time where nobody waits for it.
async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, BackendError> {
    let done = tokio::task::spawn_blocking(what).await.map_err(|error| error.to_string());
    done.and_then(|done| done).map_err(|error| BackendError::failed(PREPARING, error))
}
