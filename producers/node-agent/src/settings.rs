//! The settings: flag, then `GLASSHOUSE_*` variable, then file, then default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use glasshouse_kata::{DEFAULT_ADDRESS, DEFAULT_NAMESPACE, DEFAULT_RUNTIME};
use glasshouse_nats::{Encoding, SpoolOptions};
use glasshouse_runner::gate::Policies;
use glasshouse_runner::local::DEFAULT_SOCKET;
use glasshouse_schema::ids::{NodeId, PoolName};
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::time::parse_duration;
use glasshouse_schema::{Limits, SandboxLevel};
use glasshouse_vm::GuestTransport;
use serde::{Deserialize, Deserializer};

/// Where the settings are read from unless somebody says otherwise; it may be missing.
const DEFAULT_FILE: &str = "/etc/glasshouse/node-agent.toml";
/// In place of a socket's path.
const NO_SOCKET: &str = "none";
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most slots of one agent.
const MAX_CONCURRENCY: u32 = 4_096;
/// Most machines that wait; each has the memory of its snapshot.
const MAX_WARM: u32 = 256;
/// Most commands of one user at a time.
const MAX_PER_USER: u32 = 4_096;
/// A shorter time to acknowledge would be over while a healthy agent is busy.
const MIN_ACK_WAIT: Duration = Duration::from_secs(1);

