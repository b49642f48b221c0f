//! The agent as a whole: slots, what it says of itself, reloading, draining.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use glasshouse_backends::ProcessBackend;
use glasshouse_execution::ProfilingController;
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_nats::{Bus, ConnectOptions, ErrorKind, Heartbeat, RequestQueue};
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::node::{AgentStatus, Machine};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::Error;
use crate::local::{Local, Socket};
use crate::machine::machine;
use crate::registry::Registry;
use crate::settings::{Layer, Settings};
use crate::settle::Gone;
use crate::state::StateDir;
use crate::systemd::Systemd;
use crate::workspace;

/// How long killed executions may take to end their records.
const KILLED_WITHIN: Duration = Duration::from_secs(15);
/// How long an agent rests after a request that the bus did not let it see to.
const PAUSE: Duration = Duration::from_millis(500);

/// How far the agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It takes requests.
    Serving,
    /// It takes none, and what runs may end.
    Draining,
    /// What runs is ended.
    Killing,
}

/// What the slots share.
pub(crate) struct Shared {
    pub(crate) bus: Bus,
    pub(crate) node: NodeId,
    pub(crate) queue: RequestQueue,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) state: Arc<StateDir>,
    pub(crate) probe: Arc<EbpfController>,
    pub(crate) phase: watch::Sender<Phase>,
    settings: watch::Sender<Arc<Settings>>,
    registry: RwLock<Registry>,
    /// How often each execution is in hand: a request may be delivered again while it runs.
    running: Mutex<HashMap<ExecutionId, usize>>,
    gone: Mutex<Gone>,
    probe_error: Mutex<Option<String>>,
    speaking: Mutex<()>,
    machine: Machine,
}

