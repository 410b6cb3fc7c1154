//! The binding to named fields: a Redis stream entry, and what the memory backend keeps in wire
//! mode.

use bytes::Bytes;

use super::raw;
use super::text as form;
use crate::headers::{HeaderValue, Headers};
use crate::message::{Attribute, Message, Priority, RECORD_RESERVE};
use crate::name::Topic;
use crate::record::{Reason, ReasonCode, Record};
use crate::transport::Position;

/// The field of a [`Record`], as JSON: the last one of a dead letter, beside the original fields.
pub const RECORD_FIELD: &str = "mas-record";
/// The source of messages that another program wrote as plain entries.
pub const FOREIGN_SOURCE: &str = "mas-transport:foreign";
/// The type of messages that hold a malformed entry.
pub const QUARANTINE_KIND: &str = "mas.quarantine";

const PREFIX: &[u8] = b"ce_";
const SPEC_VERSION: &[u8] = b"ce_specversion";
const ID: &[u8] = b"ce_id";
const SOURCE: &[u8] = b"ce_source";
const TYPE: &[u8] = b"ce_type";
const KEY: &[u8] = b"ce_partitionkey";
const PRIORITY: &[u8] = b"ce_priority";
const TAGS: &[u8] = b"ce_tags";
const TIME: &[u8] = b"ce_time";
const EXPIRES: &[u8] = b"ce_expirytime";
const MAX_ATTEMPTS: &[u8] = b"ce_maxattempts";
const PROCESSING_TIMEOUT: &[u8] = b"ce_processingtimeout";
const CONTENT_TYPE: &[u8] = b"content-type";
const TRACE_PARENT: &[u8] = b"traceparent";
const TRACE_STATE: &[u8] = b"tracestate";
const FORMAT: &[u8] = b"mas-format";
const DATA: &[u8] = b"data";

/// Writes a message as fields: calls `put` with the name and value of each, `data` last.
///
/// Meant for messages that [`Message::check`] accepts and for those that [`decode`] made. A header
/// named `data` or as a `ce_` field of the [table](super) is left out (a foreign plain entry may
/// have one), and a null header value becomes an empty one.
pub fn encode(message: &Message, put: &mut impl FnMut(&[u8], &[u8])) {
    put(SPEC_VERSION, b"1.0");
    put(ID, message.id().as_bytes());
    put(SOURCE, message.source().as_bytes());
    put(TYPE, message.get_kind().as_bytes());
    if let Some(value) = message.get_content_type() {
        put(CONTENT_TYPE, value.as_bytes());
    }
    for (attribute, value) in message.attributes() {
        put(field_of(attribute), value.as_bytes());
    }
    if let Some(key) = message.get_key() {
        put(KEY, key.as_bytes());
    }
    match message.get_priority() {
        Priority::Normal => {}
        Priority::Background => put(PRIORITY, b"1"),
        Priority::Low => put(PRIORITY, b"2"),
        Priority::High => put(PRIORITY, b"4"),
        Priority::Critical => put(PRIORITY, b"5"),
    }
    match message.tags() {
        [] => {}
        [tag] => put(TAGS, tag.as_bytes()),
        tags => put(TAGS, tags.join(",").as_bytes()),
    }
    if let Some(time) = message.get_time() {
        put(TIME, form::rfc3339(time).as_bytes());
    }
    if let Some(time) = message.expires_at() {
        put(EXPIRES, form::rfc3339(time).as_bytes());
    }
    if let Some(attempts) = message.get_max_attempts() {
        put(MAX_ATTEMPTS, attempts.to_string().as_bytes());
    }
    if let Some(timeout) = message.get_processing_timeout() {
        put(PROCESSING_TIMEOUT, form::millis(timeout).as_bytes());
    }
    for (name, value) in message.headers().iter() {
        if !is_taken(name, value) {
            put(name.as_bytes(), value.as_bytes().unwrap_or_default());
        }
    }
    if let Some(record) = message.record() {
        put(RECORD_FIELD.as_bytes(), &encode_record(record));
    }
    put(DATA, message.payload());
}

