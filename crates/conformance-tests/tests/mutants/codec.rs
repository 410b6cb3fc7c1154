//! Mutants of the codec (B) and of what is done with foreign entries (H).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use conformance_tests::layers::{Hooks, Joined};
use mas_transport_core::codec::fields::FOREIGN_SOURCE;
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    Error, ErrorKind, Event, Fetch, HeaderValue, Headers, Message, Outcome, Position, RawDelivery,
    Reason, ReasonCode, Receipt, Result, Stored, Want,
};

use crate::edits::{Does, Edits, Fields, pump, restored};
use crate::mutants;

mutants! {
    B1 cut_at_a_null
        "a payload ends at its first null byte"
        = |_| payload_map(|_| true, |data| {
            let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
            data.slice(..end)
        });
    B1 payload_is_text
        "a payload is read as UTF-8, and what is not is replaced"
        = |_| payload_map(|_| true, |data| String::from_utf8_lossy(&data).into_owned().into());
    B1 large_payloads_are_cut
        "a payload over 512 KiB loses its last byte"
        = |_| payload_map(|_| true, |data| match data.len() > 512 * 1024 {
            true => data.slice(..data.len() - 1),
            false => data,
        });
    B1 byte_order_mark_is_cut
        "a payload that begins with a byte order mark loses it"
        = |_| payload_map(|_| true, |data| match data.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) => Bytes::copy_from_slice(rest),
            None => data,
        });
    B2 header_values_are_trimmed
        "spaces around a header value are lost"
        = |_| Edits::fields(|_, entry| for (name, value) in entry {
            if !is_own(name) {
                *value = Bytes::copy_from_slice(value.trim_ascii());
            }
        });
    B2 empty_headers_are_lost
        "a header with an empty value is lost"
        = |_| Edits::fields(|_, entry| entry.retain(|(n, v)| is_own(n) || !v.is_empty()));
    B2 headers_beyond_32_are_lost
        "a message comes with 32 headers at most"
        = |_| Edits::fields(|_, entry| {
            let mut count = 0;
            entry.retain(|(name, _)| {
                count += usize::from(!is_own(name));
                is_own(name) || count <= 32
            });
        });
    B2 headers_are_sorted
        "headers come in the order of their names"
        = |_| Edits::incoming(|_| true, |message| {
            let mut all: Vec<_> = message
                .headers()
                .iter()
                .map(|(name, value)| (name.to_owned(), value.clone()))
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            let mut sorted = Headers::default();
            all.into_iter().for_each(|(name, value)| sorted.append(name, value));
            message.with_headers(sorted)
        });
    B2 tags_are_lost
        "tags do not come through"
        = |_| Edits::fields(|_, entry| entry.retain(|(name, _)| name != "ce_tags"));
    B2 times_lose_their_fraction
        "times are rounded to seconds"
        = |_| Edits::fields(|_, entry| for (name, value) in entry {
            if name == "ce_time" {
                let text = String::from_utf8_lossy(value);
                let whole = text.split('.').next().unwrap_or_default();
                *value = format!("{}Z", whole.trim_end_matches('Z')).into();
            }
        });
    B2 causation_is_a_header
        "the id of the cause is not known as an attribute, and comes as a header"
        = |_| Edits::fields(|_, entry| for (name, _) in entry.iter_mut() {
            if name == "ce_causationid" {
                *name = Bytes::from_static(b"ce_cause");
            }
        });
    B3 redelivery_cuts_the_payload
        "a redelivered payload loses its last byte"
        = |_| payload_map(|raw| raw.attempt > 1, |data| data.slice(..data.len().saturating_sub(1)));
    B3 third_delivery_has_no_headers
        "a message that is delivered for the third time has lost its headers"
        = |_| Edits::incoming(|raw| raw.attempt > 2, |m| m.with_headers(Headers::default()));
    B3 redelivery_loses_tags
        "a redelivered message has lost its tags"
        = |_| Edits::fields(|raw, entry| {
            if raw.attempt > 1 {
                entry.retain(|(name, _)| name != "ce_tags");
            }
        });
    B3 reclaimed_loses_its_tags
        "what is taken over from a dead member has lost its tags"
        = |_| Edits::fields(|raw, entry| {
            if raw.reclaimed {
                entry.retain(|(name, _)| name != "ce_tags");
            }
        });
    B4 limit_size_is_refused
        "a message of exactly the limit is refused"
        = |_| Edits::info(|info| info.capabilities.max_message_bytes += 1);
    B4 too_large_does_not_say_how_much
        "the error about a message over the limit names neither its size nor the limit"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.kind() == ErrorKind::TooLarge => Err(restored(&e, false)),
            other => other,
        });
    B4 too_large_is_swallowed
        "a message over the limit gets a receipt, and is not there"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.kind() == ErrorKind::TooLarge => Ok(Receipt {
                position: Position::default(),
                durability: mas_transport_core::Durability::Volatile,
                duplicate: false,
            }),
            other => other,
        });
    B4 too_large_may_be_stored
        "a message over the limit is said to be stored, perhaps"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.kind() == ErrorKind::TooLarge => Err(restored(&e, true)),
            other => other,
        });
    B4 too_large_is_retryable
        "a message over the limit is told as a broker without room"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.kind() == ErrorKind::TooLarge && e.stored() == Stored::No => {
                Err(Error::new(ErrorKind::Full, "publish", "said by a mutant"))
            }
            other => other,
        });
    B5 foreign_is_malformed
        "a plain entry of another program is taken as malformed"
        = |_| Arc::new(ForeignIsMalformed);
    B5 foreign_headers_are_lost
        "the fields of a plain entry, beside its data, are lost"
        = |_| Edits::incoming(|raw| is_foreign(&raw.message), |m| m.with_headers(Headers::default()));
    B5 foreign_header_is_text
        "a binary field of a plain entry is read as text"
        = |_| Edits::incoming(|raw| is_foreign(&raw.message), |message| {
            let mut text = Headers::default();
            for (name, value) in message.headers().iter() {
                let value = value.as_bytes().unwrap_or_default();
                text.append(name, HeaderValue::from(&*String::from_utf8_lossy(value)));
            }
            message.with_headers(text)
        });
    H1 malformed_is_dropped
        "a malformed entry is acked without a trace"
        = |_| pump(Mutation::MalformedDropped);
    H1 malformed_ends_the_consumer
        "the consumer stops at a malformed entry"
        = |_| pump(Mutation::MalformedStalls);
    H1 quarantine_has_no_reason
        "an entry in quarantine does not say what is wrong with it"
        = |_| Edits::outcome(|_, _, outcome| match outcome {
            Outcome::Quarantine(mut record) => {
                record.reason = Reason::new(ReasonCode::Malformed, "");
                Does::Pass(Outcome::Quarantine(record))
            }
            other => Does::Pass(other),
        });
    H1 quarantine_is_empty
        "an entry in quarantine has lost its bytes"
        = |_| Edits::incoming(
            |raw| raw.message.topic().as_str().starts_with("_bad"),
            |m| m.with_payload(Bytes::new()),
        );
    H1 malformed_is_passed_over
        "the backend skips a malformed entry without telling the pump"
        = |_| Edits::event(|member, event| match event {
            Event::Malformed { token, .. } => {
                crate::edits::settle_quietly(member, token, Outcome::Ack);
                None
            }
            other => Some(other),
        });
}

