//! redis-rs on one multiplexed connection.

use std::time::Duration;

use async_trait::async_trait;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};

use super::Raw;
use crate::meter::{Meter, Sample};
use crate::ours::Way;
use crate::{PAYLOAD, Result};

/// Commands in one pipeline.
const PIPELINE: usize = 100;
/// Entries asked for at once.
const COUNT: usize = 500;
const KEY: &str = "benches-raw";
const GROUP: &str = "bench";

/// redis-rs on one multiplexed connection.
pub(crate) struct RawRedis {
    connection: MultiplexedConnection,
    payload: Vec<u8>,
}

impl RawRedis {
    /// Connects.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = redis::Client::open(url)?;
        let config =
            redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Self {
            connection,
            payload: vec![b'x'; PAYLOAD],
        })
    }

    async fn fill(&mut self, messages: usize) -> Result<()> {
        let mut left = messages;
        while left > 0 {
            let mut pipeline = redis::Pipeline::with_capacity(PIPELINE);
            for _ in 0..left.min(PIPELINE) {
                pipeline.add_command(entry(&self.payload)).ignore();
            }
            let () = pipeline.query_async(&mut self.connection).await?;
            left = left.saturating_sub(PIPELINE);
        }
        Ok(())
    }

    async fn clear(&mut self) -> Result<()> {
        Ok(self.connection.del(KEY).await?)
    }
}

#[async_trait]
impl Raw for RawRedis {
    /// Pipeline by pipeline, whatever ours does.
    async fn publish(&mut self, _way: Way, messages: usize) -> Result<Sample> {
        let meter = Meter::start();
        self.fill(messages).await?;
        let sample = meter.stop(messages);
        self.clear().await?;
        Ok(sample)
    }

    async fn consume(&mut self, messages: usize) -> Result<Sample> {
        self.fill(messages).await?;
        let () = self.connection.xgroup_create(KEY, GROUP, "0").await?;
        let options = StreamReadOptions::default()
            .group(GROUP, "member")
            .count(COUNT);
        let meter = Meter::start();
        let mut taken = 0;
        while taken < messages {
            let reply: StreamReadReply = self
                .connection
                .xread_options(&[KEY], &[">"], &options)
                .await?;
            let ids: Vec<_> = reply
                .keys
                .iter()
                .flat_map(|key| &key.ids)
                .map(|entry| entry.id.as_str())
                .collect();
            if ids.is_empty() {
                return Err(format!("the stream ended after {taken} entries").into());
            }
            let acked: usize = self.connection.xack(KEY, GROUP, &ids).await?;
            taken += acked;
        }
        let sample = meter.stop(messages);
        self.clear().await?;
        Ok(sample)
    }
}

/// One message, with an id of its own as CloudEvents asks for.
fn entry(payload: &[u8]) -> redis::Cmd {
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    let mut command = redis::Cmd::with_capacity(13, 512);
    command
        .arg("XADD")
        .arg(KEY)
        .arg("*")
        .arg("ce_specversion")
        .arg("1.0")
        .arg("ce_id")
        .arg(&*id)
        .arg("ce_source")
        .arg("mas-transport")
        .arg("ce_type")
        .arg("message")
        .arg("data")
        .arg(payload);
    command
}

#[cfg(test)]
mod tests {
    use mas_transport::{Message, codec};

    use super::*;

    /// The comparison is fair only while both write the same.
    #[test]
    fn the_yardstick_writes_the_fields_that_we_write() {
        let payload = vec![b'x'; PAYLOAD];
        let message = Message::new("a", payload.clone()).unwrap();
        let mut ours = Vec::new();
        codec::fields::encode(&message, &mut |name, value| {
            ours.push((name.to_vec(), value.len()));
        });
        let command = entry(&payload);
        let arguments: Vec<_> = command
            .args_iter()
            .skip(3)
            .map(|argument| match argument {
                redis::Arg::Simple(bytes) => bytes.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        let theirs: Vec<_> = arguments
            .chunks(2)
            .map(|field| (field[0].clone(), field[1].len()))
            .collect();
        assert_eq!(theirs, ours);
    }
}
