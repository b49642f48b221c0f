//! One command from its [`Spec`] to its end, step by step as the host asks.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use glasshouse_backends::ProcessBackend;
use glasshouse_execution::backend::{BackendError, ExecutionBackend, ExitStatus, StartedProcess, StopSignal};
use glasshouse_execution::profiling::{
    ProfilingController as _, ProfilingError, ProfilingSession, ProfilingTarget,
};
use glasshouse_execution::sink::{EventSink, SinkError};
use glasshouse_execution::spec::{ExecutionSpec, StdStreams};
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::{
    Attach, Drained, Exit, Failure, Guest, Hello, Sealed, Spec, Status, ToGuest, ToHost,
};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_schema::EncodedFrame;
use glasshouse_schema::ids::{ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{Attached, LifecycleEvent, ProfilingMode};
use glasshouse_schema::redact::Redactor;
use tokio::task::JoinHandle;

use crate::container::Container;
use crate::link::{Link, Out};
use crate::machine::{self, LateRoot};
use crate::settings::Settings;

/// How long a machine that others are cloned from looks for a host, and how often.
const HOST_WITHIN: Duration = Duration::from_secs(30);
const TRY_AFTER: Duration = Duration::from_millis(5);
const ENTERING_ROOT: &str = "entering the root filesystem";
/// Of a small machine.
const CONTAINER_MEMORY_BYTES: u64 = 1 << 30;

/// Serves the host until it says that it is done, or is gone.
pub(crate) fn serve(
    settings: &Settings,
    container: Option<&Container>,
    late_root: Option<LateRoot>,
    is_init: bool,
    problems: Vec<String>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let controller = settings.watches.then(|| controller(container));
    if let Some(Err(error)) = controller.as_ref().map(|controller| runtime.block_on(controller.ready())) {
        // It is tried again for a command, and then the host hears of it.
        eprintln!("glasshouse-guest-probe: nothing can be watched: {}", error.reason);
    }
    let (mut link, spec) = loop {
        let mut link = Link::begin(open(settings)?)?;
        link.out.say(&ToHost::Hello(hello(is_init, problems.clone())));
        match link.host.blocking_recv() {
            Some(ToGuest::Spec(spec)) => break (link, spec),
            None if settings.is_template => {}
            _ => anyhow::bail!("the host did not say what is to be run"),
        }
    };
    runtime.block_on(async {
        if is_init {
            set_clock(spec.unix_ns);
            machine::reseed(&spec.entropy.0);
        }
        // Not before: whoever keeps a machine whose guest waits keeps a link on which nothing is under way.
        link.beat()?;
        let entered = late_root.map_or(Ok(()), LateRoot::enter);
        let mut run = Run::new(&spec, &link, container, controller);
        let user = container.and_then(Container::user);
        let execution = ExecutionSpec { run_as: user, ..execution(*spec, &mut link, is_init)? };
        let started = match entered {
            Ok(()) => run.start(&execution).await,
            Err(error) => Err(BackendError::failed(ENTERING_ROOT, format!("{error:#}"))),
        };
        let held = match started {
            Ok(()) => ToHost::Held,
            Err(error) => ToHost::Failed(failure(error)),
        };
        run.out.say(&held);
        // With it goes our end of the command's standard input.
        drop(execution);
        while let Some(message) = link.host.recv().await {
            if matches!(message, ToGuest::Shutdown) {
                break;
            }
            run.take(message).await;
        }
        run.backend.cleanup().await;
        settings.transport.close();
        Ok(())
    })
}

/// A snapshot resets the link, and whoever restores it listens before; a template whose host is gone for good has no use.
fn open(settings: &Settings) -> anyhow::Result<Guest> {
    let end = Instant::now() + HOST_WITHIN;
    loop {
        match settings.transport.open() {
            Err(_) if settings.is_template && Instant::now() < end => std::thread::sleep(TRY_AFTER),
            opened => return opened.context("opening the link to the host"),
        }
    }
}

fn hello(is_init: bool, problems: Vec<String>) -> Hello {
    let uname = nix::sys::utsname::uname().ok();
    let text = |value: Option<&std::ffi::OsStr>| {
        value.map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
    };
    Hello {
        probe: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: text(uname.as_ref().map(|uname| uname.release())),
        arch: text(uname.as_ref().map(|uname| uname.machine())),
        btf: std::path::Path::new("/sys/kernel/btf/vmlinux").exists(),
        is_init,
        problems,
    }
}

/// A container's memory is not the machine's, which the options go by.
fn controller(container: Option<&Container>) -> Arc<EbpfController> {
    let options = match container {
        Some(_) => LoadOptions::for_memory(CONTAINER_MEMORY_BYTES),
        None => LoadOptions::default(),
    };
    Arc::new(EbpfController::with_vantage(options, Vantage::Guest))
}

/// The host's time is ours: what the machine began with is its VMM's guess, or older than that after a restore.
fn set_clock(unix_ns: i64) {
    let time = Duration::from_nanos(u64::try_from(unix_ns).unwrap_or(0));
    let time = nix::sys::time::TimeSpec::from_duration(time);
    if let Err(error) = nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time) {
        eprintln!("glasshouse-guest-probe: the clock cannot be set: {error}");
    }
}

