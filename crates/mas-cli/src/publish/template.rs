//! What all messages of one command have in common.

use std::time::Duration;

use bytes::Bytes;
use mas_transport::{Attribute, Message, Priority, Topic};
use serde::de::IgnoredAny;
use uuid::Uuid;

use crate::failure::Failure;
use crate::text::duration;

/// What messages carry beside their payload.
#[derive(Debug, clap::Args)]
pub(super) struct Attributes {
    /// A header; may be repeated.
    #[arg(long, short = 'H', value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// The ordering key: messages of one key keep their order.
    #[arg(long, short = 'k')]
    key: Option<String>,
    /// What kind of message it is, such as order.created.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The content type. With a JSON type, such as application/json, each payload has to be JSON.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The id of the message; made up when left out.
    #[arg(long)]
    id: Option<String>,
    /// Who sends, such as /agents/planner.
    #[arg(long, default_value = "/mas/pub")]
    source: String,
    /// 1 to 5, or background, low, normal, high, critical.
    #[arg(long, value_parser = priority)]
    priority: Option<Priority>,
    /// How long the message may wait for its consumer, such as 24h.
    #[arg(long, value_parser = duration)]
    ttl: Option<Duration>,
    /// How long delivery is put off, such as 10s.
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// A tag; may be repeated.
    #[arg(long)]
    tag: Vec<String>,
    /// Another attribute by its name in CloudEvents, such as subject, correlationid, replyto,
    /// idempotencykey; may be repeated.
    #[arg(long, short = 'a', value_name = "NAME=VALUE", value_parser = attribute)]
    attribute: Vec<(Attribute, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn priority(text: &str) -> Result<Priority, String> {
    Priority::parse(&text.to_lowercase())
        .ok_or_else(|| "it is 1 to 5, or background, low, normal, high, critical".to_owned())
}

fn attribute(text: &str) -> Result<(Attribute, String), String> {
    let (name, value) = pair(text)?;
    match Attribute::from_wire_name(name.as_bytes()) {
        Some(attribute) => Ok((attribute, value)),
        None => {
            let names: Vec<_> = Attribute::ALL.iter().map(|a| a.wire_name()).collect();
            Err(format!("the attributes are {}", names.join(", ")))
        }
    }
}

/// A message without id and payload.
#[derive(Debug)]
pub(super) struct Template {
    message: Message,
    id: Option<String>,
    ttl: Option<Duration>,
    json: bool,
}

impl Template {
    /// A template for a topic.
    pub(super) fn new(topic: &str, with: Attributes) -> Result<Self, Failure> {
        let topic = Topic::new(topic)?;
        let mut message = Message::assemble(topic, String::new(), Bytes::new());
        message = message.from_source(with.source);
        for (name, value) in with.header {
            message = message.header(name, value);
        }
        if let Some(key) = with.key {
            message = message.key(key);
        }
        if let Some(kind) = with.kind {
            message = message.kind(kind);
        }
        let json = with.content_type.as_deref().is_some_and(is_json);
        if let Some(content_type) = with.content_type {
            message = message.content_type(content_type);
        }
        if let Some(priority) = with.priority {
            message = message.priority(priority);
        }
        if let Some(delay) = with.delay {
            message = message.delay(delay);
        }
        for tag in with.tag {
            message = message.tag(tag);
        }
        for (attribute, value) in with.attribute {
            message = message.set_attribute(attribute, value);
        }
        Ok(Self {
            message,
            id: with.id,
            ttl: with.ttl,
            json,
        })
    }

    /// Whether the id is given, so that there can be one message only.
    pub(super) fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// The topic.
    pub(super) fn topic(&self) -> &Topic {
        self.message.topic()
    }

    /// The message with this payload.
    pub(super) fn message(&self, payload: Bytes) -> Message {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => Uuid::now_v7().to_string(),
        };
        let message = self.message.clone().with_id(id).with_payload(payload);
        match self.ttl {
            Some(ttl) => message.ttl(ttl),
            None => message,
        }
    }

    /// Whether a payload is what the content type says.
    pub(super) fn check(&self, payload: &[u8]) -> Result<(), String> {
        if !self.json {
            return Ok(());
        }
        serde_json::from_slice::<IgnoredAny>(payload)
            .map(drop)
            .map_err(|error| {
                format!("the payload is not the JSON that --content-type says: {error}")
            })
    }
}

/// Whether payloads of a content type are JSON documents.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("a").is_err() && pair("=b").is_err());
        assert_eq!(priority("URGENT"), Ok(Priority::Critical));
        assert!(priority("6").is_err());
        let subject = (Attribute::Subject, "x".to_owned());
        assert_eq!(attribute("subject=x"), Ok(subject));
        assert!(
            attribute("nonsense=x")
                .unwrap_err()
                .contains("correlationid")
        );
    }

    #[test]
    fn json_is_told_by_the_content_type() {
        for json in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "x/y+json",
        ] {
            assert!(is_json(json), "{json}");
        }
        for other in ["text/plain", "application/jsonl", ""] {
            assert!(!is_json(other), "{other}");
        }
    }
}
