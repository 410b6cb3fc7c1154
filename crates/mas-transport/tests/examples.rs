//! Every example prints what is written beside it, on memory and on real servers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use conformance_tests::fixtures::output_within;

/// Longer than any example takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Those that choose their broker by the environment.
#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
const ANYWHERE: &[&str] = &[
    "batch",
    "pipeline",
    "quick_start",
    "request_reply",
    "switch_backend",
];
#[cfg(feature = "memory")]
const IN_MEMORY: &[&str] = &[
    "batch",
    "custom_backend",
    "pipeline",
    "quick_start",
    "request_reply",
    "switch_backend",
    "testing",
];
/// Those that are about NATS.
#[cfg(any(feature = "memory", feature = "nats"))]
const ON_NATS: &[&str] = &["nats_interop"];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// Cargo builds the examples of a package before it runs its tests, into the directory beside.
fn program(example: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let program = this.parent().and_then(Path::parent).unwrap();
    let program = program
        .join("examples")
        .join(example)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        program.is_file(),
        "{} is missing: `cargo test -p mas-transport` builds it, `--test examples` alone does not",
        program.display()
    );
    program
}

/// Runs an example with these settings and none of the environment, and compares its output.
fn prints_what_is_expected(example: &str, settings: &[(&str, &str)]) {
    let mut command = Command::new(program(example));
    command
        .env_clear()
        .envs(settings.iter().copied())
        .stdin(Stdio::null());
    let output = output_within(&mut command, LIMIT);
    let output = output.unwrap_or_else(|why| panic!("{example} with {settings:?}: {why}"));
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    let expected = sources().join("expected").join(format!("{example}.txt"));
    let expected = std::fs::read_to_string(expected).unwrap();
    assert!(
        output.status.success(),
        "{example} with {settings:?}: {}\n{out}{err}",
        output.status
    );
    assert_eq!(out, expected, "{example} with {settings:?}\n{err}");
}

#[cfg(feature = "memory")]
#[test]
fn examples_print_what_is_expected_in_memory() {
    let there = std::fs::read_dir(sources()).unwrap();
    let there: BTreeSet<String> = there
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let named = IN_MEMORY.iter().chain(ON_NATS);
    let named: BTreeSet<String> = named.map(|&name| name.to_owned()).collect();
    assert_eq!(there, named, "every example is run");
    for example in IN_MEMORY {
        prints_what_is_expected(example, &[]);
    }
}

#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Runs examples on the server of the environment, or on one that `start` gives, which says its URL.
#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
fn print_what_is_expected<Server>(
    broker: &str,
    given: Option<String>,
    examples: &[&str],
    start: impl FnOnce() -> Result<(Server, String), conformance_tests::Failure>,
) {
    // Kept until the end: dropping it stops the server.
    let (_server, url) = match given {
        Some(url) => (None, url),
        None => match start() {
            Ok((server, url)) => (Some(server), url),
            Err(why) => {
                let required = variable(&format!("REQUIRE_{broker}")).is_some_and(|v| v == "1");
                assert!(
                    !required,
                    "REQUIRE_{broker}=1 and there is no server: {why}"
                );
                println!("SKIPPED the examples on {broker}: {why}");
                return;
            }
        },
    };
    for (number, example) in examples.iter().enumerate() {
        let namespace = format!("e{:x}-{number}", std::process::id());
        let settings = [("TRANSPORT_URL", &*url), ("MAS_NAMESPACE", &namespace)];
        prints_what_is_expected(example, &settings);
    }
}

#[cfg(feature = "redis")]
#[test]
fn examples_print_the_same_on_redis() {
    use conformance_tests::fixtures::RedisServer;

    let given = variable("TEST_REDIS_URL");
    print_what_is_expected("REDIS", given, ANYWHERE, || {
        let server = RedisServer::start(&[])?;
        let url = format!("redis://{}", server.address());
        Ok((server, url))
    });
}

#[cfg(feature = "nats")]
#[test]
fn examples_print_the_same_on_nats() {
    use conformance_tests::fixtures::{NatsOptions, NatsServer};

    let examples = [ANYWHERE, ON_NATS].concat();
    let given = variable("TEST_NATS_URL");
    print_what_is_expected("NATS", given, &examples, || {
        let server = NatsServer::start(&NatsOptions::new())?;
        let url = server.url();
        Ok((server, url))
    });
}

#[cfg(feature = "kafka")]
#[test]
fn examples_print_the_same_on_kafka() {
    use conformance_tests::fixtures::{KafkaOptions, KafkaServer};

    // Messages of different keys come in the order in which they were published where there is one
    // partition; what is written beside the examples is in that order.
    let url = |brokers: &str| format!("kafka://{brokers}?num_partitions=1");
    let given = KafkaServer::given().map(|brokers| url(&brokers));
    print_what_is_expected("KAFKA", given, ANYWHERE, || {
        let server = KafkaServer::start(&KafkaOptions::new())?;
        let url = url(&server.address());
        Ok((server, url))
    });
}
