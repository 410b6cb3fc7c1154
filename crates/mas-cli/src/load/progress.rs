//! The live line on stderr.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::report::millis;
use super::tally::Tally;
use crate::text::grouped;

/// Writes one line a second: over the last one on a terminal, below it elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    last: Option<(Duration, u64)>,
}

impl Progress {
    /// Progress on stderr.
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            last: None,
        }
    }

    /// Writes how far the run is, `elapsed` after its start.
    pub(crate) fn show(&mut self, elapsed: Duration, phase: &str, tally: &Tally) {
        let line = self.line(elapsed, phase, tally);
        // Nobody may be reading; the run goes on.
        let _ = match self.terminal {
            true => write!(std::io::stderr(), "\r\x1b[2K{line}"),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }

    /// Leaves the last line standing.
    pub(crate) fn end(&mut self) {
        if self.terminal && self.last.take().is_some() {
            let _ = writeln!(std::io::stderr());
        }
    }

    fn line(&mut self, elapsed: Duration, phase: &str, tally: &Tally) -> String {
        let sent = tally.sent.load(Relaxed);
        let published = tally.published.load(Relaxed);
        let delivered = tally.delivered.load(Relaxed);
        let (before, had) = self.last.unwrap_or_default();
        let seconds = elapsed.saturating_sub(before).as_secs_f64().max(0.001);
        let rate = (delivered.saturating_sub(had)) as f64 / seconds;
        self.last = Some((elapsed, delivered));
        let told = tally.percentiles();
        format!(
            "{phase} {:.0} s   sent {}   delivered {}   {}/s   p50 {} ms   p99 {} ms   \
             in flight {}   errors {}",
            elapsed.as_secs_f64(),
            grouped(sent),
            grouped(delivered),
            grouped(rate.round() as u64),
            millis(told.p50),
            millis(told.p99),
            // From the bus to the broker, and from there to an inbox.
            grouped(sent.saturating_sub(published.min(delivered))),
            grouped(tally.publish_errors.load(Relaxed) + tally.ack_errors.load(Relaxed)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_the_rate_since_the_last_one() {
        let tally = Tally::new().unwrap();
        let mut progress = Progress::new();
        tally.sent.store(1_010, Relaxed);
        tally.published.store(1_000, Relaxed);
        tally.delivered.store(990, Relaxed);
        progress.line(Duration::from_secs(1), "sending", &tally);
        tally.sent.store(2_000, Relaxed);
        tally.published.store(2_000, Relaxed);
        tally.delivered.store(1_990, Relaxed);
        tally.publish_errors.store(3, Relaxed);
        assert_eq!(
            progress.line(Duration::from_secs(2), "sending", &tally),
            "sending 2 s   sent 2,000   delivered 1,990   1,000/s   p50 0.00 ms   p99 0.00 ms   \
             in flight 10   errors 3"
        );
    }
}
