//! Messages as NATS carries them: CloudEvents in binary mode, by the NATS binding.
//!
//! The fields of the wire format ([`mas_transport_core::codec`]) become headers: `ce_id` is `ce-id`, the
//! content type `ce-datacontenttype`, `data` the payload. Values of `ce-` headers are percent-encoded.
//! An application header whose value the server or a client could change (spaces at an end, anything
//! beyond ASCII) is written as RFC 8187 has it, under its name and a `*`. The client does not keep the
//! order of headers, so `mas-order` names them where there is more than one.

use std::borrow::Cow;
use std::collections::HashMap;

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use mas_transport_core::codec::fields;
use mas_transport_core::{Message, Position, Reason, ReasonCode, Record, Topic};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

/// What the binding encodes beside everything that is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
/// The largest block of headers that JetStream stores.
pub(crate) const MOST_HEADERS: usize = 64 << 10;
const ORDER: &str = "mas-order";
const CONTENT_TYPE: &str = "ce-datacontenttype";
/// What RFC 8187 puts in front of an encoded value.
const CHARSET: &str = "UTF-8''";
/// Headers of the server's own protocol.
const PROTOCOL: &str = "nats-";

/// The headers and the payload of a message.
pub(crate) fn encode(message: &Message) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    fields::encode(message, &mut |name, value| put(&mut headers, name, value));
    let names: Vec<&str> = message.headers().iter().map(|(name, _)| name).collect();
    if names.len() > 1 {
        headers.insert(HeaderName::from_static(ORDER), names.join(",").as_str());
    }
    (headers, message.payload().clone())
}

/// Adds a field of the wire format as a header. The payload is none.
fn put(headers: &mut HeaderMap, name: &[u8], value: &[u8]) {
    // What `fields::encode` writes is text, but for values that were read from others.
    let (Ok(name), Ok(text)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
        return;
    };
    match name {
        "data" => {}
        "content-type" => append(
            headers,
            HeaderName::from_static(CONTENT_TYPE),
            &escaped(text),
        ),
        // JSON on one line.
        fields::RECORD_FIELD => {
            append(headers, HeaderName::from_static(fields::RECORD_FIELD), text)
        }
        _ => match (name.strip_prefix("ce_"), known(name)) {
            (_, Some(name)) => append(headers, HeaderName::from_static(name), &escaped(text)),
            (Some(extension), None) => {
                if let Ok(name) = format!("ce-{extension}").parse() {
                    append(headers, name, &escaped(text));
                }
            }
            (None, None) if is_safe(text) => {
                if let Ok(name) = name.parse() {
                    append(headers, name, text);
                }
            }
            (None, None) => {
                if let Ok(name) = format!("{name}*").parse() {
                    append(headers, name, &format!("{CHARSET}{}", escaped(text)));
                }
            }
        },
    }
}

/// Only what holds no line break comes here, which the client would panic over; and if it did, the
/// break would be left out.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = value.parse::<async_nats::HeaderValue>() {
        headers.append(name, value);
    }
}

fn known(name: &str) -> Option<&'static str> {
    Some(match name {
        "ce_specversion" => "ce-specversion",
        "ce_id" => "ce-id",
        "ce_source" => "ce-source",
        "ce_type" => "ce-type",
        "ce_partitionkey" => "ce-partitionkey",
        _ => return None,
    })
}

fn escaped(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, ENCODED).into()
}

/// Whether a value comes out as it goes in.
fn is_safe(text: &str) -> bool {
    text.bytes().all(|b| (b' '..=b'~').contains(&b))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
}

/// The size of a block of headers on the wire, as servers count it against their limits.
pub(crate) fn wire_size(headers: &HeaderMap) -> usize {
    const VERSION: usize = "NATS/1.0\r\n\r\n".len();
    let values = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values
            .iter()
            .map(move |v| name.len() + v.as_str().len() + 4)
    });
    VERSION + values.sum::<usize>()
}

