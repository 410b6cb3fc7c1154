//! How Kafka topics and consumer groups are named.
//!
//! A topic's tokens hold letters, digits, `_` and `-`, and none is empty, so an empty one keeps the
//! namespace apart: `mas..prod.orders.created` is the topic `orders.created` in the namespace `prod`,
//! `mas.orders.created` the one without a namespace. A group's name holds no dot, so that of its
//! consumer group, `mas.orders.created.billing`, can be taken apart again.
//!
//! Kafka refuses a topic whose name differs from another one's in nothing but `.` and `_`: its metrics
//! could not tell the two apart.

use mas_transport_core::{Error, Group, Namespace, Result, Topic};

use crate::BACKEND;

/// The longest name of a topic that brokers take.
const LONGEST: usize = 249;

/// Names within one prefix and namespace.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// `mas..prod.`
    base: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str, namespace: &Namespace) -> Self {
        let mut base = format!("{prefix}.");
        if !namespace.as_str().is_empty() {
            base.push('.');
            base.push_str(namespace.as_str());
            base.push('.');
        }
        Self { base }
    }

    /// The Kafka topic of a topic.
    pub(crate) fn topic(&self, topic: &Topic) -> String {
        format!("{}{topic}", self.base)
    }

    /// The topic of a Kafka topic of this prefix and namespace.
    pub(crate) fn topic_of(&self, name: &str) -> Option<Topic> {
        Topic::stored(name.strip_prefix(&self.base)?).ok()
    }

    /// The consumer group of a group.
    pub(crate) fn group(&self, topic: &Topic, group: &Group) -> String {
        format!("{}{topic}.{group}", self.base)
    }

    /// The group of a consumer group, if it is one of this topic.
    pub(crate) fn group_of(&self, topic: &Topic, name: &str) -> Option<Group> {
        let rest = name.strip_prefix(&self.base)?;
        Group::new(rest.strip_prefix(topic.as_str())?.strip_prefix('.')?).ok()
    }

    /// Checks that a topic has a name that brokers take.
    pub(crate) fn check(&self, operation: &'static str, topic: &Topic) -> Result<()> {
        let bytes = self.base.len() + topic.as_str().len();
        if bytes <= LONGEST {
            return Ok(());
        }
        let why = "the prefix of topics, the namespace and the topic are too long together: a Kafka topic's \
                   name has at most 249 bytes";
        Err(Error::invalid(operation, why)
            .on(BACKEND)
            .with("topic", topic)
            .with("bytes", bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::new(name).unwrap()
    }

    #[test]
    fn no_two_topics_share_a_name() {
        let none = Keys::new("mas", &Namespace::default());
        let prod = Keys::new("mas", &Namespace::new("prod").unwrap());
        assert_eq!(none.topic(&topic("prod.orders")), "mas.prod.orders");
        assert_eq!(prod.topic(&topic("orders")), "mas..prod.orders");
        assert_eq!(none.topic_of("mas.orders.new"), Some(topic("orders.new")));
        assert_eq!(none.topic_of("mas..prod.orders"), None);
        assert_eq!(prod.topic_of("mas..prod.orders"), Some(topic("orders")));
        assert_eq!(prod.topic_of("mas..production.orders"), None);
        assert_eq!(none.topic_of("masquerade.orders"), None);
        let letters = Topic::dead_letters(&topic("orders"), &Group::new("g").unwrap());
        assert_eq!(none.topic_of(&none.topic(&letters)), Some(letters));
    }

    #[test]
    fn a_group_is_that_of_one_topic() {
        let keys = Keys::new("mas", &Namespace::default());
        let group = Group::new("billing").unwrap();
        let name = keys.group(&topic("orders.new"), &group);
        assert_eq!(name, "mas.orders.new.billing");
        assert_eq!(keys.group_of(&topic("orders.new"), &name), Some(group));
        assert_eq!(keys.group_of(&topic("orders"), &name), None);
        assert_eq!(keys.group_of(&topic("orders.ne"), &name), None);
    }

    #[test]
    fn the_longest_name_is_checked() {
        let longest = topic(&"t".repeat(160));
        let letters = Topic::dead_letters(&longest, &Group::new("g".repeat(64)).unwrap());
        let keys = Keys::new("m", &Namespace::default());
        keys.check("subscribe", &letters).unwrap();
        let keys = Keys::new("a-long-prefix", &Namespace::new("n".repeat(18)).unwrap());
        let error = keys.check("subscribe", &letters).unwrap_err();
        assert!(error.to_string().contains("249"), "{error}");
    }
}
