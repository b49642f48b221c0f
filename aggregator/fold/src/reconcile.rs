//! What the vantage points of a virtual machine say, held against each other.
//!
//! The host sees the process that carries the machine; the guest's kernel, which the guest's root owns, sees the command;
//! the engine knows what the machine is made of, and how the guest said that the command ended. A pair that does not fit is a
//! contradiction. Where a vantage point has lost something, or gave no seal, what it does not say proves nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use glasshouse_schema::event::{Class, SocketOperation};
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::{Environment, Isolation, Outcome, VmmBounds};
use glasshouse_schema::receipt::{Contradiction, File, Process, Socket, Statement, VantageCoverage};

/// What `environment.sandbox.network` is called where there is none.
const NO_NETWORK: &str = "none";
/// Most that is named in one statement; the rest is counted.
const MAX_NAMED: usize = 8;
/// The `by` of a file that was made executable memory, which changes nothing of it.
const MAP_EXECUTABLE: &str = "map_executable";

/// What is known of the execution.
pub(crate) struct Told<'r> {
    pub(crate) isolation: Option<Isolation>,
    pub(crate) environment: &'r Environment,
    /// How the command ended, if the engine was told.
    pub(crate) ended: Option<&'r Outcome>,
    pub(crate) vantages: &'r [VantageCoverage],
    pub(crate) processes: &'r [Process],
    pub(crate) files: &'r [File],
    pub(crate) sockets: &'r [Socket],
    /// None was left out for want of room.
    pub(crate) has_all_sockets: bool,
}

/// What does not fit, sorted.
pub(crate) fn contradictions(told: &Told<'_>) -> Vec<Contradiction> {
    if told.isolation != Some(Isolation::Vm) {
        return Vec::new();
    }
    let mut found: Vec<Contradiction> =
        [told.exit(), told.nothing_ran(), told.guest_network(), told.vmm_network()]
            .into_iter()
            .flatten()
            .collect();
    if let Some(bounds) = &told.environment.vmm {
        found.extend(told.vmm_program(bounds));
        found.extend(told.vmm_file(bounds));
    }
    found.sort();
    found
}

fn contradiction(kind: &str, said: [(Vantage, String); 2]) -> Contradiction {
    let said = said.map(|(vantage, says)| Statement { vantage, says });
    Contradiction { kind: kind.into(), said: said.into() }
}

