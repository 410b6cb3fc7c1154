//! How to reach servers, and how they are used.

use std::fmt;
use std::time::Duration;

use mas_transport_core::{Error, MAX_MESSAGE, Namespace, RECORD_RESERVE, Result, Tls};

use crate::BACKEND;

/// Where the streams of topics are kept: [`NatsConfig::storage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Storage {
    /// In files: what is stored survives the death of the server's process.
    #[default]
    File,
    /// In memory: what is stored is lost with the server's process, unless it is replicated.
    Memory,
}

/// Who a client says it is.
#[derive(Clone)]
pub(crate) enum Identity {
    Nobody,
    Token(String),
    User(String, String),
    Nkey(String),
    Credentials(String),
}

/// How to reach servers, and how they are used.
///
/// ```
/// use mas_transport_nats::NatsConfig;
/// let config = NatsConfig::new("127.0.0.1:4222").user("app", "secret");
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
///
/// What is wrong with a value is said by [`NatsTransport::connect`](crate::NatsTransport::connect).
#[derive(Clone)]
pub struct NatsConfig {
    pub(crate) servers: Vec<String>,
    pub(crate) identity: Identity,
    pub(crate) tls: Option<Tls>,
    pub(crate) namespace: Namespace,
    pub(crate) prefix: String,
    pub(crate) replicas: usize,
    pub(crate) storage: Storage,
    pub(crate) max_message_bytes: usize,
    pub(crate) max_topic_messages: Option<u64>,
    pub(crate) max_topic_bytes: Option<u64>,
    pub(crate) max_topic_age: Option<Duration>,
    pub(crate) duplicate_window: Duration,
    pub(crate) max_ack_pending: i64,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) max_in_flight: usize,
}

impl NatsConfig {
    /// A server at `host:port`, or several of one cluster by comma; without a port, 4222. Without
    /// credentials or a namespace.
    pub fn new(servers: impl AsRef<str>) -> Self {
        let split = servers.as_ref().split(',').map(str::trim);
        Self {
            servers: split
                .filter(|server| !server.is_empty())
                .map(with_port)
                .collect(),
            identity: Identity::Nobody,
            tls: None,
            namespace: Namespace::default(),
            prefix: "mas".to_owned(),
            replicas: 1,
            storage: Storage::File,
            max_message_bytes: MAX_MESSAGE,
            max_topic_messages: None,
            max_topic_bytes: None,
            max_topic_age: None,
            duplicate_window: Duration::from_secs(120),
            max_ack_pending: 100_000,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            max_in_flight: 32_768,
        }
    }

