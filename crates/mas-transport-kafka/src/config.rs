//! How to reach brokers, and how they are used.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

use mas_transport_core::{
    Error, MAX_MESSAGE, MAX_NAMESPACE, Namespace, RECORD_RESERVE, Result, Tls, Topic,
};
use rdkafka::ClientConfig;

use crate::BACKEND;
use crate::keys::Keys;
use crate::passed::{self, NativeRefused};
use crate::security::{Mechanism, Security};

/// When a broker confirms a message: [`KafkaConfig::acks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Acks {
    /// When all replicas that are in sync have it.
    #[default]
    All,
    /// When the partition's leader has it: it is lost with the leader's machine, and what the
    /// replicas have not copied is lost when another one takes the lead.
    Leader,
}

/// How batches of messages are compressed: [`KafkaConfig::compression`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// Fast, and smaller by about half for text.
    #[default]
    Snappy,
    /// Slow and small.
    Gzip,
    /// The fastest.
    Lz4,
    /// Smaller than gzip, and faster.
    Zstd,
}

/// How the members of a group share partitions: [`KafkaConfig::group_protocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// Cooperative rebalancing by the members: a dead one is noticed within the session timeout.
    #[default]
    Classic,
    /// KIP-848, by the broker (Kafka 4.0): a dead member is noticed after 45 s by default, as the
    /// broker is configured.
    Consumer,
}

/// How to reach brokers, and how they are used.
///
/// ```
/// use mas_transport_kafka::{KafkaConfig, Mechanism};
/// let config = KafkaConfig::new("one:9092,two:9092").sasl(Mechanism::Plain, "app", "secret");
/// assert!(!format!("{config:?}").contains("secret"));
/// config.check()?;
/// # Ok::<(), mas_transport_core::Error>(())
/// ```
///
/// What is wrong with a value is said by [`check`](Self::check), and when connecting.
#[derive(Clone)]
pub struct KafkaConfig {
    pub(crate) brokers: Vec<String>,
    pub(crate) security: Security,
    pub(crate) namespace: Namespace,
    pub(crate) prefix: String,
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    pub(crate) min_insync: Option<i32>,
    pub(crate) retention: Option<Duration>,
    pub(crate) acks: Acks,
    pub(crate) compression: Compression,
    pub(crate) client_id: String,
    pub(crate) group_protocol: GroupProtocol,
    pub(crate) session_timeout: Duration,
    pub(crate) revocation_notice: Duration,
    pub(crate) max_message_bytes: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) auto_create: bool,
    /// Settings of librdkafka, passed through. Their values may be secrets.
    pub(crate) native: BTreeMap<String, String>,
}

impl KafkaConfig {
    /// Brokers at `host:port`, several of one cluster by comma; without a port, 9092. Without
    /// credentials or a namespace.
    ///
    /// Brokers tell clients of each other: one that is up is enough to begin with.
    pub fn new(brokers: impl AsRef<str>) -> Self {
        let split = brokers.as_ref().split(',').map(str::trim);
        Self {
            brokers: split
                .filter(|broker| !broker.is_empty())
                .map(with_port)
                .collect(),
            security: Security::default(),
            namespace: Namespace::default(),
            prefix: "mas".to_owned(),
            partitions: 3,
            replication: 1,
            min_insync: None,
            retention: Some(Duration::from_secs(168 * 3600)),
            acks: Acks::All,
            compression: Compression::Snappy,
            client_id: "mas-transport".to_owned(),
            group_protocol: GroupProtocol::Classic,
            session_timeout: Duration::from_secs(6),
            revocation_notice: Duration::from_secs(5),
            max_message_bytes: MAX_MESSAGE,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            max_in_flight: 32_768,
            auto_create: true,
            native: BTreeMap::new(),
        }
    }

