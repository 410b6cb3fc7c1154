//! At most so many messages a second.

use std::num::NonZero;
use std::time::Duration;

use tokio::time::Instant;

/// How much of what was missed is made up for.
const CATCH_UP: Duration = Duration::from_millis(100);

/// When the next message may go.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    next: Instant,
}

impl Pace {
    /// So many a second, the first of them now.
    pub(super) fn new(rate: NonZero<u32>, now: Instant) -> Self {
        Self {
            every: Duration::from_secs(1) / rate.get(),
            next: now,
        }
    }

    /// When the next message may go, for a message that is there `now`.
    pub(super) fn take(&mut self, now: Instant) -> Instant {
        // Input that paused is not made up for by a burst.
        let due = self
            .next
            .max(now.checked_sub(CATCH_UP).unwrap_or(self.next));
        self.next = due + self.every;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(50);

    fn twenty(now: Instant) -> Pace {
        Pace::new(NonZero::new(20).unwrap(), now)
    }

    #[test]
    fn messages_go_at_equal_distances_however_fast_they_come() {
        let start = Instant::now();
        let mut pace = twenty(start);
        for n in 0..100 {
            assert_eq!(pace.take(start), start + EVERY * n);
        }
    }

    #[test]
    fn a_short_delay_is_made_up_for() {
        let start = Instant::now();
        let mut pace = twenty(start);
        for n in 0..100 {
            // Each is late by less than what is made up for, and the next one is not.
            let late = Duration::from_millis(u64::from(n % 3) * 40);
            assert_eq!(pace.take(start + EVERY * n + late), start + EVERY * n);
        }
    }

    #[test]
    fn a_pause_is_not() {
        let start = Instant::now();
        let mut pace = twenty(start);
        let now = start + Duration::from_secs(3600);
        let at_once = (0..100).filter(|_| pace.take(now) <= now).count();
        assert_eq!(at_once, 3, "those of a tenth of a second");
    }
}
