//! Machines that are cloned from a snapshot: two at once, with random bytes and a clock of their own, watched, and from a pool.

use std::sync::Arc;

use glasshouse_backends::conformance::{fresh_id, report_skipped, spec};
use glasshouse_execution::backend::ExecutionBackend as _;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::limits::Limits;
use glasshouse_vm::VmBackend;
use glasshouse_vm::firecracker::{Pool, Template};

use crate::machines::support::apart::apart;
use crate::machines::support::{firecracker_config, left_of};
use crate::machines::watched::{cat, run, tells};

/// Of the commands; snapshots are as large as their machines.
fn limits() -> Limits {
    Limits { memory_bytes: Some(64 << 20), ..Limits::default() }
}

/// A template, and what its VMM ran as.
async fn template(name: &str) -> Option<Arc<Template>> {
    match firecracker_config() {
        Ok(config) => {
            let vmm = spec(["template"]);
            let template = Template::make(config, limits(), &vmm).await.unwrap();
            assert_eq!(left_of(&vmm.id.to_string()), Vec::<String>::new());
            Some(template)
        }
        Err(reason) => {
            report_skipped(name, &reason);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clones_at_once_share_neither_random_bytes_nor_an_old_clock() {
    let Some(template) = template("two_clones_at_once_share_neither_random_bytes_nor_an_old_clock").await
    else {
        return;
    };
    let digest = template.digest();
    apart(|| VmBackend::new(template.clone_machine()), digest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_watched_from_inside_and_outside_and_its_receipt_names_the_snapshot() {
    let name = "a_clone_is_watched_from_inside_and_outside_and_its_receipt_names_the_snapshot";
    let Some(template) = template(name).await else { return };
    for profile in [ProfilingMode::Guest, ProfilingMode::Combined] {
        let (_, receipt) = run(VmBackend::new(template.clone_machine()), cat(profile)).await;
        tells(&receipt, profile);
        assert_eq!(receipt.environment.snapshot, Some(template.digest()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_gives_machines_that_wait_and_others_where_their_begin_has_to_be_seen() {
    let name = "a_pool_gives_machines_that_wait_and_others_where_their_begin_has_to_be_seen";
    let Some(template) = template(name).await else { return };
    let pool = Pool::new(Arc::clone(&template), spec(["pool"]));
    let ids = [fresh_id(), fresh_id()];
    for id in ids {
        pool.add(id).await.unwrap();
    }
    assert_eq!(pool.ready(), 2);

    let (_, receipt) = run(pool.take(ProfilingMode::Guest).await, cat(ProfilingMode::Guest)).await;
    tells(&receipt, ProfilingMode::Guest);
    assert_eq!(receipt.environment.snapshot, Some(template.digest()));
    assert_eq!((pool.ready(), left_of(&ids[0].to_string())), (1, Vec::new()));

    let (_, receipt) = run(pool.take(ProfilingMode::Combined).await, cat(ProfilingMode::Combined)).await;
    tells(&receipt, ProfilingMode::Combined);
    assert_eq!(pool.ready(), 1, "its VMM has to be seen from its exec on");

    // More than any machine of the pool has.
    let mut large = spec(["/bin/cat"]);
    large.limits.memory_bytes = Some(1 << 30);
    let refused = VmBackend::new(template.clone_machine()).prepare(&large).await.unwrap_err();
    assert!(refused.to_string().contains("more memory than its machine"), "{refused}");

    assert_eq!(pool.close().await, Vec::<String>::new());
    assert_eq!(left_of(&ids[1].to_string()), Vec::<String>::new());
}
