//! The one error type of the library.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of nearly every call in this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in terms of what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker cannot be reached, or the connection broke. Waiting helps.
    Unavailable,
    /// The answer did not come in time.
    Timeout,
    /// The lease of the delivery had ended: somebody else may hold the message.
    LeaseLost,
    /// The bus, the consumer or the transport has been closed.
    Closed,
    /// This backend, or this server, cannot do what was asked. Nothing happened.
    Unsupported,
    /// An argument breaks a documented rule.
    InvalidArgument,
    /// The message exceeds the declared size limit.
    TooLarge,
    /// The broker, or a bounded queue in front of it, has no room. Waiting may help.
    Full,
    /// The topic or the group does not exist.
    NotFound,
    /// It exists already, with another configuration.
    Conflict,
    /// The broker refused the credentials, or lacks a permission for them.
    Unauthorized,
    /// Bytes could not be decoded into what was asked for.
    Decode,
    /// The broker answered with an error that fits no other kind.
    Broker,
    /// A bug in this library: an invariant did not hold.
    Internal,
}

/// Whether a failed operation may nevertheless have taken effect at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// It certainly had no effect: doing it again cannot make a second one.
    No,
    /// It took effect once or not at all; the broker's answer was lost.
    Unknown,
}

/// An error: what happened, where, and whether it may have taken effect.
///
/// One pointer wide and cheap to clone, so that one failed batch can tell each of its messages.
/// `Display` is one line; the source keeps the broker's or the client's own error.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    stored: Stored,
    operation: &'static str,
    backend: &'static str,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation` (`"publish"`, `"subscribe"`, …), saying what happened and,
    /// where that is known, what to do about it. `stored` starts as [`Stored::No`].
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            stored: Stored::No,
            operation,
            backend: "",
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Shorthand for [`ErrorKind::InvalidArgument`].
    pub fn invalid(operation: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, operation, message)
    }

    /// Shorthand for [`ErrorKind::Closed`].
    pub fn closed(operation: &'static str) -> Self {
        Self::new(ErrorKind::Closed, operation, "it has been closed")
    }

    /// Shorthand for [`ErrorKind::Unsupported`]: names the backend, the operation and the reason.
    pub fn unsupported(
        backend: &'static str,
        operation: &'static str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Unsupported, operation, reason).on(backend)
    }

    /// Names the backend.
    #[must_use]
    pub fn on(mut self, backend: &'static str) -> Self {
        Arc::make_mut(&mut self.0).backend = backend;
        self
    }

    /// Says that the operation may have taken effect.
    #[must_use]
    pub fn maybe_stored(mut self) -> Self {
        Arc::make_mut(&mut self.0).stored = Stored::Unknown;
        self
    }

    /// Adds a fact: a topic, a group, an address. Never a secret.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.0)
            .context
            .push((name, value.to_string()));
        self
    }

    /// Keeps the underlying error, for [`StdError::source`] and downcasts.
    #[must_use]
    pub fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// What went wrong, for code to act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the operation may have taken effect all the same.
    pub fn stored(&self) -> Stored {
        self.0.stored
    }

    /// The operation that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The backend it failed on; empty when it failed before reaching one.
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Full
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        write!(f, "{}", inner.operation)?;
        if !inner.backend.is_empty() {
            write!(f, " on {}", inner.backend)?;
        }
        write!(f, ": {}", inner.message)?;
        if let Some(source) = &inner.source {
            write!(f, ": {source}")?;
        }
        for (i, (name, value)) in inner.context.iter().enumerate() {
            let open = if i == 0 { " (" } else { ", " };
            write!(f, "{open}{name}={value}")?;
        }
        if !inner.context.is_empty() {
            f.write_str(")")?;
        }
        if inner.stored == Stored::Unknown {
            f.write_str(" [outcome unknown]")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error[{:?}] {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_pointer_wide_and_says_what_where_and_why() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        let error = Error::new(ErrorKind::Unavailable, "publish", "the connection broke")
            .on("redis")
            .with("topic", "orders")
            .maybe_stored()
            .because(std::io::Error::other("reset by peer"));
        assert_eq!(
            error.to_string(),
            "publish on redis: the connection broke: reset by peer (topic=orders) [outcome unknown]"
        );
        assert!(error.is_retryable());
        assert_eq!(error.stored(), Stored::Unknown);
        assert!(error.source().is_some_and(|s| s.is::<std::io::Error>()));
    }
}
