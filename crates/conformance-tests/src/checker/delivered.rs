//! Judging a delivery.

use std::time::Duration;

use mas_transport_core::{Exactness, Position};

use super::state::{Copy, Holding};
use super::{Checker, Flaw};
use crate::history::{Ended, How};

/// A delivery, borrowed from its entry.
#[derive(Clone, Copy)]
pub(super) struct Delivered<'h> {
    pub(super) member: u32,
    pub(super) id: &'h str,
    pub(super) topic: &'h str,
    pub(super) digest: u64,
    pub(super) key: Option<&'h str>,
    pub(super) position: Position,
    pub(super) attempt: u32,
    pub(super) deadline: Duration,
}

impl<'h> Checker<'h> {
    pub(super) fn delivered(&mut self, d: Delivered<'h>) {
        let Some(member) = self.state.members.get_mut(&d.member) else {
            return;
        };
        member.holds += 1;
        let (group, max_attempts) = (member.group, member.max_attempts);
        let over = (member.holds > member.prefetch).then_some((member.holds, member.prefetch));
        if let Some((holds, prefetch)) = over {
            let why = format!(
                "member {} holds {holds}, its window is {prefetch}",
                d.member
            );
            self.find(Flaw::OverPrefetch, why);
        }
        if d.attempt > max_attempts {
            let why = format!("{} at attempt {} of {max_attempts}", d.id, d.attempt);
            self.find(Flaw::OverAttempts, why);
        }
        self.contents(group, d);
        let copies = self.state.copies.entry((group, d.id)).or_default();
        let known = copies.iter().position(|c| c.position == d.position);
        match known.map(|n| copies.swap_remove(n)) {
            Some(before) => {
                self.again(group, &before, d);
                self.attempt_again(group, &before, d);
            }
            None => self.first(group, d),
        }
        let Some(state) = self.state.groups.get_mut(group) else {
            return;
        };
        state.delivered.insert(d.id);
        let crashes = state.crashes;
        let copies = self.state.copies.entry((group, d.id)).or_default();
        copies.push(Copy {
            position: d.position,
            member: d.member,
            attempt: d.attempt,
            at: self.now,
            deadline: d.deadline,
            holding: Holding::Held,
            crashes,
        });
    }

