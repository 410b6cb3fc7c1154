//! The trials, by clause. Each file begins with a table that names its trials.
#![expect(clippy::indexing_slicing, reason = "a trial that panics has failed")]

mod attempts;
mod bytes;
mod cancel;
mod cancel_recv;
mod cancel_settle;
mod close;
mod closed;
mod delivery;
mod foreign;
mod groups;
mod headers;
mod hostile;
mod kept;
mod lease;
mod lease_buffer;
mod lease_dead;
mod lease_late;
mod letters;
mod load;
mod nack;
mod numbers;
mod order;
mod poison;
mod processes;
mod publish;
mod publish_bounds;
mod publish_outcomes;
mod records;
mod recovery;
mod recovery_broker;
mod settle;
mod support;
mod tools;
mod topics;
mod unsupported;

use crate::registry::TrialDef;

/// Every trial, in the order of the clauses.
pub fn all() -> Vec<TrialDef> {
    [
        publish::TRIALS,
        publish_outcomes::TRIALS,
        publish_bounds::TRIALS,
        delivery::TRIALS,
        kept::TRIALS,
        topics::TRIALS,
        groups::TRIALS,
        lease::TRIALS,
        lease_late::TRIALS,
        lease_dead::TRIALS,
        lease_buffer::TRIALS,
        settle::TRIALS,
        nack::TRIALS,
        attempts::TRIALS,
        letters::TRIALS,
        records::TRIALS,
        poison::TRIALS,
        processes::TRIALS,
        order::TRIALS,
        bytes::TRIALS,
        headers::TRIALS,
        foreign::TRIALS,
        hostile::TRIALS,
        cancel::TRIALS,
        cancel_recv::TRIALS,
        cancel_settle::TRIALS,
        close::TRIALS,
        closed::TRIALS,
        unsupported::TRIALS,
        numbers::TRIALS,
        recovery::TRIALS,
        recovery_broker::TRIALS,
    ]
    .concat()
}
