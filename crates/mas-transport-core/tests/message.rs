//! What a message keeps, compares and refuses.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mas_transport_core::{
    Attribute, ErrorKind, HeaderValue, Headers, MAX_ATTRIBUTE, Message, Priority, Reason,
    ReasonCode, Record, Topic, clock,
};
use serde::{Deserialize, Serialize};

fn message() -> Message {
    Message::assemble(Topic::new("a.b").unwrap(), "1".into(), Bytes::new())
}

#[test]
fn a_new_message_has_an_id_of_its_own_and_the_defaults() {
    let (one, two) = (
        Message::new("a.b", "x").unwrap(),
        Message::new("a.b", "x").unwrap(),
    );
    assert_ne!(one.id(), two.id());
    let id = uuid::Uuid::parse_str(one.id()).unwrap();
    assert_eq!(id.get_version_num(), 7);
    assert_eq!(id.to_string(), one.id(), "lower case, with hyphens");
    assert_eq!(one.topic().as_str(), "a.b");
    assert_eq!(one.source(), Message::DEFAULT_SOURCE);
    assert_eq!(one.get_kind(), Message::DEFAULT_KIND);
    assert_eq!(one.get_priority(), Priority::Normal);
    assert_eq!(one.payload(), "x");
    assert!(one.get_content_type().is_none() && one.get_key().is_none());
    assert!(one.headers().is_empty() && one.tags().is_empty());
    assert_eq!(one.attributes().count(), 0);
    assert!(one.get_time().is_none() && one.expires_at().is_none());
    assert!(one.get_delay().is_none() && one.get_processing_timeout().is_none());
    assert!(one.get_max_attempts().is_none() && one.record().is_none());
    assert!(one.check().is_ok());
}

#[test]
fn a_topic_that_breaks_a_rule_is_refused() {
    for topic in ["", "a b", "a.*", "_dlq.g.t"] {
        let error = Message::new(topic, "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{topic}");
    }
    assert!(Message::new(String::from("a"), "").is_ok());
    let topic = Topic::new("a").unwrap();
    assert!(Message::new(&topic, "").is_ok());
    assert!(Message::new(topic, "").is_ok());
}

#[test]
fn what_is_set_is_kept() {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let record = Record {
        version: Record::VERSION,
        reason: Reason::new(ReasonCode::Rejected, "no"),
        topic: "a.b".into(),
        group: "g".into(),
        position: "1-1".into(),
        attempts: 1,
        member: "m".into(),
        first_failure_ms: 1,
        last_failure_ms: 2,
        history: Vec::new(),
    };
    let set = message()
        .with_id("7")
        .from_source("/agents/planner")
        .kind("order.created")
        .content_type("text/plain")
        .key("k")
        .priority(Priority::High)
        .header("h", "v")
        .tag("a")
        .tag("b")
        .time(time)
        .expires(time)
        .delay(Duration::from_secs(2))
        .max_attempts(9)
        .processing_timeout(Duration::from_secs(3))
        .reply_to("answers")
        .with_record(record.clone())
        .on_topic(Topic::new("c").unwrap())
        .with_payload(Bytes::from("p"));
    assert_eq!(set.id(), "7");
    assert_eq!(set.source(), "/agents/planner");
    assert_eq!(set.get_kind(), "order.created");
    assert_eq!(set.get_content_type(), Some("text/plain"));
    assert_eq!(set.get_key(), Some("k"));
    assert_eq!(set.get_priority(), Priority::High);
    assert_eq!(set.headers().get("h").unwrap().as_str(), Some("v"));
    assert_eq!(set.tags(), ["a", "b"]);
    assert_eq!(set.get_time(), Some(time));
    assert_eq!(set.expires_at(), Some(time));
    assert_eq!(set.get_delay(), Some(Duration::from_secs(2)));
    assert_eq!(set.get_max_attempts(), Some(9));
    assert_eq!(set.get_processing_timeout(), Some(Duration::from_secs(3)));
    assert_eq!(set.attribute(Attribute::ReplyTo), Some("answers"));
    assert_eq!(set.record(), Some(&record));
    assert_eq!(set.topic().as_str(), "c");
    assert_eq!(set.payload(), "p");
    assert!(set.with_headers(Headers::default()).headers().is_empty());
}

#[test]
fn each_attribute_has_a_setter_and_a_name_of_cloudevents() {
    let set = message()
        .subject("subject")
        .recipient("recipient")
        .correlation_id("correlationid")
        .causation_id("causationid")
        .reply_to("replyto")
        .idempotency_key("idempotencykey")
        .data_schema("dataschema")
        .schema_version("schemaversion")
        .trace_parent("traceparent")
        .trace_state("tracestate")
        .action("action")
        .expected_outcome("expectedoutcome")
        .sender_version("senderversion")
        .sender_instance("senderinstance");
    assert_eq!(set.attributes().count(), Attribute::ALL.len());
    for &attribute in Attribute::ALL {
        let name = attribute.wire_name();
        assert_eq!(set.attribute(attribute), Some(name));
        assert_eq!(Attribute::from_wire_name(name.as_bytes()), Some(attribute));
        assert!(name.len() <= 20 && name.bytes().all(|b| b.is_ascii_lowercase()));
    }
    for unknown in ["", "Subject", "subject ", "ce_subject"] {
        assert_eq!(Attribute::from_wire_name(unknown.as_bytes()), None);
    }
}

