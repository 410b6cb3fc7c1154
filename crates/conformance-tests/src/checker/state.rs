//! What the checker remembers.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use mas_transport_core::Position;

use crate::history::{Ended, How, Trouble};

/// A message as published.
#[derive(Debug)]
pub(super) struct Published<'h> {
    pub(super) sender: u32,
    pub(super) topic: &'h str,
    pub(super) key: Option<&'h str>,
    pub(super) digest: u64,
    /// The entry of its first publish: later ones were published later.
    pub(super) entry: usize,
    pub(super) asked: u32,
    pub(super) accepted: u32,
    pub(super) refused: u32,
    pub(super) uncertain: u32,
    /// When it was last accepted.
    pub(super) accepted_at: Option<Duration>,
    /// It was accepted before a broker died that does not keep receipts, or not as recent ones.
    pub(super) forgotten: bool,
}

/// A group.
#[derive(Debug)]
pub(super) struct Group<'h> {
    pub(super) topic: &'h str,
    pub(super) name: &'h str,
    /// What was there before the group and has to reach it all the same.
    pub(super) kept: HashSet<&'h str>,
    /// What was published from here on has to reach it.
    pub(super) since: usize,
    pub(super) delivered: HashSet<&'h str>,
    pub(super) gap: bool,
    /// Entries were taken away, and no gap was raised since.
    pub(super) taken: bool,
    pub(super) crashes: u32,
    /// How many members have gone, and how many entries came once more because of it.
    pub(super) gone: u32,
    pub(super) sent_again: u32,
    /// When the last of them went.
    pub(super) gone_at: Duration,
    /// When a member last joined, left or died.
    pub(super) changed: Duration,
    /// A member died, left or lost a lease: first deliveries may come in any order.
    pub(super) disturbed: bool,
}

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: usize,
    pub(super) prefetch: usize,
    pub(super) max_attempts: u32,
    pub(super) lease: Duration,
    pub(super) holds: usize,
    pub(super) gone: bool,
    pub(super) crashed: bool,
    pub(super) waits: Option<(Duration, Option<Duration>)>,
}

/// Whose a delivered copy is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holding {
    Held,
    Settling {
        how: How,
        at: Duration,
    },
    Settled {
        how: How,
        ended: Ended,
        called: Duration,
        at: Duration,
    },
}

/// One stored copy of a message, as one group has seen it.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) position: Position,
    pub(super) member: u32,
    pub(super) attempt: u32,
    pub(super) at: Duration,
    pub(super) deadline: Duration,
    pub(super) holding: Holding,
    /// How often members of the group had died when it was handed out.
    pub(super) crashes: u32,
}

