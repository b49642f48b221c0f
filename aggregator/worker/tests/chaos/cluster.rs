//! Three servers that keep every stream together. Members are killed, the leader among them, all of them too, and streams get new
//! leaders under load.

use std::path::Path;

use glasshouse_nats::{Bus, EVENTS, NatsServer, ServerOptions, Topology};

use crate::common;
use crate::fleet::Fleet;
use crate::oracle::{Expect, Tally, verify};
use crate::producer::connect;
use crate::round::Round;
use crate::script::Shape;

const MEMBERS: usize = 3;

/// The members, each with its options; those that are killed have no server.
struct Cluster {
    members: Vec<(ServerOptions, Option<NatsServer>)>,
    url: String,
}

impl Cluster {
    async fn start(dir: &Path) -> Self {
        let members = ServerOptions::local_cluster(dir, MEMBERS).unwrap();
        let url = members.iter().map(|member| format!("nats://127.0.0.1:{}", member.port));
        let url = url.collect::<Vec<_>>().join(",");
        let mut cluster = Self { members: members.into_iter().map(|member| (member, None)).collect(), url };
        cluster.mend().await;
        let bus = connect(&cluster.url).await;
        let topology = Topology::embedded(MEMBERS).unwrap();
        // Until there is a leader nothing is created.
        common::until("the streams are made", async || match topology.apply(&bus).await {
            Ok(applied) => applied.differences.is_empty(),
            Err(error) => {
                println!("{error}");
                false
            }
        })
        .await;
        cluster
    }

    /// Starts those that are gone.
    async fn mend(&mut self) {
        let gone = self.members.iter_mut().filter(|(_, server)| server.is_none());
        futures::future::join_all(gone.map(async |(options, server)| {
            *server = Some(NatsServer::start(options.clone()).await.unwrap());
        }))
        .await;
    }

    async fn kill(&mut self, number: usize) {
        if let Some(server) = self.members[number].1.take() {
            server.kill().await;
        }
    }

    /// The number of the member that leads a stream, if anybody does.
    async fn leader(&self, bus: &Bus, stream: &str) -> Option<usize> {
        let stream = bus.jetstream().get_stream(stream).await.ok()?;
        let name = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        self.members
            .iter()
            .position(|(options, _)| options.cluster.as_ref().is_some_and(|member| member.name == name))
    }
}

pub(crate) async fn round(mut round: Round) -> Tally {
    let mut cluster = Cluster::start(&round.path("nats")).await;
    let bus = connect(&cluster.url).await;
    let mut fleet = Fleet::start(&cluster.url, &round.dir, &[], None);
    let mut producers = round.produce(round.jobs(&cluster.url, 6, 48, Shape::SMALL, 60));
    while !producers.are_done() {
        producers.run_for(round.random.u64(300..1_500)).await;
        match round.random.u32(0..8) {
            0 | 1 => fleet.attack(&mut round.random).await,
            2 | 3 => {
                let streams = [EVENTS, "GH_RECEIPTS", "KV_GH_LEASES", "KV_GH_CHECKPOINTS"];
                let stream = streams[round.random.usize(..streams.len())];
                // Refused while there is no leader.
                let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
                let _ = bus.client().request(subject, "".into()).await;
            }
            what => {
                match what {
                    4 => cluster.kill(round.random.usize(..MEMBERS)).await,
                    5 | 6 => {
                        if let Some(leader) = cluster.leader(&bus, EVENTS).await {
                            cluster.kill(leader).await;
                        }
                    }
                    _ => {
                        for number in 0..MEMBERS {
                            cluster.kill(number).await;
                        }
                    }
                }
                producers.run_for(round.random.u64(0..3_000)).await;
                cluster.mend().await;
            }
        }
    }
    fleet.tend(verify(&bus, round.ledger, Expect::ALL)).await
}
