//! The Kafka backend on a real broker.

mod entry;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mas_transport_core::{Namespace, Result, Topic, Transport};
use mas_transport_kafka::{KafkaConfig, KafkaTransport};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::{Instant, sleep};

use self::entry::Entry;
use self::wire::Wire;
use crate::fixtures::{KafkaOptions, KafkaServer, Proxy, free_ports};
use crate::harness::{Ability, Broker, Failure, Harness, Setup, Timing, Verdict};

/// What works on any broker.
const SHARED: &[Ability] = &[
    Ability::Inject,
    Ability::Wipe,
    Ability::Trim,
    Ability::Block,
    Ability::Child,
];
/// What works where brokers can be started.
const OWN: &[Ability] = &[
    Ability::Inject,
    Ability::Wipe,
    Ability::Trim,
    Ability::Block,
    Ability::Child,
    // No answer is lost for good: the client asks again, and the broker knows what it has.
    Ability::Cut,
    Ability::Connections,
    Ability::Kill,
    Ability::Freeze,
];
/// What needs a network of the trial's own.
const NETWORK: &[Ability] = &[Ability::Cut, Ability::Connections];
/// How many trials that need a network run side by side.
const SLOTS: usize = 8;
/// How long a call waits for a broker that is away. Trials make several in a row, within their limit;
/// longer than any trial freezes a broker.
const ANSWER: Duration = Duration::from_secs(3);
/// Few, and more than one: hundreds of topics are made at once here.
const PARTITIONS: i32 = 2;
/// How long to wait before a broker is asked again.
const AGAIN: Duration = Duration::from_millis(10);
/// The largest record that a topic takes: more than any trial writes.
const LARGEST: &str = "4000000";
/// How soon a dead member is noticed: brokers are told to take less than by default, so that trials
/// need not wait.
const SESSION: Duration = Duration::from_secs(2);

/// A listener of a broker that sends its clients to a proxy, whichever trial's that is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Where the broker listens.
    port: u16,
    /// Where the proxy has to listen.
    proxy: u16,
}

impl Slot {
    fn name(at: usize) -> String {
        format!("PROXY{at}")
    }
}

/// Kafka: the broker of `TEST_KAFKA_BROKERS`, or one that is started for the run; a broker of its own
/// for each trial that kills or freezes it.
#[derive(Debug, Default)]
pub struct KafkaHarness {
    shared: Mutex<Option<Arc<KafkaServer>>>,
    free: Arc<Mutex<Vec<Slot>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A broker with so many listeners for proxies.
fn start(slots: usize) -> std::result::Result<(KafkaServer, Vec<Slot>), Failure> {
    let ports = free_ports(2 * slots)?;
    let slots: Vec<Slot> = ports
        .chunks(2)
        .filter_map(|pair| match pair {
            [port, proxy] => Some(Slot {
                port: *port,
                proxy: *proxy,
            }),
            _ => None,
        })
        .collect();
    let mut options = KafkaOptions::new().property("group.min.session.timeout.ms", "1000");
    for (at, slot) in slots.iter().enumerate() {
        let advertised = format!("127.0.0.1:{}", slot.proxy);
        options = options.behind(&Slot::name(at), "PLAINTEXT", slot.port, &advertised);
    }
    Ok((KafkaServer::start(&options)?, slots))
}

impl KafkaHarness {
    /// Nothing is started before a trial asks for it.
    pub fn new() -> Self {
        Self::default()
    }

    fn shared_address(&self) -> std::result::Result<String, Failure> {
        if let Some(given) = KafkaServer::given() {
            return Ok(given);
        }
        let mut shared = lock(&self.shared);
        let server = match &*shared {
            Some(server) => server,
            None => {
                println!("kafka: {}", KafkaServer::available()?);
                let (server, slots) = start(SLOTS)?;
                *lock(&self.free) = slots;
                shared.insert(Arc::new(server))
            }
        };
        Ok(server.address())
    }
}

#[async_trait]
impl Harness for KafkaHarness {
    fn name(&self) -> &str {
        "kafka"
    }

