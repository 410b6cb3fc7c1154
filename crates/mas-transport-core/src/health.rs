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
    /// What should be known of it, the worst first. Empty when there is nothing to say.
    pub findings: Vec<Finding>,
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

    /// Adds an error: see [`Severity::Error`].
    #[must_use]
    pub fn fail(self, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        self.find(Severity::Error, problem.into(), advice.into())
    }

    /// Adds a warning: see [`Severity::Warning`].
    #[must_use]
    pub fn warn(self, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        self.find(Severity::Warning, problem.into(), advice.into())
    }

    /// Adds a note: see [`Severity::Note`].
    #[must_use]
    pub fn note(self, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        self.find(Severity::Note, problem.into(), advice.into())
    }

    /// The findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding.severity == severity)
    }

    fn find(mut self, severity: Severity, problem: String, advice: String) -> Self {
        // Behind those that are as bad.
        let at = self
            .findings
            .partition_point(|found| found.severity >= severity);
        let finding = Finding {
            severity,
            problem,
            advice,
        };
        self.findings.insert(at, finding);
        self
    }
}

/// How much a finding matters. The worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// The broker is as many run it: what it confirmed may be lost where more than its process
    /// fails (the machine, its power, its disk), or something of it cannot be seen. To be weighed,
    /// not to be woken up for.
    Note,
    /// The broker does its work and loses confirmed messages when its process ends, when it is
    /// short of memory, or in the course of things; or it is about to refuse new ones.
    Warning,
    /// The broker answers and does not take messages.
    Error,
}

/// Something about a broker that whoever runs it should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is so, and what may come of it.
    pub problem: String,
    /// What to do about it, down to the name of the setting.
    pub advice: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_told_first_and_the_order_is_kept_otherwise() {
        let health = Health::new("server", Duration::ZERO)
            .note("a", "")
            .warn("b", "")
            .fail("c", "")
            .note("d", "")
            .warn("e", "");
        let order: Vec<_> = health.findings.iter().map(|f| f.problem.as_str()).collect();
        assert_eq!(order, ["c", "b", "e", "a", "d"]);
        let notes: Vec<_> = health
            .of(Severity::Note)
            .map(|f| f.problem.as_str())
            .collect();
        assert_eq!(notes, ["a", "d"]);
    }
}
