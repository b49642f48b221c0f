//! The options of commands in virtual machines, and the backends they make.

use std::path::PathBuf;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use anyhow::Context as _;
use clap::Args;
use glasshouse_backends::ProcessBackend;
use glasshouse_execution::{ExecutionBackend, ExecutionSpec, ProfilingController};
#[cfg(target_os = "linux")]
use glasshouse_kata::{DEFAULT_ADDRESS, DEFAULT_NAMESPACE, DEFAULT_RUNTIME, KataBackend};
use glasshouse_schema::ids::Digest;
#[cfg(target_os = "linux")]
use glasshouse_schema::ids::Vantage;
#[cfg(target_os = "linux")]
use glasshouse_schema::time::parse_duration;
#[cfg(target_os = "linux")]
use glasshouse_vm::{
    GuestTransport, Kept, Link, LinkError, Parts, Templates, VmBackend,
    firecracker::{self, Firecracker},
    guest_probe,
    qemu::{self, Qemu},
    remote::{self, Remote},
};

use crate::args::Backend;

/// What a virtual machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// The root filesystem of a virtual machine: an image of ext4, erofs or squashfs, which the command sees writable and
    /// which stays as it is
    ///
    /// Without it a machine holds nothing but the guest probe. What kernel is booted, GLASSHOUSE_GUEST_KERNEL says: an image,
    /// or a folder with an unpacked kernel package; without it, the newest one installed.
    ///
    /// With --backend kata: the image of the container, by its name in containerd.
    #[arg(long, value_name = "FILE|NAME", env = "GLASSHOUSE_IMAGE")]
    pub(crate) image: Option<PathBuf>,
    /// Virtual processors of a virtual machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) vcpus: u32,
    /// Boot a virtual machine of QEMU also where one that waits for a command is kept, and keep none
    ///
    /// A machine that booted is kept in ~/.cache/glasshouse/templates, where its guest waits for a command, and later runs of the same
    /// machine restore it. See docs/vm.md.
    #[arg(long)]
    pub(crate) cold_boot: bool,
    #[cfg(target_os = "linux")]
    #[command(flatten)]
    container: ContainerArgs,
    #[cfg(target_os = "linux")]
    #[command(flatten)]
    link: LinkArgs,
}

/// By what the guest of a virtual machine speaks.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Args)]
struct LinkArgs {
    /// By what the guest of a machine of QEMU speaks to this program; nats also for --backend remote
    ///
    /// With nats it has a network, on whose list is the NATS server beside what --allow-connect names, and a credential of this one
    /// execution. See docs/guest-nats.md.
    #[arg(long, value_enum, default_value_t = GuestTransport::default(), env = "GLASSHOUSE_GUEST_TRANSPORT")]
    guest_transport: GuestTransport,
    /// The NATS server by which guests speak, as this node reaches it; it has to be in operator mode
    #[arg(long, value_name = "URL", env = "GLASSHOUSE_GUEST_NATS", requires = "guest_nats_key")]
    guest_nats: Option<String>,
    /// A file that only its owner can read, with the seed of the signing key that mints guests' credentials, and the account's
    /// public key
    #[arg(long, value_name = "FILE", env = "GLASSHOUSE_GUEST_NATS_KEY", requires = "guest_nats")]
    guest_nats_key: Option<PathBuf>,
    /// With --backend remote and --guest-transport nats: where the guest's credential is written, for the machine to be given. It is removed
    /// at the end
    #[arg(long, value_name = "FILE", default_value = "guest.creds")]
    guest_credentials: PathBuf,
    /// With --backend remote: a Unix socket to listen on for the guest, such as the other end of a VMM's serial port or vsock
    #[arg(long, value_name = "PATH")]
    guest_socket: Option<PathBuf>,
    /// With --backend remote: how long to wait for the guest
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    guest_within: Duration,
}

#[cfg(target_os = "linux")]
impl LinkArgs {
    /// A machine of somebody else's, whose guest is told of on stderr.
    fn remote(&self) -> anyhow::Result<Remote> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let way = match (self.link()?, &self.guest_socket) {
            (Link::Nats(_), Some(_)) => anyhow::bail!(
                "--guest-socket and --guest-transport nats are two ways to the machine: leave one out"
            ),
            (Link::Nats(issuer), None) => remote::Way::Nats(issuer, absolute(&self.guest_credentials)),
            (_, Some(path)) => remote::Way::Socket(absolute(path)),
            (_, None) => anyhow::bail!(
                "--backend remote needs a way to the machine: --guest-socket PATH, or --guest-transport nats"
            ),
        };
        let within = self.guest_within;
        let invite = Box::new(move |command: &str| {
            crate::say(format_args!(
                "glasshouse: waiting {within:?} for the guest; start in its machine, as root: {command}"
            ));
        });
        Ok(Remote::new(remote::Config { way, within, invite }))
    }

    fn link(&self) -> Result<Link, LinkError> {
        Link::new(self.guest_transport, self.guest_nats.as_deref(), self.guest_nats_key.as_deref())
    }
}

/// What a container is made of, besides its image.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Args)]
struct ContainerArgs {
    /// The runtime of a container, as containerd names it; docs/kata.md says what was tried with Kata's own, and with io.containerd.runc.v2
    #[arg(long, value_name = "NAME", default_value = DEFAULT_RUNTIME, env = "GLASSHOUSE_RUNTIME")]
    runtime: String,
    /// The socket of containerd
    #[arg(long, value_name = "PATH", default_value = DEFAULT_ADDRESS, env = "CONTAINERD_ADDRESS")]
    containerd: PathBuf,
    /// The namespace of containerd
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAMESPACE, env = "CONTAINERD_NAMESPACE")]
    containerd_namespace: String,
    /// A file or folder that a container sees at the same path, writable; may be given several times
    #[arg(long, value_name = "PATH")]
    bind: Vec<PathBuf>,
}