    fn timing(&self) -> Timing {
        Timing {
            // Until a dead member is noticed, and its partitions are shared out.
            patience: Duration::from_secs(20),
            // Two steps of a second each, on a busy machine.
            sharing: Duration::from_secs(3),
            // A broker takes 2 s to start, and a session to end as long.
            slower: Duration::from_secs(40),
            // While partitions change hands a commit takes a second, with which the next one begins.
            ..Timing::real(Duration::from_secs(3))
        }
    }

    fn abilities(&self) -> &[Ability] {
        if KafkaServer::available().is_ok() && KafkaServer::given().is_none() {
            OWN
        } else {
            SHARED
        }
    }

    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let network = setup.needs.iter().any(|n| NETWORK.contains(n));
        if setup.own {
            let made = tokio::task::spawn_blocking(move || start(usize::from(network)));
            let (server, slots) = made.await??;
            let address = server.address();
            let mut broker = OnKafka::new(&setup.namespace, address);
            if let Some(slot) = slots.first() {
                broker.through(*slot, None).await?;
            }
            broker.server = Some(Arc::new(server));
            return Ok(Arc::new(broker));
        }
        let mut broker = OnKafka::new(&setup.namespace, self.shared_address()?);
        if network {
            let slot = lock(&self.free).pop();
            let slot = slot.ok_or("more trials than slots need a network of their own")?;
            broker.through(slot, Some(self.free.clone())).await?;
        }
        Ok(Arc::new(broker))
    }

    async fn attach(
        &self,
        address: &str,
        namespace: Namespace,
    ) -> std::result::Result<Arc<dyn Broker>, Failure> {
        Ok(Arc::new(OnKafka::new(&namespace, address.to_owned())))
    }

    fn known_panic(&self, panic: &str) -> Option<&'static str> {
        // Caught where it happens: the record goes to quarantine.
        let theirs = panic.contains("rdkafka-") && panic.contains("Utf8Error");
        theirs.then_some("rdkafka unwraps the name of a header as UTF-8")
    }

    fn finish(&self) {
        drop(lock(&self.shared).take());
    }
}

#[derive(Debug)]
struct OnKafka {
    /// For the transports under test.
    through: KafkaConfig,
    namespace: Namespace,
    address: String,
    proxy: Option<Proxy>,
    slot: Option<(Slot, Arc<Mutex<Vec<Slot>>>)>,
    server: Option<Arc<KafkaServer>>,
    /// Of topics that are there, by their name in the broker: who leads which partition.
    made: Mutex<HashMap<String, Leaders>>,
    /// For entries of other programs: the connection to each broker, and how many went out.
    wires: tokio::sync::Mutex<(HashMap<String, Wire>, usize)>,
}

/// The partitions of a topic, and the addresses of their leaders.
type Leaders = Vec<(i32, String)>;

fn config(address: &str, namespace: &Namespace) -> KafkaConfig {
    KafkaConfig::new(address)
        .namespace(namespace.clone())
        .partitions(PARTITIONS)
        .session_timeout(SESSION)
        .response_timeout(ANSWER)
}

/// Who leads which partition of a topic; nothing, unless somebody leads each.
fn leaders(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
) -> std::result::Result<Leaders, Failure> {
    let metadata = admin.inner().fetch_metadata(Some(topic), ANSWER)?;
    let broker = |id: i32| metadata.brokers().iter().find(|b| b.id() == id);
    let partitions = metadata.topics().iter().flat_map(|t| t.partitions());
    let led = partitions.map(|p| {
        let leader = broker(p.leader())?;
        Some((p.id(), format!("{}:{}", leader.host(), leader.port())))
    });
    Ok(led.collect::<Option<_>>().unwrap_or_default())
}

impl OnKafka {
    fn new(namespace: &Namespace, address: String) -> Self {
        Self {
            through: config(&address, namespace),
            namespace: namespace.clone(),
            address,
            proxy: None,
            slot: None,
            server: None,
            made: Mutex::default(),
            wires: tokio::sync::Mutex::default(),
        }
    }

    /// Puts a proxy between the transports and the broker.
    async fn through(&mut self, slot: Slot, back: Option<Arc<Mutex<Vec<Slot>>>>) -> Verdict {
        let listens = format!("127.0.0.1:{}", slot.proxy);
        let upstream = format!("127.0.0.1:{}", slot.port);
        self.slot = back.map(|free| (slot, free));
        self.proxy = Some(Proxy::start_at(&listens, upstream).await?);
        self.through = config(&listens, &self.namespace);
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        client
    }

