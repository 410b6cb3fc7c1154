//! Publishing to topics that have a cap.
//!
//! The server counts and appends in one script, so that no two publishers can both take the last
//! place. Topics without a cap are appended to by `XADD` alone and pay nothing for this.

use mas_transport_core::Message;
use mas_transport_core::codec::fields;
use redis::Cmd;

use crate::config::Overflow;
use crate::keys::{self, MARKER};
use crate::scripts;

/// The command that appends a message. The `first` of a batch brings the script along, so that the
/// others can call it by its hash, whatever the server has forgotten.
pub(crate) fn append(cap: (u64, Overflow), stream: &str, message: &Message, first: bool) -> Cmd {
    let (most, overflow) = cap;
    let groups = keys::groups(stream);
    let keys = [stream, groups.as_str()];
    let mut call = scripts::APPEND.call(&keys);
    if first {
        call = scripts::APPEND.call_with_text(&call);
    }
    // More than the server counts is as good as what it does.
    call.arg(most.min(i64::MAX.unsigned_abs()))
        .arg(u8::from(overflow == Overflow::Gap))
        .arg(MARKER)
        .arg(keys::hashes(stream));
    fields::encode(message, &mut |name, value| {
        call.arg(name).arg(value);
    });
    call
}
