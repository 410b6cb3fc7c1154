//! What a round takes.

use std::time::{Duration, Instant};

/// What a round took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Messages a second.
    pub(crate) rate: f64,
    /// CPU time of this process for each message, in microseconds: it says what the client costs
    /// also when other programs slow the machine. The server's is not in it.
    pub(crate) cpu: f64,
}

/// A round under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    start: Instant,
    cpu: Duration,
}

impl Meter {
    /// Begins a round.
    pub(crate) fn start() -> Self {
        Self {
            cpu: cpu(),
            start: Instant::now(),
        }
    }

    /// Ends it, after so many messages.
    pub(crate) fn stop(self, messages: usize) -> Sample {
        let messages = messages as f64;
        let took = self.start.elapsed().as_secs_f64();
        Sample {
            rate: messages / took,
            cpu: cpu().saturating_sub(self.cpu).as_secs_f64() * 1e6 / messages,
        }
    }
}

/// CPU time of this process so far; zero where the system cannot tell.
fn cpu() -> Duration {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;

        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
            return Duration::ZERO;
        };
        let micros = (usage.user_time() + usage.system_time()).num_microseconds();
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    }
    #[cfg(not(unix))]
    Duration::ZERO
}
