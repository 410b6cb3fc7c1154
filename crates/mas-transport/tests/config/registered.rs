//! Backends of one's own.

use std::sync::Arc;

use mas_transport::memory::{MemoryBroker, MemoryTransport};
use mas_transport::{
    Backend, Bus, Durability, Kind, Message, Registry, Requirements, Subscription, Variable,
};

use super::*;

async fn open(settings: Settings) -> mas_transport::Result<Arc<MemoryTransport>> {
    assert_eq!(settings.text("FILES_DIR"), Some("/var/q"));
    assert_eq!(settings.whole("FILES_SEGMENT"), Some(4 << 20));
    assert_eq!(settings.list("FILES_TAGS").unwrap(), ["a", "b"]);
    MemoryBroker::new(Default::default()).connect().await
}

fn files() -> Backend {
    let megabyte = Kind::Bytes(4096, 1 << 30);
    Backend::new("files", open)
        .alias("dir")
        .variable(Variable::new("FILES_DIR", Kind::Path, "The directory."))
        .variable(Variable::new("FILES_SEGMENT", megabyte, "Its size.").default("1MB"))
        .variable(Variable::new("FILES_TAGS", Kind::List, "Tags."))
        .variable(Variable::new("FILES_CONSUMER_GROUP", Kind::Name(9), "Group.").default("fg"))
        .path("FILES_DIR")
        .check_with(|settings| {
            if settings.text("FILES_DIR").is_none() {
                settings.refuse("FILES_DIR", "it is needed", "set it");
            }
        })
}

#[tokio::test]
async fn a_backend_of_ones_own_is_like_any_other() {
    let registry = Registry::new();
    registry.register(files()).unwrap();
    assert!(registry.backends().contains(&"files"));
    let vars = [
        ("FILES_SEGMENT", "4MB"),
        ("FILES_TAGS", "a, b"),
        ("TRANSPORT_URL", "dir:///var/q"),
    ];
    let config = Config::from_vars(vars).registry(registry.clone());
    let bus = Bus::connect(config).await.unwrap();
    // The group of the service, and attempts.
    let consumer = bus.subscribe(Subscription::new("a")).await.unwrap();
    bus.publish(Message::new("a", "x").unwrap()).await.unwrap();
    consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
    assert_eq!(bus.lag("a", "fg").await.unwrap().waiting, 0);

    let config = Config::from_vars([("PROTOCOL_TYPE", "files"), ("FILES_SEGMNT", "1")]);
    let told = problems(&config.registry(registry.clone()).resolve());
    assert_eq!(
        told,
        [
            "FILES_SEGMNT: there is no such setting; did you mean FILES_SEGMENT?",
            "FILES_DIR: it is needed; set it",
        ]
    );
    // The process's own registry does not know it.
    assert!(Config::new().backend("files").validate().is_err());
}

#[test]
fn what_cannot_be_registered_is_refused() {
    let registry = Registry::new();
    registry.register(files()).unwrap();
    let again = registry.register(Backend::new("dir", open)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    let own = |name| Variable::new(name, Kind::Whole(1, 9), "");
    for wrong in [
        Backend::new("Files", open),
        Backend::new("", open),
        Backend::new("disk", open).variable(own("FILES_DIR")),
        Backend::new("disk", open).variable(own("DISK_")),
        Backend::new("disk", open).variable(own("DISK_N").default("10")),
        Backend::new("disk", open).host("DISK_ADDR"),
    ] {
        let refused = registry.register(wrong.clone()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{wrong:?}");
    }
}

#[test]
fn a_scheme_that_makes_variables_ambiguous_is_refused() {
    let registry = Registry::new();
    for word in ["mas", "message", "protocol", "publish", "transport"] {
        let refused = registry.register(Backend::new(word, open)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{word}");
        let told = refused.to_string();
        assert!(
            told.contains(word) && told.contains("take another scheme"),
            "{told}"
        );
    }
    // A word that only begins like one is none of them.
    let near =
        Backend::new("messages", open).variable(Variable::new("MESSAGES_DIR", Kind::Path, ""));
    registry.register(near).unwrap();
}

#[tokio::test]
async fn what_is_required_and_lacking_is_named_each() {
    let needed = Requirements::new()
        .dedup()
        .any_member()
        .exact_lag()
        .durability(Durability::Disk)
        .message_bytes(2 << 20);
    let config = Config::new().require(needed);
    let refused = Bus::connect(config.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let told = refused.to_string();
    assert!(
        told.contains(
            "dedup by idempotency key; durability of a receipt: Disk or better is needed, \
                 Volatile is there; size of a message: 2097152 bytes or more is needed, 1015808 \
                 bytes is there"
        ),
        "{told}"
    );
    assert!(
        !told.contains("lag") && !told.contains("idle member"),
        "{told}"
    );

    // What is set is what is there.
    let enough = Requirements::new().message_bytes(2 << 20);
    let config = Config::new().set("MESSAGE_MAX_SIZE", "4MB").require(enough);
    let bus = Bus::connect(config).await.unwrap();
    assert_eq!(bus.info().capabilities.max_message_bytes, 4 << 20);
}

#[tokio::test]
async fn settings_reach_the_bus() {
    let config = Config::from_vars([
        ("MESSAGE_MAX_RETRIES", "1"),
        ("MESSAGE_MAX_SIZE", "64KB"),
        ("MAS_NAMESPACE", "settings"),
    ])
    .source("/agents/planner");
    let bus = Bus::connect(config).await.unwrap();
    let consumer = bus.subscribe(Subscription::new("a")).await.unwrap();
    bus.publish(Message::new("a", "poison").unwrap())
        .await
        .unwrap();
    let large = Message::new("a", vec![0; 40 << 10]).unwrap();
    let refused = bus.publish(large).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    let delivery = consumer.recv().await.unwrap().unwrap();
    assert_eq!(delivery.source(), "/agents/planner");
    delivery.nack().await.unwrap();
    // One attempt, and it has been used up.
    let letters = Subscription::new("_dlq.multiagent.a").group("support");
    let letters = bus.subscribe(letters).await.unwrap();
    let letter = letters.recv().await.unwrap().unwrap();
    assert_eq!(letter.payload().as_ref(), b"poison");
    letter.ack().await.unwrap();
    let health = bus.health().await.unwrap();
    assert!(health.server.starts_with("memory"), "{health:?}");
}