    /// Brokers at `kafka://user:password@host:port,host:port`; a user signs in by SASL PLAIN, unless
    /// [`sasl_mechanism`](Self::sasl_mechanism) says otherwise. In credentials `/ ? # @ , %` and `:`
    /// are percent-encoded.
    ///
    /// With `kafkas://` the connections are encrypted, and the brokers' certificates checked against
    /// the authorities that the system trusts: [`tls`](Self::tls) changes that. Kafka itself has no
    /// URLs; the name is formed as `https` and `rediss` are, and `PROTOCOL_TYPE` takes it as well,
    /// where a scheme is letters and digits alone.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no such address. The message does not repeat the address, which
    /// may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        let wrong = |why: &'static str| Error::invalid("connect", why).on(BACKEND);
        let (secure, rest) = match url.trim().split_once("://") {
            Some(("kafka", rest)) => (false, rest),
            Some(("kafkas", rest)) => (true, rest),
            _ => {
                return Err(wrong(
                    "the address is not of the form kafka://user:password@host:port,host:port, or kafkas://…",
                ));
            }
        };
        let rest = rest.trim_end_matches('/');
        let (credentials, hosts) = match rest.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, rest),
        };
        let mut config = Self::new(hosts);
        if config.brokers.is_empty() || !config.brokers.iter().all(|broker| is_address(broker)) {
            return Err(wrong(
                "the address is not of the form kafka://user:password@host:port,host:port: it needs \
                 a host, and no path",
            ));
        }
        if let Some(credentials) = credentials {
            let decoded = |text: &str| {
                let text = percent_encoding::percent_decode_str(text).decode_utf8();
                text.map(|text| text.into_owned())
                    .map_err(|_| wrong("the credentials of the address are not UTF-8"))
            };
            let Some((user, password)) = credentials.split_once(':') else {
                return Err(wrong("the user of the address has no password"));
            };
            config = config.sasl(Mechanism::Plain, decoded(user)?, decoded(password)?);
        }
        config.security.tls = secure.then(Tls::new);
        Ok(config)
    }

    /// Signs in as a user, by SASL. The password appears in no message and no `Debug` output, like
    /// every secret here.
    ///
    /// SCRAM needs the crate's feature `ssl`; without it connecting fails with `Unsupported`.
    #[must_use]
    pub fn sasl(
        mut self,
        mechanism: Mechanism,
        user: impl Into<String>,
        password: impl Into<String>,
    ) -> Self {
        self.security.mechanism = mechanism;
        self.security.user = Some((user.into(), password.into()));
        self
    }

    /// How the user of an address proves to be one: after [`from_url`](Self::from_url), which has no
    /// place for it.
    #[must_use]
    pub fn sasl_mechanism(mut self, mechanism: Mechanism) -> Self {
        self.security.mechanism = mechanism;
        self
    }

    /// Encrypts the connections, and says whom to trust and what to show: also for an address that
    /// was given as `kafka://`. Off by default, on with `kafkas://`; it never falls back to plain text.
    /// The host of each broker, as the brokers themselves name it (`advertised.listeners`), has to
    /// stand in its certificate.
    ///
    /// It is OpenSSL's, and needs the crate's feature `ssl`; without it connecting fails with
    /// `Unsupported`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.security.tls = Some(tls);
        self
    }

    /// Goes in front of everything kept in the brokers; none by default.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// What the names of Kafka topics and consumer groups begin with: 1 to 18 letters, digits, `_`
    /// and `-`; `mas` by default. Prefix, namespace and topic have 249 bytes together.
    #[must_use]
    pub fn topic_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The partitions of a topic that is made here, 1 to 10,000; 3 by default. So many members of a
    /// group work at the same time; those beyond stand by.
    #[must_use]
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = partitions;
        self
    }

    /// On how many brokers a topic that is made here is kept, 1 to 100; 1 by default. With 3, and
    /// [`min_insync_replicas`](Self::min_insync_replicas) of 2, the loss of a machine loses nothing.
    #[must_use]
    pub fn replication_factor(mut self, brokers: i32) -> Self {
        self.replication = brokers;
        self
    }

    /// How many replicas have to be in sync for a topic that is made here to take messages
    /// (`min.insync.replicas`), 1 to the replication factor; the brokers' own number by default, which is
    /// 1 unless they are configured otherwise. With fewer, publishing fails with `Unavailable`, and
    /// nothing is lost.
    #[must_use]
    pub fn min_insync_replicas(mut self, replicas: i32) -> Self {
        self.min_insync = Some(replicas);
        self
    }

    /// How long a topic that is made here keeps a message, settled or not: `retention.ms`, 1 s or more;
    /// 168 h by default, as brokers have it. `None` keeps it for ever, as dead letters are. What a broker
    /// removes before a group has settled it, the group is told of as a gap.
    #[must_use]
    pub fn retention(mut self, retention: impl Into<Option<Duration>>) -> Self {
        self.retention = retention.into();
        self
    }

    /// When a broker confirms a message; [`Acks::All`] by default. [`Acks::Leader`] may lose what was
    /// confirmed, and receipts claim less.
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> Self {
        self.acks = acks;
        self
    }

    /// How batches are compressed; [`Compression::Snappy`] by default. Members take all of them;
    /// other programs may want a package for it.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// What brokers call this client in their logs, metrics and quotas: 1 to 64 letters, digits, `_`,
    /// `-` and `.`; `mas-transport` by default.
    #[must_use]
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = id.into();
        self
    }

    /// How the members of a group share partitions; [`GroupProtocol::Classic`] by default. All members
    /// of a group use the same.
    #[must_use]
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.group_protocol = protocol;
        self
    }

    /// How long the broker waits for a member before it takes it for dead, 1 s to 30 min; 6 s by
    /// default, which is also the least that brokers take by default (`group.min.session.timeout.ms`).
    /// With [`GroupProtocol::Consumer`] it has no effect: the brokers' own counts.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long handlers may go on with messages of a partition that is about to go to another member,
    /// up to 1 min; 5 s by default. Nobody has the partition meanwhile.
    #[must_use]
    pub fn revocation_notice(mut self, notice: Duration) -> Self {
        self.revocation_notice = notice;
        self
    }

    /// The largest message, 64 KiB to 10 MiB; 1 MiB by default. A topic that exists with a smaller
    /// `max.message.bytes` refuses what is larger than that. 32 KiB are kept for the record of a dead
    /// letter.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// How long `connect` goes on trying before it fails, 1 ms to 1 h; 5 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long to wait for the answer to a request, 1 ms to 1 h; 5 s by default. Publishes wait until
    /// their own deadline.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// The name of the Kafka topic of a topic: `mas.orders.created`.
    pub fn topic_name(&self, topic: &Topic) -> String {
        Keys::new(&self.prefix, &self.namespace).topic(topic)
    }

    /// Most messages on their way to the brokers, 1 to 32,768 and 32,768 by default; `publish` waits for
    /// room beyond it.
    #[must_use]
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = messages;
        self
    }

    /// Whether a topic that is not there is made by who publishes or subscribes first; `true` by default.
    /// Otherwise that fails with `NotFound`. Brokers are never asked to make one themselves.
    #[must_use]
    pub fn auto_create(mut self, on: bool) -> Self {
        self.auto_create = on;
        self
    }

    /// A setting of [librdkafka](https://github.com/confluentinc/librdkafka/blob/v2.12.1/CONFIGURATION.md),
    /// which is passed through as it is: `native("linger.ms", "2")`. One that would break what this
    /// library promises is refused by [`check`](Self::check), and so is one that librdkafka does not
    /// have. The value appears in no message and no `Debug` output.
    #[must_use]
    pub fn native(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.native.insert(key.into(), value.into());
        self
    }

    /// Checks one setting of librdkafka without setting it.
    ///
    /// # Errors
    /// Why it is not passed through, and what to use instead.
    pub fn check_native(key: &str, value: &str) -> std::result::Result<(), NativeRefused> {
        passed::check(key, value)
    }

    /// The brokers, as `host:port` by comma.
    pub fn address(&self) -> String {
        self.brokers.join(",")
    }

    /// Checks everything that can be checked without connecting; connecting does it first.
    ///
    /// # Errors
    /// `InvalidArgument`, with what is allowed; `Unsupported` for TLS and SCRAM in a build without the
    /// feature `ssl`.
    pub fn check(&self) -> Result<()> {
        let wrong = |why: &'static str| Err(Error::invalid("connect", why).on(BACKEND));
        if self.brokers.is_empty() {
            return wrong("no broker is named: host:port, several by comma");
        }
        if !self.brokers.iter().all(|broker| is_address(broker)) {
            return wrong("a broker is not of the form host:port");
        }
        self.security.check()?;
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let prefix = &self.prefix;
        if prefix.is_empty() || prefix.len() > MAX_NAMESPACE || !prefix.chars().all(name) {
            return wrong("the prefix of topics is 1 to 18 letters, digits, _ and -");
        }
        let id = &self.client_id;
        if !(1..=64).contains(&id.len()) || !id.chars().all(|c| name(c) || c == '.') {
            return wrong("the client's name is 1 to 64 letters, digits, _, - and .");
        }
        if !(1..=10_000).contains(&self.partitions) {
            return wrong("a topic has 1 to 10,000 partitions");
        }
        if !(1..=100).contains(&self.replication) {
            return wrong("a topic is kept on 1 to 100 brokers");
        }
        if let Some(least) = self.min_insync
            && !(1..=self.replication).contains(&least)
        {
            return wrong(
                "1 to as many replicas are in sync as a topic has: the replication factor",
            );
        }
        let second = Duration::from_secs(1);
        if self
            .retention
            .is_some_and(|kept| kept < second || i64::try_from(kept.as_millis()).is_err())
        {
            return wrong("a topic keeps a message for at least 1 s");
        }
        if !(second..=1800 * second).contains(&self.session_timeout) {
            return wrong("a member counts as dead after 1 s to 30 min");
        }
        if self.revocation_notice > 60 * second {
            return wrong("the notice before a partition goes is 1 min at most");
        }
        if !(2 * RECORD_RESERVE..=10 << 20).contains(&self.max_message_bytes) {
            return wrong("the largest message is 64 KiB to 10 MiB");
        }
        let range = Duration::from_millis(1)..=3600 * second;
        if !range.contains(&self.connect_timeout) || !range.contains(&self.response_timeout) {
            return wrong("a timeout is 1 ms to 1 h");
        }
        if !(1..=32_768).contains(&self.max_in_flight) {
            return wrong("1 to 32,768 messages are in flight at most");
        }
        for (key, value) in &self.native {
            if let Err(refused) = passed::check(key, value) {
                let why = format!("a setting of librdkafka is not passed through: {refused}");
                let error = Error::invalid("connect", why).on(BACKEND);
                return Err(error.with("setting", key.escape_debug()));
            }
        }
        Ok(())
    }

    /// What every client of this configuration begins with: brokers, name, security, and what is
    /// passed through. What is set on it afterwards goes before what was passed through: a setting
    /// that [`native`](Self::native) may change is set only where `get` finds none.
    ///
    /// `Debug` of it shows keys and certificates: it is not to be printed.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (key, value) in &self.native {
            client.set(key, value);
        }
        client.set("bootstrap.servers", self.address());
        client.set("client.id", &self.client_id);
        prefer(&mut client, "reconnect.backoff.ms", "50");
        prefer(&mut client, "reconnect.backoff.max.ms", "1000");
        self.security.apply(&mut client);
        client
    }
}

/// A setting for which what the user passed through counts more.
pub(crate) fn prefer(client: &mut ClientConfig, key: &str, value: &str) {
    if client.get(key).is_none() {
        client.set(key, value);
    }
}

/// `host:port`, with the port that brokers have.
fn with_port(broker: &str) -> String {
    // An IPv6 address has colons of its own, in brackets.
    let behind = broker.rsplit_once(']').map_or(broker, |(_, behind)| behind);
    match behind.contains(':') {
        true => broker.to_owned(),
        false => format!("{broker}:9092"),
    }
}

/// `host:port` or `[v6]:port`.
fn is_address(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else {
        return false;
    };
    let named = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(named),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("security", &self.security)
            .field("namespace", &self.namespace.as_str())
            .field("topic_prefix", &self.prefix)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication)
            .field("min_insync_replicas", &self.min_insync)
            .field("retention", &self.retention)
            .field("acks", &self.acks)
            .field("compression", &self.compression)
            .field("client_id", &self.client_id)
            .field("group_protocol", &self.group_protocol)
            .field("session_timeout", &self.session_timeout)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("auto_create", &self.auto_create)
            // The values may be secrets.
            .field("native", &self.native.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
