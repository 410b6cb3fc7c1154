//! Publishing, settling, losing a server: from end to end.

use std::time::Duration;

use crate::support::{Member, SOON, Server, native, outcomes, publish, raw, subscription, topic};
use mas_transport_core::{
    ErrorKind, Event, Group, Lag, Message, Outcome, Reason, ReasonCode, Record, Settled, Stored,
    Topic, Transport,
};
use tokio::time::{Instant, sleep};

macro_rules! server {
    ($($option:expr),*) => {
        match Server::start(&[$($option),*]).await {
            Some(server) => server,
            None => return,
        }
    };
}

/// What a machine that is busy with other tests may add to a promise; the suite allows twice as much.
const STALL: Duration = Duration::from_secs(1);

#[tokio::test]
async fn published_messages_come_are_settled_and_are_trimmed() {
    let server = server!();
    let transport = server.connect().await;
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    let receipts = publish(&transport, "t", 1000).await;
    let got = member.deliveries(1000).await;
    let places: Vec<_> = got.iter().map(|d| d.position).collect();
    assert_eq!(
        places,
        receipts.iter().map(|r| r.position).collect::<Vec<_>>()
    );
    assert!(got.iter().all(|d| d.attempt == 1 && !d.begin));
    assert_eq!(got[7].message.payload().as_ref(), b"payload 7");
    let group = Group::new("g").unwrap();
    let lag = transport.admin().lag(&topic("t"), &group).await.unwrap();
    assert_eq!(
        lag,
        Lag {
            waiting: 0,
            pending: 1000
        }
    );
    member.ack(&got).await;
    let lag = transport.admin().lag(&topic("t"), &group).await.unwrap();
    assert_eq!(lag, Lag::default());
    member.settle.close(Instant::now() + SOON).await.unwrap();
    let mut connection = raw(&transport).await;
    let length: u64 = redis::cmd("XLEN")
        .arg(native(&transport).stream(&topic("t")))
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(length, 0);
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn nacks_come_back_at_once_or_after_their_delay() {
    let server = server!();
    let transport = server.connect().await;
    let mut one = Member::join(&transport, &subscription("t", 30_000)).await;
    publish(&transport, "t", 2).await;
    let got = one.deliveries(2).await;
    let mut two = Member::join(&transport, &subscription("t", 30_000)).await;
    one.rest().await;
    let asked = Instant::now();
    one.one(got[0].token, Outcome::Nack(Duration::ZERO))
        .await
        .unwrap();
    let delay = Duration::from_millis(600);
    one.one(got[1].token, Outcome::Nack(delay)).await.unwrap();
    let again = two.delivery().await;
    let latency = transport.info().capabilities.nack_latency;
    assert!(asked.elapsed() < latency + STALL, "{:?}", asked.elapsed());
    assert!((again.attempt, again.begin, again.reclaimed) == (2, true, false));
    assert_eq!(again.position, got[0].position);
    let Settled::Lease(deadline) = two.one(again.token, Outcome::Begin).await.unwrap() else {
        panic!("a begin renews the lease");
    };
    assert!(deadline >= again.deadline);
    let late = two.delivery().await;
    assert!(asked.elapsed() >= delay);
    assert!(asked.elapsed() < delay + latency + STALL);
    assert_eq!((late.attempt, late.position), (2, got[1].position));
    two.ack(&[again, late]).await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn a_return_does_not_count_and_a_dead_member_s_entries_come_to_others() {
    let server = server!();
    let transport = server.connect().await;
    let mut one = Member::join(&transport, &subscription("t", 500)).await;
    publish(&transport, "t", 3).await;
    let got = one.deliveries(3).await;
    one.one(got[0].token, Outcome::Return).await.unwrap();
    let again = one.delivery().await;
    assert_eq!((again.attempt, again.position), (1, got[0].position));
    one.one(again.token, Outcome::Begin).await.unwrap();
    // From now on nobody looks after the three.
    let mut two = Member::join(&transport, &subscription("t", 500)).await;
    one.rest().await;
    let back = two.deliveries(3).await;
    assert!(
        back.iter()
            .all(|d| d.attempt == 2 && d.begin && d.reclaimed)
    );
    let lost = one.one(got[1].token, Outcome::Ack).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::LeaseLost);
    for delivery in &back {
        two.one(delivery.token, Outcome::Begin).await.unwrap();
    }
    two.ack(&back).await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

pub(crate) fn record() -> Box<Record> {
    Box::new(Record {
        version: Record::VERSION,
        reason: Reason::new(ReasonCode::Rejected, "no"),
        topic: "t".into(),
        group: "g".into(),
        position: "1-1".into(),
        attempts: 1,
        member: "m".into(),
        first_failure_ms: 1,
        last_failure_ms: 1,
        history: vec![],
    })
}

#[tokio::test]
async fn rejected_messages_and_garbage_are_kept_beside_the_topic() {
    let server = server!();
    let transport = server.connect().await;
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    publish(&transport, "t", 1).await;
    let dead = member.delivery().await;
    member
        .one(dead.token, Outcome::DeadLetter(record()))
        .await
        .unwrap();
    let mut connection = raw(&transport).await;
    let key = native(&transport).stream(&topic("t"));
    let garbage = vec![0xff_u8; 1 << 20];
    let _: String = redis::cmd("XADD")
        .arg(&key)
        .arg("*")
        .arg(b"\xff\xfe")
        .arg(garbage.as_slice())
        .query_async(&mut connection)
        .await
        .unwrap();
    let mut many = redis::cmd("XADD");
    many.arg(&key).arg("*").arg("data").arg("x");
    for i in 0..5000 {
        many.arg(format!("h{i}")).arg("");
    }
    let _: String = many.query_async(&mut connection).await.unwrap();
    publish(&transport, "t", 1).await;
    let Event::Malformed { token, reason, .. } = member.event().await else {
        panic!("the garbage is malformed");
    };
    assert_eq!(reason.code, ReasonCode::Malformed);
    member
        .one(token, Outcome::Quarantine(record()))
        .await
        .unwrap();
    let wide = member.delivery().await;
    assert_eq!(wide.message.headers().len(), 5000);
    member
        .one(wide.token, Outcome::DeadLetter(record()))
        .await
        .unwrap();
    let last = member.delivery().await;
    member.ack(&[last]).await;

    let (topic, group) = (topic("t"), Group::new("g").unwrap());
    let letters = Topic::dead_letters(&topic, &group);
    let mut dead_letters = Member::join(&transport, &subscription(letters.as_str(), 30_000)).await;
    let letter = dead_letters.delivery().await;
    assert_eq!(letter.message.payload(), dead.message.payload());
    assert_eq!(letter.message.id(), dead.message.id());
    assert_eq!(letter.message.record(), Some(&*record()));
    let wide = dead_letters.delivery().await;
    assert!(wide.message.record().is_some());
    let bad = Topic::quarantine(&topic, &group);
    let mut quarantine = Member::join(&transport, &subscription(bad.as_str(), 30_000)).await;
    let kept = quarantine.delivery().await;
    let fields = mas_transport_core::codec::raw::decode(kept.message.payload()).unwrap();
    assert_eq!(fields[0].1.as_ref(), garbage.as_slice());
    assert_eq!(
        transport.admin().topics().await.unwrap(),
        [bad, letters, topic]
    );
    transport.close(Instant::now()).await.unwrap();
}

#[tokio::test]
async fn another_lease_is_refused_and_nothing_survives_a_close() {
    let server = server!();
    let transport = server.connect().await;
    let member = Member::join(&transport, &subscription("t", 1000)).await;
    let refused = transport
        .subscribe(&subscription("t", 2000))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let watcher = server.connect().await;
    let mut connection = raw(&watcher).await;
    transport.close(Instant::now() + SOON).await.unwrap();
    let mut member = member;
    let closed = member
        .fetch
        .fetch(mas_transport_core::Want::new(1, 1), &mut vec![])
        .await;
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::Closed);
    let refused = outcomes(&transport, vec![Message::new("t", "x").unwrap()]).await;
    assert_eq!(refused[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    // The watcher has a connection of commands and one of its own.
    let until = Instant::now() + SOON;
    loop {
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut connection)
            .await
            .unwrap();
        if list.lines().count() == 2 {
            break;
        }
        assert!(Instant::now() < until, "connections are left: {list}");
        sleep(Duration::from_millis(10)).await;
    }
    let key = native(&watcher).stream(&topic("t"));
    let consumers: Vec<redis::Value> = redis::cmd("XINFO")
        .arg("CONSUMERS")
        .arg(key)
        .arg("g")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(consumers.is_empty(), "{consumers:?}");
}

#[tokio::test]
async fn a_full_server_refuses_publishes_and_can_be_drained() {
    let server = server!("--maxmemory", "8mb", "--maxmemory-policy", "noeviction");
    let transport = server.connect().await;
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    let full = loop {
        let batch = vec![Message::new("t", vec![7_u8; 100_000]).unwrap()];
        if let Err(error) = outcomes(&transport, batch).await.remove(0) {
            break error;
        }
    };
    assert_eq!((full.kind(), full.stored()), (ErrorKind::Full, Stored::No));
    let first = member.delivery().await;
    member
        .one(first.token, Outcome::Nack(Duration::ZERO))
        .await
        .unwrap();
    let mut rest = vec![member.delivery().await];
    // A group that is there can be joined, and acks make room.
    Member::join(&transport, &subscription("t", 30_000)).await;
    let group = Group::new("g").unwrap();
    while transport.admin().lag(&topic("t"), &group).await.unwrap() != Lag::default() {
        if rest.is_empty() {
            rest.push(member.delivery().await);
        }
        member.ack(&std::mem::take(&mut rest)).await;
    }
    member.ack(&rest).await;
    let until = Instant::now() + SOON;
    while outcomes(&transport, vec![Message::new("t", "x").unwrap()]).await[0].is_err() {
        assert!(Instant::now() < until, "there is no room");
        sleep(Duration::from_millis(10)).await;
    }
    transport.close(Instant::now()).await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_found_again_and_nothing_is_lost() {
    let mut server = server!("--appendonly", "yes", "--appendfsync", "always");
    let transport = server.connect().await;
    assert_eq!(
        transport.info().capabilities.durability,
        mas_transport_core::Durability::Disk
    );
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    publish(&transport, "t", 10).await;
    let before = member.deliveries(5).await;
    server.kill().await;
    let acking = member.ack(&before);
    // What hits the dying connection has no certain outcome; what comes later waits for the next.
    let publishing = async {
        let mut sure = Vec::new();
        while sure.len() < 10 {
            let batch = vec![Message::new("t", "later").unwrap()];
            match outcomes(&transport, batch).await.remove(0) {
                Ok(receipt) => sure.push(receipt.position),
                Err(error) => assert_eq!(error.stored(), Stored::Unknown, "{error}"),
            }
        }
        sure
    };
    let (_, sure, ()) = tokio::join!(acking, publishing, server.restart());
    let mut rest = Vec::new();
    let mut reconnected = false;
    while rest.len() < 15 || !reconnected {
        match member.event().await {
            Event::Delivery(delivery) => rest.push(delivery),
            Event::Reconnected => reconnected = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(rest.iter().all(|d| d.attempt == 1));
    assert!(sure.iter().all(|p| rest.iter().any(|d| d.position == *p)));
    member.ack(&rest).await;
    member.quiet(Duration::from_millis(300)).await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn a_flushed_server_and_a_deleted_group_are_told_apart() {
    let server = server!();
    let transport = server.connect().await;
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    let mut connection = raw(&transport).await;
    publish(&transport, "t", 4).await;
    let got = member.deliveries(4).await;
    member.ack(&got[..2]).await;
    let key = native(&transport).stream(&topic("t"));
    // What was settled is recorded before long.
    let until = Instant::now() + SOON;
    let open = got[2].position.to_string();
    loop {
        let from: Option<String> = redis::cmd("HGET")
            .arg(format!("{key}:group:g"))
            .arg("from")
            .query_async(&mut connection)
            .await
            .unwrap();
        if from.is_some_and(|from| from == open) {
            break;
        }
        assert!(Instant::now() < until, "it is not recorded");
        sleep(Duration::from_millis(10)).await;
    }
    let _: i64 = redis::cmd("XGROUP")
        .arg("DESTROY")
        .arg(&key)
        .arg("g")
        .query_async(&mut connection)
        .await
        .unwrap();
    let Event::Revoked(tokens) = member.event().await else {
        panic!("the leases went with the group");
    };
    assert_eq!(tokens.len(), 2);
    let again = member.deliveries(2).await;
    assert_eq!(again[0].position, got[2].position);
    member.ack(&again).await;

    let _: () = redis::cmd("FLUSHALL")
        .query_async(&mut connection)
        .await
        .unwrap();
    publish(&transport, "t", 1).await;
    let Event::Gap(gap) = member.event().await else {
        panic!("a flush is a gap");
    };
    assert_eq!(gap.lost, None);
    let last = member.delivery().await;
    member.ack(&[last]).await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn entries_deleted_under_their_holder_are_a_gap() {
    let server = server!();
    let transport = server.connect().await;
    let mut one = Member::join(&transport, &subscription("t", 500)).await;
    publish(&transport, "t", 2).await;
    one.deliveries(2).await;
    let key = native(&transport).stream(&topic("t"));
    let mut connection = raw(&transport).await;
    let _: i64 = redis::cmd("XTRIM")
        .arg(key)
        .arg("MAXLEN")
        .arg(0)
        .query_async(&mut connection)
        .await
        .unwrap();
    let Event::Gap(gap) = one.event().await else {
        panic!("a trimmed entry is a gap");
    };
    assert_eq!(gap.lost, Some(2));
    transport.close(Instant::now()).await.unwrap();
}

#[tokio::test]
async fn entries_trimmed_before_anybody_read_them_are_a_gap() {
    let server = server!();
    let transport = server.connect().await;
    if transport.info().server.starts_with("redis 6.") {
        println!("SKIPPED: before version 7 the server does not count its entries");
        transport.close(Instant::now()).await.unwrap();
        return;
    }
    let group = Group::new("g").unwrap();
    let away = Member::join(&transport, &subscription("t", 30_000)).await;
    away.settle.close(Instant::now() + SOON).await.unwrap();
    publish(&transport, "t", 10).await;
    let key = native(&transport).stream(&topic("t"));
    let mut connection = raw(&transport).await;
    let _: i64 = redis::cmd("XTRIM")
        .arg(key)
        .arg("MAXLEN")
        .arg(4)
        .query_async(&mut connection)
        .await
        .unwrap();
    let lag = transport.admin().lag(&topic("t"), &group).await.unwrap();
    assert_eq!((lag.waiting, lag.pending), (4, 0));
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    let Event::Gap(gap) = member.event().await else {
        panic!("a trimmed entry is a gap");
    };
    assert!(gap.lost.is_none_or(|lost| lost == 6), "{gap:?}");
    let got = member.deliveries(4).await;
    member.ack(&got).await;
    member.quiet(Duration::from_millis(1500)).await;
    let lag = transport.admin().lag(&topic("t"), &group).await.unwrap();
    assert_eq!(lag, Lag::default());
    transport.close(Instant::now() + SOON).await.unwrap();
}
