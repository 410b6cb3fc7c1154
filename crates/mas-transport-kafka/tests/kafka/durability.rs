//! What receipts say on a cluster.

use std::time::Duration;

use conformance_tests::fixtures::{KafkaCluster, KafkaOptions, KafkaServer};
use mas_transport_core::{Durability, Message, Transport as _};
use mas_transport_kafka::{Acks, KafkaConfig, KafkaTransport};
use tokio::time::Instant;

use crate::support::SOON;

/// With `acks=1` one broker confirms, and its machine may take the message along.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_says_who_has_the_message() {
    if KafkaServer::given().is_some() || KafkaServer::available().is_err() {
        println!("SKIPPED backend=kafka reason=no brokers can be started");
        return;
    }
    let started = tokio::task::spawn_blocking(|| KafkaCluster::start(3, &KafkaOptions::new()));
    let cluster = started.await.unwrap().unwrap();
    let config = || {
        KafkaConfig::new(cluster.addresses())
            .connect_timeout(SOON)
            .response_timeout(SOON)
            .replication_factor(3)
    };
    for (config, topic, durability) in [
        (
            config().min_insync_replicas(2),
            "safe",
            Durability::Replicated,
        ),
        (
            config().min_insync_replicas(2).acks(Acks::Leader),
            "quick",
            Durability::Process,
        ),
        // All that are in sync may be one.
        (
            config().min_insync_replicas(1),
            "alone",
            Durability::Process,
        ),
    ] {
        let transport = KafkaTransport::connect(config).await.unwrap();
        assert_eq!(
            transport.info().capabilities.durability,
            durability,
            "{topic}"
        );
        let batch = vec![Message::new(topic, "x").unwrap()];
        let confirm = transport.publish(batch, Instant::now() + SOON).await;
        let receipt = confirm.await.remove(0).unwrap();
        assert_eq!(receipt.durability, durability, "{topic}");
        let limit = Instant::now() + Duration::from_secs(5);
        transport.close(limit).await.unwrap();
    }
}
