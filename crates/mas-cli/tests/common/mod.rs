//! The real `mas`, without the environment of whoever runs the tests.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use conformance_tests::fixtures::finish_within;

/// Longer than any of these runs takes, drain included, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The command, with nothing on its standard input.
pub(crate) fn mas(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mas"));
    const OURS: [&str; 8] = [
        "PROTOCOL_",
        "TRANSPORT_",
        "REDIS_",
        "KAFKA_",
        "NATS_",
        "MESSAGE_",
        "MAS_",
        "RUST_LOG",
    ];
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if OURS.iter().any(|prefix| told.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The output of a process that ends within the limit.
pub(crate) fn finish(child: Child) -> Output {
    finish_within(child, LIMIT).unwrap()
}

/// The output of a command that gets this on its standard input.
pub(crate) fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = finish(child);
    // One that ends early closes it.
    let _ = feeding.join().unwrap();
    output
}

pub(crate) fn signal(id: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &id.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The last line of stdout.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    let last = text(&output.stdout).lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last:?}"))
}

/// Every line of stdout.
pub(crate) fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    let read = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    text(&output.stdout).lines().map(read).collect()
}

/// Whether there is a server, of which the fixture says this; where one is required, there has to be.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
fn there_is(backend: &str, available: Result<String, conformance_tests::Failure>) -> bool {
    let Err(reason) = available else {
        return true;
    };
    let variable = format!("REQUIRE_{}", backend.to_uppercase());
    let required = std::env::var(variable).is_ok_and(|value| value == "1");
    assert!(!required, "{reason}");
    println!("SKIPPED backend={backend} reason={reason}");
    false
}

/// A server that the command talks to.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
pub(crate) trait Broker {
    /// The variables that lead to it.
    fn variables(&self) -> Vec<(&'static str, String)>;
    /// SIGKILL.
    fn kill(&self);
    /// Starts it again.
    fn restart(&self);
    /// Stops it where it stands, or lets it go on.
    fn freeze(&self, frozen: bool);
}

/// The command against this server.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
pub(crate) fn on(server: &dyn Broker, arguments: &[&str]) -> Command {
    let mut command = mas(arguments);
    command.envs(server.variables());
    command
}

/// The output of the command against this server.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
pub(crate) fn run(server: &dyn Broker, arguments: &[&str]) -> Output {
    finish(on(server, arguments).spawn().unwrap())
}

/// Likewise, of a command that has to succeed.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
pub(crate) fn succeed(server: &dyn Broker, arguments: &[&str]) -> Output {
    let output = run(server, arguments);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    output
}

/// Runs each of these functions of `brokers` on each broker, as a test of its own.
#[allow(unused_macros, reason = "each test binary uses its part")]
macro_rules! on_each_broker {
    ($($test:ident),+ $(,)?) => {
        #[cfg(all(unix, feature = "redis"))]
        mod redis {
            $(
                #[test]
                fn $test() {
                    if let Some(server) = crate::common::redis::server(&[]) {
                        crate::brokers::$test(&server);
                    }
                }
            )+
        }

        #[cfg(all(unix, feature = "kafka"))]
        mod kafka {
            $(
                #[test]
                fn $test() {
                    if let Some(server) = crate::common::kafka::server() {
                        crate::brokers::$test(&server);
                    }
                }
            )+
        }

        #[cfg(all(unix, feature = "nats"))]
        mod nats {
            $(
                #[test]
                fn $test() {
                    if let Some(server) = crate::common::nats::server() {
                        crate::brokers::$test(&server);
                    }
                }
            )+
        }
    };
}
#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use on_each_broker;

#[cfg(all(unix, feature = "kafka"))]
pub(crate) mod kafka {
    use conformance_tests::fixtures::{KafkaOptions, KafkaServer};

    use super::*;

    /// A server; `None`, when there is no program for it and none is required.
    pub(crate) fn server() -> Option<KafkaServer> {
        server_with(&KafkaOptions::new())
    }

    /// Likewise, with these options.
    pub(crate) fn server_with(options: &KafkaOptions) -> Option<KafkaServer> {
        there_is("kafka", KafkaServer::available()).then(|| KafkaServer::start(options).unwrap())
    }

    impl Broker for KafkaServer {
        fn variables(&self) -> Vec<(&'static str, String)> {
            vec![
                ("PROTOCOL_TYPE", "kafka".to_owned()),
                ("KAFKA_BROKERS", self.address()),
                // Messages without a key come in the order of their partitions, and some tests compare it.
                ("KAFKA_NUM_PARTITIONS", "1".to_owned()),
            ]
        }

        fn kill(&self) {
            KafkaServer::kill(self).unwrap();
        }

        fn restart(&self) {
            KafkaServer::restart(self).unwrap();
        }

        fn freeze(&self, frozen: bool) {
            KafkaServer::freeze(self, frozen).unwrap();
        }
    }
}

#[cfg(all(unix, feature = "nats"))]
pub(crate) mod nats {
    use conformance_tests::fixtures::{NatsOptions, NatsServer};

    use super::*;

    /// A server; `None`, when there is no program for it and none is required.
    pub(crate) fn server() -> Option<NatsServer> {
        server_with(&NatsOptions::new())
    }

    /// Likewise, with these options.
    pub(crate) fn server_with(options: &NatsOptions) -> Option<NatsServer> {
        there_is("nats", NatsServer::available()).then(|| NatsServer::start(options).unwrap())
    }

    impl Broker for NatsServer {
        fn variables(&self) -> Vec<(&'static str, String)> {
            vec![
                ("PROTOCOL_TYPE", "nats".to_owned()),
                ("NATS_URL", self.url()),
            ]
        }

        fn kill(&self) {
            NatsServer::kill(self).unwrap();
        }

        fn restart(&self) {
            NatsServer::restart(self).unwrap();
        }

        fn freeze(&self, frozen: bool) {
            NatsServer::freeze(self, frozen).unwrap();
        }
    }
}

#[cfg(all(unix, feature = "redis"))]
pub(crate) mod redis {
    use conformance_tests::fixtures::RedisServer;

    use super::*;

    /// A server with these options; `None`, when there is no program for it and none is required.
    pub(crate) fn server(options: &[(&str, &str)]) -> Option<RedisServer> {
        there_is("redis", RedisServer::available()).then(|| RedisServer::start(options).unwrap())
    }

    impl Broker for RedisServer {
        fn variables(&self) -> Vec<(&'static str, String)> {
            vec![
                ("PROTOCOL_TYPE", "redis".to_owned()),
                ("REDIS_ADDR", self.address()),
            ]
        }

        fn kill(&self) {
            RedisServer::kill(self).unwrap();
        }

        fn restart(&self) {
            RedisServer::restart(self).unwrap();
        }

        fn freeze(&self, frozen: bool) {
            RedisServer::freeze(self, frozen).unwrap();
        }
    }
}
