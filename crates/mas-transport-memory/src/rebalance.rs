//! The members of a group and, in a partitioned log, who owns which partition: partitions are
//! shared out evenly and move only when they must; who has to give one up is told, may settle what
//! it holds for a while, and loses the rest.

use std::time::Duration;

use mas_transport_core::{Event, Token};
use tokio::time::Instant;

use crate::group::{Group, earliest};
use crate::leases::MemberId;
use crate::store::Store;

/// A member of a partitioned log whose lease lapses is taken for dead when it has not called for
/// this part of a lease; one that waits in a fetch calls twice as often.
const SILENCE: u32 = 4;
/// When a partition moves as soon as its owner holds nothing of it any more.
const OPEN_END: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    /// Leases in its hands.
    pub(crate) held: usize,
    /// It fetches no more.
    closing: bool,
    /// It has been silent for too long. It is in again when it fetches.
    gone: bool,
    /// It asked for messages when it last fetched.
    wants: bool,
    /// A lease of its lapsed since it last asked for messages.
    lapsed: bool,
    /// When it last called.
    seen: Instant,
    notices: Vec<Notice>,
}

/// What one member is to be told besides messages.
#[derive(Debug)]
enum Notice {
    Revoking { tokens: Vec<Token>, until: Instant },
    Revoked(Vec<Token>),
}

impl Member {
    fn is_there(&self) -> bool {
        !self.closing && !self.gone
    }

    /// One whose handlers hang past their leases, and which takes nothing more, gives up its share
    /// until it does.
    fn takes_part(&self) -> bool {
        self.is_there() && (self.wants || !self.lapsed)
    }
}

impl Group {
    /// A new member.
    pub(crate) fn join(&mut self, now: Instant, store: &Store) -> MemberId {
        let id = self.next_member;
        self.next_member += 1;
        let member = Member {
            held: 0,
            closing: false,
            gone: false,
            wants: true,
            lapsed: false,
            seen: now,
            notices: Vec::new(),
        };
        self.members.insert(id, member);
        self.advance(now, store);
        self.rebalance(now);
        id
    }

