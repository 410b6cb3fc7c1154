//! The brokers of a run.

use std::any::Any;
use std::env;
use std::sync::Arc;

use conformance_tests::fixtures::{NatsOptions, NatsServer, RedisServer};
use mas_transport::Bus;
use mas_transport::nats::{NatsConfig, NatsTransport};
use mas_transport::redis::{RedisConfig, RedisTransport};

use crate::raw::{Raw, RawNats, RawRedis};
use crate::{Broker, Result};

/// The least ratios by the raw client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Tasks that each await their publish.
    pub(crate) tasks: f64,
    /// Batches and windows.
    pub(crate) pipelined: f64,
    /// Reading and acknowledging, each ack confirmed.
    pub(crate) consume: f64,
}

/// A broker, ours and the raw client on it.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) bus: Bus,
    pub(crate) raw: Box<dyn Raw>,
    pub(crate) asked: Asked,
    /// Ends with this, when it was started here.
    _started: Option<Box<dyn Any>>,
}

impl Target {
    /// The server that the environment names, or else one started for the run.
    pub(crate) async fn of(broker: Broker) -> Result<Self> {
        match broker {
            Broker::Redis => Self::redis().await,
            Broker::Nats => Self::nats().await,
        }
    }

    async fn redis() -> Result<Self> {
        let address = variable("REDIS_ADDR").map(|address| format!("redis://{address}"));
        let (url, started) = match variable("TEST_REDIS_URL").or(address) {
            Some(url) => (url, None),
            None => {
                let server = RedisServer::start(&[])?;
                (format!("redis://{}", server.address()), Some(server))
            }
        };
        let transport = RedisTransport::connect(RedisConfig::from_url(&url)?).await?;
        Ok(Self {
            name: "redis",
            bus: Bus::new(Arc::new(transport)),
            raw: Box::new(RawRedis::connect(&url).await?),
            asked: Asked {
                tasks: 0.6,
                pipelined: 0.9,
                consume: 1.0,
            },
            _started: started.map(|server| Box::new(server) as Box<dyn Any>),
        })
    }

    async fn nats() -> Result<Self> {
        let (url, started) = match variable("TEST_NATS_URL").or_else(|| variable("NATS_URL")) {
            Some(url) => (url, None),
            None => {
                let server = NatsServer::start(&NatsOptions::new())?;
                (server.url(), Some(server))
            }
        };
        let transport = NatsTransport::connect(NatsConfig::from_url(&url)?).await?;
        Ok(Self {
            name: "nats",
            bus: Bus::new(Arc::new(transport)),
            raw: Box::new(RawNats::connect(&url).await?),
            asked: Asked {
                tasks: 0.6,
                pipelined: 0.95,
                consume: 0.9,
            },
            _started: started.map(|server| Box::new(server) as Box<dyn Any>),
        })
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
