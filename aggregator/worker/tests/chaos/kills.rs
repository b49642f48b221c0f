//! Workers and the server are killed, stopped and started at random while executions are published.

use crate::common;
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::round::{Round, Server};
use crate::script::Shape;

pub(crate) async fn round(mut round: Round) -> Tally {
    let mut server = Server::start(&round.path("nats")).await;
    let mut fleet = Fleet::start(server.url(), &round.dir, &[], None);
    let mut producers = round.produce(round.jobs(server.url(), 6, 96, Shape::SMALL, 60));
    while !producers.are_done() {
        producers.run_for(round.random.u64(100..700)).await;
        match round.random.u32(0..8) {
            // Its store is kept.
            0 => server = server.kill_and(async || common::pause(round.random.u64(0..500)).await).await,
            _ => fleet.attack(&mut round.random).await,
        }
    }
    fleet.tend(verify(server.bus(), round.ledger, Expect::ALL)).await
}
