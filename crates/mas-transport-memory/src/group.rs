//! One group of one topic: who holds what, what comes back when, who waits. A plain state machine:
//! it is told the time and the entries, and answers with what to do; locks, clocks and wake-ups
//! are its callers'.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use mas_transport_core::backend::TimedLeases;
use mas_transport_core::{Lag, Outcome, Position, Settled, StartFrom, Token, Want};
use tokio::time::Instant;

use crate::leases::{Lease, MemberId};
use crate::rebalance::Member;
use crate::store::{Body, Store};

/// A wait beyond this is as good as for ever.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// An entry that comes back, by its offset, so that the oldest goes out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Again {
    offset: u64,
    past: Past,
}

/// What happened to an entry before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Past {
    /// Attempts that count.
    pub(crate) made: u32,
    /// Its last holder died or let its lease lapse.
    pub(crate) reclaimed: bool,
}

/// The group's place in one partition. A lease queue has one lane, which nobody owns.
#[derive(Debug)]
pub(crate) struct Lane {
    /// The next offset that nobody has fetched yet.
    cursor: u64,
    ready: BinaryHeap<Reverse<Again>>,
    /// Who alone may fetch from it, in a partitioned log.
    pub(crate) owner: Option<MemberId>,
    /// Until when the owner may settle, when the lane is to move to another one.
    pub(crate) leaving: Option<Instant>,
    /// Leases on entries of this lane.
    pub(crate) held: usize,
}

/// A member that waits in a fetch, and when it will look again by itself.
#[derive(Debug)]
struct Waiter {
    member: MemberId,
    armed: Option<Instant>,
}

/// A message as it is handed to a member.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) token: Token,
    pub(crate) body: Body,
    pub(crate) position: Position,
    pub(crate) attempt: u32,
    pub(crate) reclaimed: bool,
    pub(crate) deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) leases: TimedLeases<Lease>,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) members: BTreeMap<MemberId, Member>,
    /// Lanes have owners.
    pub(crate) partitioned: bool,
    /// How long an owner may go on settling what it holds of a lane that is to move.
    pub(crate) notice: Duration,
    /// Members that have been told something and have to look.
    pub(crate) told: Vec<MemberId>,
    /// Where the next fetch begins among the lanes, so that none is always last.
    turn: usize,
    pub(crate) next_member: MemberId,
    delayed: BinaryHeap<Reverse<(Instant, u32, Again)>>,
    /// Entries in `delayed` and in the lanes' `ready`.
    returning: u64,
    /// Kept entries that nobody has fetched yet.
    waiting: u64,
    waiters: Vec<Waiter>,
    /// What was lost and not yet told, and why.
    gap: Option<(&'static str, u64)>,
}

impl Group {
    /// A group that begins to read `store` at `start`; in a partitioned log with the time that an
    /// owner has when it has to give up a partition.
    pub(crate) fn new(
        lease: Duration,
        start: StartFrom,
        partitioned: Option<Duration>,
        store: &mut Store,
    ) -> Self {
        let earliest = start != StartFrom::Latest;
        let lanes = (0..store.partitions()).map(|p| Lane {
            cursor: if earliest {
                store.base(p)
            } else {
                store.next(p)
            },
            ready: BinaryHeap::new(),
            owner: None,
            leaving: None,
            held: 0,
        });
        Self {
            leases: TimedLeases::new(lease),
            lanes: lanes.collect(),
            members: BTreeMap::new(),
            partitioned: partitioned.is_some(),
            notice: partitioned.unwrap_or_default(),
            told: Vec::new(),
            turn: 0,
            next_member: 0,
            delayed: BinaryHeap::new(),
            returning: 0,
            waiting: if earliest { store.join() } else { 0 },
            waiters: Vec::new(),
            gap: None,
        }
    }

    /// Something was appended.
    pub(crate) fn published(&mut self, entries: u64) {
        self.waiting += entries;
    }

