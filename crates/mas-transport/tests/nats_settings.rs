//! Each variable of the NATS backend does at a real server what the reference page says.
#![cfg(feature = "nats")]

#[path = "../../mas-transport-redis/tests/redis/certificates.rs"]
mod certificates;

use std::path::PathBuf;
use std::time::Duration;

use conformance_tests::fixtures::{NatsOptions, NatsServer};
use mas_transport::nats::NatsNative;
use mas_transport::{Bus, Config, ErrorKind, Message, Subscription, Topic, TopicSpec};
use tokio::time::Instant;

use certificates::Authority;

/// Longer than any of this takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A server of our own; `None` where there is none and none is required. Always a process: a
/// container would not see our certificates.
fn server(options: &NatsOptions) -> Option<NatsServer> {
    let program = NatsServer::program();
    match program.and_then(|program| NatsServer::start_program(&program, options)) {
        Ok(server) => Some(server),
        Err(why) if std::env::var_os("REQUIRE_NATS").is_none_or(|v| v != "1") => {
            println!("SKIPPED backend=nats reason={why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

fn config(server: &NatsServer, variables: &[(&str, &str)]) -> Config {
    let url = format!("nats://{}", server.address());
    let first = [("PROTOCOL_TYPE", "nats"), ("NATS_URL", &*url)];
    Config::from_vars(first.into_iter().chain(variables.iter().copied()))
}

/// With these variables a message goes out and comes in.
async fn works(server: &NatsServer, variables: &[(&str, &str)]) -> Bus {
    let bus = Bus::connect(config(server, variables)).await.unwrap();
    let consumer = bus
        .subscribe(Subscription::new("orders").group("billing"))
        .await
        .unwrap();
    let message = Message::new("orders", "x").unwrap();
    bus.publish(message).await.unwrap();
    let received = tokio::time::timeout(LIMIT, consumer.recv()).await.unwrap();
    received.unwrap().unwrap().ack().await.unwrap();
    consumer.close(Instant::now() + LIMIT).await.unwrap();
    bus
}

/// Connecting fails, in these words.
async fn refused(server: &NatsServer, variables: &[(&str, &str)], kind: ErrorKind, words: &str) {
    let connecting = tokio::time::timeout(LIMIT, Bus::connect(config(server, variables)));
    let error = connecting.await.unwrap().unwrap_err();
    let told = format!("{error} {error:?}");
    assert!(error.kind() == kind && told.contains(words), "{told}");
    assert!(!told.contains("sesame"), "{told}");
}

/// A file for the time of a test.
struct File(PathBuf);

impl File {
    fn new(name: &str, contents: &str) -> Self {
        let directory = conformance_tests::fixtures::target_dir().join("tmp");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("nats-settings-{}-{name}", std::process::id()));
        std::fs::write(&path, contents).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_somebody_is() {
    let user = NatsOptions::new().config("authorization { user: app, password: \"sesame\" }");
    let Some(there) = server(&user) else { return };
    works(&there, &[("NATS_USER", "app"), ("NATS_PASSWORD", "sesame")]).await;
    let wrong = [("NATS_USER", "app"), ("NATS_PASSWORD", "open-sesame")];
    refused(&there, &wrong, ErrorKind::Unauthorized, "password").await;
    let token = NatsOptions::new().config("authorization { token: \"sesame\" }");
    let Some(there) = server(&token) else { return };
    works(&there, &[("NATS_TOKEN", "sesame")]).await;
    refused(&there, &[], ErrorKind::Unauthorized, "credentials").await;
    let seed = [("NATS_NKEY", "sesame")];
    refused(&there, &seed, ErrorKind::InvalidArgument, "NKEY").await;
    let nothing = File::new("nothing.creds", "sesame");
    let credentials = [("NATS_CREDS", nothing.path())];
    refused(
        &there,
        &credentials,
        ErrorKind::InvalidArgument,
        "credentials",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_to_trust_and_what_to_show() {
    let authority = Authority::new();
    let (own, theirs) = (authority.sign("127.0.0.1"), authority.sign("client"));
    let options = NatsOptions::new()
        .file("ca.pem", authority.pem())
        .file("server.pem", own.certificate)
        .file("server.key", own.key)
        .config(
            "tls { cert_file: \"{dir}/server.pem\", key_file: \"{dir}/server.key\", \
             ca_file: \"{dir}/ca.pem\", verify: true }",
        );
    let Some(there) = server(&options) else {
        return;
    };
    let ca = File::new("ca.pem", &authority.pem());
    let certificate = File::new("client.pem", &theirs.certificate);
    let key = File::new("client.key", &theirs.key);
    let trust = ("NATS_TLS_CA", ca.path());
    let show = [
        trust,
        ("NATS_TLS_CERT", certificate.path()),
        ("NATS_TLS_KEY", key.path()),
    ];
    works(&there, &show).await;
    refused(&there, &[trust], ErrorKind::Unauthorized, "certificate").await;
    refused(
        &there,
        &[("NATS_TLS", "true")],
        ErrorKind::Unauthorized,
        "trust",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_topics_and_groups_are_kept() {
    let Some(there) = server(&NatsOptions::new()) else {
        return;
    };
    let variables = [
        ("NATS_STREAM", "shop"),
        ("NATS_STORAGE", "memory"),
        ("NATS_REPLICAS", "1"),
        ("NATS_STREAM_MAX_MSGS", "7"),
        ("NATS_STREAM_MAX_BYTES", "1MB"),
        ("NATS_STREAM_MAX_AGE", "48h"),
        ("NATS_DUPLICATE_WINDOW", "3s"),
        ("NATS_MAX_ACK_PENDING", "1234"),
        ("NATS_CONSUMER_GROUP", "shipping"),
    ];
    let bus = works(&there, &variables).await;
    let consumer = bus.subscribe(Subscription::new("orders")).await.unwrap();
    let native = bus.transport().native().unwrap();
    let native = native.downcast_ref::<NatsNative>().unwrap();
    let name = native.stream(&Topic::new("orders").unwrap());
    assert_eq!(name, "shop~orders");
    let stream = native.jetstream().get_stream(&name).await.unwrap();
    let kept = &stream.cached_info().config;
    assert_eq!(
        (kept.max_messages, kept.max_bytes, kept.num_replicas),
        (7, 1 << 20, 1)
    );
    assert_eq!(kept.max_age, Duration::from_secs(48 * 3600));
    assert_eq!(kept.duplicate_window, Duration::from_secs(3));
    assert_eq!(format!("{:?}", kept.storage), "Memory");
    let group = stream.consumer_info("shipping").await.unwrap();
    assert_eq!(group.config.max_ack_pending, 1234);
    consumer.close(Instant::now() + LIMIT).await.unwrap();

    let differs = [("NATS_STREAM", "shop")];
    let other = Bus::connect(config(&there, &differs)).await.unwrap();
    let spec = TopicSpec::new(Topic::new("orders").unwrap());
    let error = other.admin().declare(&spec).await.unwrap_err();
    let told = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{told}");
    for what in [
        "storage is Memory, wanted File",
        "max_msgs is 7",
        "max_bytes is 1048576",
        "max_age is 172800 s, wanted 0 s",
    ] {
        assert!(told.contains(what), "{what}? {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_connecting_goes_on() {
    // Nobody listens at the port of a listener that is gone.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    drop(listener);
    let asked = Instant::now();
    let error = Bus::connect(Config::from_vars([
        ("PROTOCOL_TYPE", "nats"),
        ("NATS_URL", &*url),
        ("NATS_CONNECT_TIMEOUT", "300ms"),
    ]))
    .await
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}: {error}");
}