    fn admin(&self) -> std::result::Result<AdminClient<DefaultClientContext>, Failure> {
        Ok(self.client().create()?)
    }

    /// What a topic of this trial is called in the broker.
    fn name_of(&self, topic: &Topic) -> String {
        self.through.topic_name(topic)
    }

    /// Sees to it that there is such a topic, and that it is led.
    async fn make(&self, topic: &Topic) -> std::result::Result<(String, Leaders), Failure> {
        let name = self.name_of(topic);
        if let Some(leaders) = lock(&self.made).get(&name) {
            return Ok((name, leaders.clone()));
        }
        let new = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1))
            .set("max.message.bytes", LARGEST);
        let admin = self.admin()?;
        for outcome in admin.create_topics([&new], &AdminOptions::new()).await? {
            match outcome {
                Ok(_) => {}
                // By the library, for records of its own only.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
                    self.limit(&name, LARGEST).await?;
                }
                Err((_, code)) => return Err(format!("{name} could not be made: {code}").into()),
            }
        }
        let until = Instant::now() + ANSWER;
        loop {
            let leaders = leaders(&admin, &name)?;
            if !leaders.is_empty() {
                lock(&self.made).insert(name.clone(), leaders.clone());
                return Ok((name, leaders));
            }
            if Instant::now() > until {
                return Err(format!("nobody leads {name}").into());
            }
            sleep(AGAIN).await;
        }
    }

    /// How large the records of a topic may be.
    async fn limit(&self, name: &str, bytes: &str) -> Verdict {
        let change =
            AlterConfig::new(ResourceSpecifier::Topic(name)).set("max.message.bytes", bytes);
        let admin = self.admin()?;
        for outcome in admin.alter_configs(&[change], &AdminOptions::new()).await? {
            outcome.map_err(|(_, code)| format!("{name} could not be changed: {code}"))?;
        }
        Ok(())
    }

    /// What is known of the broker and its topics may not be true any more.
    async fn forget(&self) {
        lock(&self.made).clear();
        self.wires.lock().await.0.clear();
    }

    fn proxy(&self) -> std::result::Result<&Proxy, Failure> {
        let missing = "the trial does not name the ability among its needs";
        self.proxy.as_ref().ok_or_else(|| missing.into())
    }

    /// Does something to the trial's own broker, which takes a moment.
    async fn to_server(
        &self,
        what: impl FnOnce(&KafkaServer) -> Verdict + Send + 'static,
    ) -> Verdict {
        let missing = "the trial has no broker of its own: own_server()";
        let server = Arc::clone(self.server.as_ref().ok_or(missing)?);
        tokio::task::spawn_blocking(move || what(&server)).await?
    }

    /// Removes every topic of the namespace, and with them where groups stand in them.
    async fn clear(&self) -> Verdict {
        let any = self.name_of(&Topic::new("t")?);
        let prefix = any.strip_suffix('t').unwrap_or(&any).to_owned();
        let admin = self.admin()?;
        let names: Vec<String> = {
            let metadata = admin.inner().fetch_metadata(None, ANSWER)?;
            let topics = metadata.topics().iter().map(|t| t.name().to_owned());
            topics.filter(|name| name.starts_with(&prefix)).collect()
        };
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER));
        for deleted in admin.delete_topics(&names, &options).await? {
            deleted.map_err(|(name, code)| format!("{name} could not be deleted: {code}"))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Broker for OnKafka {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        Ok(Arc::new(
            KafkaTransport::connect(self.through.clone()).await?,
        ))
    }

    async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        // Without a topic nobody would take it.
        let (name, leaders) = self.make(topic).await?;
        let entry = Entry::new(fields);
        let mut wires = self.wires.lock().await;
        let (wires, count) = &mut *wires;
        *count += 1;
        let one = leaders.iter().cycle().nth(*count % leaders.len().max(1));
        let (partition, leader) = one.ok_or("nobody leads the topic")?;
        if !wires.contains_key(leader) {
            let wire = Wire::connect(leader).await?;
            wires.insert(leader.clone(), wire);
        }
        let wire = wires.get_mut(leader).ok_or("no connection")?;
        let until = Instant::now() + ANSWER;
        loop {
            match wire.produce(&name, *partition, &entry).await? {
                0 => return Ok(()),
                // A broker hears of its topics a moment after it tells of them.
                3 | 5 | 6 if Instant::now() < until => sleep(AGAIN).await,
                code => return Err(format!("the broker refused a record: error {code}").into()),
            }
        }
    }

    fn is_read(&self, topic: &Topic, fields: &[(Bytes, Bytes)]) -> bool {
        Entry::new(fields.to_vec()).is_read(topic)
    }

    fn quarantined(&self, fields: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        Entry::new(fields).quarantined()
    }

    fn garbage(&self) -> Vec<(&'static str, Vec<(Bytes, Bytes)>)> {
        entry::garbage()
    }

    async fn wipe(&self, _topic: &Topic) -> Verdict {
        self.forget().await;
        self.clear().await
    }

    async fn trim(&self, topic: &Topic, remove: u64) -> Verdict {
        let name = self.name_of(topic);
        let mut client = self.client();
        client
            .set("group.id", "unused")
            .set("enable.partition.eof", "true");
        let of = name.clone();
        // In the order in which they came, over all partitions.
        let found = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.create()?;
            let partitions = {
                let metadata = consumer.fetch_metadata(Some(&of), ANSWER)?;
                metadata
                    .topics()
                    .first()
                    .map_or(0, |t| t.partitions().len())
            };
            let mut list = TopicPartitionList::new();
            for partition in 0..partitions {
                let mut element = list.add_partition(&of, i32::try_from(partition)?);
                element.set_offset(Offset::Beginning)?;
            }
            consumer.assign(&list)?;
            let (mut found, mut ended) = (Vec::new(), 0);
            while ended < partitions {
                match consumer.poll(ANSWER) {
                    Some(Ok(record)) => found.push((
                        record.timestamp().to_millis(),
                        record.offset(),
                        record.partition(),
                    )),
                    Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
                    Some(Err(error)) => return Err(Failure::from(error)),
                    None => return Err("the topic could not be read".into()),
                }
            }
            consumer.unassign()?;
            found.sort_unstable();
            Ok(found)
        });
        let found = found.await??;
        let mut until = BTreeMap::new();
        for (_, offset, partition) in found.iter().take(usize::try_from(remove)?) {
            until.insert(*partition, offset + 1);
        }
        let mut list = TopicPartitionList::new();
        for (partition, offset) in until {
            list.add_partition(&name, partition)
                .set_offset(Offset::Offset(offset))?;
        }
        self.admin()?
            .delete_records(&list, &AdminOptions::new())
            .await?;
        match found.len() as u64 >= remove {
            true => Ok(()),
            false => Err(format!("{} of {remove} records could be removed", found.len()).into()),
        }
    }

    async fn block(&self, topic: &Topic, blocked: bool) -> Verdict {
        let (name, _) = self.make(topic).await?;
        self.limit(&name, if blocked { "1" } else { LARGEST }).await
    }

    async fn kill(&self) -> Verdict {
        self.forget().await;
        self.to_server(KafkaServer::kill).await
    }

    async fn start(&self) -> Verdict {
        self.to_server(KafkaServer::restart).await
    }

    async fn freeze(&self, frozen: bool) -> Verdict {
        self.to_server(move |s| s.freeze(frozen)).await
    }

    async fn cut(&self) -> Verdict {
        self.proxy()?.cut();
        Ok(())
    }

    async fn connections(&self) -> std::result::Result<usize, Failure> {
        Ok(self.proxy()?.open())
    }

    fn address(&self) -> Option<String> {
        Some(self.address.clone())
    }

    async fn end(&self) {
        // A broker of the trial's own goes as a whole; one that is shared is left as it was found.
        if self.server.is_none()
            && let Err(e) = self.clear().await
        {
            eprintln!("namespace {} could not be cleared: {e}", self.namespace);
        }
        if let Some((slot, free)) = &self.slot {
            lock(free).push(*slot);
        }
    }
}
