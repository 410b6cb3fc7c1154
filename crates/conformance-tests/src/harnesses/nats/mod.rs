//! The NATS backend on a real server.

mod entry;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::ServerAddr;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use mas_transport_core::{Group, Namespace, Result, Topic, TopicSpec, Transport};
use mas_transport_nats::{NatsConfig, NatsNative, NatsTransport};
use tokio::time::Instant;

use self::entry::Entry;
use self::wire::Wire;
use crate::fixtures::{NatsOptions, NatsServer, Proxy};
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
/// What needs a network of the trial's own.
const NETWORK: &[Ability] = &[Ability::Cut, Ability::LoseConfirms, Ability::Connections];
/// How the answer to a stored message begins, and no other answer.
const STORED: &[u8] = b"{\"stream\":";
/// The storage of a server that a trial fills up.
const SMALL: &str = "max_file_store: 16MB";
/// What fills it, and nothing else.
const FILLER: &str = "filler-of-a-trial";
/// How long a call waits for a server that is away. Trials make several in a row, within their limit;
/// longer than any trial freezes a server.
const ANSWER: Duration = Duration::from_secs(3);

/// NATS: the server of `TEST_NATS_URL`, or one that is started for the run; a server of its own for
/// each trial that kills, freezes or fills it.
#[derive(Debug, Default)]
pub struct NatsHarness {
    shared: Mutex<Option<Arc<NatsServer>>>,
}

impl NatsHarness {
    /// Nothing is started before a trial asks for it.
    pub fn new() -> Self {
        Self::default()
    }

    fn shared_url(&self) -> std::result::Result<String, Failure> {
        let named = std::env::var("TEST_NATS_URL").ok();
        if let Some(url) = named.filter(|url| !url.is_empty()) {
            return Ok(url);
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let server = match &*shared {
            Some(server) => server,
            None => {
                println!("nats: {}", NatsServer::available()?);
                shared.insert(Arc::new(NatsServer::start(&NatsOptions::new())?))
            }
        };
        Ok(server.url())
    }
}

#[async_trait]
impl Harness for NatsHarness {
    fn name(&self) -> &str {
        "nats"
    }

    fn timing(&self) -> Timing {
        Timing::real(Duration::from_secs(1))
    }

    fn abilities(&self) -> &[Ability] {
        if NatsServer::available().is_ok() {
            OWN
        } else {
            SHARED
        }
    }

    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let (server, url) = if setup.own {
            let mut options = NatsOptions::new();
            if setup.needs.contains(&Ability::Fill) {
                options = options.jetstream(SMALL);
            }
            let server = NatsServer::start(&options)?;
            let url = server.url();
            (Some(Arc::new(server)), url)
        } else {
            (None, self.shared_url()?)
        };
        let address: ServerAddr = url.parse()?;
        let address = format!("{}:{}", address.host(), address.port());
        let proxy = if setup.needs.iter().any(|n| NETWORK.contains(n)) {
            Some(Proxy::start(&address).await?)
        } else {
            None
        };
        let through = match &proxy {
            Some(proxy) => url.replacen(&address, &proxy.address(), 1),
            None => url.clone(),
        };
        OnNats::shared(&setup.namespace, url, &through, proxy, server)
    }

    async fn attach(
        &self,
        address: &str,
        namespace: Namespace,
    ) -> std::result::Result<Arc<dyn Broker>, Failure> {
        OnNats::shared(&namespace, address.to_owned(), address, None, None)
    }

    fn known_panic(&self, panic: &str) -> Option<&'static str> {
        // In the task that reads the connection, over bytes that any publisher can send. The backend
        // replaces the client and asks for the entry in another form.
        let theirs = panic.contains("async-nats-") && panic.contains("invalid header value");
        theirs.then_some(
            "async-nats panics over a lone carriage return in a header: github.com/nats-io/nats.rs/pull/1612",
        )
    }

    fn finish(&self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shared.take());
    }
}

