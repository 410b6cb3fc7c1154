//! What backends have in common: the plain state of a member whose broker hands out leases.
//!
//! Applications have no use for it. A backend may do without.

mod inbox;
mod leases;
mod persist;
mod timed;

pub use inbox::{Inbox, Waiter};
pub use leases::{Lease, Leases};
pub use persist::{Wait, persist, persist_each};
pub use timed::TimedLeases;

pub use crate::coalesce::lock;