/// Reads a message.
///
/// # Errors
/// What is malformed about it.
pub(crate) fn decode(
    topic: &Topic,
    position: Position,
    headers: Option<HeaderMap>,
    payload: Bytes,
) -> Result<Message, Reason> {
    let headers = headers.unwrap_or_default();
    let mut order = None;
    let mut read: Vec<(&str, &str)> = Vec::with_capacity(headers.len());
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        for value in values {
            if name == ORDER && order.is_none() {
                order = Some(value.as_str());
            } else {
                read.push((name, value.as_str()));
            }
        }
    }
    // The client's map has an order of its own in every process.
    read.sort_by_key(|(name, _)| *name);
    if let Some(order) = order {
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (place, name) in order.split(',').enumerate() {
            places.entry(name).or_insert(place);
        }
        read.sort_by_cached_key(|(name, _)| {
            let name = name.strip_suffix('*').unwrap_or(name);
            places.get(name).copied()
        });
    }
    entry(topic, position, &read, payload)
}

/// Reads a message from its headers in order.
fn entry(
    topic: &Topic,
    position: Position,
    headers: &[(&str, &str)],
    payload: Bytes,
) -> Result<Message, Reason> {
    let mut found = Vec::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        found.extend(field(name, value)?);
    }
    found.push((Bytes::from_static(b"data"), payload));
    fields::decode(topic, position, found)
}

/// A header as a field of the wire format; none for those of the server's protocol.
fn field(name: &str, value: &str) -> Result<Option<(Bytes, Bytes)>, Reason> {
    // As the library writes them; nothing is allocated for these.
    if let Some(name_of_field) = field_of(name) {
        let name_of_field = Bytes::from_static(name_of_field.as_bytes());
        return Ok(Some((name_of_field, decoded(name, unquoted(value))?)));
    }
    let lower = name.to_ascii_lowercase();
    if lower.starts_with(PROTOCOL) {
        return Ok(None);
    }
    if let Some(name_of_field) = field_of(&lower) {
        let name_of_field = Bytes::from_static(name_of_field.as_bytes());
        return Ok(Some((name_of_field, decoded(name, unquoted(value))?)));
    }
    if let Some(attribute) = lower.strip_prefix("ce-") {
        let value = decoded(name, unquoted(value))?;
        return Ok(Some((format!("ce_{attribute}").into(), value)));
    }
    let plain = |name: String| Some((name.into(), Bytes::copy_from_slice(value.as_bytes())));
    if lower == "content-type" {
        return Ok(plain(lower));
    }
    if let Some((plain, encoded)) = name.strip_suffix('*').zip(value.strip_prefix(CHARSET)) {
        return Ok(Some((plain.to_owned().into(), decoded(name, encoded)?)));
    }
    Ok(plain(name.to_owned()))
}

/// The field of the wire format that a header of an event is, if it is one that most messages have.
fn field_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "ce-specversion" => "ce_specversion",
        "ce-id" => "ce_id",
        "ce-source" => "ce_source",
        "ce-type" => "ce_type",
        "ce-partitionkey" => "ce_partitionkey",
        CONTENT_TYPE => "content-type",
        _ => return None,
    })
}

/// Headers as a server stores them, in order; an error where the client could not read them and would
/// break the connection over them.
pub(crate) fn parse(block: &[u8]) -> Result<Vec<(String, String)>, String> {
    if block.is_empty() {
        return Ok(Vec::new());
    }
    let text = std::str::from_utf8(block).map_err(|_| "the headers are not UTF-8")?;
    let mut lines = text.lines().peekable();
    let version = lines.next().and_then(|line| line.strip_prefix("NATS/1.0"));
    let status = version
        .ok_or("the headers do not begin with NATS/1.0")?
        .trim();
    let status = status.split_once(' ').map_or(status, |(status, _)| status);
    if !status.is_empty() && status.parse::<async_nats::StatusCode>().is_err() {
        return Err("the status of the headers is no number".to_owned());
    }
    let mut headers = Vec::new();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or("a line of the headers has no colon")?;
        if name.parse::<HeaderName>().is_err() {
            return Err("a name among the headers is not printable ASCII".to_owned());
        }
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        value.truncate(value.trim_end().len());
        if value.contains('\r') {
            return Err("a value among the headers holds a carriage return".to_owned());
        }
        headers.push((name.to_owned(), value));
    }
    Ok(headers)
}

