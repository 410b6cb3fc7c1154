//! The wire format: how a message stands in a broker, so that programs in other languages read and
//! write the same messages.
//!
//! It is CloudEvents 1.0 in binary mode: attributes beside the payload, the payload as it is.
//! CloudEvents has no binding for Redis Streams, so the one in [`fields`] is this project's own,
//! modelled on the Kafka binding: one stream entry is one event, and its fields are these.
//!
//! | Field | Message | Written |
//! |---|---|---|
//! | `ce_specversion` | `1.0` | always |
//! | `ce_id` | [`Message::id`](crate::Message::id) | always |
//! | `ce_source` | [`Message::source`](crate::Message::source) | always |
//! | `ce_type` | [`Message::get_kind`](crate::Message::get_kind) | always |
//! | `content-type` | content type of the payload | when set |
//! | `traceparent`, `tracestate` | W3C trace context | when set |
//! | `ce_<name>` | every other [`Attribute`](crate::Attribute), by its `wire_name` | when set |
//! | `ce_partitionkey` | ordering key | when set |
//! | `ce_priority` | priority, 1 (background) to 5 (critical) | unless normal (3) |
//! | `ce_tags` | tags, joined by commas | when there are any |
//! | `ce_time` | time of what it tells, RFC 3339 in UTC | when set |
//! | `ce_expirytime` | end of its life, RFC 3339 in UTC | when set |
//! | `ce_maxattempts` | the sender's attempts, a number | when set |
//! | `ce_processingtimeout` | the sender's time limit, whole milliseconds, rounded up | when set |
//! | any other name | application header of that name | in order |
//! | `mas-record` | [`Record`](crate::Record) of a dead letter or quarantined entry, JSON | when set |
//! | `data` | payload | always, also when empty; last |
//!
//! The topic is the stream itself, and a delay is a matter between publisher and broker: neither
//! is a field. Fields cost the broker time, so what is not set is not written.
//!
//! # Reading
//!
//! Reading is wider than writing. Fields may come in any order; names are compared byte for byte.
//!
//! - **An event** has `ce_specversion`. It must be `1.0`, and `ce_id`, `ce_source` and `ce_type`
//!   must be there as text that is not empty. Every attribute of the table must be UTF-8 and of its
//!   own form (a priority may also be a name, such as `high`); `data` may be missing.
//! - **A foreign plain entry** has `data` and no `ce_specversion`. `content-type`, `traceparent`
//!   and `tracestate` are read; every other field is a header. Its source is
//!   [`FOREIGN_SOURCE`](fields::FOREIGN_SOURCE), its type the default, and its id the text of its
//!   position, or, when it stands in a dead-letter topic, of the position in its record.
//! - **Everything else is malformed**, and so is any entry with a name that is not UTF-8, with two
//!   `data` or two equal `ce_` fields.
//!
//! Nothing else is refused, and nothing that was read is lost but empty tags: attributes of CloudEvents that this
//! version does not know are headers under their full field name (`ce_dataref`), values that are
//! not UTF-8 are binary header values, and repeated names are repeated headers. Of `content-type`,
//! `traceparent` and `tracestate` the first that is UTF-8 counts, of `mas-record` the last that can
//! be read; the others are headers. `ce_traceparent` and `ce_tracestate` count where the plain
//! fields are missing, and are headers beside them. A record of an unknown later version, or one
//! that cannot be read, is a header. Anybody who can write to the broker can write a record or a
//! reply topic: they are not to be trusted more than the broker's users are.
//!
//! An event in structured mode (`content-type: application/cloudevents+json` and the whole event
//! in `data`) is a foreign plain entry: it is handed over with its content type, as it is.
//!
//! # Versions
//!
//! This is version 1. No field says so, because each costs time; an entry without the field
//! `mas-format` is of version 1. Attributes may be added within a version: older readers take them
//! as headers. A later version that older readers would misunderstand writes `mas-format` with its
//! number, and a reader that finds a number which it does not know takes the entry as malformed, so
//! that it is kept in quarantine rather than misread.

pub mod fields;
pub mod raw;
pub(crate) mod text;

pub use text::rfc3339;

/// The version of the wire format that this library writes.
pub const VERSION: u32 = 1;