    /// Servers at `nats://user:password@host:port`, several of one cluster by comma. A name without a
    /// password is a token. With `tls://` the connection is encrypted, and the servers' certificates
    /// checked against the authorities that the system trusts: [`tls`](Self::tls) changes that.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no such address. The message does not repeat the address, which
    /// may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        let wrong = |why: &'static str| Error::invalid("connect", why).on(BACKEND);
        let mut config = Self::new("");
        let mut secure = false;
        for one in url.split(',').map(str::trim) {
            let rest = match one.split_once("://") {
                Some(("nats", rest)) => rest,
                Some(("tls", rest)) => {
                    secure = true;
                    rest
                }
                None => one,
                Some(_) => {
                    return Err(wrong(
                        "the address is not of the form nats://user:password@host:port, or tls://…",
                    ));
                }
            };
            let rest = rest.trim_end_matches('/');
            let (credentials, host) = match rest.rsplit_once('@') {
                Some((credentials, host)) => (Some(credentials), host),
                None => (None, rest),
            };
            let bad = |c: char| c.is_whitespace() || "/?#\\".contains(c);
            if host.is_empty() || host.contains(bad) {
                return Err(wrong(
                    "the address is not of the form nats://user:password@host:port: it needs a host, and no path",
                ));
            }
            config.servers.push(with_port(host));
            let Some(credentials) = credentials else {
                continue;
            };
            let decoded = |text: &str| {
                let text = percent_encoding::percent_decode_str(text).decode_utf8();
                text.map(|text| text.into_owned())
                    .map_err(|_| wrong("the credentials of the address are not UTF-8"))
            };
            config.identity = match credentials.split_once(':') {
                Some((user, password)) => Identity::User(decoded(user)?, decoded(password)?),
                None => Identity::Token(decoded(credentials)?),
            };
        }
        config.tls = secure.then(Tls::new);
        Ok(config)
    }

    /// A token. It appears in no message and no `Debug` output, like every secret here. The last
    /// identity that is given counts.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.identity = Identity::Token(token.into());
        self
    }

    /// A user and a password.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.identity = Identity::User(user.into(), password.into());
        self
    }

    /// The seed of an NKEY, `SU…`.
    #[must_use]
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.identity = Identity::Nkey(seed.into());
        self
    }

    /// The content of a credentials file: a JWT and the seed of its NKEY.
    #[must_use]
    pub fn credentials(mut self, content: impl Into<String>) -> Self {
        self.identity = Identity::Credentials(content.into());
        self
    }

    /// Encrypts the connection, and says whom to trust and what to show: also for an address that
    /// was given as `nats://`. Off by default, on with `tls://`; without it a server that wants
    /// encryption is refused.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Goes in front of everything kept in the server; none by default.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// What the names of streams and subjects begin with: 1 to 64 letters, digits, `_` and `-`; `mas` by default.
    #[must_use]
    pub fn stream_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// On how many servers of a cluster each topic is kept, 1 to 5; 1 by default. A topic that
    /// exists with another number is refused.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Where topics are kept; in files by default. A topic that exists elsewhere is refused.
    #[must_use]
    pub fn storage(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    /// The largest message, 1 MiB by default, at most 64 MiB; the server's `max_payload`, less 48 KiB
    /// for how headers are written, bounds it too. 32 KiB of it are kept for the record of a dead letter.
    /// Headers and attributes together take at most 56 KiB, as they are encoded: servers store no more
    /// than 64 KiB of them, and the record of a dead letter is one. Where it does not fit, its oldest
    /// failures are left out.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// How many messages a topic keeps before publishing to it fails with
    /// [`Full`](mas_transport_core::ErrorKind::Full); none by default: the server's limits bound it.
    /// A topic that exists with another bound is refused.
    #[must_use]
    pub fn max_topic_messages(mut self, messages: u64) -> Self {
        self.max_topic_messages = Some(messages);
        self
    }

    /// How many bytes a topic keeps, headers included, before publishing to it fails with
    /// [`Full`](mas_transport_core::ErrorKind::Full); none by default: the server's limits bound it.
    /// A topic that exists with another bound is refused.
    #[must_use]
    pub fn max_topic_bytes(mut self, bytes: u64) -> Self {
        self.max_topic_bytes = Some(bytes);
        self
    }

    /// How long a topic keeps a message, settled or not; none by default: for as long as some group has not
    /// settled it. At least 100 ms, as servers have it. What the server removes before a group has settled
    /// it, the group is told of as a gap. Dead letters are kept. No topic remembers duplicates for longer. A
    /// topic that exists with another bound is refused.
    #[must_use]
    pub fn max_topic_age(mut self, age: Duration) -> Self {
        self.max_topic_age = Some(age);
        self
    }

    /// How long a server remembers the `Nats-Msg-Id` of what other programs publish to a topic, to drop
    /// duplicates; 2 min by default. The library sets none.
    #[must_use]
    pub fn duplicate_window(mut self, window: Duration) -> Self {
        self.duplicate_window = window;
        self
    }

    /// How many messages all members of a group together may hold unsettled, those that wait for a
    /// delayed redelivery included; 100,000 by default, at least 1,000. Beyond it the group gets nothing new
    /// until something is settled.
    #[must_use]
    pub fn max_ack_pending(mut self, messages: u32) -> Self {
        self.max_ack_pending = i64::from(messages);
        self
    }

    /// How long `connect` goes on trying before it fails, and how long one attempt to reconnect may
    /// take; 5 s by default. Of several servers each is given its part of it.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long to wait for the answer to a request; 5 s by default. Publishes wait until their own
    /// deadline.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Most messages on their way to the server, 1 to 32,768 and 32,768 by default; `publish` waits
    /// for room beyond it.
    #[must_use]
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = messages;
        self
    }

    /// The servers, as `host:port` by comma.
    pub fn address(&self) -> String {
        self.servers.join(",")
    }

    /// Checks the ranges.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: &'static str| Err(Error::invalid("connect", why).on(BACKEND));
        if self.servers.is_empty() {
            return wrong("no server is named: host:port, several by comma");
        }
        let least = 2 * RECORD_RESERVE;
        if !(least..=64 << 20).contains(&self.max_message_bytes) {
            return wrong("the largest message is 64 KiB to 64 MiB");
        }
        if !(1..=5).contains(&self.replicas) {
            return wrong("a topic is kept on 1 to 5 servers");
        }
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if self.prefix.is_empty() || self.prefix.len() > 64 || !self.prefix.chars().all(name) {
            return wrong("the prefix of streams is 1 to 64 letters, digits, _ and -");
        }
        if !(1..=32_768).contains(&self.max_in_flight) {
            return wrong("1 to 32,768 messages are in flight at most");
        }
        if self.max_ack_pending < 1000 {
            return wrong("a group holds at least 1,000 messages unsettled");
        }
        if self.max_topic_messages == Some(0) || self.max_topic_bytes == Some(0) {
            return wrong("a topic keeps at least one message");
        }
        // Servers take no shorter ones.
        if self
            .max_topic_age
            .is_some_and(|age| age < Duration::from_millis(100))
        {
            return wrong("a topic keeps a message for at least 100 ms");
        }
        if self.duplicate_window < Duration::from_millis(100) {
            return wrong("duplicates are remembered for at least 100 ms");
        }
        let millisecond = Duration::from_millis(1);
        if self.connect_timeout < millisecond || self.response_timeout < millisecond {
            return wrong("a timeout is at least 1 ms");
        }
        Ok(())
    }
}

