//! The Redis backend on a real server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mas_transport_core::{Group, Namespace, Result, Topic, Transport};
use mas_transport_redis::{Overflow, RedisConfig, RedisNative, RedisTransport};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::fixtures::{Proxy, RedisServer};
use crate::harness::{Ability, Broker, Failure, Harness, Setup, Timing, Verdict};

/// What works on any server.
const SHARED: &[Ability] = &[
    Ability::Inject,
    Ability::DropGroup,
    Ability::Wipe,
    Ability::Trim,
    Ability::Block,
    Ability::Cut,
    Ability::LoseConfirms,
    Ability::Connections,
    Ability::Child,
];
/// What works where servers can be started.
const OWN: &[Ability] = &[
    Ability::Inject,
    Ability::DropGroup,
    Ability::Wipe,
    Ability::Trim,
    Ability::Block,
    Ability::Cut,
    Ability::LoseConfirms,
    Ability::Connections,
    Ability::Child,
    Ability::Fill,
    Ability::Kill,
    Ability::Freeze,
];
/// The cap of the capped profile: more than any trial leaves unsettled but for the one that fills it.
const CAP: u64 = 10_000;
/// The clauses that the capped profile is for.
const CAPPED: &[&str] = &[
    "P1", "P2", "P3", "P4", "D1", "D4", "D5", "O1", "B1", "B2", "B4", "R1",
];
/// What needs a network of the trial's own.
const NETWORK: &[Ability] = &[Ability::Cut, Ability::LoseConfirms, Ability::Connections];
/// How long a call waits for a server that is away. Trials make several in a row, within their limit;
/// longer than any trial freezes a server.
const ANSWER: Duration = Duration::from_secs(3);

/// Redis: the server of `TEST_REDIS_URL`, or one that is started for the run; a server of its own
/// for each trial that kills, freezes or fills it.
#[derive(Debug, Default)]
pub struct RedisHarness {
    cap: Option<u64>,
    shared: Mutex<Option<Arc<RedisServer>>>,
}

impl RedisHarness {
    /// Nothing is started before a trial asks for it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The profile of topics that have a cap of their own, for the clauses that publishing by another
    /// command could break.
    pub fn capped() -> Self {
        Self {
            cap: Some(CAP),
            ..Self::default()
        }
    }

    fn config(&self, url: &str) -> Result<RedisConfig> {
        let config = RedisConfig::from_url(url)?;
        Ok(match self.cap {
            Some(cap) => config.stream_max_len(cap, Overflow::Refuse),
            None => config,
        })
    }

    fn shared_url(&self) -> std::result::Result<String, Failure> {
        if let Some(url) = std::env::var("TEST_REDIS_URL")
            .ok()
            .filter(|u| !u.is_empty())
        {
            return Ok(url);
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let server = match &*shared {
            Some(server) => server,
            None => {
                println!("redis: {}", RedisServer::available()?);
                shared.insert(Arc::new(RedisServer::start(&[])?))
            }
        };
        Ok(format!("redis://{}", server.address()))
    }
}

#[async_trait]
impl Harness for RedisHarness {
    fn name(&self) -> &str {
        match self.cap {
            Some(_) => "redis-capped",
            None => "redis",
        }
    }

    fn clauses(&self) -> Option<&[&str]> {
        self.cap.map(|_| CAPPED)
    }

    fn timing(&self) -> Timing {
        Timing::real(Duration::from_secs(1))
    }

