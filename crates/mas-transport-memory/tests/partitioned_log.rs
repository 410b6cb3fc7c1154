//! The partitioned log through the traits, on a paused clock.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use mas_transport_core::{ErrorKind, Event, Outcome, RawDelivery, Settled, Transport};
use mas_transport_memory::{MemoryBroker, MemoryConfig, MemoryTransport, Profile};
use tokio::time::{Instant, advance};

const NOTICE: Duration = Duration::from_secs(1);

async fn log(partitions: u32) -> Arc<MemoryTransport> {
    let config = MemoryConfig::new()
        .profile(Profile::PartitionedLog { partitions })
        .revocation_notice(NOTICE);
    MemoryBroker::new(config).connect().await.unwrap()
}

fn partitions(deliveries: &[RawDelivery]) -> BTreeSet<u64> {
    deliveries.iter().map(|d| d.position.major).collect()
}

async fn publish_many(bus: &Arc<MemoryTransport>, count: usize) -> Vec<String> {
    let texts: Vec<_> = (0..count).map(|i| i.to_string()).collect();
    let named: Vec<_> = texts.iter().map(String::as_str).collect();
    for result in publish(bus, "a", &named).await {
        result.unwrap();
    }
    texts
}

#[tokio::test(start_paused = true)]
async fn partitions_are_shared_out_and_a_key_stays_in_one() {
    let bus = log(4).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    publish_many(&bus, 40).await;
    publish_many(&bus, 40).await;
    let (of_a, of_b) = (a.take(999).await, b.take(999).await);
    assert_eq!(of_a.len() + of_b.len(), 80);
    assert_eq!((partitions(&of_a).len(), partitions(&of_b).len()), (2, 2));
    assert!(partitions(&of_a).is_disjoint(&partitions(&of_b)));
    let mut homes: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for delivery in of_a.iter().chain(&of_b) {
        let home = homes
            .entry(delivery.message.get_key().unwrap())
            .or_default();
        home.insert(delivery.position.major);
    }
    assert!(homes.len() == 40 && homes.values().all(|home| home.len() == 1));
}

