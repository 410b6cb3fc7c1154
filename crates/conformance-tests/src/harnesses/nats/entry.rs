//! Entries as another program writes them: fields of the wire format as headers and a payload.

use bytes::Bytes;
use mas_transport_core::codec::fields;
use mas_transport_core::{Position, Topic};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

type Fields = Vec<(Bytes, Bytes)>;

/// What the binding of CloudEvents encodes beside everything that is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
/// What a block of headers begins with.
const VERSION: &[u8] = b"NATS/1.0\r\n";
/// A block of headers that clients cannot read, as it stands in quarantine and as trials give it.
const BLOCK: &[u8] = b"headers";
const DATA: &[u8] = b"data";

/// What is published.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    headers: Fields,
    pub(super) block: Vec<u8>,
    pub(super) payload: Bytes,
}

impl Entry {
    /// These fields: the first `data` is the payload, attributes of events are percent-encoded, and
    /// so is what could not be written as it is.
    pub(super) fn new(fields: Fields) -> Self {
        let event = fields.iter().any(|(name, _)| name == "ce_specversion");
        let mut payload = None;
        let (mut headers, mut written) = (Vec::new(), None);
        for (name, value) in fields {
            if name == DATA && payload.is_none() {
                payload = Some(value);
            } else if name == BLOCK && value.starts_with(b"NATS/") {
                written = Some(value.to_vec());
            } else {
                headers.push(header(event, name, value));
            }
        }
        Self {
            block: written.unwrap_or_else(|| block(&headers)),
            headers,
            payload: payload.unwrap_or_default(),
        }
    }

    /// Whether clients can read the headers.
    pub(super) fn is_readable(&self) -> bool {
        let Ok(block) = std::str::from_utf8(&self.block) else {
            return false;
        };
        let graphic = |name: &str| name.bytes().all(|b| b.is_ascii_graphic());
        let lines = block.strip_prefix("NATS/1.0\r\n").unwrap_or(block);
        lines.split("\r\n").all(|line| {
            let readable = line.split_once(':').is_some_and(|(name, _)| graphic(name));
            line.is_empty() || readable && !line.contains(['\r', '\n'])
        })
    }

    /// What stands in quarantine when it is no message.
    pub(super) fn quarantined(self) -> Fields {
        let mut all = match self.is_readable() {
            true => self.headers,
            false => vec![(Bytes::from_static(BLOCK), self.block.into())],
        };
        all.push((Bytes::from_static(DATA), self.payload));
        all
    }
}

/// Whether these fields are read as a message.
pub(super) fn is_read(topic: &Topic, mut fields: Fields) -> bool {
    if !Entry::new(fields.clone()).is_readable() {
        return false;
    }
    let text = |(name, value): &(Bytes, Bytes)| name == DATA || std::str::from_utf8(value).is_ok();
    // A message always has a payload.
    if !fields.iter().any(|(name, _)| name == DATA) {
        fields.push((Bytes::from_static(DATA), Bytes::new()));
    }
    fields.iter().all(text) && fields::decode(topic, Position::default(), fields).is_ok()
}

/// What of these fields can be carried, in the order in which it comes out: the client sorts nothing,
/// and keeps no order; the library sorts.
pub(super) fn carried(fields: Fields) -> Fields {
    let event = fields.iter().any(|(name, _)| name == "ce_specversion");
    let can = |(name, value): &(Bytes, Bytes)| {
        let text = name == DATA || std::str::from_utf8(value).is_ok();
        let protocol = name.to_ascii_lowercase().starts_with(b"nats-");
        let graphic = name.iter().all(|b| b.is_ascii_graphic() && *b != b':');
        text && graphic && !protocol
    };
    let mut fields: Fields = fields.into_iter().filter(can).collect();
    fields.sort_by_key(|(name, value)| header(event, name.clone(), value.clone()).0);
    fields
}

/// A field as a header.
fn header(event: bool, name: Bytes, value: Bytes) -> (Bytes, Bytes) {
    let escaped = || percent_encode(&value, ENCODED).to_string();
    if let Some(attribute) = name.strip_prefix(b"ce_") {
        let name = [b"ce-", attribute].concat();
        return (name.into(), escaped().into());
    }
    if event && name == "content-type" {
        return (Bytes::from_static(b"ce-datacontenttype"), escaped().into());
    }
    let edges = [value.first(), value.last()].contains(&Some(&b' '));
    if edges || !value.iter().all(|b| (b' '..=b'~').contains(b)) {
        let name = [&name[..], b"*"].concat();
        return (name.into(), format!("UTF-8''{}", escaped()).into());
    }
    (name, value)
}

/// A block of these headers; empty, where there are none.
fn block(headers: &[(Bytes, Bytes)]) -> Vec<u8> {
    if headers.is_empty() {
        return Vec::new();
    }
    let mut block = VERSION.to_vec();
    for (name, value) in headers {
        block.extend_from_slice(&[name, &b": "[..], value, b"\r\n"].concat());
    }
    block.extend_from_slice(b"\r\n");
    block
}

/// Blocks of headers that no client would write, and that clients cannot read.
pub(super) fn unreadable() -> Vec<(&'static str, Fields)> {
    let blocks: [(&str, &[u8]); 6] = [
        ("a line without a colon", b"NATS/1.0\r\nno colon\r\n\r\n"),
        ("a name with a space", b"NATS/1.0\r\na b: c\r\n\r\n"),
        ("a lone line feed", b"NATS/1.0\r\na: b\nc\r\n\r\n"),
        ("a lone carriage return", b"NATS/1.0\r\na: b\rc\r\n\r\n"),
        ("bytes that are not UTF-8", b"NATS/1.0\r\na: \xff\r\n\r\n"),
        ("another version", b"NATS/9.9\r\na: b\r\n\r\n"),
    ];
    let fields = |block| {
        vec![
            (Bytes::from_static(BLOCK), Bytes::from_static(block)),
            (Bytes::from_static(DATA), Bytes::from_static(b"d")),
        ]
    };
    let all = blocks.into_iter();
    all.map(|(what, block)| (what, fields(block))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &[u8])]) -> Fields {
        let copy =
            |(n, v): &(&str, &[u8])| (Bytes::from((*n).to_owned()), Bytes::copy_from_slice(v));
        list.iter().map(copy).collect()
    }

    #[test]
    fn fields_become_headers() {
        let entry = Entry::new(fields(&[
            ("ce_specversion", b"1.0"),
            ("content-type", b"text/plain; a=b"),
            ("data", b"x"),
            ("h", b" \xc3\xa9"),
            ("i", b"j k"),
        ]));
        let wanted = "NATS/1.0\r\nce-specversion: 1.0\r\nce-datacontenttype: text/plain;%20a=b\r\n\
                      h*: UTF-8''%20%C3%A9\r\ni: j k\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&entry.block), wanted);
        assert_eq!(entry.payload.as_ref(), b"x");
        assert!(entry.is_readable());
        assert_eq!(Entry::new(fields(&[("data", b"x")])).block, b"");
    }

    #[test]
    fn what_clients_cannot_read_is_told() {
        let topic = Topic::new("t").unwrap();
        for (what, fields) in unreadable() {
            assert!(!is_read(&topic, fields.clone()), "{what}");
            assert_eq!(Entry::new(fields.clone()).quarantined(), fields, "{what}");
        }
        assert!(is_read(&topic, fields(&[("x", b"y")])));
        assert!(!is_read(&topic, fields(&[("x", b"\xff")])));
        assert!(!is_read(&topic, fields(&[("a b", b"")])));
    }
}
