//! What a server's health says, on servers that are configured so.

use mas_transport_core::{Health, Transport as _};
use mas_transport_redis::RedisTransport;
use tokio::time::Instant;

use crate::support::{SOON, Server};

async fn health(server: &Server) -> Health {
    let transport = server.connect().await;
    let health = transport.admin().health().await.unwrap();
    transport.close(Instant::now() + SOON).await.unwrap();
    health
}

/// There are exactly these warnings: for each, what the problem and the advice name.
#[track_caller]
fn warns(health: &Health, expected: &[(&str, &str)]) {
    assert_eq!(health.warnings.len(), expected.len(), "{health:#?}");
    for (problem, advice) in expected {
        let found = health
            .warnings
            .iter()
            .any(|w| w.problem.contains(problem) && w.advice.contains(advice));
        assert!(found, "{problem}, {advice}: {health:#?}");
    }
}

/// Keeps what it has confirmed, so that nothing else is warned of.
const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

async fn with(options: &[&str]) -> Option<Server> {
    Server::start(&[&KEEPS, options].concat()).await
}

/// Servers before 7.0 are warned of whatever else they are.
fn is_old(health: &Health) -> bool {
    health.server.starts_with("redis 6.")
}

#[tokio::test]
async fn a_server_that_keeps_everything_is_well() {
    let Some(server) = with(&[]).await else {
        return;
    };
    let health = health(&server).await;
    let version = health.server.split(' ').nth(1).unwrap();
    assert!(
        version.starts_with(|c: char| c.is_ascii_digit()),
        "{version}"
    );
    assert!(!health.latency.is_zero() && health.latency < SOON);
    for (name, value) in [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("save", "off"),
        ("maxmemory", "0 (no limit)"),
        ("maxmemory-policy", "noeviction"),
        ("role", "master"),
    ] {
        assert_eq!(
            health.facts.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
    assert!(
        health
            .facts
            .get("used-memory")
            .is_some_and(|u| u.ends_with("iB"))
    );
    assert!(
        health
            .facts
            .get("connected-clients")
            .is_some_and(|c| c != "0")
    );
    if is_old(&health) {
        return warns(&health, &[("older than 7.0", "upgrade")]);
    }
    warns(&health, &[]);
}

#[tokio::test]
async fn what_does_not_survive_is_warned_of() {
    let lost = [
        (
            &["--appendonly", "no"][..],
            "append-only file is off",
            "appendonly yes",
        ),
        (
            &["--appendfsync", "everysec"],
            "the last 2 s",
            "appendfsync always",
        ),
        (&["--appendfsync", "no"], "machine dies", "everysec"),
    ];
    for (options, problem, advice) in lost {
        let Some(server) = with(options).await else {
            return;
        };
        let health = health(&server).await;
        if is_old(&health) {
            return;
        }
        warns(&health, &[(problem, advice)]);
    }
}

/// How a server is started, and what is warned of then.
type Case<'a> = (&'a [&'a str], Option<(&'a str, &'a str)>);

#[tokio::test]
async fn memory_that_ends_and_keys_that_are_evicted_are_warned_of() {
    // An empty server uses about 1 MB.
    let full = ("of maxmemory is used", "raise maxmemory");
    let evicts = ("maxmemory-policy is allkeys-lru", "noeviction");
    let cases: [Case<'_>; 5] = [
        (&["--maxmemory", "100mb"], None),
        (&["--maxmemory", "1100kb"], Some(full)),
        (&["--maxmemory-policy", "allkeys-lru"], Some(evicts)),
        (
            &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
            Some(evicts),
        ),
        (
            &["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"],
            None,
        ),
    ];
    for (options, expected) in cases {
        let Some(server) = with(options).await else {
            return;
        };
        let health = health(&server).await;
        if is_old(&health) {
            return;
        }
        warns(&health, expected.as_slice());
    }
}

#[tokio::test]
async fn a_replica_is_warned_of() {
    let Some(primary) = with(&[]).await else {
        return;
    };
    let port = primary.port.to_string();
    let Some(replica) = with(&["--replicaof", "127.0.0.1", &port]).await else {
        return;
    };
    let health = health(&replica).await;
    assert_eq!(health.facts.get("role").map(String::as_str), Some("slave"));
    if !is_old(&health) {
        warns(&health, &[("read-only replica", "primary")]);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_not_judged() {
    let Some(server) = with(&[]).await else {
        return;
    };
    let transport = server.connect().await;
    let mut raw = crate::support::raw(&transport).await;
    let mut forbid = redis::cmd("ACL");
    forbid.arg("SETUSER").arg("default").arg("-config");
    let _: String = forbid.query_async(&mut raw).await.unwrap();
    let health = transport.admin().health().await.unwrap();
    assert!(
        health
            .facts
            .get("appendfsync")
            .is_some_and(|f| f.contains("CONFIG is not allowed"))
    );
    if !is_old(&health) {
        warns(&health, &[("cannot be judged", "+config|get")]);
    }
}

#[tokio::test]
async fn a_server_that_is_gone_has_no_health() {
    let Some(mut server) = with(&[]).await else {
        return;
    };
    let config = server
        .config()
        .response_timeout(std::time::Duration::from_millis(300));
    let transport = RedisTransport::connect(config).await.unwrap();
    transport.admin().health().await.unwrap();
    server.kill().await;
    let error = transport.admin().health().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    server.restart().await;
    let until = Instant::now() + SOON;
    while let Err(error) = transport.admin().health().await {
        assert!(Instant::now() < until, "{error}");
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}