impl<'r> Told<'r> {
    fn coverage(&self, vantage: Vantage) -> Option<&'r VantageCoverage> {
        self.vantages.iter().find(|coverage| coverage.attached.vantage == vantage)
    }

    /// Whether what a vantage point does not say of a class did not happen, by its own word.
    fn is_whole(&self, vantage: Vantage, class: Class) -> bool {
        self.coverage(vantage).is_some_and(|coverage| {
            coverage.sealed && coverage.classes.get(class.as_str()).is_some_and(|counters| counters.lost == 0)
        })
    }

    fn processes_of(&self, vantage: Vantage) -> impl Iterator<Item = &'r Process> {
        self.processes.iter().filter(move |process| process.vantage == vantage)
    }

    fn sockets_of(&self, vantage: Vantage) -> impl Iterator<Item = &'r Socket> {
        self.sockets.iter().filter(move |socket| socket.vantage == vantage)
    }

    /// The command's process ended otherwise than its guest's kernel tells.
    fn exit(&self) -> Option<Contradiction> {
        let outcome = self.ended?;
        // In a guest the first process is the command's.
        let root = self.processes_of(Vantage::Guest).next()?;
        let (code, is_signal) = match (root.exit_code, root.signal) {
            (_, Some(signal)) => (128 + i32::from(signal), true),
            (Some(code), None) => (i32::from(code), false),
            // Without its end nothing can be compared; a sealed chain without loss has it.
            (None, None) if !self.is_whole(Vantage::Guest, Class::Process) => return None,
            (None, None) => {
                let says = format!("process {} did not end", root.pid);
                return Some(contradiction(
                    "exit",
                    [(Vantage::Runner, ended(outcome)), (Vantage::Guest, says)],
                ));
            }
        };
        let fits = (outcome.exit_code, outcome.signal.is_some()) == (code, is_signal);
        let how =
            if is_signal { format!("by signal {}", code - 128) } else { format!("with exit code {code}") };
        let says = format!("process {} ended {how}", root.pid);
        (!fits).then(|| contradiction("exit", [(Vantage::Runner, ended(outcome)), (Vantage::Guest, says)]))
    }

    /// The command ended, and its guest's kernel saw no program start.
    fn nothing_ran(&self) -> Option<Contradiction> {
        let outcome = self.ended?;
        let ran = self.processes_of(Vantage::Guest).any(|process| !process.forked_only);
        let silent = !ran && self.is_whole(Vantage::Guest, Class::Process);
        let says = "no program was started".to_owned();
        silent.then(|| {
            contradiction("nothing_ran", [(Vantage::Runner, ended(outcome)), (Vantage::Guest, says)])
        })
    }

    /// The guest reached an address that is not within its machine, and the host, which misses nothing, saw no socket of the
    /// machine's process that can have carried it: where there is no network none at all, else none to there.
    fn guest_network(&self) -> Option<Contradiction> {
        if !self.is_whole(Vantage::Host, Class::Network) {
            return None;
        }
        let guest: Vec<&Socket> = self.sockets_of(Vantage::Guest).filter(|socket| is_ip(socket)).collect();
        let host: Vec<&Socket> = self.sockets_of(Vantage::Host).filter(|socket| is_ip(socket)).collect();
        let user_mode = self.user_mode();
        let has_no_way = |socket: &Socket| match user_mode {
            Some(loopback) => !host.iter().any(|host| is_carried(socket, host, loopback)),
            None => self.environment.sandbox.network == NO_NETWORK && host.is_empty(),
        };
        let reached = guest.iter().filter(|socket| was_reached(socket) && !is_within(socket, &guest));
        let reached = reached.filter(|socket| has_no_way(socket));
        let reached = listed(reached.map(|socket| format!("{} ({})", socket.dst, socket.protocol)))?;
        let host = match user_mode {
            Some(_) => "the machine's process had no socket to there",
            None => "the machine has no network, and its process used none",
        };
        Some(contradiction(
            "guest_network",
            [(Vantage::Guest, format!("reached {reached}")), (Vantage::Host, host.to_owned())],
        ))
    }

    /// The machine's process used the network, and the machine has none, or the guest knows nothing of it; what its probe speaks to the
    /// host by is not told inside.
    fn vmm_network(&self) -> Option<Contradiction> {
        let is_guest_whole = self.is_whole(Vantage::Guest, Class::Network);
        let guest: Vec<&Socket> = self.sockets_of(Vantage::Guest).filter(|socket| is_ip(socket)).collect();
        let user_mode = self.user_mode().filter(|_| is_guest_whole);
        let link =
            self.environment.vmm.as_ref().and_then(|vmm| vmm.link.as_ref()?.parse::<SocketAddr>().ok());
        let is_explained = |host: &Socket| {
            let is_link = || host.protocol == "tcp" && link.is_some() && address(host) == link;
            is_link()
                || user_mode
                    .is_some_and(|loopback| guest.iter().any(|guest| is_carried(guest, host, loopback)))
        };
        let used = self.sockets_of(Vantage::Host).filter(|socket| is_ip(socket) && !is_explained(socket));
        let word = |socket: &Socket| format!("{} {} ({})", socket.operation, socket.dst, socket.protocol);
        let used = format!("the machine's process used the network: {}", listed(used.map(word))?);
        let other = if is_guest_whole && guest.iter().all(|socket| is_loopback(socket)) {
            (Vantage::Guest, "nothing went beyond the machine")
        } else if user_mode.is_some() {
            (Vantage::Guest, "nothing went to there")
        } else if self.environment.sandbox.network == NO_NETWORK {
            (Vantage::Runner, "the machine has no network")
        } else {
            return None;
        };
        Some(contradiction("vmm_network", [(Vantage::Host, used), (other.0, other.1.to_owned())]))
    }

    /// Where every connection of the guest is a socket of the machine's process, and the list of sockets has all: the address
    /// at which the guest reaches the node's loopback.
    fn user_mode(&self) -> Option<IpAddr> {
        let loopback = self.environment.vmm.as_ref()?.loopback.as_ref()?.parse().ok()?;
        self.has_all_sockets.then_some(loopback)
    }

    /// The machine's process became, or started, another program.
    fn vmm_program(&self, bounds: &VmmBounds) -> Option<Contradiction> {
        let ran = self.processes_of(Vantage::Host).filter(|process| !process.forked_only);
        let programs = ran.flat_map(|process| {
            let all = process.execs.iter().map(|exec| exec.exe.as_str());
            all.chain([process.exe.as_str()]).map(|exe| (process.pid, exe))
        });
        let mut others: Vec<(u32, &str)> =
            programs.filter(|(_, exe)| !bounds.programs.iter().any(|known| known == exe)).collect();
        others.dedup();
        let others = listed(others.into_iter().map(|(pid, exe)| format!("{exe} (process {pid})")))?;
        let runner = format!("the machine is carried by {}", bounds.programs.join(", "));
        Some(contradiction(
            "vmm_program",
            [(Vantage::Host, format!("it ran {others}")), (Vantage::Runner, runner)],
        ))
    }

    /// The machine's process opened or changed what is not its own.
    fn vmm_file(&self, bounds: &VmmBounds) -> Option<Contradiction> {
        let is_in = |path: &str, these: &[String]| {
            these.iter().any(|this| {
                path.strip_prefix(this.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        // A path that was masked, or memory that has a name, is of no place.
        let placed = self.files.iter().filter(|file| {
            file.vantage == Vantage::Host
                && file.path.starts_with('/')
                && !file.flags.iter().any(|flag| flag == "masked")
        });
        let strange = placed.filter_map(|file| match is_in(&file.path, &bounds.writes) {
            true => None,
            false if is_changed(file) => Some(format!("changed {}", file.path)),
            false if is_opened(file) && !is_in(&file.path, &bounds.reads) => {
                Some(format!("opened {}", file.path))
            }
            false => None,
        });
        let strange = listed(strange)?;
        let runner = "the machine needs none of them".to_owned();
        Some(contradiction(
            "vmm_file",
            [(Vantage::Host, format!("its process {strange}")), (Vantage::Runner, runner)],
        ))
    }
}

fn ended(outcome: &Outcome) -> String {
    match &outcome.signal {
        Some(signal) => format!("the guest said that the command was ended by {signal}"),
        None => format!("the guest said that the command ended with exit code {}", outcome.exit_code),
    }
}

/// The first few, and how many more there are; `None` of none.
fn listed(all: impl Iterator<Item = String>) -> Option<String> {
    let mut all = all.peekable();
    all.peek()?;
    let named: Vec<String> = all.by_ref().take(MAX_NAMED).collect();
    let more = all.count();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!("{}{more}", named.join(", ")))
}

fn is_ip(socket: &Socket) -> bool {
    socket.protocol != "unix"
}

fn address(socket: &Socket) -> Option<SocketAddr> {
    socket.dst.parse().ok()
}

/// Whether a socket of the machine's process is where one of the guest went, in whatever way and with whatever result.
fn is_carried(guest: &Socket, host: &Socket, loopback: IpAddr) -> bool {
    let (Some(to), Some(seen)) = (address(guest), address(host)) else { return false };
    let (to, port) = (to.ip().to_canonical(), to.port());
    if to.is_loopback() {
        return false;
    }
    let to = if to == loopback { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { to };
    // What a guest makes by hand is told without its port.
    let is_by_hand = !["tcp", "udp"].contains(&guest.protocol.as_str());
    let is_same = (guest.protocol.as_str(), port) == (host.protocol.as_str(), seen.port());
    to == seen.ip().to_canonical() && (is_by_hand || is_same)
}

fn is_loopback(socket: &Socket) -> bool {
    address(socket).is_some_and(|address| address.ip().is_loopback())
}

/// Whether somebody at the other end must have been there.
fn was_reached(socket: &Socket) -> bool {
    let is_tcp = socket.protocol == "tcp";
    let operation = socket.operation.as_str();
    let connected =
        is_tcp && operation == SocketOperation::Connect.as_str() && socket.results.contains_key("ok");
    let heard = socket.bytes_received.is_some_and(|bytes| bytes > 0);
    let sent = is_tcp && socket.bytes_sent.is_some_and(|bytes| bytes > 0);
    // Whoever is accepted connected from some port of an address that the command may have given itself.
    operation != SocketOperation::Accept.as_str() && (connected || heard || sent)
}

/// Whether the address is the guest's own: loopback, or one that was bound in the guest, as the command may give itself any.
fn is_within(socket: &Socket, guest: &[&Socket]) -> bool {
    let Some(of) = address(socket) else { return false };
    let own = [SocketOperation::Bind, SocketOperation::Listen].map(SocketOperation::as_str);
    let bound = guest
        .iter()
        .filter(|other| own.contains(&other.operation.as_str()) && other.results.contains_key("ok"));
    let mut bound = bound.filter_map(|other| address(other));
    of.ip().is_loopback()
        || of.ip().is_unspecified()
        || bound.any(|own| own.ip() == of.ip() || (own.ip().is_unspecified() && own.port() == of.port()))
}

fn is_opened(file: &File) -> bool {
    file.reads > 0 || file.path_only > 0 || file.changes.contains_key(MAP_EXECUTABLE)
}

fn is_changed(file: &File) -> bool {
    file.writes > 0
        || file.created > 0
        || file.deletes > 0
        || file.renames > 0
        || !file.renamed_from.is_empty()
        || file.changes.keys().any(|change| change != MAP_EXECUTABLE)
}
