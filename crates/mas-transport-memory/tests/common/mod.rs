//! What the tests share: a member that is easy to drive.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Error, Event, Fetch, Message, Outcome, RawDelivery, Receipt, Result, Settle, Settled,
    Subscription, Token, Topic, Transport, Want,
};
use tokio::time::Instant;

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const MS: Duration = Duration::from_millis(1);

pub(crate) fn topic(name: &str) -> Topic {
    Topic::stored(name).unwrap()
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub(crate) async fn publish(
    bus: &Arc<impl Transport>,
    to: &str,
    texts: &[&str],
) -> Vec<Result<Receipt>> {
    let batch = texts
        .iter()
        .map(|text| Message::new(to, text.to_string()).unwrap().key(*text))
        .collect();
    bus.publish(batch, soon()).await.await
}

/// One member.
pub(crate) struct Agent {
    pub(crate) fetch: Box<dyn Fetch>,
    pub(crate) settle: Arc<dyn Settle>,
}

impl Agent {
    pub(crate) async fn join(bus: &Arc<impl Transport>, to: &str, group: &str) -> Self {
        Self::with(bus, Subscription::new(to).group(group).lease(LEASE)).await
    }

    pub(crate) async fn with(bus: &Arc<impl Transport>, subscription: Subscription) -> Self {
        let source = bus.subscribe(&subscription).await.unwrap();
        Self {
            fetch: source.fetch,
            settle: source.settle,
        }
    }

    /// What comes next.
    pub(crate) async fn events(&mut self, messages: usize) -> Result<Vec<Event>> {
        let mut out = Vec::new();
        let want = Want::new(messages, usize::MAX);
        self.fetch.fetch(want, &mut out).await?;
        Ok(out)
    }

    /// The deliveries that come next.
    pub(crate) async fn take(&mut self, messages: usize) -> Vec<RawDelivery> {
        deliveries(self.events(messages).await.unwrap())
    }

    /// Nothing comes for so long.
    pub(crate) async fn nothing_for(&mut self, time: Duration) {
        let came = tokio::time::timeout(time, self.events(1000)).await;
        assert!(came.is_err(), "{came:?}");
    }

    pub(crate) async fn settle(&self, token: Token, outcome: Outcome) -> Result<Settled> {
        let mut results = self.settle.settle(vec![(token, outcome)]).await;
        assert_eq!(results.len(), 1);
        results.pop().unwrap()
    }

    pub(crate) async fn ack(&self, delivery: &RawDelivery) -> Result<Settled> {
        self.settle(delivery.token, Outcome::Ack).await
    }
}

pub(crate) fn deliveries(events: Vec<Event>) -> Vec<RawDelivery> {
    let take = |event| match event {
        Event::Delivery(delivery) => delivery,
        other => panic!("{other:?}"),
    };
    events.into_iter().map(take).collect()
}

pub(crate) fn texts(deliveries: &[RawDelivery]) -> Vec<&str> {
    deliveries
        .iter()
        .map(|d| std::str::from_utf8(d.message.payload()).unwrap())
        .collect()
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> mas_transport_core::ErrorKind {
    result.unwrap_err().kind()
}

/// How long it takes on the clock.
pub(crate) async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let value = future.await;
    (value, start.elapsed())
}
