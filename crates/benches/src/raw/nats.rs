//! async-nats on one connection.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, Context, stream};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use super::Raw;
use crate::meter::{Meter, Sample};
use crate::ours::Way;
use crate::{PAYLOAD, Result};

/// Publishes that may wait for their confirmation where ours has no such number.
const WINDOW: usize = 1_000;
/// Messages asked for at once.
const BATCH: usize = 1_000;
const STREAM: &str = "benches-raw";
const GROUP: &str = "bench";

/// async-nats as its documentation shows it.
pub(crate) struct RawNats {
    jetstream: Context,
    payload: Bytes,
}

impl RawNats {
    /// Connects.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        Ok(Self {
            jetstream: jetstream::new(client),
            payload: Bytes::from(vec![b'x'; PAYLOAD]),
        })
    }

    async fn stream(&self) -> Result<stream::Stream> {
        let config = stream::Config {
            name: STREAM.to_owned(),
            ..stream::Config::default()
        };
        Ok(self.jetstream.create_stream(config).await?)
    }

    async fn clear(&self) -> Result<()> {
        self.jetstream.delete_stream(STREAM).await?;
        Ok(())
    }

    async fn send(&self) -> Result<PublishAckFuture> {
        let publish = self
            .jetstream
            .publish_with_headers(STREAM, headers(), self.payload.clone());
        Ok(publish.await?)
    }

    /// At most so many that are not confirmed.
    async fn window(&self, window: usize, messages: usize) -> Result<()> {
        let mut open = VecDeque::with_capacity(window);
        for _ in 0..messages {
            if open.len() == window
                && let Some(oldest) = open.pop_front()
            {
                confirmed(oldest).await?;
            }
            open.push_back(self.send().await?);
        }
        for sent in open {
            confirmed(sent).await?;
        }
        Ok(())
    }

    /// So many, then all of their confirmations.
    async fn batches(&self, size: usize, messages: usize) -> Result<()> {
        let mut left = messages;
        while left > 0 {
            let batch = left.min(size);
            self.window(batch, batch).await?;
            left -= batch;
        }
        Ok(())
    }
}

async fn confirmed(sent: PublishAckFuture) -> Result<()> {
    sent.await?;
    Ok(())
}

#[async_trait]
impl Raw for RawNats {
    /// As ours does, but for the tasks: one task keeps a window full.
    async fn publish(&mut self, way: Way, messages: usize) -> Result<Sample> {
        self.stream().await?;
        let meter = Meter::start();
        match way {
            Way::Tasks(_) => self.window(WINDOW, messages).await?,
            Way::Window(window) => self.window(window, messages).await?,
            Way::Batches(size) => self.batches(size, messages).await?,
        }
        let sample = meter.stop(messages);
        self.clear().await?;
        Ok(sample)
    }

    /// Nothing confirms its acks: their last one is a request, so that they are all there at the end.
    async fn consume(&mut self, messages: usize) -> Result<Sample> {
        let stream = self.stream().await?;
        self.window(WINDOW, messages).await?;
        let config = pull::Config {
            durable_name: Some(GROUP.to_owned()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let meter = Meter::start();
        let mut arriving = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .messages()
            .await?;
        for left in (0..messages).rev() {
            let message = arriving.next().await.ok_or("the consumer ended")??;
            match left {
                0 => message.double_ack().await?,
                _ => message.ack().await?,
            }
        }
        let sample = meter.stop(messages);
        self.clear().await?;
        Ok(sample)
    }
}

/// Those of one message, with an id of its own as CloudEvents asks for.
fn headers() -> HeaderMap {
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    let mut headers = HeaderMap::new();
    headers.insert("ce-specversion", "1.0");
    headers.insert("ce-id", &*id);
    headers.insert("ce-source", "mas-transport");
    headers.insert("ce-type", "message");
    headers
}

#[cfg(test)]
mod tests {
    use mas_transport::{Message, codec};

    use super::*;

    /// The comparison is fair only while both write the same.
    #[test]
    fn the_yardstick_writes_the_headers_that_we_write() {
        let message = Message::new("a", vec![b'x'; PAYLOAD]).unwrap();
        let mut ours = Vec::new();
        codec::fields::encode(&message, &mut |name, value| {
            let name = String::from_utf8_lossy(name).replace("ce_", "ce-");
            if name != "data" {
                ours.push((name, value.len()));
            }
        });
        let mut theirs: Vec<_> = headers()
            .iter()
            .map(|(name, values)| (name.to_string(), values[0].as_str().len()))
            .collect();
        ours.sort();
        theirs.sort();
        assert_eq!(theirs, ours);
    }
}
