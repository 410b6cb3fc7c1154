//! Settings of librdkafka that are passed through, and those that are not.

use std::borrow::Cow;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

/// Why a setting of librdkafka is not passed through:
/// [`KafkaConfig::check_native`](crate::KafkaConfig::check_native).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeRefused {
    why: Cow<'static, str>,
    instead: Cow<'static, str>,
}

impl NativeRefused {
    /// What it would do.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What to use instead.
    pub fn instead(&self) -> &str {
        &self.instead
    }
}

impl fmt::Display for NativeRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.instead)
    }
}

/// What the library sets itself, or must not be set: the keys, why, and what to use instead. A `*`
/// stands for any end, or any beginning.
type Rule = (&'static [&'static str], &'static str, &'static str);

const RULES: &[Rule] = &[
    // Who we are, and where.
    (
        &["bootstrap.servers", "metadata.broker.list"],
        "the brokers have a setting of their own",
        "name them in KafkaConfig::new (KAFKA_BROKERS)",
    ),
    (
        &["client.id"],
        "the name of the client has a setting of its own",
        "use KafkaConfig::client_id (KAFKA_CLIENT_ID)",
    ),
    (
        &[
            "security.protocol",
            "sasl.mechanism",
            "sasl.mechanisms",
            "sasl.username",
            "sasl.password",
        ],
        "how to sign in has settings of its own",
        "use KafkaConfig::sasl (KAFKA_SASL_MECHANISM, KAFKA_USERNAME, KAFKA_PASSWORD) and \
         KafkaConfig::tls (KAFKA_TLS)",
    ),
    (
        &[
            "sasl.kerberos.*",
            "sasl.oauthbearer.*",
            "enable.sasl.oauthbearer.unsecure.jwt",
            "https.ca.*",
        ],
        "it belongs to a mechanism that is not offered",
        "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and client certificates are",
    ),
    (
        &["ssl.ca.location", "ssl.ca.pem"],
        "whom to trust has a setting of its own",
        "use Tls::ca_certificate (KAFKA_TLS_CA)",
    ),
    (
        &[
            "ssl.certificate.location",
            "ssl.certificate.pem",
            "ssl.key.location",
            "ssl.key.pem",
            "ssl.keystore.*",
        ],
        "the client certificate has settings of its own",
        "use Tls::client_certificate (KAFKA_TLS_CERT, KAFKA_TLS_KEY)",
    ),
    (
        &[
            "enable.ssl.certificate.verification",
            "ssl.endpoint.identification.algorithm",
        ],
        "a connection that does not check whom it is with is not offered",
        "name the authority that signed the brokers' certificates with Tls::ca_certificate \
         (KAFKA_TLS_CA), and the brokers as their certificates do",
    ),
    // Groups.
    (
        &["group.id"],
        "each group of a topic has a consumer group of its own",
        "use Subscription::group (KAFKA_GROUP_ID)",
    ),
    (
        &["group.instance.id"],
        "of two members of one name the second ends the first",
        "leave it out: members have names of their own",
    ),
    (
        &["group.protocol", "group.protocol.type"],
        "how members share partitions has a setting of its own",
        "use KafkaConfig::group_protocol (KAFKA_GROUP_PROTOCOL)",
    ),
    (
        &["partition.assignment.strategy"],
        "the library takes partitions that come and go one by one",
        "leave it out: it is cooperative-sticky",
    ),
    (
        &["session.timeout.ms", "heartbeat.interval.ms"],
        "the time until a member counts as dead has a setting of its own, which heartbeats follow",
        "use KafkaConfig::session_timeout (KAFKA_SESSION_TIMEOUT)",
    ),
    (
        &["max.poll.interval.ms"],
        "the library polls whether or not a handler is busy, and ends the lease of one that hangs",
        "use Subscription::lease",
    ),
    // What is settled.
    (
        &[
            "enable.auto.commit",
            "auto.commit.enable",
            "auto.commit.interval.ms",
            "enable.auto.offset.store",
            "offset.store.*",
        ],
        "it settles what no handler has finished, which loses messages",
        "leave it out: an ack is a commit of the library's own",
    ),
    (
        &["auto.offset.reset"],
        "it passes over messages when the position of a group is lost",
        "use Subscription::start_from for where a new group begins",
    ),
    (
        &["isolation.level"],
        "it delivers what a producer has taken back",
        "leave it out: it is read_committed",
    ),
    (
        &["enable.partition.eof", "consume.callback.max.messages"],
        "the library reads by a way of its own",
        "leave it out",
    ),
    (
        &["fetch.message.max.bytes"],
        "it is another name of max.partition.fetch.bytes",
        "use max.partition.fetch.bytes",
    ),
    (
        &["receive.message.max.bytes"],
        "a smaller one stops a consumer at the first message that is larger",
        "leave it out: it follows from what is fetched at once",
    ),
    // What is published.
    (
        &["acks", "request.required.acks"],
        "when a broker confirms has a setting of its own, which receipts tell",
        "use KafkaConfig::acks (KAFKA_ACKS)",
    ),
    (
        &[
            "enable.idempotence",
            "enable.gapless.guarantee",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "retries",
            "message.send.max.retries",
            "queuing.strategy",
        ],
        "it stores messages twice, in another order, or not at all when something is retried",
        "leave it out: order and retries are the library's, and a publish ends at its own deadline",
    ),
    (
        &["message.timeout.ms", "delivery.timeout.ms"],
        "a publish ends at its own deadline",
        "use PublishOptions::publish_timeout (PUBLISH_TIMEOUT)",
    ),
    (
        &["transactional.id", "transaction.timeout.ms"],
        "the library publishes outside of transactions",
        "leave it out",
    ),
    (
        &["partitioner", "msg_order_cmp"],
        "the messages of a key would go to another partition than those of other members",
        "leave it out: the key decides",
    ),
    (
        &["delivery.report.only.error", "produce.offset.report"],
        "receipts come from delivery reports",
        "leave it out",
    ),
    (
        &["compression.codec", "compression.type"],
        "compression has a setting of its own",
        "use KafkaConfig::compression (KAFKA_COMPRESSION); compression.level goes with it",
    ),
    (
        &["message.max.bytes"],
        "the largest message has a setting of its own",
        "use KafkaConfig::max_message_bytes (MESSAGE_MAX_SIZE)",
    ),
    (
        &["queue.buffering.max.messages"],
        "how many messages may be on their way has a setting of its own",
        "use KafkaConfig::max_in_flight",
    ),
    (
        &["queue.buffering.max.ms"],
        "it is another name of linger.ms",
        "use linger.ms",
    ),
    // Topics.
    (
        &["allow.auto.create.topics"],
        "a topic that a broker makes has the broker's settings, and a slip of the pen becomes one",
        "use KafkaConfig::auto_create (KAFKA_AUTO_CREATE)",
    ),
    (
        &["topic.blacklist"],
        "topics would be missing without a word",
        "leave it out",
    ),
    // The client itself.
    (
        &[
            "api.version.request",
            "api.version.request.timeout.ms",
            "api.version.fallback.ms",
            "broker.version.fallback",
        ],
        "without what brokers tell of themselves messages lose their headers",
        "leave it out",
    ),
    (
        &["log_level", "log.queue"],
        "the client logs by the program's own subscriber",
        "filter the target librdkafka there, as RUST_LOG does",
    ),
    (
        &["plugin.library.paths", "interceptors"],
        "foreign code would come between the library and the brokers",
        "leave it out",
    ),
    (
        &["test.*"],
        "it puts a broker of make-believe in the place of the real one",
        "use the memory backend for tests without a broker",
    ),
    (
        &[
            "*_cb",
            "opaque",
            "default_topic_conf",
            "enabled_events",
            "internal.termination.signal",
            "ssl_key",
            "ssl_certificate",
            "ssl_ca",
            "ssl_engine_callback_data",
        ],
        "it is the client's own, and no text can be its value",
        "leave it out",
    ),
    (
        &["builtin.features"],
        "it tells what the client was built with, and changes nothing",
        "leave it out",
    ),
];

