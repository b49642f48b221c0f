//! A supervised local nats-server: found, started with a generated configuration, waited for, and stopped with us.
//!
//! ```text
//! find -> spawn (own thread, own process group) -> ports file -> ready -> SIGTERM -> wait -> SIGKILL
//! ```
//!
//! Invariants: the server dies with this process even if that is killed (PR_SET_PDEATHSIG, where Linux), a signal is only
//! ever sent to a process that has not been reaped, and a directory has one server: its lock is held from before anything
//! is written until the server is reaped, by the server itself if we are killed before.

use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::sync::{oneshot, watch};

use crate::error::Error;

/// The environment variable that names the server's binary.
pub const BINARY_VARIABLE: &str = "GLASSHOUSE_NATS_SERVER";
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long a directory's last server may take to end after its `up` was killed.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(20);
/// What nobody guesses.
const TOKEN_BYTES: usize = 16;

/// How to run a local server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The binary; searched for if not given, see [`find_binary`].
    pub binary: Option<PathBuf>,
    /// Where its store, configuration and log live; made if missing.
    pub dir: PathBuf,
    /// The address to listen on.
    pub host: IpAddr,
    /// The port to listen on; 0 for any free one.
    pub port: u16,
    /// How much file storage the streams may reserve together.
    pub max_file_store_bytes: u64,
    /// When what is stored is forced to the disk.
    pub sync: SyncInterval,
    /// The cluster that it is a member of, if any.
    pub cluster: Option<ClusterMember>,
    /// Whether it lets in only clients with its token: a random one that is made once and kept in the directory, and that is in
    /// [`NatsServer::url`]. Not for members of a cluster.
    pub private: bool,
    /// More of its configuration, such as its operator and accounts.
    pub more: String,
}

/// When a server forces what it stored, and acknowledged, from the kernel's memory to the disk. A server that is killed loses
/// nothing either way; a machine that loses power loses what is younger. docs/cluster.md has the price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncInterval {
    /// As often as the server does by itself: every two minutes.
    #[default]
    Usual,
    /// After this time, in whole milliseconds.
    Every(Duration),
    /// Before every acknowledgement.
    Always,
}

/// What makes a server one of several that keep the same streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMember {
    /// Its name, which no other member has.
    pub name: String,
    /// Where it listens for the other members.
    pub listen: SocketAddr,
    /// Where every member listens, itself included: the members that must be there for the first vote are counted by this.
    pub routes: Vec<SocketAddr>,
}

impl ServerOptions {
    /// A server on a free port of the loopback that keeps its data under `dir` and has room for our streams.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: None,
            dir: dir.into(),
            host: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            max_file_store_bytes: 16 << 30,
            sync: SyncInterval::default(),
            cluster: None,
            private: false,
            more: String::new(),
        }
    }

    /// The same, with a token. Each test's server is such a one: what a client tells that still looks for another server, which had
    /// the port before, does not get here.
    pub fn private(dir: impl Into<PathBuf>) -> Self {
        Self { private: true, ..Self::new(dir) }
    }
}

impl ServerOptions {
    /// The members of a cluster that runs on this machine, on ports that are free now, each with a directory under `dir`: for
    /// trying one, because what takes down the machine takes down all of them.
    pub fn local_cluster(dir: &Path, members: usize) -> Result<Vec<Self>, Error> {
        // All are taken before any is given back, so that no two are the same.
        let bound = (0..2 * members).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let free = bound
            .collect::<Result<Vec<_>, _>>()
            .and_then(|bound| bound.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>());
        let free = free.map_err(|error| failed(format!("there are no free ports: {error}")))?;
        let (routes, clients) = free.split_at(members);
        let member = |(number, (listen, client)): (usize, (&SocketAddr, &SocketAddr))| {
            let name = format!("n{}", number + 1);
            let mut options = Self::new(dir.join(&name));
            options.port = client.port();
            options.cluster = Some(ClusterMember { name, listen: *listen, routes: routes.to_vec() });
            options
        };
        Ok(routes.iter().zip(clients).enumerate().map(member).collect())
    }
}

/// A running server. Dropping it stops the server and waits until it is gone.
#[derive(Debug)]
pub struct NatsServer {
    url: String,
    pid: u32,
    orders: mpsc::Sender<Order>,
    exit: watch::Receiver<Option<ExitStatus>>,
    supervisor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Stop,
    Kill,
}

