//! The text forms of typed attributes.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 has years of four digits: 0000-01-01T00:00:00Z and the last nanosecond of 9999.
const FIRST: i128 = -62_167_219_200 * SECOND;
const LAST: i128 = 253_402_300_800 * SECOND - 1;
const SECOND: i128 = 1_000_000_000;

fn unix_nanos(time: SystemTime) -> i128 {
    // A `Duration` has at most 2^64 seconds: its nanoseconds fit.
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(e) => -i128::try_from(e.duration().as_nanos()).unwrap_or(i128::MAX),
    }
}

/// Whether RFC 3339 can tell this time: the years 0 to 9999.
pub(crate) fn has_rfc3339(time: SystemTime) -> bool {
    (FIRST..=LAST).contains(&unix_nanos(time))
}

/// RFC 3339 in UTC, to the nanosecond; a time beyond the years 0 to 9999 as the nearest one.
pub fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(unix_nanos(time).clamp(FIRST, LAST))
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        // Not reached: every time within the bounds has such a text.
        .unwrap_or_default()
}

/// Reads RFC 3339 with any offset, which may lead out of those years: then the nearest time. `None`
/// also when the system's clock cannot tell it.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let nanos = OffsetDateTime::parse(text, &Rfc3339)
        .ok()?
        .unix_timestamp_nanos()
        .clamp(FIRST, LAST);
    let magnitude = nanos.unsigned_abs();
    let distance = Duration::new(
        u64::try_from(magnitude / SECOND.unsigned_abs()).ok()?,
        u32::try_from(magnitude % SECOND.unsigned_abs()).ok()?,
    );
    if nanos < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

/// Whole milliseconds, rounded up, so that a timeout never becomes none.
pub(crate) fn millis(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).unwrap_or(u64::MAX).to_string()
}

/// Reads whole milliseconds.
pub(crate) fn parse_millis(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_to_the_nanosecond() {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_795_243_200, 120_000_000);
        assert_eq!(rfc3339(at), "2026-11-21T06:40:00.12Z");
        for text in [
            "2026-11-21T06:40:00.12Z",
            "2026-11-21t06:40:00.120000000z",
            "2026-11-21T08:10:00.12+01:30",
            "2026-11-20T23:40:00.12-07:00",
        ] {
            assert_eq!(parse_rfc3339(text), Some(at), "{text}");
        }
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T06:40:00",
            "2026-13-21T06:40:00Z",
            "1795243200",
            "+2026-11-21T06:40:00Z",
            "2026-11-21T06:40:00Z ",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn times_that_rfc_3339_cannot_tell_become_the_nearest() {
        let epoch = SystemTime::UNIX_EPOCH;
        let far = epoch + Duration::from_secs(1 << 60);
        let long_ago = epoch - Duration::from_secs(1 << 60);
        assert!(!has_rfc3339(far) && !has_rfc3339(long_ago) && has_rfc3339(epoch));
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339(long_ago), "0000-01-01T00:00:00Z");
        for edge in [rfc3339(far), rfc3339(long_ago)] {
            let time = parse_rfc3339(&edge).unwrap();
            assert!(has_rfc3339(time));
            assert_eq!(rfc3339(time), edge);
        }
        let just_before = parse_rfc3339("1969-12-31T23:59:59.999999999Z").unwrap();
        assert_eq!(just_before, epoch - Duration::from_nanos(1));
        let beyond = parse_rfc3339("9999-12-31T23:59:59-01:00").unwrap();
        assert_eq!(rfc3339(beyond), "9999-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn timeouts_are_rounded_up() {
        assert_eq!(millis(Duration::from_nanos(1)), "1");
        assert_eq!(millis(Duration::from_millis(30_000)), "30000");
        assert_eq!(millis(Duration::MAX), u64::MAX.to_string());
        assert_eq!(parse_millis("30000"), Some(Duration::from_secs(30)));
        assert_eq!(parse_millis("1.5"), None);
    }
}