const LIST: &str = "CONFIGURATION.md of librdkafka 2.12.1 has the list";

/// What is passed through. Together with the rules it is that list.
const PASSED: &[&str] = &[
    "message.copy.max.bytes",
    "metadata.recovery.strategy",
    "metadata.recovery.rebootstrap.trigger.ms",
    "topic.metadata.refresh.interval.ms",
    "metadata.max.age.ms",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.fast.cnt",
    "topic.metadata.refresh.sparse",
    "topic.metadata.propagation.max.ms",
    "debug",
    "socket.timeout.ms",
    "socket.blocking.max.ms",
    "socket.send.buffer.bytes",
    "socket.receive.buffer.bytes",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.max.fails",
    "broker.address.ttl",
    "broker.address.family",
    "socket.connection.setup.timeout.ms",
    "connections.max.idle.ms",
    "reconnect.backoff.jitter.ms",
    "reconnect.backoff.ms",
    "reconnect.backoff.max.ms",
    "statistics.interval.ms",
    "log.thread.name",
    "enable.random.seed",
    "log.connection.close",
    "group.remote.assignor",
    "coordinator.query.interval.ms",
    "queued.min.messages",
    "queued.max.messages.kbytes",
    "fetch.wait.max.ms",
    "fetch.queue.backoff.ms",
    "max.partition.fetch.bytes",
    "fetch.max.bytes",
    "fetch.min.bytes",
    "fetch.error.backoff.ms",
    "check.crcs",
    "client.rack",
    "queue.buffering.max.kbytes",
    "linger.ms",
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "queue.buffering.backpressure.threshold",
    "batch.num.messages",
    "batch.size",
    "sticky.partitioning.linger.ms",
    "client.dns.lookup",
    "enable.metrics.push",
    "request.timeout.ms",
    "compression.level",
    "ssl.cipher.suites",
    "ssl.curves.list",
    "ssl.sigalgs.list",
    "ssl.key.password",
    "ssl.crl.location",
    "ssl.providers",
    "ssl.engine.location",
    "ssl.engine.id",
];

