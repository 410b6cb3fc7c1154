//! The Kafka backend of `mas-transport`.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the consumer is not written yet")
)]
mod mark;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the consumer is not written yet")
)]
mod tracker;

#[cfg(test)]
mod mark_tests;
#[cfg(test)]
mod notes_tests;
#[cfg(test)]
mod tracker_model;
#[cfg(test)]
mod tracker_tests;
