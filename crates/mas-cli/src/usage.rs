//! What this process has used so far.

use std::time::Duration;

/// CPU time and memory of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time of all threads, in user and system mode.
    pub(crate) cpu: Duration,
    /// The most memory that was resident at once, in bytes.
    pub(crate) peak_memory: u64,
}

/// Asks the system; `None` where it cannot tell.
#[cfg(unix)]
pub(crate) fn usage() -> Option<Usage> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;

    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    // Linux and the BSDs count in KiB, macOS in bytes.
    let unit = if cfg!(target_vendor = "apple") {
        1
    } else {
        1024
    };
    Some(Usage {
        cpu: Duration::from_micros(u64::try_from(micros).ok()?),
        peak_memory: u64::try_from(usage.max_rss()).ok()?.saturating_mul(unit),
    })
}

/// Asks the system; `None` where it cannot tell.
#[cfg(not(unix))]
pub(crate) fn usage() -> Option<Usage> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_something() {
        let usage = usage().unwrap();
        assert!(usage.cpu > Duration::ZERO);
        assert!(usage.peak_memory > 1024 * 1024, "{usage:?}");
    }
}
