//! The one table of settings. Parsing, checks, suggestions, the reference page and the commented
//! file all come from it.

use std::time::Duration;

use mas_transport_core::{MAX_GROUP, MAX_NAMESPACE};

use super::variable::{Family, Kind, Variable};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEARS: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
const SIZES: Kind = Kind::Bytes(64 << 10, 512 << 20);

pub(crate) const PROTOCOL_TYPE: &str = "PROTOCOL_TYPE";
pub(crate) const TRANSPORT_URL: &str = "TRANSPORT_URL";
pub(crate) const TRANSPORT_STARTUP: &str = "TRANSPORT_STARTUP";
pub(crate) const MAS_CONFIG: &str = "MAS_CONFIG";
pub(crate) const MAS_NAMESPACE: &str = "MAS_NAMESPACE";
pub(crate) const MESSAGE_MAX_RETRIES: &str = "MESSAGE_MAX_RETRIES";
pub(crate) const MESSAGE_MAX_SIZE: &str = "MESSAGE_MAX_SIZE";
pub(crate) const PUBLISH_TIMEOUT: &str = "PUBLISH_TIMEOUT";

/// The group of subscriptions that name none, where the backend has no variable for it.
pub(crate) const DEFAULT_GROUP: &str = "multiagent";

/// What every backend has.
pub(crate) const COMMON: &[Variable] = &[
    Variable::new(
        PROTOCOL_TYPE,
        Kind::Text,
        "The backend: inmemory (or memory), redis, nats, kafka, or the scheme of a backend of your own. \
         Their cargo features are memory, redis, nats and kafka. rediss, valkeys and kafkas ask for \
         TLS as well.",
    )
    .default("inmemory"),
    Variable::new(
        TRANSPORT_URL,
        Kind::Url,
        "Backend and address in one: redis://user:password@host:6379/0?pool_size=4. Any setting of \
         the backend can be an option, by its name in lower case without the prefix. In credentials, \
         percent-encode / ? # @ and %.",
    ),
    Variable::new(
        TRANSPORT_STARTUP,
        Kind::Choice(&["fail", "wait"]),
        "What connecting does while the broker cannot be reached: fail after the connect timeout of \
         the backend, or wait until the broker is there, with a line in the log for each attempt. \
         Refused credentials and wrong settings always fail at once.",
    )
    .default("fail"),
    Variable::new(
        MAS_CONFIG,
        Kind::File,
        "A file with settings, TOML (.toml) or YAML (.yaml, .yml). Not a setting of a file itself.",
    ),
    Variable::new(
        MAS_NAMESPACE,
        Kind::Name(MAX_NAMESPACE),
        "Goes in front of every name in the broker, so that teams and test runs share one.",
    ),
    Variable::new(
        MESSAGE_MAX_RETRIES,
        Kind::Whole(1, u32::MAX as u64),
        "How often a message is attempted before it is dead-lettered, the first attempt included, \
         by subscriptions that do not say it themselves.",
    )
    .default("3"),
    Variable::new(
        MESSAGE_MAX_SIZE,
        SIZES,
        "The largest message: payload, headers and attributes. 32 KiB of it are kept for the record \
         of a dead letter. Kafka takes 10MB at most. Units are binary: 1MB is 1,048,576 bytes.",
    )
    .default("1MB"),
    Variable::new(
        PUBLISH_TIMEOUT,
        Kind::Duration(Duration::from_millis(10), DAY),
        "How long a publish may wait for room, to be sent, and for its confirmation, together.",
    )
    .default("30s"),
];

const NO_EXPIRY: &str = "How long a message is kept for its readers. Messages do not expire yet in \
                         this version: setting it has no effect, and is said so when connecting.";

