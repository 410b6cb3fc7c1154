//! The live line on stderr.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::report::millis;
use super::tally::Tally;
use crate::text::grouped;

/// The shortest time that a rate is told of: the last line comes whenever the run is done.
const SPAN: Duration = Duration::from_millis(500);

/// Writes one line a second: over the last one on a terminal, below it elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    shown: bool,
    /// When so many had been delivered, as of the last two lines that were `SPAN` apart.
    marks: [(Duration, u64); 2],
}

impl Progress {
    /// Progress on stderr.
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            shown: false,
            marks: [(Duration::ZERO, 0); 2],
        }
    }

    /// Writes how far the run is, `elapsed` after its start.
    pub(crate) fn show(&mut self, elapsed: Duration, phase: &str, tally: &Tally) {
        let line = self.line(elapsed, phase, tally);
        self.shown = true;
        // Nobody may be reading; the run goes on.
        let _ = match self.terminal {
            true => write!(std::io::stderr(), "\r\x1b[2K{line}"),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }

    /// Leaves the last line standing.
    pub(crate) fn end(&mut self) {
        if self.terminal && std::mem::take(&mut self.shown) {
            let _ = writeln!(std::io::stderr());
        }
    }

    fn line(&mut self, elapsed: Duration, phase: &str, tally: &Tally) -> String {
        let sent = tally.sent.load(Relaxed);
        let published = tally.published.load(Relaxed);
        let delivered = tally.delivered.load(Relaxed);
        let [earlier, last] = self.marks;
        let (since, had) = match elapsed.saturating_sub(last.0) < SPAN {
            true => earlier,
            false => {
                self.marks = [last, (elapsed, delivered)];
                last
            }
        };
        let seconds = elapsed.saturating_sub(since).as_secs_f64().max(0.001);
        let rate = delivered.saturating_sub(had) as f64 / seconds;
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

    #[test]
    fn a_line_that_comes_early_tells_no_rate_of_a_moment() {
        let tally = Tally::new().unwrap();
        let mut progress = Progress::new();
        let mut rate = |millis: u64, delivered: u64| {
            tally.delivered.store(delivered, Relaxed);
            let line = progress.line(Duration::from_millis(millis), "done", &tally);
            let rate = line.split("   ").find(|part| part.ends_with("/s"));
            rate.unwrap().to_owned()
        };
        // Of a run that is shorter, the mean.
        assert_eq!(rate(400, 400), "1,000/s");
        assert_eq!(rate(1_000, 1_000), "1,000/s");
        assert_eq!(rate(2_000, 3_000), "2,000/s");
        // Since the first second, rather than 50,000/s.
        assert_eq!(rate(2_010, 3_500), "2,475/s");
        assert_eq!(rate(3_000, 4_000), "1,000/s");
    }
}
