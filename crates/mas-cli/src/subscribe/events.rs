//! What happens beside deliveries, for stderr.

use std::sync::Arc;

use mas_transport::{Consumer, ConsumerEvent, Record};

use crate::output::tell;
use crate::text::{count, harmless};

/// Tells what happens until the consumer is closed; how many settlements failed.
pub(super) async fn watch(consumer: Arc<Consumer>) -> u64 {
    let mut failed = 0;
    // A broker that is away is tried many times; once is told, until it is back.
    let mut away = false;
    while let Some(event) = consumer.next_event().await {
        match &event {
            ConsumerEvent::SettlementFailed { .. } => failed += 1,
            ConsumerEvent::Retrying { .. } if std::mem::replace(&mut away, true) => continue,
            ConsumerEvent::Reconnected => away = false,
            _ => {}
        }
        if let Some(text) = describe(&event) {
            tell!("mas sub: {}", harmless(&text));
        }
    }
    failed
}

fn describe(event: &ConsumerEvent) -> Option<String> {
    Some(match event {
        ConsumerEvent::Gap(gap) => {
            let lost = gap.lost.map(|lost| count(lost, "message"));
            let lost = lost.unwrap_or_else(|| "messages".to_owned());
            format!("gap: {lost} of {} were lost: {}", gap.topic, gap.reason)
        }
        ConsumerEvent::Quarantined(record) => format!("quarantined: {}", given_up(record)),
        ConsumerEvent::DeadLettered(record) => format!("dead-lettered: {}", given_up(record)),
        ConsumerEvent::Reconnected => "reconnected".to_owned(),
        ConsumerEvent::Retrying { error } => format!("trying again: {error}"),
        ConsumerEvent::SettlementFailed {
            position,
            settlement,
            error,
        } => format!("{settlement} of {position} failed, it may come again: {error}"),
        ConsumerEvent::LeaseLost { position } => {
            format!("lease lost: {position} was held too long and may come again")
        }
        ConsumerEvent::EventsLost(lost) => format!("{} dropped", count(*lost, "event")),
        _ => return None,
    })
}

fn given_up(record: &Record) -> String {
    let code = serde_json::to_value(record.reason.code).ok();
    let code = code.as_ref().and_then(|code| code.as_str()).unwrap_or("?");
    format!(
        "{} of {} after {} for group {}: {code}: {}",
        record.position,
        record.topic,
        count(record.attempts.into(), "attempt"),
        record.group,
        record.reason.text
    )
}