/// An execution in hand, until this is dropped.
pub(crate) struct InHand<'a> {
    shared: &'a Shared,
    execution: ExecutionId,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = locked(&self.shared.running).entry(self.execution) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.shared.tell();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is held has no invariant that a panic elsewhere could have broken.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn registry(&self) -> Registry {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn gone(&self) -> MutexGuard<'_, Gone> {
        locked(&self.gone)
    }

    /// Takes an execution in hand.
    pub(crate) fn begin(&self, execution: ExecutionId) -> InHand<'_> {
        *locked(&self.running).entry(execution).or_default() += 1;
        self.tell();
        InHand { shared: self, execution }
    }

    /// Whether the execution is in hand.
    pub(crate) fn is_running(&self, execution: ExecutionId) -> bool {
        locked(&self.running).contains_key(&execution)
    }

    /// Says what the agent is now. One at a time: of two at once, the one that looked first could speak last.
    fn tell(&self) {
        let _speaking = locked(&self.speaking);
        let in_hand = locked(&self.running).values().sum::<usize>();
        let error = locked(&self.probe_error).clone();
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        let backends = (registry.names(), registry.unusable().clone());
        drop(registry);
        self.heartbeat.tell(status(&self.settings(), backends, &self.machine, in_hand, self.phase(), error));
    }

    /// One slot: takes a request, sees to it, takes the next.
    async fn slot(self: Arc<Self>, index: u32) -> Result<(), Error> {
        let mut phase = self.phase.subscribe();
        let mut settings = self.settings.subscribe();
        loop {
            let delivery = tokio::select! {
                biased;
                // Errors say that the agent is gone.
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return Ok(()),
                _ = settings.wait_for(|settings| index >= settings.concurrency) => return Ok(()),
                delivery = self.queue.next() => delivery?,
            };
            if let Err(error) = self.take(delivery).await {
                tracing::warn!(%error, "a request was not seen to, it comes again");
                if error.kind() == ErrorKind::Fatal {
                    return Err(error.into());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn status(
    settings: &Settings,
    (backends, unavailable_backends): (Vec<String>, BTreeMap<String, String>),
    machine: &Machine,
    in_hand: usize,
    phase: Phase,
    host_profiling_error: Option<String>,
) -> AgentStatus {
    let in_hand = u32::try_from(in_hand).unwrap_or(u32::MAX);
    AgentStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pool: settings.pool.clone(),
        slots: settings.concurrency,
        free_slots: if phase == Phase::Serving { settings.concurrency.saturating_sub(in_hand) } else { 0 },
        draining: phase != Phase::Serving,
        backends,
        unavailable_backends,
        profile: settings.profile,
        host_profiling_error,
        labels: settings.labels.clone(),
        machine: machine.clone(),
    }
}

/// The tasks that take requests.
#[derive(Default)]
struct Slots {
    tasks: JoinSet<Result<(), Error>>,
    indices: HashMap<tokio::task::Id, u32>,
}

impl Slots {
    /// Starts those that are missing.
    fn fill(&mut self, shared: &Arc<Shared>) {
        let there: HashSet<u32> = self.indices.values().copied().collect();
        for index in (0..shared.settings().concurrency).filter(|index| !there.contains(index)) {
            let task = self.tasks.spawn(Arc::clone(shared).slot(index));
            self.indices.insert(task.id(), index);
        }
    }

    /// Waits for the next that ends; `None` if there is none. One that panicked counts as ended in order: what it had in hand
    /// comes again.
    async fn ended(&mut self) -> Option<Result<(), Error>> {
        let (id, ended) = match self.tasks.join_next_with_id().await? {
            Ok((id, ended)) => (id, ended),
            Err(error) => {
                tracing::error!(%error, "a slot failed");
                (error.id(), Ok(()))
            }
        };
        self.indices.remove(&id);
        Some(ended)
    }
}

/// Runs an agent until SIGTERM or SIGINT. SIGHUP reads `file` again; what `line` says counts before it.
pub async fn run(line: Layer, file: Option<PathBuf>) -> Result<(), Error> {
    let systemd = Systemd::from_environment();
    let settings = Settings::load(&line, file.as_deref())?;
    let listen = |kind| signal(kind).map_err(|source| Error::System { what: "listen for signals", source });
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let state = Arc::new(StateDir::open(&settings.state)?);
    let agent = Agent::start(settings, state).await?;
    let mut slots = Slots::default();
    if let Some(shared) = &agent.shared {
        slots.fill(shared);
    }
    systemd.notify("READY=1");
    agent.say_ready();
    let mut alive = tokio::time::interval(systemd.every().unwrap_or(Duration::from_secs(3600)));
    let ended = loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => {
                systemd.notify("RELOADING=1");
                // It may try whether a machine boots.
                let mut reload = std::pin::pin!(agent.reload(&line, file.as_deref()));
                loop {
                    tokio::select! {
                        () = &mut reload => break,
                        _ = alive.tick() => systemd.notify("WATCHDOG=1"),
                    }
                }
                if let Some(shared) = &agent.shared {
                    slots.fill(shared);
                }
                systemd.notify("READY=1");
            }
            _ = alive.tick() => systemd.notify("WATCHDOG=1"),
            Some(ended) = slots.ended() => match (ended, &agent.shared) {
                // A smaller concurrency ended it, and there may be a larger one meanwhile.
                (Ok(()), Some(shared)) => slots.fill(shared),
                (ended, _) => break ended,
            },
        }
    };
    systemd.notify("STOPPING=1");
    agent.enter(Phase::Draining);
    tracing::info!("stopping: what runs may end");
    let grace = agent.settings.borrow().drain_grace;
    let Agent { shared, phase, local, .. } = agent;
    let all = async {
        while let Some(ended) = slots.ended().await {
            if let Err(error) = ended {
                tracing::warn!(%error, "a slot failed");
            }
        }
        if let Some(local) = local
            && let Err(error) = local.await
        {
            tracing::error!(%error, "the socket failed");
        }
    };
    let mut all = std::pin::pin!(all);
    let mut grace = std::pin::pin!(tokio::time::sleep(grace));
    let is_empty = loop {
        tokio::select! {
            () = &mut all => break true,
            () = &mut grace => break false,
            // Whoever asks twice means it.
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
            _ = alive.tick() => systemd.notify("WATCHDOG=1"),
        }
    };
    if !is_empty {
        tracing::warn!("what runs is ended");
        phase.send_replace(Phase::Killing);
        if tokio::time::timeout(KILLED_WITHIN, all).await.is_err() {
            tracing::error!("executions are left; the next start sees to them");
        }
    }
    if let Some(shared) = shared {
        shared.registry().close().await;
        shared.heartbeat.end().await;
    }
    ended
}

/// What an agent serves: the queue of its pool, users of its machine, or both.
struct Agent {
    settings: watch::Sender<Arc<Settings>>,
    phase: watch::Sender<Phase>,
    /// Of the queue.
    shared: Option<Arc<Shared>>,
    /// Of the socket.
    local: Option<JoinHandle<()>>,
    /// Ours as long as we live.
    _state: Arc<StateDir>,
}

impl Agent {
    async fn start(settings: Settings, state: Arc<StateDir>) -> Result<Self, Error> {
        end_orphans(state.work()).await;
        let registry = Registry::new(&settings).await?;
        let of_registry = registry.end_orphans().await;
        of_registry.iter().for_each(|left| tracing::error!(left, "left of an earlier life"));
        let started = Self::serve(settings, state, registry.clone()).await;
        if started.is_err() {
            registry.close().await;
        }
        started
    }

    async fn serve(settings: Settings, state: Arc<StateDir>, registry: Registry) -> Result<Self, Error> {
        let socket = listen_locally(&settings)?;
        let options = LoadOptions { object_dir: settings.bpf_dir.clone(), ..LoadOptions::default() };
        let probe = Arc::new(EbpfController::new(options));
        let phase = watch::Sender::new(Phase::Serving);
        let settings = watch::Sender::new(Arc::new(settings));
        let shared = match settings.borrow().clone() {
            set if set.local_only => None,
            set => Some(Shared::join(&set, registry, Arc::clone(&state), &probe, &phase, &settings).await?),
        };
        if settings.borrow().profile != ProfilingMode::Disabled {
            // Every system call of the machine costs a little more once it is loaded: not before anybody wants it.
            let loaded = probe.ready().await;
            if let Err(error) = &loaded {
                tracing::warn!(%error, "nothing can be watched from the host");
            }
            if let Some(shared) = &shared {
                *locked(&shared.probe_error) = loaded.err().map(|error| error.to_string());
                shared.tell();
            }
        }
        let local = socket.map(|socket| {
            let settings = settings.subscribe();
            let local = Local { probe, settings, phase: phase.subscribe(), users: Mutex::default() };
            tokio::spawn(Arc::new(local).serve(socket))
        });
        Ok(Self { settings, phase, shared, local, _state: state })
    }

    fn say_ready(&self) {
        let settings = self.settings.borrow();
        if let Some(socket) = settings.socket.as_ref().filter(|_| self.local.is_some()) {
            tracing::info!(socket = %socket.display(), "serving users of this machine");
        }
        if let Some(shared) = &self.shared {
            tracing::info!(
                node_id = %settings.node, pool = %settings.pool, slots = settings.concurrency,
                instance = shared.heartbeat.instance(), "taking requests"
            );
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
        if let Some(shared) = &self.shared {
            shared.tell();
        }
    }

    /// Takes new settings, as far as they can change while the agent runs. What is wrong leaves the old ones.
    async fn reload(&self, line: &Layer, file: Option<&Path>) {
        let loaded = async {
            let settings = Settings::load(line, file)?;
            let registry = Registry::new(&settings).await?;
            Ok::<_, Error>((settings, registry))
        };
        match loaded.await {
            Ok((mut settings, registry)) => {
                let old = self.settings.borrow().clone();
                let fixed = settings.fixed_differences(&old);
                if !fixed.is_empty() {
                    tracing::warn!(settings = fixed.join(", "), "changed, and counts from the next start on");
                }
                settings.pool = old.pool.clone();
                self.settings.send_replace(Arc::new(settings));
                if let Some(shared) = &self.shared {
                    let old = std::mem::replace(
                        &mut *shared.registry.write().unwrap_or_else(PoisonError::into_inner),
                        registry,
                    );
                    old.close().await;
                    shared.tell();
                }
                tracing::info!("settings read again");
            }
            Err(error) => tracing::error!(%error, "the settings are wrong: the old ones stay"),
        }
    }
}

/// The socket for users of this machine. One that nobody asked for may be missing.
fn listen_locally(settings: &Settings) -> Result<Option<Socket>, Error> {
    let Some(path) = &settings.socket else { return Ok(None) };
    match Socket::bind(path, settings) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if settings.socket_required || settings.local_only => Err(error),
        Err(error) => {
            tracing::info!(%error, "users of this machine are not served");
            Ok(None)
        }
    }
}

impl Shared {
    /// Joins the queue of the pool.
    async fn join(
        settings: &Settings,
        registry: Registry,
        state: Arc<StateDir>,
        probe: &Arc<EbpfController>,
        phase: &watch::Sender<Phase>,
        shared: &watch::Sender<Arc<Settings>>,
    ) -> Result<Arc<Self>, Error> {
        let options = ConnectOptions::new(&settings.nats, format!("glasshouse-node-agent {}", settings.node))
            .frame_encoding(settings.frame_encoding);
        let bus = glasshouse_nats::connect(options.credentials(settings.creds.clone())).await?;
        send_leftovers(&bus, &state.spool()).await;
        let machine = machine();
        let backends = (registry.names(), registry.unusable().clone());
        let status = status(settings, backends, &machine, 0, Phase::Serving, None);
        let heartbeat = Heartbeat::start_agent(&bus, &settings.node, status).await?;
        state.begin(heartbeat.instance())?;
        let queue = RequestQueue::join(&bus, &settings.pool, settings.ack_wait).await?;
        if queue.ack_wait() != settings.ack_wait {
            tracing::warn!(ack_wait = ?queue.ack_wait(), "another agent of the pool decided how long requests may be in hand");
        }
        Ok(Arc::new(Self {
            bus,
            node: settings.node.clone(),
            queue,
            heartbeat,
            state,
            probe: Arc::clone(probe),
            phase: phase.clone(),
            registry: RwLock::new(registry),
            running: Mutex::default(),
            gone: Mutex::default(),
            probe_error: Mutex::default(),
            speaking: Mutex::default(),
            machine,
            settings: shared.clone(),
        }))
    }
}

/// Ends what the last life left running, and removes the working directories that it left.
async fn end_orphans(work: PathBuf) {
    let ended = tokio::task::spawn_blocking(move || {
        let mut left = ProcessBackend::end_orphans().unwrap_or_else(|reason| {
            tracing::info!(reason, "nothing can be left running of an earlier life");
            Vec::new()
        });
        left.extend(workspace::remove_all_below(&work));
        left
    });
    match ended.await {
        Ok(left) => left.iter().for_each(|left| tracing::error!(left, "left of an earlier life")),
        Err(error) => tracing::error!(%error, "what is left of an earlier life is not known"),
    }
}

/// Sends what the last life could not, so that the records of its executions hold all there is before they are ended.
async fn send_leftovers(bus: &Bus, dir: &Path) {
    let found = match glasshouse_runner::spool::executions(dir) {
        Ok(found) => found,
        Err(error) => return tracing::error!(dir = %dir.display(), %error, "the spool cannot be listed"),
    };
    for (execution, dir) in found {
        match glasshouse_runner::spool::send(bus, &dir).await {
            Ok(sent) => {
                tracing::info!(execution_id = %execution, messages = sent.messages, left = sent.left.messages, "spool sent");
            }
            Err(error) => tracing::error!(execution_id = %execution, %error, "the spool cannot be sent"),
        }
    }
}