    fn subscribed(&self, group: usize) -> &'h str {
        self.state.groups.get(group).map_or("", |g| g.topic)
    }

    /// Whether it is what was published, where it was published.
    fn contents(&mut self, group: usize, d: Delivered<'h>) {
        let topic = self.subscribed(group);
        // Dead letters keep the original's id and contents; their topic is their own.
        let internal = topic.starts_with('_');
        let Some(message) = self.state.messages.get(d.id) else {
            if !internal && !self.state.injected.contains(topic) {
                let why = format!("{} on {topic} was never published", d.id);
                self.find(Flaw::Phantom, why);
            }
            return;
        };
        let (published, digest, key) = (message.topic, message.digest, message.key);
        if !internal && (published != topic || d.topic != topic) {
            let why = format!(
                "{} was published to {published}, says {}, and came to a member on {topic}",
                d.id, d.topic
            );
            self.find(Flaw::WrongTopic, why);
        }
        if digest != d.digest || key != d.key {
            let why = format!("{} came with other contents than published", d.id);
            self.find(Flaw::Corrupted, why);
        }
    }

    /// A copy that the group has not had before.
    fn first(&mut self, group: usize, d: Delivered<'h>) {
        let crashes = self.state.groups.get(group).map_or(0, |g| g.crashes);
        // A member that died may have begun it, or fetched it.
        if d.attempt == 0 || d.attempt > 1 + crashes {
            let why = format!(
                "{} came first at attempt {}, and {crashes} members had died",
                d.id, d.attempt
            );
            self.find(Flaw::Count, why);
        }
        let internal = self.subscribed(group).starts_with('_');
        let Some(message) = self.state.messages.get(d.id) else {
            return;
        };
        let (asked, sender, entry) = (message.asked, message.sender, message.entry);
        let copies = self.state.copies.get(&(group, d.id)).map_or(0, Vec::len) + 1;
        if copies > asked as usize && !internal {
            let why = format!("{} was published {asked} times and stored {copies}", d.id);
            self.find(Flaw::Duplicate, why);
        }
        let (Some(key), 1) = (d.key, asked) else {
            return;
        };
        if internal || self.state.groups.get(group).is_none_or(|g| g.disturbed) {
            return;
        }
        let last = self
            .state
            .order
            .entry((d.member, sender, key))
            .or_insert(entry);
        let before = *last;
        *last = entry.max(before);
        if entry < before {
            let failed = self.state.messages.values().any(|m| {
                m.sender == sender && m.key == Some(key) && (m.refused > 0 || m.uncertain > 0)
            });
            if !failed {
                let why = format!("{} of key {key} came after a later one", d.id);
                self.find(Flaw::Order, why);
            }
        }
    }

    /// A copy that the group has had before.
    fn again(&mut self, group: usize, before: &Copy, d: Delivered<'h>) {
        let now = self.now;
        let holder = self.state.members.get(&before.member);
        let left = holder.is_some_and(|m| m.gone && !m.crashed);
        let crashed = holder.is_some_and(|m| m.crashed);
        let lease = holder.map_or(Duration::ZERO, |m| m.lease);
        let taken = self.revoked.contains(&(before.member, before.position));
        if !left && !crashed && matches!(before.holding, Holding::Held) {
            self.state.let_go(before.member);
        }
        let early_by = self.rules.clock_error;
        // In a partitioned log members that come and go move partitions. A member that is dead, or
        // does not fetch, is not heard saying that it knows.
        let changed = self.state.groups.get(group).map(|g| g.changed);
        let moved = !self.rules.any_member && changed >= Some(before.at);
        match before.holding {
            Holding::Settled {
                how: how @ (How::Ack | How::Reject),
                ended: Ended::Done,
                at,
                ..
            } => {
                if !self.state.may_forget(at, self.rules.acks_survive) && !self.sent_again(group, d)
                {
                    let why = format!("{}: {how:?} was confirmed at {at:?}", d.id);
                    self.find(Flaw::Resurrected, why);
                }
            }
            Holding::Settled {
                how: How::Nack(delay) | How::Dropped(delay),
                called,
                at,
                ended,
            } if !matches!(ended, Ended::Lost | Ended::Failed) => {
                let due = called + delay;
                if now + early_by < due && now < before.deadline && !self.state.died {
                    let why = format!("{} was given back at {called:?} for {delay:?}", d.id);
                    self.find(Flaw::Early, why);
                }
                let latency = if delay.is_zero() {
                    self.rules.nack_latency
                } else {
                    self.rules.delay_slack
                };
                if ended == Ended::Done {
                    self.lateness(group, d, due.max(at), latency);
                }
            }
            Holding::Settling {
                how: How::Nack(delay) | How::Dropped(delay),
                at,
            } => {
                let early = now + early_by < at + delay && now < before.deadline;
                if early && !left && !self.state.died {
                    let why = format!("{} was given back at {at:?} for {delay:?}", d.id);
                    self.find(Flaw::Early, why);
                }
            }
            Holding::Settled {
                how: How::Ack | How::Reject,
                ended: Ended::Unknown,
                called,
                ..
            } => {
                // Nobody waited for the answer, or it was lost. Without a fault only the first can
                // be, and then the settlement stands.
                let in_time = called + lease / 4 < before.deadline;
                if in_time && !left && !crashed && !taken && !self.state.troubled() {
                    let why = format!("{} was settled at {called:?}, in time", d.id);
                    self.find(Flaw::Duplicate, why);
                }
            }
            Holding::Settled {
                how: How::Return, ..
            }
            | Holding::Settling {
                how: How::Return, ..
            } => {}
            // A broker that died or forgot may not know of the lease any more.
            _ if left || taken || moved || self.state.died => self.state.disturb(d.member),
            _ if now + early_by < before.deadline && !self.sent_again(group, d) => {
                let (flaw, who) = if crashed {
                    (Flaw::Early, "is dead")
                } else {
                    (Flaw::DoubleLease, "lives")
                };
                let why = format!(
                    "{} is leased to member {}, which {who}, from {:?} until {:?}",
                    d.id, before.member, before.at, before.deadline
                );
                self.find(flaw, why);
            }
            _ => {
                self.state.disturb(d.member);
                self.lateness(group, d, before.deadline, self.rules.reclaim_slack);
            }
        }
    }

    /// Whether a broker that may forget what it sent last when a member goes away did so. It sends it as if for
    /// the first time.
    fn sent_again(&mut self, group: usize, d: Delivered<'h>) -> bool {
        let lease = self.state.members.get(&d.member);
        let lease = lease.map_or(Duration::ZERO, |member| member.lease);
        let may = self.rules.leaving_costs_ack && d.attempt == 1;
        may && self.state.sent_again(group, self.now, lease)
    }

    fn lateness(&mut self, group: usize, d: Delivered<'h>, due: Duration, latency: Duration) {
        let limit = due + latency + self.rules.slack;
        let last = self
            .state
            .members
            .get(&d.member)
            .map_or(0, |m| m.max_attempts);
        // On its last attempt it may have to wait until its member holds nothing else; in a
        // partitioned log, for the owner of its partition.
        let excused = self.state.troubled() || d.attempt >= last || !self.rules.any_member;
        if self.now > limit && !excused && self.state.idle(group, due, limit) {
            let why = format!("{} was due at {due:?}, and a member was idle", d.id);
            self.find(Flaw::Late, why);
        }
    }

    fn attempt_again(&mut self, group: usize, before: &Copy, d: Delivered<'h>) {
        let crashes = self.state.groups.get(group).map_or(0, |g| g.crashes);
        // Whoever died in between may have begun it once.
        let most = before.attempt + 1 + (crashes - before.crashes);
        let returned = matches!(
            before.holding,
            Holding::Settled {
                how: How::Return,
                ended: Ended::Done | Ended::Unknown,
                ..
            }
        );
        let exact = self.rules.attempts == Exactness::Exact && !self.state.died;
        let least = if returned {
            before.attempt
        } else {
            before.attempt + 1
        };
        let least = if exact { least } else { before.attempt.min(1) };
        let most = if returned { most - 1 } else { most };
        if !(least..=most).contains(&d.attempt) {
            let why = format!(
                "{} at attempt {} follows attempt {}: {least} to {most} expected",
                d.id, d.attempt, before.attempt
            );
            self.find(Flaw::Count, why);
        }
    }
}