impl NatsServer {
    /// Starts a server and waits until it takes connections.
    pub async fn start(options: ServerOptions) -> Result<Self, Error> {
        let binary = find_binary(options.binary.as_deref())?;
        let lock = lock(&options.dir).await?;
        let prepared = Prepared::new(&binary, &options, &lock)?;
        let (spawned, started) = oneshot::channel();
        let (orders, inbox) = mpsc::channel();
        let (exited, exit) = watch::channel(None);
        let command = prepared.command;
        let supervisor = std::thread::Builder::new()
            .name("nats-server".into())
            .spawn(move || supervise(command, lock, spawned, &inbox, &exited))
            .map_err(|error| failed(format!("cannot start a thread for it: {error}")))?;
        let pid = match started.await {
            Ok(Ok(pid)) => pid,
            Ok(Err(error)) => return Err(failed(format!("cannot start {}: {error}", binary.display()))),
            Err(_) => return Err(failed("its supervisor is gone".into())),
        };
        let mut server = Self { url: String::new(), pid, orders, exit, supervisor: Some(supervisor) };
        server.url = server.ready(&prepared.ports_dir, &prepared.log).await?;
        if let Some(token) = prepared.token {
            server.url = server.url.replacen("://", &format!("://{token}@"), 1);
        }
        let url = crate::without_secrets(&server.url);
        tracing::info!(url, pid, dir = %options.dir.display(), "nats-server started");
        Ok(server)
    }

    /// Its address; that of a private one holds its token.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it is gone, whyever. Safe to cancel.
    pub async fn exited(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        exit.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }

    /// Stops it: it flushes and closes its store first; killed if that takes longer than ten seconds.
    pub async fn stop(self) -> Option<ExitStatus> {
        self.order(Order::Stop).await
    }

    /// Kills it on the spot, as a crash would.
    pub async fn kill(self) -> Option<ExitStatus> {
        self.order(Order::Kill).await
    }

    async fn order(&self, order: Order) -> Option<ExitStatus> {
        // Refused only if the supervisor has ended, and then the status is there.
        let _ = self.orders.send(order);
        self.exited().await
    }

