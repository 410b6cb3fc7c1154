//! What says two things.

use super::*;

#[test]
fn saying_two_things_in_one_place_is_an_error() {
    for (one, other, told) in [
        (
            ("PROTOCOL_TYPE", "inmemory"),
            ("TRANSPORT_URL", "redis://h"),
            "PROTOCOL_TYPE=inmemory: set in the environment, it contradicts \
             TRANSPORT_URL=redis://h, set in the environment; remove one of the two, or set \
             TRANSPORT_URL=inmemory:// in the environment",
        ),
        (
            ("REDIS_ADDR", "a:1"),
            ("TRANSPORT_URL", "redis://b:1"),
            "it is a:1 by environment REDIS_ADDR too",
        ),
        (
            ("REDIS_PASSWORD", SECRET),
            ("TRANSPORT_URL", "redis://:other@b:1"),
            "it is *** by environment REDIS_PASSWORD too",
        ),
        (
            ("REDIS_HOST", "a"),
            ("REDIS_ADDR", "b:1"),
            "it is b:1 by environment REDIS_ADDR too",
        ),
        (
            ("REDIS_URL", "redis://a:1"),
            ("REDIS_ADDR", "b:1"),
            "it is b:1 by environment REDIS_ADDR too",
        ),
        (
            ("REDIS_TLS", "false"),
            ("REDIS_URL", "rediss://a:1"),
            "it is false by environment REDIS_TLS too",
        ),
    ] {
        let redis = match one.0 {
            "PROTOCOL_TYPE" => ("REDIS_DB", "0"),
            _ => REDIS,
        };
        let settings = resolve(&[redis, one, other]);
        let all = problems(&settings);
        assert!(all.len() == 1 && all[0].contains(told), "{told}: {all:?}");
        assert!(!all[0].contains(SECRET), "{all:?}");
    }
    // The same thing twice is none, nor is a source before another.
    let settings = resolve(&[
        ("PROTOCOL_TYPE", "redis"),
        ("TRANSPORT_URL", "valkey://a:1/2"),
        ("REDIS_ADDR", "a:1"),
        ("REDIS_DB", "2"),
    ]);
    assert_eq!(problems(&settings), [""; 0]);
    let settings = Config::from_vars([("REDIS_ADDR", "a:1")])
        .url("redis://b:1")
        .resolve();
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.text("REDIS_ADDR"), Some("b:1"));
}

#[test]
fn a_protocol_and_a_url_that_contradict_each_other_are_an_error_wherever_they_stand() {
    let url = "redis://ann:hush-hush@h/0";
    let protocol = Scratch::new("protocol.toml", "protocol.type = \"kafka\"\n");
    let both = "[protocol]\ntype = \"redis\"\n[transport]\nurl = \"redis://ann:hush-hush@h/0\"\n";
    let both = Scratch::new("both.toml", both);
    let (protocol, both) = (protocol.path(), both.path());
    let env = |name, value| Config::from_vars([(name, value)]);
    for (config, backend, told) in [
        (
            env("TRANSPORT_URL", url).backend("inmemory"),
            "memory",
            "PROTOCOL_TYPE=inmemory (code): set in code, it contradicts \
             TRANSPORT_URL=redis://ann:***@h/0, set in the environment; remove one of the two, or \
             set TRANSPORT_URL=inmemory:// in code"
                .to_owned(),
        ),
        (
            env("PROTOCOL_TYPE", "inmemory").url(url),
            "redis",
            "PROTOCOL_TYPE=inmemory: set in the environment, it contradicts \
             TRANSPORT_URL=redis://ann:***@h/0, set in code; remove one of the two, or set \
             PROTOCOL_TYPE=redis in code"
                .to_owned(),
        ),
        (
            env("TRANSPORT_URL", url).file(protocol),
            "redis",
            format!(
                "PROTOCOL_TYPE=kafka (file {protocol}: protocol.type): set in the file {protocol}, \
                 it contradicts TRANSPORT_URL=redis://ann:***@h/0, set in the environment; remove \
                 one of the two, or set PROTOCOL_TYPE=redis in the environment"
            ),
        ),
        (
            env("PROTOCOL_TYPE", "kafka").file(both),
            "kafka",
            format!(
                "PROTOCOL_TYPE=kafka: set in the environment, it contradicts \
                 TRANSPORT_URL=redis://ann:***@h/0, set in the file {both}; remove one of the two, \
                 or set TRANSPORT_URL=kafka://… in the environment"
            ),
        ),
        // A URL replaces the URL of a later source; the protocol of that source stays.
        (
            env("TRANSPORT_URL", "inmemory://").file(both),
            "memory",
            format!(
                "PROTOCOL_TYPE=redis (file {both}: protocol.type): set in the file {both}, it \
                 contradicts TRANSPORT_URL=inmemory://, set in the environment; remove one of the \
                 two, or set PROTOCOL_TYPE=inmemory in the environment"
            ),
        ),
    ] {
        let settings = config.resolve();
        assert_eq!(problems(&settings), [told]);
        assert_eq!(settings.backend(), backend);
    }
    // What replaces both, or agrees with the URL in effect, is right.
    for (config, backend) in [
        (env("TRANSPORT_URL", url).url("inmemory://"), "memory"),
        (
            env("TRANSPORT_URL", url)
                .backend("inmemory")
                .url("memory://"),
            "memory",
        ),
        (env("TRANSPORT_URL", "valkey://h").backend("redis"), "redis"),
        (env("TRANSPORT_URL", "valkey://h").file(both), "redis"),
        (
            Config::from_vars([("PROTOCOL_TYPE", "memory"), ("TRANSPORT_URL", "memory://")])
                .file(both),
            "memory",
        ),
        (env("PROTOCOL_TYPE", "").url(url), "redis"),
    ] {
        let settings = config.resolve();
        assert_eq!(problems(&settings), [""; 0]);
        assert_eq!(settings.backend(), backend);
    }
    // A URL that is none cannot contradict; it is told as what it is.
    let settings = env("PROTOCOL_TYPE", "inmemory").url("h:6379").resolve();
    let told = problems(&settings);
    assert!(
        told.len() == 1 && told[0].starts_with("TRANSPORT_URL"),
        "{told:?}"
    );
}
