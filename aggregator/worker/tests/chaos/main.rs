//! Everything around the executions breaks at random: workers, producers, servers, disks and networks. After each round there is
//! one receipt per execution, with the bytes that an undisturbed fold gives, and whatever is missing is named in it
//! ([`oracle`]).
//!
//! ```text
//! cargo test -p glasshouse-aggregator --test chaos                  # one round of each
//! GLASSHOUSE_CHAOS_SEED=7 cargo test -p glasshouse-aggregator --test chaos -- chaos_cluster   # the same round again
//! GLASSHOUSE_CHAOS_ROUNDS=20 ...                                    # goes on with the seeds after it
//! scripts/chaos.sh --rounds 200                                     # round after round, with a table at the end
//! ```
//! What is random is chosen from the seed. When the machine runs what is not, so a failure comes again with its seed if it does
//! not hang on a moment; the runner says how often.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod cut;
mod deliveries;
mod fleet;
mod full;
mod killed;
mod kills;
mod oracle;
mod producer;
mod restore;
mod role;
mod round;
mod script;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::role::Role;
use crate::round::Scenario;

static SCENARIOS: [Scenario; 9] = [
    Scenario::new("chaos_workers_and_server_killed", |round| Box::pin(kills::round(round))),
    Scenario::new("chaos_older_copy_of_the_store", |round| Box::pin(restore::round(round))),
    Scenario::new("chaos_doubled_late_and_out_of_order", |round| Box::pin(deliveries::round(round))),
    Scenario::new("chaos_full_streams", |round| Box::pin(full::streams(round))),
    Scenario::new("chaos_full_disk_of_the_spools", |round| Box::pin(full::spool_disk(round)))
        .lacking(full::no_mounts),
    Scenario::new("chaos_full_disk_of_the_server", |round| Box::pin(full::server_disk(round)))
        .lacking(full::no_mounts),
    Scenario::new("chaos_producers_killed", |round| Box::pin(killed::round(round))),
    Scenario::new("chaos_network_cut", |round| Box::pin(cut::round(round))).lacking(cut::no_namespaces),
    Scenario::new("chaos_cluster_members_killed", |round| Box::pin(cluster::round(round))),
];

fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return role.play();
    }
    let trial = |scenario: &'static Scenario| {
        Trial::test(scenario.name, move || scenario.run().map_err(Failed::from))
    };
    libtest_mimic::run(&Arguments::from_args(), SCENARIOS.iter().map(trial).collect()).exit_code()
}
