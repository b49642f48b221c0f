//! The backends of an agent, by name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use glasshouse_backends::fake::Script;
use glasshouse_backends::{FakeBackend, ProcessBackend};
use glasshouse_execution::{ExecutionBackend, ExecutionSpec, ProfilingController};
use glasshouse_kata::KataBackend;
use glasshouse_schema::Limits;
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_vm::firecracker::{self, Firecracker, kvm};
use glasshouse_vm::qemu::{self, Qemu};
use glasshouse_vm::{Link, LinkError, Parts, Templates, VmBackend, guest_probe};

use crate::Settings;
use crate::warm::Warm;

/// Why an agent does not have its backends.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// This build does not have it.
    #[error("there is no backend `{0}`: this build has {all}", all = NAMES.join(", "))]
    Unknown(String),
    /// Nobody named what it makes its machines or containers of.
    #[error("the backend `{name}` needs {needs}")]
    NoImage {
        /// The backend.
        name: &'static str,
        /// What is to be named, and how.
        needs: String,
    },
    /// What the guests of machines are to speak by is not there.
    #[error("the guests of the backend `qemu`: {0}")]
    Link(#[from] LinkError),
    /// Requests that ask for no backend would have none.
    #[error("the backend `{name}` cannot be used: {reason}")]
    Unusable {
        /// The backend of requests that ask for none.
        name: String,
        /// What this node lacks.
        reason: String,
    },
}

/// Every backend of this build.
const NAMES: [&str; 5] = ["process", "fake", "qemu", "firecracker", "kata"];

/// The backends that requests may ask for. A backend value serves one execution, so this makes them.
#[derive(Debug, Clone)]
pub struct Registry {
    usable: Vec<(&'static str, Kind)>,
    unusable: BTreeMap<String, String>,
}

/// What backends of a name are made of.
#[derive(Debug, Clone)]
enum Kind {
    Process,
    Fake,
    Qemu(qemu::Config),
    /// With the machines that wait, if any shall.
    Firecracker(firecracker::Config, Option<Arc<Warm>>),
    /// With the probe that watches from inside, if there is one.
    Kata(glasshouse_kata::Config, Option<PathBuf>),
}

/// What runs one command, and what watches it from inside.
pub struct Made {
    /// What runs it.
    pub backend: Arc<dyn ExecutionBackend>,
    inside: Option<Arc<dyn ProfilingController>>,
}

impl Made {
    fn machine(backend: VmBackend) -> Self {
        let inside: Arc<dyn ProfilingController> = Arc::new(backend.controller());
        Self { backend: Arc::new(backend), inside: Some(inside) }
    }

    fn without_guest(backend: impl ExecutionBackend + 'static) -> Self {
        Self { backend: Arc::new(backend), inside: None }
    }

    /// What watches it from where the mode says, as far as there is something: `host` from outside.
    pub fn controllers(
        &self,
        mode: ProfilingMode,
        host: impl Fn() -> Arc<dyn ProfilingController>,
    ) -> Vec<Arc<dyn ProfilingController>> {
        let controller = |vantage: &Vantage| match vantage {
            Vantage::Host => Some(host()),
            Vantage::Guest => self.inside.clone(),
            Vantage::Runner => None,
        };
        mode.vantages().iter().filter_map(controller).collect()
    }
}

impl Registry {
    /// The backends of the settings. One that cannot run on this node is left out with the reason, so that nobody is told of a
    /// backend that every request would fail with; without the one of requests that ask for none there is no registry.
    pub async fn new(settings: &Settings) -> Result<Self, RegistryError> {
        let mut registry = Self { usable: Vec::new(), unusable: BTreeMap::new() };
        match registry.find(settings).await {
            Ok(()) => Ok(registry),
            Err(error) => {
                registry.close().await;
                Err(error)
            }
        }
    }

    async fn find(&mut self, settings: &Settings) -> Result<(), RegistryError> {
        for name in &settings.backends {
            let known = NAMES.into_iter().find(|known| known == name);
            let known = known.ok_or_else(|| RegistryError::Unknown(name.chars().take(64).collect()))?;
            match Kind::found(known, settings).await? {
                Ok(kind) => self.usable.push((known, kind)),
                Err(reason) => {
                    tracing::warn!(backend = known, reason, "a backend cannot be used here");
                    self.unusable.insert(known.to_owned(), reason);
                }
            }
        }
        match self.unusable.get(&settings.backend) {
            Some(reason) => {
                Err(RegistryError::Unusable { name: settings.backend.clone(), reason: reason.clone() })
            }
            None => Ok(()),
        }
    }

