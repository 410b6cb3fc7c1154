//! From code, environment, file and URL to settings.

#[path = "config/commented.rs"]
mod commented;
#[path = "config/contradictions.rs"]
mod contradictions;
#[path = "config/encrypted.rs"]
mod encrypted;
#[path = "config/others.rs"]
mod others;
#[path = "config/passed_on.rs"]
mod passed_on;
#[cfg(feature = "memory")]
#[path = "config/registered.rs"]
mod registered;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use mas_transport::{Config, ErrorKind, Origin, Settings};

const REDIS: (&str, &str) = ("PROTOCOL_TYPE", "redis");
const SECRET: &str = "hush-hush";

fn resolve(variables: &[(&str, &str)]) -> Settings {
    Config::from_vars(variables.iter().copied()).resolve()
}

fn problems(settings: &Settings) -> Vec<String> {
    settings
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn shown<'a>(settings: &'a Settings, name: &str) -> (Option<&'a str>, String) {
    let setting = settings.get(name).unwrap();
    (setting.shown(), setting.origin().to_string())
}

/// A file in a directory of its own, which is removed with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        // Tests run side by side, and several of them have files of one name.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("mas-config-{}-{next}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    let settings = resolve(&[
        REDIS,
        ("REDIS_DB", "x"),
        ("REDIS_POOL_SIZE", "-1"),
        ("REDIS_STREAM_MAXLEN", "5"),
        ("REDIS_PASSWORD", SECRET),
    ]);
    let told = settings.check().unwrap_err().to_string();
    for part in [
        "3 problems",
        "(1) REDIS_DB=x: not allowed; allowed is a whole number",
        "(2) REDIS_POOL_SIZE=-1: not allowed; allowed is a whole number, 1 to 1000",
        "(3) REDIS_STREAM_MAXLEN: there is no such setting; did you mean REDIS_STREAM_MAX_LEN?",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!told.contains(SECRET), "{told}");
}

#[test]
fn what_is_wrong_is_told_with_what_is_allowed() {
    for (variable, value, told) in [
        (
            "REDIS_ADDR",
            "h:x",
            "REDIS_ADDR=h:x: not allowed; allowed is host:port",
        ),
        (
            "REDIS_BLOCK_TIMEOUT",
            "5",
            "allowed is a duration such as 500ms, 5s or 24h, 1ms to 24h",
        ),
        (
            "MESSAGE_MAX_SIZE",
            "1KB",
            "allowed is a size such as 65536, 64KB or 1MB, 64KB to 512MB",
        ),
        (
            "MESSAGE_MAX_RETRIES",
            "0",
            "allowed is a whole number, 1 to 4294967295",
        ),
        ("REDIS_STREAM_OVERFLOW", "drop", "allowed is refuse or gap"),
        (
            "REDIS_CONSUMER_GROUP",
            "a b",
            "allowed is at most 64 letters, digits, _ and -",
        ),
        (
            "MAS_NAMESPACE",
            "a.b",
            "allowed is at most 18 letters, digits, _ and -",
        ),
        (
            "REDIS_ADDR",
            "redis://h:6379",
            "allowed is host:port; a URL goes into REDIS_URL",
        ),
        ("TRANSPORT_STARTUP", "later", "allowed is fail or wait"),
        (
            "REDIS_TLS_CA",
            "/no/such.pem",
            "allowed is the path of a file that is there",
        ),
        ("REDIS_TLS", "maybe", "allowed is true or false"),
        (
            "MAS_CONFIG",
            "/no/such.toml",
            "MAS_CONFIG=/no/such.toml: not allowed",
        ),
    ] {
        let settings = resolve(&[REDIS, (variable, value)]);
        let all = problems(&settings);
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(
            all[0].contains(told) && all[0].starts_with(variable),
            "{all:?}"
        );
    }
}