    pub(crate) fn lag(&self) -> Lag {
        Lag {
            waiting: self.waiting,
            pending: self.leases.live() as u64 + self.returning,
        }
    }

    /// What was lost since this was asked last.
    pub(crate) fn take_gap(&mut self) -> Option<(&'static str, u64)> {
        self.gap.take()
    }

    pub(crate) fn lose(&mut self, why: &'static str, entries: u64) {
        let before = self.gap.map_or(0, |(_, lost)| lost);
        self.gap = Some((why, before + entries));
    }

    /// Brings the state up to `now`: what is due comes back, what is overdue is taken away.
    pub(crate) fn advance(&mut self, now: Instant, store: &Store) {
        while let Some(&Reverse((due, lane, again))) = self.delayed.peek()
            && due <= now
        {
            self.delayed.pop();
            if let Some(lane) = self.lanes.get_mut(lane as usize) {
                lane.ready.push(Reverse(again));
            }
        }
        while let Some(lease) = self.leases.expire(now) {
            self.suspect(now, lease.member);
            self.lapse(now, lease, store);
        }
        if self.partitioned {
            self.advance_owners(now, store);
        }
    }

    /// A lease has ended without its holder's doing.
    pub(crate) fn lapse(&mut self, now: Instant, lease: Lease, store: &Store) {
        self.ended(&lease);
        let past = Past {
            made: lease.attempts_made(),
            reclaimed: true,
        };
        self.come_back(now, &lease, past, Duration::ZERO, store);
    }

    fn ended(&mut self, lease: &Lease) {
        if let Some(member) = self.members.get_mut(&lease.member) {
            member.held = member.held.saturating_sub(1);
        }
        if let Some(lane) = self.lanes.get_mut(lease.lane as usize) {
            lane.held = lane.held.saturating_sub(1);
        }
    }

    fn come_back(&mut self, now: Instant, was: &Lease, past: Past, delay: Duration, store: &Store) {
        if !store.keeps(was.lane as usize, was.offset) {
            return self.lose("entries were removed before they were settled", 1);
        }
        let again = Again {
            offset: was.offset,
            past,
        };
        self.returning += 1;
        if delay.is_zero() {
            if let Some(lane) = self.lanes.get_mut(was.lane as usize) {
                lane.ready.push(Reverse(again));
            }
        } else {
            let due = now.checked_add(delay).unwrap_or_else(|| now + FAR);
            self.delayed.push(Reverse((due, was.lane, again)));
        }
    }

