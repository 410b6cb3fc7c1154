//! Entries in the wire format, and back.

use bytes::Bytes;
use mas_transport_core::codec::fields;
use mas_transport_core::{Event, Message, Outcome, RawDelivery, Record, Topic};

use crate::group::Taken;
use crate::store::Body;

/// A message as an entry of named fields.
pub(crate) fn encode(message: &Message) -> Body {
    let mut out = Vec::new();
    fields::encode(message, &mut |name, value| {
        out.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
    });
    Body::Fields(out.into())
}

/// What a fetch brings of a taken entry.
pub(crate) fn event(topic: &Topic, taken: Taken) -> Event {
    let message = match taken.body {
        Body::Message(message) => Ok(message),
        Body::Fields(entry) => fields::decode(topic, taken.position, entry.to_vec()),
    };
    match message {
        Ok(message) => Event::Delivery(RawDelivery {
            token: taken.token,
            message,
            position: taken.position,
            attempt: taken.attempt,
            deadline: taken.deadline,
            begin: taken.attempt > 1,
            reclaimed: taken.reclaimed,
        }),
        Err(reason) => Event::Malformed {
            token: taken.token,
            reason,
            position: taken.position,
            attempt: taken.attempt,
        },
    }
}

/// What an outcome that gives a message up appends to which topic, with its size; None for the
/// other outcomes. The original is kept as it was read.
pub(crate) fn given_up(
    original: &Body,
    outcome: &Outcome,
    wire: bool,
    into: Topic,
) -> Option<(Body, usize)> {
    let message = match (outcome, original) {
        (Outcome::DeadLetter(record) | Outcome::Quarantine(record), Body::Message(message)) => {
            let message = message.clone().on_topic(into);
            message.with_record(Record::clone(record))
        }
        (Outcome::DeadLetter(record), Body::Fields(entry)) => {
            let mut entry = entry.to_vec();
            entry.retain(|(name, _)| name != fields::RECORD_FIELD.as_bytes());
            entry.push((
                Bytes::from_static(fields::RECORD_FIELD.as_bytes()),
                fields::encode_record(record).into(),
            ));
            let bytes = entry.iter().map(|(n, v)| n.len() + v.len()).sum();
            return Some((Body::Fields(entry.into()), bytes));
        }
        (Outcome::Quarantine(record), Body::Fields(entry)) => {
            fields::quarantine(into, entry, Record::clone(record))
        }
        _ => return None,
    };
    let bytes = message.size();
    let body = if wire {
        encode(&message)
    } else {
        Body::Message(message)
    };
    Some((body, bytes))
}
