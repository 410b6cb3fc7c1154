//! The names of keys, and of what stands in them.
//!
//! Every key begins with `mas:`. The keys of a topic share the hash tag `{namespace:topic}`, so
//! that they live in one slot of a cluster, and its dead letters and quarantine carry the tag of
//! the topic they come from, so that one script can move an entry there.
//!
//! | Key | Type | What |
//! |---|---|---|
//! | `mas:{ns:topic}` | stream | the topic |
//! | `mas:{ns:topic}:dlq:<group>` | stream | the dead letters of a group |
//! | `mas:{ns:topic}:bad:<group>` | stream | the quarantine of a group |
//! | `<stream>:groups` | set | the groups of that stream |
//! | `<stream>:group:<group>` | hash | format version, lease, incarnation, from where on something may be unsettled |
//! | `<stream>:retry:<group>` | sorted set | ids of nacked entries by due time |
//! | `<stream>:wake:<group>` | channel | says in how many ms an entry comes due |
//! | `mas:{ns:}:topics` | set | the topics of the namespace |

use mas_transport_core::{Group, Namespace, Topic};

/// The consumer that holds what waits for redelivery. No member's name holds a `!`.
pub(crate) const PARKED: &str = "!parked";
/// What the name of a marker group begins with; the stream's incarnation follows. No group's name
/// holds a `!`.
pub(crate) const MARKER: &str = "!mas:";

/// The set of the topics of a namespace.
pub(crate) fn topics(namespace: &Namespace) -> String {
    format!("mas:{{{namespace}:}}:topics")
}

/// The stream of a topic.
pub(crate) fn stream(namespace: &Namespace, topic: &Topic) -> String {
    let inner = [("_dlq.", "dlq"), ("_bad.", "bad")];
    for (prefix, name) in inner {
        let rest = topic.as_str().strip_prefix(prefix);
        if let Some((group, topic)) = rest.and_then(|r| r.split_once('.')) {
            return format!("mas:{{{namespace}:{topic}}}:{name}:{group}");
        }
    }
    format!("mas:{{{namespace}:{topic}}}")
}

/// The set of the groups of a stream.
pub(crate) fn groups(stream: &str) -> String {
    format!("{stream}:groups")
}

/// What the keys of the hashes of a stream's groups begin with.
pub(crate) fn hashes(stream: &str) -> String {
    format!("{stream}:group:")
}

/// What the keys of the retry sets of a stream's groups begin with.
pub(crate) fn retries(stream: &str) -> String {
    format!("{stream}:retry:")
}

/// The keys that a member uses.
#[derive(Debug)]
pub(crate) struct GroupKeys {
    pub(crate) stream: String,
    pub(crate) groups: String,
    pub(crate) hashes: String,
    pub(crate) hash: String,
    pub(crate) retry: String,
    pub(crate) channel: String,
}

impl GroupKeys {
    pub(crate) fn new(namespace: &Namespace, topic: &Topic, group: &Group) -> Self {
        let stream = stream(namespace, topic);
        Self {
            groups: groups(&stream),
            hashes: hashes(&stream),
            hash: format!("{}{group}", hashes(&stream)),
            retry: format!("{}{group}", retries(&stream)),
            channel: format!("{stream}:wake:{group}"),
            stream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_topic_share_its_hash_tag() {
        let namespace = Namespace::new("team").unwrap();
        let topic = Topic::new("orders.created").unwrap();
        let group = Group::new("billing").unwrap();
        let dead = Topic::dead_letters(&topic, &group);
        let bad = Topic::quarantine(&topic, &group);
        assert_eq!(stream(&namespace, &topic), "mas:{team:orders.created}");
        assert_eq!(
            stream(&namespace, &dead),
            "mas:{team:orders.created}:dlq:billing"
        );
        assert_eq!(
            stream(&namespace, &bad),
            "mas:{team:orders.created}:bad:billing"
        );
        let keys = GroupKeys::new(&Namespace::default(), &dead, &Group::new("ops").unwrap());
        assert_eq!(keys.hash, "mas:{:orders.created}:dlq:billing:group:ops");
    }
}