    /// The names of those that can run here.
    pub fn names(&self) -> Vec<String> {
        self.usable.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    /// Those that cannot, with the reasons.
    pub fn unusable(&self) -> &BTreeMap<String, String> {
        &self.unusable
    }

    /// A backend for one execution that is watched so, with these limits; `None` if there is none of this name.
    pub async fn make(&self, name: &str, profile: ProfilingMode, limits: Limits) -> Option<Made> {
        let (_, kind) = self.usable.iter().find(|(known, _)| *known == name)?;
        Some(match kind.clone() {
            Kind::Process => Made::without_guest(ProcessBackend::new()),
            Kind::Fake => Made::without_guest(FakeBackend::new(Script::default())),
            Kind::Qemu(config) => Made::machine(VmBackend::new(Qemu::new(config, limits))),
            Kind::Firecracker(config, warm) => {
                let waiting = match warm {
                    Some(warm) => warm.take(profile, &limits).await,
                    None => None,
                };
                let booting = || VmBackend::new(Firecracker::new(config, limits));
                Made::machine(waiting.unwrap_or_else(booting))
            }
            Kind::Kata(config, Some(probe)) if profile.vantages().contains(&Vantage::Guest) => {
                Made::machine(KataBackend::with_probe(config, probe))
            }
            Kind::Kata(config, _) => Made::without_guest(KataBackend::new(config)),
        })
    }

    /// Ends the machines that wait. To be called before the registry is dropped.
    pub async fn close(&self) {
        for (_, kind) in &self.usable {
            if let Kind::Firecracker(_, Some(warm)) = kind {
                for left in warm.close().await {
                    tracing::error!(left, "of a machine that waited for a request");
                }
            }
        }
    }

    /// Ends what executions of killed processes left running, as far as that is not of cgroups; gives what is left, in words.
    pub async fn end_orphans(&self) -> Vec<String> {
        let containers = self.usable.iter().find_map(|(_, kind)| match kind {
            Kind::Kata(config, _) => Some(config),
            _ => None,
        });
        match containers {
            Some(config) => KataBackend::end_orphans(config).await.unwrap_or_else(|reason| vec![reason]),
            None => Vec::new(),
        }
    }
}

impl Kind {
    /// Looked for when the agent starts, and not when the first request wants one. The inner error is what this node lacks.
    async fn found(name: &'static str, settings: &Settings) -> Result<Result<Self, String>, RegistryError> {
        let of_machines = || {
            let needs = "a root filesystem of its machines: name an image with --image";
            settings.image.clone().ok_or(RegistryError::NoImage { name, needs: needs.to_owned() })
        };
        Ok(match name {
            "process" => Ok(Self::Process),
            "fake" => Ok(Self::Fake),
            "qemu" => match of_qemu(of_machines()?, link(settings)?) {
                Ok(config) => {
                    keep(&config, settings).await;
                    Ok(Self::Qemu(config))
                }
                Err(reason) => Err(reason),
            },
            "firecracker" => match of_firecracker(of_machines()?).await {
                Ok(config) => {
                    let warm = warm(&config, settings).await;
                    Ok(Self::Firecracker(config, warm))
                }
                Err(reason) => Err(reason),
            },
            _ => {
                let needs = "an image of its containers: name one that containerd has with --container-image";
                let image = settings.container_image.clone();
                let image = image.ok_or(RegistryError::NoImage { name, needs: needs.to_owned() })?;
                let config = glasshouse_kata::Config {
                    address: settings.containerd.clone(),
                    namespace: settings.containerd_namespace.clone(),
                    runtime: settings.runtime.clone(),
                    image,
                    binds: Vec::new(),
                };
                of_kata(config).await.map(|config| Self::Kata(config, of_probe()))
            }
        })
    }
}

fn readable(image: PathBuf) -> Result<PathBuf, String> {
    image.canonicalize().map_err(|error| format!("the image {} cannot be read: {error}", image.display()))
}

/// Nobody asked for machines whose guests speak by something else.
fn link(settings: &Settings) -> Result<Link, LinkError> {
    Link::new(settings.guest_transport, settings.guest_nats.as_deref(), settings.guest_nats_key.as_deref())
}

fn of_qemu(image: PathBuf, link: Link) -> Result<qemu::Config, String> {
    let image = Some(readable(image)?);
    let parts = Parts::find().map_err(|error| error.to_string())?;
    let templates = Some(Templates::in_cache(&parts.cache));
    Ok(qemu::Config { parts, qemu: qemu::program()?, image, vcpus: 1, nested: false, templates, link })
}

async fn of_firecracker(image: PathBuf) -> Result<firecracker::Config, String> {
    let image = Some(readable(image)?);
    let parts = Parts::find().map_err(|error| error.to_string())?;
    let (firecracker, jailer) = (firecracker::program()?, firecracker::jailer()?);
    let config = firecracker::Config { parts, firecracker, jailer, image, vcpus: 1 };
    let vmlinux = config.parts.vmlinux().map_err(|error| error.to_string())?;
    kvm::boots(&config.firecracker, &vmlinux, &config.parts.cache).await?;
    Ok(config)
}

/// The machines that wait. Without a snapshot every request boots one, so that is no reason to have none.
async fn warm(config: &firecracker::Config, settings: &Settings) -> Option<Arc<Warm>> {
    // Users of the socket get no machines.
    let size = settings.warm_machines.try_into().ok().filter(|size| *size > 0 && !settings.local_only)?;
    match Warm::start(config.clone(), settings.limits, size, &settings.node).await {
        Ok(warm) => {
            tracing::info!(snapshot = %warm.digest(), machines = size, "machines are restored ahead");
            Some(warm)
        }
        Err(error) => {
            tracing::error!(%error, "there is no snapshot to restore machines from: each request boots one");
            None
        }
    }
}

/// Keeps the machine of requests that ask for nothing of their own, where machines are to be ready. Without it the first request boots
/// one.
async fn keep(config: &qemu::Config, settings: &Settings) {
    // Users of the socket get no machines.
    if settings.warm_machines == 0 || settings.local_only || !matches!(config.link, Link::VirtioSerial) {
        return;
    }
    let kept = async {
        let spec = crate::warm::spec(&settings.node)?;
        let spec = ExecutionSpec { profile: settings.profile, limits: settings.limits, ..spec };
        VmBackend::new(Qemu::new(config.clone(), settings.limits)).keep(&spec).await
    };
    match kept.await {
        Ok(kept) => tracing::info!(?kept, "a machine of QEMU is restored for requests"),
        Err(error) => tracing::error!(%error, "no machine of QEMU is kept: the first request boots one"),
    }
}

/// Without it a request that wants to be watched from inside is refused, and no other.
fn of_probe() -> Option<PathBuf> {
    guest_probe().map_err(|error| tracing::info!(%error, "containers are not watched from inside")).ok()
}

async fn of_kata(config: glasshouse_kata::Config) -> Result<glasshouse_kata::Config, String> {
    glasshouse_kata::ready(&config).await?;
    glasshouse_kata::has_image(&config).await?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use glasshouse_vm::GuestTransport;

    use super::*;
    use crate::Layer;

    /// What an agent with these backends has, and with nothing else named.
    async fn of(names: &[&str], more: Layer) -> Result<Registry, RegistryError> {
        let backends = Some(names.iter().map(|name| (*name).to_owned()).collect());
        let layer = Layer { backends, node: Some("n1".parse().unwrap()), ..more };
        Registry::new(&Settings::merge(layer, Layer::default()).unwrap()).await
    }

    async fn made(registry: &Registry, name: &str) -> Option<Made> {
        registry.make(name, ProfilingMode::Disabled, Limits::default()).await
    }

    #[tokio::test]
    async fn every_name_of_this_build_has_its_backend_and_others_are_refused() {
        let registry = of(&["process", "fake"], Layer::default()).await.unwrap();
        for name in ["process", "fake"] {
            assert_eq!(made(&registry, name).await.unwrap().backend.name(), name);
        }
        assert!(made(&registry, "qemu").await.is_none());
        let unknown = of(&["docker"], Layer::default()).await.unwrap_err().to_string();
        assert!(unknown.contains("process, fake, qemu, firecracker, kata"), "{unknown}");
        for (name, option) in [("qemu", "--image"), ("firecracker", "--image"), ("kata", "--container-image")]
        {
            let error = of(&["process", name], Layer::default()).await.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(option), "{error}");
        }
    }

