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
        let hint = match (error.backend(), error.kind()) {
            ("redis", ErrorKind::Unavailable | ErrorKind::Timeout) => Some(
                "Start a Redis server there, or name another one with REDIS_ADDR=host:port; \
                 without PROTOCOL_TYPE everything runs in memory.",
            ),
            ("redis", ErrorKind::Unauthorized) => Some(
                "Set REDIS_USERNAME and REDIS_PASSWORD to a user that may use streams and scripts.",
            ),
            ("nats", ErrorKind::Unavailable | ErrorKind::Timeout) => Some(
                "Start a NATS server with JetStream there (nats-server --jetstream), or name another \
                 one with NATS_URL=nats://host:4222; without PROTOCOL_TYPE everything runs in memory.",
            ),
            ("nats", ErrorKind::Unauthorized) => Some(
                "Set NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY or NATS_CREDS to somebody who \
                 may use JetStream, and NATS_TLS_CA to who signed the server's certificate.",
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
        for (backend, setting) in [
            ("redis", "REDIS_ADDR=host:port"),
            ("nats", "NATS_URL=nats://host:4222"),
        ] {
            let refused = Error::new(ErrorKind::Unavailable, "connect", "nobody answers")
                .on(backend)
                .with("address", "localhost:1");
            let told = Failure::from(refused).to_string();
            let line = format!("connect on {backend}: nobody answers (address=localhost:1)\n");
            assert!(told.starts_with(&line), "{told}");
            assert!(told.contains(setting), "{told}");
        }
        let other = Failure::from(Error::invalid("topic", "a topic is empty"));
        assert_eq!(other.to_string(), "topic: a topic is empty");
    }
}
