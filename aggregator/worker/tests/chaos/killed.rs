//! Producers are killed in the middle of executions. What they left on disk is sent later, by somebody else.

use std::path::PathBuf;

use crate::common::{self, execution};
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::producer::{Job, ProducerProcess, send_spool};
use crate::round::{Round, Server};
use crate::script::Shape;

pub(crate) async fn round(mut round: Round) -> Tally {
    let mut server = Server::start(&round.path("nats")).await;
    // What was on its way when a producer died is not said again.
    let mut fleet = Fleet::start(server.url(), &round.dir, &["--producer-grace", "3s"], None);
    let mut jobs = round.jobs(server.url(), 4, 48, Shape::SMALL, 60);
    let mut running: Vec<(ProducerProcess, Job)> = Vec::new();
    let mut left: Vec<PathBuf> = Vec::new();
    let mut lives = 0;
    loop {
        while let Some(job) = jobs.pop() {
            running.push((ProducerProcess::start(job.clone(), &round.dir, None), job));
        }
        let mut index = 0;
        while index < running.len() {
            match running[index].0.is_done() {
                true => running.swap_remove(index).0.report(&round.ledger),
                false => index += 1,
            }
        }
        if running.is_empty() {
            break;
        }
        common::pause(round.random.u64(100..700)).await;
        match round.random.u32(0..8) {
            0..=3 => {
                let (mut producer, mut job) = running.swap_remove(round.random.usize(..running.len()));
                producer.kill();
                producer.report(&round.ledger);
                left.push(producer.spool.clone());
                // A claimed execution is never run again.
                job.executions.retain(|number| !round.ledger.knows(execution(*number)));
                lives += 1;
                job.spool = round.path(&format!("life-{lives}"));
                jobs.push(job);
            }
            4 => server = server.kill_and(async || common::pause(round.random.u64(0..2_000)).await).await,
            5 => fleet.attack(&mut round.random).await,
            _ => {}
        }
        if !left.is_empty() && round.random.bool() {
            send_spool(server.bus(), &left.swap_remove(0)).await;
        }
    }
    for spool in &left {
        send_spool(server.bus(), spool).await;
    }
    let expect = Expect { may_lose: true, ..Expect::ALL };
    fleet.tend(verify(server.bus(), round.ledger, expect)).await
}
