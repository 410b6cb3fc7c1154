//! What is known of one message in the hands of one member.

use crate::group::Past;

/// Names a member within its group; never used twice.
pub(crate) type MemberId = u32;

/// One message in the hands of one member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) lane: u32,
    pub(crate) offset: u64,
    pub(crate) member: MemberId,
    /// What had happened before.
    pub(crate) past: Past,
    /// Whether the attempt counts if the member dies now.
    pub(crate) counted: bool,
}

impl Lease {
    /// Of an entry that a member gets.
    pub(crate) fn new((lane, offset): (u32, u64), member: MemberId, past: Past) -> Self {
        Self {
            lane,
            offset,
            member,
            past,
            // A first hand-out is not begun at the broker, so it counts from the fetch on.
            counted: past.made == 0,
        }
    }

    /// Which attempt this is.
    pub(crate) fn attempt(&self) -> u32 {
        self.past.made.saturating_add(1)
    }

    /// How many attempts count once this lease has ended by itself.
    pub(crate) fn attempts_made(&self) -> u32 {
        self.past.made.saturating_add(u32::from(self.counted))
    }
}