#[derive(Debug)]
struct OnNats {
    /// For the trial's own hands.
    direct: NatsConfig,
    /// For the transports under test.
    through: NatsConfig,
    namespace: Namespace,
    url: String,
    proxy: Option<Proxy>,
    server: Option<Arc<NatsServer>>,
    /// How the streams of blocked topics were configured.
    blocked: Mutex<HashMap<Topic, Config>>,
}

/// A connection behind the library's back.
struct Backdoor {
    transport: NatsTransport,
    jetstream: Context,
}

impl Backdoor {
    fn native(&self) -> std::result::Result<&NatsNative, Failure> {
        let native = self.transport.native();
        let native = native.and_then(|n| n.downcast_ref::<NatsNative>());
        native.ok_or_else(|| "the transport has no NatsNative".into())
    }

    async fn stream(&self, topic: &Topic) -> std::result::Result<Stream, Failure> {
        let name = self.native()?.stream(topic);
        Ok(self.jetstream.get_stream(name).await?)
    }

    async fn close(self) -> Verdict {
        let limit = Instant::now() + Duration::from_secs(5);
        Ok(self.transport.close(limit).await?)
    }
}

impl OnNats {
    fn shared(
        namespace: &Namespace,
        url: String,
        through: &str,
        proxy: Option<Proxy>,
        server: Option<Arc<NatsServer>>,
    ) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let config = |url: &str| -> Result<_> {
            Ok(NatsConfig::from_url(url)?
                .namespace(namespace.clone())
                .response_timeout(ANSWER))
        };
        Ok(Arc::new(Self {
            direct: config(&url)?,
            through: config(through)?,
            namespace: namespace.clone(),
            url,
            proxy,
            server,
            blocked: Mutex::default(),
        }))
    }

    async fn backdoor(&self) -> std::result::Result<Backdoor, Failure> {
        let transport = NatsTransport::connect(self.direct.clone()).await?;
        let native = transport.native();
        let native = native.and_then(|n| n.downcast_ref::<NatsNative>());
        let jetstream = native.ok_or("the transport has no NatsNative")?.jetstream();
        Ok(Backdoor {
            transport,
            jetstream,
        })
    }

    fn proxy(&self) -> std::result::Result<&Proxy, Failure> {
        let missing = "the trial does not name the ability among its needs";
        self.proxy.as_ref().ok_or_else(|| missing.into())
    }

    /// Does something to the trial's own server, which takes a moment.
    async fn to_server(
        &self,
        what: impl FnOnce(&NatsServer) -> Verdict + Send + 'static,
    ) -> Verdict {
        let missing = "the trial has no server of its own: own_server()";
        let server = Arc::clone(self.server.as_ref().ok_or(missing)?);
        tokio::task::spawn_blocking(move || what(&server)).await?
    }

    /// Removes every stream of the namespace.
    async fn clear(&self) -> Verdict {
        let door = self.backdoor().await?;
        // Any topic's: the part in front of it is the namespace's.
        let topic = Topic::new("t")?;
        let name = door.native()?.stream(&topic);
        let prefix = name.strip_suffix(topic.as_str()).unwrap_or(&name);
        let names: Vec<String> = door.jetstream.stream_names().try_collect().await?;
        for name in names.iter().filter(|name| name.starts_with(prefix)) {
            door.jetstream.delete_stream(name).await?;
        }
        door.close().await
    }
}