    /// Its address, once it takes connections: only then it writes the ports file.
    async fn ready(&self, ports_dir: &Path, log: &Path) -> Result<String, Error> {
        let ports = ports_dir.join(format!("nats-server_{}.ports", self.pid));
        let give_up = Instant::now() + READY_WITHIN;
        loop {
            if let Some(url) = read_ports(&ports) {
                return Ok(url);
            }
            let problem = match *self.exit.borrow() {
                Some(status) => format!("it ended at once ({status})"),
                None if Instant::now() > give_up => format!("it was not ready within {READY_WITHIN:?}"),
                None => {
                    tokio::time::sleep(TICK).await;
                    continue;
                }
            };
            return Err(failed(format!("{problem}; the end of {}:\n{}", log.display(), tail(log))));
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

/// Owns the process from start to end, on a thread of its own: PR_SET_PDEATHSIG fires when the *thread* that started the
/// process ends, and a runtime's threads come and go.
fn supervise(
    mut command: Command,
    lock: Flock<File>,
    spawned: oneshot::Sender<std::io::Result<u32>>,
    orders: &mpsc::Receiver<Order>,
    exited: &watch::Sender<Option<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = spawned.send(Err(error));
            return;
        }
    };
    let _ = spawned.send(Ok(child.id()));
    let mut kill_at: Option<Instant> = None;
    let status = loop {
        match orders.recv_timeout(TICK) {
            Ok(Order::Stop) => {
                terminate(&child);
                kill_at.get_or_insert(Instant::now() + STOP_WITHIN);
            }
            Ok(Order::Kill) | Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                break child.wait().ok();
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if kill_at.is_some_and(|at| Instant::now() > at) => {
                tracing::warn!(pid = child.id(), "nats-server does not stop, killing it");
                let _ = child.kill();
            }
            Ok(None) => {}
            Err(_) => break None,
        }
    };
    // Before anybody hears that the server is gone, so that the next one can be started at once.
    drop(lock);
    exited.send_replace(status);
}

/// Asks the process to end; it is ours and not reaped yet, so its id is still its own.
fn terminate(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

struct Prepared {
    command: Command,
    token: Option<String>,
    ports_dir: PathBuf,
    log: PathBuf,
}

impl Prepared {
    fn new(binary: &Path, options: &ServerOptions, lock: &Flock<File>) -> Result<Self, Error> {
        let cannot = |what: &str, error: std::io::Error| {
            failed(format!("cannot write {what} under {}: {error}", options.dir.display()))
        };
        let dir = options.dir.canonicalize().map_err(|error| cannot("its directory", error))?;
        remove_ports(&dir).map_err(|error| cannot("the ports file", error))?;
        let (config, log) = (dir.join("nats-server.conf"), dir.join("nats-server.log"));
        let token = options.private.then(|| kept_token(&dir.join("nats.token"))).transpose();
        let token = token.map_err(|error| cannot("its token", error))?;
        write_secret(&config, &configuration(&dir, &log, options, token.as_deref()))
            .map_err(|error| cannot("its configuration", error))?;
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config).current_dir(&dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        detach(&mut command, lock.as_raw_fd());
        Ok(Self { command, token, ports_dir: dir, log })
    }
}

/// Takes the directory, which is made if missing, for one server.
async fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join("lock");
    let cannot = |error: &dyn std::fmt::Display| failed(format!("cannot lock {}: {error}", path.display()));
    std::fs::create_dir_all(dir).map_err(|error| cannot(&error))?;
    let mut file = File::options().create(true).append(true).open(&path).map_err(|error| cannot(&error))?;
    let give_up = Instant::now() + LOCK_WITHIN;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
            Err((_, error)) => return Err(cannot(&error)),
        };
        if Instant::now() > give_up {
            return Err(failed(format!(
                "another one works in {dir}, and two on one store would lose data; use the running one (its address is in \
                 {dir}/nats.url), stop it, or choose another directory",
                dir = dir.display()
            )));
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Removes what servers that were killed left: a process id comes again, and with it the address of a server that is gone.
fn remove_ports(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("nats-server_") && name.ends_with(".ports") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The token in this file, which is made if missing.
fn kept_token(path: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(token) if token.len() == 2 * TOKEN_BYTES && token.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            return Ok(token);
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_secret(path, &token)?;
    Ok(token)
}

/// Writes what only this user may read.
pub fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // One that was there has the mode that it had.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

fn configuration(dir: &Path, log: &Path, options: &ServerOptions, token: Option<&str>) -> String {
    let port = match options.port {
        // The server's own word for "any free one".
        0 => -1,
        port => i32::from(port),
    };
    let mut text = String::from("# Written by Glasshouse at every start; changes are lost.\n");
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    // Writing to a string cannot fail.
    let name = options.cluster.as_ref().map_or("glasshouse", |cluster| cluster.name.as_str());
    let sync = match options.sync {
        SyncInterval::Usual => String::new(),
        SyncInterval::Every(time) => format!("  sync_interval: \"{}ms\"\n", time.as_millis()),
        SyncInterval::Always => "  sync_interval: always\n".into(),
    };
    let _ = write!(
        text,
        "server_name: {name:?}\nhost: \"{}\"\nport: {port}\nports_file_dir: {}\nlog_file: {}\nlogfile_size_limit: 16MB\n\
         jetstream {{\n  store_dir: {}\n  max_file_store: {}\n  max_memory_store: 268435456\n{sync}}}\n",
        options.host,
        quoted(dir),
        quoted(log),
        quoted(&dir.join("store")),
        options.max_file_store_bytes,
    );
    if let Some(ClusterMember { listen, routes, .. }) = &options.cluster {
        let routes: Vec<String> = routes.iter().map(|route| format!("\"nats://{route}\"")).collect();
        let routes = routes.join(", ");
        let _ = write!(
            text,
            "cluster {{\n  name: glasshouse\n  listen: \"{listen}\"\n  routes: [{routes}]\n}}\n"
        );
    }
    if let Some(token) = token {
        let _ = writeln!(text, "authorization {{ token: \"{token}\" }}");
    }
    text.push_str(&options.more);
    text
}

/// Puts the server into a process group of its own, so that Ctrl-C at the terminal reaches us first and we stop it in
/// order, and ties its life to ours. It inherits the lock `lock`, which therefore outlives us if we are killed.
fn detach(command: &mut Command, lock: std::os::fd::RawFd) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::BorrowedFd;
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    {
        #[cfg(target_os = "linux")]
        let parent = nix::unistd::getpid();
        let bind = move || {
            #[allow(unsafe_code, reason = "a borrow cannot be moved into the closure")]
            // SAFETY: the supervisor owns the lock until after it has spawned the command.
            let lock = unsafe { BorrowedFd::borrow_raw(lock) };
            fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
            #[cfg(target_os = "linux")]
            {
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
                // We may have died before the line above.
                if nix::unistd::getppid() != parent {
                    return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
                }
            }
            Ok(())
        };
        #[allow(unsafe_code, reason = "the only way to run code between fork and exec")]
        // SAFETY: the closure runs in the forked child and makes system calls, fcntl, prctl and getppid, which are
        // async-signal-safe; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(bind);
        }
    }
}

/// The binary: the given one, else `$GLASSHOUSE_NATS_SERVER`, else `.tools/nats-server` in the working directory, beside
/// this program or in any directory above these, else `nats-server` on the PATH.
pub fn find_binary(explicit: Option<&Path>) -> Result<PathBuf, Error> {
    let named = explicit.map(Path::to_owned).or_else(|| std::env::var_os(BINARY_VARIABLE).map(PathBuf::from));
    if let Some(path) = named {
        return match path.is_file() {
            true => Ok(path),
            false => Err(failed(format!("{} is not there", path.display()))),
        };
    }
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let tools = starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|dir| dir.join(".tools/nats-server"))
        .find(|path| path.is_file());
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|path| path.is_file())
    };
    tools.or_else(on_path).ok_or_else(|| {
        failed(format!(
            "there is none in .tools/ or on the PATH; run scripts/setup.sh, or set {BINARY_VARIABLE} to a nats-server of \
             version {} or newer",
            crate::MIN_SERVER_VERSION
        ))
    })
}

/// What the server writes once it takes connections.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

fn read_ports(path: &Path) -> Option<String> {
    let ports: Ports = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    ports.nats.into_iter().next()
}

fn tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

fn failed(problem: String) -> Error {
    Error::Server { problem }
}
