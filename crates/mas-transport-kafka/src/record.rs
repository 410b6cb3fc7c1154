//! Records as Kafka carries them: CloudEvents in binary mode, by the Kafka binding.
//!
//! The fields of the wire format ([`mas_transport_core::codec`]) are headers of the same name (`ce_id`,
//! `content-type`, application headers as they are), `data` is the value. The key of the record is the
//! message's key, from which the partition follows as with other clients.
//!
//! Reading is wider than writing: no value, headers without a value, headers that come twice, keys that
//! are no text. Only a header whose *name* is not UTF-8 makes a record malformed.
//!
//! # What the client does not show
//!
//! * Of a header whose name is not UTF-8 neither name nor value can be had: rdkafka 0.39 panics over it,
//!   before it comes to the value, and there is no other way to it but unsafe code. The panic is caught
//!   here, and the program's panic hook told of it (by default it prints a line). In quarantine the header
//!   is missing; the reason says how many are. Behind the [`MOST_UNREADABLE`]th, no header of the record
//!   is asked for any more: a record can have a hundred thousand.
//! * A name ends at its first NUL: it is a string of C's.
//! * A record with more than 100,000 headers is read as if it had none (librdkafka 2.12).
//!
//! The record itself stays where it was, at the position that quarantine tells, for as long as its topic
//! keeps it; another program can read all of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use mas_transport_core::codec::fields::{self, RECORD_FIELD};
use mas_transport_core::{Message, Position, Reason, ReasonCode, Record, Topic};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};

const DATA: &[u8] = b"data";
/// How many headers with a name that is no text are looked at: each costs a panic.
const MOST_UNREADABLE: usize = 16;

/// A record as it was read: slices of one buffer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw {
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Vec<(Bytes, Option<Bytes>)>,
    pub(crate) value: Option<Bytes>,
    /// How many headers have a name that is no text; they are not among `headers`, and nothing is that
    /// comes behind the [`MOST_UNREADABLE`]th.
    pub(crate) unreadable: usize,
}

/// One part of a record within its buffer.
type Span = Option<(usize, usize)>;

impl Raw {
    /// Copies a record.
    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers();
        let count = headers.map_or(0, |h| h.count());
        let mut buffer =
            BytesMut::with_capacity(message.key_len() + message.payload_len() + 64 * count);
        let mut put = |part: Option<&[u8]>| -> Span {
            part.map(|part| {
                let from = buffer.len();
                buffer.extend_from_slice(part);
                (from, buffer.len())
            })
        };
        let key = put(message.key());
        let value = put(message.payload());
        let mut spans = Vec::with_capacity(count);
        let mut unreadable = 0;
        if let Some(headers) = headers {
            for at in 0..count {
                // The name is unwrapped as UTF-8 within.
                match catch_unwind(AssertUnwindSafe(|| headers.try_get(at))) {
                    Ok(Some(header)) => {
                        spans.push((put(Some(header.key.as_bytes())), put(header.value)));
                    }
                    Ok(None) => {}
                    Err(_) => unreadable += 1,
                }
                if unreadable == MOST_UNREADABLE {
                    break;
                }
            }
        }
        let buffer = buffer.freeze();
        let slice = |span: Span| span.map(|(from, to)| buffer.slice(from..to));
        Self {
            key: slice(key),
            value: slice(value),
            headers: spans
                .into_iter()
                .map(|(name, value)| (slice(name).unwrap_or_default(), slice(value)))
                .collect(),
            unreadable,
        }
    }

    /// How much memory it holds, roughly as [`Message::size`] counts.
    pub(crate) fn size(&self) -> usize {
        let part = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + part(value));
        part(&self.key) + part(&self.value) + headers.sum::<usize>()
    }

    /// As fields of the wire format.
    fn fields(&self) -> Vec<(Bytes, Bytes)> {
        let mut fields = Vec::with_capacity(self.headers.len() + 1);
        for (name, value) in &self.headers {
            fields.push((name.clone(), value.clone().unwrap_or_default()));
        }
        fields.push((
            Bytes::from_static(DATA),
            self.value.clone().unwrap_or_default(),
        ));
        fields
    }

    /// Reads the message.
    ///
    /// # Errors
    /// What is malformed about it.
    pub(crate) fn message(&self, topic: &Topic, position: Position) -> Result<Message, Reason> {
        if self.unreadable > 0 {
            let more = match self.unreadable {
                MOST_UNREADABLE => " or more",
                _ => "",
            };
            let count = self.unreadable;
            let why =
                format!("the names of {count}{more} headers are not UTF-8: they cannot be read");
            return Err(Reason::new(ReasonCode::Malformed, why));
        }
        let message = fields::decode(topic, position, self.fields())?;
        // Other programs set the record's key and mostly no attribute of that meaning. What is published
        // here has both or neither.
        if message.get_key().is_none()
            && let Some(key) = self
                .key
                .as_deref()
                .and_then(|k| std::str::from_utf8(k).ok())
            && !key.is_empty()
            && key.len() <= 1024
            && !key.chars().any(char::is_control)
        {
            return Ok(message.key(key));
        }
        Ok(message)
    }

    /// The record of a dead letter: the original and its record.
    pub(crate) fn letter(&self, record: &Record) -> Outgoing {
        let mut headers = OwnedHeaders::new_with_capacity(self.headers.len() + 1);
        for (name, value) in &self.headers {
            if name == RECORD_FIELD {
                continue;
            }
            if let Ok(name) = std::str::from_utf8(name) {
                headers = insert(headers, name, value.as_deref());
            }
        }
        let told = fields::encode_record(record);
        Outgoing {
            key: self.key.clone(),
            headers: insert(headers, RECORD_FIELD, Some(&told)),
            value: self.value.clone(),
        }
    }

    /// The record that keeps one that is malformed, in its quarantine topic.
    pub(crate) fn quarantined(&self, target: Topic, record: Record) -> Outgoing {
        let mut original = self.fields();
        if let Some(key) = &self.key {
            original.insert(0, (Bytes::from_static(b"key"), key.clone()));
        }
        Outgoing::of(&fields::quarantine(target, &original, record))
    }
}

