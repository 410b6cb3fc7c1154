//! Attributes, headers, keys and values, in both directions.

use std::time::{Duration, UNIX_EPOCH};

use mas_transport_core::codec::fields::{FOREIGN_SOURCE, QUARANTINE_KIND, RECORD_FIELD};
use mas_transport_core::{Attribute, Delivery, Group, Message, Priority, Topic};
use tokio::time::Instant;

use crate::clients::{Bench, GROUP, SOON, Wire, next};

/// 2026-11-21T14:15:16.5Z
const TIME: Duration = Duration::from_millis(1_795_270_516_500);
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The header of a text attribute.
fn header_of(attribute: Attribute) -> String {
    match attribute {
        Attribute::TraceParent | Attribute::TraceState => attribute.wire_name().to_owned(),
        _ => format!("ce_{}", attribute.wire_name()),
    }
}

/// A value that no encoding but UTF-8 leaves as it is.
fn value_of(attribute: Attribute) -> String {
    match attribute {
        Attribute::TraceParent => PARENT.to_owned(),
        _ => format!("\"{}\" 100%, %C3 größer 日本🦀", attribute.wire_name()),
    }
}

/// An event with what an event has to have.
fn event(id: &str) -> Wire {
    Wire::default()
        .header("ce_specversion", "1.0")
        .header("ce_id", id)
        .header("ce_source", "/plänner?x=%201")
        .header("ce_type", "order.created")
}