/// What may have been meant: two letters apart at most.
fn nearest(key: &str) -> Option<&'static str> {
    let near = PASSED
        .iter()
        .map(|known| (strsim::osa_distance(key, known), *known));
    let near = near.filter(|(edits, _)| *edits <= 2);
    near.min_by_key(|(edits, _)| *edits).map(|(_, known)| known)
}

fn matches(pattern: &str, key: &str) -> bool {
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(begin), _) => key.starts_with(begin),
        (None, Some(end)) => key.ends_with(end),
        (None, None) => key == pattern,
    }
}

/// Checks a setting that is to be passed through: that it breaks no promise, and that librdkafka
/// has it and takes the value.
pub(crate) fn check(key: &str, value: &str) -> Result<(), NativeRefused> {
    let mut rules = RULES.iter();
    let rule = rules.find(|(keys, ..)| keys.iter().any(|pattern| matches(pattern, key)));
    if let Some((_, why, instead)) = rule {
        return Err(NativeRefused {
            why: (*why).into(),
            instead: (*instead).into(),
        });
    }
    let refused = |why: Cow<'static, str>| {
        let instead = LIST.into();
        Err(NativeRefused { why, instead })
    };
    let mut alone = ClientConfig::new();
    // A value may be a secret, and the client's own words repeat it.
    match alone.set(key, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            let instead = match nearest(key) {
                Some(near) => format!("did you mean {near}?").into(),
                None => LIST.into(),
            };
            let why = "librdkafka has no such setting".into();
            Err(NativeRefused { why, instead })
        }
        Err(KafkaError::ClientConfig(_, told, ..)) if told.contains("not supported in this") => {
            refused("this build of librdkafka does not support it".into())
        }
        Err(KafkaError::ClientConfig(_, told, ..)) if told.contains("outside allowed range") => {
            let range = told.rsplit(' ').next().unwrap_or_default();
            refused(format!("librdkafka takes a number in {range}").into())
        }
        Err(_) => refused("librdkafka does not take this value".into()),
    }
}

#[cfg(test)]
mod tests;