/// What one source says. Every name is the same on the command line, in the environment and in the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Layer {
    /// NATS server (default: nats://127.0.0.1:4222)
    #[arg(long, env = "GLASSHOUSE_NATS", value_name = "URL")]
    pub nats: Option<String>,
    /// NATS credentials file
    #[arg(long, env = "GLASSHOUSE_NATS_CREDS", value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// Name of this node (default: the host's)
    #[arg(long, env = "GLASSHOUSE_NODE", value_name = "NAME")]
    pub node: Option<NodeId>,
    /// The pool whose requests it takes (default: default)
    #[arg(long, env = "GLASSHOUSE_POOL", value_name = "NAME")]
    pub pool: Option<PoolName>,
    /// How many executions it runs at a time (default: the number of processors)
    #[arg(long, env = "GLASSHOUSE_CONCURRENCY", value_name = "N")]
    pub concurrency: Option<u32>,
    /// A backend that requests may ask for (process, fake, qemu, firecracker, kata); may be given several times; one that cannot run
    /// on this node is left out (default: process)
    #[arg(long = "backends", env = "GLASSHOUSE_BACKENDS", value_name = "NAME", value_delimiter = ',')]
    pub backends: Option<Vec<String>>,
    /// The backend of a request that asks for none (default: the first of the backends)
    #[arg(long, env = "GLASSHOUSE_BACKEND", value_name = "NAME")]
    pub backend: Option<String>,
    /// The root filesystem of virtual machines (qemu, firecracker), as `glasshouse image build` makes one
    #[arg(long, env = "GLASSHOUSE_IMAGE", value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// By what the guests of machines of QEMU speak to this agent (default: virtio-serial); nats needs a server and a key, see
    /// docs/guest-nats.md
    #[arg(long, env = "GLASSHOUSE_GUEST_TRANSPORT", value_enum)]
    #[serde(default, deserialize_with = "transport_text")]
    pub guest_transport: Option<GuestTransport>,
    /// The NATS server by which guests speak, as this node reaches it; it has to be in operator mode
    #[arg(long, env = "GLASSHOUSE_GUEST_NATS", value_name = "URL")]
    pub guest_nats: Option<String>,
    /// A file that only its owner can read, with the seed of the signing key that mints guests' credentials, and the account's
    /// public key
    #[arg(long, env = "GLASSHOUSE_GUEST_NATS_KEY", value_name = "FILE")]
    pub guest_nats_key: Option<PathBuf>,
    /// The image of containers (kata), as `ctr images ls` names it
    #[arg(long, env = "GLASSHOUSE_CONTAINER_IMAGE", value_name = "NAME")]
    pub container_image: Option<String>,
    /// The runtime of containers, as containerd names it; docs/kata.md says what was tried with Kata's own, and with io.containerd.runc.v2
    /// (default: io.containerd.kata.v2)
    #[arg(long, env = "GLASSHOUSE_RUNTIME", value_name = "NAME")]
    pub runtime: Option<String>,
    /// The socket of containerd (default: /run/containerd/containerd.sock)
    #[arg(long, env = "CONTAINERD_ADDRESS", value_name = "PATH")]
    pub containerd: Option<PathBuf>,
    /// The namespace of containerd (default: default)
    #[arg(long, env = "CONTAINERD_NAMESPACE", value_name = "NAME")]
    pub containerd_namespace: Option<String>,
    /// How many machines of Firecracker wait for a request, restored from a snapshot that is made at the start (default: 0, each request
    /// boots one); of QEMU, if there is any number, one is kept at the start that requests restore
    #[arg(long, env = "GLASSHOUSE_WARM_MACHINES", value_name = "N")]
    pub warm_machines: Option<u32>,
    /// From where a request is watched that does not say: disabled, host, guest or combined (default: disabled)
    #[arg(long, env = "GLASSHOUSE_PROFILE", value_name = "MODE", value_parser = profile)]
    pub profile: Option<ProfilingMode>,
    /// The most that a request may use, such as wall=1h,memory=4GiB,pids=500; what it asks for itself can only be less (default: no
    /// limit)
    #[arg(long, env = "GLASSHOUSE_LIMITS", value_name = "LIMITS")]
    pub limits: Option<String>,
    /// A label of this node, and of the executions that it runs; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    #[serde(skip)]
    pub label: Vec<(String, String)>,
    /// The same in the file.
    #[arg(skip)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Where it keeps its lock, and events that the NATS server did not take (default: /var/lib/glasshouse/node-agent)
    #[arg(long, env = "GLASSHOUSE_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How much of one execution's events may wait there, at least 4194304 (default: 256 MiB)
    #[arg(long, env = "GLASSHOUSE_SPOOL_BYTES", value_name = "BYTES")]
    pub spool_bytes: Option<u64>,
    /// How frames are compressed on their way to the NATS server: `identity` (not at all) or `lz4`, a third smaller
    /// (default: identity)
    #[arg(long, env = "GLASSHOUSE_FRAME_ENCODING", value_name = "ENCODING")]
    pub frame_encoding: Option<Encoding>,
    /// How long a request may be in hand without a word before another agent gets it; the first agent of a pool decides
    /// (default: 30s)
    #[arg(long, env = "GLASSHOUSE_ACK_WAIT", value_name = "TIME", value_parser = parse_duration)]
    #[serde(default, deserialize_with = "duration_text")]
    pub ack_wait: Option<Duration>,
    /// How long the heartbeat of another agent may be gone before what it ran is reported as of unknown outcome
    /// (default: 60s)
    #[arg(long, env = "GLASSHOUSE_LOST_AFTER", value_name = "TIME", value_parser = parse_duration)]
    #[serde(default, deserialize_with = "duration_text")]
    pub lost_after: Option<Duration>,
    /// How long running executions may go on after SIGTERM (default: 30s)
    #[arg(long, env = "GLASSHOUSE_DRAIN_GRACE", value_name = "TIME", value_parser = parse_duration)]
    #[serde(default, deserialize_with = "duration_text")]
    pub drain_grace: Option<Duration>,
    /// How long a command that is cancelled may take to end after SIGTERM, before SIGKILL (default: 5s)
    #[arg(long, env = "GLASSHOUSE_KILL_GRACE", value_name = "TIME", value_parser = parse_duration)]
    #[serde(default, deserialize_with = "duration_text")]
    pub kill_grace: Option<Duration>,
    /// A policy, or a directory of them, whose `pre` rules must let an execution pass before it runs; may be given several times
    /// (default: none)
    #[arg(long = "policy", env = "GLASSHOUSE_POLICIES", value_name = "FILE", value_delimiter = ',')]
    pub policies: Option<Vec<PathBuf>>,
    /// Directory with compiled BPF objects to use instead of the built-in ones
    #[arg(long, env = "GLASSHOUSE_BPF_DIR", value_name = "DIR")]
    pub bpf_dir: Option<PathBuf>,
    /// Unix socket on which it runs commands of this machine's users, each as whoever asks; `none` for no socket (default:
    /// /run/glasshouse/agent.sock, if this is root)
    #[arg(long, env = "GLASSHOUSE_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The group that may use the socket (default: root's)
    #[arg(long, env = "GLASSHOUSE_SOCKET_GROUP", value_name = "NAME")]
    pub socket_group: Option<String>,
    /// Who may use the socket, as the mode of a file: 660 for the group, 666 for everybody (default: 660)
    #[arg(long, env = "GLASSHOUSE_SOCKET_MODE", value_name = "OCTAL")]
    pub socket_mode: Option<String>,
    /// How many commands of one user it runs at a time (default: 32)
    #[arg(long, env = "GLASSHOUSE_SOCKET_PER_USER", value_name = "N")]
    pub socket_per_user: Option<u32>,
    /// The least sandbox of a user's command: none, standard or strict (default: none)
    #[arg(long, env = "GLASSHOUSE_SOCKET_SANDBOX", value_name = "LEVEL")]
    pub socket_sandbox: Option<SandboxLevel>,
    /// The most that a user's command may use, such as memory=1GiB,pids=200 (default: no limit)
    #[arg(long, env = "GLASSHOUSE_SOCKET_LIMITS", value_name = "LIMITS")]
    pub socket_limits: Option<String>,
    /// Serve the socket only: no NATS server, no requests
    #[arg(long, env = "GLASSHOUSE_LOCAL_ONLY", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub local_only: Option<bool>,
}