fn headers(got: &Delivery) -> Vec<(String, Vec<u8>)> {
    let headers = got.headers().iter();
    let owned = headers.map(|(name, value)| {
        let value = value.as_bytes().expect("a value");
        (name.to_owned(), value.to_vec())
    });
    owned.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_clients_are_read_with_all_attributes() {
    for bench in Bench::all("theirs", 1).await {
        theirs(&bench).await;
        bench.close().await;
    }
}

async fn theirs(bench: &Bench) {
    let topic = bench.topic().await;
    // In an order of their own, with attributes that nobody here knows.
    let mut full = Wire::default()
        .key("Straße")
        .value(b"\0\xff\xfe{}")
        .header("x-own", "50% as it is, größer")
        .header("x-twice", "a")
        .header("content-type", "text/plain; charset=utf-8")
        .header("ce_type", "order.created")
        .header("ce_time", "2026-11-21T15:15:16.5+01:00")
        .header("ce_expirytime", "2999-01-01T00:00:00Z")
        .header("ce_partitionkey", "Straße")
        .header("ce_priority", "4")
        .header("ce_tags", "a,größer")
        .header("ce_maxattempts", "7")
        .header("ce_processingtimeout", "1500")
        .header("ce_sequence", "0001")
        .header("ce_comexampleowner", "Zoë")
        .header("x-twice", "b")
        .header("x-bytes", b"\xff\0\xfe")
        .header("x-empty", "");
    for attribute in Attribute::ALL {
        full = full.header(&header_of(*attribute), value_of(*attribute));
    }
    let full = full
        .header("ce_source", "/plänner?x=%201")
        .header("ce_id", "a \"b\"%é")
        .header("ce_specversion", "1.0");
    let tombstone = event("2").key("ключ 7");
    let written = [
        full,
        tombstone.clone(),
        event("3").value(""),
        event("4")
            .key("k")
            .header("ce_partitionkey", "p")
            .value("{}"),
        // These two are no events.
        Wire::default().header("ce_specversion", "1.0").value("x"),
        event("\u{e9}").header("ce_subject", b"\xe9").value("x"),
        Wire::default()
            .key("k")
            .header("content-type", "text/css")
            .value("body {}"),
        Wire::default()
            .header("content-type", "application/cloudevents+json")
            .value("{\"specversion\":\"1.0\"}"),
    ];
    bench.write(&topic, &written);
    let consumer = bench.consumer(&topic).await;

    let got = next(&consumer).await;
    assert_eq!(got.id(), "a \"b\"%é");
    assert_eq!(got.source(), "/plänner?x=%201");
    assert_eq!(got.get_kind(), "order.created");
    assert_eq!(got.get_content_type(), Some("text/plain; charset=utf-8"));
    assert_eq!(got.get_key(), Some("Straße"));
    assert_eq!(got.get_time(), Some(UNIX_EPOCH + TIME));
    let year_2999 = Duration::from_secs(32_472_144_000);
    assert_eq!(got.expires_at(), Some(UNIX_EPOCH + year_2999));
    assert_eq!(got.get_priority(), Priority::High);
    assert_eq!(got.tags(), ["a", "größer"]);
    assert_eq!(got.get_max_attempts(), Some(7));
    let limit = Duration::from_millis(1500);
    assert_eq!(got.get_processing_timeout(), Some(limit));
    for attribute in Attribute::ALL {
        let value = value_of(*attribute);
        assert_eq!(got.attribute(*attribute), Some(value.as_str()));
    }
    let own: [(&str, &[u8]); 7] = [
        ("x-own", "50% as it is, größer".as_bytes()),
        ("x-twice", b"a"),
        ("ce_sequence", b"0001"),
        ("ce_comexampleowner", "Zoë".as_bytes()),
        ("x-twice", b"b"),
        ("x-bytes", b"\xff\0\xfe"),
        ("x-empty", b""),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_vec()));
    assert_eq!(headers(&got), own);
    assert_eq!(got.payload().as_ref(), b"\0\xff\xfe{}");
    got.ack().await.unwrap();

    // The record's key is the message's also without an attribute; no value is an empty payload.
    let got = next(&consumer).await;
    assert_eq!((got.id(), got.get_key()), ("2", Some("ключ 7")));
    assert_eq!(got.get_content_type(), None);
    assert!(got.payload().is_empty() && got.headers().is_empty());
    got.reject("nobody wants it").await.unwrap();
    let got = next(&consumer).await;
    assert_eq!((got.id(), got.get_key()), ("3", None));
    assert!(got.payload().is_empty());
    got.ack().await.unwrap();
    let got = next(&consumer).await;
    assert_eq!((got.id(), got.get_key()), ("4", Some("p")));
    assert_eq!(got.payload().as_ref(), b"{}");
    got.ack().await.unwrap();
    // The two between were quarantined.
    let got = next(&consumer).await;
    assert_eq!(got.source(), FOREIGN_SOURCE);
    assert_eq!(got.get_content_type(), Some("text/css"));
    assert_eq!(got.get_key(), Some("k"));
    assert_eq!(got.payload().as_ref(), b"body {}");
    got.ack().await.unwrap();
    // Structured mode is not taken apart.
    let got = next(&consumer).await;
    let json = Some("application/cloudevents+json");
    assert_eq!(
        (got.source(), got.get_content_type()),
        (FOREIGN_SOURCE, json)
    );
    assert_eq!(got.payload().as_ref(), b"{\"specversion\":\"1.0\"}");
    got.ack().await.unwrap();
    consumer.close(Instant::now() + SOON).await.unwrap();

    // What they find: the original with its record, a null value still null, and two in quarantine.
    let group = Group::new(GROUP).unwrap();
    let mut letters = bench.read(&Topic::dead_letters(&topic, &group));
    assert_eq!(letters.len(), 1, "{letters:?}");
    let told = letters[0].headers.pop().unwrap();
    assert_eq!(told.name, RECORD_FIELD);
    let told: serde_json::Value = serde_json::from_slice(&told.value.0).unwrap();
    assert!(told.to_string().contains("nobody wants it"), "{told}");
    assert_eq!(told["topic"], topic.as_str());
    letters[0].partition = None;
    assert_eq!(letters, [tombstone]);
    let bad = bench.read(&Topic::quarantine(&topic, &group));
    let kinds = bad.iter().flat_map(|wire| &wire.headers);
    let kinds = kinds.filter(|h| h.name == "ce_type" && h.value.0 == QUARANTINE_KIND.as_bytes());
    assert_eq!((bad.len(), kinds.count()), (2, 2), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_clients_read_our_events() {
    for bench in Bench::all("ours", 3).await {
        ours(&bench).await;
        bench.close().await;
    }
}

async fn ours(bench: &Bench) {
    let topic = bench.topic().await;
    let message = |id: &str, payload: &'static [u8]| {
        let message = Message::new(topic.clone(), payload).unwrap();
        message.with_id(id)
    };
    let mut full = message("a \"b\"%é~", b"\0\xff\xfe{}")
        .from_source("/rust/plänner?x=%201")
        .kind("order paid")
        .content_type("text/plain; charset=utf-8")
        .key("Straße")
        .tag("a")
        .tag("größer")
        .time(UNIX_EPOCH + TIME)
        .max_attempts(7)
        .processing_timeout(Duration::from_millis(1500))
        .header("x-own", "50% as it is, größer")
        .header("x-empty", "");
    let mut wanted = Wire::default()
        .key("Straße")
        .value(b"\0\xff\xfe{}")
        .header("ce_specversion", "1.0")
        .header("ce_id", "a \"b\"%é~")
        .header("ce_source", "/rust/plänner?x=%201")
        .header("ce_type", "order paid")
        .header("content-type", "text/plain; charset=utf-8")
        .header("ce_partitionkey", "Straße")
        .header("ce_tags", "a,größer")
        .header("ce_time", "2026-11-21T14:15:16.5Z")
        .header("ce_maxattempts", "7")
        .header("ce_processingtimeout", "1500")
        .header("x-own", "50% as it is, größer")
        .header("x-empty", "");
    for attribute in Attribute::ALL {
        // It is refused: Kafka knows no dedup by it.
        if *attribute != Attribute::IdempotencyKey {
            full = full.set_attribute(*attribute, value_of(*attribute));
            wanted = wanted.header(&header_of(*attribute), value_of(*attribute));
        }
    }
    // An empty payload is no tombstone: the value is there, and empty.
    let bare = message("2", b"");
    let wanted_bare = Wire::default()
        .value("")
        .header("ce_specversion", "1.0")
        .header("ce_id", "2")
        .header("ce_source", Message::DEFAULT_SOURCE)
        .header("ce_type", Message::DEFAULT_KIND);
    let mut all = Vec::new();
    for (message, wanted) in [(full, wanted), (bare, wanted_bare)] {
        let receipt = bench.publisher.publish(message).await.unwrap();
        let partition = Some(i32::try_from(receipt.position.major).unwrap());
        all.push(
            Wire {
                partition,
                ..wanted
            }
            .sorted(),
        );
    }
    let mut read = bench.read(&topic);
    read.sort_by_key(|wire| wire.key.is_none());
    let read: Vec<_> = read.into_iter().map(Wire::sorted).collect();
    assert_eq!(read, all);
}
