//! The pages of docs/reference that come from the code and from real servers: they are generated
//! with `UPDATE_DOCS=1`, and compared without it.

mod capabilities;
mod clauses;
#[cfg(any(feature = "redis", feature = "nats", feature = "kafka"))]
mod missing;
mod page;
mod table;
