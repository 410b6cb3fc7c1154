//! Settings that a backend passes on to the client underneath.

use super::*;

const KAFKA: (&str, &str) = ("PROTOCOL_TYPE", "kafka");
const LINGER: &str = "KAFKA_CONFIG_LINGER_MS";

#[test]
fn what_is_passed_on_is_a_setting_like_any_other() {
    let settings = resolve(&[KAFKA, (LINGER, "2")]);
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(
        shown(&settings, LINGER),
        (Some("2"), format!("environment {LINGER}"))
    );
    assert_eq!(settings.text(LINGER), Some("2"));
    // Nobody set it, and there is no such setting.
    assert!(resolve(&[KAFKA]).get(LINGER).is_none());
    // Code goes before the environment.
    let settings = Config::from_vars([KAFKA, (LINGER, "2")])
        .set(LINGER, 3)
        .resolve();
    assert_eq!(shown(&settings, LINGER), (Some("3"), "code".to_owned()));
    // Another backend's are its own affair.
    assert!(resolve(&[REDIS, (LINGER, "2")]).get(LINGER).is_none());
    let settings = resolve(&[REDIS, ("REDIS_CONFIG_LINGER_MS", "2")]);
    assert_eq!(problems(&settings), [""; 0]);
    assert!(settings.get("REDIS_CONFIG_LINGER_MS").is_none());
}

#[test]
fn it_stands_in_urls_and_files_too() {
    let settings = resolve(&[("TRANSPORT_URL", "kafka://h?config_linger_ms=2")]);
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.text(LINGER), Some("2"));
    let twice = resolve(&[
        ("TRANSPORT_URL", "kafka://h?config_linger_ms=2"),
        (LINGER, "3"),
    ]);
    assert!(
        problems(&twice)[0].contains("set it in one of the two places"),
        "{twice:?}"
    );
    for (name, text) in [
        ("a.toml", "[kafka]\nconfig_linger_ms = 2\n"),
        ("b.toml", "[kafka.config]\nlinger_ms = 2\n"),
        ("c.toml", "[kafka.config]\n\"linger.ms\" = 2\n"),
        ("d.toml", "[kafka.config]\nlinger.ms = 2\n"),
        ("e.yaml", "kafka:\n  config_linger_ms: 2\n"),
        ("f.yaml", "kafka:\n  config:\n    linger.ms: 2\n"),
    ] {
        let file = Scratch::new(name, text);
        let settings = Config::from_vars([KAFKA]).file(file.path()).resolve();
        assert_eq!(problems(&settings), [""; 0], "{name}");
        assert_eq!(settings.text(LINGER), Some("2"), "{name}");
    }
    let file = Scratch::new(
        "twice.toml",
        "[kafka]\nconfig_linger_ms = 2\n[kafka.config]\nlinger_ms = 3\n",
    );
    let settings = Config::from_vars([KAFKA]).file(file.path()).resolve();
    let told = problems(&settings);
    assert!(
        told.len() == 1 && told[0].contains("kafka.config.linger_ms"),
        "{told:?}"
    );
    // Of a backend that passes nothing on there is no such table.
    let file = Scratch::new("wrong.toml", "[nats.config]\nlinger_ms = 2\n");
    let settings = Config::from_vars([KAFKA]).file(file.path()).resolve();
    assert!(
        problems(&settings)[0].contains("nats.config.linger_ms"),
        "{settings:?}"
    );
}

#[test]
fn what_may_be_a_secret_is_not_shown() {
    let name = "KAFKA_CONFIG_SSL_KEY_PASSWORD";
    let settings = resolve(&[KAFKA, (name, SECRET)]);
    assert_eq!(shown(&settings, name).0, Some("***"));
    assert_eq!(settings.secret(name).unwrap().expose(), SECRET);
    assert!(!format!("{settings:?}").contains("hush"));
}

#[test]
fn what_is_no_name_is_none_of_them() {
    for name in ["KAFKA_CONFIG_", "KAFKA_CONFIG_linger.ms"] {
        assert!(resolve(&[KAFKA, (name, "1")]).get(name).is_none(), "{name}");
        let settings = Config::from_vars([KAFKA]).set(name, 1).resolve();
        let told = problems(&settings);
        assert!(told[0].contains("there is no such setting"), "{told:?}");
    }
}
