//! The server comes back with an older copy of its store, as after a power cut or a restore: what was acknowledged since is gone,
//! receipts, claims, leases and checkpoints too. Workers and producers live through it.

use crate::common;
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::round::{Round, Server};
use crate::script::Shape;

pub(crate) async fn round(mut round: Round) -> Tally {
    let dir = round.path("nats");
    let (store, backup) = (dir.join("store"), round.path("backup"));
    let mut server = Server::start(&dir).await;
    // What was lost is not said again.
    let mut fleet = Fleet::start(server.url(), &round.dir, &["--producer-grace", "3s"], None);
    let mut producers = round.produce(round.jobs(server.url(), 6, 72, Shape::SMALL, 60));
    producers.run_for(round.random.u64(300..1_500)).await;
    server = server.kill_and(async || common::replace(&store, &backup)).await;
    producers.run_for(round.random.u64(100..2_500)).await;
    server = server.kill_and(async || common::replace(&backup, &store)).await;
    while !producers.are_done() {
        producers.run_for(round.random.u64(100..1_000)).await;
        match round.random.u32(0..8) {
            0 | 1 => server = server.kill_and(async || common::replace(&store, &backup)).await,
            2 => server = server.kill_and(async || common::replace(&backup, &store)).await,
            3 | 4 => fleet.attack(&mut round.random).await,
            _ => {}
        }
    }
    let expect = Expect { may_lose: true, is_restored: true, ..Expect::ALL };
    fleet.tend(verify(server.bus(), round.ledger, expect)).await
}
