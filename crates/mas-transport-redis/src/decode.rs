//! The seam between the client's replies and this backend: stream entries out of
//! [`redis::Value`], whose buffers are taken over, not copied. A decoder that reads straight from
//! the connection can take its place here.

use bytes::Bytes;
use mas_transport_core::Position;
use redis::Value;

/// A stream entry as it was read. Fields keep their order, and a name may stand there twice.
#[derive(Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: Position,
    /// `None` when the entry has been deleted.
    pub(crate) fields: Option<Vec<(Bytes, Bytes)>>,
}

/// An entry that was read, and how it came.
#[derive(Debug, PartialEq)]
pub(crate) struct Taken {
    /// The count at the server.
    pub(crate) count: u32,
    /// It was taken from a holder that died or let its lease lapse.
    pub(crate) dead: bool,
    pub(crate) entry: Entry,
}

/// The entries of the one stream in an answer to `XREADGROUP`; empty when nothing came in time.
/// `None` when the answer has another form.
pub(crate) fn read_reply(reply: Value) -> Option<Vec<Entry>> {
    let entries = match reply {
        Value::Nil => return Some(Vec::new()),
        Value::Map(streams) => streams.into_iter().next()?.1,
        Value::Array(streams) => match streams.into_iter().next()? {
            Value::Array(pair) => pair.into_iter().nth(1)?,
            _ => return None,
        },
        _ => return None,
    };
    self::entries(entries)
}

/// A list of entries, as `XRANGE` answers it.
pub(crate) fn entries(value: Value) -> Option<Vec<Entry>> {
    let Value::Array(items) = value else {
        return None;
    };
    items.into_iter().map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(pair) = value else {
        return None;
    };
    let mut pair = pair.into_iter();
    let id = position(&pair.next()?)?;
    let fields = match pair.next()? {
        Value::Nil => None,
        fields => Some(self::fields(fields)?),
    };
    Some(Entry { id, fields })
}

/// What a sweep took: `{id, count, whether its holder died, fields}` each.
pub(crate) fn taken(value: Value) -> Option<Vec<Taken>> {
    let Value::Array(items) = value else {
        return None;
    };
    let one = |item| {
        let Value::Array(parts) = item else {
            return None;
        };
        let mut parts = parts.into_iter();
        let id = position(&parts.next()?)?;
        let count = u32::try_from(number(&parts.next()?)?).unwrap_or(u32::MAX - 1);
        let dead = number(&parts.next()?)? == 1;
        let fields = Some(fields(parts.next()?)?);
        Some(Taken {
            count,
            dead,
            entry: Entry { id, fields },
        })
    };
    items.into_iter().map(one).collect()
}

fn fields(value: Value) -> Option<Vec<(Bytes, Bytes)>> {
    let Value::Array(parts) = value else {
        return None;
    };
    let mut fields = Vec::with_capacity(parts.len() / 2);
    let mut parts = parts.into_iter();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        fields.push((bytes(name)?, bytes(value)?));
    }
    Some(fields)
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into_bytes().into()),
        // How the client shows the simple string "OK".
        Value::Okay => Some(Bytes::from_static(b"OK")),
        _ => None,
    }
}

/// An entry's id.
pub(crate) fn position(value: &Value) -> Option<Position> {
    match value {
        Value::BulkString(bytes) => parse_position(bytes),
        Value::SimpleString(text) => parse_position(text.as_bytes()),
        _ => None,
    }
}

/// By hand: every receipt and every entry has one, and by way of `str` it costs five times as much.
fn parse_position(text: &[u8]) -> Option<Position> {
    let dash = text.iter().position(|byte| *byte == b'-')?;
    Some(Position {
        major: digits(text.get(..dash)?)?,
        minor: digits(text.get(dash + 1..)?)?,
    })
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// An integer, in any of the forms that servers use.
pub(crate) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        Value::SimpleString(text) => text.parse().ok(),
        _ => None,
    }
}

/// A text.
pub(crate) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

/// The members of a list or set.
pub(crate) fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Value {
        redis::parse_redis_value(text.as_bytes()).unwrap()
    }

    const ENTRY: &str = "*2\r\n$3\r\n5-1\r\n*4\r\n$1\r\na\r\n$0\r\n\r\n$1\r\na\r\n$1\r\nb\r\n";

    #[test]
    fn a_read_is_decoded_in_both_protocols() {
        let expected = vec![Entry {
            id: Position { major: 5, minor: 1 },
            fields: Some(vec![("a".into(), "".into()), ("a".into(), "b".into())]),
        }];
        let two = format!("*1\r\n*2\r\n$1\r\ns\r\n*1\r\n{ENTRY}");
        let three = format!("%1\r\n$1\r\ns\r\n*1\r\n{ENTRY}");
        assert_eq!(read_reply(parse(&two)).unwrap(), expected);
        assert_eq!(read_reply(parse(&three)).unwrap(), expected);
        assert_eq!(read_reply(parse("*-1\r\n")).unwrap(), vec![]);
        assert_eq!(read_reply(parse("_\r\n")).unwrap(), vec![]);
    }

    #[test]
    fn payloads_are_taken_over() {
        let payload = vec![7; 1000];
        let at = payload.as_ptr();
        let taken = bytes(Value::BulkString(payload)).unwrap();
        assert_eq!(taken.as_ptr(), at);
    }

    #[test]
    fn other_forms_are_refused_without_a_panic() {
        for text in [
            ":1\r\n",
            "*1\r\n:1\r\n",
            "*1\r\n*1\r\n$1\r\ns\r\n",
            "%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n5_1\r\n*0\r\n",
            "%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n5-1\r\n*2\r\n:1\r\n:2\r\n",
        ] {
            assert_eq!(read_reply(parse(text)), None, "{text:?}");
        }
        let deleted = parse("%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n5-1\r\n_\r\n");
        assert_eq!(read_reply(deleted).unwrap()[0].fields, None);
        let largest = Value::BulkString(b"18446744073709551615-0".to_vec());
        assert_eq!(position(&largest).unwrap().major, u64::MAX);
        for text in [
            "", "-", "1-", "-1", "+1-1", "1-1-1", " 1-1", "1-x", "\u{e9}-1",
        ] {
            assert_eq!(parse_position(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_position(b"18446744073709551616-0"), None);
    }
}
