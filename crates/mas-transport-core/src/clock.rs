//! The one clock: tokio's, for durations and for the time of day.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A step of the system's clock beyond this is followed; below it, time stays even.
const DRIFT: Duration = Duration::from_secs(1);
/// tokio's and the system's monotonic clocks differ by more than this only when tokio's is paused.
const PAUSED: Duration = Duration::from_millis(100);

static ANCHOR: Mutex<Option<(Instant, SystemTime)>> = Mutex::new(None);

/// The time of day: an anchor plus what tokio's clock says has passed since, so that a test that
/// pauses tokio's clock pauses this one too. Anchored again when the system's clock has been
/// stepped by more than a second, unless tokio's clock is paused.
pub fn now_utc() -> SystemTime {
    let now = Instant::now();
    let mut anchor = ANCHOR.lock().unwrap_or_else(PoisonError::into_inner);
    let (since, at) = *anchor.get_or_insert_with(|| (now, SystemTime::now()));
    // A runtime that was paused, then dropped, can leave an anchor in this one's future.
    let told = match now.checked_duration_since(since) {
        Some(passed) => at + passed,
        None => at - since.duration_since(now),
    };
    let real = std::time::Instant::now();
    let monotonic = now.into_std();
    let apart = real.max(monotonic).duration_since(real.min(monotonic));
    if apart < PAUSED {
        let system = SystemTime::now();
        let off = match system.duration_since(told) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        if off > DRIFT {
            *anchor = Some((now, system));
            return system;
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_moves_with_the_paused_clock() {
        let before = now_utc();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(
            now_utc().duration_since(before).unwrap(),
            Duration::from_secs(3600)
        );
    }

    #[test]
    fn it_tells_the_system_s_time() {
        let off = match SystemTime::now().duration_since(now_utc()) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        assert!(off <= DRIFT, "{off:?}");
    }
}
