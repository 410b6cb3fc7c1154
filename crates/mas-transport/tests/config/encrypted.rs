//! Encrypted connections that are asked for by a name.

use super::*;

#[test]
fn a_protocol_asks_for_tls_by_its_name_as_a_url_does() {
    let file = Scratch::new("tls.toml", "protocol.type = \"valkeys\"\n");
    let path = file.path();
    for (config, name, place) in [
        (
            Config::from_vars([("PROTOCOL_TYPE", "rediss")]),
            "rediss",
            "environment PROTOCOL_TYPE".to_owned(),
        ),
        (
            Config::from_vars([("PROTOCOL_TYPE", " Valkeys ")]),
            "valkeys",
            "environment PROTOCOL_TYPE".to_owned(),
        ),
        (Config::new().backend("rediss"), "rediss", "code".to_owned()),
        (
            Config::new().file(path),
            "valkeys",
            format!("file {path}: protocol.type"),
        ),
    ] {
        let settings = config.resolve();
        assert_eq!(problems(&settings), [""; 0]);
        assert_eq!(settings.backend(), "redis");
        let origin = format!("{place}, {name} as the protocol");
        assert_eq!(shown(&settings, "REDIS_TLS"), (Some("true"), origin));
        assert_eq!(settings.switch("REDIS_TLS"), Some(true));
    }
    for plain in ["redis", "valkey"] {
        let settings = resolve(&[("PROTOCOL_TYPE", plain)]);
        assert_eq!(settings.switch("REDIS_TLS"), None, "{plain}");
    }
    // One that is not in effect asks for nothing.
    let settings = Config::from_vars([REDIS]).file(path).resolve();
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.switch("REDIS_TLS"), None);
}

#[test]
fn what_contradicts_a_protocol_with_tls_is_told() {
    let rediss = ("PROTOCOL_TYPE", "rediss");
    let settings = resolve(&[rediss, ("REDIS_TLS", "false")]);
    assert_eq!(
        problems(&settings),
        [
            "REDIS_TLS=true (environment PROTOCOL_TYPE, rediss as the protocol): it is false by \
             environment REDIS_TLS too; set it in one of the two places"
        ]
    );
    let settings = resolve(&[rediss, ("TRANSPORT_URL", "redis://h")]);
    assert_eq!(
        problems(&settings),
        [
            "PROTOCOL_TYPE=rediss: set in the environment, it asks for TLS and contradicts \
             TRANSPORT_URL=redis://h, set in the environment; remove one of the two, or set \
             TRANSPORT_URL=rediss://… in the environment"
        ]
    );
    let settings = Config::from_vars([rediss]).url("valkey://h").resolve();
    let told = problems(&settings);
    assert!(
        told.len() == 1 && told[0].contains("set PROTOCOL_TYPE=valkey in code"),
        "{told:?}"
    );
    // What says the same, or more than the protocol does, is right.
    for (variable, value) in [
        ("REDIS_TLS", "yes"),
        ("TRANSPORT_URL", "rediss://h"),
        ("TRANSPORT_URL", "valkeys://h"),
        ("REDIS_URL", "rediss://h"),
    ] {
        let settings = resolve(&[rediss, (variable, value)]);
        assert_eq!(problems(&settings), [""; 0], "{variable}={value}");
        assert_eq!(settings.switch("REDIS_TLS"), Some(true));
    }
    let settings = resolve(&[REDIS, ("TRANSPORT_URL", "rediss://h")]);
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.switch("REDIS_TLS"), Some(true));
}