/// What runs the command, and what watches it from inside.
pub(crate) struct Chosen {
    pub(crate) backend: Arc<dyn ExecutionBackend>,
    pub(crate) inside: Option<Arc<dyn ProfilingController>>,
}

#[cfg(target_os = "linux")]
impl Chosen {
    fn machine(backend: VmBackend) -> Self {
        let inside: Arc<dyn ProfilingController> = Arc::new(backend.controller());
        Self { backend: Arc::new(backend), inside: Some(inside) }
    }
}

impl MachineArgs {
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables, reason = "machines are made on Linux"))]
    pub(crate) fn choose(&self, backend: Backend, spec: &ExecutionSpec) -> anyhow::Result<Chosen> {
        #[cfg(target_os = "linux")]
        anyhow::ensure!(
            matches!(
                (backend, self.link.guest_transport),
                (Backend::Qemu, _)
                    | (Backend::Remote, GuestTransport::Nats)
                    | (_, GuestTransport::VirtioSerial)
            ),
            "--guest-transport is of the machines that QEMU makes, and nats of --backend remote: choose another backend, or leave it out"
        );
        #[cfg(target_os = "linux")]
        anyhow::ensure!(
            backend == Backend::Remote || self.link.guest_socket.is_none(),
            "--guest-socket is of machines of yours: choose --backend remote, or leave it out"
        );
        match backend {
            Backend::Process => {
                anyhow::ensure!(
                    self.image.is_none(),
                    "--image is of a virtual machine or a container: choose --backend qemu, firecracker or kata, or leave it out"
                );
                Ok(Chosen { backend: Arc::new(ProcessBackend::new()), inside: None })
            }
            #[cfg(target_os = "linux")]
            Backend::Qemu => Ok(Chosen::machine(self.qemu(spec)?)),
            #[cfg(target_os = "linux")]
            Backend::Firecracker => {
                let config = firecracker::Config {
                    parts: Parts::find()?,
                    firecracker: firecracker::program().map_err(anyhow::Error::msg)?,
                    jailer: firecracker::jailer().map_err(anyhow::Error::msg)?,
                    image: self.image()?,
                    vcpus: u8::try_from(self.vcpus)?,
                };
                Ok(Chosen::machine(VmBackend::new(Firecracker::new(config, spec.limits))))
            }
            #[cfg(target_os = "linux")]
            Backend::Remote => {
                anyhow::ensure!(
                    self.image.is_none(),
                    "--image is not of a machine that runs already: leave it out"
                );
                Ok(Chosen::machine(VmBackend::new(self.link.remote()?)))
            }
            #[cfg(target_os = "linux")]
            Backend::Kata => {
                let ContainerArgs { runtime, containerd, containerd_namespace, bind } =
                    self.container.clone();
                let image = self.image.as_ref().and_then(|image| image.to_str());
                let config = glasshouse_kata::Config {
                    address: containerd.canonicalize().unwrap_or(containerd),
                    namespace: containerd_namespace,
                    runtime,
                    image: image
                        .context("--backend kata needs --image with a name that `ctr images ls` shows")?
                        .to_owned(),
                    binds: bind
                        .iter()
                        .map(|path| {
                            path.canonicalize().with_context(|| format!("cannot bind {}", path.display()))
                        })
                        .collect::<Result<_, _>>()?,
                };
                match spec.profile.vantages().contains(&Vantage::Guest) {
                    true => Ok(Chosen::machine(KataBackend::with_probe(config, guest_probe()?))),
                    false => Ok(Chosen { backend: Arc::new(KataBackend::new(config)), inside: None }),
                }
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn qemu(&self, spec: &ExecutionSpec) -> anyhow::Result<VmBackend> {
        let parts = Parts::find()?;
        let config = qemu::Config {
            templates: (!self.cold_boot).then(|| Templates::in_cache(&parts.cache)),
            parts,
            qemu: qemu::program().map_err(anyhow::Error::msg)?,
            image: self.image()?,
            vcpus: self.vcpus,
            nested: false,
            link: self.link.link()?,
        };
        Ok(VmBackend::new(Qemu::new(config, spec.limits)))
    }

    /// Keeps the machine that a run like this would boot; gives its SHA-256, and whether it was kept before.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(unused_variables, clippy::unused_async, reason = "machines are made on Linux")
    )]
    pub(crate) async fn keep(
        &self,
        backend: Backend,
        spec: &ExecutionSpec,
    ) -> anyhow::Result<(Digest, bool)> {
        #[cfg(target_os = "linux")]
        if backend == Backend::Qemu {
            return match self.qemu(spec)?.keep(spec).await? {
                Kept::Now(snapshot) => Ok((snapshot, false)),
                Kept::Before(snapshot) => Ok((snapshot, true)),
                Kept::Not => anyhow::bail!(
                    "the machine is not kept: those that speak by shared memory or NATS never are; what else is wrong is said above"
                ),
            };
        }
        anyhow::bail!(
            "--keep-only is of the machines that QEMU makes: choose --backend qemu, or leave it out"
        )
    }

    /// By its path from the root: a VMM has a working directory of its own.
    #[cfg(target_os = "linux")]
    fn image(&self) -> anyhow::Result<Option<PathBuf>> {
        let image = self.image.as_ref().map(|image| {
            image.canonicalize().with_context(|| format!("cannot read the image {}", image.display()))
        });
        image.transpose()
    }
}
