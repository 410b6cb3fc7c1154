//! What a backend can do, as a table.

use std::time::Duration;

use mas_transport::{Capabilities, Durability, Exactness};
use serde::Serialize;
use serde_json::{Value, json};

use crate::text::grouped;

/// One capability.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// A boolean, a name, a number of milliseconds or bytes; null for no limit.
    pub(super) value: Value,
    pub(super) about: &'static str,
    #[serde(skip)]
    pub(super) shown: String,
}

/// Every capability. Operations are there or not, strengths are graded.
pub(super) fn rows(capabilities: &Capabilities) -> Vec<Row> {
    // Whole, so that a new one cannot be forgotten here.
    let Capabilities {
        ttl,
        delay,
        priority,
        dedup,
        wildcard,
        filter,
        order_per_key,
        read,
        pause_group,
        any_member,
        durability,
        ack_durability,
        attempts,
        reclaim_counts_prefetch,
        cut_costs_lease,
        leaving_costs_ack,
        lag,
        nack_latency,
        delay_slack,
        reclaim_slack,
        clock_error,
        max_message_bytes,
        max_topic_messages,
    } = *capabilities;
    let mut rows: Vec<Row> = [
        ("ttl", ttl, "messages with an expiry"),
        ("delay", delay, "messages delivered later"),
        ("priority", priority, "priorities other than normal"),
        ("dedup", dedup, "dedup by idempotency key"),
        ("wildcard", wildcard, "subscriptions with wildcards"),
        ("filter", filter, "subscriptions with a filter"),
        ("order_per_key", order_per_key, "strict order of each key"),
        ("read", read, "reading without a group"),
        ("pause_group", pause_group, "pausing a whole group"),
        (
            "any_member",
            any_member,
            "any idle member gets any message of its group",
        ),
    ]
    .into_iter()
    .map(|(name, there, about)| Row {
        name,
        value: there.into(),
        about,
        shown: yes(there),
    })
    .collect();
    let mut strength = |name, value: Value, shown: String, about| {
        rows.push(Row {
            name,
            value,
            about,
            shown,
        });
    };
    for (name, value, about) in [
        ("durability", durability, "what a receipt survives"),
        (
            "ack_durability",
            ack_durability,
            "what a confirmed ack survives",
        ),
    ] {
        let value = self::durability(value);
        strength(name, value.into(), value.to_owned(), about);
    }
    for (name, value, about) in [
        ("attempts", attempts, "the attempt of a delivery"),
        ("lag", lag, "the figures of mas lag"),
    ] {
        let value = exactness(value);
        strength(name, value.into(), value.to_owned(), about);
    }
    strength(
        "reclaim_counts_prefetch",
        reclaim_counts_prefetch.into(),
        yes(reclaim_counts_prefetch),
        "a message that a dead member had only fetched may count as attempted",
    );
    strength(
        "cut_costs_lease",
        cut_costs_lease.into(),
        yes(cut_costs_lease),
        "what was on its way when a connection broke comes back when its lease ends",
    );
    strength(
        "leaving_costs_ack",
        leaving_costs_ack.into(),
        yes(leaving_costs_ack),
        "when a member goes away, one message may come once more, settled or not",
    );
    for (name, value, about) in [
        (
            "nack_latency_ms",
            nack_latency,
            "until a nacked message is there again",
        ),
        (
            "delay_slack_ms",
            delay_slack,
            "how late a delayed redelivery may come",
        ),
        (
            "reclaim_slack_ms",
            reclaim_slack,
            "how late a dead member's message may come",
        ),
        (
            "clock_error_ms",
            clock_error,
            "how far the clock of leases may be off",
        ),
    ] {
        let ms = millis(value);
        strength(name, ms.into(), grouped(ms), about);
    }
    strength(
        "max_message_bytes",
        max_message_bytes.into(),
        grouped(max_message_bytes as u64),
        "the largest message",
    );
    strength(
        "max_topic_messages",
        json!(max_topic_messages),
        max_topic_messages.map_or_else(|| "no limit".to_owned(), grouped),
        "unsettled messages that a topic keeps",
    );
    rows
}

fn yes(there: bool) -> String {
    if there { "yes" } else { "no" }.to_owned()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Volatile => "volatile",
        Durability::WriteBehind => "write_behind",
        Durability::Process => "process",
        Durability::Disk => "disk",
        Durability::Replicated => "replicated",
        _ => "other",
    }
}

fn exactness(exactness: Exactness) -> &'static str {
    match exactness {
        Exactness::Exact => "exact",
        Exactness::AtLeast => "at_least",
        Exactness::Approximate => "approximate",
        _ => "other",
    }
}