/// An entry as it stands, for its dead letter: without what only meant something to the server that
/// took it, and with a record.
pub(crate) fn verbatim(headers: &[(String, String)], record: &Record) -> HeaderMap {
    let mut map = HeaderMap::new();
    let mut order = Vec::new();
    let mut ordered = false;
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if lower.starts_with(PROTOCOL) || lower == fields::RECORD_FIELD {
            continue;
        }
        ordered |= lower == ORDER;
        let Ok(parsed) = name.parse::<HeaderName>() else {
            continue;
        };
        append(&mut map, parsed, value);
        if !lower.starts_with("ce-") {
            order.push(name.strip_suffix('*').unwrap_or(name).to_owned());
        }
    }
    // The client has no order of its own.
    if order.len() > 1 && !ordered {
        append(&mut map, HeaderName::from_static(ORDER), &order.join(","));
    }
    let record = String::from_utf8(fields::encode_record(record)).unwrap_or_default();
    append(
        &mut map,
        HeaderName::from_static(fields::RECORD_FIELD),
        &record,
    );
    map
}

/// The binding lets values be quoted.
fn unquoted(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    inner.unwrap_or(value)
}

fn decoded(name: &str, value: &str) -> Result<Bytes, Reason> {
    if !value.contains('%') {
        return Ok(Bytes::copy_from_slice(value.as_bytes()));
    }
    let decoded: Vec<u8> = percent_decode(value.as_bytes()).collect();
    match std::str::from_utf8(&decoded) {
        Ok(_) => Ok(decoded.into()),
        Err(_) => {
            let shown: String = name.chars().take(64).collect();
            let why = format!(
                "header {}: it is not UTF-8 once decoded",
                shown.escape_debug()
            );
            Err(Reason::new(ReasonCode::Malformed, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic() -> Topic {
        Topic::new("orders").unwrap()
    }

    fn back(message: &Message) -> Message {
        let (headers, payload) = encode(message);
        decode(&topic(), Position::default(), Some(headers), payload).unwrap()
    }

    #[test]
    fn attributes_are_written_as_the_binding_says() {
        let message = Message::new(topic().as_str(), "x")
            .unwrap()
            .key("a b%\"é")
            .content_type("text/plain");
        let (headers, _) = encode(&message);
        let get = |name: &str| headers.get(name).map(|v| v.as_str().to_owned());
        assert_eq!(get("ce-partitionkey").as_deref(), Some("a%20b%25%22%C3%A9"));
        assert_eq!(get("ce-datacontenttype").as_deref(), Some("text/plain"));
        assert_eq!(get("ce-specversion").as_deref(), Some("1.0"));
        assert_eq!(back(&message), message);
    }

    #[test]
    fn foreign_headers_are_read_widely() {
        let read = |headers: &[(&str, &str)]| {
            let payload = Bytes::from_static(b"x");
            entry(&topic(), Position::default(), headers, payload)
        };
        let event = [
            ("CE-SpecVersion", "1.0"),
            ("Ce-Id", "\"a%20b\""),
            ("ce-source", "s"),
            ("ce-type", "t%c3%a9"),
        ];
        let message = read(&event).unwrap();
        assert_eq!((message.id(), message.get_kind()), ("a b", "té"));
        let plain = read(&[
            ("X-Count", "50%25"),
            ("Nats-Msg-Id", "1"),
            ("Content-Type", "text/css"),
        ])
        .unwrap();
        assert_eq!(
            plain.headers().get("X-Count").unwrap().as_str(),
            Some("50%25")
        );
        assert_eq!(plain.headers().len(), 1);
        assert_eq!(plain.get_content_type(), Some("text/css"));
        let reason = read(&[("ce-specversion", "1.0"), ("ce-id", "%C0%A0")]).unwrap_err();
        assert!(reason.text.contains("ce-id"), "{reason:?}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            key in "\\PC{1,40}",
            values in proptest::collection::vec("[^\\p{Cc}]{0,40}", 0..6),
        ) {
            let mut message = Message::new("orders", payload).unwrap().key(key);
            for (i, value) in values.iter().enumerate() {
                // Not in the order of the alphabet.
                message = message.header(format!("h{}", 9 - i), value.as_str());
            }
            let read = back(&message);
            prop_assert_eq!(&read, &message);
            let (headers, _) = encode(&message);
            prop_assert!(wire_size(&headers) > message.headers().iter().count());
        }
    }
}
