//! The brokers of a run.

use std::any::Any;
use std::env;
use std::sync::Arc;

#[cfg(feature = "kafka")]
use conformance_tests::fixtures::{KafkaOptions, KafkaServer};
use conformance_tests::fixtures::{NatsOptions, NatsServer, RedisServer};
use mas_transport::Bus;
#[cfg(feature = "kafka")]
use mas_transport::kafka::{KafkaConfig, KafkaTransport};
use mas_transport::nats::{NatsConfig, NatsTransport};
use mas_transport::redis::{RedisConfig, RedisTransport};

#[cfg(feature = "kafka")]
use crate::raw::RawKafka;
use crate::raw::{Raw, RawNats, RawRedis};
use crate::{Broker, Result};

/// The least ratios by the raw client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Tasks that each await their publish; `None` where nothing is asked.
    pub(crate) tasks: Option<f64>,
    /// Batches and windows.
    pub(crate) pipelined: f64,
    /// Reading and acknowledging, each ack confirmed.
    pub(crate) consume: f64,
}

/// How reading is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    /// From the wish to take part on.
    All,
    /// From the first delivery on, because joining a group takes longer than the rest; and so many times
    /// as many messages, because the client has read ahead by then.
    #[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "Kafka's"))]
    Joined(usize),
}

/// A broker, ours and the raw client on it.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) bus: Bus,
    pub(crate) raw: Box<dyn Raw>,
    pub(crate) asked: Asked,
    pub(crate) reading: Reading,
    /// Ends with this, when it was started here.
    _started: Option<Box<dyn Any>>,
}

impl Target {
    /// The server that the environment names, or else one started for the run.
    pub(crate) async fn of(broker: Broker) -> Result<Self> {
        match broker {
            Broker::Redis => Self::redis().await,
            Broker::Nats => Self::nats().await,
            #[cfg(feature = "kafka")]
            Broker::Kafka => Self::kafka().await,
            #[cfg(not(feature = "kafka"))]
            Broker::Kafka => Err("this build lacks it: --features kafka".into()),
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
                tasks: Some(0.6),
                pipelined: 0.9,
                consume: 1.0,
            },
            reading: Reading::All,
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
                tasks: Some(0.6),
                pipelined: 0.95,
                consume: 0.9,
            },
            reading: Reading::All,
            _started: started.map(|server| Box::new(server) as Box<dyn Any>),
        })
    }

    #[cfg(feature = "kafka")]
    async fn kafka() -> Result<Self> {
        let (brokers, started) = match KafkaServer::given().or_else(|| variable("KAFKA_BROKERS")) {
            Some(brokers) => (brokers, None),
            None => {
                let server = KafkaServer::start(&KafkaOptions::new())?;
                (server.address(), Some(server))
            }
        };
        let transport = KafkaTransport::connect(KafkaConfig::new(&brokers)).await?;
        Ok(Self {
            name: "kafka",
            bus: Bus::new(Arc::new(transport)),
            raw: Box::new(RawKafka::connect(&brokers)?),
            asked: Asked {
                tasks: None,
                pipelined: 0.95,
                consume: 0.9,
            },
            reading: Reading::Joined(5),
            _started: started.map(|server| Box::new(server) as Box<dyn Any>),
        })
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
