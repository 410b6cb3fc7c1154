//! The message: an envelope and a payload.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock;
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{HeaderValue, Headers};
use crate::name::Topic;
use crate::record::Record;

/// Longest text of one attribute (id, source, key, …), in bytes.
pub const MAX_ATTRIBUTE: usize = 1024;
/// The largest message by default: payload, headers and attributes together.
/// `MESSAGE_MAX_SIZE` sets another limit. A backend's own limit may be lower:
/// [`Capabilities::max_message_bytes`](crate::Capabilities::max_message_bytes).
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Room that is kept free under the limit, so that a dead letter with its record still fits.
pub const RECORD_RESERVE: usize = 32 * 1024;

/// How urgent a message is. Among what is available when a consumer fetches, higher goes first,
/// where the backend declares priorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// 1: when there is nothing else to do.
    Background = 1,
    /// 2.
    Low = 2,
    /// 3: the default.
    #[default]
    Normal = 3,
    /// 4.
    High = 4,
    /// 5; `urgent` is read as this.
    Critical = 5,
}

impl Priority {
    /// The number from 1 (background) to 5 (critical).
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Reads a number or a name, as on the wire and in configuration.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "1" | "background" => Self::Background,
            "2" | "low" => Self::Low,
            "3" | "normal" => Self::Normal,
            "4" | "high" => Self::High,
            "5" | "critical" | "urgent" => Self::Critical,
            _ => return None,
        })
    }
}

/// A message: the envelope of CloudEvents, our own attributes, headers and a payload of bytes.
///
/// Cheap to clone (one reference count). The setters consume and return the message:
///
/// ```
/// # use mas_transport_core::Message;
/// let message = Message::new("orders.created", "any bytes")?
///     .kind("order.created")
///     .key("customer-7")
///     .header("region", "eu");
/// assert_eq!(message.payload().as_ref(), b"any bytes");
/// # Ok::<(), mas_transport_core::Error>(())
/// ```
///
/// Whether the attributes keep their rules is checked when the message is published.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(Arc<Inner>);

#[derive(Clone, Debug, PartialEq)]
struct Inner {
    topic: Topic,
    id: Id,
    source: Cow<'static, str>,
    kind: Cow<'static, str>,
    payload: Bytes,
    content_type: Option<Cow<'static, str>>,
    key: Option<String>,
    priority: Priority,
    headers: Headers,
    rare: Option<Box<Rare>>,
}

/// Most ids are UUIDs of our own, which need no memory of their own and keep the rules.
#[derive(Clone)]
enum Id {
    Uuid([u8; uuid::fmt::Hyphenated::LENGTH]),
    Text(String),
}

