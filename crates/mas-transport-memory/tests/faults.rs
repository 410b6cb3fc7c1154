//! The fault plan through the traits, on a paused clock.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use mas_transport_core::{ErrorKind, Event, Outcome, Settled, Stored, Subscription, Transport};
use mas_transport_memory::{
    FaultEffect, FaultOperation, FaultPlan, FaultRule, MemoryBroker, MemoryConfig, MemoryTransport,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

async fn faulty(
    rules: impl IntoIterator<Item = FaultRule>,
) -> (MemoryBroker, Arc<MemoryTransport>) {
    let plan = rules.into_iter().fold(FaultPlan::new(1), FaultPlan::rule);
    let broker = MemoryBroker::new(MemoryConfig::new().faults(plan));
    let bus = broker.connect().await.unwrap();
    (broker, bus)
}

#[tokio::test(start_paused = true)]
async fn each_message_of_a_batch_fails_alone_and_says_whether_it_is_stored() {
    let rule = |effect| FaultRule::new(FaultOperation::Publish, effect);
    let (_, bus) = faulty([
        rule(FaultEffect::Refuse(ErrorKind::Full)).nth(2),
        rule(FaultEffect::LoseAck).nth(3),
        rule(FaultEffect::Disconnect(SECOND)).nth(5),
    ])
    .await;
    let mut a = Agent::join(&bus, "a", "g").await;
    let outcomes: Vec<_> = publish(&bus, "a", &["1", "2", "3", "4", "5", "6"])
        .await
        .into_iter()
        .map(|r| r.map_err(|e| (e.kind(), e.stored())).err())
        .collect();
    let down = Some((ErrorKind::Unavailable, Stored::No));
    assert_eq!(
        outcomes,
        [
            None,
            Some((ErrorKind::Full, Stored::No)),
            Some((ErrorKind::Unavailable, Stored::Unknown)),
            None,
            down,
            down,
        ]
    );
    // The connection is down: once an error, then nothing until it is back.
    assert_eq!(kind(a.events(9).await), ErrorKind::Unavailable);
    assert_eq!(kind(bus.admin().topics().await), ErrorKind::Unavailable);
    let other = bus
        .subscribe(&Subscription::new("a").group("g").lease(LEASE))
        .await;
    assert_eq!(kind(other), ErrorKind::Unavailable);
    let (events, took) = timed(a.events(9)).await;
    let mut events = events.unwrap();
    assert_eq!(took, SECOND);
    assert!(matches!(events.remove(0), Event::Reconnected));
    assert_eq!(texts(&deliveries(events)), ["1", "3", "4"]);
    assert!(publish(&bus, "a", &["7"]).await[0].is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_fetch_hears_that_the_connection_broke() {
    let break_it = FaultRule::new(FaultOperation::Settle, FaultEffect::Disconnect(SECOND));
    let (broker, bus) = faulty([break_it]).await;
    let mut a = Agent::join(&bus, "a", "g").await;
    let settle = a.settle.clone();
    publish(&bus, "a", &["1"]).await;
    let held = a.take(9).await;
    let waiting = tokio::spawn(async move { (kind(a.events(0).await), a) });
    tokio::task::yield_now().await;
    let results = settle.settle(vec![(held[0].token, Outcome::Ack)]).await;
    assert_eq!(results[0].as_ref().unwrap_err().stored(), Stored::No);
    let (error, mut a) = waiting.await.unwrap();
    assert_eq!(error, ErrorKind::Unavailable);
    // Others are not touched.
    let other = broker.connect().await.unwrap();
    assert!(publish(&other, "a", &["2"]).await[0].is_ok());
    let (events, took) = timed(a.events(0)).await;
    assert!(matches!(events.unwrap()[..], [Event::Reconnected]));
    assert_eq!(took, SECOND);
}

#[tokio::test(start_paused = true)]
async fn answers_are_delayed_and_lost_and_the_effect_is_there() {
    let rule = FaultRule::new;
    let (broker, bus) = faulty([
        rule(FaultOperation::Publish, FaultEffect::Delay(SECOND)).every(2),
        rule(FaultOperation::Settle, FaultEffect::LoseAck).nth(1),
        rule(FaultOperation::Settle, FaultEffect::Delay(SECOND)).nth(2),
        rule(
            FaultOperation::Fetch,
            FaultEffect::Refuse(ErrorKind::Timeout),
        )
        .nth(1),
        rule(FaultOperation::Fetch, FaultEffect::LoseAck).nth(2),
        rule(FaultOperation::Fetch, FaultEffect::Delay(SECOND)).nth(3),
        rule(FaultOperation::Subscribe, FaultEffect::LoseAck).topic("b"),
    ])
    .await;
    let (_, took) = timed(publish(&bus, "a", &["1"])).await;
    assert_eq!(took, Duration::ZERO);
    let (_, took) = timed(publish(&bus, "a", &["2"])).await;
    assert_eq!(took, SECOND);
    let mut a = Agent::join(&bus, "a", "g").await;
    assert_eq!(kind(a.events(9).await), ErrorKind::Timeout);
    // Leased, and nobody knows.
    assert_eq!(kind(a.events(1).await), ErrorKind::Unavailable);
    let (held, took) = timed(a.take(9)).await;
    assert_eq!((texts(&held), took), (vec!["2"], SECOND));
    let lost = a.ack(&held[0]).await.unwrap_err();
    assert_eq!(
        (lost.kind(), lost.stored()),
        (ErrorKind::Unavailable, Stored::Unknown)
    );
    let (again, took) = timed(a.take(9)).await;
    assert_eq!((texts(&again), again[0].attempt), (vec!["1"], 2));
    assert!(took >= LEASE - SECOND && took <= LEASE, "{took:?}");
    let (settled, took) = timed(a.ack(&again[0])).await;
    assert_eq!((settled.unwrap(), took), (Settled::Done, SECOND));

    let lost = bus
        .subscribe(&Subscription::new("b").group("g").lease(LEASE))
        .await;
    assert_eq!(lost.unwrap_err().stored(), Stored::Unknown);
    let other = broker.connect().await.unwrap();
    assert_eq!(other.admin().groups(&topic("b")).await.unwrap().len(), 1);

    // What is answered after the deadline may have happened.
    let message = mas_transport_core::Message::new("a", "x").unwrap();
    let batch = vec![message.clone(), message.clone()];
    let late = bus.publish(batch, Instant::now() + SECOND / 2).await;
    let (late, took) = timed(late).await;
    assert_eq!(took, SECOND / 2);
    for result in late {
        let error = result.unwrap_err();
        assert_eq!(
            (error.kind(), error.stored()),
            (ErrorKind::Timeout, Stored::Unknown)
        );
    }
    let never = bus.publish(vec![message], Instant::now()).await.await;
    let error = never[0].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.stored()),
        (ErrorKind::Timeout, Stored::No)
    );
}
