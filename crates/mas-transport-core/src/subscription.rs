//! What a consumer asks for.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::name::{Group, Topic};

/// Where a group that does not exist yet begins to read. An existing group goes on where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartFrom {
    /// With the oldest entry that the topic still keeps.
    #[default]
    Earliest,
    /// With what is published after `subscribe` has returned.
    Latest,
}

/// In which order messages of one key are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// First deliveries to one member come in order; redeliveries and other members do not wait.
    #[default]
    None,
    /// No message of a key is delivered while an earlier one of that key is unsettled.
    PerKey,
}

/// How long a message that was dropped without a settlement waits before it comes back: `first`,
/// doubled with each attempt, at most `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first attempt.
    pub first: Duration,
    /// The limit.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            most: Duration::from_secs(300),
        }
    }
}

impl Backoff {
    /// The wait after the given attempt; the first is 1.
    pub fn after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }
}

/// Which messages of the topic are wanted. Refused where the backend cannot filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// Messages of this type.
    Kind(String),
    /// Messages with this tag.
    Tag(String),
    /// Messages with this header value.
    Header(String, String),
}

/// A subscription: one member of one group on one topic.
///
/// ```
/// # use mas_transport_core::Subscription;
/// # use std::time::Duration;
/// let subscription = Subscription::new("orders.created")
///     .group("billing")
///     .lease(Duration::from_secs(60))
///     .prefetch(100);
/// subscription.check()?;
/// # Ok::<(), mas_transport_core::Error>(())
/// ```
///
/// Names are checked when the subscription is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    topic: String,
    group: String,
    member: Option<String>,
    lease: Duration,
    max_attempts: Option<u32>,
    start: StartFrom,
    order: Order,
    filter: Option<Filter>,
    prefetch: usize,
    prefetch_bytes: usize,
    backoff: Backoff,
}

