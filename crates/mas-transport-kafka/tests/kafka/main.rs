//! The backend against real brokers. What the contract promises is the conformance suite's to judge; here
//! stands what only this backend has.

mod broker_side;
mod child;
mod churn;
mod durability;
mod growth;
mod hostile;
mod killed;
mod permissions;
mod recorded;
mod support;