/// Whether a header cannot be written under its name, because an event has another field of that
/// name. Only a foreign plain entry has such headers.
fn is_taken(name: &str, value: &HeaderValue) -> bool {
    match known(name.as_bytes()) {
        // Read beside the plain field, or in its place.
        Some(Known::Text(Attribute::TraceParent | Attribute::TraceState)) => {
            value.as_str().is_none()
        }
        Some(_) => true,
        None => name.as_bytes() == DATA,
    }
}

/// The field of an attribute.
fn field_of(attribute: Attribute) -> &'static [u8] {
    match attribute {
        Attribute::Subject => b"ce_subject",
        Attribute::Recipient => b"ce_recipient",
        Attribute::CorrelationId => b"ce_correlationid",
        Attribute::CausationId => b"ce_causationid",
        Attribute::ReplyTo => b"ce_replyto",
        Attribute::IdempotencyKey => b"ce_idempotencykey",
        Attribute::DataSchema => b"ce_dataschema",
        Attribute::SchemaVersion => b"ce_schemaversion",
        Attribute::TraceParent => TRACE_PARENT,
        Attribute::TraceState => TRACE_STATE,
        Attribute::Action => b"ce_action",
        Attribute::ExpectedOutcome => b"ce_expectedoutcome",
        Attribute::SenderVersion => b"ce_senderversion",
        Attribute::SenderInstance => b"ce_senderinstance",
    }
}

/// A `ce_` field that this version knows.
#[derive(Clone, Copy)]
enum Known {
    SpecVersion,
    Id,
    Source,
    Type,
    Key,
    Priority,
    Tags,
    Time,
    Expires,
    MaxAttempts,
    ProcessingTimeout,
    Text(Attribute),
}

impl Known {
    /// One bit each, to see that none comes twice.
    fn bit(self) -> u64 {
        1 << match self {
            Self::SpecVersion => 0,
            Self::Id => 1,
            Self::Source => 2,
            Self::Type => 3,
            Self::Key => 4,
            Self::Priority => 5,
            Self::Tags => 6,
            Self::Time => 7,
            Self::Expires => 8,
            Self::MaxAttempts => 9,
            Self::ProcessingTimeout => 10,
            Self::Text(attribute) => 16 + attribute as u8,
        }
    }
}

fn known(name: &[u8]) -> Option<Known> {
    Some(match name {
        SPEC_VERSION => Known::SpecVersion,
        ID => Known::Id,
        SOURCE => Known::Source,
        TYPE => Known::Type,
        KEY => Known::Key,
        PRIORITY => Known::Priority,
        TAGS => Known::Tags,
        TIME => Known::Time,
        EXPIRES => Known::Expires,
        MAX_ATTEMPTS => Known::MaxAttempts,
        PROCESSING_TIMEOUT => Known::ProcessingTimeout,
        _ => Known::Text(Attribute::from_wire_name(name.strip_prefix(PREFIX)?)?),
    })
}

