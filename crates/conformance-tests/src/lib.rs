//! The conformance suite of `mas-transport`: what CONTRACT.md promises, checked clause by clause
//! against any backend.
//!
//! A backend's own tests call it in a few lines, in a test target with `harness = false`:
//!
//! ```no_run
//! use std::sync::Arc;
//! use conformance_tests::{Broker, Failure, Harness, Setup};
//! use mas_transport_core::Transport;
//!
//! #[derive(Debug)]
//! struct Mine;
//!
//! #[async_trait::async_trait]
//! impl Harness for Mine {
//!     fn name(&self) -> &str { "mine" }
//!     async fn broker(&self, setup: &Setup) -> Result<Arc<dyn Broker>, Failure> {
//!         Ok(Arc::new(MyBroker(setup.namespace.clone())))
//!     }
//! }
//! # #[derive(Debug)] struct MyBroker(mas_transport_core::Namespace);
//! # #[async_trait::async_trait]
//! # impl Broker for MyBroker {
//! #     async fn connect(&self) -> mas_transport_core::Result<Arc<dyn Transport>> { unreachable!() }
//! # }
//!
//! fn main() -> std::process::ExitCode {
//!     conformance_tests::main(vec![Arc::new(Mine)])
//! }
//! ```
//!
//! A [`Harness`] makes a [`Broker`] for each trial; a trial is an `async fn(Ctx) -> Verdict`.
//! What a harness can do beside connecting (cut connections, write foreign entries, …) it says in
//! [`Harness::abilities`]; what the backend can do is in its capabilities. A clause that is left
//! out for want of an ability is a failure; one that the capabilities leave out is printed.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod agent;
pub mod checker;
mod child;
pub mod clauses;
mod ctx;
pub mod fixtures;
mod harness;
pub mod harnesses;
mod held;
pub mod history;
pub mod layers;
mod logs;
mod member;
mod polls;
mod registry;
mod runner;
pub mod trials;

pub use agent::{Agent, Answer, Awaited, Held, Member};
pub use child::{Child, Job, Line};
pub use ctx::Ctx;
pub use harness::{Ability, Broker, Failure, Harness, Setup, Timing, Variant, Verdict};

pub use member::RawMember;
pub use polls::drop_after_each_poll;
pub use registry::{Condition, Tier, TrialDef};
pub use runner::{Coverage, Run, coverage, main, run, selected, suite};
