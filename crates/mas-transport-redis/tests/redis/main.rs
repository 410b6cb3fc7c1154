//! The backend against real servers. What the contract promises is the conformance suite's to
//! judge; here stands what only this backend has.

mod cap;
mod certificates;
mod connections;
mod health;
mod secure;
mod settling;
mod smoke;
mod support;