/// Reads the fields of an entry at `position` of `topic`, in the ways that the
/// [module](super#reading) describes. Payload and header values are taken over, not copied: they
/// keep alive whatever buffer they are slices of.
///
/// # Errors
/// `Malformed`, naming the field and what is wrong with it, never a value. Any bytes whatever are
/// either read or answered so.
pub fn decode(
    topic: &Topic,
    position: Position,
    fields: Vec<(Bytes, Bytes)>,
) -> Result<Message, Reason> {
    let is_event = fields.iter().any(|(name, _)| name == SPEC_VERSION);
    let (record_at, record) = find_record(&fields).unzip();
    let mut message = Message::assemble(topic.clone(), String::new(), Bytes::new());
    let mut headers = Headers::default();
    let mut seen = 0;
    let mut data = None;
    let (mut content_type, mut parent, mut state) = (None, None, None);
    let (mut event_parent, mut event_state) = (None, None);
    for (at, (name, value)) in fields.into_iter().enumerate() {
        if let Some(known) = is_event.then(|| known(&name)).flatten() {
            if seen & known.bit() != 0 {
                return Err(malformed(&name, TWICE));
            }
            seen |= known.bit();
            match known {
                Known::Text(Attribute::TraceParent) => event_parent = Some(text(&name, value)?),
                Known::Text(Attribute::TraceState) => event_state = Some(text(&name, value)?),
                _ => message = apply(message, known, &name, value)?,
            }
            continue;
        }
        let value = match &*name {
            DATA if data.is_some() => return Err(malformed(&name, TWICE)),
            DATA => {
                data = Some(value);
                None
            }
            FORMAT if value != "1" => {
                return Err(malformed(
                    &name,
                    "a wire format that this version cannot read",
                ));
            }
            CONTENT_TYPE => fill(&mut content_type, value),
            TRACE_PARENT => fill(&mut parent, value),
            TRACE_STATE => fill(&mut state, value),
            _ if record_at == Some(at) => None,
            _ => Some(value),
        };
        if let Some(value) = value {
            let name = String::from_utf8(into_vec(name))
                .map_err(|e| malformed(e.as_bytes(), "a field name is UTF-8"))?;
            headers.append(name, HeaderValue::from_bytes(value));
        }
    }
    for (attribute, plain, event, event_field) in [
        (
            Attribute::TraceParent,
            parent,
            event_parent,
            "ce_traceparent",
        ),
        (Attribute::TraceState, state, event_state, "ce_tracestate"),
    ] {
        if let (Some(_), Some(start)) = (&plain, &event) {
            headers.append(event_field, start.as_str());
        }
        if let Some(value) = plain.or(event) {
            message = message.set_attribute(attribute, value);
        }
    }
    if let Some(name) = repeated_extension(&headers) {
        return Err(malformed(name.as_bytes(), TWICE));
    }
    if is_event {
        for (known, name) in [
            (Known::Id, ID),
            (Known::Source, SOURCE),
            (Known::Type, TYPE),
        ] {
            if seen & known.bit() == 0 {
                return Err(malformed(name, "an event has it"));
            }
        }
    } else if data.is_none() {
        return Err(malformed(DATA, "neither it nor ce_specversion is there"));
    } else {
        // In a dead-letter topic the message keeps the id that it had where it came from.
        let origin = record.as_ref().map(|r: &Record| &r.position);
        let id = match origin {
            Some(origin) if !origin.is_empty() => origin.clone(),
            _ => position.to_string(),
        };
        message = message.with_id(id).from_source(FOREIGN_SOURCE);
    }
    if let Some(content_type) = content_type {
        message = message.content_type(content_type);
    }
    if !headers.is_empty() {
        message = message.with_headers(headers);
    }
    if let Some(record) = record {
        message = message.with_record(record);
    }
    Ok(message.with_payload(data.unwrap_or_default()))
}

const TWICE: &str = "it is there twice";

/// Sets what a known field of an event says.
fn apply(message: Message, known: Known, name: &[u8], value: Bytes) -> Result<Message, Reason> {
    let value = text(name, value)?;
    let wrong = |problem| malformed(name, problem);
    Ok(match known {
        Known::SpecVersion if value == "1.0" => message,
        Known::SpecVersion => return Err(wrong("this version reads 1.0 only")),
        Known::Id | Known::Source | Known::Type if value.is_empty() => {
            return Err(wrong("it is empty"));
        }
        Known::Id => message.with_id(value),
        Known::Source => message.from_source(value),
        Known::Type => message.kind(value),
        Known::Key => message.key(value),
        Known::Priority => message.priority(
            Priority::parse(&value)
                .ok_or_else(|| wrong("it is not a priority, 1 to 5 or a name"))?,
        ),
        Known::Tags => value
            .split(',')
            .filter(|tag| !tag.is_empty())
            .fold(message, Message::tag),
        Known::Time => message.time(form::parse_rfc3339(&value).ok_or_else(|| wrong(NO_TIME))?),
        Known::Expires => {
            message.expires(form::parse_rfc3339(&value).ok_or_else(|| wrong(NO_TIME))?)
        }
        Known::MaxAttempts => message.max_attempts(
            value
                .parse()
                .map_err(|_| wrong("it is not a number of attempts"))?,
        ),
        Known::ProcessingTimeout => message.processing_timeout(
            form::parse_millis(&value).ok_or_else(|| wrong("it is not whole milliseconds"))?,
        ),
        Known::Text(attribute) => message.set_attribute(attribute, value),
    })
}