    /// Hands a member what it wants and may have: first what comes back, then what is new.
    /// Call [`Group::advance`] first.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        member: MemberId,
        want: Want,
        store: &Store,
        out: &mut Vec<Taken>,
    ) {
        let before = out.len();
        let mut room = want;
        let lanes = self.lanes.len();
        self.turn = self.turn.wrapping_add(1);
        for new in [false, true] {
            for lane in 0..lanes {
                let lane = (self.turn.wrapping_add(lane)) % lanes;
                if room.messages > 0 && self.serves(lane, member) {
                    self.take_lane(now, member, lane, new, &mut room, store, out);
                }
            }
        }
        if let Some(member) = self.members.get_mut(&member) {
            member.held += out.len() - before;
        }
    }

    fn serves(&self, lane: usize, member: MemberId) -> bool {
        let Some(lane) = self.lanes.get(lane) else {
            return false;
        };
        !self.partitioned || (lane.owner == Some(member) && lane.leaving.is_none())
    }

    #[expect(clippy::too_many_arguments, reason = "the inner loop of `take`")]
    fn take_lane(
        &mut self,
        now: Instant,
        member: MemberId,
        index: usize,
        new: bool,
        room: &mut Want,
        store: &Store,
        out: &mut Vec<Taken>,
    ) {
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        let end = store.next(index);
        let first = out.is_empty();
        while room.messages > 0 {
            let (offset, past) = if new {
                if lane.cursor >= end {
                    return;
                }
                (lane.cursor, Past::default())
            } else {
                match lane.ready.peek() {
                    Some(Reverse(again)) => (again.offset, again.past),
                    None => return,
                }
            };
            let entry = store.get(index, offset);
            if let Some((_, bytes)) = entry
                && room.bytes < bytes as usize
                && !(first && out.is_empty())
            {
                // Nothing smaller overtakes it.
                room.messages = 0;
                return;
            }
            if new {
                lane.cursor += 1;
            } else {
                lane.ready.pop();
                self.returning -= 1;
            }
            let Some((body, bytes)) = entry else {
                // Removed while it waited to come back: counted when it was removed.
                continue;
            };
            if new {
                self.waiting -= 1;
            }
            lane.held += 1;
            room.messages -= 1;
            room.bytes = room.bytes.saturating_sub(bytes as usize);
            let at = index as u32;
            let (token, deadline) = self
                .leases
                .grant(now, Lease::new((at, offset), member, past));
            out.push(Taken {
                token,
                body: body.clone(),
                position: Position {
                    major: u64::from(at),
                    minor: offset,
                },
                attempt: past.made.saturating_add(1),
                reclaimed: past.reclaimed,
                deadline,
            });
        }
    }

    /// The lease that a member's token names. Call [`Group::advance`] first.
    pub(crate) fn held(&self, member: MemberId, token: Token) -> Option<&Lease> {
        self.leases.get(token).filter(|l| l.member == member)
    }

    /// Settles one token of a member; None when its lease is lost. The two outcomes that append
    /// elsewhere first count as acks here. Call [`Group::advance`] first.
    pub(crate) fn settle(
        &mut self,
        now: Instant,
        member: MemberId,
        token: Token,
        outcome: &Outcome,
        store: &mut Store,
        dropped: &mut Vec<Body>,
    ) -> Option<Settled> {
        let lane = self.held(member, token)?.lane;
        if let Outcome::Begin | Outcome::Extend = outcome {
            let begun = matches!(outcome, Outcome::Begin);
            let deadline = self
                .leases
                .renew(now, token, |lease| lease.counted |= begun)?;
            // A partition that is to move ends the lease earlier.
            let leaving = self.lanes.get(lane as usize).and_then(|l| l.leaving);
            return earliest(Some(deadline), leaving).map(Settled::Lease);
        }
        let lease = self.leases.end(token)?;
        self.ended(&lease);
        match outcome {
            Outcome::Nack(delay) => {
                let past = Past {
                    made: lease.attempt(),
                    reclaimed: false,
                };
                self.come_back(now, &lease, past, *delay, store);
            }
            Outcome::Return => self.come_back(now, &lease, lease.past, Duration::ZERO, store),
            _ => store.settle(lease.lane as usize, lease.offset, dropped),
        }
        Some(Settled::Done)
    }

    /// Gives back everything that a member holds at the end of its close. It gave back by itself what
    /// it had not handed out, so these are attempts.
    pub(crate) fn return_all(&mut self, now: Instant, member: MemberId, store: &Store) {
        for token in self.leases.tokens(|l| l.member == member) {
            if let Some(lease) = self.leases.end(token) {
                self.ended(&lease);
                let past = Past {
                    made: lease.attempts_made(),
                    ..lease.past
                };
                self.come_back(now, &lease, past, Duration::ZERO, store);
            }
        }
    }

    /// The next time at which [`Group::advance`] has something to do.
    pub(crate) fn next_due(&mut self) -> Option<Instant> {
        let delayed = self.delayed.peek().map(|Reverse((due, ..))| *due);
        let mut next = earliest(delayed, self.leases.next_deadline());
        if self.partitioned {
            next = earliest(next, self.next_owner_change());
        }
        next
    }

    /// A member begins to wait for messages; answers when it has to look again by itself.
    pub(crate) fn wait(&mut self, member: MemberId) -> Option<Instant> {
        let armed = self.next_due();
        self.waiters.push(Waiter { member, armed });
        armed
    }

    /// A member waits no more.
    pub(crate) fn unwait(&mut self, member: MemberId) {
        self.waiters.retain(|w| w.member != member);
    }

    /// Takes out of the waiting line those members that have to look now: one for what a lease
    /// queue has, each owner of what a partitioned log has, and one to keep the time if nobody
    /// looks early enough.
    pub(crate) fn wake(&mut self, store: &Store, out: &mut Vec<MemberId>) {
        out.append(&mut self.told);
        if self.waiters.is_empty() {
            return;
        }
        let before = out.len();
        if self.partitioned {
            let waiters = std::mem::take(&mut self.waiters);
            for waiter in waiters {
                if self.has_work(waiter.member, store) {
                    out.push(waiter.member);
                } else {
                    self.waiters.push(waiter);
                }
            }
        } else if let Some(first) = self.waiters.first()
            && self.has_work(first.member, store)
        {
            out.push(self.waiters.remove(0).member);
        }
        if out.len() == before
            && let Some(due) = self.next_due()
            && !self
                .waiters
                .iter()
                .any(|w| w.armed.is_some_and(|armed| armed <= due))
            && !self.waiters.is_empty()
        {
            out.push(self.waiters.remove(0).member);
        }
    }

    fn has_work(&self, member: MemberId, store: &Store) -> bool {
        self.gap.is_some()
            || self.lanes.iter().enumerate().any(|(index, lane)| {
                (lane.cursor < store.next(index) || !lane.ready.is_empty())
                    && self.serves(index, member)
            })
    }

    /// The oldest entries were removed up to the stores' bases: forgets what is gone, and counts
    /// what this group had not settled. What a member holds is counted when it comes back.
    /// Whether anything was lost.
    pub(crate) fn trimmed(&mut self, why: &'static str, store: &Store) -> bool {
        let before = self.waiting + self.returning;
        let mut waiting = 0;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.cursor = lane.cursor.max(store.base(index));
            waiting += store.kept_from(index, lane.cursor);
            lane.ready.retain(|Reverse(a)| store.keeps(index, a.offset));
        }
        self.delayed
            .retain(|Reverse((_, lane, a))| store.keeps(*lane as usize, a.offset));
        let ready: usize = self.lanes.iter().map(|l| l.ready.len()).sum();
        self.waiting = waiting;
        self.returning = (ready + self.delayed.len()) as u64;
        let lost = before - self.waiting - self.returning;
        if lost > 0 {
            self.lose(why, lost);
        }
        lost > 0
    }

    /// The broker lost its state: nobody holds anything, and everything unsettled is gone.
    pub(crate) fn wiped(&mut self, now: Instant, store: &Store) {
        let unsettled = self.waiting + self.returning + self.leases.live() as u64;
        let untold = self.gap.take().map_or(0, |(_, lost)| lost);
        self.forget(now, store);
        self.trimmed("", store);
        // Told even when nothing was lost that can be counted: who published may know better.
        self.gap = Some(("the broker lost its state", unsettled + untold));
    }

    /// The broker forgot who holds what: every lease ends, and everything that is not settled
    /// comes again as if for the first time.
    pub(crate) fn forget(&mut self, now: Instant, store: &Store) {
        for token in self.leases.tokens(|_| true) {
            if let Some(lease) = self.leases.end(token) {
                self.ended(&lease);
                self.come_back(now, &lease, Past::default(), Duration::ZERO, store);
            }
        }
        let delayed = std::mem::take(&mut self.delayed);
        for Reverse((_, lane, again)) in delayed {
            if let Some(lane) = self.lanes.get_mut(lane as usize) {
                lane.ready.push(Reverse(again));
            }
        }
        for lane in &mut self.lanes {
            let ready = std::mem::take(&mut lane.ready);
            let fresh = ready.into_iter().map(|Reverse(a)| {
                Reverse(Again {
                    offset: a.offset,
                    past: Past::default(),
                })
            });
            lane.ready = fresh.collect();
        }
    }
}

pub(crate) fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
