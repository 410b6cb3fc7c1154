//! docs/reference/capabilities.md: what each backend declares on each server, as probed.

use std::collections::BTreeMap;

use mas_transport_core::{Capabilities, Transport};
use mas_transport_memory::{MemoryBroker, MemoryConfig, Profile};

#[cfg(any(feature = "redis", feature = "nats", feature = "kafka"))]
use crate::missing::nobody;
use crate::page::{Page, table};

const NAME: &str = "capabilities.md";
const QUEUE: &str = "memory, lease queue";
const LOG: &str = "memory, partitioned log";
/// What has to be in the page, whether or not it is at hand.
const COLUMNS: [&str; 9] = [
    QUEUE,
    LOG,
    "redis 6.2",
    "redis 7.0",
    "redis 8.2",
    "valkey 9.1",
    "nats-server 2.9",
    "nats-server 2.15",
    "kafka 4.3",
];
/// The settings under which Redis is pinned, and the others that durability depends on.
const PINNED: &[(&str, &str)] = &[("appendonly", "yes"), ("appendfsync", "everysec")];
const SETTINGS: [&[(&str, &str)]; 4] = [
    &[("appendonly", "no")],
    &[("appendonly", "yes"), ("appendfsync", "no")],
    PINNED,
    &[("appendonly", "yes"), ("appendfsync", "always")],
];
/// How topics are kept on NATS; the first is the default.
const STORAGES: [&str; 2] = ["file", "memory"];
/// How topics are kept and confirmed on Kafka; the first is the default.
const COPIES: [&[(&str, &str)]; 3] = [
    &[("KAFKA_REPLICATION_FACTOR", "1")],
    &[
        ("KAFKA_REPLICATION_FACTOR", "3"),
        ("KAFKA_MIN_INSYNC_REPLICAS", "2"),
    ],
    &[
        ("KAFKA_REPLICATION_FACTOR", "3"),
        ("KAFKA_MIN_INSYNC_REPLICAS", "2"),
        ("KAFKA_ACKS", "1"),
    ],
];
const RECEIPT: &str = "a receipt";
const ACK: &str = "a confirmed ack";

/// What was found out in this run.
#[derive(Default)]
struct Probed {
    columns: BTreeMap<String, Capabilities>,
    /// By setting, on whatever servers there are.
    durability: BTreeMap<String, Capabilities>,
}

impl Probed {
    /// Enters what a server of this name declares under a setting, which is the same on every server;
    /// `pinned` where the page has it as a column.
    #[cfg(any(feature = "redis", feature = "nats", feature = "kafka"))]
    fn enter(&mut self, server: &str, setting: String, can: Capabilities, pinned: bool) {
        let both = |c: Capabilities| (c.durability, c.ack_durability);
        let known = self.durability.get(&setting).copied().map(both);
        assert!(
            known.is_none_or(|known| known == both(can)),
            "servers differ under {setting}: {server}"
        );
        self.durability.insert(setting, can);
        if pinned {
            let (version, _patch) = server.rsplit_once('.').unwrap();
            if !COLUMNS.contains(&version) {
                println!("SKIPPED {version} is not pinned in {NAME}");
            }
            self.columns.insert(version.to_owned(), can);
        }
    }
}

/// What a transport declares, which is closed then: its server and the capabilities.
#[cfg(any(feature = "redis", feature = "nats", feature = "kafka"))]
async fn declared(transport: impl Transport) -> (String, Capabilities) {
    let info = transport.info();
    let soon = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    transport.close(soon).await.unwrap();
    (info.server.clone(), info.capabilities)
}

fn words(setting: &[(&str, &str)]) -> String {
    let words: Vec<_> = setting.iter().map(|(k, v)| format!("`{k} {v}`")).collect();
    words.join(", ")
}

async fn memory(profile: Profile) -> Capabilities {
    let broker = MemoryBroker::new(MemoryConfig::new().profile(profile));
    broker.connect().await.unwrap().info().capabilities
}

/// Asks every server at hand, under every setting.
#[cfg(feature = "redis")]
async fn redis(probed: &mut Probed) {
    use conformance_tests::fixtures::RedisServer;
    use mas_transport_redis::{RedisConfig, RedisTransport};

    let programs = RedisServer::programs();
    if programs.is_empty() {
        nobody("redis");
    }
    for program in programs {
        for setting in SETTINGS {
            let server = RedisServer::start_program(&program, setting).unwrap();
            let config = RedisConfig::new(server.address());
            let (server, can) = declared(RedisTransport::connect(config).await.unwrap()).await;
            probed.enter(&server, words(setting), can, setting == PINNED);
        }
    }
}

/// Asks every server at hand, for every storage.
#[cfg(feature = "nats")]
async fn nats(probed: &mut Probed) {
    use conformance_tests::fixtures::{NatsOptions, NatsServer};
    use mas_transport_nats::{NatsConfig, NatsTransport, Storage};

    let programs = NatsServer::programs();
    if programs.is_empty() {
        nobody("nats");
    }
    for program in programs {
        let server = NatsServer::start_program(&program, &NatsOptions::new()).unwrap();
        for (name, storage) in STORAGES.into_iter().zip([Storage::File, Storage::Memory]) {
            let config = NatsConfig::from_url(&server.url())
                .unwrap()
                .storage(storage);
            let (server, can) = declared(NatsTransport::connect(config).await.unwrap()).await;
            probed.enter(&server, stored(name), can, name == STORAGES[0]);
        }
    }
}

