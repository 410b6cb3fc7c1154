//! Records, offsets and gaps that other programs left.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use mas_transport_core::codec::fields::{FOREIGN_SOURCE, QUARANTINE_KIND};
use mas_transport_core::codec::raw;
use mas_transport_core::{
    ErrorKind, Event, Lag, Outcome, Reason, ReasonCode, StartFrom, Subscription, Topic,
    Transport as _,
};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::support::{Bench, SOON, record, soon};

type Producer = ThreadedProducer<DefaultProducerContext>;
type Odd<'a> = BaseRecord<'a, [u8], [u8]>;

/// Room for records beyond our limit.
const LARGE: &str = "8000000";
/// Until a member has looked how far its client has come, and committed that.
const PASSED: Duration = Duration::from_secs(3);
/// How long nothing has to come.
const QUIET: Duration = Duration::from_millis(600);

fn producer(client: &ClientConfig) -> Producer {
    let mut client = client.clone();
    client.set("message.max.bytes", LARGE);
    client.create().unwrap()
}

fn send(producer: &Producer, record: Odd<'_>) {
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// Writes these payloads, one record each.
fn write(bench: &Bench, payloads: &[String]) {
    let producer = producer(&bench.client);
    for payload in payloads {
        send(
            &producer,
            Odd::to(&bench.topic_name).payload(payload.as_bytes()),
        );
    }
    producer.flush(SOON).unwrap();
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Where the group stands in the only partition, and what was committed with it.
fn committed(bench: &Bench) -> (i64, String) {
    let mut list = TopicPartitionList::new();
    list.add_partition(&bench.topic_name, 0);
    let list = outsider(bench).committed_offsets(list, SOON).unwrap();
    let element = list.elements().remove(0);
    let offset = element.offset().to_raw().unwrap();
    (offset, element.metadata().to_owned())
}

/// A client of the group which is none of ours, and does not join it.
fn outsider(bench: &Bench) -> BaseConsumer {
    let mut client = bench.client.clone();
    client.set("group.id", &bench.group_name);
    client.create().unwrap()
}

fn commit(bench: &Bench, offset: i64, metadata: &str) {
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(&bench.topic_name, 0);
    element.set_offset(Offset::Offset(offset)).unwrap();
    element.set_metadata(metadata);
    outsider(bench).commit(&list, CommitMode::Sync).unwrap();
}

/// As [`commit`], by hand: the client takes text only.
fn commit_bytes(bench: &Bench, offset: i64, metadata: &[u8]) {
    let string = |bytes: &[u8]| {
        let length = i16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[..], bytes].concat()
    };
    // OffsetCommit (8) in version 2: of nobody in the group, kept as long as usual; one topic, of it
    // one partition.
    let request = [
        &[0, 8, 0, 2, 0, 0, 0, 1, 0xff, 0xff][..],
        &string(bench.group_name.as_bytes()),
        &(-1_i32).to_be_bytes(),
        &string(b""),
        &(-1_i64).to_be_bytes(),
        &1_i32.to_be_bytes(),
        &string(bench.topic_name.as_bytes()),
        &1_i32.to_be_bytes(),
        &0_i32.to_be_bytes(),
        &offset.to_be_bytes(),
        &string(metadata),
    ]
    .concat();
    let mut stream = TcpStream::connect(bench.client.get("bootstrap.servers").unwrap()).unwrap();
    let length = u32::try_from(request.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[answer.len() - 2..], [0, 0], "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn null_values_null_headers_and_odd_keys_are_read() {
    let Some(bench) = Bench::new("odd", &[]).await else {
        return;
    };
    let to = || Odd::to(&bench.topic_name);
    let header = |key, value: Option<&'static [u8]>| Header { key, value };
    let without_value = OwnedHeaders::new()
        .insert(header("h", None::<&[u8]>))
        .insert(header("h", Some(b"v")))
        .insert(header("content-type", None));
    let producer = producer(&bench.client);
    for (key, headers, value) in [
        (None, OwnedHeaders::new(), None),
        (Some(&b"k"[..]), OwnedHeaders::new(), None),
        (None, without_value, Some(&b"x"[..])),
        (Some(b"\xff\xfe"), OwnedHeaders::new(), Some(b"x")),
        (Some(b"a\0b"), OwnedHeaders::new(), Some(b"x")),
        (Some(b""), OwnedHeaders::new(), Some(b"")),
    ] {
        let mut record = to().headers(headers);
        record.key = key;
        record.payload = value;
        send(&producer, record);
    }
    producer.flush(SOON).unwrap();
    let mut member = bench.join().await;
    let mut came = Vec::new();
    for _ in 0..6 {
        let delivery = member.delivery().await;
        let message = &delivery.message;
        assert_eq!(message.source(), FOREIGN_SOURCE);
        let headers = message.headers().iter();
        let headers: Vec<_> = headers
            .map(|(n, v)| format!("{n}={:?}", v.as_str()))
            .collect();
        came.push(format!(
            "{:?} {:?} {headers:?} {:?}",
            message.get_key(),
            String::from_utf8_lossy(message.payload()),
            message.get_content_type(),
        ));
        member.settle(delivery.token, Outcome::Ack).await;
    }
    let wanted = [
        r#"None "" [] None"#,
        r#"Some("k") "" [] None"#,
        r#"None "x" ["h=Some(\"\")", "h=Some(\"v\")"] Some("")"#,
        r#"None "x" [] None"#,
        r#"None "x" [] None"#,
        r#"None "" [] None"#,
    ];
    assert_eq!(came, wanted);
    member.close().await;
    assert_eq!(bench.lag().await, Lag::default());
}

/// The client tells of none of them, nor that there are any.
#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_headers_none_is_read() {
    let Some(bench) = Bench::new("many", &[("max.message.bytes", LARGE)]).await else {
        return;
    };
    let producer = producer(&bench.client);
    for count in [100_000, 100_001] {
        let mut headers = OwnedHeaders::new_with_capacity(count);
        for _ in 0..count {
            headers = headers.insert(Header {
                key: "h",
                value: Some("v"),
            });
        }
        let record = Odd::to(&bench.topic_name).payload(b"x").headers(headers);
        send(&producer, record);
    }
    producer.flush(SOON).unwrap();
    let mut member = bench.join().await;
    for count in [100_000, 0] {
        let delivery = member.delivery().await;
        assert_eq!(delivery.message.headers().len(), count);
        assert_eq!(delivery.message.payload().as_ref(), b"x");
        member.settle(delivery.token, Outcome::Ack).await;
    }
    member.close().await;
}

/// As large as the topic takes: it is read, dead-lettered or quarantined, byte for byte, and what comes
/// behind it is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn records_above_the_limit_are_read_and_buried() {
    let Some(bench) = Bench::new("large", &[("max.message.bytes", LARGE)]).await else {
        return;
    };
    let large: Vec<u8> = (0..7_000_000_u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    assert!(large.len() > 6 * bench.transport.info().capabilities.max_message_bytes);
    let producer = producer(&bench.client);
    let to = || Odd::to(&bench.topic_name);
    let event = OwnedHeaders::new().insert(Header {
        key: "ce_specversion",
        value: Some("1.0"),
    });
    send(&producer, to().payload(&large));
    send(&producer, to().payload(&large).headers(event));
    send(&producer, to().payload(b"small"));
    producer.flush(SOON).unwrap();
    let mut member = bench.join().await;
    let read = member.delivery().await;
    assert!(read.message.payload() == &large);
    let reason = Reason::new(ReasonCode::Rejected, "too much");
    member
        .settle(read.token, Outcome::DeadLetter(record(reason)))
        .await;
    let Event::Malformed { token, reason, .. } = member.event().await else {
        panic!("an event without an id was read");
    };
    member
        .settle(token, Outcome::Quarantine(record(reason)))
        .await;
    assert_eq!(member.payloads(1).await, ["small"]);
    member.close().await;
    assert_eq!(bench.lag().await, Lag::default());
    let letter = bench
        .one_of(&Topic::dead_letters(&bench.topic, &bench.group))
        .await;
    assert!(letter.message.payload() == &large);
    let kept = bench
        .one_of(&Topic::quarantine(&bench.topic, &bench.group))
        .await;
    assert_eq!(kept.message.get_kind(), QUARANTINE_KIND);
    let original = raw::decode(kept.message.payload()).unwrap();
    assert_eq!(original[0].0, "ce_specversion");
    assert!(original[1].1 == large);
}

/// A position that another program committed is taken as it is, whatever stands beside it.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_commit_metadata_says_nothing() {
    for (name, metadata) in [
        ("none", &b""[..]),
        ("text", "committed by größer".as_bytes()),
        ("bytes", b"\xff\xfe\0\xc3"),
        ("almost", b"mas1"),
        ("long", &[b'x'; 4000]),
    ] {
        let Some(bench) = Bench::new(name, &[]).await else {
            return;
        };
        write(&bench, &numbers(0..5));
        commit_bytes(&bench, 3, metadata);
        let mut member = bench.join().await;
        assert_eq!(member.payloads(2).await, numbers(3..5), "{name}");
        member.quiet(QUIET).await;
        member.close().await;
        let (offset, ours) = committed(&bench);
        assert_eq!(offset, 5, "{name}");
        assert!(ours.starts_with("mas1."), "{name}: {ours}");
        // And the other way round.
        write(&bench, &numbers(5..7));
        commit(&bench, 4, "not yours");
        let mut member = bench.join().await;
        assert_eq!(member.payloads(3).await, numbers(4..7), "{name}");
        member.close().await;
    }
}

