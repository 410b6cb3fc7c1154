//! The real `mas load`.

mod common;

use common::{finish, mas, text};

#[cfg(feature = "memory")]
#[test]
fn a_run_in_memory_delivers_everything_once() {
    let arguments = ["load", "--agents", "4", "--rate", "2000", "--json"];
    let child = mas(&arguments).args(["--duration", "1s"]).spawn().unwrap();
    let output = finish(child);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let json = common::json(&output);
    assert_eq!(json["backend"], "memory");
    assert_eq!(json["agents"], 4);
    assert_eq!(json["payload"], 256);
    for (name, expected) in [
        ("published", 2_000),
        ("delivered", 2_000),
        ("lost", 0),
        ("duplicates", 0),
        ("corrupted", 0),
        ("unsettled", 0),
    ] {
        assert_eq!(json[name], expected, "{name} in {json}");
    }
    for name in ["rate", "p50_ms", "p95_ms", "p99_ms", "max_ms", "duration_s"] {
        assert!(
            json[name].as_f64().is_some_and(|v| v > 0.0),
            "{name} in {json}"
        );
    }
    for name in ["cpu_percent", "cpu_seconds", "memory_mb"] {
        assert_eq!(json[name].is_f64(), cfg!(unix), "{name} in {json}");
    }
    // Stderr is no terminal here: whole lines, at least the last one.
    assert!(errors.contains("sent 2,000   delivered 2,000"), "{errors}");
    assert!(!errors.contains('\r'), "{errors}");
    assert!(text(&output.stdout).contains("lost"));
}

#[cfg(all(unix, feature = "memory"))]
#[test]
fn ctrl_c_drains_and_reports() {
    use std::io::{BufRead, BufReader};

    let arguments = ["load", "--agents", "2", "--rate", "500", "--json"];
    let mut child = mas(&arguments).args(["--duration", "1h"]).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    // The first line of progress: the run is under way.
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert!(line.starts_with("sending "), "{line}");
    common::signal(child.id(), "INT");
    let output = finish(child);
    assert!(output.status.success());
    let json = common::json(&output);
    assert_eq!(json["interrupted"], true);
    assert_eq!(json["lost"], 0);
    assert_eq!(json["published"], json["delivered"]);
    assert!(json["published"].as_u64().is_some_and(|n| n > 0), "{json}");
}

