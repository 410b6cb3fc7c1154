//! A member's share of its topic: which partitions it owns, what it holds of them, what comes back when.
//! A plain state machine: it is told the time and what was read, and answers with what to hand out and
//! what to commit; locks, clocks and the client are its callers'.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::backend::TimedLeases;
use mas_transport_core::{Outcome, Position, Token, Want};
use tokio::time::Instant;

use crate::mark::Past;
use crate::record::Raw;
use crate::tracker::{Arrival, Snapshot, Tracker};

/// How far beyond what was fetched a commit says that it may have been. A member reads on within it
/// without waiting for the next one.
pub(crate) const AHEAD: u64 = 128;
/// How much a member keeps in memory of what was read and is not settled, what waits for a delay included,
/// before it reads on.
const MOST_BYTES: usize = 128 << 20;
/// A wait beyond this is as good as for ever.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Now, by the clock of leases and by that of other members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    /// Unix milliseconds.
    pub(crate) utc: u64,
}

impl Now {
    /// When a delay from now is over, in unix milliseconds, not a moment too early.
    fn utc_after(&self, delay: Duration) -> u64 {
        let millis = delay.as_nanos().div_ceil(1_000_000);
        let at = u64::try_from(millis)
            .ok()
            .and_then(|m| self.utc.checked_add(m));
        at.map_or(u64::MAX, |at| at + u64::from(!delay.is_zero()))
    }

    fn instant_of(&self, utc: u64) -> Instant {
        let wait = Duration::from_millis(utc.saturating_sub(self.utc)).min(FAR);
        self.instant + wait
    }
}

/// What is known of one message in the hands of the application.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    partition: i32,
    offset: u64,
    past: Past,
    /// Whether the attempt counts if the lease ends by itself.
    counted: bool,
}

impl Lease {
    fn attempt(&self) -> u32 {
        self.past.made.saturating_add(1)
    }

    fn attempts_made(&self) -> u32 {
        self.past.made.saturating_add(u32::from(self.counted))
    }
}

/// A message as it is handed out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) token: Token,
    pub(crate) raw: Arc<Raw>,
    pub(crate) position: Position,
    pub(crate) attempt: u32,
    pub(crate) reclaimed: bool,
    pub(crate) deadline: Instant,
}

/// One partition.
#[derive(Debug)]
struct Part<W> {
    epoch: u64,
    tracker: Tracker<Arc<Raw>>,
    /// What may be handed out, the oldest first.
    ready: BinaryHeap<Reverse<u64>>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    /// What lies below may be handed out: whoever owns the partition next knows of it.
    reach: u64,
    /// Until when what is held of it may be settled, when it is to be given up.
    leaving: Option<Instant>,
    held: usize,
    /// Of what was read and is not settled.
    bytes: usize,
    /// Of which change the last commit knows.
    committed: Option<u64>,
    waiters: Vec<Waiter<W>>,
}

/// Who waits for a commit that holds a change.
#[derive(Debug)]
struct Waiter<W> {
    offset: u64,
    change: u64,
    noted: bool,
    who: W,
}

/// What a settlement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It counts when a commit holds it; or, where it need not be noted, when one was taken after it.
    Wait {
        partition: i32,
        offset: u64,
        change: u64,
        noted: bool,
    },
    /// The lease lasts until then.
    Lease(Instant),
    /// There is nothing that anybody would have to know.
    Done,
}

/// What to commit of one partition.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) partition: i32,
    pub(crate) epoch: u64,
    pub(crate) snapshot: Snapshot,
    /// Up to where it says that records may have been fetched.
    reach: u64,
}

/// What a member owns and holds. `W` is who waits for commits.
#[derive(Debug)]
pub(crate) struct Share<W> {
    leases: TimedLeases<Lease>,
    parts: BTreeMap<i32, Part<W>>,
    epochs: u64,
    /// Where the next hand-out begins among the partitions, so that none is always last.
    turn: usize,
    /// A lease has ended by itself since messages were last asked for.
    pub(crate) lapsed: bool,
}

