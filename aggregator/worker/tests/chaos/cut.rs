//! Producers and workers are on the other side of a network that breaks: in a namespace of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use glasshouse_nats::ServerOptions;

use crate::common;
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::producer::ProducerProcess;
use crate::role::Namespace;
use crate::round::{Round, Server};
use crate::script::Shape;

pub(crate) async fn round(mut round: Round) -> Tally {
    let link = Link::new().unwrap();
    let mut options = ServerOptions::new(round.path("nats"));
    // On this side of the link, it is reached by the loopback, which nobody cuts.
    options.host = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let server = Server::start_with(options).await;
    let url = format!("nats://{}:{}", link.address, server.port());
    let mut fleet = Fleet::start(&url, &round.dir, &[], Some(&link.namespace));
    let jobs = round.jobs(&url, 4, 48, Shape::SMALL, 60);
    let mut producers: Vec<ProducerProcess> =
        jobs.into_iter().map(|job| ProducerProcess::start(job, &round.dir, Some(&link.namespace))).collect();
    while !producers.iter_mut().all(ProducerProcess::is_done) {
        common::pause(round.random.u64(200..1_200)).await;
        match round.random.u32(0..4) {
            0 => fleet.attack(&mut round.random).await,
            1 => {}
            _ => {
                let end = if round.random.bool() { End::Ours } else { End::Theirs };
                link.set(end, "down");
                common::pause(round.random.u64(200..4_000)).await;
                link.set(end, "up");
            }
        }
    }
    producers.iter().for_each(|producer| producer.report(&round.ledger));
    fleet.tend(verify(server.bus(), round.ledger, Expect::ALL)).await
}

/// Which end of the link is down.
#[derive(Debug, Clone, Copy)]
enum End {
    /// What is sent there vanishes.
    Ours,
    /// Whoever sends there hears that there is no way.
    Theirs,
}

/// A namespace and the link to it. Both are gone when dropped.
struct Link {
    namespace: Namespace,
    device: String,
    /// Of this end.
    address: Ipv4Addr,
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new("ip").args(arguments).output().map_err(|error| format!("`ip` (iproute2): {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("`ip {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}

impl Link {
    /// A network of four addresses, chosen by the process: tests of several may run.
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let octet = |shift: u32| u8::try_from(id >> shift & 0xff).unwrap_or_default();
        let address = |host: u8| Ipv4Addr::new(10, 64 | octet(14) & 0x3f, octet(6), octet(0) << 2 | host);
        let link = Self {
            namespace: Namespace(format!("ghchaos{id}")),
            device: format!("ghc{id}"),
            address: address(1),
        };
        let (name, device) = (link.namespace.0.as_str(), link.device.as_str());
        let (ours, theirs) = (format!("{}/30", address(1)), format!("{}/30", address(2)));
        ip(&["netns", "add", name])?;
        ip(&["link", "add", device, "type", "veth", "peer", "name", "there", "netns", name])?;
        ip(&["addr", "add", &ours, "dev", device])?;
        ip(&["-n", name, "addr", "add", &theirs, "dev", "there"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["link", "set", device, "up"])?;
        ip(&["-n", name, "link", "set", "there", "up"])?;
        Ok(link)
    }

    fn set(&self, end: End, state: &str) {
        let done = match end {
            End::Ours => ip(&["link", "set", &self.device, state]),
            End::Theirs => ip(&["-n", &self.namespace.0, "link", "set", "there", state]),
        };
        done.unwrap();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&["link", "del", &self.device]);
        let _ = ip(&["netns", "del", &self.namespace.0]);
    }
}

/// Why there is no network to cut.
pub(crate) fn no_namespaces() -> Option<String> {
    Link::new().err()
}
