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
    /// How many entries it asked for.
    count: usize,
    asked: Instant,
    /// When it wants a successor, and when it ends at the server.
    half: Instant,
    end: Instant,
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
        let (newest, now) = (self.open.back()?, Instant::now());
        // What waits there as well, unless it has ended without a word.
        let waiting = self.open.iter().filter(|pull| pull.end > now).count();
        let covered = waiting > 1 && !self.came;
        (self.overlap && !covered).then_some(newest.half)
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
        // Each was asked for half of its time after the one before: the first has long ended.
        if self.open.len() == OPEN {
            self.open.pop_front();
            self.clamp();
        }
        self.asked.push_back((self.number, now));
        self.open.push_back(Pull {
            number: self.number,
            count,
            asked: now,
            half: now + wait / 2,
            end: now + wait,
            // With others behind it nothing waits for its end.
            until: now + wait + if self.overlap { wait } else { slack },
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
        // Where its time was up, that of those before it was up earlier: they have brought all that they could.
        // A refusal speaks for itself only.
        let from = if missing.is_some() { 0 } else { at };
        let ended: Vec<Pull> = self.open.drain(from..=at).collect();
        ended.iter().for_each(|pull| self.close(pull));
        self.left = self.left.saturating_sub(missing.unwrap_or(0));
        self.clamp();
        if self.left == 0 {
            // Those behind it, if there are any, have brought everything.
            let rest: Vec<Pull> = self.open.drain(..).collect();
            rest.iter().for_each(|pull| self.close(pull));
        }
        true
    }

    /// Gives up what the server should have ended by now.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.open.retain(|pull| pull.until > now);
        self.clamp();
    }

    /// Those that are open bring no more than they asked for.
    fn clamp(&mut self) {
        let most = self.open.iter().map(|pull| pull.count).sum();
        self.left = self.left.min(most);
    }

    /// Nothing comes for any of them.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.left = 0;
        if !self.overlap {
            self.asked.clear();
        }
    }

    /// Whether one that was given up may still bring something.
    pub(crate) fn is_silent(&self) -> bool {
        !self.overlap && self.open.is_empty() && !self.asked.is_empty()
    }

    /// When that was asked for which comes now, at the earliest, so that no lease is taken to be longer than
    /// it is. Where pulls overlap, one that ended without a word brings nothing any more after a lease.
    pub(crate) fn since(&mut self, now: Instant, lease: Duration) -> Instant {
        if self.overlap {
            self.asked
                .retain(|(_, at)| now.saturating_duration_since(*at) < lease);
        }
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
        assert!(!pulls.is_silent());
        pulls.expire(Instant::now());
        assert!(pulls.is_empty() && pulls.is_silent(), "it is given up");
        advance(2 * LEASE).await;
        assert_eq!(pulls.since(Instant::now(), LEASE), begin, "however late");
        pulls.clear();
        assert!(!pulls.is_silent());
        let second = Instant::now();
        let (number, _) = ask(&mut pulls, 5);
        assert_eq!(pulls.since(Instant::now(), LEASE), second);
        assert!(pulls.over(number, None));
        assert_eq!(pulls.since(Instant::now(), LEASE), second, "on its heels");
        assert!(!pulls.is_silent());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_ends_without_a_word_is_no_cover_and_costs_no_room() {
        let mut pulls = Pulls::new(true);
        assert_eq!(ask(&mut pulls, 1000), (1, 1000));
        advance(WAIT / 2).await;
        assert_eq!(ask(&mut pulls, 1000), (2, 1));
        advance(WAIT / 2).await;
        assert!(pulls.successor().is_some(), "the first has ended");
        assert_eq!(ask(&mut pulls, 1000), (3, 1));
        advance(WAIT / 2).await;
        // The second took an entry, and so says nothing.
        assert!(!pulls.entry());
        ask(&mut pulls, 999);
        advance(WAIT / 2).await;
        assert!(pulls.over(3, Some(1)));
        assert!(pulls.left <= 1, "{}", pulls.left);
        assert_eq!(ask(&mut pulls, 999).1, 998);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_speaks_for_itself() {
        let mut pulls = Pulls::new(true);
        ask(&mut pulls, 10);
        advance(WAIT / 2).await;
        let (number, _) = ask(&mut pulls, 20);
        assert!(pulls.over(number, None));
        assert_eq!((pulls.is_empty(), pulls.left), (false, 10));
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
    async fn what_ended_without_a_word_is_not_counted_on() {
        let mut pulls = Pulls::new(true);
        ask(&mut pulls, 1000);
        advance(WAIT / 2).await;
        assert_eq!(ask(&mut pulls, 1000), (2, 1));
        // Their consumer was deleted.
        assert!(pulls.over(1, None));
        assert_eq!(ask(&mut pulls, 1000), (3, 999));
        assert!(pulls.over(2, None));
        assert_eq!(ask(&mut pulls, 1000), (4, 1));
        assert!(pulls.over(3, None) && pulls.over(4, None));
        assert!(pulls.is_empty());
        assert_eq!(ask(&mut pulls, 1000), (5, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_are_open_and_none_for_good() {
        let mut pulls = Pulls::new(true);
        for _ in 0..3 * OPEN {
            assert!(pulls.is_empty() || pulls.successor().is_some());
            ask(&mut pulls, 100);
            assert!(!pulls.entry());
            assert!(pulls.open.len() <= OPEN && pulls.left < 100 * OPEN);
            advance(WAIT / 2).await;
        }
        advance(SLACK + WAIT).await;
        pulls.expire(Instant::now());
        assert!(pulls.is_empty());
        assert_eq!(ask(&mut pulls, 100).1, 100);
    }
}
