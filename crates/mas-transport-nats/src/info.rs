//! What the server is and how it keeps data, asked once at connect.

use std::time::Duration;

use mas_transport_core::{
    Capabilities, Durability, Error, ErrorKind, Exactness, Result, TransportInfo, Tuning,
};

use crate::BACKEND;
use crate::config::{NatsConfig, Storage};
use crate::connection::Link;
use crate::error::SWITCHED_OFF;

/// Room for how headers are written: encoded values may take three times what they are.
const ENCODING: usize = 48 << 10;

/// Asks the server and says what this backend can do on it.
///
/// # Errors
/// `Unsupported` for servers older than 2.9 and without JetStream.
pub(crate) async fn probe(link: &Link) -> Result<TransportInfo> {
    let server = link.client().server_info();
    let name = name(link);
    if !link.client().is_server_compatible(2, 9, 0) {
        return Err(
            Error::unsupported(BACKEND, "connect", "NATS server 2.9 or later is needed")
                .with("server", name)
                .with("address", link.config.address()),
        );
    }
    // It answers when JetStream is there for this account.
    let asked = link.must::<_, serde_json::Value>("connect", "INFO".to_owned(), &());
    asked.await.map_err(|e| {
        let e = match e.kind() {
            // Nobody answers, where somebody of a cluster could.
            ErrorKind::Unavailable if !server.jetstream => {
                Error::unsupported(BACKEND, "connect", SWITCHED_OFF)
                    .with("address", link.config.address())
            }
            _ => e,
        };
        e.with("server", &name)
    })?;
    let is_old = !link.client().is_server_compatible(2, 10, 0);
    Ok(describe(&name, &link.config, server.max_payload, is_old))
}

pub(crate) fn name(link: &Link) -> String {
    format!("nats-server {}", link.client().server_info().version)
}

fn describe(name: &str, config: &NatsConfig, max_payload: usize, is_old: bool) -> TransportInfo {
    let (durability, ack_durability) = match (config.storage, config.replicas) {
        // Written before it is confirmed; flushed every 2 minutes, unless the server is told otherwise.
        (Storage::File, 1) => (Durability::Process, Durability::WriteBehind),
        (Storage::File, _) => (Durability::Replicated, Durability::Replicated),
        (Storage::Memory, 1) => (Durability::Volatile, Durability::Volatile),
        (Storage::Memory, _) => (Durability::Process, Durability::Process),
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
        any_member: true,
        durability,
        ack_durability,
        // The server forgets what it counted when it is killed.
        attempts: Exactness::AtLeast,
        reclaim_counts_prefetch: true,
        // The server does not tell to whom it sent what.
        cut_costs_lease: true,
        // The last pull of a member has no successor: see `Pulls`.
        leaving_costs_ack: is_old,
        // An old one that takes back what it sent last counts it as waiting and as pending.
        lag: match is_old {
            true => Exactness::Approximate,
            false => Exactness::Exact,
        },
        nack_latency: Duration::from_millis(250),
        delay_slack: Duration::from_millis(250),
        reclaim_slack: Duration::from_millis(1500),
        clock_error: Duration::from_millis(2),
        max_message_bytes: config
            .max_message_bytes
            .min(max_payload.saturating_sub(ENCODING)),
        max_topic_messages: config.max_topic_messages,
    };
    let mut info = TransportInfo::new(BACKEND, name, capabilities);
    info.tuning = Tuning {
        publish_batch: 256,
        publish_in_flight: 16,
        settle_batch: 1000,
        settle_in_flight: 8,
    };
    info
}
