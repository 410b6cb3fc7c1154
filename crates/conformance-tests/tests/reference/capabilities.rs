//! docs/reference/capabilities.md: what each backend declares on each server, as probed.

use std::collections::BTreeMap;

use mas_transport_core::{Capabilities, Transport};
use mas_transport_memory::{MemoryBroker, MemoryConfig, Profile};

use crate::page::{Page, table};

const NAME: &str = "capabilities.md";
const QUEUE: &str = "memory, lease queue";
const LOG: &str = "memory, partitioned log";
/// What has to be in the page, whether or not it is at hand.
const COLUMNS: [&str; 6] = [
    QUEUE,
    LOG,
    "redis 6.2",
    "redis 7.0",
    "redis 8.2",
    "valkey 9.1",
];
/// The settings under which Redis is pinned, and the others that durability depends on.
const PINNED: &[(&str, &str)] = &[("appendonly", "yes"), ("appendfsync", "everysec")];
const SETTINGS: [&[(&str, &str)]; 4] = [
    &[("appendonly", "no")],
    &[("appendonly", "yes"), ("appendfsync", "no")],
    PINNED,
    &[("appendonly", "yes"), ("appendfsync", "always")],
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
        let reason = "no server of scripts/brokers and no TEST_REDIS_SERVER";
        let required = std::env::var("REQUIRE_REDIS").is_ok_and(|v| v == "1");
        assert!(!required, "{reason}");
        println!("SKIPPED backend=redis reason={reason}");
    }
    for program in programs {
        for setting in SETTINGS {
            let server = RedisServer::start_program(&program, setting).unwrap();
            let config = RedisConfig::new(server.address());
            let transport = RedisTransport::connect(config).await.unwrap();
            let info = transport.info();
            let soon = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
            transport.close(soon).await.unwrap();
            let known = probed.durability.insert(words(setting), info.capabilities);
            if let Some(known) = known {
                let both = |c: Capabilities| (c.durability, c.ack_durability);
                assert_eq!(
                    both(known),
                    both(info.capabilities),
                    "servers differ under {}: {}",
                    words(setting),
                    info.server
                );
            }
            if setting == PINNED {
                let (version, _patch) = info.server.rsplit_once('.').unwrap();
                if !COLUMNS.contains(&version) {
                    println!("SKIPPED {version} is not pinned in {NAME}");
                }
                probed.columns.insert(version.to_owned(), info.capabilities);
            }
        }
    }
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
    let durability = SETTINGS.map(|setting| {
        let words = words(setting);
        let of = |column: &str| match probed.durability.get(&words) {
            Some(can) if column == RECEIPT => format!("{:?}", can.durability),
            Some(can) => format!("{:?}", can.ack_durability),
            None => page.cell(&words, column),
        };
        vec![words.clone(), of(RECEIPT), of(ACK)]
    });
    let header = ["settings of the server", RECEIPT, ACK].map(str::to_owned);
    format!(
        "# Capabilities

What each backend can do, and how strongly it keeps its promises: the fields of `Capabilities`, as a
connection finds them. [CONTRACT.md](../../CONTRACT.md) says what each clause takes from them.

A test probes real servers and compares this page; do not edit it. Memory has its default settings,
Redis and Valkey have {}, which is what the durability below is for.

## Operations

A call to one that is missing fails with `Unsupported` and has no effect.

{}
## Strengths

{}
## Durability on Redis and Valkey

It is the server's, asked at connect: what survives, by its settings.

{}",
        words(PINNED),
        fields(true),
        fields(false),
        table(&header, &durability)
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
    let page = Page::read(NAME);
    let new = generate(&page, &probed, &queue);
    if let Err(why) = page.settle(&new) {
        panic!("{why}");
    }
}