#[test]
fn good_values_arrive_in_their_types() {
    let settings = resolve(&[
        ("PROTOCOL_TYPE", " Redis "),
        ("REDIS_ADDR", "10.0.0.1:7000"),
        ("REDIS_PASSWORD", " hush "),
        ("REDIS_DB", "3"),
        ("REDIS_STREAM_MAX_LEN", "10000"),
        ("REDIS_STREAM_OVERFLOW", "Gap"),
        ("MESSAGE_MAX_SIZE", "2MB"),
        ("PUBLISH_TIMEOUT", "1m 30s"),
        ("REDIS_CONNECT_TIMEOUT", "500ms"),
        ("REDIS_USERNAME", ""),
    ]);
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.backend(), "redis");
    assert_eq!(settings.text("REDIS_ADDR"), Some("10.0.0.1:7000"));
    // White space may belong to a password.
    assert_eq!(
        settings.secret("REDIS_PASSWORD").unwrap().expose(),
        " hush "
    );
    assert_eq!(settings.whole("REDIS_DB"), Some(3));
    assert_eq!(settings.whole("REDIS_STREAM_MAX_LEN"), Some(10_000));
    assert_eq!(settings.text("REDIS_STREAM_OVERFLOW"), Some("gap"));
    assert_eq!(settings.whole("MESSAGE_MAX_SIZE"), Some(2 << 20));
    assert_eq!(settings.duration("PUBLISH_TIMEOUT").unwrap().as_secs(), 90);
    assert_eq!(
        settings
            .duration("REDIS_CONNECT_TIMEOUT")
            .unwrap()
            .as_millis(),
        500
    );
    // Empty is unset, and unset is the default.
    assert_eq!(
        shown(&settings, "REDIS_USERNAME"),
        (None, "default".to_owned())
    );
    assert_eq!(
        shown(&settings, "REDIS_POOL_SIZE"),
        (Some("10"), "default".to_owned())
    );
    assert_eq!(settings.whole("REDIS_POOL_SIZE"), Some(10));
}

#[test]
fn code_goes_before_the_environment_before_the_file_before_the_default() {
    let text = "[protocol]\ntype = \"redis\"\n[redis]\ndb = 1\npool_size = 2\n\
                consumer_group = \"from-file\"\n";
    let file = Scratch::new("precedence.toml", text);
    let config = Config::from_vars([
        ("MAS_CONFIG", file.path()),
        ("REDIS_POOL_SIZE", "3"),
        ("REDIS_DB", "3"),
    ])
    .set("REDIS_DB", 4);
    let settings = config.resolve();
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.backend(), "redis");
    assert_eq!(shown(&settings, "REDIS_DB"), (Some("4"), "code".to_owned()));
    let from = "environment REDIS_POOL_SIZE".to_owned();
    assert_eq!(shown(&settings, "REDIS_POOL_SIZE"), (Some("3"), from));
    let from = format!("file {}: redis.consumer_group", file.path());
    assert_eq!(
        shown(&settings, "REDIS_CONSUMER_GROUP"),
        (Some("from-file"), from)
    );
    assert_eq!(
        *settings.get("REDIS_ADDR").unwrap().origin(),
        Origin::Default
    );

    // What is overridden cannot be wrong.
    let settings = Config::from_vars([REDIS, ("REDIS_DB", "x")])
        .set("REDIS_DB", 4)
        .resolve();
    assert_eq!(problems(&settings), [""; 0]);
}

#[test]
fn a_file_is_read_in_both_formats_and_its_mistakes_are_told() {
    let toml = "[protocol]\ntype = \"redis\"\n[redis]\npasword = \"hush-hush\"\ndb = -1\n\
                [kafka]\nacks = \"never mind\"\n";
    let yaml = "protocol: { type: redis }\nredis:\n  pasword: hush-hush\n  db: -1\n\
                kafka:\n  acks: never mind\n";
    for (name, text) in [("wrong.toml", toml), ("wrong.yaml", yaml)] {
        let file = Scratch::new(name, text);
        let settings = Config::new().file(file.path()).resolve();
        let path = file.path();
        // The settings of another backend are its own affair.
        assert_eq!(
            problems(&settings),
            [
                format!(
                    "REDIS_DB=-1 (file {path}: redis.db): not allowed; allowed is a whole number, \
                     0 to 2147483647"
                ),
                format!(
                    "redis.pasword (file {path}: redis.pasword): there is no such setting; did you \
                     mean redis.password?"
                ),
            ]
        );
    }
    let broken = Scratch::new("broken.toml", "[redis]\npassword = \"hush-hush\n");
    let told = Config::new()
        .file(broken.path())
        .validate()
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("not TOML: line 2") && !told.contains(SECRET),
        "{told}"
    );
    let odd = Scratch::new("settings.ini", "");
    let told = Config::new()
        .file(odd.path())
        .validate()
        .unwrap_err()
        .to_string();
    assert!(told.contains("none of .toml, .yaml and .yml"), "{told}");
    let nested = Scratch::new("nested.toml", "mas.config = \"other.toml\"\n");
    let told = Config::new()
        .file(nested.path())
        .validate()
        .unwrap_err()
        .to_string();
    assert!(told.contains("cannot name another file"), "{told}");
}

