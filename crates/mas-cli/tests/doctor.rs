//! The real `mas doctor` and `mas config`, the global options, and what must be in no output.

mod common;

#[cfg(any(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "redis"
))]
use common::json;
use common::{finish, mas, text};

/// The text of what the doctor prints with these variables, and its exit code.
fn doctor(variables: &[(&str, &str)]) -> (String, Option<i32>) {
    let mut command = mas(&["doctor"]);
    let output = finish(command.envs(variables.iter().copied()).spawn().unwrap());
    (text(&output.stdout).to_owned(), output.status.code())
}

#[cfg(feature = "memory")]
#[test]
fn memory_is_fine_and_shows_what_it_can_do() {
    let (told, code) = doctor(&[]);
    assert_eq!(code, Some(0), "{told}");
    for part in [
        "inmemory",
        "default",
        "durability",
        "volatile",
        "nothing is wrong",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(
        !told.contains('\u{1b}'),
        "colours are for terminals: {told}"
    );
    let output = finish(mas(&["doctor", "--json"]).spawn().unwrap());
    let json = json(&output);
    assert_eq!(json["verdict"], "ok");
    assert_eq!(json["backend"], "memory");
    let capabilities = json["connection"]["capabilities"].as_array().unwrap();
    let any_member = capabilities.iter().find(|row| row["name"] == "any_member");
    assert_eq!(any_member.unwrap()["value"], true);
}

#[test]
#[cfg(not(feature = "kafka"))]
fn a_backend_that_this_build_lacks_is_answered_with_its_feature() {
    let (told, code) = doctor(&[("PROTOCOL_TYPE", "kafka")]);
    assert_eq!(code, Some(2));
    assert!(told.contains("features = [\"kafka\"]"), "{told}");
}

#[test]
fn an_unknown_backend_is_answered_with_those_there_are() {
    let (told, code) = doctor(&[("PROTOCOL_TYPE", "rabbit")]);
    assert_eq!(code, Some(2));
    assert!(told.contains("PROTOCOL_TYPE=rabbit"), "{told}");
    for (backend, there) in [
        ("kafka", cfg!(feature = "kafka")),
        ("memory", cfg!(feature = "memory")),
        ("nats", cfg!(feature = "nats")),
        ("redis", cfg!(feature = "redis")),
    ] {
        let verdict = told.split("Verdict").nth(1).unwrap();
        assert_eq!(
            verdict.contains(backend),
            there || verdict.contains("lacks"),
            "{told}"
        );
    }
}

#[cfg(feature = "redis")]
#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let variables = [
        ("PROTOCOL_TYPE", "redis"),
        ("REDIS_DB", "x"),
        ("REDIS_POOL_SIZE", "-1"),
        ("REDIS_STREAM_MAXLEN", "5"),
        ("REDIS_PASSWORD", "hush-hush"),
    ];
    let (told, code) = doctor(&variables);
    assert_eq!(code, Some(2), "{told}");
    let verdict = told.split("Verdict").nth(1).unwrap();
    for part in [
        "REDIS_DB=x: ",
        "REDIS_POOL_SIZE=-1: ",
        "1 to 1000",
        "REDIS_STREAM_MAXLEN",
        "did you mean REDIS_STREAM_MAX_LEN?",
    ] {
        assert!(verdict.contains(part), "{part}: {told}");
    }
    assert!(told.contains("environment REDIS_DB"), "{told}");
    assert!(told.contains("***") && !told.contains("hush"), "{told}");
    let mut command = mas(&["doctor", "--json"]);
    let output = finish(command.envs(variables).spawn().unwrap());
    let json = json(&output);
    assert_eq!(json["verdict"], "broken");
    let names: Vec<_> = json["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    for name in ["REDIS_DB", "REDIS_POOL_SIZE", "REDIS_STREAM_MAXLEN"] {
        assert!(names.contains(&&name.into()), "{json}");
    }
    assert_eq!(json["connection"], serde_json::Value::Null);
    // The other commands tell the same.
    let mut command = mas(&["lag"]);
    let output = finish(command.envs(variables).spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("REDIS_DB=x") && errors.contains("REDIS_STREAM_MAX_LEN"),
        "{errors}"
    );
}

