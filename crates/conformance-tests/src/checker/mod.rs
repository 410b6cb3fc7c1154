//! The checker: judges a history in one pass.
//!
//! It knows nothing of backends beyond the strengths they declare. A finding names the entry of
//! the history at which it was certain.

mod delivered;
mod drained;
mod state;

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use mas_transport_core::{Capabilities, Durability, Exactness};

use crate::history::{Ended, Entry, Happened, How, Trouble};
use state::{Holding, State};

/// What can be wrong with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Flaw {
    /// Accepted, the group was there, never delivered, and everything after it was.
    LostPrefix,
    /// Likewise, with deliveries before and after it: certainly lost.
    LostMiddle,
    /// Likewise, with nothing after it: lost, or too slow.
    LostPostfix,
    /// Delivered and never published.
    Phantom,
    /// Delivered although the publish said that it is not stored.
    Aborted,
    /// Payload, headers, key or attributes are not what was published.
    Corrupted,
    /// Delivered from a topic that it was not published to, or to a member of another one.
    WrongTopic,
    /// Delivered again after the broker had confirmed its ack or its dead letter.
    Resurrected,
    /// Delivered again without a nack, an expiry, a death or an unknown answer before it.
    Duplicate,
    /// Delivered while somebody else's lease was live.
    DoubleLease,
    /// `LeaseLost` although the lease was live.
    FalseLoss,
    /// A settlement past its deadline was confirmed.
    LateSettled,
    /// Redelivered before its delay, its backoff, or its dead holder's lease was over.
    Early,
    /// Redelivered later than declared, to a member that had been idle.
    Late,
    /// The attempt is not what the hand-outs add up to.
    Count,
    /// First deliveries of one key came to one member in another order than published.
    Order,
    /// Handed out above its last attempt.
    OverAttempts,
    /// A member held more than its prefetch window.
    OverPrefetch,
    /// Given back and never delivered again.
    Stuck,
    /// Entries were taken away and no gap was raised.
    SilentGap,
}

/// One thing that is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub flaw: Flaw,
    /// The entry at which it was certain.
    pub entry: usize,
    /// In words.
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at entry {}: {}", self.flaw, self.entry, self.why)
    }
}

/// What the backend declares, as far as histories are judged by it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How much later than declared something may be seen.
    pub slack: Duration,
    /// [`Capabilities::nack_latency`].
    pub nack_latency: Duration,
    /// [`Capabilities::delay_slack`].
    pub delay_slack: Duration,
    /// [`Capabilities::reclaim_slack`].
    pub reclaim_slack: Duration,
    /// [`Capabilities::clock_error`].
    pub clock_error: Duration,
    /// [`Capabilities::attempts`].
    pub attempts: Exactness,
    /// [`Capabilities::cut_costs_lease`].
    pub cut_costs_lease: bool,
    /// [`Capabilities::leaving_costs_ack`].
    pub leaving_costs_ack: bool,
    /// [`Capabilities::any_member`].
    pub any_member: bool,
    /// After how long a message with a receipt survives the death of the broker's process, if ever.
    pub receipts_survive: Option<Duration>,
    /// After how long a confirmed ack does, if ever.
    pub acks_survive: Option<Duration>,
}

impl Rules {
    /// What these capabilities promise, with an allowance for the machine.
    pub fn of(can: &Capabilities, slack: Duration) -> Self {
        Self {
            slack,
            nack_latency: can.nack_latency,
            delay_slack: can.delay_slack,
            reclaim_slack: can.reclaim_slack,
            clock_error: can.clock_error,
            attempts: can.attempts,
            cut_costs_lease: can.cut_costs_lease,
            leaving_costs_ack: can.leaving_costs_ack,
            any_member: can.any_member,
            receipts_survive: survives_after(can.durability),
            acks_survive: survives_after(can.ack_durability),
        }
    }
}

/// After how long what was confirmed survives the death of a broker's process, if ever.
/// [`Durability::WriteBehind`] is that of the last few seconds.
pub(crate) fn survives_after(durability: Durability) -> Option<Duration> {
    match durability {
        Durability::Volatile => None,
        Durability::WriteBehind => Some(Duration::from_secs(3)),
        _ => Some(Duration::ZERO),
    }
}

/// Judges a history. Empty when nothing is wrong with it.
pub fn check(history: &[Entry], rules: &Rules) -> Vec<Finding> {
    let mut checker = Checker {
        rules,
        state: State::default(),
        findings: Vec::new(),
        revoked: history.iter().filter_map(revoked).collect(),
        entry: 0,
        now: Duration::ZERO,
    };
    for (number, entry) in history.iter().enumerate() {
        checker.entry = number;
        checker.now = entry.at;
        checker.step(&entry.what);
    }
    checker.finish();
    checker.findings
}