/// How an agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is described at the field of Layer that sets it")]
pub struct Settings {
    pub nats: String,
    pub creds: Option<PathBuf>,
    pub node: NodeId,
    pub pool: PoolName,
    pub concurrency: u32,
    pub backends: Vec<String>,
    pub backend: String,
    pub image: Option<PathBuf>,
    pub guest_transport: GuestTransport,
    pub guest_nats: Option<String>,
    pub guest_nats_key: Option<PathBuf>,
    pub container_image: Option<String>,
    pub runtime: String,
    pub containerd: PathBuf,
    pub containerd_namespace: String,
    pub warm_machines: u32,
    pub profile: ProfilingMode,
    pub limits: Limits,
    pub labels: BTreeMap<String, String>,
    pub state: PathBuf,
    pub frame_encoding: Encoding,
    pub spool_bytes: u64,
    pub ack_wait: Duration,
    pub lost_after: Duration,
    pub drain_grace: Duration,
    pub kill_grace: Duration,
    pub policies: Policies,
    pub bpf_dir: Option<PathBuf>,
    /// `None` for no socket.
    pub socket: Option<PathBuf>,
    /// Somebody asked for the socket: without it there is no agent.
    pub socket_required: bool,
    pub socket_group: Option<String>,
    pub socket_mode: u32,
    pub socket_per_user: u32,
    pub socket_sandbox: SandboxLevel,
    pub socket_limits: Limits,
    pub local_only: bool,
}

/// Why settings cannot be used: everything that is wrong, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct SettingsError {
    problems: Vec<String>,
}

impl SettingsError {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

impl Settings {
    /// The settings of a command line and a file; without one, of the default file if it is there.
    pub fn load(line: &Layer, file: Option<&Path>) -> Result<Self, SettingsError> {
        let file = match file {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => Layer::default(),
        };
        Self::merge(line.clone(), file)
    }

