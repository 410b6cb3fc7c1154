//! The bus, in memory.
#![cfg(feature = "memory")]

use std::sync::Arc;
use std::time::Duration;

use mas_transport::memory::{MemoryBroker, MemoryConfig};
use mas_transport::{Bus, BusOptions, ErrorKind, Message, Subscription, Transport};

async fn transport() -> Arc<dyn Transport> {
    MemoryBroker::new(MemoryConfig::default())
        .connect()
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_received_and_settled() {
    let bus = Bus::new(transport().await);
    let consumer = bus
        .subscribe(Subscription::new("a").group("g"))
        .await
        .unwrap();
    bus.publish(Message::json("a", &1).unwrap()).await.unwrap();
    let batch = vec![
        Message::json("a", &2).unwrap(),
        Message::json("a", &3).unwrap().header("UPPER", "refused"),
        Message::json("a", &4).unwrap(),
    ];
    let outcomes = bus.publish_batch(batch).await;
    assert_eq!(
        outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, true]
    );
    let pending = bus.enqueue(Message::json("a", &5).unwrap()).await.unwrap();
    pending.await.unwrap();
    for expected in [1, 2, 4, 5] {
        let delivery = consumer.recv().await.unwrap().unwrap();
        assert_eq!(delivery.json::<i32>().unwrap(), expected);
        delivery.ack().await.unwrap();
    }
    let (topic, group) = (
        "a".try_into().unwrap(),
        mas_transport::Group::new("g").unwrap(),
    );
    let lag = bus.admin().lag(&topic, &group).await.unwrap();
    assert_eq!((lag.waiting, lag.pending), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_published_and_what_failed_is_counted() {
    let options = BusOptions::new().group("g");
    let bus = Bus::with_options(transport().await, options);
    let clone = bus.clone();
    let message = || Message::new("a", "x").unwrap();
    bus.publish(message()).await.unwrap();
    clone.publish(message()).await.unwrap();
    let batch = vec![message(), message().header("UPPER", "refused"), message()];
    assert!(bus.publish_batch(batch).await[1].is_err());
    let metrics = bus.metrics();
    assert_eq!((metrics.published, metrics.failed), (4, 1));
    assert_eq!(metrics.in_flight, 0);
    assert!(
        metrics.latency.is_some() && metrics.per_second > 0.0,
        "{metrics:?}"
    );
    tokio::time::advance(Duration::from_secs(60)).await;
    let later = bus.metrics();
    assert!(
        later.uptime >= Duration::from_secs(60) && later.per_second == 0.0,
        "{later:?}"
    );
    bus.close(Duration::from_secs(1)).await.unwrap();
    bus.publish(message()).await.unwrap_err();
    assert_eq!(clone.metrics().failed, 2);
}

#[tokio::test(start_paused = true)]
async fn the_source_of_the_bus_is_that_of_messages_without_one() {
    let options = BusOptions::new().source("/agents/planner");
    let bus = Bus::with_options(transport().await, options);
    // A layer keeps the options.
    let bus = bus.layer(|inner| inner);
    let consumer = bus
        .subscribe(Subscription::new("a").group("g"))
        .await
        .unwrap();
    let own = Message::new("a", "").unwrap().from_source("/own");
    for outcome in bus
        .publish_batch(vec![Message::new("a", "").unwrap(), own])
        .await
    {
        outcome.unwrap();
    }
    for expected in ["/agents/planner", "/own"] {
        let delivery = consumer.recv().await.unwrap().unwrap();
        assert_eq!(delivery.source(), expected);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn closing_returns_what_was_not_handed_out_and_ends_every_clone() {
    let broker = MemoryBroker::new(MemoryConfig::default());
    let first = Bus::new(broker.connect().await.unwrap());
    let clone = first.clone();
    let subscription = Subscription::new("a").group("g");
    let consumer = first.subscribe(subscription.clone()).await.unwrap();
    for n in 0..3 {
        first
            .publish(Message::json("a", &n).unwrap())
            .await
            .unwrap();
    }
    consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
    first.close(Duration::from_secs(1)).await.unwrap();
    first.close(Duration::from_secs(1)).await.unwrap();

    let refused = clone.publish(Message::new("a", "").unwrap()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Closed);
    let refused = clone.subscribe(subscription.clone()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Closed);
    assert!(consumer.recv().await.unwrap().is_none());

    let second = Bus::new(broker.connect().await.unwrap());
    let consumer = second.subscribe(subscription).await.unwrap();
    for expected in [1, 2] {
        let delivery = consumer.recv().await.unwrap().unwrap();
        assert_eq!(delivery.json::<i32>().unwrap(), expected);
        assert_eq!(delivery.attempt(), 1);
        delivery.ack().await.unwrap();
    }
}