type Revoked = (u32, mas_transport_core::Position);

// A revocation is written down by a task of its own, perhaps after the delivery that it explains.
fn revoked(entry: &Entry) -> Option<Revoked> {
    match entry.what {
        Happened::Revoked { member, position } => Some((member, position)),
        _ => None,
    }
}

struct Checker<'h> {
    rules: &'h Rules,
    state: State<'h>,
    findings: Vec<Finding>,
    revoked: HashSet<Revoked>,
    entry: usize,
    now: Duration,
}

impl<'h> Checker<'h> {
    fn find(&mut self, flaw: Flaw, why: impl Into<String>) {
        self.findings.push(Finding {
            flaw,
            entry: self.entry,
            why: why.into(),
        });
    }

    fn step(&mut self, what: &'h Happened) {
        let (entry, now) = (self.entry, self.now);
        let state = &mut self.state;
        match what {
            Happened::Publishing {
                sender,
                topic,
                id,
                key,
                digest,
            } => state.publishing(*sender, topic, id, key.as_deref(), *digest, entry),
            Happened::Accepted { id } => state.outcome(id, |m| {
                m.accepted += 1;
                m.accepted_at = Some(now);
            }),
            Happened::Refused { id } => state.outcome(id, |m| m.refused += 1),
            Happened::Uncertain { id } => state.outcome(id, |m| m.uncertain += 1),
            Happened::Joined {
                member,
                topic,
                group,
                earliest,
                prefetch,
                max_attempts,
                lease,
            } => {
                let group = state.group(topic, group, *earliest);
                state.joined(*member, group, *prefetch, *max_attempts, *lease);
                state.changed(group, now);
            }
            Happened::Crashed { member } => state.gone(*member, true, now),
            Happened::Left { member } => state.gone(*member, false, now),
            Happened::Delivered {
                member,
                id,
                topic,
                digest,
                key,
                position,
                attempt,
                deadline,
            } => self.delivered(delivered::Delivered {
                member: *member,
                id,
                topic,
                digest: *digest,
                key: key.as_deref(),
                position: *position,
                attempt: *attempt,
                deadline: *deadline,
            }),
            Happened::Extended {
                member,
                id,
                attempt,
                deadline,
            } => {
                if let Some(copy) = state.held(*member, id, *attempt) {
                    copy.deadline = *deadline;
                }
            }
            Happened::Settling {
                member,
                id,
                attempt,
                how,
                called,
            } => {
                if let Some(copy) = state.held(*member, id, *attempt) {
                    copy.holding = Holding::Settling {
                        how: *how,
                        at: called.unwrap_or(now),
                    };
                    state.let_go(*member);
                }
            }
            Happened::Settled {
                member,
                id,
                attempt,
                how,
                ended,
            } => self.settled((*member, id, *attempt), *how, *ended),
            Happened::Gap { member, .. } => state.gap(*member),
            Happened::Revoked { member, .. } => state.disturb(*member),
            Happened::Waiting { member, on } => state.waits(*member, *on, now),
            Happened::Fault { what, on } => {
                let costs =
                    self.rules.cut_costs_lease && matches!(what, Trouble::Cut | Trouble::Plan);
                state.fault(*what, *on, costs, now, self.rules.receipts_survive);
            }
            Happened::Injected { topic } => {
                state.injected.insert(topic);
            }
            Happened::Taken { topic } => state.taken(topic),
            Happened::Drained => self.drained(),
            Happened::Draining | Happened::Note(_) => {}
        }
    }

    fn settled(&mut self, (member, id, attempt): (u32, &'h str, u32), how: How, ended: Ended) {
        let now = self.now;
        let Some(copy) = self.state.settling(member, id, attempt) else {
            return;
        };
        let Holding::Settling { at: called, .. } = copy.holding else {
            return;
        };
        copy.holding = Holding::Settled {
            how,
            ended,
            called,
            at: now,
        };
        let (deadline, position) = (copy.deadline, copy.position);
        let taken = self.revoked.contains(&(member, position));
        match ended {
            Ended::Lost if now < deadline && !taken && !self.state.troubled() => self.find(
                Flaw::FalseLoss,
                format!("{how:?} of {id} at {now:?}: LeaseLost, the lease ends at {deadline:?}"),
            ),
            Ended::Done if called > deadline => self.find(
                Flaw::LateSettled,
                format!("{how:?} of {id} called at {called:?} was confirmed; the lease had ended at {deadline:?}"),
            ),
            _ => {}
        }
    }
}