impl Id {
    fn as_str(&self) -> &str {
        match self {
            // The letters and digits of a UUID always are.
            Self::Uuid(text) => std::str::from_utf8(text).unwrap_or_default(),
            Self::Text(text) => text,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Uuid(text) => text.len(),
            Self::Text(text) => text.len(),
        }
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Attributes that most messages do without, so that a message without them stays small.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rare {
    text: Vec<(Attribute, String)>,
    tags: Vec<String>,
    time: Option<SystemTime>,
    expires_at: Option<SystemTime>,
    delay: Option<Duration>,
    max_attempts: Option<u32>,
    processing_timeout: Option<Duration>,
    record: Option<Box<Record>>,
}

macro_rules! attributes {
    ($($(#[$doc:meta])* $variant:ident $method:ident $wire:literal,)*) => {
        /// The text attributes that a message may carry beside the required ones.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Attribute { $($(#[$doc])* $variant,)* }

        impl Attribute {
            /// Every attribute.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its CloudEvents name, without a protocol's prefix.
            pub fn wire_name(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* }
            }

            /// The attribute of a CloudEvents name.
            pub fn from_wire_name(name: &[u8]) -> Option<Self> {
                $(if name == $wire.as_bytes() { return Some(Self::$variant); })*
                None
            }
        }

        /// Setters of the optional text attributes; [`Message::attribute`] reads them.
        impl Message {
            $($(#[$doc])* #[must_use]
            pub fn $method(self, value: impl Into<String>) -> Self {
                self.set_attribute(Attribute::$variant, value)
            })*
        }
    };
}

attributes! {
    /// What in the source the message is about (CloudEvents `subject`).
    Subject subject "subject",
    /// The agent that the message is for.
    Recipient recipient "recipient",
    /// Ties the messages of one conversation together.
    CorrelationId correlation_id "correlationid",
    /// The id of the message that caused this one.
    CausationId causation_id "causationid",
    /// The topic where an answer is awaited. Untrusted when it comes from the wire.
    ReplyTo reply_to "replyto",
    /// The key of dedup: publishes with the same one, on one topic, are one.
    IdempotencyKey idempotency_key "idempotencykey",
    /// Where the schema of the payload is found (CloudEvents `dataschema`).
    DataSchema data_schema "dataschema",
    /// The version of that schema.
    SchemaVersion schema_version "schemaversion",
    /// W3C trace context: the parent.
    TraceParent trace_parent "traceparent",
    /// W3C trace context: the vendors' state.
    TraceState trace_state "tracestate",
    /// What the recipient is asked to do.
    Action action "action",
    /// What the sender expects to come of it.
    ExpectedOutcome expected_outcome "expectedoutcome",
    /// The version of the sending program.
    SenderVersion sender_version "senderversion",
    /// Which instance of the sending program it was.
    SenderInstance sender_instance "senderinstance",
}

impl Message {
    /// What [`Message::source`] says when nobody set one.
    pub const DEFAULT_SOURCE: &str = "mas-transport";
    /// What [`Message::get_kind`] says when nobody set one.
    pub const DEFAULT_KIND: &str = "message";

    /// A message of `payload` for `topic`, with a new id (a UUID of version 7).
    ///
    /// # Errors
    /// `InvalidArgument` when the topic breaks a rule of [`Topic`].
    pub fn new<T>(topic: T, payload: impl Into<Bytes>) -> Result<Self>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
        uuid::Uuid::now_v7().hyphenated().encode_lower(&mut id);
        Ok(Self::with(
            topic.try_into().map_err(Into::into)?,
            Id::Uuid(id),
            payload.into(),
        ))
    }

    /// A message with an id of the caller's own; no uniqueness is checked.
    pub fn assemble(topic: Topic, id: String, payload: Bytes) -> Self {
        Self::with(topic, Id::Text(id), payload)
    }

    fn with(topic: Topic, id: Id, payload: Bytes) -> Self {
        Self(Arc::new(Inner {
            topic,
            id,
            source: Cow::Borrowed(Self::DEFAULT_SOURCE),
            kind: Cow::Borrowed(Self::DEFAULT_KIND),
            payload,
            content_type: None,
            key: None,
            priority: Priority::Normal,
            headers: Headers::default(),
            rare: None,
        }))
    }

    /// A message whose payload is `value` as JSON, with the content type `application/json`.
    ///
    /// # Errors
    /// `InvalidArgument` when the topic breaks a rule or `value` cannot be written as JSON.
    pub fn json<T>(topic: T, value: &(impl Serialize + ?Sized)) -> Result<Self>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let payload = serde_json::to_vec(value).map_err(|e| {
            Error::invalid("json", "the value cannot be written as JSON").because(e)
        })?;
        Ok(Self::new(topic, payload)?.content_type("application/json"))
    }

    /// Reads the payload as JSON, whatever the content type says.
    ///
    /// # Errors
    /// `Decode`, with what is wrong and where in the payload.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.0.payload).map_err(|e| {
            Error::new(
                ErrorKind::Decode,
                "json",
                "the payload is not the JSON expected",
            )
            .with("topic", self.topic())
            .with("id", self.id())
            .because(e)
        })
    }

    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }

    fn rare(&mut self) -> &mut Rare {
        self.inner().rare.get_or_insert_default()
    }

    /// Sets the id. Source and id together name a message.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.inner().id = Id::Text(id.into());
        self
    }

    /// Sets the source: who sends, a URI reference such as `/agents/planner`.
    #[must_use]
    pub fn from_source(mut self, source: impl Into<Cow<'static, str>>) -> Self {
        self.inner().source = source.into();
        self
    }

    /// Sets the type of the message (CloudEvents `type`), such as `order.created`.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<Cow<'static, str>>) -> Self {
        self.inner().kind = kind.into();
        self
    }

    /// Sets the content type of the payload.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<Cow<'static, str>>) -> Self {
        self.inner().content_type = Some(content_type.into());
        self
    }

    /// Sets the ordering key: messages of one key, from one bus, keep their order.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.inner().key = Some(key.into());
        self
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.inner().priority = priority;
        self
    }

    /// Adds a header; [`Headers`] says what is allowed.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.inner().headers.append(name, value);
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.rare().tags.push(tag.into());
        self
    }

    /// Says when what the message tells of happened (CloudEvents `time`). Left out unless set:
    /// the broker keeps the time of publishing.
    #[must_use]
    pub fn time(mut self, time: SystemTime) -> Self {
        self.rare().time = Some(time);
        self
    }

    /// Lets the message expire `ttl` from now.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        // A ttl beyond what a clock or the wire can tell is as good as one of 272 years.
        self.expires(clock::now_utc() + ttl.min(Duration::from_secs(1 << 33)))
    }

    /// Lets the message expire at `time`.
    #[must_use]
    pub fn expires(mut self, time: SystemTime) -> Self {
        self.rare().expires_at = Some(time);
        self
    }

    /// Asks for delivery no earlier than `delay` after the publish.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.rare().delay = Some(delay);
        self
    }

    /// Says how often the message may be attempted, for information of the consumer.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.rare().max_attempts = Some(attempts);
        self
    }

    /// Says how long the recipient may work on it, for information of the consumer.
    #[must_use]
    pub fn processing_timeout(mut self, timeout: Duration) -> Self {
        self.rare().processing_timeout = Some(timeout);
        self
    }

    /// Sets one of the optional text attributes.
    #[must_use]
    pub fn set_attribute(mut self, attribute: Attribute, value: impl Into<String>) -> Self {
        let text = &mut self.rare().text;
        text.retain(|(a, _)| *a != attribute);
        text.push((attribute, value.into()));
        // Equal messages compare equal whatever the order in which they were built or decoded.
        text.sort_by_key(|(a, _)| *a as u8);
        self
    }

    /// Attaches the record of a dead letter or a quarantined entry. For backends.
    #[must_use]
    pub fn with_record(mut self, record: Record) -> Self {
        self.rare().record = Some(Box::new(record));
        self
    }

    /// Moves the message to another topic, everything else as it is.
    #[must_use]
    pub fn on_topic(mut self, topic: Topic) -> Self {
        self.inner().topic = topic;
        self
    }

    /// Replaces all headers. For codecs and layers.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.inner().headers = headers;
        self
    }

    /// Replaces the payload. For layers.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        self.inner().payload = payload;
        self
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.0.topic
    }

    /// The id.
    pub fn id(&self) -> &str {
        self.0.id.as_str()
    }

    /// Who sent it.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Its type.
    pub fn get_kind(&self) -> &str {
        &self.0.kind
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The content type of the payload.
    pub fn get_content_type(&self) -> Option<&str> {
        self.0.content_type.as_deref()
    }

    /// The ordering key.
    pub fn get_key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The priority.
    pub fn get_priority(&self) -> Priority {
        self.0.priority
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// An optional text attribute.
    pub fn attribute(&self, attribute: Attribute) -> Option<&str> {
        let rare = self.0.rare.as_deref()?;
        let found = rare.text.iter().find(|(a, _)| *a == attribute);
        found.map(|(_, value)| value.as_str())
    }

    /// The optional text attributes that are set, in a fixed order.
    pub fn attributes(&self) -> impl Iterator<Item = (Attribute, &str)> {
        let text = self.0.rare.as_deref().map(|r| r.text.as_slice());
        text.unwrap_or_default()
            .iter()
            .map(|(a, value)| (*a, value.as_str()))
    }

    /// The tags.
    pub fn tags(&self) -> &[String] {
        self.0.rare.as_deref().map_or(&[], |r| r.tags.as_slice())
    }

    /// When what the message tells of happened.
    pub fn get_time(&self) -> Option<SystemTime> {
        self.0.rare.as_deref()?.time
    }

    /// When it expires.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.0.rare.as_deref()?.expires_at
    }

    /// How long delivery is to be put off.
    pub fn get_delay(&self) -> Option<Duration> {
        self.0.rare.as_deref()?.delay
    }

    /// How often the sender says it may be attempted.
    pub fn get_max_attempts(&self) -> Option<u32> {
        self.0.rare.as_deref()?.max_attempts
    }

    /// How long the sender says the recipient may work on it.
    pub fn get_processing_timeout(&self) -> Option<Duration> {
        self.0.rare.as_deref()?.processing_timeout
    }

    /// Why and how it came here, on deliveries from a dead-letter or quarantine topic.
    pub fn record(&self) -> Option<&Record> {
        self.0.rare.as_deref()?.record.as_deref()
    }

    /// What counts against the size limit: payload, headers and attributes, in bytes.
    pub fn size(&self) -> usize {
        let inner = &*self.0;
        let text: usize = self.attributes().map(|(_, v)| v.len()).sum();
        let tags: usize = self.tags().iter().map(|t| t.len() + 1).sum();
        inner.payload.len()
            + inner.id.len()
            + inner.source.len()
            + inner.kind.len()
            + inner.content_type.as_deref().map_or(0, str::len)
            + inner.key.as_deref().map_or(0, str::len)
            + inner.headers.size()
            + text
            + tags
    }

    /// Checks the rules of writing: attributes and headers, but neither size nor capabilities,
    /// which are the backend's.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the attribute or header and its rule.
    pub fn check(&self) -> Result<()> {
        let inner = &*self.0;
        // What is the library's own keeps the rules.
        if let Id::Text(id) = &inner.id {
            required("id", id)?;
        }
        if inner.source != Self::DEFAULT_SOURCE {
            required("source", &inner.source)?;
        }
        if inner.kind != Self::DEFAULT_KIND {
            required("type", &inner.kind)?;
        }
        if let Some(value) = &inner.content_type {
            required("content-type", value)?;
        }
        if let Some(value) = &inner.key {
            required("key", value)?;
        }
        inner.headers.check()?;
        if inner.rare.is_none() {
            return Ok(());
        }
        for time in [self.get_time(), self.expires_at()].into_iter().flatten() {
            if !codec::text::has_rfc3339(time) {
                return Err(Error::invalid(
                    "publish",
                    "a time lies in the years 0 to 9999",
                ));
            }
        }
        for (attribute, value) in self.attributes() {
            required(attribute.wire_name(), value)?;
        }
        for tag in self.tags() {
            required("tag", tag)?;
            if tag.contains(',') {
                return Err(Error::invalid("publish", "a tag holds no comma").with("tag", tag));
            }
        }
        Ok(())
    }
}

/// Whether a text holds control characters. Each message asks this of each attribute, so the common
/// text is looked at whole, which compiles to a few vector instructions.
fn has_control(text: &str) -> bool {
    let ascii_control = |found, b: u8| found | (b < 0x20) | (b == 0x7f);
    text.bytes().fold(false, ascii_control)
        || (!text.is_ascii() && text.chars().any(char::is_control))
}

fn required(name: &'static str, value: &str) -> Result<()> {
    let why = if value.is_empty() {
        "an attribute that is set is not empty"
    } else if value.len() > MAX_ATTRIBUTE {
        "an attribute has at most 1,024 bytes"
    } else if has_control(value) {
        "an attribute holds no control characters"
    } else {
        return Ok(());
    };
    Err(Error::invalid("publish", why).with("attribute", name))
}

impl TryFrom<&str> for Topic {
    type Error = Error;
    fn try_from(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<String> for Topic {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<&Topic> for Topic {
    fn from(topic: &Topic) -> Self {
        topic.clone()
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
