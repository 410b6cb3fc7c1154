//! Layers over a transport: one that hooks may change, and the ones made of it.

mod crash;
mod intercept;
mod shake;

pub use crash::Crash;
pub use intercept::{Hooks, Intercept, Joined, PassThrough};
pub use shake::Shake;