    /// A member is heard of.
    pub(crate) fn heard(&mut self, now: Instant, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.seen = now;
        }
    }

    /// A member fetches, messages or only notices; false when it has no business to.
    pub(crate) fn call(&mut self, now: Instant, id: MemberId, wants: bool) -> bool {
        let Some(member) = self.members.get_mut(&id) else {
            return false;
        };
        if member.closing {
            return false;
        }
        member.seen = now;
        let before = member.takes_part();
        member.gone = false;
        member.wants = wants;
        member.lapsed &= !wants;
        if member.takes_part() != before {
            self.rebalance(now);
        }
        true
    }

    /// When a member that waits has to call again to be taken for alive.
    pub(crate) fn next_call(&self, now: Instant) -> Option<Instant> {
        let every = self.leases.length() / (2 * SILENCE);
        self.partitioned.then(|| now + every)
    }

    /// What a member is to be told.
    pub(crate) fn notices(&mut self, id: MemberId, out: &mut Vec<Event>) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        out.extend(member.notices.drain(..).map(|notice| match notice {
            Notice::Revoking { tokens, until } => Event::Revoking { tokens, until },
            Notice::Revoked(tokens) => Event::Revoked(tokens),
        }));
    }

    fn tell(&mut self, id: MemberId, notice: Notice) {
        if let Some(member) = self.members.get_mut(&id)
            && member.is_there()
        {
            member.notices.push(notice);
            self.told.push(id);
        }
    }

    /// A member fetches no more; what it holds it may still settle.
    pub(crate) fn stop(&mut self, now: Instant, id: MemberId) {
        self.unwait(id);
        if let Some(member) = self.members.get_mut(&id) {
            member.closing = true;
            self.rebalance(now);
        }
    }

    /// Whether a member holds nothing, or is gone.
    pub(crate) fn is_drained(&self, id: MemberId) -> bool {
        self.members.get(&id).is_none_or(|m| m.held == 0)
    }

    /// A member is gone. In a queue, what it held stays leased until its time: a handler may still
    /// be at it. In a partitioned log the next owner has it at once.
    pub(crate) fn leave(&mut self, now: Instant, id: MemberId, store: &Store) {
        self.unwait(id);
        if self.partitioned {
            for token in self.leases.tokens(|l| l.member == id) {
                self.take_away(now, token, store);
            }
        }
        self.members.remove(&id);
        self.rebalance(now);
    }

    fn take_away(&mut self, now: Instant, token: Token, store: &Store) {
        if let Some(lease) = self.leases.end(token) {
            self.lapse(now, lease, store);
        }
    }

    /// Something was settled: a partition that waited for it can move.
    pub(crate) fn settled(&mut self, now: Instant, store: &Store) {
        if self.partitioned {
            self.advance_owners(now, store);
        }
    }

    /// A lease of a member lapsed: if the member is silent as well, it is dead; if it takes nothing
    /// more, its handlers hang.
    pub(crate) fn suspect(&mut self, now: Instant, id: MemberId) {
        let patience = self.leases.length() / SILENCE;
        if self.partitioned
            && let Some(member) = self.members.get_mut(&id)
        {
            let before = member.takes_part();
            member.gone |= member.seen + patience <= now;
            member.lapsed = true;
            if before && member.is_there() && !member.takes_part() {
                self.rebalance(now);
            }
        }
    }

    /// Ends what is over: silent members, and the time of owners that have to give up a partition.
    pub(crate) fn advance_owners(&mut self, now: Instant, store: &Store) {
        let session = self.leases.length();
        let mut changed = false;
        for member in self.members.values_mut() {
            member.gone |= !member.closing && member.seen + session <= now;
        }
        for index in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get(index) else {
                break;
            };
            let Some(owner) = lane.owner else {
                continue;
            };
            let (leaving, held) = (lane.leaving, lane.held);
            // What a dead member holds is not in anybody else's way: it comes back by itself.
            let dead = self.members.get(&owner).is_none_or(|m| m.gone);
            if !dead && leaving.is_none_or(|until| held > 0 && until > now) {
                continue;
            }
            if !dead && held > 0 {
                let number = index as u32;
                let tokens = self
                    .leases
                    .tokens(|l| l.lane == number && l.member == owner);
                for token in &tokens {
                    self.take_away(now, *token, store);
                }
                self.tell(owner, Notice::Revoked(tokens));
                // What was taken from it had lapsed as far as it is concerned.
                if let Some(member) = self.members.get_mut(&owner) {
                    member.lapsed = true;
                }
            }
            if let Some(lane) = self.lanes.get_mut(index) {
                (lane.owner, lane.leaving) = (None, None);
                changed = true;
            }
        }
        if changed {
            self.rebalance(now);
        }
    }

    /// When [`Group::advance_owners`] has something to do next.
    pub(crate) fn next_owner_change(&self) -> Option<Instant> {
        let leaving = self.lanes.iter().filter_map(|l| l.leaving).min();
        let present = self.members.values().filter(|m| m.is_there());
        let silent = present.map(|m| m.seen + self.leases.length()).min();
        earliest(leaving, silent)
    }

    /// Shares out the lanes among those who take part: what nobody owns goes to who has fewest,
    /// and who has too many gives some up.
    fn rebalance(&mut self, now: Instant) {
        if !self.partitioned {
            return;
        }
        let present = self.members.iter().filter(|(_, m)| m.takes_part());
        let mut shares: Vec<(usize, MemberId)> = present.map(|(id, _)| (0, *id)).collect();
        // Who does not take part gives up everything.
        for index in 0..self.lanes.len() {
            let owner = self.lanes.get(index).and_then(|lane| lane.owner);
            if owner.is_some_and(|id| !shares.iter().any(|(_, other)| *other == id)) {
                self.give_up(now, index);
            }
        }
        for lane in &self.lanes {
            for share in &mut shares {
                share.0 += usize::from(lane.owner == Some(share.1) && lane.leaving.is_none());
            }
        }
        for lane in &mut self.lanes {
            // What is leaving will go to somebody, too.
            if (lane.owner.is_none() || lane.leaving.is_some())
                && let Some(fewest) = shares.iter_mut().min()
            {
                fewest.0 += 1;
                if lane.owner.is_none() {
                    lane.owner = Some(fewest.1);
                }
            }
        }
        loop {
            let most = shares.iter().copied().max().unwrap_or_default();
            let fewest = shares.iter().copied().min().unwrap_or_default();
            let one = self
                .lanes
                .iter()
                .rposition(|l| l.owner == Some(most.1) && l.leaving.is_none());
            let (Some(one), true) = (one, most.0 > fewest.0 + 1) else {
                return;
            };
            self.give_up(now, one);
            if let Some(lane) = self.lanes.get_mut(one)
                && lane.owner.is_none()
            {
                lane.owner = Some(fewest.1);
            }
            for share in &mut shares {
                if share.1 == most.1 {
                    share.0 -= 1;
                } else if share.1 == fewest.1 {
                    share.0 += 1;
                }
            }
        }
    }

    /// The owner of a lane gives it up: at once when it holds nothing of it, otherwise when it has
    /// settled that, or when its time is over.
    fn give_up(&mut self, now: Instant, index: usize) {
        let number = index as u32;
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        let Some(owner) = lane.owner else {
            return;
        };
        let member = self.members.get(&owner);
        if lane.held == 0 || member.is_none_or(|m| m.gone) {
            (lane.owner, lane.leaving) = (None, None);
            return;
        }
        if lane.leaving.is_some() {
            return;
        }
        if member.is_some_and(|m| m.closing) {
            lane.leaving = Some(now + OPEN_END);
            return;
        }
        let until = now + self.notice;
        lane.leaving = Some(until);
        let tokens = self
            .leases
            .tokens(|l| l.lane == number && l.member == owner);
        self.tell(owner, Notice::Revoking { tokens, until });
    }
}