#[cfg(all(feature = "nats", feature = "redis"))]
#[test]
fn a_server_that_is_not_there_is_told_with_what_to_do() {
    // A port that was free just now: nobody listens there.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    drop(held);
    for (backend, variable, timeout, hint) in [
        (
            "redis",
            "REDIS_ADDR",
            "REDIS_CONNECT_TIMEOUT",
            "REDIS_ADDR=host:port",
        ),
        (
            "nats",
            "NATS_URL",
            "NATS_CONNECT_TIMEOUT",
            "NATS_URL=nats://host:4222",
        ),
        #[cfg(feature = "kafka")]
        (
            "kafka",
            "KAFKA_BROKERS",
            "KAFKA_CONNECT_TIMEOUT",
            "KAFKA_BROKERS=host:9092",
        ),
    ] {
        let (told, code) = doctor(&[
            ("PROTOCOL_TYPE", backend),
            (variable, &addr),
            (timeout, "100ms"),
            // Waiting for it is for services.
            ("TRANSPORT_STARTUP", "wait"),
        ]);
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains(&addr) && told.contains(hint), "{told}");
    }
}

#[cfg(all(feature = "nats", feature = "redis"))]
#[test]
fn a_server_that_does_not_answer_is_named_before_it_is_given_up() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let commands = [
        &["pub", "t", "x"][..],
        &["sub", "t"],
        &["lag"],
        &["load", "--agents", "3"],
        &["doctor"],
    ];
    // Side by side: each waits for the whole of the connect timeout.
    let mut backends = vec!["redis", "nats"];
    if cfg!(feature = "kafka") {
        backends.push("kafka");
    }
    let running = backends.into_iter().map(|backend| {
        commands.map(|arguments| {
            let mut command = mas(arguments);
            command.env("TRANSPORT_URL", format!("{backend}://ann:hush@{addr}"));
            (backend, arguments, command.spawn().unwrap())
        })
    });
    let running: Vec<_> = running.collect();
    for (backend, arguments, child) in running.into_iter().flatten() {
        let output = finish(child);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = text(&output.stderr);
        let waiting = errors.lines().next().unwrap();
        assert!(
            waiting.starts_with(&format!("mas: still waiting for {backend} at ")),
            "{arguments:?}: {errors}"
        );
        assert!(waiting.ends_with(&addr.to_string()), "{errors}");
        assert_eq!(errors.matches("waiting").count(), 1, "{errors}");
        assert!(!errors.contains("hush"), "{arguments:?}: {errors}");
    }
}

#[cfg(feature = "memory")]
#[test]
fn options_go_before_the_environment() {
    let mut command = mas(&[
        "--protocol",
        "memory",
        "--set",
        "MESSAGE_MAX_RETRIES=9",
        "doctor",
    ]);
    let output = finish(command.env("PROTOCOL_TYPE", "rabbit").spawn().unwrap());
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let retries = told
        .lines()
        .find(|line| line.contains("MESSAGE_MAX_RETRIES"));
    let retries: Vec<_> = retries.unwrap().split_whitespace().collect();
    assert_eq!(retries, ["MESSAGE_MAX_RETRIES", "9", "command", "line"]);
    // They may stand behind the command as well.
    let mut command = mas(&["doctor", "--namespace", "a.b", "--json"]);
    let output = finish(command.spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["problems"][0]["name"], "MAS_NAMESPACE");
}

#[test]
fn what_the_command_line_contradicts_is_told_in_its_words() {
    let mut command = mas(&["--protocol", "nats", "topics"]);
    let command = command.env("TRANSPORT_URL", "redis://h");
    let output = finish(command.spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("PROTOCOL_TYPE=nats (command line): set on the command line"),
        "{errors}"
    );
    assert!(!errors.contains("code"), "{errors}");
}

