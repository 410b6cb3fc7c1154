//! What a server's health says, on servers that are configured so.

use mas_transport_core::{Health, Severity, Transport as _};
use mas_transport_redis::RedisTransport;
use tokio::time::Instant;

use crate::support::{SOON, Server};

async fn health(server: &Server) -> Health {
    let transport = server.connect().await;
    let health = transport.admin().health().await.unwrap();
    transport.close(Instant::now() + SOON).await.unwrap();
    health
}

/// How bad it is, and what problem and advice name.
type Expected<'a> = (Severity, &'a str, &'a str);

/// There are exactly these findings, beside the one that every server before 7.0 has.
#[track_caller]
fn finds(health: &Health, expected: &[Expected<'_>]) {
    const OLD: Expected<'_> = (Severity::Note, "older than 7.0", "upgrade");
    let mut expected = expected.to_vec();
    if health.server.starts_with("redis 6.") {
        expected.push(OLD);
    }
    assert_eq!(health.findings.len(), expected.len(), "{health:#?}");
    for (severity, problem, advice) in expected {
        let found = health
            .of(severity)
            .any(|f| f.problem.contains(problem) && f.advice.contains(advice));
        assert!(found, "{severity:?} {problem}, {advice}: {health:#?}");
    }
}

/// Keeps what it has confirmed, so that nothing else is warned of.
const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

async fn with(options: &[&str]) -> Option<Server> {
    Server::start(&[&KEEPS, options].concat()).await
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
    finds(&health, &[]);
}

#[tokio::test]
async fn what_does_not_survive_is_told() {
    let lost: [(&[&str], Expected<'_>); 3] = [
        (
            &["--appendonly", "no"],
            (
                Severity::Warning,
                "append-only file is off",
                "appendonly yes",
            ),
        ),
        (
            &["--appendfsync", "everysec"],
            (Severity::Note, "loses power", "appendfsync always"),
        ),
        (
            &["--appendfsync", "no"],
            (Severity::Warning, "machine dies", "everysec"),
        ),
    ];
    for (options, expected) in lost {
        let Some(server) = with(options).await else {
            return;
        };
        finds(&health(&server).await, &[expected]);
    }
}

/// How a server is started, and what is found then.
type Case<'a> = (&'a [&'a str], Option<Expected<'a>>);

#[tokio::test]
async fn memory_that_ends_and_keys_that_are_evicted_are_warned_of() {
    // An empty server uses about 1 MB.
    let full = (Severity::Warning, "of maxmemory is used", "raise maxmemory");
    let evicts = (
        Severity::Warning,
        "maxmemory-policy is allkeys-lru",
        "noeviction",
    );
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
        finds(&health(&server).await, expected.as_slice());
    }
}

#[tokio::test]
async fn a_replica_takes_no_messages() {
    let Some(primary) = with(&[]).await else {
        return;
    };
    let port = primary.port.to_string();
    let Some(replica) = with(&["--replicaof", "127.0.0.1", &port]).await else {
        return;
    };
    let health = health(&replica).await;
    assert_eq!(health.facts.get("role").map(String::as_str), Some("slave"));
    finds(
        &health,
        &[(Severity::Error, "read-only replica", "primary")],
    );
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
    finds(
        &health,
        &[(Severity::Note, "cannot be judged", "+config|get")],
    );
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
