//! The backend against real servers. What the contract promises is the conformance suite's to
//! judge; here stands what only this backend has.

#[path = "../../../mas-transport-redis/tests/redis/certificates.rs"]
mod certificates;
mod cluster;
mod encrypted;
mod operator;
mod permissions;
mod secure;
mod steady;
mod support;
mod trouble;
