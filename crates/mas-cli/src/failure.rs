//! What keeps a command from its work, and what to do about it.

use std::fmt;
use std::process::ExitCode;

use mas_transport::{Error, ErrorKind};

use crate::output::tell;

/// What keeps a command from its work: told in one line, with a second one that says what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// The exit code of a command that could not do its work.
    pub(crate) const EXIT: u8 = 2;

    /// A failure without a hint.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What happened.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Writes it to stderr.
    pub(crate) fn report(&self) -> ExitCode {
        tell!("mas: {self}");
        ExitCode::from(Self::EXIT)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n     {hint}"),
            None => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let redis = error.backend() == "redis";
        let hint = match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Timeout if redis => Some(
                "Start a Redis server there, or name another one with REDIS_ADDR=host:port; \
                 without PROTOCOL_TYPE everything runs in memory.",
            ),
            ErrorKind::Unauthorized if redis => Some(
                "Set REDIS_USERNAME and REDIS_PASSWORD to a user that may use streams and scripts.",
            ),
            _ => None,
        };
        Self {
            message: error.to_string(),
            hint: hint.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_comes_with_what_to_do() {
        let refused = Error::new(ErrorKind::Unavailable, "connect", "nobody answers")
            .on("redis")
            .with("address", "localhost:6379");
        let told = Failure::from(refused).to_string();
        assert!(told.starts_with("connect on redis: nobody answers (address=localhost:6379)\n"));
        assert!(told.contains("REDIS_ADDR=host:port"), "{told}");
        let other = Failure::from(Error::invalid("topic", "a topic is empty"));
        assert_eq!(other.to_string(), "topic: a topic is empty");
    }
}