impl Subscription {
    /// A subscription to `topic` with the defaults: lease 30 s, 3 attempts, the earliest entry,
    /// 1,000 messages or 16 MiB of prefetch, a backoff of 1 s doubling to 5 min. A group has to be
    /// named before it is used.
    pub fn new(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            group: String::new(),
            member: None,
            lease: Duration::from_secs(30),
            max_attempts: None,
            start: StartFrom::default(),
            order: Order::default(),
            filter: None,
            prefetch: 1000,
            prefetch_bytes: 16 * 1024 * 1024,
            backoff: Backoff::default(),
        }
    }

    /// The group to join.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// A name for this member, for operators to read; made up when left out. Two live members may
    /// carry the same one: the library keeps them apart.
    #[must_use]
    pub fn member(mut self, member: impl Into<String>) -> Self {
        self.member = Some(member.into());
        self
    }

    /// How long a delivered message is ours, 100 ms to 24 h. A property of the group, stored with
    /// it when it is created: a member that asks for another is refused with `Conflict`.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How often a message is attempted before it is dead-lettered, the first included; at least 1.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// The group, unless one was named: a service's default.
    #[must_use]
    pub fn or_group(mut self, group: &str) -> Self {
        if self.group.is_empty() {
            self.group = group.to_owned();
        }
        self
    }

    /// The attempts, unless they were said: a service's default.
    #[must_use]
    pub fn or_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts.get_or_insert(attempts);
        self
    }

    /// Where a new group begins.
    #[must_use]
    pub fn start_from(mut self, start: StartFrom) -> Self {
        self.start = start;
        self
    }

    /// The order among messages of one key.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Takes only what passes the filter.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// How many messages may be fetched and not yet settled, 1 to 65,536.
    #[must_use]
    pub fn prefetch(mut self, messages: usize) -> Self {
        self.prefetch = messages;
        self
    }

    /// How many bytes of messages may be fetched and not yet settled. One message may exceed it.
    #[must_use]
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// How long a dropped delivery waits before it comes back.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// The topic or pattern as it was given.
    pub fn pattern(&self) -> &str {
        &self.topic
    }

    /// Whether the pattern has wildcards: a token `*`, or `>` at the end.
    pub fn has_wildcard(&self) -> bool {
        self.topic.split('.').any(|t| t == "*" || t == ">")
    }

    /// The one topic of a subscription without wildcards. Internal topics (dead letters,
    /// quarantine) may be subscribed to by their full name.
    ///
    /// # Errors
    /// `InvalidArgument` when the name breaks a rule of [`Topic`].
    pub fn get_topic(&self) -> Result<Topic> {
        Topic::stored(&self.topic)
    }

    /// The group.
    ///
    /// # Errors
    /// `InvalidArgument` when none was named, or its name breaks a rule of [`Group`].
    pub fn get_group(&self) -> Result<Group> {
        if self.group.is_empty() {
            return Err(Error::invalid(
                "subscribe",
                "name the consumer group: Subscription::new(topic).group(\"…\")",
            )
            .with("topic", &self.topic));
        }
        Group::new(&self.group)
    }

    /// The name of the member, if one was given.
    pub fn get_member(&self) -> Option<&str> {
        self.member.as_deref()
    }

    /// The lease.
    pub fn get_lease(&self) -> Duration {
        self.lease
    }

    /// The attempts; 3 when nobody said.
    pub fn get_max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(3)
    }

    /// Where a new group begins.
    pub fn get_start(&self) -> StartFrom {
        self.start
    }

    /// The order.
    pub fn get_order(&self) -> Order {
        self.order
    }

    /// The filter.
    pub fn get_filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    /// The prefetch window in messages.
    pub fn get_prefetch(&self) -> usize {
        self.prefetch
    }

    /// The prefetch window in bytes.
    pub fn get_prefetch_bytes(&self) -> usize {
        self.prefetch_bytes
    }

    /// The backoff.
    pub fn get_backoff(&self) -> Backoff {
        self.backoff
    }

    /// Checks names and ranges; whether the backend can serve it is
    /// [`TransportInfo::check_subscription`](crate::TransportInfo::check_subscription).
    ///
    /// # Errors
    /// `InvalidArgument`, naming what is wrong and what is allowed.
    pub fn check(&self) -> Result<()> {
        self.get_group()?;
        if !self.has_wildcard() {
            self.get_topic()?;
        }
        let wrong = |why: &'static str| {
            Err(Error::invalid("subscribe", why)
                .with("topic", &self.topic)
                .with("group", &self.group))
        };
        if !(Duration::from_millis(100)..=Duration::from_secs(24 * 3600)).contains(&self.lease) {
            return wrong("the lease is 100 ms to 24 h");
        }
        if self.max_attempts == Some(0) {
            return wrong("max_attempts is at least 1");
        }
        if !(1..=65_536).contains(&self.prefetch) {
            return wrong("prefetch is 1 to 65,536 messages");
        }
        if self.prefetch_bytes == 0 {
            return wrong("prefetch_bytes is at least 1");
        }
        if self.member.as_ref().is_some_and(|m| Group::new(m).is_err()) {
            return wrong("a member is 1 to 64 letters, digits, _ and -");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_limit() {
        let backoff = Backoff::default();
        let seconds = [1, 2, 3, 8, 9, 10, 40].map(|n| backoff.after(n).as_secs());
        assert_eq!(seconds, [1, 2, 4, 128, 256, 300, 300]);
    }

    #[test]
    fn defaults_fill_only_what_was_not_said() {
        let filled = |s: Subscription| s.or_group("service").or_max_attempts(9);
        let bare = filled(Subscription::new("a"));
        assert_eq!(bare.get_group().unwrap().as_str(), "service");
        assert_eq!(bare.get_max_attempts(), 9);
        let said = filled(Subscription::new("a").group("own").max_attempts(3));
        assert_eq!(said.get_group().unwrap().as_str(), "own");
        assert_eq!(said.get_max_attempts(), 3);
        assert_eq!(Subscription::new("a").get_max_attempts(), 3);
    }

    #[test]
    fn the_rules_are_checked() {
        let good = Subscription::new("a.b").group("g");
        assert!(good.check().is_ok());
        assert!(Subscription::new("a.b").check().is_err());
        assert!(good.clone().max_attempts(0).check().is_err());
        assert!(good.clone().prefetch(0).check().is_err());
        assert!(good.clone().lease(Duration::ZERO).check().is_err());
        assert!(Subscription::new("a.*").group("g").check().is_ok());
        assert!(Subscription::new("a b").group("g").check().is_err());
        assert!(Subscription::new("_dlq.g.a.b").group("g").check().is_ok());
        assert!(Subscription::new("_other").group("g").check().is_err());
    }
}