/// What another program wrote in the plain form is told as malformed.
#[derive(Debug)]
struct ForeignIsMalformed;

#[async_trait]
impl Hooks for ForeignIsMalformed {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        for event in out.iter_mut().skip(before) {
            if let Event::Delivery(raw) = event
                && is_foreign(&raw.message)
            {
                *event = Event::Malformed {
                    token: raw.token,
                    reason: Reason::new(ReasonCode::Malformed, "said by a mutant"),
                    position: raw.position,
                    attempt: raw.attempt,
                };
            }
        }
        result
    }
}

/// Whether a field belongs to the wire format itself.
fn is_own(name: &[u8]) -> bool {
    name.starts_with(b"ce_")
        || name.starts_with(b"mas-")
        || [&b"data"[..], b"content-type", b"traceparent", b"tracestate"].contains(&name)
}

fn is_foreign(message: &Message) -> bool {
    message.source() == FOREIGN_SOURCE
}

/// Changes the payload on the wire of the deliveries that `which` picks.
fn payload_map(which: fn(&RawDelivery) -> bool, edit: fn(Bytes) -> Bytes) -> Arc<dyn Hooks> {
    Edits::fields(move |raw, entry: &mut Fields| {
        for (name, value) in entry {
            if name == "data" && which(raw) {
                *value = edit(std::mem::take(value));
            }
        }
    })
}