#[cfg(feature = "memory")]
#[test]
fn a_misspelt_setting_of_another_backend_is_a_warning() {
    let (told, code) = doctor(&[("KAFKA_BROKER", "hush-hush")]);
    assert_eq!(code, Some(1), "{told}");
    let verdict = told.split("Verdict").nth(1).unwrap();
    assert!(
        verdict.contains(
            "warning  KAFKA_BROKER: there is no such setting; did you mean KAFKA_BROKERS?"
        ),
        "{told}"
    );
    assert!(!told.contains("hush"), "{told}");
}

#[cfg(feature = "memory")]
#[test]
fn the_printed_file_can_be_used() {
    let output = finish(mas(&["config"]).spawn().unwrap());
    assert!(output.status.success());
    let file = text(&output.stdout);
    for name in ["[redis]", "# pool_size = 10", "[message]"] {
        assert!(file.contains(name), "{name}: {file}");
    }
    let path = std::env::temp_dir().join(format!("mas-{}.toml", std::process::id()));
    // Its lines say what is so anyway; one is made to say something.
    let edited = file.replace("# max_retries = 3", "max_retries = 7");
    std::fs::write(&path, &edited).unwrap();
    let path_text = path.to_str().unwrap();
    let output = finish(mas(&["doctor", "--config", path_text]).spawn().unwrap());
    std::fs::remove_file(&path).unwrap();
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let retries = told
        .lines()
        .find(|line| line.contains("MESSAGE_MAX_RETRIES"))
        .unwrap();
    assert!(retries.contains(" 7 "), "{retries}");
    assert!(retries.contains("message.max_retries"), "{retries}");
    let output = finish(mas(&["config", "rabbit"]).spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    for (format, line) in [
        ("toml", "# pool_size = 10"),
        ("yaml", "  # pool_size: 10"),
        ("env", "# REDIS_POOL_SIZE=10"),
    ] {
        let command = ["config", "redis", "--format", format];
        let output = finish(mas(&command).spawn().unwrap());
        let told = text(&output.stdout);
        assert!(told.lines().any(|l| l == line), "{format}: {told}");
        assert!(!told.to_lowercase().contains("kafka_acks"), "{told}");
    }
    let command = ["config", "redis", "--format", "markdown"];
    let output = finish(mas(&command).spawn().unwrap());
    assert_eq!(output.status.code(), Some(2));
    let output = finish(mas(&["config", "--format", "markdown"]).spawn().unwrap());
    assert!(text(&output.stdout).contains("| `REDIS_POOL_SIZE` |"));
}

#[test]
fn a_filter_of_logs_that_is_not_understood_is_told() {
    let mut command = mas(&["doctor"]);
    let output = finish(command.env("RUST_LOG", "a=b=c").spawn().unwrap());
    assert!(text(&output.stderr).contains("RUST_LOG is not understood"));
}

/// What holds on every broker.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
mod brokers {
    use super::common::{Broker, on};
    use super::*;

    /// A name, variables, and options.
    pub(super) type Way<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

    /// All of it, and a part of it that is in nothing else.
    pub(super) const PASSWORD: &str = "hush-Zk9/x";
    const PART: &str = "Zk9";

    /// The server asks for the password; the ways to say it are right and wrong. The variable has no
    /// effect: connecting logs a warning of it.
    pub(super) fn the_password_is_in_no_output(
        server: &dyn Broker,
        ways: &[Way<'_>],
        without_effect: &str,
    ) {
        let commands: [&[&str]; 14] = [
            &["pub", "t", "a", "b", "c"],
            &["pub", "t", "a", "--json"],
            &["sub", "t", "-g", "g", "-n", "2"],
            &["sub", "t", "-g", "g", "-n", "1", "--json", "--ack", "never"],
            &["topics"],
            &["topics", "--json"],
            &["lag"],
            &["lag", "nonsense"],
            &["purge", "t"],
            &["purge", "t", "--yes"],
            &[
                "load",
                "--agents",
                "2",
                "--rate",
                "50",
                "--duration",
                "200ms",
            ],
            &["doctor"],
            &["doctor", "--json"],
            &["config"],
        ];
        let mut logged = false;
        for (way, variables, options) in ways {
            for command in commands {
                let mut command = on(server, command);
                command
                    .args(*options)
                    .envs(variables.iter().copied())
                    .env(without_effect, "1h")
                    .env("RUST_LOG", "trace");
                let output = finish(command.spawn().unwrap());
                for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
                    let told = String::from_utf8_lossy(bytes);
                    for secret in ["hush", PART] {
                        assert!(
                            !told.contains(secret),
                            "{way}, {command:?}, {stream}: {told}"
                        );
                    }
                    logged |= told.contains(without_effect) && told.contains("WARN");
                }
                // The right ones work, so that what is searched is what a command says.
                if *way == "right" {
                    let lacks_topic = command.get_args().any(|a| a == "nonsense" || a == "purge");
                    assert!(
                        lacks_topic || output.status.code() != Some(2),
                        "{command:?}: {}",
                        text(&output.stderr)
                    );
                }
            }
        }
        assert!(
            logged,
            "RUST_LOG=trace logged nothing: the search proves nothing"
        );
    }

    /// The variable has no effect: connecting logs a warning of it. What the command says is there in any case.
    pub(super) fn logs_are_off_unless_they_are_asked_for(
        server: &dyn Broker,
        without_effect: &str,
        said: &str,
    ) {
        let mut command = on(server, &["topics"]);
        let quiet = finish(command.env(without_effect, "1h").spawn().unwrap());
        assert_eq!(text(&quiet.stderr), said);
        let mut command = on(server, &["topics"]);
        let loud = command
            .env(without_effect, "1h")
            .env("RUST_LOG", "warn")
            .spawn();
        assert!(text(&finish(loud.unwrap()).stderr).contains(without_effect));
    }
}

#[cfg(all(unix, feature = "redis"))]
mod redis {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use conformance_tests::fixtures::RedisServer;

    use super::brokers::{
        PASSWORD, logs_are_off_unless_they_are_asked_for, the_password_is_in_no_output,
    };
    use super::common::redis::server;
    use super::common::run;
    use super::*;

    /// Has the server do this.
    fn order(server: &RedisServer, command: &str) {
        let mut connection = TcpStream::connect(server.address()).unwrap();
        write!(connection, "{command}\r\n").unwrap();
        let mut answer = [0; 5];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    #[test]
    fn the_password_is_in_no_output_of_any_command() {
        let Some(server) = server(&[]) else { return };
        order(&server, &format!("CONFIG SET requirepass {PASSWORD}"));
        let url = format!(
            "redis://:{}@{}/0",
            PASSWORD.replace('/', "%2F"),
            server.address()
        );
        let set = format!("REDIS_PASSWORD={PASSWORD}");
        // Right, and wrong in several ways: what fails speaks more.
        the_password_is_in_no_output(
            &server,
            &[
                ("right", &[("REDIS_PASSWORD", PASSWORD)], &[]),
                ("refused", &[("REDIS_PASSWORD", "hush-wrong")], &[]),
                ("by URL", &[("TRANSPORT_URL", &url)], &[]),
                ("by option", &[], &["--set", &set]),
                ("misspelt", &[("REDIS_PASWORD", PASSWORD)], &[]),
            ],
            "REDIS_MESSAGE_TTL",
        );
    }

    #[test]
    fn logs_are_off_unless_something_is_asked_for() {
        let Some(server) = server(&[]) else { return };
        logs_are_off_unless_they_are_asked_for(&server, "REDIS_MESSAGE_TTL", "");
    }

    #[test]
    fn a_server_that_loses_messages_is_warned_of_with_the_setting_to_change() {
        let options = [
            ("maxmemory", "100mb"),
            ("maxmemory-policy", "allkeys-lru"),
            ("appendonly", "no"),
        ];
        let Some(server) = server(&options) else {
            return;
        };
        let output = run(&server, &["doctor"]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let verdict = told.split("Verdict").nth(1).unwrap();
        for part in [
            "warning",
            "append-only file is off",
            "appendonly yes",
            "maxmemory-policy is allkeys-lru",
            "maxmemory-policy noeviction",
        ] {
            assert!(verdict.contains(part), "{part}: {told}");
        }
        assert!(
            told.contains("redis ") && told.contains("latency"),
            "{told}"
        );
        let output = run(&server, &["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let json = json(&output);
        assert_eq!(json["verdict"], "warnings");
        assert_eq!(json["warnings"].as_array().unwrap().len(), 2, "{json}");
        assert_eq!(json["notes"], serde_json::json!([]));
        assert!(
            json["connection"]["latency_ms"]
                .as_f64()
                .is_some_and(|ms| ms > 0.0)
        );
    }

    #[test]
    fn a_server_that_loses_nothing_is_fine() {
        let options = [("appendonly", "yes"), ("appendfsync", "always")];
        let Some(server) = server(&options) else {
            return;
        };
        let output = run(&server, &["doctor"]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{told}");
        assert!(told.ends_with("nothing is wrong\n"), "{told}");
    }

    #[test]
    fn what_most_servers_run_with_is_noted_and_fine() {
        let options = [("appendonly", "yes"), ("appendfsync", "everysec")];
        let Some(server) = server(&options) else {
            return;
        };
        let output = run(&server, &["doctor"]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let verdict = told.split("Verdict").nth(1).unwrap();
        for part in [
            "nothing is wrong",
            "note     appendfsync is everysec",
            "set appendfsync always",
        ] {
            assert!(verdict.contains(part), "{part}: {told}");
        }
        let output = run(&server, &["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(0));
        let json = json(&output);
        assert_eq!(json["verdict"], "ok");
        assert_eq!(json["warnings"], serde_json::json!([]));
        let notes = json["notes"].as_array().unwrap();
        assert_eq!(notes.len(), 1, "{json}");
        assert!(notes[0]["advice"].as_str().unwrap().contains("always"));
    }

    #[test]
    fn a_server_that_takes_no_messages_is_wrong() {
        let options = [("appendonly", "yes")];
        let Some(server) = server(&options) else {
            return;
        };
        // Of a primary that nobody runs.
        order(&server, "REPLICAOF 127.0.0.1 1");
        let output = run(&server, &["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(2));
        let json = json(&output);
        assert_eq!(json["verdict"], "broken");
        let problem = json["problems"][0]["problem"].as_str().unwrap();
        assert!(problem.contains("read-only replica"), "{json}");
        assert_ne!(json["connection"], serde_json::Value::Null);
    }
}

#[cfg(all(unix, feature = "kafka"))]
mod kafka {
    use conformance_tests::fixtures::KafkaOptions;

    use super::brokers::{
        PASSWORD, logs_are_off_unless_they_are_asked_for, the_password_is_in_no_output,
    };
    use super::common::kafka::{server, server_with};
    use super::common::{on, run};
    use super::*;

    /// It is nearly a variable of another backend.
    const WITHOUT_EFFECT: &str = "REDIS_MESAGE_TTL";

    #[test]
    fn the_password_is_in_no_output_of_any_command() {
        let jaas = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_ann=\"{PASSWORD}\";"
        );
        let options = KafkaOptions::new()
            .listener("SASL_PLAINTEXT", "SASL_PLAINTEXT")
            .property("sasl.enabled.mechanisms", "PLAIN")
            .property("listener.name.sasl_plaintext.plain.sasl.jaas.config", &jaas);
        let Some(server) = server_with(&options) else {
            return;
        };
        let address = server.address_of("SASL_PLAINTEXT").unwrap();
        let there = ("KAFKA_BROKERS", &*address);
        let url = format!("kafka://ann:{}@{address}", PASSWORD.replace('/', "%2F"));
        let set = format!("KAFKA_PASSWORD={PASSWORD}");
        let ann = ("KAFKA_USERNAME", "ann");
        // Right, and wrong in several ways: what fails speaks more.
        the_password_is_in_no_output(
            &server,
            &[
                ("right", &[there, ann, ("KAFKA_PASSWORD", PASSWORD)], &[]),
                (
                    "refused",
                    &[there, ann, ("KAFKA_PASSWORD", "hush-wrong")],
                    &[],
                ),
                ("by URL", &[there, ("TRANSPORT_URL", &url)], &[]),
                ("by option", &[there, ann], &["--set", &set]),
                ("misspelt", &[there, ann, ("KAFKA_PASWORD", PASSWORD)], &[]),
            ],
            WITHOUT_EFFECT,
        );
    }

    #[test]
    fn logs_are_off_unless_something_is_asked_for() {
        let Some(server) = server() else { return };
        let said = "mas topics: the figures of this backend are approximate\n";
        logs_are_off_unless_they_are_asked_for(&server, WITHOUT_EFFECT, said);
    }

    #[test]
    fn one_replica_is_noted_and_fine() {
        let Some(server) = server() else { return };
        let output = run(&server, &["doctor"]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{told}");
        for part in [
            "nothing is wrong",
            "note     topics are kept by one broker",
            "KAFKA_REPLICATION_FACTOR=3",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let output = run(&server, &["doctor", "--json"]);
        let json = json(&output);
        assert_eq!(
            (&json["verdict"], &json["backend"]),
            (&"ok".into(), &"kafka".into())
        );
        assert_eq!(json["warnings"], serde_json::json!([]));
        assert_eq!(json["notes"].as_array().unwrap().len(), 1, "{json}");
        let connection = &json["connection"];
        assert_eq!(connection["facts"]["brokers"], "1", "{json}");
        assert!(connection["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    }

    #[test]
    fn the_word_of_a_leader_alone_is_warned_of_and_too_few_brokers_are_wrong() {
        let Some(server) = server() else { return };
        for (name, value, code, part) in [
            ("KAFKA_ACKS", "1", 1, "confirmed when one broker has them"),
            ("KAFKA_REPLICATION_FACTOR", "3", 2, "none can be made"),
        ] {
            let mut command = on(&server, &["doctor"]);
            let output = finish(command.env(name, value).spawn().unwrap());
            let told = text(&output.stdout);
            assert_eq!(output.status.code(), Some(code), "{told}");
            let verdict = told.split("Verdict").nth(1).unwrap();
            assert!(verdict.contains(part), "{part}: {told}");
        }
    }
}

#[cfg(all(unix, feature = "nats"))]
mod nats {
    use conformance_tests::fixtures::NatsOptions;

    use super::brokers::{
        PASSWORD, logs_are_off_unless_they_are_asked_for, the_password_is_in_no_output,
    };
    use super::common::nats::{server, server_with};
    use super::common::{Broker, feed, on, run};
    use super::*;

    /// What the doctor prints on this server with these variables, and its exit code.
    fn doctor_on(server: &dyn Broker, variables: &[(&str, &str)]) -> (String, Option<i32>) {
        let mut command = on(server, &["doctor"]);
        let output = finish(command.envs(variables.iter().copied()).spawn().unwrap());
        (text(&output.stdout).to_owned(), output.status.code())
    }

    fn verdict(told: &str) -> &str {
        told.split("Verdict").nth(1).unwrap()
    }

    #[test]
    fn the_password_is_in_no_output_of_any_command() {
        let config = format!("authorization {{ user: ann, password: \"{PASSWORD}\" }}");
        let Some(server) = server_with(&NatsOptions::new().config(&config)) else {
            return;
        };
        let credentials = format!("ann:{}", PASSWORD.replace('/', "%2F"));
        let url = server.url().replace("//", &format!("//{credentials}@"));
        let set = format!("NATS_PASSWORD={PASSWORD}");
        let ann = ("NATS_USER", "ann");
        // Right, and wrong in several ways: what fails speaks more.
        the_password_is_in_no_output(
            &server,
            &[
                ("right", &[ann, ("NATS_PASSWORD", PASSWORD)], &[]),
                ("refused", &[ann, ("NATS_PASSWORD", "hush-wrong")], &[]),
                ("by URL", &[("NATS_URL", &url)], &[]),
                ("by option", &[ann], &["--set", &set]),
                ("misspelt", &[ann, ("NATS_PASWORD", PASSWORD)], &[]),
                ("as a token", &[("NATS_TOKEN", PASSWORD)], &[]),
                ("as a seed", &[("NATS_NKEY", PASSWORD)], &[]),
            ],
            "NATS_MESSAGE_TTL",
        );
    }

    #[test]
    fn logs_are_off_unless_something_is_asked_for() {
        let Some(server) = server() else { return };
        logs_are_off_unless_they_are_asked_for(&server, "NATS_MESSAGE_TTL", "");
    }

    #[test]
    fn a_server_that_keeps_topics_in_files_is_fine() {
        let Some(server) = server() else { return };
        let (told, code) = doctor_on(&server, &[]);
        assert_eq!(code, Some(0), "{told}");
        for part in [
            "nothing is wrong",
            "note     topics are kept in the files of one server",
            "2 minutes by default",
            "NATS_REPLICAS=3",
            "sync_interval: always",
        ] {
            assert!(verdict(&told).contains(part), "{part}: {told}");
        }
        assert!(
            told.contains("nats-server ") && told.contains("latency"),
            "{told}"
        );
        let output = run(&server, &["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(0));
        let json = json(&output);
        assert_eq!(
            (&json["verdict"], &json["backend"]),
            (&"ok".into(), &"nats".into())
        );
        assert_eq!(json["warnings"], serde_json::json!([]));
        assert_eq!(json["notes"].as_array().unwrap().len(), 1, "{json}");
        let connection = &json["connection"];
        assert_eq!(connection["facts"]["storage"], "file", "{json}");
        assert!(connection["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    }

    #[test]
    fn topics_in_the_memory_of_one_server_are_warned_of() {
        let Some(server) = server() else { return };
        let (told, code) = doctor_on(&server, &[("NATS_STORAGE", "memory")]);
        assert_eq!(code, Some(1), "{told}");
        for part in ["warning", "memory of one server", "NATS_REPLICAS"] {
            assert!(verdict(&told).contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn a_server_without_jetstream_is_wrong() {
        let Some(server) = server_with(&NatsOptions::new().without_jetstream()) else {
            return;
        };
        let (told, code) = doctor_on(&server, &[]);
        assert_eq!(code, Some(2), "{told}");
        assert!(verdict(&told).contains("JetStream"), "{told}");
    }

    #[test]
    fn a_server_without_room_for_files_or_in_memory_is_told_by_the_first_message() {
        for (limit, lacks, has) in [
            ("max_file_store: 0", "file", "memory"),
            ("max_memory_store: 0", "memory", "file"),
        ] {
            let Some(server) = server_with(&NatsOptions::new().jetstream(limit)) else {
                return;
            };
            let publish = |storage: &str| {
                let mut command = on(&server, &["pub", "t", "x"]);
                finish(command.env("NATS_STORAGE", storage).spawn().unwrap())
            };
            let output = publish(lacks);
            let errors = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{limit}: {errors}");
            for part in ["no room left", "JetStream limits"] {
                assert!(errors.contains(part), "{limit}: {errors}");
            }
            let output = publish(has);
            let errors = text(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{limit}: {errors}");
        }
    }

    #[test]
    fn a_store_that_is_nearly_full_is_warned_of_and_a_full_one_refuses() {
        let account = "accounts { A { jetstream { max_file: 1MB, max_mem: 1MB }
            users [ { user: ann, password: hush } ] } }";
        let Some(server) = server_with(&NatsOptions::new().config(account)) else {
            return;
        };
        let ann = [("NATS_USER", "ann"), ("NATS_PASSWORD", "hush")];
        let publish = |lines: usize| {
            let mut command = on(&server, &["pub", "t", "--json"]);
            command.envs(ann).env("PUBLISH_TIMEOUT", "5s");
            feed(
                command,
                format!("{}\n", "x".repeat(300_000))
                    .repeat(lines)
                    .as_bytes(),
            )
        };
        assert_eq!(publish(3).status.code(), Some(0));
        let (told, code) = doctor_on(&server, &ann);
        assert_eq!(code, Some(1), "{told}");
        for part in ["% of the JetStream storage is used", "max_file_store"] {
            assert!(verdict(&told).contains(part), "{part}: {told}");
        }
        let output = publish(1);
        assert_eq!(output.status.code(), Some(1));
        let json = json(&output);
        let error = json["failures"][0]["error"].as_str().unwrap();
        assert!(error.contains("no room left"), "{json}");
        assert_eq!(json["failures"][0]["maybe_stored"], false, "{json}");
    }
}