struct Run {
    out: Out,
    execution: ExecutionId,
    redactor: Option<Redactor>,
    backend: Arc<ProcessBackend>,
    controller: Option<Arc<EbpfController>>,
    /// Loads the programs while the command's process is made.
    ready: Option<JoinHandle<Result<(), ProfilingError>>>,
    started: StartedProcess,
    session: Option<Box<dyn ProfilingSession>>,
}

impl Run {
    /// `loaded` was made ahead. Without a command to watch it goes, since every system call is slower while it is there.
    fn new(
        spec: &Spec,
        link: &Link,
        container: Option<&Container>,
        loaded: Option<Arc<EbpfController>>,
    ) -> Self {
        let controller = spec.watch.then(|| loaded.unwrap_or_else(|| controller(container)));
        let cgroups = container.and_then(|container| container.cgroups.clone());
        let loading = controller.clone();
        let ready = loading.map(|controller| tokio::spawn(async move { controller.ready().await }));
        Self {
            out: link.out.clone(),
            execution: spec.execution,
            redactor: None,
            backend: Arc::new(cgroups.map_or_else(ProcessBackend::new, ProcessBackend::below)),
            controller,
            ready,
            started: StartedProcess::default(),
            session: None,
        }
    }

    async fn start(&mut self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        self.redactor = Some(Redactor::new(spec.redaction_key, spec.id, spec.redaction.clone()));
        self.backend.prepare(spec).await?;
        self.started = self.backend.start(spec).await?;
        Ok(())
    }

    async fn take(&mut self, message: ToGuest) {
        match message {
            ToGuest::Attach(attach) => {
                let attached = self.attach(attach).await;
                self.out.say(&ToHost::Attached(attached));
            }
            ToGuest::Release => match self.backend.release().await {
                Ok(()) => {
                    self.out.say(&ToHost::Running);
                    self.follow();
                }
                Err(error) => self.out.say(&ToHost::Failed(failure(error))),
            },
            ToGuest::Signal(number) => self.kill(StopSignal::Number(number)).await,
            ToGuest::Kill => self.kill(StopSignal::Kill).await,
            ToGuest::Drain(wait) => self.drain(wait),
            ToGuest::Seal => {
                let sealed = self.seal().await;
                self.out.say(&ToHost::Sealed(sealed));
            }
            ToGuest::Spec(_)
            | ToGuest::Credit(_)
            | ToGuest::Stdin(_)
            | ToGuest::StdinEnd
            | ToGuest::Shutdown => {}
        }
    }

    async fn kill(&self, signal: StopSignal) {
        if let Err(error) = self.backend.kill(signal).await {
            eprintln!("glasshouse-guest-probe: {error}");
        }
    }

    async fn attach(&mut self, attach: Attach) -> Result<Attached, String> {
        let controller = self.controller.clone().ok_or("the command was not to be watched")?;
        if let Some(ready) = self.ready.take() {
            ready.await.map_err(|error| error.to_string())?.map_err(|error| error.reason)?;
        }
        let redactor = self.redactor.take().ok_or("it is watched already")?;
        let target = ProfilingTarget {
            execution: self.execution,
            node: attach.node,
            epoch: attach.epoch,
            identity: self.started.identity,
            redactor,
            lossless: attach.lossless,
        };
        let sink = Arc::new(Frames(self.out.clone()));
        let attachment = controller.attach(target, sink).await.map_err(|error| error.reason)?;
        if let Ok(probe) = controller.probe().await {
            let how = if probe.reads_directly() { "directly" } else { "by helper calls" };
            eprintln!("glasshouse-guest-probe: kernel fields are read {how}");
        }
        self.session = Some(attachment.session);
        Ok(attachment.attached)
    }

