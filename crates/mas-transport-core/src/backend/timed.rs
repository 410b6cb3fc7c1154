//! Leases of one length that end by themselves: a slab with generations and a queue of deadlines. As
//! every lease is as long as the others, deadlines are appended in order, and what was settled or
//! renewed in the meantime is skipped when its entry comes to the front. A plain structure: no locks,
//! no clock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::transport::Token;

#[derive(Debug)]
struct Held<L> {
    lease: L,
    deadline: Instant,
}

#[derive(Debug)]
struct Cell<L> {
    generation: u32,
    held: Option<Held<L>>,
}

/// The leases of a backend that keeps the time of its own: each ends when it is as old as all are
/// meant to get.
#[derive(Debug)]
pub struct TimedLeases<L> {
    length: Duration,
    cells: Vec<Cell<L>>,
    free: Vec<u32>,
    live: usize,
    deadlines: VecDeque<(Instant, Token)>,
}

/// Stale deadlines are swept out when they outnumber the live ones by this.
const STALE: usize = 1024;

impl<L> TimedLeases<L> {
    /// None yet; each will have this length.
    pub fn new(length: Duration) -> Self {
        Self {
            length,
            cells: Vec::new(),
            free: Vec::new(),
            live: 0,
            deadlines: VecDeque::new(),
        }
    }

    /// How long each is.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// How many there are.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Leases something from `now` on.
    pub fn grant(&mut self, now: Instant, lease: L) -> (Token, Instant) {
        let deadline = now + self.length;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.cells.push(Cell {
                generation: 0,
                held: None,
            });
            // A group has far fewer leases than this: each of them is a message in memory.
            u32::try_from(self.cells.len() - 1).unwrap_or(u32::MAX)
        });
        let mut token = Token {
            slot,
            generation: 0,
        };
        if let Some(cell) = self.cells.get_mut(slot as usize) {
            token.generation = cell.generation;
            cell.held = Some(Held { lease, deadline });
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
    pub fn get(&self, token: Token) -> Option<&L> {
        let cell = self.cells.get(token.slot as usize)?;
        let held = cell.held.as_ref()?;
        (cell.generation == token.generation).then_some(&held.lease)
    }

    /// Starts a live lease anew, and changes what is known of it: until when it lasts now.
    pub fn renew(
        &mut self,
        now: Instant,
        token: Token,
        change: impl FnOnce(&mut L),
    ) -> Option<Instant> {
        let cell = self.cells.get_mut(token.slot as usize)?;
        let held = cell.held.as_mut()?;
        if cell.generation != token.generation {
            return None;
        }
        let deadline = now + self.length;
        held.deadline = deadline;
        change(&mut held.lease);
        self.queue(deadline, token);
        Some(deadline)
    }

    /// Ends a live lease.
    pub fn end(&mut self, token: Token) -> Option<L> {
        let cell = self.cells.get_mut(token.slot as usize)?;
        if cell.generation != token.generation {
            return None;
        }
        let held = cell.held.take()?;
        cell.generation = cell.generation.wrapping_add(1);
        self.free.push(token.slot);
        self.live -= 1;
        Some(held.lease)
    }

    /// Ends one lease whose time has come.
    pub fn expire(&mut self, now: Instant) -> Option<L> {
        let (at, token) = self.front()?;
        if at > now {
            return None;
        }
        self.deadlines.pop_front();
        self.end(token)
    }

    /// When the next lease ends by itself.
    pub fn next_deadline(&mut self) -> Option<Instant> {
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
    pub fn tokens(&self, which: impl Fn(&L) -> bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        for (slot, cell) in self.cells.iter().enumerate() {
            if let Some(held) = &cell.held
                && which(&held.lease)
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

fn is_current<L>(cells: &[Cell<L>], at: Instant, token: Token) -> bool {
    cells.get(token.slot as usize).is_some_and(|cell| {
        let current = cell.held.as_ref().is_some_and(|held| held.deadline == at);
        current && cell.generation == token.generation
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_taken_for_the_next_one_of_its_slot() {
        let now = Instant::now();
        let mut leases = TimedLeases::new(Duration::from_secs(1));
        let (first, _) = leases.grant(now, 'a');
        assert_eq!(leases.end(first), Some('a'));
        let (second, _) = leases.grant(now, 'b');
        assert_eq!(first.slot, second.slot);
        assert!(leases.get(first).is_none() && leases.end(first).is_none());
        assert_eq!(leases.get(second), Some(&'b'));
    }

    #[test]
    fn a_renewed_lease_ends_later_and_the_queue_stays_small() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut leases = TimedLeases::new(second);
        let (token, _) = leases.grant(start, 0);
        for i in 1..10_000 {
            leases.renew(start + Duration::from_micros(i), token, |renewed| {
                *renewed += 1
            });
        }
        assert!(leases.deadlines.len() <= STALE + 3);
        assert!(leases.expire(start + second).is_none());
        assert_eq!(leases.expire(start + 2 * second), Some(9_999));
        assert_eq!((leases.live(), leases.next_deadline()), (0, None));
    }
}