/// `host:port`, with the port that servers have.
fn with_port(server: &str) -> String {
    let has_port = match server.rsplit_once(':') {
        // An IPv6 address has colons of its own, in brackets.
        Some((host, port)) => {
            !port.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    if has_port {
        server.to_owned()
    } else {
        format!("{server}:4222")
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("servers", &self.servers)
            .field("identity", &self.identity)
            .field("tls", &self.tls)
            .field("namespace", &self.namespace.as_str())
            .field("stream_prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "none",
            Self::Token(_) => "a token",
            Self::User(..) => "a user and a password",
            Self::Nkey(_) => "an NKEY",
            Self::Credentials(_) => "credentials",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let config = NatsConfig::from_url("nats://app:p%40ss@one:4223,nats://two").unwrap();
        assert_eq!(config.address(), "one:4223,two:4222");
        assert!(matches!(config.identity, Identity::User(u, p) if u == "app" && p == "p@ss"));
        let config = NatsConfig::from_url("tls://s3cret@[::1]").unwrap();
        assert_eq!(config.address(), "[::1]:4222");
        assert!(matches!(&config.identity, Identity::Token(t) if t == "s3cret"));
        assert!(config.tls.is_some());
        assert!(!format!("{config:?}").contains("s3cret"));
        for wrong in [
            "redis://a",
            "nats://",
            "nats://a/b",
            "nats://u:p@",
            "nats://a b",
        ] {
            let error = NatsConfig::from_url(wrong).unwrap_err();
            assert!(!error.to_string().contains("u:p"), "{error}");
        }
    }

    #[test]
    fn ranges_are_checked() {
        let ok = NatsConfig::new("a");
        ok.check().unwrap();
        for wrong in [
            NatsConfig::new(" , "),
            ok.clone().replicas(6),
            ok.clone().max_message_bytes(1),
            ok.clone().stream_prefix("a.b"),
            ok.clone().max_in_flight(0),
            ok.clone().max_ack_pending(10),
            ok.clone().max_topic_messages(0),
            ok.clone().max_topic_age(Duration::from_millis(99)),
            ok.clone().max_topic_bytes(0),
            ok.clone().duplicate_window(Duration::ZERO),
            ok.clone().response_timeout(Duration::ZERO),
        ] {
            wrong.check().unwrap_err();
        }
    }
}