/// A record on its way to a broker.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: OwnedHeaders,
    pub(crate) value: Option<Bytes>,
}

impl Outgoing {
    /// The record of a message.
    pub(crate) fn of(message: &Message) -> Self {
        let mut headers = Some(OwnedHeaders::new_with_capacity(6 + message.headers().len()));
        fields::encode(message, &mut |name, value| {
            if name == DATA {
                return;
            }
            // Every name that is written is text.
            if let (Some(so_far), Ok(name)) = (headers.take(), std::str::from_utf8(name)) {
                headers = Some(insert(so_far, name, Some(value)));
            }
        });
        Self {
            key: message
                .get_key()
                .map(|key| Bytes::copy_from_slice(key.as_bytes())),
            headers: headers.unwrap_or_default(),
            value: Some(message.payload().clone()),
        }
    }
}

/// Adds a header. The client would panic over a name with a NUL, which no name here can hold: what is
/// published has been checked, and what was read was one of C's strings.
fn insert(headers: OwnedHeaders, name: &str, value: Option<&[u8]>) -> OwnedHeaders {
    if name.contains('\0') {
        return headers;
    }
    headers.insert(Header { key: name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic() -> Topic {
        Topic::new("orders").unwrap()
    }

    fn raw(out: &Outgoing) -> Raw {
        let headers = out.headers.iter();
        Raw {
            key: out.key.clone(),
            headers: headers
                .map(|h| {
                    (
                        Bytes::copy_from_slice(h.key.as_bytes()),
                        h.value.map(Bytes::copy_from_slice),
                    )
                })
                .collect(),
            value: out.value.clone(),
            unreadable: 0,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let message = Message::new("orders", "x")
            .unwrap()
            .key("a b%\"é")
            .content_type("text/plain")
            .header("b", "2")
            .header("a", " é ");
        let out = Outgoing::of(&message);
        assert_eq!(out.key.as_deref(), Some("a b%\"é".as_bytes()));
        let back = raw(&out).message(&topic(), Position::default()).unwrap();
        assert_eq!(back, message);
    }

    #[test]
    fn foreign_records_are_read_widely() {
        let foreign = Raw {
            key: Some(Bytes::from_static(b"k")),
            headers: vec![
                (Bytes::from_static(b"x"), Some(Bytes::from_static(b"1"))),
                (Bytes::from_static(b"x"), None),
            ],
            value: None,
            unreadable: 0,
        };
        let message = foreign.message(&topic(), Position::default()).unwrap();
        assert_eq!(message.get_key(), Some("k"));
        assert_eq!(message.headers().len(), 2);
        assert!(message.payload().is_empty());
        let odd = Raw {
            key: Some(Bytes::from_static(b"\xff")),
            ..foreign.clone()
        };
        assert_eq!(
            odd.message(&topic(), Position::default())
                .unwrap()
                .get_key(),
            None
        );
        let attribute = |name: &'static [u8], value: &'static [u8]| {
            (Bytes::from_static(name), Some(Bytes::from_static(value)))
        };
        let mut event = Raw {
            headers: vec![
                attribute(b"ce_specversion", b"1.0"),
                attribute(b"ce_id", b"1"),
                attribute(b"ce_source", b"s"),
                attribute(b"ce_type", b"t"),
            ],
            ..foreign.clone()
        };
        let key = |raw: &Raw| {
            let message = raw.message(&topic(), Position::default()).unwrap();
            message.get_key().map(str::to_owned)
        };
        assert_eq!(key(&event).as_deref(), Some("k"));
        event.headers.push(attribute(b"ce_partitionkey", b"p"));
        assert_eq!(key(&event).as_deref(), Some("p"));
        let hostile = Raw {
            unreadable: 1,
            ..foreign
        };
        let reason = hostile.message(&topic(), Position::default()).unwrap_err();
        assert!(reason.text.contains("UTF-8"), "{reason:?}");
    }
}