/// A later version's, or one that is broken: what is settled above the position cannot be known.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_cannot_be_read_is_refused() {
    for (name, metadata) in [
        ("later", "mas2.AAAA"),
        ("broken", "mas1.%%%"),
        ("cut", "mas1.gA"),
        ("more", "mas1.AAAAAAAAAAAA"),
    ] {
        let Some(bench) = Bench::new(name, &[]).await else {
            return;
        };
        write(&bench, &numbers(0..5));
        commit(&bench, 3, metadata);
        let subscription = Subscription::new("t")
            .group("g")
            .start_from(StartFrom::Earliest);
        let error = bench.transport.subscribe(&subscription).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{name}: {error}");
        assert!(error.to_string().contains("partition"), "{name}: {error}");
    }
}

/// Beyond the end of the log: the group begins with what is there, and is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_not_there_yet_is_a_gap() {
    let Some(bench) = Bench::new("beyond", &[]).await else {
        return;
    };
    write(&bench, &numbers(0..5));
    commit(&bench, 1_000_000, "");
    let mut member = bench.join().await;
    assert!(matches!(member.event().await, Event::Gap(_)));
    assert_eq!(member.payloads(5).await, numbers(0..5));
    member.close().await;
}

fn transactions(bench: &Bench, id: &str) -> Producer {
    let mut client = bench.client.clone();
    client.set("transactional.id", format!("{}.{id}", bench.topic_name));
    let producer: Producer = client.create().unwrap();
    producer.init_transactions(SOON).unwrap();
    producer
}

