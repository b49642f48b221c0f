//! The backend `remote`: a command in a machine that is somebody else's, whose guest probe was started there by hand or by whatever makes
//! such machines.
//!
//! ```text
//!   a machine of yours                              this node
//!     glasshouse-guest-probe ── NATS server ──────── session
//!                            ── a Unix socket ──────   (of a VMM's port, or of vsock)
//! ```
//! Nothing here boots, sees or ends the machine. It is watched from inside only, and how far it is from this node nobody knows, so
//! that its receipts claim nothing (`isolation` is `none`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, ExitStatus, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_guest_nats::Issuer;
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::{Environment, Isolation, Sandbox};
use glasshouse_schema::sandbox::SandboxRequest;
use tokio::sync::watch;

use crate::nats::CREDENTIALS;
use crate::vmm::{GuestLink, Launch, Vmm};

const NAME: &str = "remote";
const PREPARING: &str = "preparing for a guest elsewhere";

/// By which way its guest speaks.
#[derive(Debug, Clone)]
pub enum Way {
    /// A NATS server, with a credential that is written to this file, which must not be there yet.
    Nats(Issuer, PathBuf),
    /// A Unix socket on which this node listens, at a path where nothing is yet.
    Socket(PathBuf),
}

/// What a machine of somebody else's takes.
pub struct Config {
    /// By which way the guest speaks.
    pub way: Way,
    /// How long it is waited for.
    pub within: Duration,
    /// Is told what is to be run in the machine, once that can be done.
    pub invite: Box<dyn Fn(&str) + Send + Sync>,
}

/// One machine of somebody else's.
pub struct Remote {
    config: Config,
    elsewhere: Arc<Elsewhere>,
}

impl Remote {
    /// A machine for one command.
    pub fn new(config: Config) -> Self {
        let left = match &config.way {
            Way::Nats(_, file) | Way::Socket(file) => file.clone(),
        };
        let elsewhere =
            Elsewhere { file: left, is_made: AtomicBool::new(false), ended: watch::Sender::new(false) };
        Self { config, elsewhere: Arc::new(elsewhere) }
    }
}

#[async_trait]
impl Vmm for Remote {
    fn name(&self) -> &'static str {
        NAME
    }

    fn isolation(&self) -> Isolation {
        self.elsewhere.isolation()
    }

    fn environment(&self) -> Environment {
        self.elsewhere.environment()
    }

    fn process(&self) -> Arc<dyn ExecutionBackend> {
        Arc::clone(&self.elsewhere) as _
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn speaks_within(&self) -> Duration {
        self.config.within
    }

    fn nats(&self) -> Option<&Issuer> {
        match &self.config.way {
            Way::Nats(issuer, _) => Some(issuer),
            Way::Socket(_) => None,
        }
    }

    fn link(&self, _dir: &Path) -> GuestLink {
        match &self.config.way {
            // Nobody asks for it: a server carries it.
            Way::Nats(..) => GuestLink::Streams,
            Way::Socket(path) => GuestLink::Socket(path.clone()),
        }
    }

    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let refused = |reason: &str| Err(BackendError::failed(PREPARING, reason));
        if spec.sandbox != SandboxRequest::default() {
            return refused(
                "what such a machine reaches is not ours to say: leave out --network and --allow-connect",
            );
        }
        if spec.profile.vantages().contains(&Vantage::Host) {
            return refused(
                "nobody here sees such a machine from outside: choose the profile guest, or disabled",
            );
        }
        Ok(())
    }

    async fn command(&self, _spec: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError> {
        let failed = |error: std::io::Error| BackendError::failed(PREPARING, error);
        if let Way::Nats(_, file) = &self.config.way {
            // Where it was written nobody else could read it, and where it goes nobody finds it open to others.
            let credential = std::fs::read(dir.join(CREDENTIALS)).map_err(failed)?;
            let mut options = std::fs::OpenOptions::new();
            let options =
                std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
            let named = |error: std::io::Error| {
                BackendError::failed(format!("writing the credential to {}", file.display()), error)
            };
            let mut made = options.open(file).map_err(named)?;
            self.elsewhere.made();
            std::io::Write::write_all(&mut made, &credential).map_err(named)?;
        }
        Ok(Launch { argv: vec![NAME.into()], ..Launch::default() })
    }

    async fn boot(&self, _dir: &Path) -> Result<(), BackendError> {
        let invite = match &self.config.way {
            Way::Nats(issuer, file) => {
                let server = issuer.server();
                let server = server.strip_prefix("nats://").unwrap_or(server);
                format!("glasshouse-guest-probe --transport nats:{server} --credentials {}", file.display())
            }
            Way::Socket(path) => {
                self.elsewhere.made();
                format!("glasshouse-guest-probe --transport unix:{}", path.display())
            }
        };
        (self.config.invite)(&invite);
        Ok(())
    }
}

/// What stands for a process that is not there: it runs until it is ended.
struct Elsewhere {
    /// What was made for its guest.
    file: PathBuf,
    is_made: AtomicBool,
    ended: watch::Sender<bool>,
}

impl Elsewhere {
    fn made(&self) {
        self.is_made.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl ExecutionBackend for Elsewhere {
    fn name(&self) -> &'static str {
        NAME
    }

    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn environment(&self) -> Environment {
        let sandbox = Sandbox { network: "unknown".to_owned(), ..Sandbox::default() };
        Environment { runtime: NAME.to_owned(), os: "linux".to_owned(), sandbox, ..Environment::default() }
    }

    async fn prepare(&self, _spec: &ExecutionSpec) -> Result<(), BackendError> {
        Ok(())
    }

    async fn start(&self, _spec: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        Ok(StartedProcess::default())
    }

    async fn release(&self) -> Result<(), BackendError> {
        Ok(())
    }

    async fn wait(&self) -> Result<ExitReport, BackendError> {
        // The sender is ours, and there as long as we are.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        Ok(ExitReport { status: ExitStatus::Code(0), rusage: None })
    }

    async fn drain(&self, _wait_for_descendants: bool) -> Result<OutputReport, BackendError> {
        self.wait().await.map(|_| OutputReport::default())
    }

    async fn kill(&self, _signal: StopSignal) -> Result<(), BackendError> {
        self.ended.send_replace(true);
        Ok(())
    }

    async fn cleanup(&self) -> Vec<String> {
        self.ended.send_replace(true);
        if !self.is_made.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        match std::fs::remove_file(&self.file) {
            // A probe on this node has taken it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => vec![format!("{} is left: {error}", self.file.display())],
            Ok(()) => Vec::new(),
        }
    }
}
