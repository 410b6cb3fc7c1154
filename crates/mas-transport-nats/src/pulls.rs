//! The pulls of a member that the server has not answered to the end, as far as is known.
//!
//! One at a time, but for servers before 2.10. When what such a server (seen on 2.9.10) sends again
//! meets a pull that has just ended, and no other pull waits, it sends the entry that it sent last once
//! more, settled or not, and keeps back for a whole lease what it was about to send
//! (`loopAndGatherMsgs`: "We will redo this one"). So a pull that ends there has a successor, which was
//! asked for when half of its time was over.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Most pulls that are remembered.
pub(crate) const REMEMBERED: usize = 16;
/// Most that are open at a time.
const OPEN: usize = 4;

#[derive(Clone, Debug)]
struct Pull {
    number: u64,
    asked: Instant,
    /// When it wants a successor.
    half: Instant,
    /// When it is given up, should the server never say that it is over.
    until: Instant,
}

/// The pulls of one connection.
#[derive(Debug)]
pub(crate) struct Pulls {
    /// Whether a pull that waits for long has a successor.
    overlap: bool,
    number: u64,
    open: VecDeque<Pull>,
    /// How many entries they may still bring, together.
    left: usize,
    /// Something came since the last one was asked for, which may have ended any of them.
    came: bool,
    /// Those that are not known to have ended, and when each was asked for.
    asked: VecDeque<(u64, Instant)>,
    /// When the last that ended was asked for.
    last: Instant,
}

impl Pulls {
    pub(crate) fn new(overlap: bool) -> Self {
        Self {
            overlap,
            number: 0,
            open: VecDeque::with_capacity(OPEN),
            left: 0,
            came: false,
            asked: VecDeque::with_capacity(REMEMBERED),
            last: Instant::now(),
        }
    }

