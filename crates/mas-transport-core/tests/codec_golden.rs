//! The wire form, pinned: exactly these fields, and exactly this reading of them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mas_transport_core::codec::{fields, raw};
use mas_transport_core::{
    Attribute, Failure, Message, Position, Priority, Reason, ReasonCode, Record, Topic,
};

type Fields = Vec<(Bytes, Bytes)>;

const AT: Position = Position {
    major: 1_795_243_200_000,
    minor: 7,
};

fn topic() -> Topic {
    Topic::new("vision.review").unwrap()
}

fn encode(message: &Message) -> Fields {
    let mut fields = Fields::new();
    fields::encode(message, &mut |name, value| {
        fields.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
    });
    fields
}

fn entry(fields: &[(&str, &[u8])]) -> Fields {
    let bytes = Bytes::copy_from_slice;
    let field = |&(name, value): &(&str, &[u8])| (bytes(name.as_bytes()), bytes(value));
    fields.iter().map(field).collect()
}

fn decode(fields: &[(&str, &[u8])]) -> Result<Message, Reason> {
    fields::decode(&topic(), AT, entry(fields))
}

/// An event with these fields more.
fn event(more: &[(&str, &[u8])]) -> Result<Message, Reason> {
    let least: [(&str, &[u8]); 4] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"/s"),
        ("ce_type", b"t"),
    ];
    decode(&[&least, more].concat())
}

fn record() -> Record {
    Record {
        version: 1,
        reason: Reason::new(ReasonCode::MaxAttempts, "3 attempts"),
        topic: "vision.review".into(),
        group: "reviewers".into(),
        position: "1795243200000-3".into(),
        attempts: 3,
        member: "m1".into(),
        first_failure_ms: 1_795_243_200_000,
        last_failure_ms: 1_795_243_260_000,
        history: vec![Failure {
            attempt: 3,
            at_ms: 1_795_243_260_000,
            what: "nack".into(),
        }],
    }
}

const RECORD: &str = r#"{"version":1,"reason":{"code":"max_attempts","text":"3 attempts"},"topic":"vision.review","group":"reviewers","position":"1795243200000-3","attempts":3,"member":"m1","first_failure_ms":1795243200000,"last_failure_ms":1795243260000,"history":[{"attempt":3,"at_ms":1795243260000,"what":"nack"}]}"#;

#[test]
fn the_least_message() {
    let message = Message::assemble(topic(), "1".into(), Bytes::new());
    let fields = entry(&[
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"mas-transport"),
        ("ce_type", b"message"),
        ("data", b""),
    ]);
    assert_eq!(encode(&message), fields);
    assert_eq!(fields::decode(&topic(), AT, fields).unwrap(), message);
}

#[test]
fn the_full_message() {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_243_200_120);
    let mut message = Message::assemble(topic(), "a1".into(), Bytes::from(&b"\0\xff"[..]))
        .from_source("/agents/planner")
        .kind("review.asked")
        .content_type("image/png")
        .key("naïve 🦀")
        .priority(Priority::Critical)
        .tag("blue")
        .tag("two words")
        .time(time)
        .expires(time + Duration::from_secs(60))
        .max_attempts(5)
        .processing_timeout(Duration::from_micros(1_500_001))
        .header("x.region", "eu")
        .header("b", "2")
        .with_record(record());
    for attribute in Attribute::ALL {
        message = message.set_attribute(*attribute, format!("the {}", attribute.wire_name()));
    }
    let fields = entry(&[
        ("ce_specversion", b"1.0"),
        ("ce_id", b"a1"),
        ("ce_source", b"/agents/planner"),
        ("ce_type", b"review.asked"),
        ("content-type", b"image/png"),
        ("ce_subject", b"the subject"),
        ("ce_recipient", b"the recipient"),
        ("ce_correlationid", b"the correlationid"),
        ("ce_causationid", b"the causationid"),
        ("ce_replyto", b"the replyto"),
        ("ce_idempotencykey", b"the idempotencykey"),
        ("ce_dataschema", b"the dataschema"),
        ("ce_schemaversion", b"the schemaversion"),
        ("traceparent", b"the traceparent"),
        ("tracestate", b"the tracestate"),
        ("ce_action", b"the action"),
        ("ce_expectedoutcome", b"the expectedoutcome"),
        ("ce_senderversion", b"the senderversion"),
        ("ce_senderinstance", b"the senderinstance"),
        ("ce_partitionkey", "naïve 🦀".as_bytes()),
        ("ce_priority", b"5"),
        ("ce_tags", b"blue,two words"),
        ("ce_time", b"2026-11-21T06:40:00.12Z"),
        ("ce_expirytime", b"2026-11-21T06:41:00.12Z"),
        ("ce_maxattempts", b"5"),
        ("ce_processingtimeout", b"1501"),
        ("x.region", b"eu"),
        ("b", b"2"),
        ("mas-record", RECORD.as_bytes()),
        ("data", b"\0\xff"),
    ]);
    assert_eq!(encode(&message), fields);
    let mut shuffled = fields.clone();
    shuffled.reverse();
    // The order of headers is theirs to keep; that of everything else says nothing.
    let headers = |f: &(Bytes, Bytes)| f.0 == "x.region" || f.0 == "b";
    let found: Vec<usize> = (0..shuffled.len())
        .filter(|i| headers(&shuffled[*i]))
        .collect();
    shuffled.swap(found[0], found[1]);
    let message = message.processing_timeout(Duration::from_millis(1501));
    for fields in [fields, shuffled] {
        assert_eq!(fields::decode(&topic(), AT, fields).unwrap(), message);
    }
}

