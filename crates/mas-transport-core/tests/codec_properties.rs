//! Properties of the codec over arbitrary messages and arbitrary bytes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mas_transport_core::codec::{fields, raw};
use mas_transport_core::{
    Attribute, Failure, Headers, Message, Position, Priority, Reason, ReasonCode, Record, Topic,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

type Fields = Vec<(Bytes, Bytes)>;

fn topic() -> Topic {
    Topic::new("a.b").unwrap()
}

fn encode(message: &Message) -> Fields {
    let mut fields = Fields::new();
    fields::encode(message, &mut |name, value| {
        fields.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
    });
    fields
}

fn decode(fields: &Fields) -> Result<Message, Reason> {
    let at = Position { major: 5, minor: 6 };
    fields::decode(&topic(), at, fields.clone())
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What an attribute may hold: everything that is no control character, in any script.
fn text() -> impl Strategy<Value = String> {
    "\\PC{1,40}"
}

/// Within the years 0 to 9999.
fn time() -> impl Strategy<Value = SystemTime> {
    (-62_167_219_200..253_402_300_800_i64, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let second = match seconds {
            0.. => SystemTime::UNIX_EPOCH + whole,
            _ => SystemTime::UNIX_EPOCH - whole,
        };
        second + Duration::from_nanos(nanos.into())
    })
}

fn priority() -> impl Strategy<Value = Priority> {
    select(vec![
        Priority::Background,
        Priority::Low,
        Priority::Normal,
        Priority::High,
        Priority::Critical,
    ])
}

fn headers() -> impl Strategy<Value = Headers> {
    let reserved = |name: &String| {
        let prefixes = ["ce_", "ce-", "nats-", "mas-"];
        let names = ["data", "content-type", "traceparent", "tracestate"];
        names.contains(&name.as_str()) || prefixes.iter().any(|p| name.starts_with(p))
    };
    let name = "[a-z0-9._-]{1,64}".prop_filter("reserved", move |name| !reserved(name));
    let all = btree_map(name, "\\PC{0,60}", 0..8).prop_map(|all| all.into_iter().collect());
    all.prop_shuffle().prop_map(|all: Vec<(String, String)>| {
        let mut headers = Headers::default();
        for (name, value) in all {
            headers.append(name, value);
        }
        headers
    })
}

fn record() -> impl Strategy<Value = Record> {
    let reason = (
        select(vec![
            ReasonCode::Rejected,
            ReasonCode::MaxAttempts,
            ReasonCode::Malformed,
        ]),
        any::<String>(),
    );
    let history = vec((any::<u32>(), any::<u64>(), any::<String>()), 0..4);
    let times = (any::<u64>(), any::<u64>());
    (reason, any::<[String; 4]>(), any::<u32>(), times, history).prop_map(
        |((code, text), names, attempts, (first, last), history)| {
            let [topic, group, position, member] = names;
            Record {
                version: Record::VERSION,
                reason: Reason::new(code, text),
                topic,
                group,
                position,
                attempts,
                member,
                first_failure_ms: first,
                last_failure_ms: last,
                history: history
                    .into_iter()
                    .map(|(attempt, at_ms, what)| Failure {
                        attempt,
                        at_ms,
                        what,
                    })
                    .collect(),
            }
        },
    )
}

/// A message with any of everything that the wire carries.
fn message() -> impl Strategy<Value = Message> {
    let required = ([text(), text(), text()], vec(any::<u8>(), 0..2000));
    let optional = (
        option::of(text()),
        option::of(text()),
        priority(),
        vec("[^,\\p{C}]{1,20}", 0..4),
        btree_map(
            select(Attribute::ALL).prop_map(|a| a as usize),
            text(),
            0..14,
        ),
    );
    let typed = (
        option::of(time()),
        option::of(time()),
        option::of(any::<u32>()),
        option::of(any::<u64>()),
        option::of(record()),
    );
    (required, optional, typed, headers()).prop_map(build)
}

type Required = ([String; 3], Vec<u8>);
type Optional = (
    Option<String>,
    Option<String>,
    Priority,
    Vec<String>,
    BTreeMap<usize, String>,
);
type Typed = (
    Option<SystemTime>,
    Option<SystemTime>,
    Option<u32>,
    Option<u64>,
    Option<Record>,
);

fn build((required, optional, typed, headers): (Required, Optional, Typed, Headers)) -> Message {
    let ([id, source, kind], payload) = required;
    let (content_type, key, priority, tags, attributes) = optional;
    let (time, expires, attempts, timeout, record) = typed;
    let mut message = Message::assemble(topic(), id, payload.into())
        .from_source(source)
        .kind(kind)
        .priority(priority)
        .with_headers(headers);
    if let Some(value) = content_type {
        message = message.content_type(value);
    }
    if let Some(value) = key {
        message = message.key(value);
    }
    for tag in tags {
        message = message.tag(tag);
    }
    for (attribute, value) in attributes {
        message = message.set_attribute(Attribute::ALL[attribute], value);
    }
    if let Some(value) = time {
        message = message.time(value);
    }
    if let Some(value) = expires {
        message = message.expires(value);
    }
    if let Some(value) = attempts {
        message = message.max_attempts(value);
    }
    if let Some(value) = timeout {
        message = message.processing_timeout(Duration::from_millis(value));
    }
    if let Some(value) = record {
        message = message.with_record(value);
    }
    message
}

/// Names that mean something, that look so, and that are anything.
fn field_name() -> impl Strategy<Value = Bytes> {
    let known = [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_partitionkey",
        "ce_priority",
        "ce_tags",
        "ce_time",
        "ce_expirytime",
        "ce_maxattempts",
        "ce_processingtimeout",
        "ce_subject",
        "ce_traceparent",
        "ce_tracestate",
        "ce_other",
        "traceparent",
        "tracestate",
        "content-type",
        "mas-record",
        "mas-format",
        "data",
        "Data",
        "plain",
        "",
    ];
    prop_oneof![
        8 => select(known.to_vec()).prop_map(|name| Bytes::from_static(name.as_bytes())),
        2 => "\\PC{0,20}".prop_map(Bytes::from),
        1 => vec(any::<u8>(), 0..20).prop_map(Bytes::from),
    ]
}

/// Values that fit some field, and values that are anything.
fn field_value() -> impl Strategy<Value = Bytes> {
    let plausible = [
        "1.0",
        "1",
        "high",
        "a,b",
        ",,",
        "2026-11-21T06:40:00.5+02:00",
        "9999-12-31T23:59:59-23:59",
        "0000-01-01T00:00:00+23:59",
        "18446744073709551615",
        "text",
    ];
    prop_oneof![
        6 => select(plausible.to_vec()).prop_map(|value| Bytes::from_static(value.as_bytes())),
        2 => record().prop_map(|record| Bytes::from(fields::encode_record(&record))),
        2 => "\\PC{0,20}".prop_map(Bytes::from),
        1 => vec(any::<u8>(), 0..200).prop_map(Bytes::from),
    ]
}

/// An entry that any program may have written.
fn anything() -> impl Strategy<Value = Fields> {
    let fields = || vec((field_name(), field_value()), 0..8);
    let field = |name: &'static str, value: &'static str| (name.into(), value.into());
    let whole = fields().prop_map(move |mut fields| {
        fields.extend([
            field("ce_specversion", "1.0"),
            field("ce_id", "1"),
            field("ce_source", "/s"),
            field("ce_type", "t"),
        ]);
        fields
    });
    let plain = fields().prop_map(move |mut fields| {
        fields.retain(|(name, _)| name != "ce_specversion");
        fields.push(field("data", "d"));
        fields
    });
    prop_oneof![fields(), whole.prop_shuffle(), plain.prop_shuffle()]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_valid_message_comes_back_as_it_was(message in message()) {
        prop_assert!(message.check().is_ok());
        let fields = encode(&message);
        prop_assert_eq!(&fields.last().unwrap().0, "data");
        prop_assert_eq!(decode(&fields).unwrap(), message);
    }

    #[test]
    fn the_order_of_attributes_says_nothing(
        (fields, message) in message().prop_flat_map(|message| {
            // Headers keep their order among themselves, so leave them out.
            let message = message.with_headers(Headers::default());
            (Just(encode(&message)).prop_shuffle(), Just(message))
        })
    ) {
        prop_assert_eq!(decode(&fields).unwrap(), message);
    }

    #[test]
    fn whatever_is_read_can_be_written_and_read_again(fields in anything()) {
        let message = match decode(&fields) {
            Ok(message) => message,
            Err(reason) => {
                prop_assert_eq!(reason.code, ReasonCode::Malformed);
                prop_assert!(!reason.text.chars().any(char::is_control), "{}", reason.text);
                prop_assert!(reason.text.len() < 400);
                return Ok(());
            }
        };
        let is_event = fields.iter().any(|(name, _)| name == "ce_specversion");
        let again = decode(&encode(&message)).unwrap();
        // Only a foreign entry has headers that look like attributes of an event.
        if is_event || !message.headers().iter().any(|(name, _)| name.starts_with("ce_")) {
            prop_assert_eq!(&again, &message);
        }
        prop_assert_eq!(again.payload(), message.payload());
        prop_assert_eq!(again.id(), message.id());
        prop_assert_eq!(decode(&encode(&again)).unwrap(), again);
    }

    #[test]
    fn nothing_that_is_read_is_lost(fields in anything()) {
        if let Ok(message) = decode(&fields) {
            // Each field is an attribute or a header; the empty tags of a list are not kept.
            let written = encode(&message);
            let is_event = fields.iter().any(|(name, _)| name == "ce_specversion");
            let headers: Vec<_> = message.headers().iter().collect();
            for (name, value) in &fields {
                let kept = written.iter().any(|(n, v)| n == name && v == value);
                let header = headers
                    .iter()
                    .any(|(n, v)| n.as_bytes() == name && v.as_bytes() == Some(value));
                let typed = is_event && name.starts_with(b"ce_");
                prop_assert!(kept || header || typed || name == "mas-record", "{:?}", name);
            }
        }
    }

    #[test]
    fn a_raw_entry_comes_back_as_it_was(
        fields in vec((vec(any::<u8>(), 0..50), vec(any::<u8>(), 0..500)), 0..10)
    ) {
        let fields: Fields = fields.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        prop_assert_eq!(raw::decode(&raw::encode(&fields)), Some(fields));
    }

    #[test]
    fn raw_bytes_are_read_or_refused(mut bytes in vec(prop_oneof![Just(0), any::<u8>()], 0..100)) {
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let bytes = Bytes::from(bytes);
        if let Some(fields) = raw::decode(&bytes) {
            prop_assert_eq!(raw::encode(&fields), bytes);
        }
    }
}

#[test]
fn an_entry_of_very_many_fields_is_read() {
    // Quadratic work on what a stranger wrote would take minutes here.
    let field = |i: u32| (Bytes::from(format!("ce_x{i}")), Bytes::new());
    let mut fields: Fields = (0..100_000).map(field).collect();
    fields.push(("data".into(), "d".into()));
    assert_eq!(decode(&fields).unwrap().headers().len(), 100_000);
    fields.push(("ce_x7".into(), Bytes::new()));
    assert!(decode(&fields).is_err());
}