#[test]
fn equality_knows_no_order_of_attributes() {
    let one = message().subject("s").action("a").recipient("r");
    let two = message()
        .recipient("r")
        .subject("old")
        .action("a")
        .subject("s");
    assert_eq!(one, two);
    assert_ne!(one, two.clone().subject("other"));
    assert_ne!(one, two.header("h", ""));
    // Tags and headers are lists.
    assert_ne!(message().tag("a").tag("b"), message().tag("b").tag("a"));
    assert_ne!(
        message().header("a", "").header("b", ""),
        message().header("b", "").header("a", "")
    );
}

#[test]
fn a_clone_shares_and_does_not_follow() {
    let one = Message::new("a", vec![7; 1000]).unwrap().subject("s");
    let two = one.clone();
    assert_eq!(size_of::<Message>(), size_of::<usize>());
    assert_eq!(one.id().as_ptr(), two.id().as_ptr());
    assert_eq!(one.payload().as_ptr(), two.payload().as_ptr());
    let changed = two.subject("other").key("k");
    assert_eq!(one.attribute(Attribute::Subject), Some("s"));
    assert_eq!(one.get_key(), None);
    assert_eq!(changed.payload().as_ptr(), one.payload().as_ptr());
}

#[test]
fn priorities_are_read_by_number_and_name() {
    for (number, name, priority) in [
        ("1", "background", Priority::Background),
        ("2", "low", Priority::Low),
        ("3", "normal", Priority::Normal),
        ("4", "high", Priority::High),
        ("5", "critical", Priority::Critical),
        ("5", "urgent", Priority::Critical),
    ] {
        assert_eq!(Priority::parse(number), Some(priority));
        assert_eq!(Priority::parse(name), Some(priority));
        assert_eq!(priority.number().to_string(), number);
    }
    for wrong in ["", "0", "6", "03", "High", "high ", "-1"] {
        assert_eq!(Priority::parse(wrong), None, "{wrong:?}");
    }
    assert!(Priority::Critical > Priority::Normal && Priority::Background < Priority::Low);
}

#[test]
fn json_goes_in_and_comes_out() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        customer: String,
        cents: u64,
    }
    let order = Order {
        customer: "naïve 🦀".into(),
        cents: 12,
    };
    let message = Message::json("orders", &order).unwrap();
    assert_eq!(message.get_content_type(), Some("application/json"));
    assert_eq!(message.payload(), r#"{"customer":"naïve 🦀","cents":12}"#);
    assert_eq!(message.parse_json::<Order>().unwrap(), order);
    assert!(Message::json("orders", "a str, unsized").is_ok());

    let error = message.parse_json::<u64>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    let text = error.to_string();
    assert!(
        text.contains("topic=orders") && text.contains(message.id()),
        "{text}"
    );
    // Maps in JSON have keys of text only.
    let keys = std::collections::BTreeMap::from([(vec![1], 2)]);
    let error = Message::json("orders", &keys).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn the_size_is_payload_headers_and_attributes() {
    let least = message().from_source("s").kind("t");
    assert_eq!(least.size(), "1st".len());
    let full = least
        .with_payload(Bytes::from(vec![0; 100]))
        .content_type("ct")
        .key("key")
        .header("name", "value")
        .header("null", HeaderValue::null())
        .subject("sub")
        .tag("a")
        .tag("bc");
    let parts = 3 + 100 + 2 + 3 + 9 + 4 + 3 + "a,bc,".len();
    assert_eq!(full.size(), parts);
}

#[test]
fn attributes_keep_their_rules() {
    let set: [fn(Message, &str) -> Message; 8] = [
        |m, v| m.with_id(v),
        |m, v| m.from_source(v.to_owned()),
        |m, v| m.kind(v.to_owned()),
        |m, v| m.content_type(v.to_owned()),
        |m, v| m.key(v),
        |m, v| m.tag(v),
        |m, v| m.subject(v),
        |m, v| m.sender_instance(v),
    ];
    let longest = "é".repeat(MAX_ATTRIBUTE / 2);
    let too_long = format!("{longest}x");
    for set in set {
        for good in ["x", " ", "naïve 🦀", "\u{feff}", &longest] {
            assert!(set(message(), good).check().is_ok(), "{good}");
        }
        for bad in ["", &too_long, "a\nb", "\0", "\u{7f}", "\u{85}", "é\r"] {
            let error = set(message(), bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad:?}");
            assert!(!error.to_string().contains('\n'));
        }
    }
    assert!(message().tag("a,b").check().is_err());
    assert!(message().key("a,b").check().is_ok());
}

#[test]
fn an_error_of_a_rule_names_the_attribute_or_header() {
    let error = message().subject("").check().unwrap_err().to_string();
    assert!(error.contains("attribute=subject"), "{error}");
    let error = message()
        .header("Bad", "v")
        .check()
        .unwrap_err()
        .to_string();
    assert!(error.contains("header=Bad"), "{error}");
    let binary = HeaderValue::from_bytes(Bytes::from(&b"\xff"[..]));
    assert!(message().header("h", binary).check().is_err());
    assert!(message().header("h", HeaderValue::null()).check().is_err());
}

#[test]
fn times_are_those_that_the_wire_can_tell() {
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
    let past = SystemTime::UNIX_EPOCH - Duration::from_secs(60);
    assert!(message().time(past).expires(past).check().is_ok());
    assert!(message().time(far).check().is_err());
    assert!(message().expires(far).check().is_err());
    assert!(message().ttl(Duration::MAX).check().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_ttl_counts_from_now() {
    let expires = message().ttl(Duration::from_secs(60)).expires_at().unwrap();
    assert_eq!(expires, clock::now_utc() + Duration::from_secs(60));
}
