//! Three servers that keep topics together: what they promise outlives any one of them.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use conformance_tests::fixtures::{NatsOptions, NatsServer};
use mas_transport_core::{Durability, Event, Lag, Outcome, Transport as _};
use mas_transport_nats::{NatsConfig, NatsTransport};
use tokio::time::Instant;

use crate::support::{Member, SOON, lag, one, publish, server, stream, subscription, within};

/// Servers wait for up to 9 s before they stand for election (nats-server 2.9 to 2.15), each for its own time;
/// the leader of all has to be chosen before that of a stream can be asked for, and one try may split the votes.
const ELECTION: Duration = Duration::from_secs(60);

/// `None` where there is no server and none is required.
fn cluster() -> Option<Vec<NatsServer>> {
    // All at once, so that none is chosen twice.
    let listeners: Vec<_> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let each = listeners.iter().map(|l| l.local_addr().unwrap().port());
    let ports: Vec<u16> = each.collect();
    drop(listeners);
    let routes: Vec<_> = ports
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .collect();
    let routes = routes.join(", ");
    let start = |port: &u16| {
        let listen = format!("listen: \"127.0.0.1:{port}\"");
        let config = format!("cluster {{ name: mas, {listen}, routes: [{routes}] }}");
        server(&NatsOptions::new().config(&config))
    };
    ports.iter().map(start).collect()
}

/// A transport, once the servers have chosen who leads them.
async fn connected(servers: &[NatsServer]) -> NatsTransport {
    let addresses: Vec<_> = servers.iter().map(NatsServer::address).collect();
    let config = NatsConfig::new(addresses.join(",")).replicas(3);
    within(ELECTION, "the servers are one cluster", || async {
        let transport = NatsTransport::connect(config.clone()).await;
        let transport = transport.map_err(|e| e.to_string())?;
        match one(&transport, "warm-up", "x").await {
            Ok(_) => Ok(transport),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_three_servers_keep_outlives_the_one_that_leads() {
    let Some(servers) = cluster() else {
        return;
    };
    let transport = connected(&servers).await;
    let can = transport.info().capabilities;
    assert_eq!(
        (can.durability, can.ack_durability),
        (Durability::Replicated, Durability::Replicated)
    );
    let mut member = Member::join(&transport, &subscription("orders", 5000)).await;
    publish(&transport, "orders", 100).await;
    let got = member.deliveries(100).await;
    let (acked, held) = got.split_at(50);
    member.ack(acked).await;
    let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).unwrap();
    let acked: BTreeSet<_> = acked.iter().map(|d| text(d.message.payload())).collect();
    let mut open: BTreeSet<_> = held.iter().map(|d| text(d.message.payload())).collect();

    let stream = stream(&transport, "orders").await;
    let leader = stream.cached_info().cluster.as_ref();
    let leader = leader.and_then(|cluster| cluster.leader.clone()).unwrap();
    let mut killed = None;
    for server in &servers {
        let spy = async_nats::connect(server.url()).await.unwrap();
        if spy.server_info().server_name == leader {
            killed = Some(server);
        }
    }
    let killed = killed.expect("one of the three leads");
    killed.kill().unwrap();

    // The others go on: what was held is settled, perhaps at its next attempt, and new messages come.
    for n in 0..20 {
        let payload = format!("later {n}");
        within(ELECTION, "another one leads", || async {
            let stored = one(&transport, "orders", &payload).await;
            stored.map_err(|e| format!("{e}, {:?}", e.stored()))
        })
        .await;
        open.insert(payload);
    }
    for delivery in held {
        if member.one(delivery.token, Outcome::Ack).await.is_ok() {
            open.remove(&text(delivery.message.payload()));
        }
    }
    while !open.is_empty() {
        let Event::Delivery(delivery) = member.event().await else {
            continue;
        };
        let payload = text(delivery.message.payload());
        assert!(!acked.contains(&payload), "{payload} came after its ack");
        if member.one(delivery.token, Outcome::Ack).await.is_ok() {
            open.remove(&payload);
        }
    }
    killed.restart().unwrap();
    within(ELECTION, "all is settled", || async {
        match lag(&transport, "orders").await {
            lag if lag == Lag::default() => Ok(()),
            lag => Err(format!("{lag:?}")),
        }
    })
    .await;
    transport.close(Instant::now() + SOON).await.unwrap();
    // And it takes part again.
    let alone = NatsConfig::new(killed.address()).replicas(3);
    within(ELECTION, "it is back", || async {
        let joined = NatsTransport::connect(alone.clone()).await;
        let joined = joined.map_err(|e| e.to_string())?;
        let stored = one(&joined, "orders", "last").await;
        stored.map_err(|e| e.to_string())
    })
    .await;
}