/// Asks every server at hand, for every way to keep topics. Brokers do not tell clients their version: it is
/// that of the program.
#[cfg(feature = "kafka")]
async fn kafka(probed: &mut Probed) {
    use conformance_tests::fixtures::{KafkaOptions, KafkaServer};
    use mas_transport_kafka::{Acks, KafkaConfig, KafkaTransport};

    let programs = KafkaServer::programs();
    if programs.is_empty() {
        nobody("kafka");
    }
    for program in programs {
        let asked = std::process::Command::new(&program)
            .arg("--version")
            .output();
        let told = String::from_utf8(asked.unwrap().stdout).unwrap();
        let (_, version) = told.trim().split_once("v=").unwrap();
        let server = KafkaServer::start_program(&program, &KafkaOptions::new()).unwrap();
        for setting in COPIES {
            let config =
                setting
                    .iter()
                    .fold(
                        KafkaConfig::new(server.address()),
                        |config, setting| match setting {
                            ("KAFKA_REPLICATION_FACTOR", n) => {
                                config.replication_factor(n.parse().unwrap())
                            }
                            ("KAFKA_MIN_INSYNC_REPLICAS", n) => {
                                config.min_insync_replicas(n.parse().unwrap())
                            }
                            ("KAFKA_ACKS", "1") => config.acks(Acks::Leader),
                            other => panic!("{other:?}"),
                        },
                    );
            let (_, can) = declared(KafkaTransport::connect(config).await.unwrap()).await;
            let name = format!("kafka {version}");
            probed.enter(&name, set(setting), can, setting == COPIES[0]);
        }
    }
}

fn set(setting: &[(&str, &str)]) -> String {
    let words: Vec<_> = setting.iter().map(|(k, v)| format!("`{k}={v}`")).collect();
    words.join(", ")
}

fn stored(storage: &str) -> String {
    format!("`NATS_STORAGE={storage}`, one replica")
}

fn generate(page: &Page, probed: &Probed, any: &Capabilities) -> String {
    let value = |row: &str, column: &str| {
        let described = probed.columns.get(column).map(Capabilities::describe);
        let field = described.and_then(|all| all.into_iter().find(|d| d.name == row));
        field.map_or_else(|| page.cell(&format!("`{row}`"), column), |d| d.value)
    };
    let fields = |operation: bool| {
        let mut header = vec!["field".to_owned(), "meaning".to_owned()];
        header.extend(COLUMNS.map(str::to_owned));
        let rows: Vec<_> = any
            .describe()
            .into_iter()
            .filter(|d| d.operation == operation)
            .map(|d| {
                let mut row = vec![format!("`{}`", d.name), d.meaning];
                row.extend(COLUMNS.map(|column| value(d.name, column)));
                row
            })
            .collect();
        table(&header, &rows)
    };
    let survives = |words: String| {
        let of = |column: &str| match probed.durability.get(&words) {
            Some(can) if column == RECEIPT => format!("{:?}", can.durability),
            Some(can) => format!("{:?}", can.ack_durability),
            None => page.cell(&words, column),
        };
        vec![words.clone(), of(RECEIPT), of(ACK)]
    };
    let header = |what: &str| [what, RECEIPT, ACK].map(str::to_owned);
    format!(
        "# Capabilities

What each backend can do, and how strongly it keeps its promises: the fields of `Capabilities`, as a
connection finds them. [CONTRACT.md](../../CONTRACT.md) says what each clause takes from them.

A test probes real servers and compares this page; do not edit it. Memory has its default settings,
Redis and Valkey have {}, NATS keeps topics in files, and Kafka
is one broker, which is what the durability below is for. Brokers of Kafka do not tell clients their version: the one
in the head of the column is the program's.

## Operations

A call to one that is missing fails with `Unsupported` and has no effect.

{}
## Strengths

{}
## Durability on Redis and Valkey

It is the server's, asked at connect: what survives, by its settings.

{}
## Durability on NATS

It is the configuration's. With several replicas on file storage both are Replicated, in memory Process.

{}
## Durability on Kafka

A receipt says what its topic has, which is asked for; the configuration is that of topics that are made. Acks are
kept in the cluster's own topic, whose replicas clients cannot ask for.

{}",
        words(PINNED),
        fields(true),
        fields(false),
        table(
            &header("settings of the server"),
            &SETTINGS.map(words).map(&survives)
        ),
        table(&header("setting"), &STORAGES.map(stored).map(&survives)),
        table(&header("settings"), &COPIES.map(set).map(survives))
    )
}

#[tokio::test]
async fn the_page_of_capabilities_is_true() {
    let mut probed = Probed::default();
    let queue = memory(Profile::LeaseQueue).await;
    let log = memory(Profile::PartitionedLog { partitions: 4 }).await;
    probed.columns.insert(QUEUE.to_owned(), queue);
    probed.columns.insert(LOG.to_owned(), log);
    #[cfg(feature = "redis")]
    redis(&mut probed).await;
    #[cfg(feature = "nats")]
    nats(&mut probed).await;
    #[cfg(feature = "kafka")]
    kafka(&mut probed).await;
    let page = Page::read(NAME);
    let new = generate(&page, &probed, &queue);
    if let Err(why) = page.settle(&new) {
        panic!("{why}");
    }
}
