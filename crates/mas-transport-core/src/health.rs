//! How a broker is.

use std::collections::BTreeMap;
use std::time::Duration;

/// How a broker is, as asked just now. That there is an answer means that it is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The server and its version, such as `redis 7.0.15`, as of now: a server may have been
    /// upgraded since [`TransportInfo::server`](crate::TransportInfo::server) was read.
    pub server: String,
    /// How long the broker took to answer one small question; zero in memory.
    pub latency: Duration,
    /// What the broker tells of itself, by name: persistence, eviction policy, memory. For people;
    /// the names differ from backend to backend.
    pub facts: BTreeMap<&'static str, String>,
    /// What may lose messages or keep them from being taken. Empty when nothing is wrong.
    pub warnings: Vec<Warning>,
}

impl Health {
    /// A server that answered after `latency`, with nothing else known of it.
    pub fn new(server: impl Into<String>, latency: Duration) -> Self {
        Self {
            server: server.into(),
            latency,
            ..Self::default()
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.facts.insert(name, value.into());
        self
    }

    /// Adds a warning.
    #[must_use]
    pub fn warn(mut self, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        self.warnings.push(Warning {
            problem: problem.into(),
            advice: advice.into(),
        });
        self
    }
}

/// Something about a broker that may lose messages or keep them from being taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// What is wrong, and what may come of it.
    pub problem: String,
    /// What to do about it, down to the name of the setting.
    pub advice: String,
}