pub(crate) const REDIS: &[Variable] = &[
    Variable::new(
        "REDIS_ADDR",
        Kind::Address,
        "The server, host:port; 6379 when there is no port.",
    )
    .default("localhost:6379"),
    Variable::new(
        "REDIS_URL",
        Kind::Url,
        "The server as a URL, with the options of TRANSPORT_URL: redis://user:password@host:6379/0, \
         rediss:// for TLS. It does not choose the backend.",
    ),
    Variable::new(
        "REDIS_HOST",
        Kind::Text,
        "The server's host, in place of REDIS_ADDR.",
    ),
    Variable::new(
        "REDIS_PORT",
        Kind::Whole(1, 65_535),
        "The server's port, in place of REDIS_ADDR; the host is localhost when REDIS_HOST is not \
         set. A value that begins with tcp:// is passed over: container platforms set it for a \
         service that is called redis.",
    ),
    Variable::new(
        "REDIS_USERNAME",
        Kind::Text,
        "The ACL user; the server's default user when unset.",
    ),
    Variable::new("REDIS_PASSWORD", Kind::Secret, "The password."),
    Variable::new(
        "REDIS_DB",
        Kind::Whole(0, i32::MAX as u64),
        "The number of the database. A server has 16 of them, 0 to 15, unless it is configured \
         otherwise.",
    )
    .default("0"),
    Variable::new(
        "REDIS_POOL_SIZE",
        Kind::Whole(1, 1000),
        "The number of connections for commands, opened as consumers need them. Each consumer has \
         one more, for its blocking read.",
    )
    .default("10"),
    Variable::new(
        "REDIS_CONSUMER_GROUP",
        Kind::Name(MAX_GROUP),
        "The group of subscriptions that name none.",
    )
    .default(DEFAULT_GROUP),
    Variable::new(
        "REDIS_STREAM_MAX_LEN",
        Kind::Whole(1, u64::MAX),
        "The cap of every topic that is published to, in entries. Without it a topic keeps what \
         some group has not settled, and everything while it has no group.",
    ),
    Variable::new(
        "REDIS_STREAM_OVERFLOW",
        Kind::Choice(&["refuse", "gap"]),
        "What happens to a publish beyond REDIS_STREAM_MAX_LEN: it is refused with Full, or the \
         oldest entries are dropped, settled or not, and every group that had not settled them is \
         told by a gap event.",
    )
    .default("refuse"),
    Variable::new(
        "REDIS_BLOCK_TIMEOUT",
        Kind::Duration(MILLISECOND, DAY),
        "The longest wait of one blocking read at the server. A read never waits longer than an \
         eighth of the group's lease nor than 1 s, so only less than that has an effect. It delays \
         no message.",
    )
    .default("5s"),
    Variable::new(
        "REDIS_CONNECT_TIMEOUT",
        Kind::Duration(MILLISECOND, DAY),
        "How long connecting goes on trying before it fails, and how long one attempt to reconnect \
         may take.",
    )
    .default("5s"),
    Variable::new(
        "REDIS_MESSAGE_TTL",
        Kind::Duration(MILLISECOND, YEARS),
        NO_EXPIRY,
    )
    .default("24h"),
    Variable::new(
        "REDIS_TLS",
        Kind::Switch,
        "Whether the connection is encrypted. rediss:// and valkeys://, PROTOCOL_TYPE=rediss and \
         valkeys, and each of the variables below turn it on.",
    ),
    Variable::new(
        "REDIS_TLS_CA",
        Kind::File,
        "A PEM file with the authorities that may have signed the server's certificate; those of \
         the system when unset.",
    ),
    Variable::new(
        "REDIS_TLS_CERT",
        Kind::File,
        "A PEM file with the certificate to show to the server.",
    ),
    Variable::new(
        "REDIS_TLS_KEY",
        Kind::File,
        "A PEM file with the key of that certificate.",
    ),
];

