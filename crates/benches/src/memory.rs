//! The workloads in memory: absolute figures, for there is no raw client.

use std::time::Duration;

use bytes::Bytes;
use mas_transport::memory::{MemoryBroker, MemoryConfig};
use mas_transport::{Bus, Event, Message, Outcome, Subscription, Topic, Transport, Want};

use crate::meter::{Meter, Sample};
use crate::report::{Figure, Report};
use crate::{PAYLOAD, Result, Size};

/// Messages in one batch.
const BATCH: usize = 256;
const GROUP: &str = "bench";

/// The backend by itself: messages made beforehand.
const BARE: &str = "backend: publish, fetch, ack by 256";
/// Everything that an application goes through.
const BUS: &str = "bus: make, publish, receive, ack by 256";

/// Runs every workload whose name contains `filter`.
pub(crate) async fn run(size: Size, filter: &str, report: &mut Report) -> Result<()> {
    if BARE.contains(filter) {
        let mut figure = Figure::new("memory", BARE, None);
        for _ in 0..size.rounds {
            figure.round(bare(size.messages).await?, None);
        }
        report.add(figure);
    }
    if BUS.contains(filter) {
        let mut figure = Figure::new("memory", BUS, None);
        for _ in 0..size.rounds {
            figure.round(bus(size.messages).await?, None);
        }
        report.add(figure);
    }
    Ok(())
}

async fn bare(messages: usize) -> Result<Sample> {
    let transport = MemoryBroker::new(MemoryConfig::default()).connect().await?;
    let subscription = Subscription::new("bench").group(GROUP);
    let mut source = transport.subscribe(&subscription).await?;
    let message = Message::new("bench", vec![b'x'; PAYLOAD])?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
    let want = Want::new(BATCH, usize::MAX);
    let mut events = Vec::with_capacity(BATCH);
    let meter = Meter::start();
    let mut done = 0;
    while done < messages {
        for outcome in transport
            .publish(vec![message.clone(); BATCH], deadline)
            .await
            .await
        {
            outcome?;
        }
        let mut settled = 0;
        while settled < BATCH {
            source.fetch.fetch(want, &mut events).await?;
            let acks = events
                .drain(..)
                .filter_map(|event| match event {
                    Event::Delivery(delivery) => Some((delivery.token, Outcome::Ack)),
                    _ => None,
                })
                .collect();
            for outcome in source.settle.settle(acks).await {
                outcome?;
                settled += 1;
            }
        }
        done += settled;
    }
    let sample = meter.stop(done);
    transport.close(deadline).await?;
    Ok(sample)
}

async fn bus(messages: usize) -> Result<Sample> {
    let transport = MemoryBroker::new(MemoryConfig::default()).connect().await?;
    let bus = Bus::new(transport);
    let topic = Topic::new("bench")?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD]);
    let consumer = bus
        .subscribe(Subscription::new("bench").group(GROUP))
        .await?;
    let meter = Meter::start();
    let publisher = {
        let bus = bus.clone();
        tokio::spawn(async move {
            let mut left = messages;
            while left > 0 {
                let batch = (0..left.min(BATCH))
                    .map(|_| Message::new(topic.clone(), payload.clone()))
                    .collect::<Result<Vec<_>, _>>()?;
                left -= batch.len();
                for outcome in bus.publish_batch(batch).await {
                    outcome?;
                }
            }
            Ok::<_, mas_transport::Error>(())
        })
    };
    let mut done = 0;
    let mut last = Vec::new();
    while done < messages {
        let batch = consumer.recv_batch(BATCH).await?;
        done += batch.len();
        last = batch.into_iter().map(|delivery| delivery.ack()).collect();
    }
    for settlement in last {
        settlement.await?;
    }
    let sample = meter.stop(done);
    publisher.await??;
    bus.close(Duration::from_secs(5)).await?;
    Ok(sample)
}
