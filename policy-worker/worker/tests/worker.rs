//! Workers on a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    Broker, broker, dead_letters, execution, policy, publish, verdicts, wait_for, wait_until_drained,
};
use glasshouse_eval::Policy;
use glasshouse_nats::{DEAD, POLICY_WORKERS, Publisher, PublisherOptions, ReceiptConsumer, VERDICTS};
use glasshouse_policy_worker::{Config, Error, run};
use glasshouse_schema::dead::DeadKind;
use glasshouse_schema::verdict::{Decision, RuleResult};
use glasshouse_schema::{Digest, Receipt, headers, subject};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn start(broker: &Broker, name: &str, policies: Vec<Policy>) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let config = Config::new(broker.server.url(), name, policies);
    let task = tokio::spawn(run(config, async {
        let _ = stopped.await;
    }));
    Running { stop, task }
}

fn allow() -> Policy {
    policy("allow", "receipt.exit_code == 0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_receipts_and_each_verdict_exists_once() {
    let broker = broker().await;
    let policies = || vec![allow(), policy("deny", "receipt.exit_code == 1")];
    let workers = [start(&broker, "one", policies()), start(&broker, "two", policies())];
    const RECEIPTS: u16 = 120;
    for n in 0..RECEIPTS {
        publish(&broker.bus, execution(n)).await;
    }
    let messages = wait_for(&broker.bus, VERDICTS, 2 * usize::from(RECEIPTS)).await;
    wait_until_drained(&broker.bus).await;
    let mut by_worker: BTreeMap<String, usize> = BTreeMap::new();
    let mut subjects = BTreeSet::new();
    for (subject, body, headers) in &messages {
        let verdict = glasshouse_schema::Verdict::decode(body).unwrap();
        let policy = &verdict.policy;
        assert_eq!(subject, &subject::verdict(verdict.execution_id, &policy.name, policy.digest));
        assert_eq!(verdict.receipt_digest, Some(Digest::of(&common::receipt(verdict.execution_id))));
        let expected = match policy.name.as_str() {
            "allow" => (Decision::Allowed, RuleResult::Passed, ""),
            _ => (Decision::Denied, RuleResult::Violated, "denied by test"),
        };
        let rule = &verdict.rules[0];
        assert_eq!((verdict.decision, rule.result, rule.reason.as_str()), expected);
        // Without an exporter of its own the worker passes the trace on as it came.
        assert_eq!(headers.get(headers::TRACEPARENT).unwrap().as_str(), common::PARENT);
        *by_worker.entry(headers.get(headers::WORKER).unwrap().to_string()).or_default() += 1;
        subjects.insert(subject.clone());
    }
    assert_eq!(subjects.len(), messages.len());
    assert_eq!(by_worker.keys().collect::<Vec<_>>(), ["one", "two"], "{by_worker:?}");
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(common::count(&broker.bus, VERDICTS).await, 2 * u64::from(RECEIPTS));
    assert_eq!(common::count(&broker.bus, DEAD).await, 0);
}

#[tokio::test]
async fn a_bad_receipt_becomes_a_dead_letter_and_the_worker_goes_on() {
    let broker = broker().await;
    let other = execution(9);
    let good = common::receipt(other);
    let mut cases: Vec<(Vec<u8>, Option<String>, &str)> = vec![
        (b"{".to_vec(), None, "has no Glasshouse-Digest header"),
        (b"not json".to_vec(), Some(Digest::of(b"not json").to_string()), "is not a receipt"),
        (good.clone(), Some(Digest::of(b"other").to_string()), "its header says"),
        (good.clone(), Some("no digest".into()), "is not a digest"),
        (good.clone(), Some(Digest::of(&good).to_string()), "which belongs under"),
        (br#"{"version":"v9"}"#.to_vec(), Some(Digest::of(br#"{"version":"v9"}"#).to_string()), "version v9"),
    ];
    let old = br#"{"receipt_version":"v0.2.0","execution_id":"cgroup:7"}"#;
    cases.push((old.to_vec(), Some(Digest::of(old).to_string()), "execution id"));
    for (n, (body, digest, _)) in (0..).zip(&cases) {
        let mut headers = async_nats::HeaderMap::new();
        if let Some(digest) = digest {
            headers.insert(headers::DIGEST, digest.as_str());
        }
        let subject = subject::receipt(execution(100 + n));
        let stored = broker.bus.jetstream().publish_with_headers(subject, headers, body.clone().into()).await;
        stored.unwrap().await.unwrap();
    }
    publish(&broker.bus, execution(1)).await;

    let worker = start(&broker, "w", vec![allow()]);
    let letters = dead_letters(&broker.bus, cases.len()).await;
    for ((body, _, why), letter) in cases.iter().zip(&letters) {
        assert!(letter.reason.contains(why), "{why}: {letter:?}");
        assert_eq!((letter.kind, letter.worker.as_str()), (DeadKind::Receipt, "w"));
        assert_eq!((letter.stream.as_str(), letter.body_digest), ("GH_RECEIPTS", Digest::of(body)));
    }
    assert_eq!(verdicts(&broker.bus, 1).await[0].execution_id, execution(1));
    wait_until_drained(&broker.bus).await;
    worker.stop().await;
    assert_eq!(common::count(&broker.bus, VERDICTS).await, 1);
}

#[tokio::test]
async fn a_receipt_that_comes_again_gives_no_second_verdict() {
    let broker = broker().await;
    let id = execution(1);
    publish(&broker.bus, id).await;
    // A worker that died between its verdict and the acknowledgement.
    {
        let mut consumer = ReceiptConsumer::join(&broker.bus, POLICY_WORKERS).await.unwrap();
        let delivery = consumer.next().await.unwrap();
        let receipt = Receipt::decode(&delivery.document().await.unwrap().body).unwrap();
        let policy = allow();
        let verdict = policy.evaluate_post(&receipt, Digest::of(&common::receipt(id))).unwrap();
        let reference = policy.reference();
        Publisher::new(&broker.bus, PublisherOptions::default())
            .publish_verdict(
                id,
                (&reference.name, reference.digest),
                &verdict.encode().unwrap(),
                "dead",
                None,
            )
            .await
            .unwrap();
        drop(delivery);
    }
    let worker = start(&broker, "heir", vec![allow()]);
    publish(&broker.bus, execution(2)).await;
    let verdicts = verdicts(&broker.bus, 2).await;
    wait_until_drained(&broker.bus).await;
    worker.stop().await;
    assert_eq!(verdicts.iter().map(|v| v.execution_id).collect::<BTreeSet<_>>(), [id, execution(2)].into());
    assert_eq!(common::count(&broker.bus, VERDICTS).await, 2);
    assert_eq!(common::count(&broker.bus, DEAD).await, 0);
}

#[tokio::test]
async fn a_verdict_that_differs_is_an_alarm_and_never_an_overwrite() {
    let broker = broker().await;
    let id = execution(1);
    let reference = allow().reference();
    Publisher::new(&broker.bus, PublisherOptions::default())
        .publish_verdict(id, (&reference.name, reference.digest), b"{\"forged\":true}", "mallory", None)
        .await
        .unwrap();
    publish(&broker.bus, id).await;
    let worker = start(&broker, "w", vec![allow()]);
    let letters = dead_letters(&broker.bus, 1).await;
    assert_eq!(letters[0].kind, DeadKind::Verdict);
    assert!(letters[0].reason.contains("differ"), "{:?}", letters[0]);
    wait_until_drained(&broker.bus).await;
    worker.stop().await;
    let stored = wait_for(&broker.bus, VERDICTS, 1).await;
    assert_eq!(stored[0].1, b"{\"forged\":true}");
    assert_eq!(common::count(&broker.bus, VERDICTS).await, 1);
}

#[tokio::test]
async fn a_large_receipt_is_resolved_from_the_object_store() {
    let broker = broker().await;
    let id = execution(1);
    let mut receipt = Receipt::decode(&common::receipt(id)).unwrap();
    receipt.filesystem.reads =
        (0..20_000).map(|n| format!("/data/some/long/directory/name/{n:08}")).collect();
    let bytes = receipt.encode().unwrap();
    assert!(bytes.len() > glasshouse_nats::MAX_INLINE_BYTES);
    Publisher::new(&broker.bus, PublisherOptions::default())
        .publish_receipt(id, &bytes, "aggregator", None)
        .await
        .unwrap();
    let rule =
        "receipt.filesystem.reads.all(p, under(p, '/data')) && size(receipt.filesystem.reads) == 20000";
    let worker = start(&broker, "w", vec![policy("large", rule)]);
    let verdict = verdicts(&broker.bus, 1).await.remove(0);
    assert_eq!((verdict.decision, verdict.receipt_digest), (Decision::Allowed, Some(Digest::of(&bytes))));
    worker.stop().await;
}

#[tokio::test]
async fn without_policies_receipts_wait() {
    let broker = broker().await;
    publish(&broker.bus, execution(1)).await;
    start(&broker, "idle", Vec::new()).stop().await;
    let worker = start(&broker, "w", vec![allow()]);
    assert_eq!(verdicts(&broker.bus, 1).await.len(), 1);
    worker.stop().await;
    let twice = run(Config::new(broker.server.url(), "w", vec![allow(), allow()]), async {}).await;
    assert!(matches!(twice, Err(Error::PolicyTwice(_))), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stops_though_nobody_takes_its_verdict_and_the_receipt_comes_again() {
    let broker = broker().await;
    let config = broker.bus.jetstream().get_stream(VERDICTS).await.unwrap().cached_info().config.clone();
    broker.bus.jetstream().delete_stream(VERDICTS).await.unwrap();
    publish(&broker.bus, execution(1)).await;
    let worker = start(&broker, "one", vec![allow()]);
    let stream = broker.bus.jetstream().get_stream(glasshouse_nats::RECEIPTS).await.unwrap();
    let in_hand = async {
        while stream.consumer_info(POLICY_WORKERS).await.map_or(0, |info| info.num_ack_pending) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(common::DEADLINE, in_hand).await.expect("the receipt is in hand");
    let began = std::time::Instant::now();
    worker.stop().await;
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());

    broker.bus.jetstream().create_stream(config).await.unwrap();
    let worker = start(&broker, "two", vec![allow()]);
    assert_eq!(verdicts(&broker.bus, 1).await.len(), 1);
    worker.stop().await;
}
