//! Topics with a cap.

use std::time::Duration;

use mas_transport_core::{ErrorKind, Event, Message, Outcome, Result, Stored, Transport as _};
use mas_transport_redis::{Overflow, RedisTransport};
use tokio::time::Instant;

use crate::support::{Member, SOON, Server, native, outcomes, publish, raw, subscription, topic};

async fn capped(server: &Server, most: u64, overflow: Overflow) -> RedisTransport {
    let config = server.config().stream_max_len(most, overflow);
    RedisTransport::connect(config).await.unwrap()
}

async fn offer(
    transport: &RedisTransport,
    count: usize,
) -> Vec<Result<mas_transport_core::Receipt>> {
    let message = |i| Message::new("t", format!("offer {i}")).unwrap();
    outcomes(transport, (0..count).map(message).collect()).await
}

async fn length(transport: &RedisTransport) -> u64 {
    let key = native(transport).stream(&topic("t"));
    let mut ask = redis::cmd("XLEN");
    ask.arg(key)
        .query_async(&mut raw(transport).await)
        .await
        .unwrap()
}

#[tokio::test]
async fn beyond_the_cap_each_message_is_refused_until_there_is_room() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let transport = capped(&server, 10, Overflow::Refuse).await;
    assert_eq!(transport.info().capabilities.max_topic_messages, Some(10));
    // A batch that fits in part.
    let outcomes = offer(&transport, 15).await;
    assert!(outcomes[..10].iter().all(Result::is_ok), "{outcomes:?}");
    for refused in &outcomes[10..] {
        let error = refused.as_ref().unwrap_err();
        assert_eq!(
            (error.kind(), error.stored()),
            (ErrorKind::Full, Stored::No)
        );
        assert!(error.to_string().contains("stream_max_len"), "{error}");
    }
    assert_eq!(length(&transport).await, 10);
    // The first is unsettled, and keeps what is behind it.
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    let held = member.deliveries(10).await;
    member.ack(&held[1..5]).await;
    assert!(offer(&transport, 1).await[0].is_err());
    // Two groups: the slower one decides.
    let other = subscription("t", 30_000).group("other");
    let mut other = Member::join(&transport, &other).await;
    member.ack(&held[..1]).await;
    assert!(offer(&transport, 1).await[0].is_err());
    let theirs = other.deliveries(10).await;
    other.ack(&theirs[..3]).await;
    let outcomes = offer(&transport, 4).await;
    let taken: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, true, true, false]);
    transport.close(Instant::now()).await.unwrap();
}

#[tokio::test]
async fn many_publishers_never_go_beyond_the_cap() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let transport = capped(&server, 100, Overflow::Refuse).await;
        tasks.spawn(async move {
            let mut taken = 0;
            for _ in 0..5 {
                taken += offer(&transport, 10)
                    .await
                    .iter()
                    .filter(|o| o.is_ok())
                    .count();
            }
            taken
        });
    }
    let taken: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(taken, 100);
    let transport = server.connect().await;
    assert_eq!(length(&transport).await, 100);
    assert_eq!(transport.info().capabilities.max_topic_messages, None);
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_brought_again() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let transport = capped(&server, 1000, Overflow::Refuse).await;
    publish(&transport, "t", 1).await;
    let mut flush = redis::cmd("SCRIPT");
    let _: String = flush
        .arg("FLUSH")
        .query_async(&mut raw(&transport).await)
        .await
        .unwrap();
    publish(&transport, "t", 50).await;
    assert_eq!(length(&transport).await, 51);
}

#[tokio::test]
async fn a_full_server_refuses_for_its_own_reason() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    for overflow in [Overflow::Refuse, Overflow::Gap] {
        let Some(transport) = able(&server, 5, overflow).await else {
            return;
        };
        publish(&transport, "t", 2).await;
        let mut connection = raw(&transport).await;
        for (bytes, full) in [(1, true), (0, false)] {
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg("maxmemory").arg(bytes);
            let _: String = set.query_async(&mut connection).await.unwrap();
            let outcome = offer(&transport, 1).await.pop().unwrap();
            assert_eq!(outcome.is_err(), full, "{outcome:?}");
            if let Err(error) = outcome {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                assert!(error.to_string().contains("maxmemory"), "{error}");
            }
        }
    }
}

/// A transport that drops, unless the server cannot tell of it.
async fn able(server: &Server, most: u64, overflow: Overflow) -> Option<RedisTransport> {
    let config = server.config().stream_max_len(most, overflow);
    match RedisTransport::connect(config).await {
        Ok(transport) => Some(transport),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("redis 6."), "{error}");
            None
        }
    }
}

async fn lost(member: &mut Member) -> u64 {
    loop {
        match member.event().await {
            Event::Gap(gap) => return gap.lost.unwrap(),
            Event::Delivery(_) | Event::Reconnected => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_dropped_is_told_to_every_group_that_had_not_settled_it() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let Some(transport) = able(&server, 10, Overflow::Gap).await else {
        return;
    };
    let mut quick = Member::join(&transport, &subscription("t", 1000)).await;
    let away = subscription("t", 1000).group("away");
    Member::join(&transport, &away)
        .await
        .settle
        .close(Instant::now())
        .await
        .unwrap();
    publish(&transport, "t", 10).await;
    let held = quick.deliveries(10).await;
    // What all have settled goes first, and is no loss to anybody: nobody has here.
    quick.ack(&held[..6]).await;
    publish(&transport, "t", 5).await;
    assert_eq!(length(&transport).await, 10);
    let mut late = Member::join(&transport, &away).await;
    assert_eq!(lost(&mut late).await, 5);
    let mut left = Vec::new();
    while left.len() < 10 {
        left.push(late.delivery().await);
    }
    late.ack(&left).await;
    // It held the tenth, and five more have come since; none of them is gone.
    let more = quick.deliveries(5).await;
    quick.ack(&held[6..]).await;
    quick.ack(&more).await;
    // All is settled: there is room for ten without a loss.
    publish(&transport, "t", 10).await;
    let (mine, theirs) = (quick.deliveries(10).await, late.deliveries(10).await);
    // Held by one group and dropped under it: it comes to nobody again, and that is told.
    late.ack(&theirs).await;
    quick.rest().await;
    publish(&transport, "t", 4).await;
    quick.want = 1000;
    for delivery in &mine[..4] {
        let nacked = quick.one(delivery.token, Outcome::Nack(Duration::ZERO));
        assert!(
            nacked
                .await
                .is_err_and(|e| e.kind() == ErrorKind::LeaseLost)
        );
    }
    let mut told = 0;
    while told < 4 {
        told += lost(&mut quick).await;
    }
    assert_eq!(told, 4);
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn without_a_group_nobody_is_owed_anything() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let Some(transport) = able(&server, 10, Overflow::Gap).await else {
        return;
    };
    publish(&transport, "t", 25).await;
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    let got = member.deliveries(10).await;
    assert_eq!(got[0].message.payload(), b"payload 15".as_slice());
    member.ack(&got).await;
    member.quiet(Duration::from_millis(200)).await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn a_cap_beyond_what_a_script_counts_exactly_is_one_all_the_same() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    for most in [100_000_000_000_000_000, i64::MAX.unsigned_abs(), u64::MAX] {
        let refusing = capped(&server, most, Overflow::Refuse).await;
        publish(&refusing, "t", 2).await;
        let Some(dropping) = able(&server, most, Overflow::Gap).await else {
            return;
        };
        let before = length(&dropping).await;
        publish(&dropping, "t", 3).await;
        assert_eq!(length(&dropping).await, before + 3, "{most}");
    }
}