    fn abilities(&self) -> &[Ability] {
        if RedisServer::available().is_ok() {
            OWN
        } else {
            SHARED
        }
    }

    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let (server, url) = if setup.own {
            // The trials of durability need a server that has some. With everysec, the default, it
            // confirms what it has not written while a flush is slow.
            let server = RedisServer::start(&[("appendonly", "yes"), ("appendfsync", "always")])?;
            let url = format!("redis://{}", server.address());
            (Some(server), url)
        } else {
            (None, self.shared_url()?)
        };
        let config = self.config(&url)?.response_timeout(ANSWER);
        let proxy = if setup.needs.iter().any(|n| NETWORK.contains(n)) {
            Some(Proxy::start(config.address()).await?)
        } else {
            None
        };
        let through = match &proxy {
            Some(proxy) => self
                .config(&url.replacen(config.address(), &proxy.address(), 1))?
                .response_timeout(ANSWER),
            None => config.clone(),
        };
        let namespace = setup.namespace.clone();
        Ok(Arc::new(OnRedis {
            direct: config.namespace(namespace.clone()),
            through: through.namespace(namespace.clone()),
            namespace,
            url,
            proxy,
            server: server.map(Arc::new),
        }))
    }

    async fn attach(
        &self,
        address: &str,
        namespace: Namespace,
    ) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let config = self.config(address)?.namespace(namespace.clone());
        Ok(Arc::new(OnRedis {
            direct: config.clone(),
            through: config,
            namespace,
            url: address.to_owned(),
            proxy: None,
            server: None,
        }))
    }

    fn finish(&self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shared.take());
    }
}

#[derive(Debug)]
struct OnRedis {
    /// For the trial's own hands.
    direct: RedisConfig,
    /// For the transports under test.
    through: RedisConfig,
    namespace: Namespace,
    url: String,
    proxy: Option<Proxy>,
    server: Option<Arc<RedisServer>>,
}

/// A connection behind the library's back.
struct Backdoor {
    transport: RedisTransport,
    connection: MultiplexedConnection,
}

impl Backdoor {
    fn stream(&self, topic: &Topic) -> std::result::Result<String, Failure> {
        let native = self.transport.native();
        let native = native.and_then(|n| n.downcast_ref::<RedisNative>());
        Ok(native
            .ok_or("the transport has no RedisNative")?
            .stream(topic))
    }

    async fn close(self) -> Verdict {
        let limit = Instant::now() + Duration::from_secs(5);
        Ok(self.transport.close(limit).await?)
    }
}

impl OnRedis {
    async fn backdoor(&self) -> std::result::Result<Backdoor, Failure> {
        let transport = RedisTransport::connect(self.direct.clone()).await?;
        let native = transport
            .native()
            .and_then(|n| n.downcast_ref::<RedisNative>());
        let connection = native
            .ok_or("the transport has no RedisNative")?
            .connect()
            .await?;
        Ok(Backdoor {
            transport,
            connection,
        })
    }

    fn proxy(&self) -> std::result::Result<&Proxy, Failure> {
        let missing = "the trial does not name the ability among its needs";
        self.proxy.as_ref().ok_or_else(|| missing.into())
    }

    /// Does something to the trial's own server, which takes a moment.
    async fn to_server(
        &self,
        what: impl FnOnce(&RedisServer) -> Verdict + Send + 'static,
    ) -> Verdict {
        let missing = "the trial has no server of its own: own_server()";
        let server = Arc::clone(self.server.as_ref().ok_or(missing)?);
        tokio::task::spawn_blocking(move || what(&server)).await?
    }

    /// Removes every key of the namespace.
    async fn clear(&self) -> Verdict {
        let mut door = self.backdoor().await?;
        let pattern = format!("mas:{{{}:*", self.namespace);
        let mut cursor = 0;
        loop {
            let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(1000)
                .query_async(&mut door.connection)
                .await?;
            if !keys.is_empty() {
                let mut unlink = redis::cmd("UNLINK");
                unlink.arg(keys);
                unlink.exec_async(&mut door.connection).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        door.close().await
    }
}

#[async_trait]
impl Broker for OnRedis {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        Ok(Arc::new(
            RedisTransport::connect(self.through.clone()).await?,
        ))
    }

    async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        let mut door = self.backdoor().await?;
        let mut add = redis::cmd("XADD");
        add.arg(door.stream(topic)?).arg("*");
        for (name, value) in &fields {
            add.arg(name.as_ref()).arg(value.as_ref());
        }
        add.exec_async(&mut door.connection).await?;
        door.close().await
    }

