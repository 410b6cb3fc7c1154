use super::*;

/// What every build passes through, each with a value that librdkafka takes.
const PLAIN: &[(&str, &str)] = &[
    ("message.copy.max.bytes", "65535"),
    ("metadata.recovery.strategy", "none"),
    ("metadata.recovery.rebootstrap.trigger.ms", "1000"),
    ("topic.metadata.refresh.interval.ms", "1000"),
    ("metadata.max.age.ms", "1000"),
    ("topic.metadata.refresh.fast.interval.ms", "100"),
    ("topic.metadata.refresh.fast.cnt", "10"),
    ("topic.metadata.refresh.sparse", "true"),
    ("topic.metadata.propagation.max.ms", "1000"),
    ("debug", "broker,security"),
    ("socket.timeout.ms", "1000"),
    ("socket.blocking.max.ms", "100"),
    ("socket.send.buffer.bytes", "65536"),
    ("socket.receive.buffer.bytes", "65536"),
    ("socket.keepalive.enable", "true"),
    ("socket.nagle.disable", "true"),
    ("socket.max.fails", "2"),
    ("broker.address.ttl", "500"),
    ("broker.address.family", "v4"),
    ("socket.connection.setup.timeout.ms", "1000"),
    ("connections.max.idle.ms", "60000"),
    ("reconnect.backoff.jitter.ms", "0"),
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "1000"),
    ("statistics.interval.ms", "1000"),
    ("log.thread.name", "false"),
    ("enable.random.seed", "true"),
    ("log.connection.close", "false"),
    ("group.remote.assignor", "uniform"),
    ("coordinator.query.interval.ms", "1000"),
    ("queued.min.messages", "1000"),
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "100"),
    ("max.partition.fetch.bytes", "65536"),
    ("fetch.max.bytes", "1048576"),
    ("fetch.min.bytes", "1"),
    ("fetch.error.backoff.ms", "100"),
    ("check.crcs", "true"),
    ("client.rack", "a"),
    ("queue.buffering.max.kbytes", "1024"),
    ("linger.ms", "2"),
    ("retry.backoff.ms", "50"),
    ("retry.backoff.max.ms", "500"),
    ("queue.buffering.backpressure.threshold", "2"),
    ("batch.num.messages", "1000"),
    ("batch.size", "65536"),
    ("sticky.partitioning.linger.ms", "10"),
    ("client.dns.lookup", "use_all_dns_ips"),
    ("enable.metrics.push", "false"),
    ("request.timeout.ms", "1000"),
    ("compression.level", "3"),
];

/// Those that a build with TLS passes through.
const WITH_TLS: &[(&str, &str)] = &[
    ("ssl.cipher.suites", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("ssl.curves.list", "X25519"),
    ("ssl.sigalgs.list", "RSA+SHA256"),
    ("ssl.key.password", "hush-hush"),
    ("ssl.crl.location", "/etc/crl.pem"),
    ("ssl.providers", "default"),
    ("ssl.engine.location", "/engine.so"),
    ("ssl.engine.id", "dynamic"),
];

#[test]
fn what_breaks_no_promise_is_passed_through() {
    let tried = PLAIN.iter().chain(WITH_TLS).map(|(key, _)| key);
    assert!(tried.eq(PASSED));
    for (key, value) in PLAIN {
        assert_eq!(check(key, value), Ok(()), "{key}");
    }
    for (key, value) in WITH_TLS {
        let checked = check(key, value);
        match cfg!(feature = "ssl") {
            true => assert_eq!(checked, Ok(()), "{key}"),
            false => assert!(checked.unwrap_err().why().contains("this build"), "{key}"),
        }
    }
}

#[test]
fn what_breaks_the_contract_is_refused_with_what_to_use() {
    for (key, value, instead) in [
        ("enable.auto.commit", "true", "leave it out"),
        ("offset.store.method", "broker", "leave it out"),
        ("auto.offset.reset", "latest", "Subscription::start_from"),
        ("acks", "0", "KAFKA_ACKS"),
        ("group.id", "a", "KAFKA_GROUP_ID"),
        ("message.timeout.ms", "1", "PUBLISH_TIMEOUT"),
        (
            "enable.ssl.certificate.verification",
            "false",
            "KAFKA_TLS_CA",
        ),
        ("sasl.kerberos.kinit.cmd", "rm", "PLAIN"),
        ("rebalance_cb", "x", "leave it out"),
        ("test.mock.num.brokers", "3", "memory backend"),
    ] {
        let refused = check(key, value).unwrap_err();
        assert!(refused.instead().contains(instead), "{key}: {refused}");
        assert!(!refused.why().is_empty());
    }
}

#[test]
fn each_rule_is_about_settings_that_there_are() {
    // Patterns, and what only another build has, are of no use to the question.
    let plain = RULES.iter().flat_map(|(keys, ..)| keys.iter());
    for key in plain.filter(|key| !key.contains('*')) {
        let mut alone = ClientConfig::new();
        let told = alone.set(*key, "1").create_native_config();
        let unknown = matches!(
            told,
            Err(KafkaError::ClientConfig(
                RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
                ..
            ))
        );
        assert!(!unknown, "{key}");
        assert!(!PASSED.contains(key), "{key}");
    }
}

#[test]
fn what_librdkafka_does_not_take_is_told_without_the_value() {
    for (key, value, why) in [
        ("linger.sm", "hush", "no such setting"),
        ("linger", "hush", "no such setting"),
        ("linger.ms", "9000000", "a number in 0..900000"),
        ("client.dns.lookup", "hush", "does not take this value"),
        ("check.crcs", "hush", "does not take this value"),
        ("client.rack", "a\0b", "does not take this value"),
    ] {
        let refused = check(key, value).unwrap_err();
        assert!(refused.why().contains(why), "{key}: {refused}");
        assert!(!refused.to_string().contains("hush"), "{refused}");
    }
    let near = check("linger.sm", "1").unwrap_err();
    assert_eq!(near.instead(), "did you mean linger.ms?");
}