    /// Tells the host how the command ends, and of a limit before that.
    fn follow(&self) {
        let (backend, out) = (Arc::clone(&self.backend), self.out.clone());
        tokio::spawn(async move {
            out.say(&match within_limits(&backend, &out, backend.wait()).await {
                Ok(exit) => ToHost::Exit(Exit {
                    status: match exit.status {
                        ExitStatus::Code(code) => Status::Code(code),
                        ExitStatus::Signal(number) => Status::Signal(number),
                    },
                    rusage: exit.rusage,
                }),
                Err(error) => ToHost::Failed(failure(error)),
            });
        });
    }

    fn drain(&self, wait_for_descendants: bool) {
        let (backend, out) = (Arc::clone(&self.backend), self.out.clone());
        tokio::spawn(async move {
            let drained = within_limits(&backend, &out, backend.drain(wait_for_descendants)).await;
            let error = drained.err().map(|error| error.to_string());
            out.say(&ToHost::Drained(Drained { ran_into: backend.ran_into(), error }));
        });
    }

    async fn seal(&mut self) -> Result<Sealed, String> {
        let session = self.session.take().ok_or("nothing is watched")?;
        let chain = session.seal().await.map_err(|error| error.reason)?;
        Ok(Sealed { frames: chain.frames, head: chain.head })
    }
}

/// Waits for the end of something, and tells the host of a limit before that; the host ends the command then.
async fn within_limits<T>(backend: &ProcessBackend, out: &Out, end: impl Future<Output = T>) -> T {
    let mut end = std::pin::pin!(end);
    let limit = tokio::select! {
        biased;
        end = &mut end => return end,
        limit = backend.exceeded() => limit,
    };
    out.say(&ToHost::Exceeded(limit));
    end.await
}

/// What the backend is to run, of what the host asked for.
fn execution(spec: Spec, link: &mut Link, is_init: bool) -> anyhow::Result<ExecutionSpec> {
    let stdin = link.stdin.take().context("the command has its standard input already")?;
    let text = |bytes: Bytes| OsString::from_vec(bytes.0);
    let key = spec.redaction_key.0.try_into().map_err(|_| anyhow::anyhow!("the key is not of 32 bytes"))?;
    Ok(ExecutionSpec {
        id: spec.execution,
        // Frames name the node that the host attaches for; this is of no consequence.
        node: NodeId::new("guest")?,
        argv: spec.argv.into_iter().map(text).collect(),
        env: Some(spec.env.into_iter().map(|(name, value)| (text(name), text(value))).collect()),
        workdir: Some(text(spec.workdir).into()),
        streams: StdStreams::Connected { stdin: Arc::new(stdin), output: link.out.tap() },
        profile: ProfilingMode::Disabled,
        profile_required: false,
        lossless: false,
        guest_prep: is_init,
        wait_for_descendants: false,
        sandbox: Default::default(),
        run_as: None,
        limits: spec.limits,
        labels: Default::default(),
        policies: Vec::new(),
        redaction: spec.redaction,
        redaction_key: key,
    })
}

fn failure(error: BackendError) -> Failure {
    match error {
        BackendError::NotFound { program } => Failure::NotFound { program },
        BackendError::CannotExecute { program, reason } => Failure::CannotExecute { program, reason },
        BackendError::Failed { action, reason } => Failure::Failed { action, reason },
    }
}

/// Hands frames to the host. The probe's drain thread waits as long as the host does not take them.
struct Frames(Out);

#[async_trait]
impl EventSink for Frames {
    async fn lifecycle(&self, _: &LifecycleEvent) -> Result<(), SinkError> {
        Ok(())
    }

    fn frame(&self, frame: EncodedFrame) {
        self.0.say(&ToHost::Frame(Bytes(frame.bytes)));
    }

    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
