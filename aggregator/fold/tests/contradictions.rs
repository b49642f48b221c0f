//! What host, guest and engine say of one virtual machine, held against each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{
    Delivery, Scenario, at, attached, close, config, connect, deliver, exec, execution, exit, frames, open,
    outcome, phase, process, sealed, socket,
};
use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::{FrameWriterConfig, Seal};
use glasshouse_schema::lifecycle::{
    Environment, Exited, Isolation, Outcome, Phase, PhaseName, Prepared, Profiled, Sandbox, Sealed, VmmBounds,
};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{Address, Event, Fact, Receipt, SocketOperation, Vantage};
use proptest::collection::vec;
use proptest::prelude::*;

const VMM: &[u8] = b"/usr/bin/vmm";
const NONE: &[&[u8]] = &[];
const OUTSIDE: Address<'_> = Address::V4([203, 0, 113, 7], 443);
const LOOPBACK: Address<'_> = Address::V4([127, 0, 0, 1], 80);
const TCP: u8 = 6;
const UDP: u8 = 17;
const O_WRONLY: u32 = 1;

/// One machine: what each vantage point saw, and what the engine was told.
struct Machine {
    host: Vec<Event<'static>>,
    guest: Vec<Event<'static>>,
    network: &'static str,
    /// The server of its guest's link.
    link: Option<&'static str>,
    outcome: Outcome,
    /// Which chains have a seal.
    sealed: [bool; 2],
}

impl Machine {
    /// One of which everything fits.
    fn honest() -> Self {
        let host = vec![
            at(0, 100, exec(1, VMM, NONE)),
            at(1, 100, open(b"/usr/lib/libc.so.6", 0, 0)),
            at(2, 100, open(b"/dev/null", O_WRONLY, 0)),
            at(2, 100, open(b"/etc/shadow", 0, -13)),
            at(3, 100, open(b"/vm/1/initramfs", 0, 0)),
            at(4, 100, connect(Address::Unix(b"/vm/1/link"), 0, 0)),
            at(90, 100, exit(0, 0)),
        ];
        let guest = vec![
            at(20, 7, exec(1, b"/bin/sh", NONE)),
            at(21, 7, Fact::Fork { child: process(8) }),
            at(22, 8, exec(7, b"/bin/cat", NONE)),
            at(23, 8, connect(LOOPBACK, TCP, 0)),
            at(24, 8, connect(OUTSIDE, TCP, -101)),
            at(25, 8, exit(1, 0)),
            at(26, 7, exit(3, 0)),
        ];
        Self { host, guest, network: "none", link: None, outcome: outcome(3), sealed: [true, true] }
    }

    fn with_host(mut self, fact: Fact<'static>) -> Self {
        self.host.insert(5, at(50, 100, fact));
        self
    }

    fn with_guest(mut self, fact: Fact<'static>) -> Self {
        self.guest.insert(2, at(50, 7, fact));
        self
    }

    fn scenario(&self) -> Scenario {
        let begin = [PhaseName::Requested, PhaseName::Admitted, PhaseName::Claimed];
        let mut scenario = Scenario::of(&begin);
        let strings = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let bounds = VmmBounds {
            programs: strings(&["/usr/bin/vmm"]),
            reads: strings(&["/usr"]),
            writes: strings(&["/vm/1", "/dev/null"]),
            loopback: (self.network == "allow-list").then(|| "10.0.2.2".into()),
            link: self.link.map(|link| link.to_string()),
        };
        let sandbox = Sandbox { network: self.network.into(), ..Sandbox::default() };
        let environment = Environment { sandbox, vmm: Some(bounds), ..Environment::default() };
        scenario.add(Phase::Prepared(Prepared {
            backend: "qemu".into(),
            isolation: Isolation::Vm,
            environment: Box::new(environment),
        }));
        scenario.add(phase(PhaseName::Started));
        let both = [Vantage::Host, Vantage::Guest];
        scenario
            .add(Phase::Profiled(Profiled { attached: both.map(attached).into(), unavailable: Vec::new() }));
        let mut vantages = Vec::new();
        for ((vantage, events), is_sealed) in both.into_iter().zip([&self.host, &self.guest]).zip(self.sealed)
        {
            let mut chain = frames(FrameWriterConfig { vantage, ..config() }, events, 3, Seal::default());
            if let (true, Phase::Sealed(told)) = (is_sealed, sealed(&chain)) {
                vantages.extend(told.vantages);
            } else {
                chain.pop();
            }
            scenario.add_frames(chain);
        }
        let Phase::Exited(exited) = phase(PhaseName::Exited) else { unreachable!() };
        scenario.add(Phase::Exited(Exited { outcome: self.outcome.clone(), ..exited }));
        scenario.add(Phase::Sealed(Sealed { vantages, missing: Vec::new() })).add(phase(PhaseName::Cleaned));
        scenario
    }