#[test]
fn a_delay_is_not_on_the_wire() {
    let message = Message::new(topic(), "").unwrap();
    let delayed = message.clone().delay(Duration::from_secs(1));
    assert_eq!(encode(&delayed), encode(&message));
}

#[test]
fn an_event_of_another_program() {
    let message = event(&[
        ("ce_dataref", b"s3://b/k"),
        ("ce_priority", b"urgent"),
        ("ce_tags", b",a,,b,"),
        ("ce_time", b"2026-11-21T08:10:00+01:30"),
        ("Content-Type", b"text/plain"),
        ("bin", b"\xff\0"),
        ("bin", b""),
        ("", b"nameless"),
    ])
    .unwrap();
    assert!(message.payload().is_empty(), "data may be missing");
    assert_eq!(message.get_content_type(), None);
    assert_eq!(message.get_priority(), Priority::Critical);
    assert_eq!(message.tags(), ["a", "b"]);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_243_200);
    assert_eq!(message.get_time(), Some(time));
    let headers: Vec<_> = message
        .headers()
        .iter()
        .map(|(name, value)| (name, value.as_bytes().unwrap()))
        .collect();
    let expected: [(&str, &[u8]); 5] = [
        ("ce_dataref", b"s3://b/k"),
        ("Content-Type", b"text/plain"),
        ("bin", b"\xff\0"),
        ("bin", b""),
        ("", b"nameless"),
    ];
    assert_eq!(headers, expected);
}

#[test]
fn a_foreign_plain_entry() {
    let message = decode(&[
        ("level", b"info"),
        ("content-type", b"text/plain"),
        ("traceparent", b"00-1-2-01"),
        ("ce_id", b"of no meaning here"),
        ("data", b"hello"),
    ])
    .unwrap();
    assert_eq!(message.id(), "1795243200000-7");
    assert_eq!(message.source(), fields::FOREIGN_SOURCE);
    assert_eq!(message.get_kind(), Message::DEFAULT_KIND);
    assert_eq!(message.get_content_type(), Some("text/plain"));
    assert_eq!(message.attribute(Attribute::TraceParent), Some("00-1-2-01"));
    assert_eq!(message.payload().as_ref(), b"hello");
    let headers: Vec<_> = message.headers().iter().map(|(name, _)| name).collect();
    assert_eq!(headers, ["level", "ce_id"]);

    // As a dead letter it is the same message, with a record.
    let dead = decode(&[("data", b"hello"), ("mas-record", RECORD.as_bytes())]).unwrap();
    assert_eq!(dead.id(), "1795243200000-3");
    assert_eq!(dead.record(), Some(&record()));
    assert!(dead.headers().is_empty());
    let nowhere = RECORD.replace("1795243200000-3", "");
    let dead = decode(&[("data", b"hello"), ("mas-record", nowhere.as_bytes())]).unwrap();
    assert_eq!(dead.id(), "1795243200000-7");
}