#[derive(Debug, Default)]
pub(super) struct State<'h> {
    pub(super) messages: HashMap<&'h str, Published<'h>>,
    pub(super) groups: Vec<Group<'h>>,
    pub(super) members: HashMap<u32, Member>,
    /// Of each group and message, its copies: nearly always one.
    pub(super) copies: HashMap<(usize, &'h str), Vec<Copy>>,
    pub(super) injected: HashSet<&'h str>,
    /// The last entry of a key of a sender that a member had for the first time.
    pub(super) order: HashMap<(u32, u32, &'h str), usize>,
    /// When the last fault began or ended, and how many are on.
    pub(super) last_fault: Option<Duration>,
    pub(super) faults: u32,
    /// A broker died, or forgot what it knew of a group.
    pub(super) died: bool,
    /// When brokers were killed, and when they were back.
    pub(super) kills: Vec<(Duration, Option<Duration>)>,
}

impl<'h> State<'h> {
    pub(super) fn publishing(
        &mut self,
        sender: u32,
        topic: &'h str,
        id: &'h str,
        key: Option<&'h str>,
        digest: u64,
        entry: usize,
    ) {
        let message = self.messages.entry(id).or_insert(Published {
            sender,
            topic,
            key,
            digest,
            entry,
            asked: 0,
            accepted: 0,
            refused: 0,
            uncertain: 0,
            accepted_at: None,
            forgotten: false,
        });
        message.asked += 1;
    }

    pub(super) fn outcome(&mut self, id: &str, count: impl FnOnce(&mut Published<'h>)) {
        if let Some(message) = self.messages.get_mut(id) {
            count(message);
        }
    }

    /// The number of a group, which comes into being with its first member.
    pub(super) fn group(&mut self, topic: &'h str, name: &'h str, earliest: bool) -> usize {
        let known = |g: &Group<'_>| g.topic == topic && g.name == name;
        if let Some(number) = self.groups.iter().position(known) {
            return number;
        }
        let others: Vec<_> = (0..self.groups.len())
            .filter(|&g| self.groups.get(g).is_some_and(|g| g.topic == topic))
            .collect();
        // A topic keeps what some group has not settled; without a group, everything.
        let kept =
            |id: &&'h str| others.is_empty() || others.iter().any(|&g| !self.is_settled(g, id));
        let kept = if earliest {
            let here = self.messages.iter().filter(|(_, m)| m.topic == topic);
            here.map(|(id, _)| *id).filter(kept).collect()
        } else {
            HashSet::new()
        };
        let since = self.messages.values().map(|m| m.entry + 1).max();
        self.groups.push(Group {
            topic,
            name,
            kept,
            since: since.unwrap_or(0),
            delivered: HashSet::new(),
            gap: false,
            taken: false,
            crashes: 0,
            gone: 0,
            sent_again: 0,
            gone_at: Duration::ZERO,
            changed: Duration::ZERO,
            disturbed: false,
        });
        self.groups.len() - 1
    }

    fn is_settled(&self, group: usize, id: &str) -> bool {
        self.copies.get(&(group, id)).is_some_and(|copies| {
            copies.iter().all(|c| {
                matches!(
                    c.holding,
                    // What was asked for may have happened by now.
                    Holding::Settling {
                        how: How::Ack | How::Reject,
                        ..
                    } | Holding::Settled {
                        how: How::Ack | How::Reject,
                        ..
                    }
                )
            })
        })
    }

    pub(super) fn joined(
        &mut self,
        member: u32,
        group: usize,
        prefetch: usize,
        max_attempts: u32,
        lease: Duration,
    ) {
        let joined = Member {
            group,
            prefetch,
            max_attempts,
            lease,
            holds: 0,
            gone: false,
            crashed: false,
            waits: None,
        };
        self.members.insert(member, joined);
    }

    pub(super) fn changed(&mut self, group: usize, now: Duration) {
        if let Some(group) = self.groups.get_mut(group) {
            group.changed = now;
        }
    }

    pub(super) fn gone(&mut self, member: u32, crashed: bool, now: Duration) {
        let Some(state) = self.members.get_mut(&member) else {
            return;
        };
        // What a dead member's owner drops later says nothing.
        if state.gone {
            return;
        }
        state.gone = true;
        state.crashed = crashed;
        state.waits = None;
        if let Some(group) = self.groups.get_mut(state.group) {
            group.crashes += u32::from(crashed);
            group.gone += 1;
            group.gone_at = now;
            group.disturbed = true;
            group.changed = now;
        }
    }

    pub(super) fn disturb(&mut self, member: u32) {
        if let Some(group) = self.group_of(member) {
            group.disturbed = true;
        }
    }

    fn group_of(&mut self, member: u32) -> Option<&mut Group<'h>> {
        let member = self.members.get(&member)?;
        self.groups.get_mut(member.group)
    }

    pub(super) fn gap(&mut self, member: u32) {
        if let Some(group) = self.group_of(member) {
            group.gap = true;
            group.taken = false;
        }
    }

    pub(super) fn taken(&mut self, topic: &str) {
        for group in self.groups.iter_mut().filter(|g| g.topic == topic) {
            group.taken = true;
        }
    }

    pub(super) fn waits(&mut self, member: u32, on: bool, now: Duration) {
        let Some(member) = self.members.get_mut(&member) else {
            return;
        };
        member.waits = match (on, member.waits) {
            (true, _) => Some((now, None)),
            (false, Some((since, _))) => Some((since, Some(now))),
            (false, None) => None,
        };
    }

    /// A fault begins or ends. One that `costs` takes along what was on its way to members, as if they had
    /// died with it.
    pub(super) fn fault(
        &mut self,
        what: Trouble,
        on: bool,
        costs: bool,
        now: Duration,
        survive: Option<Duration>,
    ) {
        self.last_fault = Some(now);
        if on {
            self.faults += 1;
        } else {
            self.faults = self.faults.saturating_sub(1);
        }
        if on && matches!(what, Trouble::Kill | Trouble::Forget) {
            self.died = true;
        }
        if on && (costs || matches!(what, Trouble::Kill | Trouble::Freeze)) {
            // Its clock goes on meanwhile: to a broker that was away for longer than a lease, its
            // members are as good as dead, and what it had sent them last may never have arrived.
            for group in &mut self.groups {
                group.crashes += 1;
            }
        }
        if on && matches!(what, Trouble::Kill | Trouble::Freeze | Trouble::Cut) {
            // What was on its way to a member is given back, and comes behind what did arrive.
            for group in &mut self.groups {
                group.disturbed = true;
            }
        }
        if on && what == Trouble::Kill {
            self.kills.push((now, None));
            let written = |at: Option<Duration>| {
                let age = at.map(|at| now.saturating_sub(at));
                age.zip(survive).is_some_and(|(age, after)| age >= after)
            };
            for message in self.messages.values_mut() {
                message.forgotten |= !written(message.accepted_at);
            }
        }
        if !on
            && what == Trouble::Kill
            && let Some((_, back)) = self.kills.last_mut()
        {
            *back = Some(now);
        }
    }

    /// Whether a broker that keeps what it confirmed only `after` so long may have forgotten what it
    /// confirmed `at` that time.
    pub(super) fn may_forget(&self, at: Duration, after: Option<Duration>) -> bool {
        self.kills.iter().any(|(killed, back)| match after {
            None => back.is_none_or(|back| at <= back),
            Some(Duration::ZERO) => false,
            Some(after) => at + after > *killed && back.is_none_or(|back| at <= back),
        })
    }

    /// Whether a member that went away explains that an entry comes once more. Each explains one, until what it
    /// held has been sent again.
    pub(super) fn sent_again(&mut self, group: usize, now: Duration, lease: Duration) -> bool {
        let Some(group) = self.groups.get_mut(group) else {
            return false;
        };
        let explained = group.sent_again < group.gone && now <= group.gone_at + 2 * lease;
        group.sent_again += u32::from(explained);
        explained
    }

    /// There was a fault at some time.
    pub(super) fn troubled(&self) -> bool {
        self.last_fault.is_some()
    }

    /// A copy that the member holds unsettled.
    pub(super) fn held(&mut self, member: u32, id: &'h str, attempt: u32) -> Option<&mut Copy> {
        let copy = self.copy(member, id, attempt)?;
        matches!(copy.holding, Holding::Held).then_some(copy)
    }

    /// A copy whose settlement is on its way.
    pub(super) fn settling(&mut self, member: u32, id: &'h str, attempt: u32) -> Option<&mut Copy> {
        let copy = self.copy(member, id, attempt)?;
        matches!(copy.holding, Holding::Settling { .. }).then_some(copy)
    }

    fn copy(&mut self, member: u32, id: &'h str, attempt: u32) -> Option<&mut Copy> {
        let group = self.members.get(&member)?.group;
        let copies = self.copies.get_mut(&(group, id))?;
        let mut its = copies.iter_mut();
        its.find(|c| c.member == member && c.attempt == attempt)
    }

    pub(super) fn let_go(&mut self, member: u32) {
        if let Some(member) = self.members.get_mut(&member) {
            member.holds = member.holds.saturating_sub(1);
        }
    }

    /// Some member of the group had room and waited all the time.
    pub(super) fn idle(&self, group: usize, from: Duration, to: Duration) -> bool {
        self.members.values().any(|m| {
            let waited = m
                .waits
                .is_some_and(|(since, until)| since <= from && until.is_none_or(|u| u >= to));
            m.group == group && !m.gone && m.holds < m.prefetch && waited
        })
    }
}