    fn receipt(&self) -> Receipt {
        self.scenario().receipt()
    }

    /// The kinds of its contradictions; and that they make the receipt partial.
    fn kinds(&self) -> Vec<String> {
        let receipt = self.receipt();
        for contradiction in &receipt.contradictions {
            assert_eq!(contradiction.said.len(), 2, "{contradiction:?}");
            assert_eq!(receipt.completeness, Completeness::Partial);
            assert!(
                receipt.coverage.incomplete.iter().any(|incomplete| incomplete.reason == "contradiction")
            );
        }
        receipt.contradictions.into_iter().map(|contradiction| contradiction.kind).collect()
    }
}

#[test]
fn an_honest_machine_contradicts_nothing() {
    let receipt = Machine::honest().receipt();
    assert_eq!(receipt.contradictions, []);
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
}

#[test]
fn any_socket_of_a_machine_without_a_network_is_one() {
    for fact in [
        connect(OUTSIDE, TCP, -115),
        connect(LOOPBACK, TCP, -111),
        socket(SocketOperation::Bind, Address::V4([0, 0, 0, 0], 4_000), TCP, 0),
        socket(SocketOperation::Send, OUTSIDE, UDP, 0),
        Fact::Traffic {
            address: OUTSIDE,
            protocol: TCP,
            sends: 1,
            receives: 0,
            sent_bytes: 9,
            received_bytes: 0,
        },
    ] {
        assert_eq!(Machine::honest().with_host(fact).kinds(), ["vmm_network"], "{fact:?}");
    }
    // Named are who saw it and who knows nothing of it: the engine, where the guest speaks of that address too.
    let said = |machine: Machine| machine.receipt().contradictions[0].said.clone();
    let machine = said(Machine::honest().with_host(connect(OUTSIDE, TCP, 0)));
    assert_eq!((machine[0].vantage, machine[1].vantage), (Vantage::Host, Vantage::Runner));
    assert!(machine[0].says.contains("connect 203.0.113.7:443 (tcp)"), "{machine:?}");
    let mut silent = Machine::honest();
    silent.guest.retain(|event| !matches!(event.fact, Fact::Socket { .. }));
    assert_eq!(said(silent.with_host(connect(OUTSIDE, TCP, 0)))[1].vantage, Vantage::Guest);
}

/// One whose network is sockets of its process.
fn listed() -> Machine {
    Machine { network: "allow-list", ..Machine::honest() }
}

#[test]
fn a_network_is_used_by_both_or_by_none() {
    let mut machine = listed();
    assert_eq!(machine.kinds(), Vec::<String>::new());
    machine = machine.with_host(connect(OUTSIDE, TCP, -115));
    assert_eq!(machine.kinds(), Vec::<String>::new(), "the guest tells of it too");
    machine.guest.retain(|event| !matches!(event.fact, Fact::Socket { address: OUTSIDE, .. }));
    assert_eq!(machine.kinds(), ["vmm_network"], "the guest is silent");
    machine.sealed[1] = false;
    assert_eq!(machine.kinds(), Vec::<String>::new(), "and says nothing by that, without a seal");
}