#[tokio::test(start_paused = true)]
async fn who_joins_gets_partitions_that_their_owner_is_told_to_give_up() {
    let bus = log(2).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    publish_many(&bus, 40).await;
    let all = a.take(999).await;
    assert_eq!(all.len(), 40);
    let mut b = Agent::join(&bus, "a", "g").await;
    let waiting = tokio::spawn(async move { (timed(b.take(999)).await, b) });
    tokio::task::yield_now().await;
    let events = a.events(0).await.unwrap();
    let [Event::Revoking { tokens, until }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(*until, Instant::now() + NOTICE);
    let moving: Vec<_> = all.iter().filter(|d| tokens.contains(&d.token)).collect();
    assert_eq!(moving.len(), tokens.len());
    assert_eq!(
        moving
            .iter()
            .map(|d| d.position.major)
            .collect::<BTreeSet<_>>()
            .len(),
        1
    );

    // Until then settlements count, and no extension goes further; what is left is lost.
    let extended = a.settle(moving[2].token, Outcome::Extend).await.unwrap();
    assert_eq!(extended, Settled::Lease(*until));
    advance(NOTICE / 2).await;
    assert_eq!(a.ack(moving[0]).await.unwrap(), Settled::Done);
    a.settle(moving[1].token, Outcome::Return).await.unwrap();
    // It asks for more: one that lets deliveries be taken away and asks for none gives all up.
    let revoked = a.events(1).await.unwrap();
    let [Event::Revoked(lost)] = &revoked[..] else {
        panic!("{revoked:?}");
    };
    assert_eq!(lost.len(), moving.len() - 2);
    assert_eq!(kind(a.ack(moving[2]).await), ErrorKind::LeaseLost);
    let ((moved, took), b) = waiting.await.unwrap();
    assert!(took >= NOTICE && took <= NOTICE + 2 * MS, "{took:?}");
    assert_eq!(moved.len(), moving.len() - 1);
    for delivery in &moved {
        let returned = delivery.position == moving[1].position;
        assert_eq!(delivery.attempt, if returned { 1 } else { 2 });
        assert_eq!(delivery.reclaimed, !returned);
        b.ack(delivery).await.unwrap();
    }
    for delivery in all
        .iter()
        .filter(|d| d.position.major != moving[0].position.major)
    {
        a.ack(delivery).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_moves_as_soon_as_its_owner_has_settled() {
    let bus = log(1).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    publish_many(&bus, 2).await;
    let held = a.take(1).await;
    let closing = a.settle.clone();
    let later = Instant::now() + LEASE / 2;
    let closed = tokio::spawn(async move { closing.close(later).await });
    let waiting = tokio::spawn(async move { (timed(b.take(9)).await, b) });
    tokio::time::sleep(LEASE / 4).await;
    assert_eq!(kind(a.events(9).await), ErrorKind::Closed);
    a.ack(&held[0]).await.unwrap();
    let ((moved, took), _b) = waiting.await.unwrap();
    assert_eq!((texts(&moved), took), (vec!["1"], LEASE / 4));
    closed.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_member_leaves_at_once_and_a_silent_one_when_its_leases_lapse() {
    let bus = log(4).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    let mut c = Agent::join(&bus, "a", "g").await;
    publish_many(&bus, 40).await;
    let of_a = a.take(999).await;
    let of_b = b.take(999).await;
    let of_c = c.take(999).await;
    assert_eq!(of_a.len() + of_b.len() + of_c.len(), 40);
    for delivery in of_c {
        c.ack(&delivery).await.unwrap();
    }
    drop(a);
    // B is never heard of again.
    let mut attempts = Vec::new();
    let start = Instant::now();
    while attempts.len() < of_a.len() + of_b.len() {
        for delivery in c.take(999).await {
            attempts.push((start.elapsed(), delivery.position, delivery.attempt));
            c.settle(delivery.token, Outcome::Begin).await.unwrap();
            c.ack(&delivery).await.unwrap();
        }
    }
    assert!(attempts.iter().all(|(_, _, attempt)| *attempt == 2));
    let at_once = attempts.iter().filter(|(at, ..)| at.is_zero()).count();
    let lapsed = attempts.iter().filter(|(at, ..)| *at >= LEASE).count();
    assert!(at_once > 0 && lapsed >= of_b.len());
    assert!(
        attempts.iter().all(|(at, ..)| *at <= LEASE + 2 * MS),
        "{attempts:?}"
    );
    // It was not dead after all: it takes part again.
    b.nothing_for(MS).await;
    publish_many(&bus, 40).await;
    let (of_b_now, of_c) = (b.take(999).await, c.take(999).await);
    assert_eq!(of_b_now.len() + of_c.len(), 40);
    assert_eq!(kind(b.ack(&of_b[0]).await), ErrorKind::LeaseLost);
}

#[tokio::test(start_paused = true)]
async fn a_nack_comes_back_to_the_owner_while_others_wait() {
    let bus = log(2).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    publish_many(&bus, 40).await;
    let held = a.take(1).await;
    let waiting = tokio::spawn(async move { (b.take(9).await, b) });
    let delay = 10 * LEASE;
    a.settle(held[0].token, Outcome::Nack(delay)).await.unwrap();
    let (again, took) = timed(async {
        loop {
            for came in a.take(9).await {
                if came.position == held[0].position {
                    return came;
                }
                a.ack(&came).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!((again.attempt, again.reclaimed), (2, false));
    assert!(took >= delay && took <= delay + 2 * MS, "{took:?}");
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn close_leaves_nothing_behind() {
    let bus = log(3).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    publish_many(&bus, 30).await;
    let held = a.take(999).await;
    assert_eq!(held.len(), 30);
    let (closed, took) = timed(bus.close(Instant::now() + 5 * MS)).await;
    closed.unwrap();
    assert_eq!(took, 5 * MS);
    assert_eq!(kind(a.ack(&held[0]).await), ErrorKind::Closed);
}
