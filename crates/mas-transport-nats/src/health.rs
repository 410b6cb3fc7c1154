//! How the server is, in words for whoever runs it.

use mas_transport_core::{Health, Result};
use tokio::time::Instant;

use crate::config::Storage;
use crate::connection::Link;
use crate::info;

/// From this share of a limit on it is time to look.
const NEARLY_FULL: f64 = 0.8;

/// Asks the server.
///
/// # Errors
/// What keeps it from answering.
pub(crate) async fn ask(link: &Link) -> Result<Health> {
    let asked = Instant::now();
    let account: serde_json::Value = link.must("health", "INFO".to_owned(), &()).await?;
    let latency = asked.elapsed();
    // By name: what there is beside them differs between versions.
    let figure = |path: &str| account.pointer(path).and_then(serde_json::Value::as_f64);
    let used = |path: &str| figure(path).unwrap_or(0.0);
    let config = &link.config;
    let mut health = Health::new(info::name(link), latency)
        .fact(
            "storage",
            match config.storage {
                Storage::File => "file",
                Storage::Memory => "memory",
            },
        )
        .fact("replicas", config.replicas.to_string())
        .fact("streams", used("/streams").to_string())
        .fact("consumers", used("/consumers").to_string())
        .fact("stored-bytes", used("/storage").to_string());
    if config.storage == Storage::Memory && config.replicas == 1 {
        health = health.warn(
            "topics are kept in the memory of one server: its restart loses every message",
            "keep them in files, or on several servers (NATS_REPLICAS=3)",
        );
    }
    // How long a server waits before it flushes it does not tell clients.
    if config.storage == Storage::File && config.replicas == 1 {
        health = health.note(
            "topics are kept in the files of one server: when its machine loses power, what it had not \
             flushed to the disk is lost, up to 2 minutes by default",
            "keep them on several servers (NATS_REPLICAS=3), or set sync_interval: always in the server's \
             jetstream block (2.10 and newer); where that is set, nothing is lost",
        );
    }
    for (what, used, limit) in [
        (
            "storage",
            used("/storage"),
            figure("/limits/max_storage").unwrap_or(-1.0),
        ),
        (
            "memory",
            used("/memory"),
            figure("/limits/max_memory").unwrap_or(-1.0),
        ),
    ] {
        if limit > 0.0 && used / limit >= NEARLY_FULL {
            health = health.warn(
                format!("{:.0} % of the JetStream {what} is used: when it is full, publishing fails", 100.0 * used / limit),
                "let consumers catch up, purge what nobody needs, or raise the limit (max_file_store, max_memory_store)",
            );
        }
    }
    Ok(health)
}
