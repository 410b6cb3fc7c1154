//! What keeps a command from its work, and what to do about it.

use std::fmt;
use std::process::ExitCode;

use mas_transport::{Error, ErrorKind, Setting, Settings};

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

/// By what a backend was chosen, which decides what there is to change.
#[derive(Clone, Copy)]
enum Choice {
    Protocol,
    Url,
    /// It is not about connecting.
    Unknown,
}

/// What to do about an error.
fn advice(error: &Error, message: &str, choice: Choice) -> Option<String> {
    let another = |variable: &str| match choice {
        Choice::Url => "in TRANSPORT_URL".to_owned(),
        Choice::Protocol | Choice::Unknown => format!("with {variable}"),
    };
    let memory = match choice {
        Choice::Protocol => " Without PROTOCOL_TYPE everything runs in memory.",
        Choice::Url | Choice::Unknown => "",
    };
    let certificate = message.contains("certificate");
    let advice = match (error.backend(), error.kind()) {
        // It names the right that is missing, and how to give it.
        (_, ErrorKind::Unauthorized) if message.contains("the user may not ") => return None,
        ("redis", ErrorKind::Unavailable | ErrorKind::Timeout) => format!(
            "Start a Redis server there, or name another one {}.{memory}",
            another("REDIS_ADDR=host:port")
        ),
        ("redis", ErrorKind::Unauthorized) if certificate => {
            "Set REDIS_TLS_CA to who signed the server's certificate, and REDIS_TLS_CERT and \
             REDIS_TLS_KEY where the server asks for one."
                .to_owned()
        }
        ("redis", ErrorKind::Unauthorized) => {
            "Set REDIS_USERNAME and REDIS_PASSWORD to a user that may use streams and scripts."
                .to_owned()
        }
        ("nats", ErrorKind::Unavailable | ErrorKind::Timeout) => format!(
            "Start a NATS server with JetStream there (nats-server --jetstream), or name another \
             one {}.{memory}",
            another("NATS_URL=nats://host:4222")
        ),
        ("nats", ErrorKind::Unauthorized) if certificate => {
            "Set NATS_TLS_CA to who signed the server's certificate, and NATS_TLS_CERT and \
             NATS_TLS_KEY where the server asks for one."
                .to_owned()
        }
        ("nats", ErrorKind::Unauthorized) => {
            "Set NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY or NATS_CREDS to somebody who \
             may use JetStream."
                .to_owned()
        }
        // It says what the brokers lack.
        ("kafka", ErrorKind::Unavailable) if message.contains("no broker keeps the group") => {
            return None;
        }
        ("kafka", ErrorKind::Unavailable | ErrorKind::Timeout) => format!(
            "Start a Kafka broker there, or name others {}; clients go on to the addresses that brokers \
             tell of themselves (advertised.listeners).{memory}",
            another("KAFKA_BROKERS=host:9092")
        ),
        ("kafka", ErrorKind::Unauthorized) if certificate => {
            "Set KAFKA_TLS_CA to who signed the brokers' certificates, and KAFKA_TLS_CERT and \
             KAFKA_TLS_KEY where the brokers ask for one."
                .to_owned()
        }
        // It names the right that is missing.
        ("kafka", ErrorKind::Unauthorized) if message.contains("the user lacks a permission ") => {
            return None;
        }
        ("kafka", ErrorKind::Unauthorized) => {
            "Set KAFKA_USERNAME and KAFKA_PASSWORD to a user that the brokers know, and \
             KAFKA_SASL_MECHANISM to one that they offer."
                .to_owned()
        }
        (_, ErrorKind::Unsupported) => {
            let feature = message.split("features = [\"").nth(1);
            let feature = feature.and_then(|rest| rest.split('"').next())?;
            format!(
                "For mas itself that is: cargo install --locked --path crates/mas-cli --features {feature}"
            )
        }
        _ => return None,
    };
    Some(advice)
}

impl Failure {
    /// A backend that was chosen by these settings could not be connected to.
    pub(crate) fn to_connect(error: Error, settings: &Settings) -> Self {
        let is_set = |name| settings.get(name).is_some_and(Setting::is_set);
        let choice = match (is_set("TRANSPORT_URL"), is_set("PROTOCOL_TYPE")) {
            (true, _) => Choice::Url,
            (false, true) => Choice::Protocol,
            (false, false) => Choice::Unknown,
        };
        Self::told(&error, choice)
    }

    fn told(error: &Error, choice: Choice) -> Self {
        let message = error.to_string();
        Self {
            hint: advice(error, &message, choice),
            message,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::told(&error, Choice::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use mas_transport::Config;

    use super::*;

    #[test]
    fn who_was_refused_is_told_what_was_refused() {
        for (backend, why, named) in [
            ("redis", "the user is unknown", Some("REDIS_PASSWORD")),
            ("redis", "show a client certificate", Some("REDIS_TLS_CERT")),
            ("redis", "the user may not run XADD: grant it +xadd", None),
            (
                "nats",
                "the server refuses these credentials",
                Some("NATS_TOKEN"),
            ),
            ("nats", "show a client certificate", Some("NATS_TLS_KEY")),
            ("nats", "the user may not publish to $JS.API.INFO", None),
            (
                "kafka",
                "the broker refuses these credentials",
                Some("KAFKA_USERNAME"),
            ),
            ("kafka", "show a client certificate", Some("KAFKA_TLS_KEY")),
            ("kafka", "the user lacks a permission for the topic", None),
        ] {
            let refused = Error::new(ErrorKind::Unauthorized, "connect", why).on(backend);
            let failure = Failure::from(refused);
            match (failure.advice(), named) {
                (Some(hint), Some(named)) => assert!(hint.contains(named), "{why}: {hint}"),
                (hint, named) => assert_eq!(hint, named, "{why}"),
            }
        }
    }

    #[test]
    fn a_refused_connection_comes_with_what_to_do() {
        for (backend, setting) in [
            ("redis", "REDIS_ADDR=host:port"),
            ("nats", "NATS_URL=nats://host:4222"),
            ("kafka", "KAFKA_BROKERS=host:9092"),
        ] {
            let refused = Error::new(ErrorKind::Unavailable, "connect", "nobody answers")
                .on(backend)
                .with("address", "localhost:1");
            let told = Failure::from(refused).to_string();
            let line = format!("connect on {backend}: nobody answers (address=localhost:1)\n");
            assert!(told.starts_with(&line), "{told}");
            assert!(told.contains(setting), "{told}");
        }
        for (backend, variables, part, memory) in [
            ("redis", ("PROTOCOL_TYPE", "redis"), "with REDIS_ADDR", true),
            ("nats", ("PROTOCOL_TYPE", "nats"), "with NATS_URL", true),
            (
                "kafka",
                ("PROTOCOL_TYPE", "kafka"),
                "with KAFKA_BROKERS",
                true,
            ),
            (
                "redis",
                ("TRANSPORT_URL", "redis://h"),
                "in TRANSPORT_URL",
                false,
            ),
            (
                "nats",
                ("TRANSPORT_URL", "nats://h"),
                "in TRANSPORT_URL",
                false,
            ),
        ] {
            let settings = Config::from_vars([variables]).resolve();
            let refused = Error::new(ErrorKind::Unavailable, "connect", "gone").on(backend);
            let told = Failure::to_connect(refused, &settings).to_string();
            assert!(told.contains(part), "{told}");
            assert_eq!(told.contains("Without PROTOCOL_TYPE"), memory, "{told}");
        }
        let other = Failure::from(Error::invalid("topic", "a topic is empty"));
        assert_eq!(other.to_string(), "topic: a topic is empty");
    }
}
