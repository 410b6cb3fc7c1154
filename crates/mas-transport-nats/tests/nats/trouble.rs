//! Servers that are switched off, full, sent away or overrun: each ends in recovery, or in an error
//! that says what to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use conformance_tests::fixtures::NatsOptions;
use futures::StreamExt as _;
use mas_transport_core::{
    ErrorKind, Event, Group, Lag, Message, Outcome, Settled, Stored, Topic, TopicSpec,
    Transport as _,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Member, SOON, config, connect, lag, native, one, outcomes, publish, refused, says, server,
    soon, stream, subscription, topic, works,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_is_told() {
    let Some(server) = server(&NatsOptions::new().without_jetstream()) else {
        return;
    };
    let words = [
        "JetStream is switched off",
        "-js",
        "jetstream {}",
        "nats-server 2.",
    ];
    refused(config(&server), ErrorKind::Unsupported, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_jetstream_is_told() {
    let options = NatsOptions::new().config(
        "accounts {\n\
         with { jetstream: enabled, users: [ { user: a, password: open-sesame } ] }\n\
         without { users: [ { user: b, password: open-sesame } ] }\n}",
    );
    let Some(server) = server(&options) else {
        return;
    };
    works(config(&server).user("a", "open-sesame")).await;
    let words = ["JetStream is switched off for this account"];
    let without = config(&server).user("b", "open-sesame");
    refused(without, ErrorKind::Unsupported, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_is_told_and_takes_more_when_there_is_room() {
    let options = NatsOptions::new().jetstream("max_file_store: 2MB");
    let Some(server) = server(&options) else {
        return;
    };
    let transport = connect(config(&server)).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    let large = "x".repeat(64 << 10);
    for _ in 0..2 {
        let mut stored = 0;
        let error = loop {
            assert!(stored < 100, "it is never full");
            match one(&transport, "orders", &large).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
        };
        says(&error, ErrorKind::Full, &["no room left", "limit"]);
        assert_eq!(error.stored(), Stored::No);
        assert!(stored > 20, "{stored}");
        let got = member.deliveries(stored).await;
        member.ack(&got).await;
        // What is settled makes room.
        soon("there is room again", || async {
            let published = one(&transport, "orders", "x").await;
            published.map_err(|e| e.to_string())
        })
        .await;
        let held = member.delivery().await;
        member.ack(&[held]).await;
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_is_emptied_by_whoever_comes_then() {
    let options = NatsOptions::new().jetstream("max_file_store: 2MB");
    let Some(server) = server(&options) else {
        return;
    };
    let transport = connect(config(&server)).await;
    let large = "x".repeat(64 << 10);
    let mut stored = 0;
    while one(&transport, "orders", &large).await.is_ok() {
        stored += 1;
        assert!(stored < 100, "it is never full");
    }
    // What is left to come back is settled too.
    let mut member = Member::join(&transport, &subscription("orders", 2000)).await;
    member.deliveries(stored).await;
    let back = member.deliveries(stored).await;
    assert!(back.iter().all(|d| d.begin && d.attempt == 2));
    for held in &back {
        member.one(held.token, Outcome::Begin).await.unwrap();
    }
    member.ack(&back).await;
    soon("there is room again", || async {
        let published = one(&transport, "orders", "x").await;
        published.map_err(|e| e.to_string())
    })
    .await;
    let held = member.delivery().await;
    assert_eq!(held.message.payload(), b"x".as_slice());
    member.ack(&[held]).await;
    // And so does purging.
    while one(&transport, "other", &large).await.is_ok() {}
    let purged = transport.admin().purge(&topic("other")).await.unwrap();
    assert!(purged > 20, "{purged}");
    one(&transport, "other", &large).await.unwrap();
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_topic_is_told_and_takes_more_when_there_is_room() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let transport = connect(config(&server).max_topic_messages(10)).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    for _ in 0..3 {
        soon("there is room", || async {
            match lag(&transport, "orders").await == Lag::default() {
                true => Ok(()),
                false => Err("not all is settled".to_owned()),
            }
        })
        .await;
        let mut stored = 0;
        let error = loop {
            match one(&transport, "orders", "x").await {
                Ok(_) => stored += 1,
                // The room of what was settled comes a little later.
                Err(_) if stored < 10 => {}
                Err(error) => break error,
            }
            assert!(stored <= 10, "{stored}");
        };
        says(
            &error,
            ErrorKind::Full,
            &["no room left", "settle or purge"],
        );
        assert_eq!(error.stored(), Stored::No);
        let got = member.deliveries(stored).await;
        member.ack(&got).await;
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_topic_keeps_for_a_time_only_is_told_as_lost() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let age = Duration::from_millis(700);
    let transport = connect(config(&server).max_topic_age(age)).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    publish(&transport, "orders", 3).await;
    let got = member.deliveries(3).await;
    member.ack(&got[..1]).await;
    // The server may remove one before the other.
    let mut lost = 0;
    while lost < 2 {
        if let Event::Gap(gap) = member.event().await {
            lost += gap.lost.expect("nobody else is in the group");
        }
    }
    assert_eq!(lost, 2, "one of three was settled");
    one(&transport, "orders", "later").await.unwrap();
    let later = member.delivery().await;
    assert_eq!(later.message.payload(), b"later".as_slice());
    member.ack(&[later]).await;

    let jetstream = native(&transport).jetstream();
    let letters = Topic::dead_letters(&topic("orders"), &Group::new("billing").unwrap());
    for (topic, wanted) in [(topic("orders"), age), (letters, Duration::ZERO)] {
        let spec = TopicSpec::new(topic.clone());
        transport.admin().declare(&spec).await.unwrap();
        let name = native(&transport).stream(&topic);
        let stream = jetstream.get_stream(&name).await.unwrap();
        let config = &stream.cached_info().config;
        assert_eq!(config.max_age, wanted, "{name}");
        assert!(wanted.is_zero() || config.duplicate_window <= age, "{name}");
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_its_clients_away_is_followed_by_the_next() {
    let options =
        NatsOptions::new().config("lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"");
    let Some(server) = server(&options) else {
        return;
    };
    let transport = Arc::new(connect(config(&server)).await);
    let mut member = Member::join(&transport, &subscription("orders", 5000)).await;
    let enough = CancellationToken::new();
    let publishing = {
        let (transport, enough) = (transport.clone(), enough.clone());
        tokio::spawn(async move {
            let mut stored = BTreeSet::new();
            let mut pace = tokio::time::interval(Duration::from_millis(2));
            for n in 0..u32::MAX {
                if enough.is_cancelled() {
                    break;
                }
                match one(&transport, "orders", &n.to_string()).await {
                    Ok(_) => stored.insert(n),
                    Err(error) => {
                        assert!(error.is_retryable(), "{error}");
                        true
                    }
                };
                pace.tick().await;
            }
            stored
        })
    };
    let mut got = BTreeSet::new();
    take(&mut member, &mut got, 100).await;
    server.lame_duck().unwrap();
    let client = native(&transport).client();
    let away = soon("the clients are sent away", || async {
        match client.connection_state() {
            State::Connected => Err("it is connected".to_owned()),
            _ => Ok(()),
        }
    });
    // What is received meanwhile counts too.
    let mut begun = got.clone();
    tokio::select! {
        () = away => {}
        () = take(&mut member, &mut begun, usize::MAX) => {}
    }
    got = begun;
    // It ends by itself; another one on its store takes its place.
    server.kill().unwrap();
    server.restart().unwrap();
    let before = got.len();
    take(&mut member, &mut got, before + 200).await;
    enough.cancel();
    let stored = publishing.await.unwrap();
    while !stored.is_subset(&got) {
        let count = got.len() + 1;
        take(&mut member, &mut got, count).await;
    }
    assert!(stored.len() > 200, "{}", stored.len());
    assert!(transport.connections().unwrap().reconnects > 0);
    transport.close(Instant::now() + SOON).await.unwrap();
}

/// Receives and settles until there are so many different ones.
async fn take(member: &mut Member, got: &mut BTreeSet<u32>, count: usize) {
    while got.len() < count {
        let Event::Delivery(delivery) = member.event().await else {
            continue;
        };
        let text = std::str::from_utf8(delivery.message.payload()).unwrap();
        got.insert(text.parse().unwrap());
        // What cannot be settled now comes again.
        if let Ok(settled) = member.one(delivery.token, Outcome::Ack).await {
            assert_eq!(settled, Settled::Done);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_holds_all_it_may_goes_on_when_it_settles() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let transport = connect(config(&server).max_ack_pending(1000)).await;
    let mut member = Member::join(&transport, &subscription("orders", 60_000)).await;
    publish(&transport, "orders", 1500).await;
    let mut got = member.deliveries(1000).await;
    let full = Lag {
        waiting: 500,
        pending: 1000,
    };
    assert_eq!(lag(&transport, "orders").await, full);
    // The server has nothing more for it, however long a pull waits.
    member.quiet(Duration::from_millis(500)).await;
    assert_eq!(lag(&transport, "orders").await, full);
    member.ack(&got[..300]).await;
    got.extend(member.deliveries(300).await);
    member.quiet(Duration::from_millis(200)).await;
    member.ack(&got[300..]).await;
    let last = member.deliveries(200).await;
    member.ack(&last).await;
    got.extend(last);
    let payloads: BTreeSet<_> = got.iter().map(|d| d.message.payload().clone()).collect();
    assert_eq!((got.len(), payloads.len()), (1500, 1500));
    assert!(got.iter().all(|d| d.attempt == 1));
    assert_eq!(lag(&transport, "orders").await, Lag::default());
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_the_groups_name_with_another_configuration_is_told() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let transport = connect(config(&server)).await;
    publish(&transport, "orders", 1).await;
    let stream = stream(&transport, "orders").await;
    let theirs = pull::Config {
        durable_name: Some("billing".to_owned()),
        ack_policy: AckPolicy::All,
        ack_wait: Duration::from_secs(30),
        max_deliver: 5,
        ..pull::Config::default()
    };
    stream.create_consumer(theirs).await.unwrap();
    let wanted = subscription("orders", 30_000).group("billing");
    let error = transport.subscribe(&wanted).await.unwrap_err();
    let words = [
        "another configuration",
        "ack policy is All, wanted Explicit",
        "max deliver is 5, wanted -1",
        "nats consumer rm",
    ];
    says(&error, ErrorKind::Conflict, &words);
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_ask_for_no_more_than_a_subscription_holds() {
    // What the client keeps for a subscription before it drops messages: `HELD`.
    const HELD: u64 = 65_536;
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let spy = async_nats::connect(server.url()).await.unwrap();
    let mut pulls = spy.subscribe("$JS.API.CONSUMER.MSG.NEXT.>").await.unwrap();
    spy.flush().await.unwrap();
    let transport = connect(config(&server)).await;
    publish(&transport, "orders", 5000).await;
    let mut member = Member::join(&transport, &subscription("orders", 60_000)).await;
    let got = member.deliveries(5000).await;
    member.ack(&got).await;
    assert_eq!(lag(&transport, "orders").await, Lag::default());
    let (mut count, mut asked) = (0, 0);
    while asked < 5000 {
        let pull = timeout(SOON, pulls.next()).await.expect("a pull").unwrap();
        let pull: serde_json::Value = serde_json::from_slice(&pull.payload).unwrap();
        let batch = pull["batch"].as_u64().unwrap();
        assert!((1..=1000).contains(&batch), "{pull}");
        (count, asked) = (count + 1, asked + batch);
    }
    // Also if nobody took anything out between them.
    assert!(count >= 5 && asked < HELD, "{count} {asked}");
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_the_server_finds_too_slow_loses_nothing() {
    // Less than one pull brings.
    let options = NatsOptions::new().config("max_pending: 1MB\nwrite_deadline: \"2s\"");
    let Some(server) = server(&options) else {
        return;
    };
    let transport = connect(config(&server)).await;
    let large = "x".repeat(100 << 10);
    for n in 0..60 {
        let text = format!("{n} {large}");
        let batch = vec![Message::new("orders", text).unwrap()];
        outcomes(&transport, batch).await.pop().unwrap().unwrap();
    }
    let mut member = Member::join(&transport, &subscription("orders", 2000)).await;
    let mut left: BTreeSet<usize> = (0..60).collect();
    while !left.is_empty() {
        let Event::Delivery(delivery) = member.event().await else {
            continue;
        };
        let text = std::str::from_utf8(delivery.message.payload()).unwrap();
        let n = text.split(' ').next().unwrap().parse().unwrap();
        if member.one(delivery.token, Outcome::Ack).await.is_ok() {
            left.remove(&n);
        }
    }
    soon("all is settled", || async {
        match lag(&transport, "orders").await {
            lag if lag == Lag::default() => Ok(()),
            lag => Err(format!("{lag:?}")),
        }
    })
    .await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_its_maximum_of_connections_is_told() {
    let Some(server) = server(&NatsOptions::new().config("max_connections: 1")) else {
        return;
    };
    let transport = connect(config(&server)).await;
    let second = config(&server).connect_timeout(Duration::from_secs(1));
    let words = ["maximum of connections", "max_connections"];
    refused(second.clone(), ErrorKind::Unavailable, &words).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    // Its reader has no connection of its own.
    let error = member.failure().await;
    says(&error, ErrorKind::Unavailable, &words);
    one(&transport, "orders", "x").await.unwrap();
    transport.close(Instant::now() + SOON).await.unwrap();
}
