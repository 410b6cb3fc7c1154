//! Settlements on a slow network and on a server that does not answer for a while.

use std::time::Duration;

use mas_transport_core::{ErrorKind, Group, Outcome, Settled, Stored, Topic, Transport as _};
use mas_transport_redis::{RedisConfig, RedisTransport};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

use crate::smoke::record;
use crate::support::{Member, SOON, Server, native, publish, raw, subscription, topic};

/// A way to the server on which every answer takes this long; its address.
async fn slow_way(server: &Server, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let port = server.port;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 20];
                while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                    sleep(delay).await;
                    if to_client.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn many_dead_letters_are_few_round_trips_and_keep_their_order() {
    const COUNT: usize = 160;
    const DELAY: Duration = Duration::from_millis(30);
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let config = RedisConfig::new(slow_way(&server, DELAY).await);
    let transport = RedisTransport::connect(config).await.unwrap();
    let mut member = Member::join(&transport, &subscription("t", 30_000)).await;
    publish(&transport, "t", COUNT + 1).await;
    let held = member.deliveries(COUNT + 1).await;
    let letters = held[..COUNT].iter();
    let mut batch: Vec<_> = letters
        .map(|d| (d.token, Outcome::DeadLetter(record())))
        .collect();
    batch.push((held[COUNT].token, Outcome::Ack));
    let asked = Instant::now();
    for outcome in member.settle.settle(batch).await {
        assert_eq!(outcome.unwrap(), Settled::Done);
    }
    // One after the other they would take 160 times the delay.
    let took = asked.elapsed();
    assert!(took < DELAY * 80, "{took:?}");
    let dead = mas_transport_core::Topic::dead_letters(
        &topic("t"),
        &mas_transport_core::Group::new("g").unwrap(),
    );
    let mut read = redis::cmd("XRANGE");
    read.arg(native(&transport).stream(&dead)).arg("-").arg("+");
    let letters: Vec<(String, Vec<(String, String)>)> =
        read.query_async(&mut raw(&transport).await).await.unwrap();
    let payload = |fields: &Vec<(String, String)>| {
        let data = fields.iter().find(|(name, _)| name == "data");
        data.map(|(_, value)| value.clone()).unwrap()
    };
    let payloads: Vec<String> = letters.iter().map(|(_, fields)| payload(fields)).collect();
    let wanted: Vec<String> = (0..COUNT).map(|i| format!("payload {i}")).collect();
    assert_eq!(payloads, wanted);
    transport.close(Instant::now() + SOON).await.unwrap();
}

/// Two are settled together while the server does not answer; the lease of one ends meanwhile.
#[tokio::test]
async fn a_lease_that_ends_does_not_take_others_with_it() {
    const LEASE: Duration = Duration::from_millis(2000);
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let transport = server.connect().await;
    let mut connection = raw(&transport).await;
    for outcome in [Outcome::Ack, Outcome::Extend] {
        let mut member = Member::join(&transport, &subscription("t", 2000)).await;
        member.want = 1;
        publish(&transport, "t", 1).await;
        let old = member.delivery().await;
        sleep_until(old.deadline - LEASE / 2).await;
        publish(&transport, "t", 1).await;
        let young = member.delivery().await;
        assert!(young.deadline >= old.deadline + LEASE / 4);
        sleep_until(old.deadline - LEASE / 8).await;
        let mut pause = redis::cmd("CLIENT");
        let ms = u64::try_from((LEASE / 4).as_millis()).unwrap();
        pause.arg("PAUSE").arg(ms).arg("ALL");
        let _: String = pause.query_async(&mut connection).await.unwrap();
        let batch = vec![(old.token, outcome.clone()), (young.token, outcome.clone())];
        let mut outcomes = member.settle.settle(batch).await;
        let young = outcomes.pop().unwrap();
        assert!(young.is_ok(), "{outcome:?}: {young:?}");
        let old = outcomes.pop().unwrap().unwrap_err();
        assert_eq!(old.kind(), ErrorKind::Timeout, "{old}");
        assert_eq!(old.stored(), Stored::Unknown, "{old}");
        member.settle.close(Instant::now()).await.unwrap();
        let group = transport.admin();
        group.purge(&topic("t")).await.unwrap();
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn no_dead_letter_waits_for_a_frozen_server_longer_than_its_lease() {
    // More rounds of burials than the server would be waited for within a lease.
    const COUNT: usize = 100;
    const LEASE: Duration = Duration::from_secs(2);
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let config = server.config().response_timeout(Duration::from_millis(800));
    let transport = RedisTransport::connect(config).await.unwrap();
    let lease = u64::try_from(LEASE.as_millis()).unwrap();
    let mut member = Member::join(&transport, &subscription("t", lease)).await;
    publish(&transport, "t", COUNT).await;
    let held = member.deliveries(COUNT).await;
    let last = held.iter().map(|delivery| delivery.deadline).max().unwrap();
    server.freeze(true).await;
    let letters = held
        .iter()
        .map(|d| (d.token, Outcome::DeadLetter(record())));
    let outcomes = member.settle.settle(letters.collect()).await;
    // A busy machine may be late, but not by another round.
    let over = Instant::now().saturating_duration_since(last);
    server.freeze(false).await;
    assert!(
        over < Duration::from_millis(700),
        "{over:?} after the lease"
    );
    assert_eq!(outcomes.len(), COUNT);
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        let kind = error.kind();
        assert!(
            error.is_retryable() || kind == ErrorKind::LeaseLost,
            "{error}"
        );
        // What stood behind the first ones was never sent.
        assert!(
            kind != ErrorKind::LeaseLost || error.stored() == Stored::No,
            "{error}"
        );
    }
    // Nothing is lost: each is a dead letter by now, or comes back.
    let letters = Topic::dead_letters(&topic("t"), &Group::new("g").unwrap());
    let mut connection = raw(&transport).await;
    let mut ask = redis::cmd("XLEN");
    let kept: usize = ask
        .arg(native(&transport).stream(&letters))
        .query_async(&mut connection)
        .await
        .unwrap();
    let again = member.deliveries(COUNT - kept).await;
    member.ack(&again).await;
    transport.close(Instant::now() + SOON).await.unwrap();
}