#[test]
fn headers_under_the_names_of_an_event_are_not_written() {
    let message = decode(&[
        ("ce_id", b"theirs"),
        ("ce_subject", b"theirs"),
        ("ce_traceparent", b"\xff"),
        ("ce_tracestate", b"kept"),
        ("ce_other", b"\xff"),
        ("traceparent", b"hop"),
        ("data", b""),
    ])
    .unwrap();
    let names = |m: &Message| -> Vec<String> {
        m.headers()
            .iter()
            .map(|(name, _)| name.to_owned())
            .collect()
    };
    let read = [
        "ce_id",
        "ce_subject",
        "ce_traceparent",
        "ce_tracestate",
        "ce_other",
    ];
    assert_eq!(names(&message), read);
    let message = message.header("data", "not the payload");
    let again = fields::decode(&topic(), AT, encode(&message)).unwrap();
    assert_eq!(names(&again), ["ce_other"]);
    assert_eq!(again.id(), "1795243200000-7");
    assert_eq!(again.attribute(Attribute::Subject), None);
    assert_eq!(again.attribute(Attribute::TraceState), Some("kept"));
    assert!(again.payload().is_empty());
}

#[test]
fn the_trace_of_the_event_and_that_of_the_hop() {
    let start = |m: &Message| m.attribute(Attribute::TraceParent).map(str::to_owned);
    let kept = |m: &Message| m.headers().get("ce_traceparent").is_some();
    let both = event(&[("ce_traceparent", b"start"), ("traceparent", b"hop")]).unwrap();
    assert_eq!((start(&both).as_deref(), kept(&both)), (Some("hop"), true));
    assert_eq!(fields::decode(&topic(), AT, encode(&both)).unwrap(), both);
    let alone = event(&[("ce_traceparent", b"start"), ("traceparent", b"\xff")]).unwrap();
    assert_eq!(
        (start(&alone).as_deref(), kept(&alone)),
        (Some("start"), false)
    );
    let twice = event(&[("traceparent", b"a"), ("traceparent", b"b")]).unwrap();
    assert_eq!(start(&twice).as_deref(), Some("a"));
    assert_eq!(
        twice.headers().get("traceparent").unwrap().as_str(),
        Some("b")
    );
}

#[test]
fn what_is_malformed_names_the_field_and_no_value() {
    let long = "é".repeat(100);
    let cases: &[(Result<Message, Reason>, &str)] = &[
        (
            decode(&[]),
            "field data: neither it nor ce_specversion is there",
        ),
        (decode(&[("ce_id", b"1")]), "field data: neither"),
        (
            decode(&[("ce_specversion", b"1.0")]),
            "field ce_id: an event has it",
        ),
        (
            decode(&[("ce_specversion", b"SECRET")]),
            "field ce_specversion: ",
        ),
        (
            event(&[("ce_id", b"SECRET")]),
            "field ce_id: it is there twice",
        ),
        (
            event(&[("ce_dataref", b"SECRET"), ("ce_dataref", b"")]),
            "field ce_dataref: it is",
        ),
        (
            event(&[("data", b"SECRET"), ("data", b"")]),
            "field data: it is there twice",
        ),
        (
            decode(&[("data", b""), ("data", b"")]),
            "field data: it is there twice",
        ),
        (
            event(&[("ce_subject", b"SECRET\xff")]),
            "field ce_subject: it is not UTF-8",
        ),
        (
            event(&[("ce_time", b"SECRET")]),
            "field ce_time: it is not a time in RFC 3339",
        ),
        (
            event(&[("ce_expirytime", b"")]),
            "field ce_expirytime: it is not a time",
        ),
        (
            event(&[("ce_priority", b"SECRET")]),
            "field ce_priority: it is not a priority",
        ),
        (
            event(&[("ce_maxattempts", b"-1")]),
            "field ce_maxattempts: it is not a number",
        ),
        (
            event(&[("ce_processingtimeout", b"1s")]),
            "field ce_processingtimeout: it is not",
        ),
        (
            event(&[("mas-format", b"2")]),
            "field mas-format: a wire format that this",
        ),
        (
            event(&[(&long, b""), ("data", b""), ("data", b"")]),
            "field data: ",
        ),
    ];
    for (result, expected) in cases {
        let reason = result.as_ref().unwrap_err();
        assert_eq!(reason.code, ReasonCode::Malformed);
        assert!(reason.text.starts_with(expected), "{}", reason.text);
        assert!(!reason.text.contains("SECRET"), "{}", reason.text);
    }
    for required in ["ce_id", "ce_source", "ce_type"] {
        for value in [&b""[..], b"\xff"] {
            let mut fields: Vec<(&str, &[u8])> = vec![("ce_specversion", b"1.0")];
            for name in ["ce_id", "ce_source", "ce_type"] {
                fields.push((name, if name == required { value } else { b"v" }));
            }
            let reason = decode(&fields).unwrap_err();
            assert!(reason.text.starts_with(&format!("field {required}: ")));
        }
    }
    let name = Bytes::from([&b"\x1b\xff"[..], &[b'n'; 100]].concat());
    let reason = fields::decode(
        &topic(),
        AT,
        vec![(Bytes::from("data"), Bytes::new()), (name, Bytes::new())],
    );
    let text = format!(r"field \x1b\xff{}…: a field name is UTF-8", "n".repeat(62));
    assert_eq!(reason.unwrap_err().text, text);
}

