//! One message on one line of JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mas_transport::codec::rfc3339;
use mas_transport::{HeaderValue, Headers, Message, Position};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// One message, with all that is known of it.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) message: &'a Message,
    pub(super) attempt: u32,
    pub(super) position: Position,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.message;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("topic", message.topic().as_str())?;
        map.serialize_entry("id", message.id())?;
        map.serialize_entry("source", message.source())?;
        map.serialize_entry("type", message.get_kind())?;
        map.serialize_entry("position", &format_args!("{}", self.position))?;
        map.serialize_entry("attempt", &self.attempt)?;
        map.serialize_entry("priority", &message.get_priority().number())?;
        if let Some(key) = message.get_key() {
            map.serialize_entry("key", key)?;
        }
        if let Some(content_type) = message.get_content_type() {
            map.serialize_entry("content_type", content_type)?;
        }
        if let Some(time) = message.get_time() {
            map.serialize_entry("time", &rfc3339(time))?;
        }
        if let Some(time) = message.expires_at() {
            map.serialize_entry("expires", &rfc3339(time))?;
        }
        if !message.tags().is_empty() {
            map.serialize_entry("tags", message.tags())?;
        }
        if !message.headers().is_empty() {
            map.serialize_entry("headers", &ByName(message.headers()))?;
        }
        if let Some(attempts) = message.get_max_attempts() {
            map.serialize_entry("max_attempts", &attempts)?;
        }
        if let Some(timeout) = message.get_processing_timeout() {
            map.serialize_entry("processing_timeout_ms", &timeout.as_millis())?;
        }
        for (attribute, value) in message.attributes() {
            map.serialize_entry(attribute.wire_name(), value)?;
        }
        if let Some(record) = message.record() {
            map.serialize_entry("record", record)?;
        }
        let payload = message.payload();
        match std::str::from_utf8(payload) {
            Ok(text) => map.serialize_entry("payload", text)?,
            Err(_) => map.serialize_entry("payload_base64", &STANDARD.encode(payload))?,
        }
        map.end()
    }
}

/// Headers as an object: the values of a name that stands there more than once are an array.
struct ByName<'a>(&'a Headers);

impl Serialize for ByName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            if self.0.iter().take(i).any(|(earlier, _)| earlier == name) {
                continue;
            }
            let same = |(other, value)| (other == name).then_some(Value(value));
            let all: Vec<_> = self.0.iter().filter_map(same).collect();
            match all.len() {
                1 => map.serialize_entry(name, &Value(value))?,
                _ => map.serialize_entry(name, &all)?,
            }
        }
        map.end()
    }
}

struct Value<'a>(&'a HeaderValue);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0.as_str(), self.0.as_bytes()) {
            (Some(text), _) => serializer.serialize_str(text),
            (None, None) => serializer.serialize_none(),
            (None, Some(bytes)) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &STANDARD.encode(bytes))?;
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use mas_transport::{Priority, Topic};
    use serde_json::json;

    use super::*;

    fn line(message: &Message) -> serde_json::Value {
        let position = Position { major: 7, minor: 1 };
        let attempt = 2;
        serde_json::to_value(Line {
            message,
            attempt,
            position,
        })
        .unwrap()
    }

    #[test]
    fn a_plain_message_has_the_required_attributes() {
        let topic = Topic::new("a.b").unwrap();
        let message = Message::assemble(topic, "i".into(), "hé\n".into());
        assert_eq!(
            line(&message),
            json!({
                "topic": "a.b", "id": "i", "source": "mas-transport", "type": "message",
                "position": "7-1", "attempt": 2, "priority": 3, "payload": "hé\n",
            })
        );
    }

    #[test]
    fn a_message_with_everything_shows_everything() {
        let topic = Topic::new("a").unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let message = Message::assemble(topic, "i".into(), vec![0xff, 0].into())
            .from_source("/s")
            .kind("k")
            .key("key")
            .content_type("x/y")
            .priority(Priority::Critical)
            .time(time)
            .expires(time)
            .tag("t")
            .header("one", "1")
            .header("two", "2")
            .header("two", HeaderValue::from_bytes(vec![0xfe]))
            .header("null", HeaderValue::null())
            .max_attempts(4)
            .processing_timeout(Duration::from_secs(2))
            .subject("sub")
            .correlation_id("c");
        assert_eq!(
            line(&message),
            json!({
                "topic": "a", "id": "i", "source": "/s", "type": "k", "position": "7-1",
                "attempt": 2, "priority": 5, "key": "key", "content_type": "x/y",
                "time": "1970-01-01T00:00:01.5Z", "expires": "1970-01-01T00:00:01.5Z",
                "tags": ["t"],
                "headers": {"one": "1", "two": ["2", {"base64": "/g=="}], "null": null},
                "max_attempts": 4, "processing_timeout_ms": 2000, "subject": "sub",
                "correlationid": "c", "payload_base64": "/wA=",
            })
        );
    }
}