#[test]
fn what_carries_the_link_is_not_the_commands() {
    let machine = |host| Machine { link: Some("203.0.113.8:4222"), ..listed() }.with_host(host);
    let server = |port| Address::V4([203, 0, 113, 8], port);
    assert_eq!(machine(connect(server(4222), TCP, -115)).kinds(), Vec::<String>::new());
    for other in [connect(server(4223), TCP, 0), connect(server(4222), UDP, 0), connect(LOOPBACK, TCP, 0)] {
        assert_eq!(machine(other).kinds(), ["vmm_network"]);
    }
}

#[test]
fn each_connection_of_a_guest_is_one_of_its_machine() {
    const ALIAS: Address<'_> = Address::V4([10, 0, 2, 2], 80);
    // The node's loopback has a name of its own inside; the guest's is the guest's.
    let alias = listed().with_guest(connect(ALIAS, TCP, 0));
    assert_eq!(alias.kinds(), ["guest_network"], "nobody carried it");
    assert_eq!(alias.with_host(connect(LOOPBACK, TCP, -115)).kinds(), Vec::<String>::new());
    let own = listed().with_host(connect(LOOPBACK, TCP, -115));
    assert_eq!(own.kinds(), ["vmm_network"], "what the guest reached at its own loopback is not the node's");
    // One datagram and one attempt that was refused are told by both.
    for (inside, outside) in [
        (connect(OUTSIDE, UDP, 0), socket(SocketOperation::Send, OUTSIDE, UDP, 0)),
        (connect(OUTSIDE, TCP, -101), connect(OUTSIDE, TCP, -1)),
    ] {
        assert_eq!(listed().with_guest(inside).with_host(outside).kinds(), Vec::<String>::new());
    }
    // Another port, protocol or address is another connection.
    const ELSEWHERE: Address<'_> = Address::V4([203, 0, 113, 8], 443);
    const OTHER_PORT: Address<'_> = Address::V4([203, 0, 113, 7], 444);
    for other in [connect(ELSEWHERE, TCP, 0), connect(OTHER_PORT, TCP, 0), connect(OUTSIDE, UDP, 0)] {
        let reached = listed().with_guest(connect(OUTSIDE, TCP, 0)).with_host(other);
        assert_eq!(reached.kinds(), ["guest_network", "vmm_network"]);
    }
    // What was made by hand is told by its address alone.
    const RAW: u8 = 255;
    let by_hand = socket(SocketOperation::Send, Address::V4([203, 0, 113, 8], 0), RAW, 0);
    let by_hand = listed().with_guest(by_hand).with_host(connect(ELSEWHERE, TCP, 0));
    assert_eq!(by_hand.kinds(), Vec::<String>::new());
}

#[test]
fn a_guest_cannot_have_left_a_machine_without_a_way_out() {
    let reached = Machine::honest().with_guest(connect(OUTSIDE, TCP, 0));
    assert_eq!(reached.kinds(), ["guest_network"]);
    let heard = Fact::Traffic {
        address: OUTSIDE,
        protocol: UDP,
        sends: 1,
        receives: 1,
        sent_bytes: 9,
        received_bytes: 9,
    };
    assert_eq!(Machine::honest().with_guest(heard).kinds(), ["guest_network"]);
    // An address that the command gave itself is its own.
    let bound = socket(SocketOperation::Bind, Address::V4([203, 0, 113, 7], 1), TCP, 0);
    assert_eq!(reached.with_guest(bound).kinds(), Vec::<String>::new());
    // A host that saw a way out, or not everything, proves nothing.
    let mut unsealed = Machine::honest().with_guest(connect(OUTSIDE, TCP, 0));
    unsealed.sealed[0] = false;
    assert_eq!(unsealed.kinds(), Vec::<String>::new());
}