    async fn drop_group(&self, topic: &Topic, group: &Group) -> Verdict {
        let mut door = self.backdoor().await?;
        let stream = door.stream(topic)?;
        let mut destroy = redis::cmd("XGROUP");
        destroy.arg("DESTROY").arg(stream).arg(group.as_str());
        let destroyed: u64 = destroy.query_async(&mut door.connection).await?;
        door.close().await?;
        if destroyed == 1 {
            return Ok(());
        }
        Err(format!("there is no group {group} on {topic}").into())
    }

    async fn wipe(&self, _topic: &Topic) -> Verdict {
        self.clear().await
    }

    async fn trim(&self, topic: &Topic, remove: u64) -> Verdict {
        let mut door = self.backdoor().await?;
        let stream = door.stream(topic)?;
        let mut length = redis::cmd("XLEN");
        let length: u64 = length
            .arg(&stream)
            .query_async(&mut door.connection)
            .await?;
        let mut trim = redis::cmd("XTRIM");
        trim.arg(stream)
            .arg("MAXLEN")
            .arg(length.saturating_sub(remove));
        let removed: u64 = trim.query_async(&mut door.connection).await?;
        door.close().await?;
        if removed == remove {
            return Ok(());
        }
        Err(format!("{removed} of {remove} entries could be removed").into())
    }

    async fn fill(&self, full: bool) -> Verdict {
        let mut door = self.backdoor().await?;
        // The default policy is noeviction. One byte is less than an empty server uses.
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(u8::from(full));
        set.exec_async(&mut door.connection).await?;
        door.close().await
    }

    async fn block(&self, topic: &Topic, blocked: bool) -> Verdict {
        let mut door = self.backdoor().await?;
        // A value of another type in its place.
        let stream = door.stream(topic)?;
        let kept = format!("{stream}:kept-by-a-trial");
        let connection = &mut door.connection;
        let exists: bool = redis::cmd("EXISTS")
            .arg(if blocked { &stream } else { &kept })
            .query_async(connection)
            .await?;
        if !blocked {
            redis::cmd("DEL")
                .arg(&stream)
                .exec_async(connection)
                .await?;
        }
        if exists {
            let (from, to) = if blocked {
                (&stream, &kept)
            } else {
                (&kept, &stream)
            };
            redis::cmd("RENAME")
                .arg(from)
                .arg(to)
                .exec_async(connection)
                .await?;
        }
        if blocked {
            redis::cmd("SET")
                .arg(&stream)
                .arg("blocked")
                .exec_async(connection)
                .await?;
        }
        door.close().await
    }

    async fn kill(&self) -> Verdict {
        self.to_server(RedisServer::kill).await
    }

    async fn start(&self) -> Verdict {
        self.to_server(RedisServer::restart).await
    }

    async fn freeze(&self, frozen: bool) -> Verdict {
        self.to_server(move |s| s.freeze(frozen)).await
    }

    async fn cut(&self) -> Verdict {
        self.proxy()?.cut();
        Ok(())
    }

    async fn lose_confirms(&self, _count: u64) -> Verdict {
        // One answer to a pipeline carries the confirmations of many messages.
        self.proxy()?.swallow(b"");
        Ok(())
    }

    async fn connections(&self) -> std::result::Result<usize, Failure> {
        Ok(self.proxy()?.open())
    }

    fn address(&self) -> Option<String> {
        Some(self.url.clone())
    }

    async fn end(&self) {
        // A server of the trial's own goes as a whole; one that is shared is left as it was found.
        if self.server.is_none()
            && let Err(e) = self.clear().await
        {
            eprintln!("namespace {} could not be cleared: {e}", self.namespace);
        }
    }
}
