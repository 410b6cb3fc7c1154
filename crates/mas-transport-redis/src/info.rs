//! What the server is and how it keeps data, asked once at connect.

use std::time::Duration;

use mas_transport_core::{
    Capabilities, Durability, Error, Exactness, Result, TransportInfo, Tuning,
};
use redis::{InfoDict, Pipeline, Value};

use crate::BACKEND;
use crate::config::{Overflow, RedisConfig};
use crate::connection::Link;

/// The oldest server that has what is needed (`XPENDING … IDLE`).
const OLDEST: (u32, u32) = (6, 2);
/// The first with a lag per group.
const WITH_LAG: (u32, u32) = (7, 0);

/// Asks the server and says what this backend can do on it.
///
/// # Errors
/// `Unsupported` for servers older than 6.2 and for cluster mode.
pub(crate) async fn probe(link: &Link) -> Result<TransportInfo> {
    let mut ask = Pipeline::new();
    ask.cmd("INFO").arg("server");
    ask.cmd("INFO").arg("persistence");
    for name in ["appendonly", "appendfsync", "maxmemory", "maxmemory-policy"] {
        ask.cmd("CONFIG").arg("GET").arg(name);
    }
    let mut answers = link.send("connect", &ask).await?.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let server = dict(&link.check("connect", next())?);
    let persistence = dict(&next());
    // Many hosted servers forbid CONFIG: what cannot be seen is not counted on.
    let [append_only, fsync, limit, policy] = [(); 4].map(|()| setting(&next()));
    let version = Version::of(&server);
    let name = &version.name;
    let refuse = |why: &'static str| {
        Err(Error::unsupported(BACKEND, "connect", why)
            .with("server", name)
            .with("address", link.config.address()))
    };
    if version.compatible < OLDEST {
        return refuse("Redis 6.2 or later, or Valkey, is needed");
    }
    if !version.counts_entries() && matches!(link.config.cap, Some((_, Overflow::Gap))) {
        return refuse(
            "this server cannot tell a group that entries were dropped: use Overflow::Refuse, or \
             Redis 7.0 or later",
        );
    }
    if server.get::<String>("redis_mode").as_deref() == Some("cluster") {
        return refuse("cluster mode is not supported yet: connect to a standalone server");
    }
    let evicts = policy.is_some_and(|p| p.starts_with("allkeys"));
    if evicts && limit.is_some_and(|l| l != "0") {
        tracing::warn!(
            address = link.config.address(),
            "the server may evict unsettled messages: set maxmemory-policy to noeviction"
        );
    }
    let logs = match append_only {
        Some(value) => value == "yes",
        None => persistence.get::<String>("aof_enabled").as_deref() == Some("1"),
    };
    let durability = durability(logs, fsync.as_deref());
    Ok(describe(
        name,
        version.counts_entries(),
        durability,
        &link.config,
    ))
}

/// What a confirmed write survives. Without the append-only file a snapshot is all that survives
/// the process, and it knows nothing of the last minutes.
fn durability(append_only: bool, fsync: Option<&str>) -> Durability {
    match (append_only, fsync) {
        (true, Some("always")) => Durability::Disk,
        // Written before it is confirmed, and never flushed.
        (true, Some("no")) => Durability::Process,
        (true, _) => Durability::WriteBehind,
        (false, _) => Durability::Volatile,
    }
}

fn describe(name: &str, lag: bool, durability: Durability, config: &RedisConfig) -> TransportInfo {
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
        ack_durability: durability,
        attempts: Exactness::Exact,
        reclaim_counts_prefetch: true,
        cut_costs_lease: false,
        leaving_costs_ack: false,
        lag: if lag {
            Exactness::Exact
        } else {
            Exactness::Approximate
        },
        // By wake-up; the periodic look, every second or eighth of a lease, makes up for a lost one.
        nack_latency: Duration::from_millis(250),
        delay_slack: Duration::from_millis(250),
        reclaim_slack: Duration::from_millis(1500),
        // The server counts whole milliseconds.
        clock_error: Duration::from_millis(2),
        max_message_bytes: config.max_message_bytes,
        max_topic_messages: match config.cap {
            Some((most, Overflow::Refuse)) => Some(most),
            _ => None,
        },
    };
    let mut info = TransportInfo::new(BACKEND, name, capabilities);
    info.tuning = Tuning {
        publish_batch: 250,
        publish_in_flight: 4,
        settle_batch: 1000,
        settle_in_flight: 4,
    };
    info
}

/// Which server it is.
#[derive(Debug)]
pub(crate) struct Version {
    /// The server and its own version, such as `valkey 8.1.3`.
    pub(crate) name: String,
    /// The version of Redis that it is compatible with.
    compatible: (u32, u32),
}

impl Version {
    /// From the section `server` of `INFO`.
    pub(crate) fn of(told: &InfoDict) -> Self {
        let get = |name: &str| told.get::<String>(name);
        let compatible = get("redis_version").unwrap_or_default();
        Self {
            name: match get("valkey_version") {
                Some(version) => format!("valkey {version}"),
                None => format!("redis {compatible}"),
            },
            compatible: parse_version(&compatible),
        }
    }

    /// Whether it counts the entries of a stream, so that it can tell a group's lag, and which
    /// entries were removed before the group had read them.
    pub(crate) fn counts_entries(&self) -> bool {
        self.compatible >= WITH_LAG
    }
}

pub(crate) fn dict(value: &Value) -> InfoDict {
    match value {
        Value::BulkString(bytes) => InfoDict::new(&String::from_utf8_lossy(bytes)),
        Value::VerbatimString { text, .. } => InfoDict::new(text),
        _ => InfoDict::new(""),
    }
}

/// The value of a setting, if the server tells.
pub(crate) fn setting(value: &Value) -> Option<String> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    match value {
        Value::Map(pairs) => text(&pairs.first()?.1),
        Value::Array(items) => text(items.get(1)?),
        _ => None,
    }
}

fn parse_version(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("7.0.15"), (7, 0));
        assert_eq!(parse_version("6.2.14"), (6, 2));
        assert_eq!(parse_version("255.255.255"), (255, 255));
        assert_eq!(parse_version("unstable"), (0, 0));
        assert!(parse_version("6.0.20") < OLDEST);
        assert!(parse_version("10.1.0") > WITH_LAG);
    }

    #[test]
    fn durability_is_never_assumed() {
        assert_eq!(durability(false, Some("always")), Durability::Volatile);
        assert_eq!(durability(true, None), Durability::WriteBehind);
        assert_eq!(durability(true, Some("everysec")), Durability::WriteBehind);
        assert_eq!(durability(true, Some("no")), Durability::Process);
        assert_eq!(durability(true, Some("always")), Durability::Disk);
    }
}
