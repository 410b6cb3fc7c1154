//! The leases of one group: a slab with generations and a queue of deadlines. As every lease of a
//! group has the same length, deadlines are appended in order, and what was settled or renewed in
//! the meantime is skipped when its entry comes to the front. A plain structure: no locks, no
//! clock.

use std::collections::VecDeque;
use std::time::Duration;

use mas_transport_core::Token;
use tokio::time::Instant;

use crate::group::Past;

/// Names a member within its group; never used twice.
pub(crate) type MemberId = u32;

/// One message in the hands of one member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) lane: u32,
    pub(crate) offset: u64,
    pub(crate) member: MemberId,
    /// What had happened before.
    pub(crate) past: Past,
    /// Whether the attempt counts if the member dies now.
    pub(crate) counted: bool,
    pub(crate) deadline: Instant,
}

impl Lease {
    /// Which attempt this is.
    pub(crate) fn attempt(&self) -> u32 {
        self.past.made.saturating_add(1)
    }

    /// How many attempts count once this lease has ended by itself.
    pub(crate) fn attempts_made(&self) -> u32 {
        self.past.made.saturating_add(u32::from(self.counted))
    }
}

#[derive(Debug, Default)]
struct Cell {
    generation: u32,
    lease: Option<Lease>,
}

#[derive(Debug)]
pub(crate) struct Leases {
    length: Duration,
    cells: Vec<Cell>,
    free: Vec<u32>,
    live: usize,
    deadlines: VecDeque<(Instant, Token)>,
}

/// Stale deadlines are swept out when they outnumber the live ones by this.
const STALE: usize = 1024;

impl Leases {
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            cells: Vec::new(),
            free: Vec::new(),
            live: 0,
            deadlines: VecDeque::new(),
        }
    }

    pub(crate) fn length(&self) -> Duration {
        self.length
    }

    /// How many there are.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Leases an entry to a member from `now` on.
    pub(crate) fn grant(
        &mut self,
        now: Instant,
        (lane, offset): (u32, u64),
        member: MemberId,
        past: Past,
    ) -> (Token, Instant) {
        let deadline = now + self.length;
        let lease = Lease {
            lane,
            offset,
            member,
            past,
            // A first hand-out is not begun at the broker, so it counts from the fetch on.
            counted: past.made == 0,
            deadline,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.cells.push(Cell::default());
            // A group has far fewer leases than this: each of them is a message in memory.
            u32::try_from(self.cells.len() - 1).unwrap_or(u32::MAX)
        });
        let mut token = Token {
            slot,
            generation: 0,
        };
        if let Some(cell) = self.cells.get_mut(slot as usize) {
            token.generation = cell.generation;
            cell.lease = Some(lease);
            self.live += 1;
        }
        self.queue(deadline, token);
        (token, deadline)
    }

    fn queue(&mut self, deadline: Instant, token: Token) {
        if self.deadlines.len() >= 2 * self.live + STALE {
            let cells = &self.cells;
            self.deadlines
                .retain(|(at, token)| is_current(cells, *at, *token));
        }
        self.deadlines.push_back((deadline, token));
    }

    /// The live lease of a token.
    pub(crate) fn get(&self, token: Token) -> Option<&Lease> {
        let cell = self.cells.get(token.slot as usize)?;
        let lease = cell.lease.as_ref()?;
        (cell.generation == token.generation).then_some(lease)
    }

    /// Starts a live lease anew, and counts its attempt if `begun`.
    pub(crate) fn renew(&mut self, now: Instant, token: Token, begun: bool) -> Option<Instant> {
        let cell = self.cells.get_mut(token.slot as usize)?;
        let lease = cell.lease.as_mut()?;
        if cell.generation != token.generation {
            return None;
        }
        let deadline = now + self.length;
        lease.deadline = deadline;
        lease.counted |= begun;
        self.queue(deadline, token);
        Some(deadline)
    }

    /// Ends a live lease.
    pub(crate) fn end(&mut self, token: Token) -> Option<Lease> {
        let cell = self.cells.get_mut(token.slot as usize)?;
        if cell.generation != token.generation {
            return None;
        }
        let lease = cell.lease.take()?;
        cell.generation = cell.generation.wrapping_add(1);
        self.free.push(token.slot);
        self.live -= 1;
        Some(lease)
    }

    /// Ends one lease whose time has come.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Lease> {
        let (at, token) = self.front()?;
        if at > now {
            return None;
        }
        self.deadlines.pop_front();
        self.end(token)
    }

    /// When the next lease ends by itself.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        self.front().map(|(at, _)| at)
    }

    fn front(&mut self) -> Option<(Instant, Token)> {
        loop {
            let (at, token) = *self.deadlines.front()?;
            if is_current(&self.cells, at, token) {
                return Some((at, token));
            }
            self.deadlines.pop_front();
        }
    }

    /// The live leases that `which` picks, in no particular order.
    pub(crate) fn tokens(&self, which: impl Fn(&Lease) -> bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        for (slot, cell) in self.cells.iter().enumerate() {
            if let Some(lease) = &cell.lease
                && which(lease)
            {
                tokens.push(Token {
                    slot: u32::try_from(slot).unwrap_or(u32::MAX),
                    generation: cell.generation,
                });
            }
        }
        tokens
    }
}

fn is_current(cells: &[Cell], at: Instant, token: Token) -> bool {
    cells.get(token.slot as usize).is_some_and(|cell| {
        let current = cell.lease.as_ref().is_some_and(|l| l.deadline == at);
        current && cell.generation == token.generation
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_taken_for_the_next_one_of_its_slot() {
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(1));
        let (first, _) = leases.grant(now, (0, 0), 1, Past::default());
        assert!(leases.end(first).is_some());
        let (second, _) = leases.grant(now, (0, 1), 1, Past::default());
        assert_eq!(first.slot, second.slot);
        assert!(leases.get(first).is_none() && leases.end(first).is_none());
        assert_eq!(leases.get(second).unwrap().offset, 1);
    }

    #[test]
    fn a_renewed_lease_ends_later_and_the_queue_stays_small() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut leases = Leases::new(second);
        let (token, _) = leases.grant(start, (0, 0), 1, Past::default());
        for i in 1..10_000 {
            leases.renew(start + Duration::from_micros(i), token, false);
        }
        assert!(leases.deadlines.len() <= STALE + 3);
        assert!(leases.expire(start + second).is_none());
        assert!(leases.expire(start + 2 * second).is_some());
        assert_eq!((leases.live(), leases.next_deadline()), (0, None));
    }
}