pub(crate) const KAFKA: &[Variable] = &[
    Variable::new(
        "KAFKA_BROKERS",
        Kind::Addresses,
        "Some of the brokers, host:port by comma; 9092 when there is no port. They tell of the others.",
    )
    .default("localhost:9092"),
    Variable::new(
        "KAFKA_USERNAME",
        Kind::Text,
        "The user, with KAFKA_PASSWORD: signs in by SASL.",
    ),
    Variable::new("KAFKA_PASSWORD", Kind::Secret, "The user's password."),
    Variable::new(
        "KAFKA_SASL_MECHANISM",
        Kind::Choice(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
        "How the user proves to be one. By PLAIN the password itself goes over the connection. SCRAM \
         needs the cargo feature kafka-ssl.",
    )
    .default("PLAIN"),
    Variable::new(
        "KAFKA_GROUP_ID",
        Kind::Name(MAX_GROUP),
        "The group of subscriptions that name none.",
    )
    .default("multiagent-group"),
    Variable::new(
        "KAFKA_TOPIC_PREFIX",
        Kind::Name(MAX_NAMESPACE),
        "What the names of Kafka topics and consumer groups begin with: orders.new is \
         multiagent.orders.new.",
    )
    .default("multiagent"),
    Variable::new(
        "KAFKA_NUM_PARTITIONS",
        Kind::Whole(1, 10_000),
        "The partitions of a topic that is made when it is first used. So many members of a group work \
         at the same time.",
    )
    .default("3"),
    Variable::new(
        "KAFKA_REPLICATION_FACTOR",
        Kind::Whole(1, 100),
        "On how many brokers such a topic is kept.",
    )
    .default("1"),
    Variable::new(
        "KAFKA_MIN_INSYNC_REPLICAS",
        Kind::Whole(1, 100),
        "How many replicas have to be in sync for such a topic to take messages; the brokers' own \
         number, which is 1 by default, when unset.",
    ),
    Variable::new(
        "KAFKA_MESSAGE_TTL",
        Kind::Duration(Duration::from_secs(1), YEARS),
        "How long such a topic keeps a message, settled or not. Groups are told of what is removed \
         before they settled it, as a gap.",
    )
    .default("168h"),
    Variable::new(
        "KAFKA_AUTO_CREATE",
        Kind::Switch,
        "Whether a topic that is not there is made when it is first used. Otherwise that fails with \
         NotFound.",
    )
    .default("true"),
    Variable::new(
        "KAFKA_COMPRESSION",
        Kind::Choice(&["none", "gzip", "snappy", "lz4", "zstd"]),
        "How batches are compressed.",
    )
    .default("snappy"),
    Variable::new(
        "KAFKA_ACKS",
        Kind::Choice(&["all", "1"]),
        "Whose word a receipt takes: that of all replicas in sync, or of the leader alone, which may \
         lose what it confirmed.",
    )
    .default("all"),
    Variable::new(
        "KAFKA_CLIENT_ID",
        Kind::Name(MAX_GROUP),
        "How this client calls itself in the logs of the brokers.",
    )
    .default("mas-transport"),
    Variable::new(
        "KAFKA_GROUP_PROTOCOL",
        Kind::Choice(&["classic", "consumer"]),
        "How the members of a group share partitions: among themselves, or by the brokers (KIP-848, \
         Kafka 4.0). All members of a group use the same.",
    )
    .default("classic"),
    Variable::new(
        "KAFKA_SESSION_TIMEOUT",
        Kind::Duration(Duration::from_secs(1), Duration::from_secs(1800)),
        "How long a broker waits for a member before it takes it for dead. Brokers take no less than \
         6s unless they are configured otherwise. It has no effect with \
         KAFKA_GROUP_PROTOCOL=consumer.",
    )
    .default("6s"),
    Variable::new(
        "KAFKA_CONNECT_TIMEOUT",
        Kind::Duration(MILLISECOND, HOUR),
        "How long connecting goes on trying before it fails.",
    )
    .default("5s"),
    Variable::new(
        "KAFKA_RESPONSE_TIMEOUT",
        Kind::Duration(MILLISECOND, HOUR),
        "How long to wait for the answer to a request. Publishes wait until PUBLISH_TIMEOUT.",
    )
    .default("5s"),
    Variable::new(
        "KAFKA_TLS",
        Kind::Switch,
        "Whether the connections are encrypted. kafkas://, PROTOCOL_TYPE=kafkas, and each of the \
         variables below turn it on. It needs the cargo feature kafka-ssl.",
    ),
    Variable::new(
        "KAFKA_TLS_CA",
        Kind::File,
        "A PEM file with the authorities that may have signed the brokers' certificates; those of \
         the system when unset.",
    ),
    Variable::new(
        "KAFKA_TLS_CERT",
        Kind::File,
        "A PEM file with the certificate to show to the brokers.",
    ),
    Variable::new(
        "KAFKA_TLS_KEY",
        Kind::File,
        "A PEM file with the key of that certificate.",
    ),
];

/// What is passed through to Kafka's client.
pub(crate) const KAFKA_CONFIG: Family = Family {
    prefix: "KAFKA_CONFIG_",
    about: "A setting of librdkafka, by its name in upper case with _ for . (KAFKA_CONFIG_LINGER_MS=2 \
            is linger.ms). One that would break what this library promises, or has a variable of its \
            own, is refused.",
};

pub(crate) const NATS: &[Variable] = &[
    Variable::new(
        "NATS_URL",
        Kind::Url,
        "The servers, several of one cluster by comma: nats://user:password@host:4222,nats://host:4222; \
         tls:// for TLS. A name without a password is a token.",
    )
    .default("nats://localhost:4222"),
    Variable::new("NATS_USER", Kind::Text, "The user, with NATS_PASSWORD."),
    Variable::new("NATS_PASSWORD", Kind::Secret, "The user's password."),
    Variable::new("NATS_TOKEN", Kind::Secret, "A token, in place of a user."),
    Variable::new(
        "NATS_NKEY",
        Kind::Secret,
        "The seed of an NKEY, SU…, in place of a user.",
    ),
    Variable::new(
        "NATS_CREDS",
        Kind::File,
        "A credentials file, with a JWT and the seed of its NKEY, in place of a user.",
    ),
    Variable::new(
        "NATS_STREAM",
        Kind::Name(MAX_GROUP),
        "What the names of streams and subjects begin with. Every topic has a stream of its own: orders.new \
         is mas~orders~new, and other programs publish to it at mas.orders.new.",
    )
    .default("mas"),
    Variable::new(
        "NATS_REPLICAS",
        Kind::Whole(1, 5),
        "On how many servers of a cluster each topic is kept. A topic that exists with another number is refused.",
    )
    .default("1"),
    Variable::new(
        "NATS_STORAGE",
        Kind::Choice(&["file", "memory"]),
        "Where topics are kept. In memory they are lost with the server's process.",
    )
    .default("file"),
    Variable::new(
        "NATS_STREAM_MAX_MSGS",
        Kind::Whole(1, i64::MAX as u64),
        "How many messages a topic keeps before a publish to it is refused with Full. Without it the server's \
         limits bound it.",
    ),
    Variable::new(
        "NATS_STREAM_MAX_BYTES",
        Kind::Bytes(64 << 10, 1 << 40),
        "How many bytes a topic keeps, headers included, before a publish to it is refused with Full. Without \
         it the server's limits bound it.",
    ),
    Variable::new(
        "NATS_STREAM_MAX_AGE",
        Kind::Duration(Duration::from_millis(100), YEARS),
        "How long a topic keeps a message, settled or not. Groups are told of what is removed before they \
         settled it, as a gap. Without it a topic keeps what some group has not settled.",
    ),
    Variable::new(
        "NATS_DUPLICATE_WINDOW",
        Kind::Duration(Duration::from_millis(100), DAY),
        "How long a server remembers the Nats-Msg-Id of what other programs publish to a topic.",
    )
    .default("2m"),
    Variable::new(
        "NATS_MAX_ACK_PENDING",
        Kind::Whole(1000, u32::MAX as u64),
        "How many messages all members of a group together may hold unsettled, those that wait for a \
         delayed redelivery included.",
    )
    .default("100000"),
    Variable::new(
        "NATS_CONSUMER_GROUP",
        Kind::Name(MAX_GROUP),
        "The group of subscriptions that name none.",
    )
    .default(DEFAULT_GROUP),
    Variable::new(
        "NATS_CONNECT_TIMEOUT",
        Kind::Duration(MILLISECOND, DAY),
        "How long connecting goes on trying before it fails, and how long one attempt to reconnect \
         may take.",
    )
    .default("5s"),
    Variable::new(
        "NATS_MESSAGE_TTL",
        Kind::Duration(MILLISECOND, YEARS),
        NO_EXPIRY,
    )
    .default("24h"),
    Variable::new(
        "NATS_TLS",
        Kind::Switch,
        "Whether the connection is encrypted. tls:// and each of the variables below turn it on.",
    ),
    Variable::new(
        "NATS_TLS_CA",
        Kind::File,
        "A PEM file with the authorities that may have signed the server's certificate; those of \
         the system when unset.",
    ),
    Variable::new(
        "NATS_TLS_CERT",
        Kind::File,
        "A PEM file with the certificate to show to the server.",
    ),
    Variable::new(
        "NATS_TLS_KEY",
        Kind::File,
        "A PEM file with the key of that certificate.",
    ),
];
