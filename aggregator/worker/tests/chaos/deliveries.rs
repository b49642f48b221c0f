//! The same message comes again, comes late, and comes before what was said before it.
//!
//! What the words mean here, where JetStream gives every reader one order:
//! - *doubled*: published again with the same message id (the server drops it), with another or with none (it is stored again),
//!   also after the end of its execution;
//! - *delayed*: frames that come after `sealed`, however long after;
//! - *reordered*: the messages of an execution are published in another order than they were made, by two producers at once that
//!   do not wait for each other;
//! - *redelivered*: all workers are killed and begin at an older checkpoint, or at none.

use std::collections::BTreeMap;

use async_nats::jetstream::message::PublishMessage;
use fastrand::Rng;
use glasshouse_nats::{Bus, Checkpoint, CheckpointPut, Checkpoints};
use glasshouse_schema::ExecutionId;
use tokio::task::JoinSet;

use crate::common::{self, RANGES, execution};
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::producer::connect;
use crate::round::{Round, Server};
use crate::script::{Ledger, Report, Said, Shape, script};

const EXECUTIONS: u16 = 72;
const AT_ONCE: u16 = 6;

#[derive(Debug, Clone, Copy)]
enum MsgId {
    Usual,
    Another(u64),
    None,
}

type Delivery = (Said, MsgId);

/// An order in which the messages of an execution are published, some of them several times.
fn deliveries(script: &[Said], random: &mut Rng) -> Vec<Delivery> {
    let mut said = script.to_vec();
    // Said once the rest is: who is told before `sealed` that the node is tidy takes the seal as missing.
    let cleaned = said.pop();
    match random.u32(0..4) {
        0 => {}
        1 => {
            for index in 1..said.len() {
                if random.bool() {
                    said.swap(index - 1, index);
                }
            }
        }
        2 => {
            // The frames at last.
            said.sort_by_key(|said| matches!(said, Said::Frame { .. }));
        }
        _ => random.shuffle(&mut said),
    }
    let mut deliveries: Vec<Delivery> = said.into_iter().map(|said| (said, MsgId::Usual)).collect();
    for said in &script[..script.len() - 1] {
        for _ in 0..random.u32(0..3) {
            let id = match random.u32(0..3) {
                0 => MsgId::Usual,
                1 => MsgId::Another(random.u64(..)),
                _ => MsgId::None,
            };
            let is_late = random.u32(0..4) == 0;
            let place = if is_late { deliveries.len() } else { random.usize(..=deliveries.len()) };
            deliveries.insert(place, (said.clone(), id));
        }
    }
    deliveries.extend(cleaned.map(|said| (said, MsgId::Usual)));
    deliveries
}

async fn publish(bus: &Bus, id: ExecutionId, (said, msg_id): &Delivery) {
    let (subject, usual) = said.address(id);
    let message = PublishMessage::build().payload(said.payload().into());
    let message = match msg_id {
        MsgId::Usual => message.message_id(usual),
        MsgId::Another(number) => message.message_id(format!("{usual}-{number}")),
        MsgId::None => message,
    };
    bus.jetstream().send_publish(subject, message).await.unwrap().await.unwrap();
}

/// One execution, by two producers at once.
async fn produce(buses: [Bus; 2], ledger: Ledger, number: u16, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let id = execution(number);
    let epoch = common::claim(&buses[0], id).await;
    ledger.note(Report::Claimed(id, epoch));
    let script = script(id, epoch, Shape::SMALL);
    let mut shares: [Vec<Delivery>; 2] = Default::default();
    let mut deliveries = deliveries(&script, &mut random);
    let last = deliveries.pop().unwrap();
    for delivery in deliveries {
        shares[random.usize(..2)].push(delivery);
    }
    let both = buses.iter().zip(shares).map(|(bus, share)| {
        let mut random = random.fork();
        async move {
            for delivery in share {
                publish(bus, id, &delivery).await;
                common::pause(random.u64(0..40)).await;
            }
        }
    });
    futures::future::join_all(both).await;
    publish(&buses[0], id, &last).await;
    for said in script {
        ledger.note(Report::Accepted(id, said));
    }
}

/// The checkpoints of all ranges.
async fn checkpoints(bus: &Bus) -> BTreeMap<String, Checkpoint> {
    let store = Checkpoints::new(bus);
    let mut checkpoints = BTreeMap::new();
    for key in (0..RANGES).map(|range| format!("aggregator.{range}")) {
        checkpoints.insert(key.clone(), store.get(&key).await.unwrap());
    }
    checkpoints
}

/// While no worker is there, each range gets its older checkpoint back, or loses what it has.
async fn rewind(bus: &Bus, older: &BTreeMap<String, Checkpoint>, random: &mut Rng) {
    for (key, newest) in checkpoints(bus).await {
        let bytes = match (random.u32(0..4), &older[&key].bytes) {
            (0, _) | (_, None) => b"{}".to_vec(),
            (_, Some(bytes)) => bytes.to_vec(),
        };
        let put = Checkpoints::new(bus).put(&key, &bytes, &newest).await.unwrap();
        assert!(matches!(put, CheckpointPut::Stored(_)), "nobody else is there: {put:?}");
    }
}

pub(crate) async fn round(mut round: Round) -> Tally {
    let server = Server::start(&round.path("nats")).await;
    let mut fleet = Fleet::start(server.url(), &round.dir, &[], None);
    let buses = [connect(server.url()).await, connect(server.url()).await];
    let (mut waiting, mut producing) = ((0..EXECUTIONS).collect::<Vec<_>>(), JoinSet::new());
    let mut older = checkpoints(server.bus()).await;
    while !(waiting.is_empty() && producing.is_empty()) {
        while producing.len() < usize::from(AT_ONCE)
            && let Some(number) = waiting.pop()
        {
            producing.spawn(produce(buses.clone(), round.ledger.clone(), number, round.random.u64(..)));
        }
        producing.join_next().await.unwrap().unwrap();
        match round.random.u32(0..16) {
            0 => {
                fleet.kill_all();
                rewind(server.bus(), &older, &mut round.random).await;
                fleet.mend();
            }
            1 | 2 => older = checkpoints(server.bus()).await,
            3 | 4 => fleet.attack(&mut round.random).await,
            _ => {}
        }
    }
    fleet.tend(verify(server.bus(), round.ledger, Expect::ALL)).await
}
