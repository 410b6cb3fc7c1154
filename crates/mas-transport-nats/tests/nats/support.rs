//! A real server on a port and a directory of its own, and what works on it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use conformance_tests::fixtures::{NatsOptions, NatsServer};
use mas_transport_core::{
    Error, ErrorKind, Event, Fetch, Group, Lag, Message, Outcome, RawDelivery, Receipt, Result,
    Settle, Settled, Source, Subscription, Token, Topic, Transport, Want,
};
use mas_transport_nats::{NatsConfig, NatsNative, NatsTransport};
use tokio::time::{Instant, timeout};

/// Within this a server on the same machine answers, also when the machine is busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// What waiting cannot help is refused long before the five seconds that connecting and requests may
/// take.
pub(crate) const QUICK: Duration = Duration::from_millis(2500);
/// What stands in no message: parts of passwords, tokens and keys.
const SECRETS: [&str; 3] = ["sesame", "hush", "BEGIN"];

/// A server of our own; `None` where there is none and none is required. Always a process: a
/// container would not see our certificates.
pub(crate) fn server(options: &NatsOptions) -> Option<NatsServer> {
    match NatsServer::program() {
        Ok(program) => Some(NatsServer::start_program(&program, options).unwrap()),
        Err(why) => {
            let required = std::env::var_os("REQUIRE_NATS").is_some_and(|v| v == "1");
            assert!(!required, "REQUIRE_NATS=1 and {why}");
            println!("SKIPPED backend=nats reason={why}");
            None
        }
    }
}

pub(crate) fn config(server: &NatsServer) -> NatsConfig {
    NatsConfig::new(server.address())
}

pub(crate) async fn connect(config: NatsConfig) -> NatsTransport {
    NatsTransport::connect(config).await.unwrap()
}

/// Connecting fails, soon, with this kind, in words that say what to do.
pub(crate) async fn refused(config: NatsConfig, kind: ErrorKind, words: &[&str]) -> Error {
    let asked = Instant::now();
    let error = NatsTransport::connect(config).await.unwrap_err();
    assert!(asked.elapsed() < QUICK, "{:?}: {error}", asked.elapsed());
    says(&error, kind, words);
    error
}

/// An error is of this kind and holds these words, and no secret.
pub(crate) fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = format!("{error} {error:?}");
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word}? {text}");
    }
    keeps_secrets(&text);
}

