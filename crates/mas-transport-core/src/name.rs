//! Names: topics, groups and namespaces, valid on every broker.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Longest topic, in bytes. Kafka allows 249, less the namespace, the group and our own prefix.
pub const MAX_TOPIC: usize = 160;
/// Longest group, in bytes.
pub const MAX_GROUP: usize = 64;
/// Longest namespace, in bytes.
pub const MAX_NAMESPACE: usize = 18;

const DEAD_LETTERS: &str = "_dlq";
const QUARANTINE: &str = "_bad";

fn is_token(s: &str) -> bool {
    !s.is_empty()
        && s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A topic: tokens `[A-Za-z0-9_-]+` joined by dots, at most [`MAX_TOPIC`] bytes, such as
/// `vision.review.complete`. Topics are told apart by every byte: `orders` and `orders.eu` share
/// nothing. A first token that begins with an underscore is kept for the library itself.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks and takes a topic name.
    ///
    /// # Errors
    /// `InvalidArgument` when the name breaks a rule above; the message says which.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        let wrong = |why: &'static str| {
            Err(Error::invalid("topic", why).with("topic", name.escape_debug()))
        };
        if name.is_empty() {
            return wrong("a topic is empty");
        }
        if name.len() > MAX_TOPIC {
            return wrong("a topic has at most 160 bytes");
        }
        if !name.split('.').all(is_token) {
            return wrong("a topic is tokens of letters, digits, _ and -, joined by single dots");
        }
        if name.starts_with('_') {
            return wrong("topics that begin with an underscore are kept for the library");
        }
        Ok(Self(name.into()))
    }

    /// Takes a topic name as a broker or a subscription carries it: internal ones too.
    ///
    /// # Errors
    /// `InvalidArgument` when it is neither a topic nor an internal name that this version knows.
    pub fn stored(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        let inner = [DEAD_LETTERS, QUARANTINE].iter().find_map(|prefix| {
            let (group, topic) = name
                .strip_prefix(prefix)?
                .strip_prefix('.')?
                .split_once('.')?;
            Some((Group::new(group), topic))
        });
        match inner {
            // One level: what cannot be handled in a dead-letter topic has nowhere further to go.
            Some((Ok(_), topic)) => Self::new(topic).map(|_| Self(name.into())),
            _ => Self::new(name),
        }
    }

    /// Where messages of `topic` go that `group` has given up on: rejected ones, and those whose
    /// attempts are used up. Subscribe to it like to any topic; each delivery carries its
    /// [`Record`](crate::Record).
    pub fn dead_letters(topic: &Topic, group: &Group) -> Topic {
        Self::internal(DEAD_LETTERS, topic, group)
    }

    /// Where entries of `topic` go that `group` could not decode, as they were found, with the
    /// reason in the [`Record`](crate::Record).
    pub fn quarantine(topic: &Topic, group: &Group) -> Topic {
        Self::internal(QUARANTINE, topic, group)
    }

    // A group holds no dot, so no two pairs of topic and group can share a name.
    fn internal(prefix: &str, topic: &Topic, group: &Group) -> Topic {
        Self(format!("{prefix}.{group}.{topic}").into())
    }

    /// Stands for all topics of a pattern in records.
    pub(crate) fn wildcard(pattern: &str) -> Topic {
        Self(pattern.into())
    }

    /// Whether the library made this topic for itself.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with('_')
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A consumer group: `[A-Za-z0-9_-]+`, at most [`MAX_GROUP`] bytes. Each group sees every
/// message of its topic; the members of a group share them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(Arc<str>);

impl Group {
    /// Checks and takes a group name.
    ///
    /// # Errors
    /// `InvalidArgument` when the name is empty, too long or holds another character.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        if is_token(name) && name.len() <= MAX_GROUP {
            return Ok(Self(name.into()));
        }
        Err(
            Error::invalid("group", "a group is 1 to 64 letters, digits, _ and -")
                .with("group", name.escape_debug()),
        )
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A prefix in front of everything that a transport keeps in its broker, so that teams and test
/// runs share one: `[A-Za-z0-9_-]{1,18}`, or empty for none (the default).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Namespace(Option<Arc<str>>);

impl Namespace {
    /// Checks and takes a namespace; empty means none.
    ///
    /// # Errors
    /// `InvalidArgument` when the name is too long or holds another character.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        if name.is_empty() {
            return Ok(Self(None));
        }
        if is_token(name) && name.len() <= MAX_NAMESPACE {
            return Ok(Self(Some(name.into())));
        }
        Err(Error::invalid(
            "namespace",
            "a namespace is at most 18 letters, digits, _ and -",
        )
        .with("namespace", name.escape_debug()))
    }

    /// The name; empty for none.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
}

macro_rules! text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
    )*};
}
text!(Topic Group Namespace);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_keep_their_rules() {
        for good in ["a", "orders.created", "A-b_c.9", &"x".repeat(160)] {
            assert_eq!(Topic::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a*",
            "a.>",
            "é",
            "a\r\nb",
            "{a}",
            "_dlq.g.t",
            &"x".repeat(161),
        ] {
            assert!(Topic::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn internal_topics_never_meet_and_fit_kafka() {
        let t = |s| Topic::new(s).unwrap();
        let g = |s| Group::new(s).unwrap();
        assert_ne!(
            Topic::dead_letters(&t("b.c"), &g("a")),
            Topic::dead_letters(&t("c"), &g("a-b"))
        );
        assert_ne!(
            Topic::dead_letters(&t("c"), &g("a")),
            Topic::quarantine(&t("c"), &g("a"))
        );
        let longest = Topic::quarantine(&t(&"x".repeat(MAX_TOPIC)), &g(&"g".repeat(MAX_GROUP)));
        assert!(longest.is_internal());
        assert_eq!(longest.as_str().len(), 230);
    }

    #[test]
    fn groups_and_namespaces_keep_theirs() {
        assert!(Group::new("billing-2").is_ok());
        assert!(Group::new("a.b").is_err());
        assert!(Group::new("x".repeat(65)).is_err());
        assert!(Namespace::new("").is_ok());
        assert!(Namespace::new("team_a").is_ok());
        assert!(Namespace::new("a.b").is_err());
    }
}