    /// What `over` says counts before what `under` says, and a default where neither says anything.
    pub(crate) fn merge(over: Layer, under: Layer) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let backends = over.backends.or(under.backends).unwrap_or_else(|| vec!["process".into()]);
        let mut labels = under.labels.unwrap_or_default();
        labels.extend(over.label);
        let node = over.node.or(under.node).map_or_else(host_name, Ok);
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().try_into().unwrap_or(1));
        let socket = over.socket.or(under.socket);
        let mode = over.socket_mode.or(under.socket_mode).unwrap_or_else(|| "660".into());
        let socket_mode = u32::from_str_radix(&mode, 8).ok().filter(|mode| *mode <= 0o777);
        if socket_mode.is_none() {
            problems.push(format!("socket-mode is `{mode}`: it is octal, such as 660"));
        }
        let mut read_limits = |name: &str, text: Option<String>| {
            let text = text.unwrap_or_default();
            let limits = if text.is_empty() { Ok(Limits::default()) } else { text.parse() };
            limits.unwrap_or_else(|error| {
                problems.push(format!("{name}: {error}"));
                Limits::default()
            })
        };
        let limits = read_limits("limits", over.limits.or(under.limits));
        let socket_limits = read_limits("socket-limits", over.socket_limits.or(under.socket_limits));
        let policies = policies(&over.policies.or(under.policies).unwrap_or_default());
        let policies = policies.unwrap_or_else(|error| {
            problems.push(error);
            Policies::default()
        });
        let settings = Self {
            nats: over.nats.or(under.nats).unwrap_or_else(|| "nats://127.0.0.1:4222".into()),
            creds: over.creds.or(under.creds),
            node: node.map_err(SettingsError::one)?,
            pool: match over.pool.or(under.pool).map_or_else(|| PoolName::new("default"), Ok) {
                Ok(pool) => pool,
                Err(error) => return Err(SettingsError::one(error.to_string())),
            },
            concurrency: over.concurrency.or(under.concurrency).unwrap_or(cpus),
            backend: over.backend.or(under.backend).or_else(|| backends.first().cloned()).unwrap_or_default(),
            backends,
            image: over.image.or(under.image),
            guest_transport: over.guest_transport.or(under.guest_transport).unwrap_or_default(),
            guest_nats: over.guest_nats.or(under.guest_nats),
            guest_nats_key: over.guest_nats_key.or(under.guest_nats_key),
            container_image: over.container_image.or(under.container_image),
            runtime: over.runtime.or(under.runtime).unwrap_or_else(|| DEFAULT_RUNTIME.into()),
            containerd: over.containerd.or(under.containerd).unwrap_or_else(|| DEFAULT_ADDRESS.into()),
            containerd_namespace: over
                .containerd_namespace
                .or(under.containerd_namespace)
                .unwrap_or_else(|| DEFAULT_NAMESPACE.into()),
            warm_machines: over.warm_machines.or(under.warm_machines).unwrap_or_default(),
            profile: over.profile.or(under.profile).unwrap_or_default(),
            limits,
            labels,
            state: over.state.or(under.state).unwrap_or_else(|| "/var/lib/glasshouse/node-agent".into()),
            frame_encoding: over.frame_encoding.or(under.frame_encoding).unwrap_or_default(),
            spool_bytes: over.spool_bytes.or(under.spool_bytes).unwrap_or(SpoolOptions::default().max_bytes),
            ack_wait: over.ack_wait.or(under.ack_wait).unwrap_or(Duration::from_secs(30)),
            lost_after: over.lost_after.or(under.lost_after).unwrap_or(Duration::from_secs(60)),
            drain_grace: over.drain_grace.or(under.drain_grace).unwrap_or(Duration::from_secs(30)),
            kill_grace: over.kill_grace.or(under.kill_grace).unwrap_or(Duration::from_secs(5)),
            policies,
            bpf_dir: over.bpf_dir.or(under.bpf_dir),
            socket_required: socket.as_ref().is_some_and(|path| path != Path::new(NO_SOCKET)),
            socket: Some(socket.unwrap_or_else(|| DEFAULT_SOCKET.into()))
                .filter(|path| path != Path::new(NO_SOCKET)),
            socket_group: over.socket_group.or(under.socket_group),
            socket_mode: socket_mode.unwrap_or_default(),
            socket_per_user: over.socket_per_user.or(under.socket_per_user).unwrap_or(32),
            socket_sandbox: over.socket_sandbox.or(under.socket_sandbox).unwrap_or_default(),
            socket_limits,
            local_only: over.local_only.or(under.local_only).unwrap_or_default(),
        };
        if !(1..=MAX_PER_USER).contains(&settings.socket_per_user) {
            let count = settings.socket_per_user;
            problems.push(format!("socket-per-user is {count}: it is 1 to {MAX_PER_USER}"));
        }
        if settings.socket_limits.output_bytes.is_some() {
            problems.push("socket-limits holds `output`: a user's command has the user's own streams".into());
        }
        if settings.local_only && settings.socket.is_none() {
            problems.push("local-only without a socket leaves nothing to do".into());
        }
        if !(1..=MAX_CONCURRENCY).contains(&settings.concurrency) {
            problems.push(format!("concurrency is {}: it is 1 to {MAX_CONCURRENCY}", settings.concurrency));
        }
        if !settings.backends.contains(&settings.backend) {
            let (backend, backends) = (&settings.backend, settings.backends.join(", "));
            problems.push(format!("backend is `{backend}`, which is none of the backends ({backends})"));
        }
        let is_nats = settings.guest_transport == GuestTransport::Nats;
        if !is_nats && (settings.guest_nats.is_some() || settings.guest_nats_key.is_some()) {
            problems
                .push("guest-nats and guest-nats-key are of guest-transport `nats`, which is another".into());
        }
        if settings.warm_machines > MAX_WARM {
            problems.push(format!("warm-machines is {}: it is at most {MAX_WARM}", settings.warm_machines));
        }
        if settings.spool_bytes < SpoolOptions::MIN_BYTES {
            let (bytes, least) = (settings.spool_bytes, SpoolOptions::MIN_BYTES);
            problems.push(format!("spool-bytes is {bytes}: it is at least {least}"));
        }
        if settings.ack_wait < MIN_ACK_WAIT {
            problems.push(format!("ack-wait is {:?}: it is at least {MIN_ACK_WAIT:?}", settings.ack_wait));
        }
        match problems.is_empty() {
            true => Ok(settings),
            false => Err(SettingsError { problems }),
        }
    }

    /// Names of what differs from `other` and counts only from the next start on.
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let differs = [
            ("nats", self.nats != other.nats),
            ("creds", self.creds != other.creds),
            ("node", self.node != other.node),
            ("pool", self.pool != other.pool),
            ("state", self.state != other.state),
            ("ack-wait", self.ack_wait != other.ack_wait),
            ("bpf-dir", self.bpf_dir != other.bpf_dir),
            ("socket", self.socket != other.socket),
            ("socket-group", self.socket_group != other.socket_group),
            ("socket-mode", self.socket_mode != other.socket_mode),
            ("local-only", self.local_only != other.local_only),
        ];
        differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// One that decides nothing here is a mistake of whoever relies on it.