pub(crate) fn keeps_secrets(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

/// With this configuration messages are published, received and settled. What it and the transport
/// show of themselves.
pub(crate) async fn works(config: NatsConfig) -> String {
    let shown = format!("{config:?}");
    let transport = connect(config).await;
    let shown = format!("{shown} {transport:?}");
    keeps_secrets(&shown);
    let mut member = Member::join(&transport, &subscription("works", 30_000)).await;
    publish(&transport, "works", 10).await;
    let got = member.deliveries(10).await;
    assert_eq!(got[7].message.payload().as_ref(), b"payload 7");
    member.ack(&got).await;
    assert_eq!(lag(&transport, "works").await, Lag::default());
    transport.admin().health().await.unwrap();
    member.settle.close(Instant::now() + SOON).await.unwrap();
    transport.close(Instant::now() + SOON).await.unwrap();
    shown
}

/// Waits for something that shows soon.
pub(crate) async fn soon<T, F>(what: &str, look: impl FnMut() -> F) -> T
where
    F: Future<Output = std::result::Result<T, String>>,
{
    within(SOON, what, look).await
}

/// Waits for something that shows within a time.
pub(crate) async fn within<T, F>(limit: Duration, what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = std::result::Result<T, String>>,
{
    let until = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(found) => assert!(Instant::now() < until, "{what}: {found}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

pub(crate) fn subscription(topic: &str, lease_ms: u64) -> Subscription {
    Subscription::new(topic)
        .group("g")
        .lease(Duration::from_millis(lease_ms))
}

pub(crate) fn native(transport: &NatsTransport) -> &NatsNative {
    transport.native().unwrap().downcast_ref().unwrap()
}

/// The stream of a topic, as the client's own calls see it.
pub(crate) async fn stream(transport: &NatsTransport, name: &str) -> Stream {
    let name = native(transport).stream(&topic(name));
    let jetstream = native(transport).jetstream();
    jetstream.get_stream(&name).await.unwrap()
}

pub(crate) async fn lag(transport: &NatsTransport, name: &str) -> Lag {
    let group = Group::new("g").unwrap();
    transport.admin().lag(&topic(name), &group).await.unwrap()
}

pub(crate) async fn publish(transport: &NatsTransport, topic: &str, count: usize) -> Vec<Receipt> {
    let batch = (0..count)
        .map(|i| Message::new(topic, format!("payload {i}")).unwrap())
        .collect();
    let outcomes = outcomes(transport, batch).await;
    outcomes.into_iter().map(Result::unwrap).collect()
}

pub(crate) async fn outcomes(
    transport: &NatsTransport,
    batch: Vec<Message>,
) -> Vec<Result<Receipt>> {
    transport.publish(batch, Instant::now() + SOON).await.await
}

pub(crate) async fn one(transport: &NatsTransport, topic: &str, payload: &str) -> Result<Receipt> {
    let batch = vec![Message::new(topic, payload.to_owned()).unwrap()];
    outcomes(transport, batch).await.pop().unwrap()
}

/// The receiving side of a member as a pump drives it, one event at a time.
pub(crate) struct Member {
    pub(crate) fetch: Box<dyn Fetch>,
    pub(crate) settle: Arc<dyn Settle>,
    pub(crate) waiting: VecDeque<Event>,
}

impl Member {
    pub(crate) async fn join(transport: &NatsTransport, subscription: &Subscription) -> Self {
        Self::of(transport.subscribe(subscription).await.unwrap())
    }

    pub(crate) fn of(source: Source) -> Self {
        let Source { fetch, settle } = source;
        Self {
            fetch,
            settle,
            waiting: VecDeque::new(),
        }
    }

    fn want() -> Want {
        Want::new(1000, 64 << 20)
    }

    /// The next event; errors that pass are waited out.
    pub(crate) async fn event(&mut self) -> Event {
        timeout(2 * SOON, async {
            loop {
                if let Some(event) = self.waiting.pop_front() {
                    return event;
                }
                let mut out = Vec::new();
                match self.fetch.fetch(Self::want(), &mut out).await {
                    Ok(()) => self.waiting.extend(out),
                    Err(error) if error.is_retryable() => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
        .expect("an event in time")
    }

    pub(crate) async fn delivery(&mut self) -> RawDelivery {
        loop {
            match self.event().await {
                Event::Delivery(delivery) => return delivery,
                Event::Reconnected => {}
                other => panic!("a delivery was expected: {other:?}"),
            }
        }
    }

    pub(crate) async fn deliveries(&mut self, count: usize) -> Vec<RawDelivery> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(self.delivery().await);
        }
        all
    }

    /// The first failure of a fetch; deliveries are passed over.
    pub(crate) async fn failure(&mut self) -> Error {
        let failing = async {
            loop {
                if let Err(error) = self.fetch.fetch(Self::want(), &mut Vec::new()).await {
                    return error;
                }
            }
        };
        timeout(SOON, failing).await.expect("a failure in time")
    }

    /// Nothing comes for this long.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        let mut out = Vec::new();
        assert!(self.waiting.is_empty(), "{:?}", self.waiting);
        let fetched = timeout(time, self.fetch.fetch(Self::want(), &mut out)).await;
        assert!(fetched.is_err(), "{fetched:?} {out:?}");
    }

    pub(crate) async fn one(&self, token: Token, outcome: Outcome) -> Result<Settled> {
        let settled = self.settle.settle(vec![(token, outcome)]).await;
        settled.into_iter().next().unwrap()
    }

    pub(crate) async fn ack(&self, deliveries: &[RawDelivery]) {
        let batch = deliveries.iter().map(|d| (d.token, Outcome::Ack)).collect();
        for result in self.settle.settle(batch).await {
            assert_eq!(result.unwrap(), Settled::Done);
        }
    }
}