#[test]
fn a_record_that_cannot_be_read_is_a_header() {
    let later = RECORD.replacen("\"version\":1", "\"version\":2", 1);
    let message = event(&[
        ("mas-record", b"not JSON"),
        ("mas-record", RECORD.as_bytes()),
        ("mas-record", later.as_bytes()),
        ("data", b"d"),
    ])
    .unwrap();
    assert_eq!(message.record(), Some(&record()));
    let kept: Vec<_> = message
        .headers()
        .iter()
        .map(|(_, v)| v.as_str().unwrap())
        .collect();
    assert_eq!(kept, ["not JSON", &later]);
    // The later of two that can be read counts: it is of the later death.
    let again = RECORD.replacen("m1", "m2", 1);
    let message = event(&[
        ("mas-record", RECORD.as_bytes()),
        ("mas-record", again.as_bytes()),
    ]);
    let message = message.unwrap();
    assert_eq!(message.record().unwrap().member, "m2");
    assert_eq!(message.headers().len(), 1);
    assert_eq!(
        fields::decode(&topic(), AT, encode(&message)).unwrap(),
        message
    );
}

#[test]
fn a_record_fits_its_reserve() {
    let mut record = record();
    record.reason = Reason::new(ReasonCode::Rejected, "\0".repeat(1024));
    let failure = |attempt| Failure {
        attempt,
        at_ms: 0,
        what: "\0".repeat(1024),
    };
    record.history = (1..=16).map(failure).collect();
    let json = fields::encode_record(&record);
    assert!(json.len() + fields::RECORD_FIELD.len() <= mas_transport_core::RECORD_RESERVE);
    let read: Record = serde_json::from_slice(&json).unwrap();
    assert_eq!(read.reason, record.reason);
    assert_eq!(read.history.last(), record.history.last());
}

#[test]
fn a_quarantined_entry_comes_back_as_it_was() {
    let original = entry(&[("ce_specversion", b"9"), ("x", b"\xff\0"), ("x", b"")]);
    let bad = Topic::stored("_bad.reviewers.vision.review").unwrap();
    let message = fields::quarantine(bad.clone(), &original, record());
    assert_eq!(message.topic(), &bad);
    assert_eq!(message.id(), "vision.review/1795243200000-3");
    assert_eq!(message.get_kind(), "mas.quarantine");
    let read = fields::decode(&bad, AT, encode(&message)).unwrap();
    assert_eq!(read, message);
    assert_eq!(read.get_content_type(), Some("application/x-mas-raw-entry"));
    assert_eq!(raw::decode(read.payload()).unwrap(), original);
    assert_eq!(read.record(), Some(&record()));
}

#[test]
fn the_payload_is_not_copied() {
    let payload = Bytes::from(vec![7; 4096]);
    let mut fields = entry(&[("x", b"header")]);
    fields.push((Bytes::from("data"), payload.clone()));
    let header = fields[0].1.clone();
    let message = fields::decode(&topic(), AT, fields).unwrap();
    assert_eq!(message.payload().as_ptr(), payload.as_ptr());
    let value = message.headers().get("x").unwrap().as_bytes().unwrap();
    assert_eq!(value.as_ptr(), header.as_ptr());
}
