//! How streams, subjects and notes are named.
//!
//! A topic's tokens hold letters, digits, `_` and `-`, so `@` and `~` keep everything else apart:
//! `mas.@prod.orders.created` is the topic `orders.created` in the namespace `prod`, and
//! `mas.orders.created` the one without a namespace. Behind a lone `@` stands what a partition or a
//! priority adds to a topic, and what the library keeps for itself.

use mas_transport_core::{Error, Group, Namespace, Result, Topic};

use crate::BACKEND;

/// The longest name of a stream that servers take.
const LONGEST: usize = 255;

/// Names within one prefix and namespace.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// `mas.@prod`
    subjects: String,
    /// `mas~@prod`
    streams: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str, namespace: &Namespace) -> Self {
        let (mut subjects, mut streams) = (prefix.to_owned(), prefix.to_owned());
        if !namespace.as_str().is_empty() {
            subjects.push_str(".@");
            subjects.push_str(namespace.as_str());
            streams.push_str("~@");
            streams.push_str(namespace.as_str());
        }
        Self { subjects, streams }
    }

    /// Where messages of a topic are published.
    pub(crate) fn subject(&self, topic: &Topic) -> String {
        format!("{}.{topic}", self.subjects)
    }

    /// The stream of a topic.
    pub(crate) fn stream(&self, topic: &Topic) -> String {
        let mut name = self.streams.clone();
        for token in topic.as_str().split('.') {
            name.push('~');
            name.push_str(token);
        }
        name
    }

    /// Checks that the stream of a topic has a name that servers take.
    pub(crate) fn check(&self, operation: &'static str, topic: &Topic) -> Result<()> {
        let bytes = self.stream(topic).len();
        if bytes <= LONGEST {
            return Ok(());
        }
        let why = "the prefix of streams, the namespace and the topic are too long together: a stream's name \
                   has at most 255 bytes";
        Err(Error::invalid(operation, why)
            .on(BACKEND)
            .with("topic", topic)
            .with("bytes", bytes))
    }

    /// What the stream of a topic takes: its subject, and those of its partitions and priorities.
    pub(crate) fn takes(&self, topic: &Topic) -> Vec<String> {
        let subject = self.subject(topic);
        vec![format!("{subject}.@.>"), subject]
    }

    /// The topic of a stream of this prefix and namespace.
    pub(crate) fn topic(&self, stream: &str) -> Option<Topic> {
        let tokens = stream.strip_prefix(&self.streams)?.strip_prefix('~')?;
        // A namespace's name or a note's begins with `@`, which no topic has.
        Topic::stored(tokens.replace('~', ".")).ok()
    }

    /// The stream that notes are kept in.
    pub(crate) fn notes_stream(&self) -> String {
        format!("{}~@notes", self.streams)
    }

    /// What the stream of notes takes.
    pub(crate) fn notes(&self) -> String {
        format!("{}.@.>", self.subjects)
    }

    /// The note of how far a topic has been trimmed by members.
    pub(crate) fn trimmed(&self, topic: &Topic) -> String {
        format!("{}.@.trimmed.{topic}", self.subjects)
    }

    /// The note of how far a group has come.
    pub(crate) fn group(&self, topic: &Topic, group: &Group) -> String {
        format!("{}.@.group.{group}.{topic}", self.subjects)
    }

    /// The notes of how often entries of a topic were handed out.
    pub(crate) fn all_attempts(&self, topic: &Topic, group: &Group) -> String {
        format!("{}.@.attempts.{group}.*.{topic}", self.subjects)
    }

    /// The note of how often an entry was handed out.
    pub(crate) fn attempts(&self, topic: &Topic, group: &Group, sequence: u64) -> String {
        format!("{}.@.attempts.{group}.{sequence}.{topic}", self.subjects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_topics_share_a_name() {
        let topic = |name: &str| Topic::new(name).unwrap();
        let none = Keys::new("mas", &Namespace::default());
        let prod = Keys::new("mas", &Namespace::new("prod").unwrap());
        assert_eq!(none.subject(&topic("orders.new")), "mas.orders.new");
        assert_eq!(prod.subject(&topic("orders.new")), "mas.@prod.orders.new");
        assert_eq!(none.stream(&topic("prod.orders")), "mas~prod~orders");
        assert_eq!(prod.stream(&topic("orders")), "mas~@prod~orders");
        assert_eq!(
            prod.topic("mas~@prod~orders~new"),
            Some(topic("orders.new"))
        );
        assert_eq!(none.topic("mas~@prod~orders"), None);
        assert_eq!(none.topic("mas~@notes"), None);
        assert_eq!(none.topic("masquerade~orders"), None);
        let letters = Topic::dead_letters(&topic("orders"), &Group::new("g").unwrap());
        assert_eq!(none.topic(&none.stream(&letters)), Some(letters));
    }

    #[test]
    fn the_longest_name_is_checked() {
        let topic = Topic::new("t".repeat(160)).unwrap();
        let letters = Topic::dead_letters(&topic, &Group::new("g".repeat(64)).unwrap());
        let keys = Keys::new("mas", &Namespace::new("n".repeat(18)).unwrap());
        keys.check("subscribe", &letters).unwrap();
        let keys = Keys::new("a-long-prefix", &Namespace::new("n".repeat(18)).unwrap());
        let error = keys.check("subscribe", &letters).unwrap_err();
        assert!(error.to_string().contains("255"), "{error}");
    }
}
