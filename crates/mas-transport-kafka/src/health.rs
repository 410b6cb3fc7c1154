//! How the cluster is, in words for whoever runs it.

use std::sync::Arc;

use mas_transport_core::{Health, Result};
use tokio::time::Instant;

use crate::client::Asker;
use crate::config::Acks;
use crate::info;

/// Asks the cluster.
///
/// # Errors
/// What keeps it from answering.
pub(crate) async fn ask(asker: &Arc<Asker>) -> Result<Health> {
    let asked = Instant::now();
    let config = &asker.config;
    let cluster = info::ask(asker, "health", asked, config.response_timeout).await?;
    let latency = asked.elapsed();
    let mut health = Health::new(cluster.name(), latency)
        .fact("brokers", cluster.brokers.to_string())
        .fact("cluster", cluster.id.unwrap_or_default())
        .fact("replicas", config.replication.to_string())
        .fact("partitions", config.partitions.to_string());
    if config.acks == Acks::Leader {
        health = health.warn(
            "messages are confirmed when one broker has them: they are lost with its machine",
            "have all replicas confirm them (KAFKA_ACKS=all)",
        );
    }
    if config.replication == 1 {
        health = health.note(
            "topics are kept by one broker: when its machine loses power, what it had not flushed to the \
             disk is lost",
            "keep them on several brokers (KAFKA_REPLICATION_FACTOR=3, KAFKA_MIN_INSYNC_REPLICAS=2)",
        );
    } else if config.min_insync.is_none_or(|least| least < 2) {
        health = health.note(
            "topics are replicated, and confirmed by one replica when the others are away",
            "have two confirm them (KAFKA_MIN_INSYNC_REPLICAS=2)",
        );
    }
    let brokers = i32::try_from(cluster.brokers).unwrap_or(i32::MAX);
    if config.replication > brokers {
        health = health.fail(
            format!(
                "topics are to have {} replicas, which {brokers} {} cannot keep: none can be made",
                config.replication,
                if brokers == 1 { "broker" } else { "brokers" }
            ),
            "lower KAFKA_REPLICATION_FACTOR, or start more brokers",
        );
    }
    Ok(health)
}