#[test]
fn a_url_names_backend_address_and_options() {
    let url = "rediss://ann:hu%2Fsh@h:7000/3?pool_size=4&stream_max_len=1000&namespace=team-a\
               &message_max_size=2MB";
    let settings = resolve(&[("TRANSPORT_URL", url)]);
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.backend(), "redis");
    let from = |part| format!("environment TRANSPORT_URL, {part} of the URL");
    for (name, value, part) in [
        ("REDIS_ADDR", "h:7000", "host"),
        ("REDIS_USERNAME", "ann", "user"),
        ("REDIS_PASSWORD", "***", "password"),
        ("REDIS_DB", "3", "path"),
        ("REDIS_TLS", "true", "scheme"),
        ("REDIS_POOL_SIZE", "4", "pool_size"),
        ("REDIS_STREAM_MAX_LEN", "1000", "stream_max_len"),
        ("MAS_NAMESPACE", "team-a", "namespace"),
        ("MESSAGE_MAX_SIZE", "2MB", "message_max_size"),
    ] {
        assert_eq!(shown(&settings, name), (Some(value), from(part)));
    }
    assert_eq!(settings.secret("REDIS_PASSWORD").unwrap().expose(), "hu/sh");
    let (url, _) = shown(&settings, "TRANSPORT_URL");
    assert!(
        url.unwrap().starts_with("rediss://ann:***@h:7000/3?"),
        "{url:?}"
    );

    let settings = resolve(&[("TRANSPORT_URL", "redis://h?pool=4&stream_maxlen=5&db=x")]);
    assert_eq!(
        problems(&settings),
        [
            "REDIS_DB=x (environment TRANSPORT_URL, db of the URL): not allowed; allowed is a \
             whole number, 0 to 2147483647",
            "TRANSPORT_URL?pool (environment TRANSPORT_URL): there is no such setting",
            "TRANSPORT_URL?stream_maxlen (environment TRANSPORT_URL): there is no such setting; \
             did you mean stream_max_len?",
        ]
    );
    for bad in [
        "redis//h",
        "redis://:hush-hush#@h",
        "redis://:hush-hush",
        "redis://ann:hush-hush/0",
        "redis://:hush-hush/@h",
        "h:6379",
    ] {
        let told = resolve(&[("TRANSPORT_URL", bad)])
            .check()
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("TRANSPORT_URL") && !told.contains(SECRET),
            "{told}"
        );
    }
    let told = resolve(&[("TRANSPORT_URL", "inmemory://h/path")]);
    assert_eq!(told.problems().len(), 2, "{:?}", problems(&told));
}

