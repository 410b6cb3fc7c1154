//! What the client's and the server's errors mean in the contract's terms.

use std::error::Error as _;

use async_nats::jetstream::{self, ErrorCode};
use async_nats::rustls::{self, AlertDescription, CertificateError};
use async_nats::{ConnectError, ConnectErrorKind, RequestError, RequestErrorKind};
use mas_transport_core::{Error, ErrorKind};

use crate::BACKEND;
use crate::config::{Identity, NatsConfig};

pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: &'static str) -> Error {
    Error::new(kind, operation, message).on(BACKEND)
}

/// What to do about a server without JetStream.
pub(crate) const SWITCHED_OFF: &str =
    "JetStream is switched off on this server: start it with -js, or with jetstream {} in its file";

/// Why connecting failed.
pub(crate) fn connect(config: &NatsConfig, error: ConnectError) -> Error {
    let text = error.to_string();
    let (kind, message) = match (error.kind(), handshake(&error)) {
        (ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication, _) => (
            ErrorKind::Unauthorized,
            match config.identity {
                Identity::Nobody => {
                    "the server asks who this is: set a user and a password, a token, an NKEY or credentials"
                }
                _ => {
                    "the server refuses these credentials: user, password, token, NKEY or credentials file"
                }
            },
        ),
        // The client turns to TLS by itself.
        (_, Some(_)) if config.tls.is_none() => (
            ErrorKind::Unsupported,
            "the server wants encrypted connections: connect with TLS (tls://)",
        ),
        (_, Some(handshake)) => handshake,
        (ConnectErrorKind::ServerParse, _) => (
            ErrorKind::InvalidArgument,
            "the address is not one of a NATS server: host:port",
        ),
        (ConnectErrorKind::Tls, _) => (
            ErrorKind::InvalidArgument,
            "no encrypted connection can be made: the certificates of the system, or the name of the server, cannot be used",
        ),
        (ConnectErrorKind::Dns, _) => (
            ErrorKind::Unavailable,
            "the name of the server is not known",
        ),
        (ConnectErrorKind::TimedOut, _) => {
            (ErrorKind::Unavailable, "the server did not answer in time")
        }
        _ if text.contains("maximum") && text.contains("connections") => (
            ErrorKind::Unavailable,
            "the server has its maximum of connections: raise max_connections or close some",
        ),
        (ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects, _) => {
            (ErrorKind::Unavailable, "the server cannot be reached")
        }
    };
    crate::error::error(kind, "connect", message)
        .with("address", config.address())
        .because(error)
}

/// What a failure of TLS means; `None` for one of the network.
fn handshake(error: &ConnectError) -> Option<(ErrorKind, &'static str)> {
    use AlertDescription as Alert;
    let io = error.source()?.downcast_ref::<std::io::Error>()?;
    let cause = io.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match cause {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            ErrorKind::Unauthorized,
            "the server's certificate is for another name: connect by a name or an IP address that stands in it",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => (
            ErrorKind::Unauthorized,
            "the server's certificate has expired: renew it",
        ),
        rustls::Error::InvalidCertificate(_) => (
            ErrorKind::Unauthorized,
            "the server's certificate is not trusted: name the authority that signed it with NATS_TLS_CA (Tls::ca_certificate), or have the system trust it",
        ),
        // Servers say the same of one that is missing and of one that they do not take.
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::HandshakeFailure
            | Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => (
            ErrorKind::Unauthorized,
            "the server wants a client certificate that its own authority (ca_file) has signed and that is valid now: show one with NATS_TLS_CERT and NATS_TLS_KEY (Tls::client_certificate)",
        ),
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::Unsupported,
            "the server does not speak TLS on this port: give it a tls block, or connect without TLS (nats://)",
        ),
        _ => (
            ErrorKind::Unavailable,
            "no encrypted connection could be made",
        ),
    })
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
        ErrorCode::JETSTREAM_NOT_ENABLED => (ErrorKind::Unsupported, SWITCHED_OFF),
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => (
            ErrorKind::Unsupported,
            "JetStream is switched off for this account: enable it in the server's accounts",
        ),
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => {
            (ErrorKind::NotFound, "there is no such topic or group")
        }
        _ if is_unstored(told) => (
            ErrorKind::Unavailable,
            "the server could not make the store: a stream of the same name is still being deleted, or its disk \
             cannot be written; the server's log says which",
        ),
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

/// Whether a stream or a consumer could not be made for want of a store.
///
/// A server takes a stream's name out of its list before it removes the directory. Before 2.10 (seen on
/// 2.9.10) whoever is told that the stream is gone and makes it again meets the old directory: some part of
/// it is gone when it is looked at (`newFileStoreWithCreated`).
pub(crate) fn is_unstored(told: &jetstream::Error) -> bool {
    matches!(
        told.error_code(),
        ErrorCode::STREAM_CREATE | ErrorCode::CONSUMER_STORE_FAILED
    ) && told.to_string().contains("error creating store")
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