const NO_TIME: &str = "it is not a time in RFC 3339";

/// The last record that can be read, and which field it is.
fn find_record(fields: &[(Bytes, Bytes)]) -> Option<(usize, Record)> {
    let fields = fields.iter().enumerate().rev();
    fields
        .filter(|(_, (name, _))| name == RECORD_FIELD)
        .find_map(|(at, (_, value))| {
            let record: Record = serde_json::from_slice(value).ok()?;
            (record.version <= Record::VERSION).then_some((at, record))
        })
}

/// The name of a CloudEvents attribute that is among the headers more than once.
fn repeated_extension(headers: &Headers) -> Option<&str> {
    let names = headers.iter().map(|(name, _)| name);
    let mut names: Vec<&str> = names.filter(|n| n.as_bytes().starts_with(PREFIX)).collect();
    // An entry may have any number of fields.
    names.sort_unstable();
    names.windows(2).find_map(|pair| match pair {
        [a, b] if a == b => Some(*a),
        _ => None,
    })
}

/// Puts a text into an empty slot; gives the value back when it does not belong there.
fn fill(slot: &mut Option<String>, value: Bytes) -> Option<Bytes> {
    if slot.is_some() || std::str::from_utf8(&value).is_err() {
        return Some(value);
    }
    *slot = String::from_utf8(into_vec(value)).ok();
    None
}

fn text(name: &[u8], value: Bytes) -> Result<String, Reason> {
    String::from_utf8(into_vec(value)).map_err(|_| malformed(name, "it is not UTF-8"))
}

/// Takes the buffer over where nobody else has it, but not a large one for a few bytes.
fn into_vec(bytes: Bytes) -> Vec<u8> {
    const SLACK: usize = 64;
    let mut bytes = Vec::from(bytes);
    if bytes.capacity() - bytes.len() > SLACK {
        bytes.shrink_to_fit();
    }
    bytes
}

fn malformed(name: &[u8], problem: &str) -> Reason {
    const SHOWN: usize = 64;
    let shown = name.get(..SHOWN).unwrap_or(name).escape_ascii();
    let cut = if name.len() > SHOWN { "…" } else { "" };
    Reason::new(
        ReasonCode::Malformed,
        format!("field {shown}{cut}: {problem}"),
    )
}

/// A record as JSON for [`RECORD_FIELD`]. Name and value together take at most [`RECORD_RESERVE`]
/// bytes: where they would take more, the oldest failures are left out.
pub fn encode_record(record: &Record) -> Vec<u8> {
    // Strings and numbers: there is nothing in a record that JSON cannot say.
    let json = |record: &Record| serde_json::to_vec(record).unwrap_or_default();
    let mut bytes = json(record);
    if bytes.len() > RECORD_ROOM {
        let mut record = record.clone();
        // Halved, so that a record with a very long history takes no quadratic time.
        while bytes.len() > RECORD_ROOM && !record.history.is_empty() {
            let oldest = record.history.len().div_ceil(2);
            record.history.drain(..oldest);
            bytes = json(&record);
        }
    }
    bytes
}

const RECORD_ROOM: usize = RECORD_RESERVE - RECORD_FIELD.len();

/// The message that keeps a malformed entry, for its quarantine topic: the entry as
/// [`raw::encode`] writes it, and the record. Its id is the place where the entry stood, so that
/// an entry which is quarantined twice can be told.
pub fn quarantine(topic: Topic, original: &[(Bytes, Bytes)], record: Record) -> Message {
    let id = format!("{}/{}", record.topic, record.position);
    Message::assemble(topic, id, raw::encode(original))
        .kind(QUARANTINE_KIND)
        .content_type(raw::CONTENT_TYPE)
        .with_record(record)
}