#[test]
fn an_address_has_several_forms() {
    for (variables, address) in [
        (&[("REDIS_HOST", "h")][..], "h"),
        (&[("REDIS_HOST", "h"), ("REDIS_PORT", "7000")], "h:7000"),
        (&[("REDIS_PORT", "7000")], "localhost:7000"),
        (
            &[("REDIS_HOST", "::1"), ("REDIS_PORT", "7000")],
            "[::1]:7000",
        ),
        (&[("REDIS_URL", "redis://h:7000/1")], "h:7000"),
        // What a container platform sets for a service that is called redis.
        (&[("REDIS_PORT", "tcp://10.0.0.1:6379")], "localhost:6379"),
        (
            &[("REDIS_PORT", "tcp://10.0.0.1:6379"), ("REDIS_ADDR", "h:1")],
            "h:1",
        ),
    ] {
        let mut all = vec![REDIS];
        all.extend(variables);
        let settings = resolve(&all);
        assert_eq!(problems(&settings), [""; 0]);
        assert_eq!(settings.text("REDIS_ADDR"), Some(address), "{variables:?}");
    }
    let settings = resolve(&[REDIS, ("REDIS_HOST", "h"), ("REDIS_PORT", "x")]);
    let told = problems(&settings);
    assert!(
        told.len() == 1 && told[0].starts_with("REDIS_PORT=x"),
        "{told:?}"
    );
    let settings = resolve(&[REDIS, ("REDIS_URL", "http://h")]);
    assert!(
        problems(&settings)[0].contains("begins with redis://"),
        "{settings:?}"
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    let settings = resolve(&[
        REDIS,
        ("REDIS_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
        ("REDIS_VERSION", "8"),
        ("KAFKA_HEAP_OPTS", "-Xmx1G"),
        ("NATS_PORT", "tcp://10.0.0.2:4222"),
        ("TEST_REDIS_URL", "redis://h"),
        ("TEST_REDIS_SERVER", "/bin/redis-server"),
        ("REQUIRE_REDIS", "1"),
        ("MAS_SEED", "7"),
        ("MAS_FULL", "1"),
        ("MESSAGE_OF_THE_DAY", "hello"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.cautions(), []);
    // Those near to a setting of every backend, or of the chosen one, are told; only their name.
    for (variable, meant) in [
        ("REDIS_PASWORD", "REDIS_PASSWORD"),
        ("TRANSPORT_URI", "TRANSPORT_URL"),
        ("MAS_NAME_SPACE", "MAS_NAMESPACE"),
        ("MESSAGE_MAXSIZE", "MESSAGE_MAX_SIZE"),
        ("PROTOCOL_TYPES", "PROTOCOL_TYPE"),
    ] {
        let chosen = match variable {
            "PROTOCOL_TYPES" => ("REDIS_URL", "redis://h"),
            _ => REDIS,
        };
        let told = problems(&resolve(&[chosen, (variable, SECRET)]));
        let expected = format!("{variable}: there is no such setting; did you mean {meant}?");
        assert_eq!(told, [expected]);
    }
}

#[test]
fn an_unknown_backend_is_answered_with_those_there_are() {
    let settings = resolve(&[("PROTOCOL_TYPE", "rabbit")]);
    let error = settings.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let told = error.to_string();
    assert!(
        told.contains("PROTOCOL_TYPE=rabbit: there is no such backend"),
        "{told}"
    );
    for (backend, is_there) in [
        ("memory", cfg!(feature = "memory")),
        ("redis", cfg!(feature = "redis")),
        ("kafka", cfg!(feature = "kafka")),
        ("nats", cfg!(feature = "nats")),
    ] {
        let (there, lacking) = told.split_once("this build lacks").unwrap_or((&told, ""));
        assert_eq!(there.contains(backend), is_there, "{told}");
        assert_eq!(lacking.contains(backend), !is_there, "{told}");
    }
    let near = resolve(&[("TRANSPORT_URL", "reddis://h")]);
    assert!(
        problems(&near)[0].contains("did you mean redis?"),
        "{near:?}"
    );
}

#[test]
fn a_backend_that_is_not_compiled_in_names_its_feature() {
    for (backend, is_there) in [
        ("inmemory", cfg!(feature = "memory")),
        ("redis", cfg!(feature = "redis")),
        ("kafka", cfg!(feature = "kafka")),
        ("nats", cfg!(feature = "nats")),
    ] {
        let settings = resolve(&[("PROTOCOL_TYPE", backend)]);
        if is_there {
            settings.check().unwrap();
            continue;
        }
        let error = settings.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let name = backend.strip_prefix("in").unwrap_or(backend);
        assert_eq!(error.backend(), name);
        let what = format!("add features = [\"{name}\"] to mas-transport in Cargo.toml");
        assert!(error.to_string().contains(&what), "{error}");
    }
    // What else is wrong is told in the same breath.
    let settings = resolve(&[("PROTOCOL_TYPE", "kafka"), ("KAFKA_ACKS", "2")]);
    let error = settings.check().unwrap_err();
    let told = error.to_string();
    assert!(told.contains("KAFKA_ACKS=2"), "{told}");
    if !cfg!(feature = "kafka") {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(told.contains("this build lacks the backend"), "{told}");
    }
}

#[test]
fn what_loses_messages_or_has_no_effect_is_said() {
    for (backend, variable, value, what) in [
        (
            "redis",
            "REDIS_MESSAGE_TTL",
            "24h",
            "messages do not expire yet",
        ),
        (
            "redis",
            "REDIS_STREAM_OVERFLOW",
            "gap",
            "no effect without REDIS_STREAM_MAX_LEN",
        ),
        ("kafka", "KAFKA_ACKS", "1", "a leader that dies loses"),
        (
            "nats",
            "NATS_MESSAGE_TTL",
            "1h",
            "messages do not expire yet",
        ),
    ] {
        let settings = resolve(&[("PROTOCOL_TYPE", backend), (variable, value)]);
        assert_eq!(problems(&settings), [""; 0]);
        let [caution] = settings.cautions() else {
            panic!("{variable}: {:?}", settings.cautions());
        };
        let told = caution.to_string();
        assert!(told.starts_with(&format!("{variable}={value}: ")), "{told}");
        assert!(told.contains(what), "{told}");
    }
    let settings = resolve(&[
        REDIS,
        ("REDIS_STREAM_MAX_LEN", "1000"),
        ("REDIS_STREAM_OVERFLOW", "gap"),
    ]);
    let told = settings.cautions()[0].to_string();
    assert!(told.contains("loses its oldest messages"), "{told}");
    // Defaults are no reason for any.
    for backend in ["inmemory", "redis", "kafka", "nats"] {
        assert_eq!(resolve(&[("PROTOCOL_TYPE", backend)]).cautions(), []);
    }
}

#[test]
fn a_backend_that_was_set_up_and_not_chosen_is_noticed() {
    let told = |variables: &[(&str, &str)]| {
        let settings = resolve(variables);
        let cautions = settings.cautions().iter();
        cautions.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        told(&[("REDIS_ADDR", "h:1")]),
        [
            "PROTOCOL_TYPE=inmemory: nobody chose a backend, so messages stay in this process, \
             though REDIS_ADDR is set; set PROTOCOL_TYPE=redis to use it"
        ]
    );
    assert_eq!(
        told(&[("REDIS_ADDR", "h:1"), ("PROTOCOL_TYPE", "inmemory")]),
        [""; 0]
    );
    assert_eq!(told(&[("REDIS_PORT", "tcp://10.0.0.1:6379")]), [""; 0]);
    assert_eq!(told(&[("MESSAGE_MAX_SIZE", "1MB")]), [""; 0]);
}

#[test]
fn certificates_go_together() {
    let file = Scratch::new("client.pem", "");
    let settings = resolve(&[REDIS, ("REDIS_TLS_CERT", file.path())]);
    assert!(
        problems(&settings)[0].contains("set REDIS_TLS_KEY too"),
        "{settings:?}"
    );
    let settings = resolve(&[REDIS, ("REDIS_TLS", "no"), ("REDIS_TLS_CA", file.path())]);
    assert!(
        problems(&settings)[0].contains("not encrypted"),
        "{settings:?}"
    );
}

#[test]
fn no_secret_is_in_any_debug_output() {
    let file = Scratch::new("secret.toml", "[redis]\npassword = \"hush-hush\"\n");
    let config = Config::from_vars([
        (
            "TRANSPORT_URL",
            "redis://ann:hush-hush@h?password=hush-hush",
        ),
        ("REDIS_URL", "redis://ann:hush-hush@h"),
        ("REDIS_PASWORD", SECRET),
        ("MAS_CONFIG", file.path()),
    ])
    .set("REDIS_PASSWORD", SECRET);
    let settings = config.resolve();
    let settings_shown: Vec<_> = settings.iter().map(|s| s.shown()).collect();
    for text in [
        format!("{config:?}"),
        format!("{settings:?}"),
        format!("{settings_shown:?}"),
        format!("{:?}", settings.check().unwrap_err()),
    ] {
        assert!(!text.contains("hush"), "{text}");
    }
    assert_eq!(settings.secret("REDIS_PASSWORD").unwrap().expose(), SECRET);
    // A URL in the wrong place.
    for name in ["PROTOCOL_TYPE", "REDIS_ADDR", "REDIS_DB", "MAS_NAMESPACE"] {
        let mut variables = vec![(name, "redis://:hush-hush@h")];
        if name != "PROTOCOL_TYPE" {
            variables.push(REDIS);
        }
        let settings = resolve(&variables);
        let told = format!(
            "{} {settings:?} {}",
            settings.check().unwrap_err(),
            settings.backend()
        );
        assert!(!told.contains("hush"), "{told}");
    }
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    #[cfg(unix)]
    {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let wrong = OsString::from_vec(vec![0xff]);
        let config = Config::from_vars([("MAS_NAMESPACE", wrong.clone()), ("KAFKA_ACKS", wrong)]);
        // The one of another backend has no effect.
        assert_eq!(
            problems(&config.resolve()),
            ["MAS_NAMESPACE: it is not UTF-8"]
        );
    }
}