#[test]
fn an_unknown_backend_is_refused_with_those_there_are() {
    let child = mas(&["load"]).env("PROTOCOL_TYPE", "pigeon").spawn();
    let output = finish(child.unwrap());
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    assert!(errors.contains("PROTOCOL_TYPE=pigeon"), "{errors}");
    assert_eq!(
        errors.contains("memory"),
        cfg!(feature = "memory"),
        "{errors}"
    );
    assert_eq!(
        errors.contains("redis"),
        cfg!(feature = "redis"),
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
    let url = format!("nats://ann:hush-hush@{addr}");
    let redis = [
        ("REDIS_ADDR", &*addr),
        ("REDIS_PASSWORD", "hush-hush"),
        ("REDIS_CONNECT_TIMEOUT", "2s"),
    ];
    let nats = [("NATS_URL", &*url), ("NATS_CONNECT_TIMEOUT", "2s")];
    #[cfg(feature = "kafka")]
    let kafka = [
        ("KAFKA_BROKERS", &*addr),
        ("KAFKA_USERNAME", "ann"),
        ("KAFKA_PASSWORD", "hush-hush"),
        ("KAFKA_CONNECT_TIMEOUT", "2s"),
    ];
    for (backend, variables, hint) in [
        ("redis", &redis[..], "REDIS_ADDR=host:port"),
        ("nats", &nats, "NATS_URL=nats://host:4222"),
        #[cfg(feature = "kafka")]
        ("kafka", &kafka, "KAFKA_BROKERS=host:9092"),
    ] {
        let mut command = mas(&["load"]);
        command
            .env("PROTOCOL_TYPE", backend)
            .envs(variables.iter().copied());
        let output = finish(command.spawn().unwrap());
        assert_eq!(output.status.code(), Some(2));
        let errors = text(&output.stderr);
        assert!(errors.contains(&addr), "{errors}");
        assert!(errors.contains(hint), "{errors}");
        assert!(!errors.contains("hush"), "{errors}");
        // Once for all agents: that it waits, what is wrong, and what to do.
        let waiting = format!("mas: still waiting for {backend} at ");
        assert!(errors.starts_with(&waiting), "{errors}");
        assert_eq!(errors.lines().count(), 3, "{errors}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn arguments_are_checked() {
    for (arguments, why) in [
        (["load", "--payload", "19"], "at least 20 bytes"),
        (["load", "--duration", "10"], "write 500ms, 10s or 2h"),
        (["load", "--agents", "0"], "1..=1000"),
        (["load", "--rate", "0"], "1..=10000000"),
        (["load", "--topic-prefix", "a b"], "letters, digits"),
    ] {
        let output = finish(mas(&arguments).spawn().unwrap());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains(why), "{arguments:?}: {errors}");
    }
}

/// What holds on every broker.
#[cfg(all(unix, any(feature = "kafka", feature = "nats", feature = "redis")))]
mod brokers {
    use std::io::{BufRead as _, BufReader};
    use std::time::{Duration, Instant};

    use super::common::{Broker, LIMIT, finish, json, on, text};

    /// The seconds that the last whole line of progress tells of; a busy machine leaves some out.
    fn sent_for(lines: &str) -> u64 {
        let seconds = |line: &str| {
            line.strip_prefix("sending ")?
                .split(' ')
                .next()?
                .parse()
                .ok()
        };
        lines.lines().rev().find_map(seconds).unwrap_or(0)
    }

    /// The report of a run on a broker, which delivers everything once.
    pub(super) fn delivers_everything_once(server: &dyn Broker, backend: &str) {
        let mut load = on(server, &["load", "--json"]);
        load.args(["--agents", "3", "--rate", "300", "--duration", "1s"]);
        let output = finish(load.spawn().unwrap());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let json = json(&output);
        assert_eq!(json["backend"], backend);
        for (name, expected) in [
            ("published", 300),
            ("delivered", 300),
            ("lost", 0),
            ("duplicates", 0),
            ("unsettled", 0),
        ] {
            assert_eq!(json[name], expected, "{name} in {json}");
        }
    }

    /// Kills the server under a run and starts it again, which loses nothing.
    pub(super) fn survives_a_kill(server: &dyn Broker) {
        /// Within which a run goes on once its server is back.
        const RESUMED: Duration = Duration::from_secs(10);

        let mut load = on(server, &["load", "--json"]);
        load.args(["--agents", "4", "--rate", "400"])
            .args(["--duration", "6s", "--lease", "2s"]);
        let mut child = load.spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut lines = String::new();
        let begun = Instant::now();
        while sent_for(&lines) < 2 {
            assert!(begun.elapsed() < LIMIT, "{lines}");
            assert!(errors.read_line(&mut lines).unwrap() > 0, "{lines}");
        }
        let gone = Instant::now();
        server.kill();
        // Progress goes on without the server; a second of it is what the run has to bridge.
        let killed = sent_for(&lines);
        while sent_for(&lines) <= killed {
            assert!(begun.elapsed() < LIMIT, "{lines}");
            assert!(errors.read_line(&mut lines).unwrap() > 0, "{lines}");
        }
        server.restart();
        let away = gone.elapsed();
        // Nobody else reads it, and it must not fill up.
        let rest = std::thread::spawn(move || {
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
        });
        let output = finish(child);
        rest.join().unwrap();
        let json = json(&output);
        assert!(output.status.success(), "{json}");
        assert_eq!(json["published"], 2_400, "{json}");
        assert_eq!(json["delivered"], 2_400, "{json}");
        assert_eq!(json["lost"], 0, "{json}");
        assert_eq!(json["duplicates"], json["duplicates_explained"], "{json}");
        assert!(json["reconnects"].as_u64().is_some_and(|n| n > 0), "{json}");
        // The one that was due when the server died waited longest.
        let longest = json["max_ms"].as_f64().unwrap_or(f64::MAX);
        let limit = (away + RESUMED).as_secs_f64() * 1000.0;
        assert!(longest < limit, "{longest} of {limit} ms: {json}");
    }
}

#[cfg(all(unix, feature = "redis"))]
mod redis {
    use conformance_tests::fixtures::RedisServer;

    use super::brokers::{delivers_everything_once, survives_a_kill};
    use super::common;

    /// Flushed on every write, so that a receipt survives the kill.
    fn server() -> Option<RedisServer> {
        common::redis::server(&[("appendonly", "yes"), ("appendfsync", "always")])
    }

    #[test]
    fn a_run_on_redis_delivers_everything_once() {
        let Some(server) = server() else { return };
        delivers_everything_once(&server, "redis");
    }

    #[test]
    fn a_killed_and_restarted_server_loses_nothing() {
        let Some(server) = server() else { return };
        survives_a_kill(&server);
    }
}

#[cfg(all(unix, feature = "kafka"))]
mod kafka {
    use super::brokers::{delivers_everything_once, survives_a_kill};
    use super::common::kafka::server;

    #[test]
    fn a_run_on_kafka_delivers_everything_once() {
        let Some(server) = server() else { return };
        delivers_everything_once(&server, "kafka");
    }

    #[test]
    fn a_killed_and_restarted_server_loses_nothing() {
        let Some(server) = server() else { return };
        survives_a_kill(&server);
    }
}

#[cfg(all(unix, feature = "nats"))]
mod nats {
    use super::brokers::{delivers_everything_once, survives_a_kill};
    use super::common::nats::server;

    #[test]
    fn a_run_on_nats_delivers_everything_once() {
        let Some(server) = server() else { return };
        delivers_everything_once(&server, "nats");
    }

    #[test]
    fn a_killed_and_restarted_server_loses_nothing() {
        let Some(server) = server() else { return };
        survives_a_kill(&server);
    }
}
