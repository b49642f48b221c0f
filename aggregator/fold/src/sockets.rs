//! What is known of a socket address, of a name asked of DNS, and of an operation.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use glasshouse_schema::event::SocketOperation;
use glasshouse_schema::frame::{Dns, Traffic};

use crate::facts::{LAST_ERRNO, Named, add};

/// How often something was done, per result, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Outcomes<R = i32> {
    pub(crate) results: BTreeMap<R, u64>,
    pub(crate) pids: Named<u32>,
}

impl<R> Default for Outcomes<R> {
    fn default() -> Self {
        Self { results: BTreeMap::new(), pids: Named::default() }
    }
}

impl<R: Ord> Outcomes<R> {
    fn add_result(&mut self, pid: u32, result: R, count: u64) {
        add(self.results.entry(result).or_default(), count);
        self.pids.insert(pid);
    }
}

impl Outcomes {
    /// Adds a result, 0 or a negated errno.
    pub(crate) fn add(&mut self, pid: u32, result: i32, count: u64) {
        self.add_result(pid, result.clamp(LAST_ERRNO, 0), count);
    }
}

/// What was done with an address.
#[derive(Debug, Clone, Default)]
pub(crate) struct SocketFacts {
    pub(crate) operations: BTreeMap<SocketOperation, Outcomes>,
    /// With it as a peer, if any was seen.
    pub(crate) traffic: Option<TrafficFacts>,
}

impl SocketFacts {
    pub(crate) fn transferred(&mut self, pid: u32, traffic: &Traffic<'_>) {
        let sums = self.traffic.get_or_insert_default();
        add(&mut sums.sends, traffic.sends);
        add(&mut sums.receives, traffic.receives);
        add(&mut sums.bytes_sent, traffic.sent_bytes);
        add(&mut sums.bytes_received, traffic.received_bytes);
        sums.pids.insert(pid);
    }

    /// The operation that made the peer one, where its traffic is told; `None` where none was seen.
    pub(crate) fn of_traffic(&self) -> Option<SocketOperation> {
        let makes_a_peer = [SocketOperation::Connect, SocketOperation::Accept, SocketOperation::Send];
        makes_a_peer.into_iter().find(|operation| self.operations.contains_key(operation))
    }

    /// The processes of an operation, and of the traffic that is told there.
    pub(crate) fn pids(&self, operation: Option<SocketOperation>) -> Named<u32> {
        let of_traffic = self.traffic.as_ref().filter(|_| operation == self.of_traffic());
        let outcomes = operation.and_then(|operation| self.operations.get(&operation));
        let mut pids = outcomes.map(|outcomes| outcomes.pids.clone()).unwrap_or_default();
        of_traffic.iter().for_each(|traffic| pids.extend(&traffic.pids));
        pids
    }

    pub(crate) fn has_more_pids(&self) -> bool {
        let operations = self.operations.keys().copied().map(Some);
        operations.chain([self.of_traffic()]).any(|operation| self.pids(operation).has_more())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct TrafficFacts {
    pub(crate) sends: u64,
    pub(crate) receives: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) pids: Named<u32>,
}

/// What was asked of a name server about one name, and answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct DnsFacts {
    pub(crate) outcomes: Outcomes<Option<u8>>,
    pub(crate) answers: Named<IpAddr>,
    /// An answer or the name was longer than a frame has it.
    pub(crate) truncated: bool,
}

impl DnsFacts {
    pub(crate) fn asked(&mut self, pid: u32, dns: &Dns<'_>) {
        self.outcomes.add_result(pid, dns.response_code, dns.count);
        dns.answers
            .iter()
            .filter_map(|answer| ip_address(answer))
            .for_each(|answer| self.answers.insert(answer));
        self.truncated |= dns.truncated;
    }
}

/// An IPv4 address in IPv6 clothes is that IPv4 address, so that one rule covers both.
fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let address = match *bytes {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(address.to_canonical())
}

/// `address:port` (IPv6 in brackets), a unix socket's path, or `@name` for an abstract one.
pub(crate) fn destination(address: &[u8], port: Option<u16>) -> String {
    match (port, ip_address(address), address) {
        (Some(port), Some(address), _) => SocketAddr::new(address, port).to_string(),
        (None, _, [0, name @ ..]) => format!("@{}", String::from_utf8_lossy(name)),
        (_, _, path) => String::from_utf8_lossy(path).into_owned(),
    }
}

pub(crate) fn protocol(port: Option<u16>, protocol: u8) -> String {
    match (port, protocol) {
        (None, _) => "unix".into(),
        (_, 6) => "tcp".into(),
        (_, 17) => "udp".into(),
        (_, 58 | 1) => "icmp".into(),
        (_, other) => other.to_string(),
    }
}
