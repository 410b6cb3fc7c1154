//! How to reach a server, and how it is used.

use std::fmt;
use std::time::Duration;

use mas_transport_core::{Error, MAX_MESSAGE, Namespace, RECORD_RESERVE, Result, Tls};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use crate::BACKEND;

/// What a topic does that has reached its cap: [`RedisConfig::stream_max_len`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow {
    /// A publish is refused with [`Full`](mas_transport_core::ErrorKind::Full): it is certainly not
    /// stored, and may succeed once consumers have settled something.
    Refuse,
    /// The oldest entries are dropped to make room, whether or not anybody has settled them. Every
    /// group that had not is told by a gap event. Needs Redis 7.0 or Valkey: an older server cannot
    /// tell a group what it has not seen.
    Gap,
}

/// How to reach a server, and how it is used.
///
/// ```
/// use mas_transport_redis::RedisConfig;
/// let config = RedisConfig::new("127.0.0.1:6379").password("secret").database(2);
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
///
/// What is wrong with a value is said by [`RedisTransport::connect`](crate::RedisTransport::connect).
#[derive(Clone)]
pub struct RedisConfig {
    address: String,
    username: Option<String>,
    password: Option<String>,
    database: i64,
    pub(crate) namespace: Namespace,
    pub(crate) max_message_bytes: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) tls: Option<Tls>,
    pub(crate) connections: usize,
    pub(crate) cap: Option<(u64, Overflow)>,
    pub(crate) block_timeout: Duration,
}

/// Above this a server runs out of sockets before anybody gains anything.
const MOST_CONNECTIONS: usize = 1000;

