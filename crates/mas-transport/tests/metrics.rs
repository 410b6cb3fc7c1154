//! What a bus counts.
#![cfg(feature = "memory")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::layers::{Hooks, Intercept};
use mas_transport::memory::{MemoryBroker, MemoryConfig};
use mas_transport::{
    Bus, BusOptions, Confirm, Consumed, Consumer, Message, PublishOptions, Subscription, Transport,
};
use tokio::time::Instant;

const LEASE: Duration = Duration::from_secs(30);

async fn transport() -> Arc<dyn Transport> {
    MemoryBroker::new(MemoryConfig::default())
        .connect()
        .await
        .unwrap()
}

fn message(payload: &'static str) -> Message {
    Message::new("a", payload).unwrap()
}

fn subscription() -> Subscription {
    Subscription::new("a").group("g").lease(LEASE)
}

/// What a backend that breaks the rules answers to a batch.
#[derive(Clone, Copy, Debug)]
enum Answers {
    OneTooFew,
    OneTooMany,
    None,
    /// So much later than they were there.
    Late(Duration),
    /// Only then is the batch taken at all.
    Taken(Duration),
}

#[async_trait]
impl Hooks for Answers {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        if let Self::Taken(after) = self {
            tokio::time::sleep(*after).await;
        }
        let confirm = next.publish(batch, deadline).await;
        let answers = *self;
        Box::pin(async move {
            let mut outcomes = confirm.await;
            match answers {
                Self::OneTooFew => drop(outcomes.pop()),
                Self::OneTooMany => outcomes.extend(outcomes.last().cloned()),
                Self::None => outcomes.clear(),
                Self::Late(by) => tokio::time::sleep(by).await,
                Self::Taken(_) => {}
            }
            outcomes
        })
    }
}

#[tokio::test(start_paused = true)]
async fn each_message_counts_once_whatever_the_backend_answers() {
    let timeout = Duration::from_secs(10);
    let (within, beyond) = (timeout / 2, timeout * 2);
    for (answers, published, failed) in [
        (Answers::OneTooFew, 2, 1),
        (Answers::OneTooMany, 3, 0),
        (Answers::None, 0, 3),
        (Answers::Late(within), 3, 0),
        (Answers::Late(beyond), 0, 3),
        (Answers::Taken(within), 3, 0),
        (Answers::Taken(beyond), 0, 3),
    ] {
        let publish = PublishOptions {
            publish_timeout: timeout,
            ..PublishOptions::default()
        };
        let options = BusOptions::new().publish(publish);
        let layered = Intercept::layer(transport().await, Arc::new(answers));
        let bus = Bus::with_options(layered, options);
        let outcomes = bus.publish_batch(vec![message("x"); 3]).await;
        let receipts = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(receipts, published, "{answers:?}");
        // What comes after the outcome counts for nothing.
        tokio::time::advance(beyond * 2).await;
        tokio::task::yield_now().await;
        let metrics = bus.metrics();
        let counted = (metrics.published, metrics.failed, metrics.in_flight);
        assert_eq!(counted, (published as u64, failed, 0), "{answers:?}");
        assert!(metrics.latency.unwrap() <= timeout, "{metrics:?}");
    }
}

/// What is counted, once the settlements on their way have arrived.
fn consumed(bus: &Bus) -> Consumed {
    bus.metrics().consumed
}