    #[tokio::test]
    async fn guests_by_nats_need_a_server_and_a_key_that_can_be_used() {
        let layer = |server: Option<&str>, key: Option<&str>| Layer {
            image: Some("/nonexistent".into()),
            guest_transport: Some(GuestTransport::Nats),
            guest_nats: server.map(Into::into),
            guest_nats_key: key.map(Into::into),
            ..Layer::default()
        };
        for (server, key, says) in [
            (None, None, "--guest-nats URL"),
            (Some("nats://bus"), None, "--guest-nats-key FILE"),
            (Some("nats://bus"), Some("/nonexistent/key"), "/nonexistent/key"),
        ] {
            let error = of(&["process", "qemu"], layer(server, key)).await.unwrap_err().to_string();
            assert!(error.contains("`qemu`") && error.contains(says), "{error}");
        }
        // Where there are no such machines, nobody needs it.
        of(&["process"], layer(None, None)).await.unwrap();
    }

    #[tokio::test]
    async fn a_backend_that_cannot_run_here_is_left_out_unless_it_is_the_only_one() {
        let layer = || Layer {
            container_image: Some("x".into()),
            containerd: Some("/nonexistent".into()),
            image: Some("/nonexistent".into()),
            ..Layer::default()
        };
        let registry = of(&["process", "qemu", "kata"], layer()).await.unwrap();
        assert_eq!(registry.names(), ["process"]);
        assert_eq!(registry.unusable().keys().collect::<Vec<_>>(), ["kata", "qemu"]);
        assert!(registry.unusable()["kata"].contains("is containerd running"), "{:?}", registry.unusable());
        assert!(made(&registry, "kata").await.is_none());
        let error = of(&["kata", "process"], layer()).await.unwrap_err().to_string();
        assert!(error.contains("`kata` cannot be used: /nonexistent"), "{error}");
    }
}