#[async_trait]
impl Broker for OnNats {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        Ok(Arc::new(
            NatsTransport::connect(self.through.clone()).await?,
        ))
    }

    async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        let door = self.backdoor().await?;
        // Without a stream nobody would keep it.
        let spec = TopicSpec::new(topic.clone());
        door.transport.admin().declare(&spec).await?;
        let subject = door.native()?.subject(topic);
        let entry = Entry::new(fields);
        let mut wire = Wire::connect(&self.url.parse()?).await?;
        wire.publish(&subject, &entry.block, &entry.payload).await?;
        door.close().await
    }

    fn carried(&self, fields: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        entry::carried(fields)
    }

    fn is_read(&self, topic: &Topic, fields: &[(Bytes, Bytes)]) -> bool {
        entry::is_read(topic, fields.to_vec())
    }

    fn quarantined(&self, fields: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        Entry::new(fields).quarantined()
    }

    fn breaks_clients(&self, fields: &[(Bytes, Bytes)]) -> bool {
        !Entry::new(fields.to_vec()).is_readable()
    }

    fn garbage(&self) -> Vec<(&'static str, Vec<(Bytes, Bytes)>)> {
        entry::unreadable()
    }

    fn largest_field(&self) -> usize {
        // Servers take headers of 64 KiB, in which a byte can become three.
        16 * 1024
    }

    async fn drop_group(&self, topic: &Topic, group: &Group) -> Verdict {
        let door = self.backdoor().await?;
        let stream = door.stream(topic).await?;
        let consumer = door.native()?.consumer(group);
        let before = stream.consumer_info(&consumer).await?.created;
        if let Err(error) = stream.delete_consumer(&consumer).await {
            // Servers before 2.10 take it out of their list before they remove its directory, and fail where a member
            // has made it again in there meanwhile. Then it is another one.
            match stream.consumer_info(&consumer).await {
                Ok(info) if info.created != before => {}
                _ => return Err(error.into()),
            }
        }
        door.close().await
    }

    async fn wipe(&self, _topic: &Topic) -> Verdict {
        self.clear().await
    }

    async fn trim(&self, topic: &Topic, remove: u64) -> Verdict {
        let door = self.backdoor().await?;
        let mut stream = door.stream(topic).await?;
        let length = stream.info().await?.state.messages;
        let purged = stream.purge().keep(length.saturating_sub(remove)).await?;
        door.close().await?;
        if purged.purged == remove {
            return Ok(());
        }
        Err(format!("{} of {remove} entries could be removed", purged.purged).into())
    }

    async fn fill(&self, full: bool) -> Verdict {
        let door = self.backdoor().await?;
        if full {
            let config = Config {
                name: FILLER.to_owned(),
                ..Config::default()
            };
            door.jetstream.create_stream(config).await?;
            // Smaller and smaller, until nothing at all goes in.
            for size in [256 * 1024, 4096, 1] {
                let payload = Bytes::from(vec![0; size]);
                while let Ok(stored) = door.jetstream.publish(FILLER, payload.clone()).await
                    && stored.await.is_ok()
                {}
            }
        } else {
            door.jetstream.delete_stream(FILLER).await?;
        }
        door.close().await
    }

    async fn block(&self, topic: &Topic, blocked: bool) -> Verdict {
        let door = self.backdoor().await?;
        if blocked {
            let spec = TopicSpec::new(topic.clone());
            door.transport.admin().declare(&spec).await?;
            let config = door.stream(topic).await?.cached_info().config.clone();
            let mut no_room = config.clone();
            no_room.max_bytes = 1;
            no_room.discard = DiscardPolicy::New;
            door.jetstream.update_stream(no_room).await?;
            let mut kept = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(topic.clone(), config);
        } else {
            let kept = {
                let mut kept = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
                kept.remove(topic).ok_or("the topic is not blocked")?
            };
            door.jetstream.update_stream(kept).await?;
        }
        door.close().await
    }

    async fn kill(&self) -> Verdict {
        self.to_server(NatsServer::kill).await
    }

    async fn start(&self) -> Verdict {
        self.to_server(NatsServer::restart).await
    }

    async fn freeze(&self, frozen: bool) -> Verdict {
        self.to_server(move |s| s.freeze(frozen)).await
    }

    async fn cut(&self) -> Verdict {
        self.proxy()?.cut();
        Ok(())
    }

    async fn lose_confirms(&self, _count: u64) -> Verdict {
        // Whatever else is under way is lost with the connection.
        self.proxy()?.swallow(STORED);
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