impl<W> Share<W> {
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            leases: TimedLeases::new(lease),
            parts: BTreeMap::new(),
            epochs: 0,
            turn: 0,
            lapsed: false,
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.leases.length()
    }

    /// A partition is this member's.
    pub(crate) fn own(&mut self, partition: i32, tracker: Tracker<Arc<Raw>>) {
        self.epochs += 1;
        let part = Part {
            epoch: self.epochs,
            reach: tracker.position(),
            tracker,
            ready: BinaryHeap::new(),
            delayed: BinaryHeap::new(),
            leaving: None,
            held: 0,
            bytes: 0,
            committed: None,
            waiters: Vec::new(),
        };
        self.parts.insert(partition, part);
    }

    pub(crate) fn partitions(&self) -> Vec<i32> {
        self.parts.keys().copied().collect()
    }

    /// The partitions of which everything that was read is settled, and where reading goes on.
    pub(crate) fn idle(&self) -> Vec<(i32, u64)> {
        let idle =
            |(_, part): &(&i32, &Part<W>)| part.leaving.is_none() && part.tracker.open() == 0;
        let parts = self.parts.iter().filter(idle);
        parts.map(|(p, part)| (*p, part.tracker.next())).collect()
    }

    /// Where reading of a partition goes on.
    pub(crate) fn next(&self, partition: i32) -> Option<u64> {
        self.parts.get(&partition).map(|part| part.tracker.next())
    }

    /// A partition is to be given up by `until`: which leases end then.
    pub(crate) fn leave(&mut self, partition: i32, until: Instant) -> Vec<Token> {
        let Some(part) = self.parts.get_mut(&partition) else {
            return Vec::new();
        };
        part.leaving = Some(until);
        self.leases.tokens(|lease| lease.partition == partition)
    }

    /// Whether there are partitions to be given up.
    pub(crate) fn leaves(&self) -> bool {
        self.parts.values().any(|part| part.leaving.is_some())
    }

    /// Whether nothing is held of a partition.
    pub(crate) fn is_free(&self, partition: i32) -> bool {
        self.parts.get(&partition).is_none_or(|part| part.held == 0)
    }

    /// Takes what is held of a partition out of its holders' hands; it comes back.
    pub(crate) fn take_back(&mut self, partition: i32, now: Now) -> Vec<Token> {
        self.take_from(now, |lease| lease.partition == partition)
    }

    fn take_from(&mut self, now: Now, which: impl Fn(&Lease) -> bool) -> Vec<Token> {
        let tokens = self.leases.tokens(which);
        for token in &tokens {
            if let Some(lease) = self.leases.end(*token) {
                self.lapse(now, lease);
            }
        }
        tokens
    }

    /// A partition is somebody else's: which leases are lost, and who waited for commits.
    pub(crate) fn release(&mut self, partition: i32) -> (Vec<Token>, Vec<W>) {
        let tokens = self.leases.tokens(|lease| lease.partition == partition);
        for token in &tokens {
            self.leases.end(*token);
        }
        let part = self.parts.remove(&partition);
        let waiters = part.map(|part| part.waiters).unwrap_or_default();
        (tokens, waiters.into_iter().map(|w| w.who).collect())
    }

    /// How many records of a partition may be read now.
    pub(crate) fn room(&self, partition: i32) -> usize {
        match self.parts.get(&partition) {
            Some(part) if part.leaving.is_none() && self.bytes() < MOST_BYTES => {
                part.tracker.room()
            }
            _ => 0,
        }
    }

    /// What is kept in memory.
    fn bytes(&self) -> usize {
        self.parts.values().map(|part| part.bytes).sum()
    }

    /// How many records wait to be handed out.
    pub(crate) fn ready(&self) -> usize {
        self.parts.values().map(|part| part.ready.len()).sum()
    }

    /// A record was read; false when it is none of ours any more.
    pub(crate) fn arrived(&mut self, now: Now, partition: i32, offset: u64, raw: Raw) -> bool {
        let Some(part) = self.parts.get_mut(&partition) else {
            return false;
        };
        let bytes = raw.size();
        if let Arrival::New(past) = part.tracker.fetched(offset, Arc::new(raw)) {
            part.bytes += bytes;
            match past.due.filter(|due| *due > now.utc) {
                Some(due) => part.delayed.push(Reverse((now.instant_of(due), offset))),
                None => part.ready.push(Reverse(offset)),
            }
        }
        true
    }

    /// The log of a partition begins later: how many records are gone that had not been read.
    pub(crate) fn skip_to(&mut self, partition: i32, offset: u64) -> u64 {
        let part = self.parts.get_mut(&partition);
        part.map_or(0, |part| part.tracker.skip_to(offset))
    }

    /// Brings the state up to now: what is due comes back, what is overdue is taken away.
    pub(crate) fn advance(&mut self, now: Now) {
        for part in self.parts.values_mut() {
            while let Some(&Reverse((due, offset))) = part.delayed.peek()
                && due <= now.instant
            {
                part.delayed.pop();
                part.ready.push(Reverse(offset));
            }
        }
        while let Some(lease) = self.leases.expire(now.instant) {
            self.lapsed = true;
            self.lapse(now, lease);
        }
    }

    /// A lease has ended without its holder's doing.
    fn lapse(&mut self, now: Now, lease: Lease) {
        let past = Past {
            made: lease.attempts_made(),
            reclaimed: true,
            due: None,
        };
        self.come_back(now, &lease, past, Duration::ZERO, true);
    }

    fn come_back(
        &mut self,
        now: Now,
        lease: &Lease,
        past: Past,
        delay: Duration,
        noted: bool,
    ) -> Option<u64> {
        let part = self.parts.get_mut(&lease.partition)?;
        part.held = part.held.saturating_sub(1);
        if noted {
            part.tracker.note(lease.offset, past);
        }
        if delay.is_zero() {
            part.ready.push(Reverse(lease.offset));
        } else {
            let due = now
                .instant
                .checked_add(delay)
                .unwrap_or_else(|| now.instant + FAR);
            part.delayed.push(Reverse((due, lease.offset)));
        }
        Some(part.tracker.change())
    }

    /// Hands out what is wanted: of each partition what is oldest. Call [`advance`](Self::advance)
    /// first.
    pub(crate) fn take(&mut self, now: Now, want: Want, out: &mut Vec<Taken>) {
        let mut room = want;
        self.turn = self.turn.wrapping_add(1);
        let count = self.parts.len();
        let order: Vec<i32> = self.parts.keys().copied().collect();
        for at in 0..count {
            let Some(&partition) = order.get((self.turn.wrapping_add(at)) % count) else {
                continue;
            };
            let Some(part) = self.parts.get_mut(&partition) else {
                continue;
            };
            while room.messages > 0
                && part.leaving.is_none()
                && let Some(&Reverse(offset)) = part.ready.peek()
                && offset < part.reach
            {
                let (Some(raw), Some(past)) = (part.tracker.get(offset), part.tracker.past(offset))
                else {
                    // Settled meanwhile.
                    part.ready.pop();
                    continue;
                };
                let bytes = raw.size();
                if room.bytes < bytes && !out.is_empty() {
                    // Nothing smaller overtakes it.
                    return;
                }
                part.ready.pop();
                part.held += 1;
                room.messages -= 1;
                room.bytes = room.bytes.saturating_sub(bytes);
                let lease = Lease {
                    partition,
                    offset,
                    past,
                    counted: past.made == 0,
                };
                let raw = raw.clone();
                let (token, deadline) = self.leases.grant(now.instant, lease);
                out.push(Taken {
                    token,
                    raw,
                    position: Position {
                        major: u64::try_from(partition).unwrap_or_default(),
                        minor: offset,
                    },
                    attempt: lease.attempt(),
                    reclaimed: past.reclaimed,
                    deadline,
                });
            }
        }
    }

    /// Whether a commit is needed before what was read may be handed out, or soon will be.
    pub(crate) fn wants_commit(&self) -> bool {
        self.parts
            .values()
            .any(|part| part.leaving.is_none() && part.tracker.next() + AHEAD / 2 > part.reach)
    }

    /// Whether something was read that only a commit keeps from being handed out.
    pub(crate) fn is_held_up(&self) -> bool {
        self.parts.values().any(|part| {
            let first = part.ready.peek();
            part.leaving.is_none() && first.is_some_and(|Reverse(offset)| *offset >= part.reach)
        })
    }

    /// What was read of what is held under a token.
    pub(crate) fn held(&self, token: Token) -> Option<Arc<Raw>> {
        let lease = self.leases.get(token)?;
        let part = self.parts.get(&lease.partition)?;
        part.tracker.get(lease.offset).cloned()
    }

    /// Settles one token; `None` when its lease is lost. The two outcomes that append elsewhere first
    /// count as acks here. Call [`advance`](Self::advance) first.
    pub(crate) fn settle(&mut self, now: Now, token: Token, outcome: &Outcome) -> Option<Step> {
        let lease = *self.leases.get(token)?;
        let wait = |change| Step::Wait {
            partition: lease.partition,
            offset: lease.offset,
            change,
            // What is nacked at once comes again also where there was no room to note it: only its attempt
            // counts for less then. It would wait for others that are settled, and they perhaps for it.
            noted: !matches!(outcome, Outcome::Nack(delay) if delay.is_zero()),
        };
        match outcome {
            Outcome::Extend => {
                let deadline = self.leases.renew(now.instant, token, |_| ())?;
                Some(Step::Lease(self.until(&lease, deadline)))
            }
            Outcome::Begin => {
                self.leases
                    .renew(now.instant, token, |lease| lease.counted = true)?;
                let part = self.parts.get_mut(&lease.partition)?;
                let past = Past {
                    made: lease.attempt(),
                    reclaimed: lease.past.reclaimed,
                    due: None,
                };
                part.tracker.note(lease.offset, past);
                Some(wait(part.tracker.change()))
            }
            Outcome::Nack(delay) => {
                self.leases.end(token)?;
                let past = Past {
                    made: lease.attempt(),
                    reclaimed: false,
                    due: Some(now.utc_after(*delay)),
                };
                self.come_back(now, &lease, past, *delay, true).map(wait)
            }
            Outcome::Return => {
                self.leases.end(token)?;
                // What was begun has to be taken back.
                let begun = lease.counted && lease.past.made > 0;
                let change = self.come_back(now, &lease, lease.past, Duration::ZERO, begun)?;
                Some(if begun { wait(change) } else { Step::Done })
            }
            Outcome::Ack | Outcome::DeadLetter(_) | Outcome::Quarantine(_) => {
                self.leases.end(token)?;
                let part = self.parts.get_mut(&lease.partition)?;
                part.held = part.held.saturating_sub(1);
                let settled = part.tracker.settle(lease.offset);
                let bytes = settled.map_or(0, |raw| raw.size());
                part.bytes = part.bytes.saturating_sub(bytes);
                Some(wait(part.tracker.change()))
            }
        }
    }

    /// A partition that is to be given up ends its leases earlier.
    fn until(&self, lease: &Lease, deadline: Instant) -> Instant {
        let leaving = self.parts.get(&lease.partition).and_then(|p| p.leaving);
        leaving.map_or(deadline, |until| until.min(deadline))
    }

    /// Renews the lease of a token, because the commit that begins it takes its time.
    pub(crate) fn renew(&mut self, now: Now, token: Token) -> Option<Instant> {
        let lease = *self.leases.get(token)?;
        let deadline = self.leases.renew(now.instant, token, |_| ())?;
        Some(self.until(&lease, deadline))
    }

    /// Enters who waits for a change to be committed; gives it back if the partition is gone.
    pub(crate) fn wait_for(
        &mut self,
        partition: i32,
        offset: u64,
        change: u64,
        noted: bool,
        who: W,
    ) -> Option<W> {
        match self.parts.get_mut(&partition) {
            Some(part) => {
                part.waiters.push(Waiter {
                    offset,
                    change,
                    noted,
                    who,
                });
                None
            }
            None => Some(who),
        }
    }

    /// The next time at which [`advance`](Self::advance) has something to do.
    pub(crate) fn next_due(&mut self) -> Option<Instant> {
        let delayed = self.parts.values().filter_map(|part| part.delayed.peek());
        let delayed = delayed.map(|Reverse((due, _))| *due).min();
        match (delayed, self.leases.next_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// How many messages are in the hands of the application.
    pub(crate) fn live(&self) -> usize {
        self.leases.live()
    }

    /// Ends every lease: what is held comes back. It was handed out, so it is an attempt.
    pub(crate) fn return_all(&mut self, now: Now) {
        self.take_from(now, |_| true);
    }

    /// What to commit: of one partition that is given up, all that is known of it; of the others what
    /// changed, and how far may be read on.
    pub(crate) fn commits(&self, giving_up: Option<&[i32]>) -> Vec<Commit> {
        let mut commits = Vec::new();
        for (&partition, part) in &self.parts {
            let clean = match giving_up {
                Some(which) if !which.contains(&partition) => continue,
                Some(_) => true,
                None => false,
            };
            let ahead = part.leaving.is_none().then_some(AHEAD);
            let wants_room = ahead.is_some() && part.tracker.next() + AHEAD / 2 > part.reach;
            if !clean && !wants_room && part.committed == Some(part.tracker.change()) {
                continue;
            }
            // One that is being given up is read no further, and may still hold something.
            let reach = match (clean, ahead) {
                (true, _) => None,
                (false, ahead) => Some(ahead.unwrap_or_default()),
            };
            commits.push(Commit {
                partition,
                epoch: part.epoch,
                snapshot: part.tracker.snapshot(self.leases.length(), reach),
                reach: part.tracker.next() + reach.unwrap_or_default(),
            });
        }
        commits
    }

    /// A commit was taken: who waited for what is in it.
    pub(crate) fn committed(&mut self, commit: &Commit) -> Vec<W> {
        let Some(part) = self.parts.get_mut(&commit.partition) else {
            return Vec::new();
        };
        if part.epoch != commit.epoch {
            return Vec::new();
        }
        part.committed = Some(commit.snapshot.change);
        part.reach = part.reach.max(commit.reach);
        let (done, waiting) = std::mem::take(&mut part.waiters)
            .into_iter()
            .partition(|w| match w.noted {
                true => commit.snapshot.holds(w.offset, w.change),
                false => commit.snapshot.change >= w.change,
            });
        part.waiters = waiting;
        let done: Vec<Waiter<W>> = done;
        done.into_iter().map(|w| w.who).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_nack_without_room_for_its_note_is_confirmed_unless_it_says_when() {
        const MANY: u64 = 1000;
        let now = Now {
            instant: Instant::now(),
            utc: 1_700_000_000_000,
        };
        let mut confirmed = [0, 0];
        for (at, delay) in [Duration::ZERO, Duration::from_secs(9)]
            .into_iter()
            .enumerate()
        {
            let mut share = Share::new(Duration::from_secs(30));
            share.own(0, Tracker::restored(0, None, MANY));
            for offset in 0..MANY {
                assert!(share.arrived(now, 0, offset, Raw::default()));
            }
            for commit in share.commits(None) {
                share.committed(&commit);
            }
            let mut taken = Vec::new();
            share.take(now, Want::new(1000, usize::MAX), &mut taken);
            assert_eq!(taken.len(), 1000);
            for (who, taken) in taken.iter().enumerate() {
                let step = share.settle(now, taken.token, &Outcome::Nack(delay));
                let Some(Step::Wait {
                    partition,
                    offset,
                    change,
                    noted,
                }) = step
                else {
                    panic!("{step:?}");
                };
                assert_eq!(share.wait_for(partition, offset, change, noted, who), None);
            }
            for commit in share.commits(None) {
                confirmed[at] += share.committed(&commit).len();
            }
        }
        assert_eq!(confirmed[0], 1000);
        assert!((64..1000).contains(&confirmed[1]), "{confirmed:?}");
    }
}