/// Writes these payloads in one transaction.
fn transaction(bench: &Bench, producer: &Producer, payloads: &[String], commits: bool) {
    producer.begin_transaction().unwrap();
    for payload in payloads {
        send(
            producer,
            Odd::to(&bench.topic_name).payload(payload.as_bytes()),
        );
    }
    producer.flush(SOON).unwrap();
    match commits {
        true => producer.commit_transaction(SOON).unwrap(),
        false => producer.abort_transaction(SOON).unwrap(),
    }
}

/// What was committed comes, and nothing of what was taken back; the marks are passed.
#[tokio::test(flavor = "multi_thread")]
async fn of_transactions_comes_what_was_committed() {
    let Some(bench) = Bench::new("marks", &[]).await else {
        return;
    };
    let producer = transactions(&bench, "p");
    transaction(&bench, &producer, &numbers(0..3), true);
    transaction(&bench, &producer, &numbers(3..6), false);
    transaction(&bench, &producer, &numbers(6..8), true);
    let mut member = bench.join().await;
    let committed_ones = [numbers(0..3), numbers(6..8)].concat();
    assert_eq!(member.payloads(5).await, committed_ones);
    transaction(&bench, &producer, &numbers(8..9), false);
    // One that is open holds back what comes behind it.
    let open = transactions(&bench, "q");
    open.begin_transaction().unwrap();
    send(&open, Odd::to(&bench.topic_name).payload(b"open"));
    open.flush(SOON).unwrap();
    write(&bench, &numbers(9..10));
    member.quiet(QUIET).await;
    open.commit_transaction(SOON).unwrap();
    assert_eq!(member.payloads(2).await, ["open", "9"]);
    member.quiet(QUIET).await;
    member.close().await;
    // Eleven records, and five marks: the last record is no part of a transaction.
    assert_eq!(committed(&bench).0, 16);
    assert_eq!(bench.lag().await, Lag::default());
    let mut member = bench.join().await;
    member.quiet(QUIET).await;
    write(&bench, &numbers(10..11));
    assert_eq!(member.payloads(1).await, ["10"]);
    member.close().await;
}

/// Marks, and what they took back, are passed as well, and nobody is told of a loss when they go.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_gets_is_no_loss() {
    let Some(bench) = Bench::new("passed", &[]).await else {
        return;
    };
    let producer = transactions(&bench, "p");
    let mut member = bench.join().await;
    transaction(&bench, &producer, &numbers(0..3), true);
    assert_eq!(member.payloads(3).await, numbers(0..3));
    transaction(&bench, &producer, &numbers(3..6), false);
    // Three records, a mark, three records, a mark.
    member.quiet(PASSED).await;
    assert_eq!(bench.lag().await, Lag::default());
    member.close().await;
    assert_eq!(committed(&bench).0, 8);
    // Nothing but what nobody gets, for one that has just come.
    transaction(&bench, &producer, &numbers(6..8), false);
    let mut member = bench.join().await;
    member.quiet(PASSED).await;
    member.close().await;
    assert_eq!(committed(&bench).0, 11);
    let admin: AdminClient<DefaultClientContext> = bench.client.create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition(&bench.topic_name, 0)
        .set_offset(Offset::End)
        .unwrap();
    admin
        .delete_records(&all, &AdminOptions::new())
        .await
        .unwrap();
    // No gap is told.
    let mut member = bench.join().await;
    write(&bench, &numbers(8..10));
    assert_eq!(member.payloads(2).await, numbers(8..10));
    member.close().await;
}