fn policies(paths: &[PathBuf]) -> Result<Policies, String> {
    let policies = glasshouse_policy_worker::load(paths).map_err(|error| format!("policies: {error}"))?;
    match policies.iter().find(|policy| policy.pre_rules() == 0) {
        Some(policy) => Err(format!(
            "policies: `{}` has no rule of the phase `pre`, so it decides nothing before a run",
            policy.reference().name
        )),
        None => Ok(Policies::new(policies)),
    }
}

fn host_name() -> Result<NodeId, String> {
    let name = nix::unistd::gethostname().map_err(|errno| format!("cannot read the host's name: {errno}"))?;
    NodeId::new(name.to_string_lossy())
        .map_err(|error| format!("the host's name cannot be a node name ({error}): give one with --node"))
}

fn read(path: &Path) -> Result<Layer, SettingsError> {
    let wrong = |problem: String| SettingsError::one(format!("{}: {problem}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(wrong(format!("it has {size} bytes, more than the {MAX_FILE_BYTES} that are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(&text).map_err(|error| wrong(error.to_string()))
}

fn profile(text: &str) -> Result<ProfilingMode, String> {
    let modes = [ProfilingMode::Disabled, ProfilingMode::Host, ProfilingMode::Guest, ProfilingMode::Combined];
    let found = modes.into_iter().find(|mode| mode.as_str() == text);
    found.ok_or_else(|| "it is disabled, host, guest or combined".into())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("a label is KEY=VALUE".into()),
    }
}

fn duration_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn transport_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<GuestTransport>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let names = || GuestTransport::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let known = || names().map(|name| name.get_name().to_owned()).collect::<Vec<_>>().join(", ");
    let found = GuestTransport::from_str(&text, false);
    found
        .map(Some)
        .map_err(|_| serde::de::Error::custom(format!("it is `{text}`, and there are {}", known())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Layer {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_command_line_counts_before_the_file_and_the_file_before_the_default() {
        let line =
            Layer { concurrency: Some(3), label: vec![("a".into(), "line".into())], ..Layer::default() };
        let file = file(
            "node = \"n1\"\nconcurrency = 9\nack-wait = \"2s\"\nprofile = \"host\"\n\
             [labels]\na = \"file\"\nb = \"file\"\n",
        );
        let settings = Settings::merge(line, file).unwrap();
        assert_eq!((settings.concurrency, settings.ack_wait), (3, Duration::from_secs(2)));
        assert_eq!(settings.profile, ProfilingMode::Host);
        assert_eq!(settings.labels["a"], "line");
        assert_eq!(settings.labels["b"], "file");
        assert_eq!(settings.pool.as_str(), "default");
        assert_eq!(settings.backend, "process");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let bad = file(
            "node = \"n1\"\nconcurrency = 0\nwarm-machines = 257\nbackend = \"qemu\"\nspool-bytes = 1\nack-wait = \"1ms\"\n\
                  guest-nats = \"nats://bus\"\nsocket-mode = \"9\"\nsocket-limits = \"memory\"\nlimits = \"wall=soon\"\npolicies = [\"/no/policy.yaml\"]",
        );
        let error = Settings::merge(Layer::default(), bad).unwrap_err().to_string();
        for part in [
            "concurrency",
            "warm-machines",
            "qemu",
            "spool-bytes",
            "ack-wait",
            "guest-nats",
            "socket-mode",
            "socket-limits",
            "soon",
            "/no/policy.yaml",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(toml::from_str::<Layer>("concurency = 1").unwrap_err().to_string().contains("concurency"));
        assert!(toml::from_str::<Layer>("ack-wait = \"1 day\"").is_err());
        let error = toml::from_str::<Layer>("guest-transport = \"vsock\"").unwrap_err().to_string();
        assert!(error.contains("`vsock`, and there are virtio-serial, shared-memory, nats"), "{error}");
    }
}