#[tokio::test(start_paused = true)]
async fn what_consumers_do_is_counted() {
    let bus = Bus::new(transport().await);
    assert_eq!(consumed(&bus), Consumed::default());
    assert_eq!(bus.metrics().connections, None);
    let consumer = bus.subscribe(subscription()).await.unwrap();
    for outcome in bus.publish_batch(vec![message("x"); 8]).await {
        outcome.unwrap();
    }
    let mut held = Vec::new();
    while held.len() < 4 {
        held.extend(consumer.recv_batch(4 - held.len()).await.unwrap());
    }
    let now = consumed(&bus);
    assert_eq!((now.delivered, now.in_flight), (4, 4), "{now:?}");
    assert!(now.buffered <= 4, "{now:?}");
    let mut held = held.into_iter();
    held.next().unwrap().ack().await.unwrap();
    let hour = Duration::from_secs(3600);
    held.next().unwrap().nack_after(hour).await.unwrap();
    held.next().unwrap().reject("no").await.unwrap();
    // Dropped: a nack with a backoff, which nobody awaits.
    drop(held);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let now = consumed(&bus);
    let settled = (now.acked, now.nacked, now.rejected, now.dead_lettered);
    assert_eq!(settled, (1, 2, 1, 1), "{now:?}");
    let (held, failed) = (now.in_flight, now.failed + now.lease_lost);
    assert_eq!((now.delivered, held, failed), (4, 0, 0), "{now:?}");

    // Another consumer of another group, on a clone: one sum.
    let other = Subscription::new("a").group("other");
    let other = bus.clone().subscribe(other).await.unwrap();
    let delivery = other.recv().await.unwrap().unwrap();
    assert_eq!(consumed(&bus).delivered, 5);
    delivery.ack().await.unwrap();
    // What a consumer did still counts when it is gone, and nothing of it is in flight.
    other.close(Instant::now() + LEASE).await.unwrap();
    drop(other);
    consumer.close(Instant::now() + LEASE).await.unwrap();
    drop(consumer);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let now = consumed(&bus);
    assert_eq!((now.delivered, now.acked), (5, 2), "{now:?}");
    assert_eq!((now.in_flight, now.buffered), (0, 0), "{now:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_counts_once() {
    let bus = Bus::new(transport().await);
    let consumer = bus.subscribe(subscription().prefetch(1)).await.unwrap();
    bus.publish(message("x")).await.unwrap();
    // Noticed by the pump, and once more by the handler that settles at last.
    let late = consumer.recv().await.unwrap().unwrap();
    tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
    assert_eq!(consumed(&bus).lease_lost, 1);
    late.ack().await.unwrap_err();
    assert_eq!(consumed(&bus).lease_lost, 1);
    // Handed out again; its lease is lost to a close that does not wait.
    let again = consumer.recv().await.unwrap().unwrap();
    let now = consumed(&bus);
    assert_eq!((now.delivered, now.acked), (2, 0), "{now:?}");
    consumer.close(Instant::now()).await.unwrap();
    assert_eq!(consumed(&bus).lease_lost, 2);
    again.ack().await.unwrap_err();
    let now = consumed(&bus);
    assert_eq!((now.lease_lost, now.in_flight), (2, 0), "{now:?}");
}

#[tokio::test(start_paused = true)]
async fn what_has_no_attempts_left_is_a_dead_letter_and_no_reject() {
    let bus = Bus::new(transport().await);
    let poison = subscription().max_attempts(1);
    let consumer = bus.subscribe(poison).await.unwrap();
    bus.publish(message("x")).await.unwrap();
    let delivery = consumer.recv().await.unwrap().unwrap();
    delivery.nack().await.unwrap();
    let deadline = Instant::now() + LEASE;
    while consumed(&bus).dead_lettered == 0 {
        assert!(Instant::now() < deadline, "{:?}", bus.metrics());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let now = consumed(&bus);
    assert_eq!((now.delivered, now.nacked, now.rejected), (1, 1, 0));
}

/// Without a bus, nobody asks; nothing is counted twice with one.
#[tokio::test(start_paused = true)]
async fn a_consumer_counts_in_its_own_meter_only() {
    let transport = transport().await;
    let bus = Bus::new(transport.clone());
    let meter = mas_transport::Meter::new();
    let consumer = Consumer::start_metered(transport, subscription(), &meter);
    let consumer = consumer.await.unwrap();
    bus.publish(message("x")).await.unwrap();
    consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
    assert_eq!((meter.read().delivered, meter.read().acked), (1, 1));
    assert_eq!(consumed(&bus), Consumed::default());
}