impl RedisConfig {
    /// A server at `host:port`; without a port, 6379. Without credentials, database 0, no
    /// namespace.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            username: None,
            password: None,
            database: 0,
            namespace: Namespace::default(),
            max_message_bytes: MAX_MESSAGE,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            max_in_flight: 64,
            tls: None,
            connections: 10,
            cap: None,
            block_timeout: Duration::from_secs(5),
        }
    }

    /// A server at `redis://user:password@host:port/database`; `valkey://` is the same. Every part
    /// but the host may be left out. With `rediss://` and `valkeys://` the connection is encrypted,
    /// and the server's certificate checked against the authorities that the system trusts:
    /// [`tls`](Self::tls) changes that.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no such address, `Unsupported` for unix sockets and for
    /// `#insecure`. The message does not repeat the address, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(
                "connect",
                "the address is not of the form redis://user:password@host:port/database",
            )
            .on(BACKEND)
        };
        let secure = url
            .strip_prefix("rediss://")
            .or_else(|| url.strip_prefix("valkeys://"));
        if secure.is_some() && url.ends_with("#insecure") {
            return Err(Error::unsupported(
                BACKEND,
                "connect",
                "a connection that checks no certificate is not offered: name the authority that \
                 signed the server's with Tls::ca_certificate",
            ));
        }
        let plain = secure.map(|rest| format!("redis://{rest}"));
        let url = plain.as_deref().unwrap_or(url);
        let info = url.into_connection_info().map_err(|_| wrong())?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            return Err(Error::unsupported(
                BACKEND,
                "connect",
                "only TCP addresses are supported: redis://host:port or rediss://host:port",
            ));
        };
        let settings = info.redis_settings();
        let mut config = Self::new(join(host, *port)).database(settings.db());
        config.username = settings.username().map(str::to_owned);
        config.password = settings.password().map(str::to_owned);
        config.tls = plain.is_some().then(Tls::new);
        Ok(config)
    }

    /// The ACL user; the server's default user when left out.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The password. It appears in no message and no `Debug` output.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The database number; 0 by default.
    #[must_use]
    pub fn database(mut self, database: i64) -> Self {
        self.database = database;
        self
    }

    /// A prefix in front of everything kept in the server; none by default.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// The largest message, 1 MiB by default, at most 512 MiB. 32 KiB of it are kept for the record
    /// of a dead letter.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// How long `connect` goes on trying before it fails, and how long one attempt to reconnect may
    /// take; 5 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long to wait for the answer to a command before the connection is given up; 5 s by
    /// default. Publishes wait until their own deadline.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Most batches of publishes in flight, 64 by default; `publish` waits for room beyond it.
    #[must_use]
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.max_in_flight = batches;
        self
    }

    /// Encrypts the connection, and says whom to trust and what to show: also for an address that
    /// was given as `redis://`. Off by default, on with `rediss://`.
    ///
    /// Without the crate's feature `tls` (which is on by default) connecting fails with
    /// `Unsupported`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Most connections for commands, 1 to 1,000; 10 by default.
    ///
    /// The first carries everything that is published, so that messages keep their order, and the
    /// wake-ups of all consumers. The others are for consumers: what a consumer settles, extends,
    /// reclaims and trims goes over one of them, so that none of it waits behind a large publish.
    /// Each is opened when a consumer needs it and closed with the last consumer on it; consumers
    /// beyond the number share, the least used connection first. With 1 everything shares the first.
    /// Every connection heals by itself.
    ///
    /// The blocking read of a consumer is not counted: it always has a connection of its own. So a
    /// bus with `c` consumers has `1 + min(c, n - 1) + c` connections at most, and one that only
    /// publishes has one. Each counts against the server's `maxclients`.
    #[must_use]
    pub fn connections(mut self, n: usize) -> Self {
        self.connections = n;
        self
    }

    /// The cap of every topic that is published to: how many entries it may keep, and what happens
    /// to a publish beyond it. None by default: a topic keeps what some group has not settled, and
    /// everything while it has no group.
    ///
    /// Counted are the entries from the oldest that some group has not settled on; with no group,
    /// all. What every group has settled makes room at once. The server enforces it for each message
    /// of a batch, atomically among all publishers, but only for those that ask for it: one without
    /// a cap, or with another, appends by its own rule. Dead letters and quarantine have none. Each
    /// message is then a call of a script, which costs the server more than the one command without;
    /// and a user of limited rights that only publishes also needs
    /// `+eval +evalsha +xlen +xtrim +xpending +xinfo|groups +smembers +hget +hset`.
    ///
    /// With [`Overflow::Refuse`] the number is the capability
    /// [`max_topic_messages`](mas_transport_core::Capabilities::max_topic_messages).
    #[must_use]
    pub fn stream_max_len(mut self, entries: u64, overflow: Overflow) -> Self {
        self.cap = Some((entries, overflow));
        self
    }

    /// The longest wait of one blocking read at the server, 5 s by default.
    ///
    /// A read never waits longer than an eighth of the group's lease, nor than 1 s, whatever is set
    /// here, so that nobody is handed a message whose lease has nearly ended; only a shorter time
    /// than that has an effect. It is no delay: a read ends as soon as there is a message, and a
    /// wait that ends without one is begun again at once. A short time costs idle round trips.
    #[must_use]
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    /// The address, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Checks the ranges and puts together what the client needs.
    pub(crate) fn connection_info(&self) -> Result<ConnectionInfo> {
        let wrong = |why: &'static str| {
            Err(Error::invalid("connect", why)
                .on(BACKEND)
                .with("address", &self.address))
        };
        if !(2 * RECORD_RESERVE..=512 << 20).contains(&self.max_message_bytes) {
            return wrong("max_message_bytes is 64 KiB to 512 MiB");
        }
        if self.connect_timeout.is_zero() || self.response_timeout.is_zero() {
            return wrong("timeouts are longer than zero");
        }
        if self.max_in_flight == 0 {
            return wrong("max_in_flight is at least 1");
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.connections) {
            return wrong("connections is 1 to 1,000");
        }
        if self.block_timeout < Duration::from_millis(1) {
            return wrong("block_timeout is at least 1 ms");
        }
        if self.cap.is_some_and(|(entries, _)| entries == 0) {
            return wrong("stream_max_len is at least 1");
        }
        let Some((host, port)) = split(&self.address) else {
            return wrong("the address is not of the form host:port");
        };
        let mut settings = redis::RedisConnectionInfo::default()
            .set_db(self.database)
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        Ok(ConnectionAddr::Tcp(host.to_owned(), port)
            .into_connection_info()
            .map_err(|e| {
                Error::invalid("connect", "the address cannot be used")
                    .on(BACKEND)
                    .because(e)
            })?
            .set_redis_settings(settings)
            .set_tcp_settings(tcp))
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
pub(crate) fn split(address: &str) -> Option<(&str, u16)> {
    const PORT: u16 = 6379;
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        (
            host,
            if rest.is_empty() {
                None
            } else {
                Some(rest.strip_prefix(':')?)
            },
        )
    } else {
        match address.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            Some(_) => (address, None),
            None => (address, None),
        }
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => PORT,
    };
    (!host.is_empty() && !host.contains(['/', '@', ' '])).then_some((host, port))
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("address", &self.address)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("database", &self.database)
            .field("namespace", &self.namespace)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("tls", &self.tls)
            .field("connections", &self.connections)
            .field("stream_max_len", &self.cap)
            .field("block_timeout", &self.block_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        for (text, host, port) in [
            ("localhost", "localhost", 6379),
            ("localhost:7000", "localhost", 7000),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]", "::1", 6379),
            ("[::1]:7000", "::1", 7000),
            ("::1", "::1", 6379),
        ] {
            assert_eq!(split(text), Some((host, port)), "{text}");
        }
        for bad in [
            "",
            ":6379",
            "host:x",
            "host:70000",
            "redis://host:1",
            "[::1",
            "a b",
        ] {
            assert_eq!(split(bad), None, "{bad}");
            assert!(RedisConfig::new(bad).connection_info().is_err());
        }
    }

    #[test]
    fn values_out_of_their_range_are_named() {
        let config = || RedisConfig::new("localhost");
        for (bad, named) in [
            (config().connections(0), "connections"),
            (config().connections(1001), "connections"),
            (config().block_timeout(Duration::ZERO), "block_timeout"),
            (
                config().stream_max_len(0, Overflow::Refuse),
                "stream_max_len",
            ),
        ] {
            let error = bad.connection_info().unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_url_is_taken_apart_and_its_password_stays_hidden() {
        let config = RedisConfig::from_url("redis://ann:hush-hush@example.org:7000/3").unwrap();
        assert_eq!(config.address(), "example.org:7000");
        assert_eq!(config.database, 3);
        assert_eq!(config.username.as_deref(), Some("ann"));
        assert_eq!(config.password.as_deref(), Some("hush-hush"));
        assert!(!format!("{config:?}").contains("hush"));
        let secure = RedisConfig::from_url("rediss://:hush-hush@example.org/3").unwrap();
        assert!(secure.tls.is_some());
        assert_eq!(secure.address(), "example.org:6379");
        assert!(!format!("{secure:?}").contains("hush"));
        for bad in [
            "nonsense",
            "rediss://:hush@host:1#insecure",
            "unix:///run/redis.sock",
        ] {
            let error = RedisConfig::from_url(bad).unwrap_err();
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
