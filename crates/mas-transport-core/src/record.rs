//! The record that travels with a dead letter or a quarantined entry.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Longest text of a reason, in bytes; longer ones are cut at a character.
pub const MAX_REASON: usize = 1024;
/// Most failures kept in a record's history; the oldest go first.
pub const MAX_HISTORY: usize = 16;

/// Why a message was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReasonCode {
    /// The application rejected it.
    Rejected,
    /// Its attempts were used up.
    MaxAttempts,
    /// The entry is not a message of this wire format, nor a foreign plain one.
    Malformed,
}

/// Why a message was given up: a code for programs, a text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The code.
    pub code: ReasonCode,
    /// The text, at most [`MAX_REASON`] bytes.
    pub text: String,
}

impl Reason {
    /// A reason; a text over the limit is cut.
    pub fn new(code: ReasonCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > MAX_REASON {
            let end = text.floor_char_boundary(MAX_REASON);
            text.truncate(end);
        }
        Self { code, text }
    }
}

/// One failed attempt, as the member that gave the message up saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which attempt it was; the first is 1.
    pub attempt: u32,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How it failed: `nack`, `dropped`, `lease lost`, `rejected: …`.
    pub what: String,
}

/// What is known of a message that was given up, written beside its original bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// Why it was given up.
    pub reason: Reason,
    /// The topic it came from.
    pub topic: String,
    /// The group that gave it up.
    pub group: String,
    /// Where in the topic it stood, in the broker's own notation.
    pub position: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The member that gave it up.
    pub member: String,
    /// When the first failure was seen, in milliseconds since 1970: by this member, if an earlier
    /// one happened elsewhere.
    pub first_failure_ms: u64,
    /// When it was given up, in milliseconds since 1970.
    pub last_failure_ms: u64,
    /// The failures that this member saw, oldest first, at most [`MAX_HISTORY`].
    pub history: Vec<Failure>,
}

impl Record {
    /// The version that this library writes.
    pub const VERSION: u32 = 1;
}

/// Milliseconds since 1970, as records and the wire carry times.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = Reason::new(ReasonCode::Rejected, "é".repeat(1000));
        assert_eq!(reason.text.len(), 1024);
        let odd = Reason::new(ReasonCode::Rejected, format!("x{}", "é".repeat(1000)));
        assert_eq!(odd.text.len(), 1023);
    }
}