#[test]
fn the_end_that_was_told_is_the_end_that_was_seen() {
    let told = |outcome| Machine { outcome, ..Machine::honest() }.kinds();
    assert_eq!(told(outcome(0)), ["exit"]);
    let signalled = Outcome { signal: Some("SIGKILL".into()), ..outcome(137) };
    assert_eq!(told(signalled.clone()), ["exit"]);
    // What Glasshouse ended for a reason of its own was told by nobody.
    assert_eq!(
        told(Outcome { error: Some("the guest is gone".into()), ..outcome(125) }),
        Vec::<String>::new()
    );
    let ending = |fact: Option<Fact<'static>>, outcome| {
        let mut machine = Machine { outcome, ..Machine::honest() };
        machine.guest.pop();
        machine.guest.extend(fact.map(|fact| at(26, 7, fact)));
        machine.kinds()
    };
    assert_eq!(ending(Some(exit(0, 9)), signalled), Vec::<String>::new());
    assert_eq!(ending(Some(exit(137, 0)), outcome(137)), Vec::<String>::new());
    assert_eq!(ending(None, outcome(0)), ["exit"], "it did not end, says its kernel");
}

#[test]
fn a_command_that_ended_was_started() {
    let machine = Machine { guest: Vec::new(), ..Machine::honest() };
    assert_eq!(machine.kinds(), ["nothing_ran"]);
    let unsealed = Machine { guest: Vec::new(), sealed: [true, false], ..Machine::honest() };
    assert_eq!(unsealed.kinds(), Vec::<String>::new(), "what is silent and unsealed says nothing");
}

#[test]
fn a_machine_is_one_program_with_its_own_files() {
    assert_eq!(Machine::honest().with_host(exec(1, b"/bin/sh", NONE)).kinds(), ["vmm_program"]);
    for (fact, kinds) in [
        (open(b"/root/.ssh/id_rsa", 0, 0), &["vmm_file"][..]),
        (open(b"/usr/bin/vmm", O_WRONLY, 0), &["vmm_file"]),
        (open(b"/vm/12/initramfs", 0, 0), &["vmm_file"]),
        (open(b"/vm/1/core", O_WRONLY, 0), &[]),
        (open(b"/usr/share/bios", 0, 0), &[]),
        (open(b"/root/.ssh/id_rsa", 0, -2), &[]),
        (open(b"memfd:ram", O_WRONLY, 0), &[]),
    ] {
        assert_eq!(Machine::honest().with_host(fact).kinds(), kinds, "{fact:?}");
    }
}

#[test]
fn a_statement_is_bounded() {
    let mut machine = Machine::honest();
    let paths: Vec<String> = (0..500).map(|number| format!("/root/{number:03}")).collect();
    for path in &paths {
        machine.host.push(at(60, 100, open(path.clone().leak().as_bytes(), 0, 0)));
    }
    let receipt = machine.receipt();
    let says = &receipt.contradictions[0].said[0].says;
    assert!(says.contains("opened /root/000") && says.ends_with("and 492 more"), "{says}");
}

#[test]
fn a_command_without_a_machine_has_no_contradictions() {
    let receipt = common::scenario(8).receipt();
    assert_eq!(receipt.contradictions, []);
}

proptest! {
    #![proptest_config(common::proptest_config(64))]

    /// However its events arrive, a lying machine has the same receipt, to the byte.
    #[test]
    fn any_order_finds_the_same(keys in vec(any::<u32>(), 1..60), network in prop::sample::select(vec!["none", "host", "allow-list"])) {
        let machine = Machine { network, outcome: outcome(0), ..Machine::honest() }
            .with_host(connect(OUTSIDE, TCP, 0))
            .with_host(open(b"/root/a", 0, 0))
            .with_host(exec(1, b"/bin/sh", NONE))
            .with_guest(connect(OUTSIDE, TCP, 0));
        let bytes = |deliveries: &[Delivery]| {
            let mut fold = ExecutionFold::new(execution());
            deliveries.iter().for_each(|delivery| deliver(&mut fold, delivery));
            close(fold).receipt().unwrap().encode().unwrap()
        };
        let straight = machine.scenario().deliveries;
        let mut order: Vec<usize> = (0..straight.len()).collect();
        order.sort_by_key(|index| keys[index % keys.len()].rotate_left(*index as u32));
        let shuffled: Vec<Delivery> = order.into_iter().map(|index| straight[index].clone()).collect();
        prop_assert_eq!(bytes(&shuffled), bytes(&straight));
    }
}
