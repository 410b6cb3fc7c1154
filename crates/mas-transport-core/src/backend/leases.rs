//! The deliveries that a member holds: plain state, no I/O.

use tokio::time::Instant;

use crate::transport::Token;

/// What a backend knows of a delivery that it holds.
pub trait Lease: Clone {
    /// When the lease ends.
    fn deadline(&self) -> Instant;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Buffered, or with the pump.
    Held,
    /// Its settlement is on the way.
    Settling,
    /// Its settlement failed or was given up: nobody waits for it, and until its deadline it may
    /// still stand under this member's name.
    Left,
}

#[derive(Debug)]
struct Slot<L> {
    generation: u32,
    state: State,
    lease: L,
}

/// The table of leases: a slab whose slots are used again under a new generation.
#[derive(Debug)]
pub struct Leases<L> {
    slots: Vec<Slot<L>>,
    free: Vec<u32>,
    /// How many are held or settling.
    out: usize,
}

impl<L> Default for Leases<L> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            out: 0,
        }
    }
}

impl<L: Lease> Leases<L> {
    /// Takes in a delivery.
    pub fn insert(&mut self, lease: L) -> Token {
        self.out += 1;
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.generation = slot.generation.wrapping_add(1);
            slot.state = State::Held;
            slot.lease = lease;
            return Token {
                slot: index,
                generation: slot.generation,
            };
        }
        // A window has at most 65,536 messages, so the count fits by far.
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot {
            generation: 0,
            state: State::Held,
            lease,
        });
        Token {
            slot: index,
            generation: 0,
        }
    }

    fn slot(&mut self, token: Token) -> Option<&mut Slot<L>> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        (slot.generation == token.generation && slot.state != State::Free).then_some(slot)
    }

    fn release(&mut self, token: Token, leaves: State) {
        let Some(slot) = self.slot(token) else { return };
        let was_out = slot.state != State::Left;
        slot.state = leaves;
        if leaves == State::Free {
            self.free.push(token.slot);
        }
        if was_out {
            self.out -= 1;
        }
    }

    /// Begins a settlement. `None` when the token is unknown, being settled or past its deadline,
    /// after which it is forgotten.
    pub fn settle(&mut self, token: Token, now: Instant) -> Option<L> {
        let lease = self.held_until(token, now)?;
        self.slot(token)?.state = State::Settling;
        Some(lease)
    }

    /// The lease of a token that is held, for a renewal; it stays held meanwhile, so that giving up
    /// the renewal loses nothing. `None` as for [`settle`](Self::settle).
    pub fn held_until(&mut self, token: Token, now: Instant) -> Option<L> {
        let slot = self.slot(token)?;
        if slot.state != State::Held {
            return None;
        }
        if slot.lease.deadline() <= now {
            // It still stands under this member's name for as long as the server's lease runs.
            self.release(token, State::Left);
            return None;
        }
        Some(slot.lease.clone())
    }

    /// The settlement took effect.
    pub fn done(&mut self, token: Token) {
        self.release(token, State::Free);
    }

    /// The lease was renewed: changes it. `None` when it was settled or revoked meanwhile.
    pub fn renewed(&mut self, token: Token, change: impl FnOnce(&mut L)) -> Option<()> {
        let slot = self.slot(token)?;
        if slot.state != State::Held {
            return None;
        }
        change(&mut slot.lease);
        Some(())
    }

    /// The settlement failed, or nobody knows: nobody will try again.
    pub fn leave(&mut self, token: Token) {
        self.release(token, State::Left);
    }

    /// Forgets what has passed its deadline.
    pub fn expire(&mut self, now: Instant) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.state != State::Free && slot.lease.deadline() <= now {
                if slot.state != State::Left {
                    self.out -= 1;
                }
                slot.state = State::Free;
                self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
    }

    /// Forgets everything: the tokens that were out.
    pub fn revoke_all(&mut self) -> Vec<Token> {
        self.revoke(|_| true)
    }

    /// Forgets some: their tokens, of those that were out.
    pub fn revoke(&mut self, which: impl Fn(&L) -> bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.state == State::Free || !which(&slot.lease) {
                continue;
            }
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            if slot.state != State::Left {
                self.out -= 1;
                tokens.push(Token {
                    slot: index,
                    generation: slot.generation,
                });
            }
            slot.state = State::Free;
            self.free.push(index);
        }
        tokens
    }

    /// What is held and not being settled.
    pub fn held(&self) -> Vec<Token> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.state == State::Held)
            .map(|(index, slot)| Token {
                slot: u32::try_from(index).unwrap_or(u32::MAX),
                generation: slot.generation,
            })
            .collect()
    }

    /// What may still stand under this member's name at the broker: all that is held, is being
    /// settled, or was left before its deadline.
    pub fn iter(&self) -> impl Iterator<Item = &L> {
        let slots = self.slots.iter();
        slots
            .filter(|slot| slot.state != State::Free)
            .map(|slot| &slot.lease)
    }

    /// How many are held or settling.
    pub fn out(&self) -> usize {
        self.out
    }

    /// When the last of them ends.
    pub fn last_deadline(&self) -> Option<Instant> {
        let slots = self.slots.iter();
        slots
            .filter(|slot| matches!(slot.state, State::Held | State::Settling))
            .map(|slot| slot.lease.deadline())
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Held {
        minor: u64,
        deadline: Instant,
    }

    impl Lease for Held {
        fn deadline(&self) -> Instant {
            self.deadline
        }
    }

    fn lease(minor: u64, deadline: Instant) -> Held {
        Held { minor, deadline }
    }

    #[test]
    fn a_token_settles_once_and_never_for_a_later_delivery() {
        let now = Instant::now();
        let end = now + Duration::from_secs(1);
        let mut leases = Leases::default();
        let first = leases.insert(lease(1, end));
        assert_eq!(leases.settle(first, now).unwrap().minor, 1);
        assert!(leases.settle(first, now).is_none(), "it is being settled");
        leases.done(first);
        assert_eq!(leases.out(), 0);
        let second = leases.insert(lease(2, end));
        assert_eq!(second.slot, first.slot);
        assert_ne!(second, first);
        assert!(leases.settle(first, now).is_none());
        leases.done(first);
        assert_eq!(leases.out(), 1);
        assert_eq!(leases.settle(second, now).unwrap().minor, 2);
    }

    #[test]
    fn after_the_deadline_nothing_is_settled() {
        let now = Instant::now();
        let mut leases = Leases::default();
        let token = leases.insert(lease(1, now));
        assert!(leases.settle(token, now).is_none());
        assert_eq!(leases.out(), 0);
        leases.expire(now);
        assert!(leases.iter().next().is_none());
        assert_eq!(leases.free.len(), 1);
    }

    #[test]
    fn a_lease_is_held_while_it_is_renewed() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let mut leases = Leases::default();
        let token = leases.insert(lease(1, now + Duration::from_secs(1)));
        leases.held_until(token, now).unwrap();
        leases.renewed(token, |held| held.deadline = later).unwrap();
        assert_eq!(leases.last_deadline(), Some(later));
        assert_eq!(leases.settle(token, now).unwrap().deadline, later);
    }

    #[test]
    fn what_was_left_is_known_until_its_deadline() {
        let now = Instant::now();
        let end = now + Duration::from_secs(1);
        let mut leases = Leases::default();
        let left = leases.insert(lease(1, end));
        leases.settle(left, now).unwrap();
        leases.leave(left);
        assert_eq!(leases.out(), 0);
        assert!(leases.settle(left, now).is_none());
        assert_eq!(leases.iter().count(), 1);
        leases.expire(end);
        assert!(leases.iter().next().is_none());
        assert_eq!(leases.out(), 0);
    }

    #[test]
    fn revoking_forgets_all_and_names_what_was_out() {
        let now = Instant::now();
        let end = now + Duration::from_secs(1);
        let mut leases = Leases::default();
        let held = leases.insert(lease(1, end));
        let settling = leases.insert(lease(2, end));
        leases.settle(settling, now).unwrap();
        assert_eq!(leases.held(), [held]);
        assert_eq!(leases.revoke_all(), [held, settling]);
        assert_eq!(leases.out(), 0);
        assert!(leases.renewed(settling, |_| {}).is_none());
        assert!(leases.settle(held, now).is_none());
    }
}
