//! How many connections there are, and how long a read waits, on a real server.

use std::time::Duration;

use crate::support::{Member, SOON, Server, publish, subscription};
use mas_transport_core::{Outcome, Transport as _};
use mas_transport_redis::{RedisConfig, RedisTransport};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

/// A connection behind the library's back, and how many others there are.
struct Door(MultiplexedConnection);

impl Door {
    async fn open(server: &Server) -> Self {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap())
    }

    async fn text(&mut self, command: &str, argument: &str) -> String {
        let mut ask = redis::cmd(command);
        ask.arg(argument).query_async(&mut self.0).await.unwrap()
    }

    async fn others(&mut self) -> usize {
        self.text("CLIENT", "LIST").await.lines().count() - 1
    }

    /// There are so many, soon, and it stays so.
    async fn expect(&mut self, count: usize, when: &str) {
        let until = Instant::now() + SOON;
        while self.others().await != count {
            assert!(
                Instant::now() < until,
                "{when}: {} connections instead of {count}",
                self.others().await
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How often a command was called.
    async fn calls(&mut self, command: &str) -> u64 {
        let text = self.text("INFO", "commandstats").await;
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("cmdstat_{command}:")));
        let calls = line.and_then(|l| l.split("calls=").nth(1)?.split(',').next()?.parse().ok());
        calls.unwrap_or(0)
    }
}

async fn connect(config: RedisConfig) -> RedisTransport {
    RedisTransport::connect(config).await.unwrap()
}

#[tokio::test]
async fn consumers_have_connections_of_their_own_up_to_the_number() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let mut door = Door::open(&server).await;
    for (most, lanes) in [(1, 0), (3, 2), (10, 4)] {
        let transport = connect(server.config().connections(most)).await;
        publish(&transport, "orders", 3).await;
        transport.admin().health().await.unwrap();
        door.expect(1, "publishing needs one").await;
        let mut members = Vec::new();
        for _ in 0..4 {
            members.push(Member::join(&transport, &subscription("orders", 30_000)).await);
        }
        door.expect(1 + lanes + 4, "four consumers").await;
        // Every one of them works.
        for member in &mut members {
            publish(&transport, "orders", 1).await;
            member.want = 1;
        }
        let delivery = members[0].delivery().await;
        members[0].one(delivery.token, Outcome::Ack).await.unwrap();
        for member in &members {
            member.settle.close(Instant::now()).await.unwrap();
        }
        door.expect(1, "consumers that closed have left theirs")
            .await;
        transport.close(Instant::now() + SOON).await.unwrap();
        door.expect(0, "a closed transport").await;
    }
}

#[tokio::test]
async fn each_connection_heals_by_itself() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let mut door = Door::open(&server).await;
    let transport = connect(server.config()).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    publish(&transport, "orders", 1).await;
    let held = member.delivery().await;
    door.expect(3, "publishing, settling, reading").await;
    let killed: usize = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("SKIPME")
        .arg("yes")
        .query_async(&mut door.0)
        .await
        .unwrap();
    assert_eq!(killed, 3);
    member.one(held.token, Outcome::Ack).await.unwrap();
    publish(&transport, "orders", 1).await;
    let held = member.delivery().await;
    member.one(held.token, Outcome::Ack).await.unwrap();
    door.expect(3, "all three again").await;
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn a_read_waits_as_long_as_it_is_told() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let mut door = Door::open(&server).await;
    let config = server.config().block_timeout(Duration::from_millis(20));
    let transport = connect(config).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    let asked = Instant::now();
    let quiet = member.quiet(Duration::from_secs(2));
    let count = async {
        while door.calls("xreadgroup").await < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        asked.elapsed()
    };
    // By default a read of this lease waits a second.
    let (took, ()) = tokio::join!(count, quiet);
    assert!(took < Duration::from_secs(10), "{took:?}");
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test]
async fn connections_that_came_back_are_counted() {
    let Some(server) = Server::start(&[]).await else {
        return;
    };
    let mut door = Door::open(&server).await;
    let transport = connect(server.config().connections(3)).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    door.expect(3, "publishing, settling, reading").await;
    let there = transport.connections().unwrap();
    assert_eq!((there.configured, there.reconnects), (3, 0));
    let kill = "CLIENT KILL SKIPME yes";
    let mut ask = redis::Cmd::new();
    ask.arg(kill.split(' ').collect::<Vec<_>>());
    let killed: usize = ask.query_async(&mut door.0).await.unwrap();
    assert_eq!(killed, 3);
    // The one that reads finds out when it reads again.
    publish(&transport, "orders", 1).await;
    let held = member.delivery().await;
    member.one(held.token, Outcome::Ack).await.unwrap();
    let until = Instant::now() + SOON;
    while transport.connections().unwrap().reconnects < 3 {
        assert!(Instant::now() < until, "{:?}", transport.connections());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    door.expect(3, "all three again").await;
    assert_eq!(transport.connections().unwrap().reconnects, 3);
    transport.close(Instant::now() + SOON).await.unwrap();
}
