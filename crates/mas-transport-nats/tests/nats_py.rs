//! Messages from and to `nats-py`, which knows nothing of this library: CloudEvents by their NATS
//! binding, written and read by hand.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use conformance_tests::fixtures::{NatsOptions, NatsServer, target_dir};
use mas_transport_core::{
    Attribute, Consumer, Delivery, Message, Priority, PublishOptions, Publisher, Subscription,
    Topic, TopicSpec, Transport,
};
use mas_transport_nats::{NatsConfig, NatsNative, NatsTransport};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

const CLIENT: &str = "nats-py==2.16.0";
/// A message is there within milliseconds; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// Python with the client in an environment of its own; `None`, where there is no Python and none is
/// required.
fn python() -> Option<PathBuf> {
    let required = std::env::var("REQUIRE_NATS").is_ok_and(|value| value == "1");
    let there = Command::new("python3").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        assert!(!required, "REQUIRE_NATS=1 and python3 is not here");
        println!("SKIPPED backend=nats reason=python3 is not here");
        return None;
    }
    let home = target_dir().join("tools").join(CLIENT.replace("==", "-"));
    let python = home.join("bin/python3");
    if !python.is_file() {
        // Moved to its place when it is complete.
        let fresh = home.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::create_dir_all(&fresh).unwrap();
        run(Command::new("python3").args(["-m", "venv"]).arg(&fresh));
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ];
        run(Command::new(fresh.join("bin/python3"))
            .args(pip)
            .arg(CLIENT));
        // Another test may have been faster.
        if std::fs::rename(&fresh, &home).is_err() {
            std::fs::remove_dir_all(&fresh).unwrap();
        }
    }
    Some(python)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A server; `None`, where there is none and none is required.
fn server() -> Option<NatsServer> {
    if let Err(reason) = NatsServer::available() {
        let required = std::env::var("REQUIRE_NATS").is_ok_and(|value| value == "1");
        assert!(!required, "{reason}");
        println!("SKIPPED backend=nats reason={reason}");
        return None;
    }
    Some(NatsServer::start(&NatsOptions::new()).unwrap())
}

/// A message as it is on the wire.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    headers: BTreeMap<String, String>,
    payload: String,
}

impl Wire {
    fn new(headers: &[(&str, &str)], payload: &str) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            headers: headers.iter().map(own).collect(),
            payload: payload.to_owned(),
        }
    }
}

/// What the script says, given this.
fn script(python: &Path, arguments: &[&str], input: &[Wire]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nats_py.py");
    let mut child = Command::new(python)
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for message in input {
        writeln!(stdin, "{}", serde_json::to_string(message).unwrap()).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

async fn next(consumer: &Consumer) -> Delivery {
    let received = timeout(LIMIT, consumer.recv()).await;
    received
        .expect("a message within the limit")
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_another_client_are_read_and_ours_by_it() {
    let (Some(python), Some(server)) = (python(), server()) else {
        return;
    };
    let config = NatsConfig::from_url(&server.url()).unwrap();
    let transport = Arc::new(NatsTransport::connect(config).await.unwrap());
    let topic = Topic::new("orders.created").unwrap();
    let spec = TopicSpec::new(topic.clone());
    transport.admin().declare(&spec).await.unwrap();
    let native = transport
        .native()
        .unwrap()
        .downcast_ref::<NatsNative>()
        .unwrap();
    let (subject, stream, url) = (native.subject(&topic), native.stream(&topic), server.url());
    let subscription = Subscription::new(topic.as_str()).group("billing");
    let consumer = Consumer::start(transport.clone(), subscription)
        .await
        .unwrap();

    // Names in any case, values percent-encoded in either case or quoted, and one as it is.
    let event = Wire::new(
        &[
            ("CE-SpecVersion", "1.0"),
            ("ce-id", "a%20%22b%22%25%c3%a9"),
            ("ce-source", "/python/pl%C3%A4nner?x=%251"),
            ("Ce-Type", "order.created"),
            ("ce-datacontenttype", "text/plain;%20charset=utf-8"),
            ("ce-time", "2026-11-21T14:15:16.5Z"),
            ("ce-subject", "\"quoted\""),
            ("ce-partitionkey", "Stra%C3%9Fe"),
            ("ce-correlationid", "c-1"),
            ("ce-priority", "4"),
            ("ce-tags", "a,b"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("X-Own", "50%25 as it is"),
        ],
        "Grüße",
    );
    let wrong = Wire::new(
        &[("ce-specversion", "1.0"), ("ce-id", "%C0%A0")],
        "no UTF-8",
    );
    let plain = Wire::new(&[("Content-Type", "text/css")], "body {}");
    script(
        &python,
        &["publish", &url, &subject],
        &[event, wrong, plain],
    );
    let got = next(&consumer).await;
    assert_eq!(got.id(), "a \"b\"%é");
    assert_eq!(got.source(), "/python/plänner?x=%1");
    assert_eq!(got.get_kind(), "order.created");
    assert_eq!(got.get_content_type(), Some("text/plain; charset=utf-8"));
    let seconds = Duration::from_millis(1_795_270_516_500);
    assert_eq!(got.get_time(), Some(UNIX_EPOCH + seconds));
    assert_eq!(got.attribute(Attribute::Subject), Some("quoted"));
    assert_eq!(got.get_key(), Some("Straße"));
    assert_eq!(got.attribute(Attribute::CorrelationId), Some("c-1"));
    assert_eq!(got.get_priority(), Priority::High);
    assert_eq!(got.tags(), ["a", "b"]);
    assert!(
        got.attribute(Attribute::TraceParent)
            .is_some_and(|t| t.starts_with("00-0af"))
    );
    assert_eq!(
        got.headers().get("X-Own").unwrap().as_str(),
        Some("50%25 as it is")
    );
    assert_eq!(got.payload().as_ref(), "Grüße".as_bytes());
    got.ack().await.unwrap();
    // The one that is not UTF-8 once decoded was quarantined.
    let got = next(&consumer).await;
    assert_eq!(got.get_content_type(), Some("text/css"));
    assert_eq!(got.payload().as_ref(), b"body {}");
    got.ack().await.unwrap();

    let message = Message::new(topic.clone(), "Grüße")
        .unwrap()
        .with_id("a \"b\"%é~")
        .from_source("/rust/plänner")
        .kind("order paid")
        .content_type("text/plain; charset=utf-8")
        .key("Straße")
        .tag("x")
        .set_attribute(Attribute::Subject, "50%")
        .header("x-own", "50% as it is");
    let publisher = Publisher::new(transport.clone(), PublishOptions::default());
    publisher.publish(message).await.unwrap();
    let id = "a%20%22b%22%25%C3%A9~";
    let said = script(&python, &["read", &url, &subject, &stream, id], &[]);
    let read: Wire = serde_json::from_str(&said).unwrap();
    assert_eq!(read.payload, "Grüße");
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", id),
        ("ce-source", "/rust/pl%C3%A4nner"),
        ("ce-type", "order%20paid"),
        ("ce-datacontenttype", "text/plain;%20charset=utf-8"),
        ("ce-partitionkey", "Stra%C3%9Fe"),
        ("ce-tags", "x"),
        ("ce-subject", "50%25"),
        ("x-own", "50% as it is"),
    ] {
        assert_eq!(
            read.headers.get(name).map(String::as_str),
            Some(value),
            "{read:?}"
        );
    }
    assert_eq!(read.headers.len(), 9, "and no others: {read:?}");
    let soon = Instant::now() + Duration::from_secs(5);
    consumer.close(soon).await.unwrap();
    transport.close(soon).await.unwrap();
}
