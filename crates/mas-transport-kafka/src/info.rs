//! What the cluster is, asked once at connect.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::backend::Wait;
use mas_transport_core::{
    Capabilities, Durability, ErrorKind, Exactness, Result, TransportInfo, Tuning,
};
use tokio::time::{Instant, sleep};

use crate::BACKEND;
use crate::client::Asker;
use crate::config::{Acks, GroupProtocol, KafkaConfig};

/// What the brokers tell of themselves.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) brokers: usize,
    pub(crate) id: Option<String>,
}

impl Cluster {
    /// Brokers do not tell clients their version.
    pub(crate) fn name(&self) -> String {
        match self.brokers {
            1 => "kafka, 1 broker".to_owned(),
            brokers => format!("kafka, {brokers} brokers"),
        }
    }
}

/// Asks who is there.
pub(crate) async fn ask(
    asker: &Arc<Asker>,
    operation: &'static str,
    since: Instant,
    within: Duration,
) -> Result<Cluster> {
    let asked = asker.ask_within(operation, since, within, |client, within| {
        // Of no topic: there may be thousands.
        let metadata = client.fetch_metadata(Some(NO_TOPIC), within)?;
        Ok(Cluster {
            brokers: metadata.brokers().len(),
            id: client.fetch_cluster_id(Duration::ZERO),
        })
    });
    asked.await
}

/// A topic that cannot be there: its name is not one that brokers take.
const NO_TOPIC: &str = "mas.~none";

/// How long the first question waits, each further one twice as long: the client goes on trying where
/// brokers refuse it, and only afterwards it can be seen that they did.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks the cluster until it answers, and says what this backend can do on it.
pub(crate) async fn probe(asker: &Arc<Asker>) -> Result<TransportInfo> {
    let config = &asker.config;
    let began = Instant::now();
    let until = began + config.connect_timeout;
    let mut wait = Wait::new();
    let mut patience = PATIENCE;
    let cluster = loop {
        let left = until.saturating_duration_since(Instant::now());
        let within = left.min(patience).max(Duration::from_millis(1));
        patience = (patience * 2).min(config.connect_timeout);
        match ask(asker, "connect", began, within).await {
            Ok(cluster) => break cluster,
            Err(error) => {
                let again = error.is_retryable() && error.kind() != ErrorKind::Unauthorized;
                if !again || Instant::now() >= until {
                    return Err(error);
                }
            }
        }
        sleep(wait.next()).await;
    };
    Ok(describe(&cluster.name(), config))
}

fn describe(name: &str, config: &KafkaConfig) -> TransportInfo {
    let replicated = config.acks == Acks::All
        && config.replication > 1
        && config.min_insync.is_some_and(|least| least > 1);
    // Brokers do not flush before they confirm.
    let durability = match replicated {
        true => Durability::Replicated,
        false => Durability::Process,
    };
    // Until the brokers notice that a member is gone, and have shared out its partitions.
    let noticed = match config.group_protocol {
        GroupProtocol::Classic => config.session_timeout,
        GroupProtocol::Consumer => Duration::from_secs(45),
    };
    let capabilities = Capabilities {
        ttl: false,
        delay: false,
        priority: false,
        dedup: false,
        wildcard: false,
        filter: false,
        order_per_key: false,
        read: false,
        pause_group: false,
        any_member: false,
        durability,
        // The topic of offsets is replicated as the cluster says, which clients cannot ask for.
        ack_durability: Durability::Process,
        attempts: Exactness::AtLeast,
        reclaim_counts_prefetch: true,
        cut_costs_lease: false,
        leaving_costs_ack: false,
        lag: Exactness::Approximate,
        nack_latency: Duration::from_millis(50),
        delay_slack: Duration::from_millis(100),
        reclaim_slack: noticed + Duration::from_secs(2),
        clock_error: Duration::from_millis(2),
        max_message_bytes: config.max_message_bytes,
        max_topic_messages: None,
    };
    let mut info = TransportInfo::new(BACKEND, name, capabilities);
    info.tuning = Tuning {
        publish_batch: 1000,
        publish_in_flight: 16,
        settle_batch: 1000,
        settle_in_flight: 64,
    };
    info
}
