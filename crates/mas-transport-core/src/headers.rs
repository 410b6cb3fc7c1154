//! Application headers: what may be written, and the wider set of what may be read.

use bytes::Bytes;

use crate::error::{Error, Result};

/// Most headers on one message.
pub const MAX_HEADERS: usize = 64;
/// Longest header name, in bytes.
pub const MAX_HEADER_NAME: usize = 64;
/// Longest header value, in bytes.
pub const MAX_HEADER_VALUE: usize = 4 * 1024;
/// All header names and values of one message together, in bytes.
pub const MAX_HEADERS_TOTAL: usize = 16 * 1024;

/// Names with a meaning of their own on some broker or in the wire format.
const RESERVED: [&str; 4] = ["data", "content-type", "traceparent", "tracestate"];
const RESERVED_PREFIXES: [&str; 4] = ["ce_", "ce-", "nats-", "mas-"];

/// The value of a header that was read: UTF-8 text on messages from this library; other programs
/// also write binary values and nulls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderValue(Option<Bytes>);

impl HeaderValue {
    /// A value of arbitrary bytes, as a foreign program may write it.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(Some(bytes.into()))
    }

    /// The null that Kafka distinguishes from an empty value.
    pub fn null() -> Self {
        Self(None)
    }

    /// The text; `None` when it is null or not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.0.as_deref()?).ok()
    }

    /// The bytes; `None` when it is null.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self(Some(Bytes::copy_from_slice(text.as_bytes())))
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self(Some(text.into()))
    }
}

/// Headers in the order in which they were added; a name may stand there more than once.
///
/// What may be *written*: names `[a-z0-9._-]{1,64}` outside `data`, `content-type`,
/// `traceparent`, `tracestate` and the prefixes `ce_ ce- nats- mas-`, each name once; values of
/// UTF-8 without control characters, 4 KiB at most; 64 headers; 16 KiB in all. What may be *read*
/// is anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, HeaderValue)>);

impl Headers {
    /// Adds a header behind the others.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<HeaderValue>) {
        self.0.push((name.into(), value.into()));
    }

    /// The first value of `name`, compared byte for byte.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all names and values.
    pub(crate) fn size(&self) -> usize {
        self.0
            .iter()
            .map(|(n, v)| n.len() + v.as_bytes().map_or(0, <[u8]>::len))
            .sum()
    }

    /// Checks the rules of writing.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |name: &str, why: &'static str| {
            Err(Error::invalid("publish", why).with("header", name.escape_debug()))
        };
        if self.len() > MAX_HEADERS {
            return wrong("*", "a message has at most 64 headers");
        }
        if self.size() > MAX_HEADERS_TOTAL {
            return wrong("*", "the headers of a message take at most 16 KiB");
        }
        for (i, (name, value)) in self.0.iter().enumerate() {
            if !is_header_name(name) {
                return wrong(
                    name,
                    "a header name is 1 to 64 of a-z, 0-9, '.', '_' and '-'",
                );
            }
            if RESERVED.contains(&name.as_str())
                || RESERVED_PREFIXES.iter().any(|p| name.starts_with(p))
            {
                return wrong(name, "this header name is reserved");
            }
            if self.0.iter().take(i).any(|(n, _)| n == name) {
                return wrong(name, "a header may be written once");
            }
            let Some(text) = value.as_str() else {
                return wrong(name, "a header value is UTF-8 text");
            };
            if text.len() > MAX_HEADER_VALUE {
                return wrong(name, "a header value has at most 4 KiB");
            }
            if text.chars().any(char::is_control) {
                return wrong(name, "a header value holds no control characters");
            }
        }
        Ok(())
    }
}

fn is_header_name(name: &str) -> bool {
    (1..=MAX_HEADER_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> Result<()> {
        let mut headers = Headers::default();
        headers.append(name, value);
        headers.check()
    }

    #[test]
    fn the_rules_of_writing() {
        for (name, value) in [
            ("a", ""),
            ("x.y_z-9", "naïve 🦀 \"quoted\" %41"),
            (&"n".repeat(64), &"v".repeat(4096)),
        ] {
            assert!(check(name, value).is_ok(), "{name}");
        }
        for (name, value) in [
            ("", "v"),
            ("A", "v"),
            ("é", "v"),
            (&"n".repeat(65), "v"),
            ("a", "line\r\nbreak"),
            ("a", "\0"),
            ("a", &"v".repeat(4097)),
            ("ce_id", "v"),
            ("data", "v"),
            ("nats-msg-id", "v"),
            ("mas-record", "v"),
        ] {
            assert!(check(name, value).is_err(), "{name:?}");
        }
    }

    #[test]
    fn too_many_too_much_or_twice_is_refused() {
        let mut many = Headers::default();
        for i in 0..65 {
            many.append(format!("h{i}"), "v");
        }
        assert!(many.check().is_err());
        let mut much = Headers::default();
        for i in 0..5 {
            much.append(format!("h{i}"), "v".repeat(4000).as_str());
        }
        assert!(much.check().is_err());
        let mut twice = Headers::default();
        twice.append("a", "1");
        twice.append("a", "2");
        assert!(twice.check().is_err());
        assert_eq!(twice.get("a").unwrap().as_str(), Some("1"));
    }
}
