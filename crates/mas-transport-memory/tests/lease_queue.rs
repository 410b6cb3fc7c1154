//! The lease queue through the traits, on a paused clock.

mod common;

use std::time::Duration;

use common::*;
use mas_transport_core::{
    Durability, ErrorKind, Event, Group, Lag, Message, Namespace, Outcome, Reason, ReasonCode,
    Record, Settled, StartFrom, Stored, Subscription, Topic, TopicSpec, Transport, Want,
};
use mas_transport_memory::{MemoryBroker, MemoryConfig};
use tokio::time::{Instant, advance, timeout};

fn record(text: &str) -> Box<Record> {
    Box::new(Record {
        version: Record::VERSION,
        reason: Reason::new(ReasonCode::Rejected, text),
        topic: "a".into(),
        group: "g".into(),
        position: "0-0".into(),
        attempts: 1,
        member: "m".into(),
        first_failure_ms: 1,
        last_failure_ms: 2,
        history: Vec::new(),
    })
}

/// How much the gap says is lost that comes next, and alone.
async fn gap(agent: &mut Agent) -> Option<u64> {
    match &agent.events(9).await.unwrap()[..] {
        [Event::Gap(gap)] => gap.lost,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_group_gets_everything_once_and_its_members_share() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let (one, two) = (
        broker.connect().await.unwrap(),
        broker.connect().await.unwrap(),
    );
    let mut a = Agent::join(&two, "a", "g").await;
    let mut b = Agent::join(&one, "a", "g").await;
    let mut other = Agent::join(&two, "a", "h").await;
    let receipts = publish(&one, "a", &["1", "2", "3"]).await;
    let receipts: Vec<_> = receipts.into_iter().map(Result::unwrap).collect();
    assert!(receipts.is_sorted_by_key(|r| r.position));
    assert!(
        receipts
            .iter()
            .all(|r| r.durability == Durability::Volatile && !r.duplicate)
    );
    let first = a.take(2).await;
    assert_eq!(texts(&first), ["1", "2"]);
    assert_eq!(texts(&b.take(9).await), ["3"]);
    assert_eq!(texts(&other.take(9).await), ["1", "2", "3"]);
    assert_eq!(first[0].attempt, 1);
    assert!(!first[0].begin && !first[0].reclaimed);
    assert_eq!(first[0].deadline, Instant::now() + LEASE);
    assert_eq!(first[1].position, receipts[1].position);
    assert_eq!(a.ack(&first[0]).await.unwrap(), Settled::Done);
    let again = a.ack(&first[0]).await;
    assert_eq!(again.as_ref().unwrap_err().stored(), Stored::No);
    assert_eq!(kind(again), ErrorKind::LeaseLost);
    // Another member's token is not ours.
    assert_eq!(kind(b.ack(&first[1]).await), ErrorKind::LeaseLost);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_fetch_wakes_for_a_publish_a_due_nack_and_an_expired_lease() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    let later = bus.clone();
    let publisher = tokio::spawn(async move {
        tokio::time::sleep(50 * MS).await;
        publish(&later, "a", &["1"]).await
    });
    let (first, took) = timed(a.take(9)).await;
    assert_eq!((texts(&first), took), (vec!["1"], 50 * MS));
    publisher.await.unwrap();

    let nack = Outcome::Nack(Duration::from_secs(5));
    assert_eq!(a.settle(first[0].token, nack).await.unwrap(), Settled::Done);
    let (second, took) = timed(b.take(9)).await;
    assert!(
        took >= Duration::from_secs(5) && took <= Duration::from_secs(5) + 2 * MS,
        "{took:?}"
    );
    assert_eq!(second[0].attempt, 2);
    assert!(second[0].begin && !second[0].reclaimed);

    // Begun, then its member goes silent: the attempt counts.
    let begun = b.settle(second[0].token, Outcome::Begin).await.unwrap();
    assert_eq!(begun, Settled::Lease(Instant::now() + LEASE));
    let (third, took) = timed(a.take(9)).await;
    assert!(took >= LEASE && took <= LEASE + 2 * MS, "{took:?}");
    assert_eq!(third[0].attempt, 3);
    assert!(third[0].begin && third[0].reclaimed);
    assert_eq!(kind(b.ack(&second[0]).await), ErrorKind::LeaseLost);

    // Fetched and never begun: it does not count.
    let (fourth, _) = timed(b.take(9)).await;
    assert_eq!(fourth[0].attempt, 3);
    assert_eq!(
        b.settle(fourth[0].token, Outcome::Return).await.unwrap(),
        Settled::Done
    );
    let (fifth, took) = timed(a.take(9)).await;
    assert_eq!((fifth[0].attempt, took), (3, Duration::ZERO));
    a.ack(&fifth[0]).await.unwrap();
    a.nothing_for(2 * LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiting_member_is_woken_when_another_one_s_lease_ends() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    let mut c = Agent::join(&bus, "a", "g").await;
    // All three wait before there is any lease whose end they could wait for.
    let waiting = [
        tokio::spawn(async move { (a.take(1).await, a) }),
        tokio::spawn(async move { (b.take(1).await, b) }),
        tokio::spawn(async move { (c.take(1).await, c) }),
    ];
    advance(MS).await;
    publish(&bus, "a", &["1", "2"]).await;
    let start = Instant::now();
    let mut came = Vec::new();
    for task in waiting {
        let (deliveries, agent) = task.await.unwrap();
        came.push((deliveries[0].attempt, start.elapsed()));
        std::mem::forget(agent);
    }
    came.sort();
    assert_eq!(came[0].0, 1);
    assert_eq!(came[1].0, 1);
    assert_eq!(came[2].0, 2);
    assert!(
        came[2].1 >= LEASE && came[2].1 <= LEASE + 2 * MS,
        "{came:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_fetch_loses_nothing_and_lets_the_next_one_look() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    {
        let mut pending = Box::pin(a.take(9));
        assert!(futures::poll!(pending.as_mut()).is_pending());
        let mut other = Box::pin(b.take(9));
        assert!(futures::poll!(other.as_mut()).is_pending());
        // This wakes the first in line, which is then dropped without another poll.
        publish(&bus, "a", &["1"]).await;
        drop(pending);
        let came = timeout(MS, other).await.unwrap();
        assert_eq!(texts(&came), ["1"]);
        b.ack(&came[0]).await.unwrap();
    }
    a.nothing_for(2 * LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn a_fetch_takes_what_is_wanted_and_at_least_one() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let big = "x".repeat(1000);
    publish(&bus, "a", &[&big, &big, &big]).await;
    let mut out = Vec::new();
    for (messages, bytes, expected) in [(9, 1, 1), (1, usize::MAX, 1), (9, 10_000, 1)] {
        let want = Want::new(messages, bytes);
        a.fetch.fetch(want, &mut out).await.unwrap();
        assert_eq!(out.drain(..).count(), expected);
    }
    let want = Want::new(0, 9);
    publish(&bus, "a", &["1"]).await;
    assert!(
        timeout(LEASE / 2, a.fetch.fetch(want, &mut out))
            .await
            .is_err()
    );
    assert_eq!(texts(&a.take(1).await), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn extend_keeps_the_message_and_past_the_deadline_nothing_settles() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    publish(&bus, "a", &["1"]).await;
    let first = a.take(9).await;
    advance(LEASE * 2 / 3).await;
    let until = Instant::now() + LEASE;
    let extended = a.settle(first[0].token, Outcome::Extend).await.unwrap();
    assert_eq!(extended, Settled::Lease(until));
    b.nothing_for(LEASE * 2 / 3).await;
    advance(until - Instant::now()).await;
    for outcome in [
        Outcome::Ack,
        Outcome::Nack(Duration::ZERO),
        Outcome::Extend,
        Outcome::Begin,
        Outcome::Return,
        Outcome::DeadLetter(record("late")),
    ] {
        assert_eq!(
            kind(a.settle(first[0].token, outcome).await),
            ErrorKind::LeaseLost
        );
    }
    assert_eq!(b.take(9).await[0].attempt, 2);
    assert_eq!(bus.admin().topics().await.unwrap(), [topic("a")]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_and_a_quarantined_entry_keep_what_was_read() {
    for wire in [false, true] {
        let broker = MemoryBroker::new(MemoryConfig::new().wire(wire));
        let bus = broker.connect().await.unwrap();
        let mut a = Agent::join(&bus, "a", "g").await;
        let message = Message::new("a", "payload")
            .unwrap()
            .header("x", "y")
            .key("k");
        bus.publish(vec![message.clone()], soon()).await.await[0]
            .as_ref()
            .unwrap();
        let garbage = vec![("\u{0}x".into(), "1".into()), ("x".into(), "2".into())];
        broker
            .inject_raw(&Namespace::default(), &topic("a"), garbage)
            .unwrap();

        let mut events = a.events(9).await.unwrap();
        assert_eq!(events.len(), 2);
        let Some(Event::Malformed {
            token,
            reason,
            attempt,
            ..
        }) = events.pop()
        else {
            panic!("{events:?}");
        };
        assert_eq!((reason.code, attempt), (ReasonCode::Malformed, 1));
        let good = deliveries(events);
        assert_eq!(good[0].message, message);
        a.settle(good[0].token, Outcome::DeadLetter(record("no")))
            .await
            .unwrap();
        a.settle(token, Outcome::Quarantine(record("bad")))
            .await
            .unwrap();

        let (from, group) = (topic("a"), Group::new("g").unwrap());
        let dead = Topic::dead_letters(&from, &group);
        let bad = Topic::quarantine(&from, &group);
        let topics = bus.admin().topics().await.unwrap();
        assert_eq!(topics, [bad.clone(), dead.clone(), from.clone()]);
        assert_eq!(
            bus.admin().lag(&from, &group).await.unwrap(),
            Lag::default()
        );
        let mut reader = Agent::join(&bus, dead.as_str(), "ops").await;
        let letter = reader.take(9).await.remove(0);
        let expected = message.on_topic(dead).with_record(*record("no"));
        assert_eq!(letter.message, expected);
        let up = reader
            .settle(letter.token, Outcome::DeadLetter(record("again")))
            .await;
        assert_eq!(kind(up), ErrorKind::Unsupported);
        reader.ack(&letter).await.unwrap();
        let mut reader = Agent::join(&bus, bad.as_str(), "ops").await;
        let entry = reader.take(9).await.remove(0);
        assert_eq!(entry.message.record().unwrap().reason.text, "bad");
        let raw = mas_transport_core::codec::raw::decode(entry.message.payload()).unwrap();
        assert_eq!(raw[1], ("x".into(), "2".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_group_starts_and_what_a_topic_keeps() {
    let broker = MemoryBroker::new(MemoryConfig::new().max_topic_messages(3));
    let bus = broker.connect().await.unwrap();
    let full = publish(&bus, "a", &["1", "2", "3", "4"]).await;
    assert!(full[..3].iter().all(Result::is_ok));
    let error = full[3].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.stored()),
        (ErrorKind::Full, Stored::No)
    );

    let latest = Subscription::new("a")
        .group("late")
        .lease(LEASE)
        .start_from(StartFrom::Latest);
    let mut late = Agent::with(&bus, latest).await;
    let mut early = Agent::join(&bus, "a", "early").await;
    let other = Subscription::new("a").group("early").lease(2 * LEASE);
    assert_eq!(kind(bus.subscribe(&other).await), ErrorKind::Conflict);

    let admin = bus.admin();
    let group = |name| Group::new(name).unwrap();
    assert_eq!(
        admin.groups(&topic("a")).await.unwrap(),
        [group("early"), group("late")]
    );
    assert_eq!(admin.groups(&topic("b")).await.unwrap(), []);
    let came = early.take(9).await;
    assert_eq!(texts(&came), ["1", "2", "3"]);
    // Out of order: only what is not settled counts against the bound.
    early.ack(&came[1]).await.unwrap();
    early.ack(&came[2]).await.unwrap();
    let more = publish(&bus, "a", &["5", "6", "7"]).await;
    assert_eq!(
        more.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, true, false]
    );
    assert_eq!(texts(&late.take(9).await), ["5", "6"]);
    let lag = async |name| admin.lag(&topic("a"), &group(name)).await;
    assert_eq!(
        lag("early").await.unwrap(),
        Lag {
            waiting: 2,
            pending: 1
        }
    );
    assert_eq!(
        lag("late").await.unwrap(),
        Lag {
            waiting: 0,
            pending: 2
        }
    );
    assert_eq!(kind(lag("none").await), ErrorKind::NotFound);

    assert_eq!(admin.purge(&topic("a")).await.unwrap(), 3);
    assert_eq!(kind(admin.purge(&topic("b")).await), ErrorKind::NotFound);
    assert_eq!(gap(&mut early).await, Some(2));
    assert_eq!(
        lag("early").await.unwrap(),
        Lag {
            waiting: 0,
            pending: 1
        }
    );
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_is_out_and_returns_the_rest() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let other = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    publish(&other, "a", &["1", "2"]).await;
    let came = a.take(9).await;
    let settle = a.settle.clone();
    let token = came[0].token;
    let settler = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        settle
            .settle(vec![(token, Outcome::Ack)])
            .await
            .pop()
            .unwrap()
    });
    let deadline = Instant::now() + Duration::from_secs(3);
    let pending = tokio::spawn(async move { kind(a.events(9).await) });
    tokio::task::yield_now().await;
    let ((), took) = timed(async { bus.close(deadline).await.unwrap() }).await;
    assert_eq!(took, Duration::from_secs(3));
    assert_eq!(settler.await.unwrap().unwrap(), Settled::Done);
    assert_eq!(pending.await.unwrap(), ErrorKind::Closed);
    let mut b = Agent::join(&other, "a", "g").await;
    let back = b.take(9).await;
    assert_eq!((texts(&back), back[0].attempt), (vec!["2"], 2));

    let ((), took) = timed(async { bus.close(deadline).await.unwrap() }).await;
    assert_eq!(took, Duration::ZERO);
    assert_eq!(
        kind(publish(&bus, "a", &["3"]).await.remove(0)),
        ErrorKind::Closed
    );
    let again = bus.subscribe(&Subscription::new("a").group("g")).await;
    assert_eq!(kind(again), ErrorKind::Closed);
    assert_eq!(kind(bus.admin().topics().await), ErrorKind::Closed);
    let late = b.settle.close(Instant::now() + Duration::from_secs(60));
    let token = back[0].token;
    let both = futures::future::join(late, b.settle(token, Outcome::Ack));
    assert_eq!(timed(both).await.1, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_dies_with_a_member_comes_when_its_lease_ends() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let mut b = Agent::join(&bus, "a", "g").await;
    publish(&bus, "a", &["1", "2"]).await;
    a.take(9).await;
    drop(a);
    let (back, took) = timed(b.take(9)).await;
    assert!(took >= LEASE && took <= LEASE + 2 * MS, "{took:?}");
    assert_eq!(texts(&back), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_loses_things_says_so() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let none = Namespace::default();
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    let group = Group::new("g").unwrap();
    publish(&bus, "a", &["1", "2", "3", "4"]).await;
    let came = a.take(3).await;
    a.ack(&came[0]).await.unwrap();
    a.settle(came[1].token, Outcome::Nack(LEASE)).await.unwrap();

    // The group is lost: what is not settled comes again, and no more.
    assert!(broker.drop_group(&none, &topic("a"), &group));
    assert!(!broker.drop_group(&none, &topic("b"), &group));
    assert_eq!(kind(a.ack(&came[2]).await), ErrorKind::LeaseLost);
    let again = a.take(9).await;
    assert_eq!(texts(&again), ["2", "3", "4"]);
    assert!(again.iter().all(|d| d.attempt == 1));

    // Retention: what is gone is counted, also what a member holds and gives back.
    a.settle(again[0].token, Outcome::Nack(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(broker.trim(&none, &topic("a"), 2), 2);
    a.settle(again[1].token, Outcome::Return).await.unwrap();
    assert_eq!(gap(&mut a).await, Some(2));

    // Everything is lost, while a member waits.
    publish(&bus, "a", &["5"]).await;
    a.take(9).await;
    let waiting = tokio::spawn(async move { (a.events(9).await.unwrap(), a) });
    tokio::task::yield_now().await;
    broker.wipe();
    let (events, mut a) = waiting.await.unwrap();
    let [Event::Gap(gap)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(gap.lost, Some(2));
    publish(&bus, "a", &["6"]).await;
    assert_eq!(texts(&a.take(9).await), ["6"]);

    broker.set_full(true);
    assert_eq!(
        kind(publish(&bus, "a", &["7"]).await.remove(0)),
        ErrorKind::Full
    );
    broker.set_full(false);
    assert!(publish(&bus, "a", &["7"]).await[0].is_ok());
}

#[tokio::test(start_paused = true)]
async fn namespaces_share_nothing_and_topics_are_declared() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let (x, y) = (Namespace::new("x").unwrap(), Namespace::new("y").unwrap());
    let (one, two) = (
        broker.connect_in(x).await.unwrap(),
        broker.connect_in(y).await.unwrap(),
    );
    publish(&one, "a", &["1"]).await;
    assert_eq!(two.admin().topics().await.unwrap(), []);
    let mut spec = TopicSpec::new(topic("a"));
    one.admin().declare(&spec).await.unwrap();
    spec.partitions = 4;
    assert_eq!(kind(one.admin().declare(&spec).await), ErrorKind::Conflict);
    two.admin().declare(&spec).await.unwrap();
    two.admin().declare(&spec).await.unwrap();
    spec.partitions = 0;
    assert_eq!(
        kind(two.admin().declare(&spec).await),
        ErrorKind::InvalidArgument
    );
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_never_waits_lets_others_run() {
    let broker = MemoryBroker::new(MemoryConfig::new());
    let bus = broker.connect().await.unwrap();
    let mut a = Agent::join(&bus, "a", "g").await;
    publish(&bus, "a", &["1"]).await;
    let settle = a.settle.clone();
    let hot = tokio::spawn(async move {
        loop {
            let came = a.take(1).await.remove(0);
            let nack = vec![(came.token, Outcome::Nack(Duration::ZERO))];
            settle.settle(nack).await[0].as_ref().unwrap();
        }
    });
    let busy = tokio::spawn(async move { while publish(&bus, "b", &["1"]).await[0].is_ok() {} });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    hot.abort();
    busy.abort();
}