    /// Whether none is known to be open.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// When the oldest was asked for.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.open.front().map(|pull| pull.asked)
    }

    /// When the first is given up.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.open.front().map(|pull| pull.until)
    }

    /// When all of them have ended at the latest.
    pub(crate) fn end(&self) -> Option<Instant> {
        self.open.back().map(|pull| pull.until)
    }

    /// When the next is to be asked for although one is open.
    pub(crate) fn successor(&self) -> Option<Instant> {
        let (oldest, newest) = (self.open.front()?, self.open.back()?);
        let covered = oldest.number != newest.number && !self.came;
        (self.overlap && !covered && self.open.len() < OPEN).then_some(newest.half)
    }

    /// Enters a pull that waits for so long at the server, and is given up so much later: its number, and
    /// how many entries it is to ask for where so many are wanted in all.
    pub(crate) fn ask(&mut self, wanted: usize, wait: Duration, slack: Duration) -> (u64, usize) {
        let now = Instant::now();
        let count = wanted.saturating_sub(self.left).max(1);
        self.number += 1;
        if self.asked.len() == REMEMBERED {
            self.asked.pop_front();
        }
        self.asked.push_back((self.number, now));
        self.open.push_back(Pull {
            number: self.number,
            asked: now,
            half: now + wait / 2,
            until: now + wait + slack,
        });
        self.left += count;
        self.came = false;
        (self.number, count)
    }

    /// An entry came. Says whether that was the last.
    pub(crate) fn entry(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        self.came = true;
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return false;
        }
        // Where one was given up, it may have been that one's.
        if self.asked.len() == self.open.len() || self.open.len() == 1 {
            while let Some(pull) = self.open.pop_front() {
                self.close(&pull);
            }
        }
        self.open.clear();
        true
    }

    /// The server says that a pull is over, and how many entries it might still have brought. `false` for one
    /// that is not open.
    pub(crate) fn over(&mut self, number: u64, missing: Option<usize>) -> bool {
        let Some(at) = self.open.iter().position(|pull| pull.number == number) else {
            return false;
        };
        // Those before it were to end earlier: they have brought all that they could.
        let ended: Vec<Pull> = self.open.drain(..=at).collect();
        ended.iter().for_each(|pull| self.close(pull));
        self.left = self.left.saturating_sub(missing.unwrap_or(0));
        if self.open.is_empty() {
            self.left = 0;
        } else if self.left == 0 {
            // Those behind it have brought everything.
            let rest: Vec<Pull> = self.open.drain(..).collect();
            rest.iter().for_each(|pull| self.close(pull));
        }
        true
    }

    /// Gives up what the server should have ended by now.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.open.retain(|pull| pull.until > now);
        if self.open.is_empty() {
            self.left = 0;
        }
    }

    /// Nothing comes for any of them.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.left = 0;
    }

    /// When that was asked for which comes now, at the earliest, so that no lease is taken to be longer than
    /// it is. One that was given up brings nothing any more after a lease.
    pub(crate) fn since(&mut self, now: Instant, lease: Duration) -> Instant {
        self.asked
            .retain(|(_, at)| now.saturating_duration_since(*at) < lease);
        self.asked.front().map_or(self.last, |(_, at)| *at)
    }

    fn close(&mut self, pull: &Pull) {
        self.asked.retain(|(number, _)| *number != pull.number);
        self.last = pull.asked;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const WAIT: Duration = Duration::from_millis(100);
    const SLACK: Duration = Duration::from_millis(500);
    const LEASE: Duration = Duration::from_secs(1);

    fn ask(pulls: &mut Pulls, wanted: usize) -> (u64, usize) {
        pulls.ask(wanted, WAIT, SLACK)
    }

    #[tokio::test(start_paused = true)]
    async fn one_pull_ends_with_its_last_entry_or_when_the_server_says_so() {
        let mut pulls = Pulls::new(false);
        assert_eq!(ask(&mut pulls, 2), (1, 2));
        assert_eq!(pulls.successor(), None);
        assert!(!pulls.entry());
        assert!(pulls.entry());
        assert!(pulls.is_empty() && !pulls.entry(), "of an earlier one");
        assert_eq!(ask(&mut pulls, 5), (2, 5));
        assert!(!pulls.over(1, Some(1)), "it has ended before");
        assert!(pulls.over(2, Some(5)) && pulls.is_empty());
        assert_eq!(ask(&mut pulls, 5), (3, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_was_asked_for_by_the_oldest_that_may_bring_it() {
        let mut pulls = Pulls::new(false);
        let begin = Instant::now();
        ask(&mut pulls, 5);
        advance(WAIT + SLACK).await;
        pulls.expire(Instant::now());
        assert!(pulls.is_empty(), "it is given up");
        let second = Instant::now();
        let (number, _) = ask(&mut pulls, 5);
        assert_eq!(pulls.since(Instant::now(), LEASE), begin);
        advance(LEASE - WAIT - SLACK).await;
        assert_eq!(pulls.since(Instant::now(), LEASE), second);
        assert!(pulls.over(number, None));
        assert_eq!(pulls.since(Instant::now(), LEASE), second, "on its heels");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_long_has_a_successor() {
        let mut pulls = Pulls::new(true);
        let begin = Instant::now();
        assert_eq!(ask(&mut pulls, 10), (1, 10));
        assert_eq!(pulls.successor(), Some(begin + WAIT / 2));
        advance(WAIT / 2).await;
        assert_eq!(
            ask(&mut pulls, 10),
            (2, 1),
            "not more than is wanted, but one"
        );
        assert_eq!(pulls.successor(), None);
        advance(WAIT / 2).await;
        assert!(pulls.over(1, Some(10)));
        assert!(!pulls.is_empty());
        assert_eq!(pulls.since(Instant::now(), LEASE), begin + WAIT / 2);
        assert_eq!(pulls.successor(), Some(begin + WAIT), "at once");
        assert_eq!(ask(&mut pulls, 10), (3, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_may_have_ended_the_successor() {
        let mut pulls = Pulls::new(true);
        ask(&mut pulls, 10);
        advance(WAIT / 2).await;
        ask(&mut pulls, 10);
        assert_eq!(pulls.successor(), None);
        assert!(!pulls.entry());
        assert!(pulls.successor().is_some());
        ask(&mut pulls, 9);
        // The server says what the first had left: the second has brought the entry.
        assert!(pulls.over(1, Some(10)));
        assert!(pulls.over(3, Some(1)));
        assert!(pulls.is_empty(), "and those before the last have ended");
    }

    #[tokio::test(start_paused = true)]
    async fn several_end_with_the_last_entry_of_all() {
        let mut pulls = Pulls::new(true);
        ask(&mut pulls, 2);
        advance(WAIT / 2).await;
        ask(&mut pulls, 3);
        assert!(!pulls.entry() && !pulls.entry());
        assert!(pulls.entry() && pulls.is_empty());
        let now = Instant::now();
        assert_eq!(pulls.since(now, LEASE), now, "when the last was asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_has_left_may_be_all_that_is_left() {
        let mut pulls = Pulls::new(true);
        ask(&mut pulls, 5);
        advance(WAIT / 2).await;
        ask(&mut pulls, 6);
        // By the second, which asked for one.
        assert!(!pulls.entry());
        assert!(pulls.over(1, Some(5)));
        assert!(pulls.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_are_open() {
        let mut pulls = Pulls::new(true);
        for _ in 0..OPEN {
            assert!(pulls.is_empty() || pulls.successor().is_some());
            ask(&mut pulls, 100);
            pulls.entry();
        }
        assert_eq!(pulls.successor(), None);
    }
}