/// More of them than a member may be ahead of its commits, and than one may hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_of_aborted_records_is_passed() {
    let Some(bench) = Bench::new("aborted", &[]).await else {
        return;
    };
    let producer = transactions(&bench, "p");
    transaction(&bench, &producer, &numbers(0..1), true);
    transaction(&bench, &producer, &numbers(1..20_001), false);
    transaction(&bench, &producer, &numbers(20_001..20_003), true);
    let mut member = bench.join().await;
    // Held while the gap is passed.
    let first = member.delivery().await;
    assert_eq!(first.message.payload().as_ref(), b"0");
    assert_eq!(member.payloads(1).await, ["20001"]);
    member.settle(first.token, Outcome::Ack).await;
    assert_eq!(member.payloads(1).await, ["20002"]);
    member.close().await;
    assert!(bench.lag().await.waiting <= 1, "{:?}", bench.lag().await);
    let mut member = bench.join().await;
    member.quiet(QUIET).await;
    member.close().await;
}

/// The offsets and keys of what the partition holds.
fn held(bench: &Bench) -> Vec<(i64, String)> {
    let mut client = bench.client.clone();
    client
        .set("group.id", "unused")
        .set("enable.partition.eof", "true");
    let consumer: BaseConsumer = client.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(&bench.topic_name, 0)
        .set_offset(Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let mut held = Vec::new();
    while let Ok(record) = consumer.poll(SOON).unwrap() {
        let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
        held.push((record.offset(), key));
    }
    held
}

/// What compaction left comes, each once, but for what was settled; what it took counts as settled.
#[tokio::test(flavor = "multi_thread")]
async fn compacted_gaps_are_passed() {
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("segment.ms", "200"),
        ("max.compaction.lag.ms", "200"),
    ];
    let Some(bench) = Bench::new("compacted", &settings).await else {
        return;
    };
    let write = |keys: &[&str], value: &str| {
        let producer = producer(&bench.client);
        for key in keys {
            let record = Odd::to(&bench.topic_name).key(key.as_bytes());
            send(&producer, record.payload(value.as_bytes()));
        }
        producer.flush(SOON).unwrap();
    };
    write(&["a", "b", "c", "a", "b"], "early");
    // Before anything is taken away, one in the middle is settled.
    let mut member = bench.join().await;
    for at in 0..5 {
        let delivery = member.delivery().await;
        let outcome = match at {
            2 => Outcome::Ack,
            _ => Outcome::Return,
        };
        member.settle(delivery.token, outcome).await;
    }
    member.close().await;
    write(&["d", "a", "b", "d"], "late");
    // A segment is compacted when there is another one.
    let mut rolls = 0;
    let left = soon("compaction", || {
        rolls += 1;
        std::thread::sleep(Duration::from_millis(300));
        write(&["z"], &rolls.to_string());
        let held = held(&bench);
        let mut count = BTreeMap::new();
        for (_, key) in held.iter().filter(|(_, key)| key != "z") {
            *count.entry(key.clone()).or_insert(0) += 1;
        }
        let done = count.values().all(|n| *n == 1);
        std::future::ready(if done {
            Ok(held)
        } else {
            Err(format!("{held:?}"))
        })
    })
    .await;
    let mut member = bench.join().await;
    let mut keys = Vec::new();
    assert!(left.contains(&(2, "c".to_owned())), "{left:?}");
    let left: Vec<_> = left.into_iter().filter(|(at, _)| *at != 2).collect();
    for _ in &left {
        let delivery = member.delivery().await;
        let key = delivery.message.get_key().unwrap().to_owned();
        keys.push(format!("{} {key}", delivery.position));
        member.settle(delivery.token, Outcome::Ack).await;
    }
    let wanted: Vec<_> = left
        .iter()
        .map(|(at, key)| format!("0-{at} {key}"))
        .collect();
    assert_eq!(keys, wanted);
    member.quiet(QUIET).await;
    member.close().await;
    assert_eq!(bench.lag().await, Lag::default());
}
