//! Many threads, real time: no wake-up is lost, nothing stands still, everything arrives.

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use mas_transport_core::{Event, Message, Outcome, Subscription, Transport, Want};
use mas_transport_memory::{
    FaultEffect, FaultOperation, FaultPlan, FaultRule, MemoryBroker, MemoryConfig, Profile,
};
use tokio::time::{Instant, timeout};

const PUBLISHERS: usize = 4;
const EACH: usize = 2000;

/// Takes, settles in every way, drops fetches half-way, and leaves after a while.
async fn member(broker: MemoryBroker, seen: Arc<Mutex<BTreeSet<String>>>, number: usize) {
    loop {
        let bus = broker.connect().await.unwrap();
        let subscription = Subscription::new("a")
            .group("g")
            .lease(Duration::from_millis(500));
        let Ok(mut source) = bus.subscribe(&subscription).await else {
            continue;
        };
        let mut events = Vec::new();
        for round in 0..40 {
            if seen.lock().unwrap().len() == PUBLISHERS * EACH {
                return;
            }
            let want = Want::new(1 + round * 7 % 64, usize::MAX);
            // Sometimes dropped before its first poll is over, sometimes while it waits.
            let patience = Duration::from_millis((round % 3) as u64 * 5);
            let _ = timeout(patience, source.fetch.fetch(want, &mut events)).await;
            let mut batch = Vec::new();
            for (at, event) in events.drain(..).enumerate() {
                let Event::Delivery(delivery) = event else {
                    continue;
                };
                let outcome = match (at + round + number) % 5 {
                    0 => Outcome::Nack(Duration::from_millis(at as u64 % 4)),
                    1 => Outcome::Return,
                    _ => Outcome::Ack,
                };
                let id = delivery.message.id().to_owned();
                batch.push((id, delivery.token, outcome));
            }
            let settlements = batch.iter().map(|(_, t, o)| (*t, o.clone())).collect();
            let results = source.settle.settle(settlements).await;
            let mut seen = seen.lock().unwrap();
            for ((id, _, outcome), result) in batch.into_iter().zip(results) {
                if result.is_ok() && matches!(outcome, Outcome::Ack) {
                    assert!(seen.insert(id), "acknowledged twice");
                }
            }
        }
        match number % 3 {
            0 => bus.close(Instant::now()).await.unwrap(),
            1 => drop(source),
            _ => source.settle.close(Instant::now()).await.unwrap(),
        }
    }
}

async fn everything_arrives(config: MemoryConfig) {
    let plan = FaultPlan::new(3)
        .rule(
            FaultRule::new(
                FaultOperation::Fetch,
                FaultEffect::Disconnect(Duration::from_millis(20)),
            )
            .probability(0.005),
        )
        .rule(FaultRule::new(FaultOperation::Fetch, FaultEffect::LoseAck).probability(0.005));
    let broker = MemoryBroker::new(config.faults(plan));
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let mut tasks = Vec::new();
    for number in 0..6 {
        tasks.push(tokio::spawn(member(
            broker.clone(),
            Arc::clone(&seen),
            number,
        )));
    }
    for number in 0..PUBLISHERS {
        let bus = broker.connect().await.unwrap();
        tasks.push(tokio::spawn(async move {
            for _ in 0..EACH / 20 {
                let new = |_| Message::new("a", "x").unwrap().key(number.to_string());
                for result in bus.publish((0..20).map(new).collect(), soon()).await.await {
                    result.unwrap();
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    // Some leases have to end by themselves, 500 ms each; the rest is work of milliseconds.
    let all = futures::future::join_all(tasks);
    let Ok(results) = timeout(Duration::from_secs(20), all).await else {
        panic!("{} arrived", seen.lock().unwrap().len());
    };
    results.into_iter().for_each(Result::unwrap);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_arrives_through_a_lease_queue() {
    everything_arrives(MemoryConfig::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_arrives_through_a_partitioned_log() {
    let config = MemoryConfig::new().profile(Profile::PartitionedLog { partitions: 3 });
    everything_arrives(config.revocation_notice(Duration::from_millis(10))).await;
}
