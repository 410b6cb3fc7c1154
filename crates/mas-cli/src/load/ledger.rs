//! What has arrived: exact accounts of lost and duplicated messages in bounded memory.

use std::collections::VecDeque;

/// What an arrival turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The first of its number.
    First,
    /// This number had arrived before.
    Duplicate,
    /// No sender of this run has sent this.
    Foreign,
}

/// What one agent has received from each sender.
///
/// Memory: a few words per sender, and one bit for each number between the oldest one that is
/// missing and the newest that arrived. A run without losses stays at that for hours; after a loss
/// it grows by one bit a message, at most the planned messages of the pair.
#[derive(Debug)]
pub(crate) struct Ledger {
    senders: Vec<Window>,
    planned: u64,
}

impl Ledger {
    /// Accounts for so many senders that each send fewer than `planned` messages to this agent.
    pub(crate) fn new(senders: usize, planned: u64) -> Self {
        Self {
            senders: std::iter::repeat_with(Window::default)
                .take(senders)
                .collect(),
            planned,
        }
    }

    /// Enters an arrival.
    pub(crate) fn enter(&mut self, sender: usize, seq: u64) -> Arrival {
        match self.senders.get_mut(sender) {
            Some(window) if seq < self.planned => {
                if window.insert(seq) {
                    Arrival::First
                } else {
                    Arrival::Duplicate
                }
            }
            _ => Arrival::Foreign,
        }
    }

    /// Which of the first `sent` numbers of a sender have not arrived.
    pub(crate) fn missing(&self, sender: usize, sent: u64) -> impl Iterator<Item = u64> {
        let window = self.senders.get(sender);
        let low = window.map_or(0, |w| w.low);
        (low..sent).filter(move |seq| !window.is_some_and(|w| w.holds(*seq)))
    }
}

/// The numbers that have arrived: all below `low`, and above it those whose bit is set.
#[derive(Debug, Default)]
struct Window {
    /// A multiple of 64.
    low: u64,
    bits: VecDeque<u64>,
}

impl Window {
    /// Whether the number is new.
    fn insert(&mut self, seq: u64) -> bool {
        let Some(offset) = seq.checked_sub(self.low) else {
            return false;
        };
        let (word, bit) = ((offset / 64) as usize, 1 << (offset % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        let new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        while self.bits.front() == Some(&u64::MAX) {
            self.bits.pop_front();
            self.low += 64;
        }
        new
    }

    fn holds(&self, seq: u64) -> bool {
        let Some(offset) = seq.checked_sub(self.low) else {
            return true;
        };
        let word = self.bits.get((offset / 64) as usize);
        word.is_some_and(|word| word & (1 << (offset % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(ledger: &Ledger, sent: u64) -> Vec<u64> {
        ledger.missing(0, sent).collect()
    }

    #[test]
    fn nothing_is_missing_when_everything_came_in_any_order() {
        let mut ledger = Ledger::new(1, 1_000);
        // 7 has no common divisor with 1,000: every number once.
        for i in 0..1_000 {
            assert_eq!(ledger.enter(0, i * 7 % 1_000), Arrival::First);
        }
        assert!(missing(&ledger, 1_000).is_empty());
        assert!(ledger.senders[0].bits.len() <= 1);
    }

    #[test]
    fn what_did_not_come_is_named() {
        let mut ledger = Ledger::new(1, 1_000);
        for seq in (0..300).filter(|seq| ![0, 63, 64, 299].contains(seq)) {
            ledger.enter(0, seq);
        }
        assert_eq!(missing(&ledger, 301), [0, 63, 64, 299, 300]);
        assert_eq!(missing(&ledger, 63), [0]);
    }

    #[test]
    fn a_duplicate_is_told_however_late() {
        let mut ledger = Ledger::new(2, 1_000);
        for seq in 0..500 {
            ledger.enter(0, seq);
        }
        for seq in [0, 63, 64, 448, 499] {
            assert_eq!(ledger.enter(0, seq), Arrival::Duplicate);
            assert_eq!(ledger.enter(1, seq), Arrival::First);
        }
    }

    #[test]
    fn what_nobody_sent_is_foreign_and_takes_no_memory() {
        let mut ledger = Ledger::new(1, 1_000);
        assert_eq!(ledger.enter(1, 0), Arrival::Foreign);
        assert_eq!(ledger.enter(0, 1_000), Arrival::Foreign);
        assert_eq!(ledger.enter(0, u64::MAX), Arrival::Foreign);
        assert!(ledger.senders[0].bits.is_empty());
    }

    #[test]
    fn a_long_run_does_not_grow() {
        let mut window = Window::default();
        for seq in 0..1_000_000 {
            // Neighbours change places, as among messages in flight.
            window.insert(seq ^ 1);
            assert!(window.bits.len() <= 2);
        }
    }
}
