//! What the client's and the server's errors mean in the contract's terms.

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{ConnectErrorKind, RequestError, RequestErrorKind};
use mas_transport_core::{Error, ErrorKind};

use crate::BACKEND;

pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: &'static str) -> Error {
    Error::new(kind, operation, message).on(BACKEND)
}

/// Why connecting failed.
pub(crate) fn connect(address: &str, error: async_nats::ConnectError) -> Error {
    let text = error.to_string();
    let (kind, message) = match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => (
            ErrorKind::Unauthorized,
            "the server refuses these credentials: user, password, token, NKEY or credentials file",
        ),
        ConnectErrorKind::ServerParse => (
            ErrorKind::InvalidArgument,
            "the address is not one of a NATS server: host:port",
        ),
        ConnectErrorKind::Tls => (
            ErrorKind::Unauthorized,
            "the encrypted connection was refused: the certificate of one side is not trusted by the other",
        ),
        // What rustls says of a certificate comes as an error of the connection.
        _ if text.contains("certificate") || text.contains("UnknownIssuer") => (
            ErrorKind::Unauthorized,
            "the encrypted connection was refused: the certificate of one side is not trusted by the other",
        ),
        ConnectErrorKind::Dns => (
            ErrorKind::Unavailable,
            "the name of the server is not known",
        ),
        ConnectErrorKind::TimedOut => (ErrorKind::Unavailable, "the server did not answer in time"),
        ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            (ErrorKind::Unavailable, "the server cannot be reached")
        }
    };
    crate::error::error(kind, "connect", message)
        .with("address", address)
        .because(error)
}

/// An error that a server of JetStream answered: nothing happened.
pub(crate) fn answered(operation: &'static str, told: &jetstream::Error) -> Error {
    let code = told.error_code();
    let text = told.to_string();
    let (kind, message) = match code {
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED
        | ErrorCode::MAXIMUM_STREAMS_LIMIT
        | ErrorCode::MAXIMUM_CONSUMERS_LIMIT => (
            ErrorKind::Full,
            "the server has no room left: settle or purge messages, or raise its JetStream limits",
        ),
        _ if is_full(&text) => (
            ErrorKind::Full,
            "the topic or the server has no room left: settle or purge messages, or raise the limit",
        ),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => (
            ErrorKind::TooLarge,
            "the message is larger than the stream takes",
        ),
        ErrorCode::JETSTREAM_NOT_ENABLED => (
            ErrorKind::Unsupported,
            "JetStream is switched off on this server: start it with -js, or with jetstream {} in its file",
        ),
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => (
            ErrorKind::Unsupported,
            "JetStream is switched off for this account: enable it in the server's accounts",
        ),
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => {
            (ErrorKind::NotFound, "there is no such topic or group")
        }
        _ if told.code() == 503 => (
            ErrorKind::Unavailable,
            "JetStream is not ready on this server",
        ),
        _ => (ErrorKind::Broker, "the server refused the request"),
    };
    error(kind, operation, message)
        .with("code", code.0)
        .because(Told(text))
}

/// What servers say of a store or a stream that has reached a limit, under several codes.
fn is_full(text: &str) -> bool {
    [
        "maximum messages exceeded",
        "maximum bytes exceeded",
        "no space left",
        "resource",
        "insufficient storage",
    ]
    .iter()
    .any(|what| text.contains(what))
}

/// The words of a server.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {}

/// A request that got no answer of JetStream.
pub(crate) fn unanswered(operation: &'static str, address: &str, error: RequestError) -> Error {
    let (kind, message) = match error.kind() {
        RequestErrorKind::NoResponders => (
            ErrorKind::Unavailable,
            "nobody answers for JetStream: it is switched off or starting, or the user may not publish to $JS.API.>",
        ),
        RequestErrorKind::TimedOut => (
            ErrorKind::Timeout,
            "the server did not answer in time: it is busy, or the user may not use $JS.API.> or _INBOX.>",
        ),
        _ => (ErrorKind::Unavailable, "the request could not be sent"),
    };
    let unknown = kind == ErrorKind::Timeout;
    let error = crate::error::error(kind, operation, message)
        .with("address", address)
        .because(error);
    if unknown { error.maybe_stored() } else { error }
}
