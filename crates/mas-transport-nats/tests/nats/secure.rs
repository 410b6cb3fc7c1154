//! Every way to say who one is, on real servers, and what is said where it is wrong.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::fixtures::NatsOptions;
use mas_transport_core::{ErrorKind, Message, Transport as _};
use mas_transport_nats::{NatsConfig, NatsTransport};
use nkeys::KeyPair;
use tokio::time::Instant;

use crate::operator::{Operator, credentials};
use crate::support::{
    Member, SOON, config, connect, keeps_secrets, one, publish, refused, says, server, soon,
    subscription, works,
};

use ErrorKind::{InvalidArgument, Unauthorized, Unavailable};

/// What is said to whoever says nothing.
const WHO: [&str; 3] = ["asks who this is", "token", "credentials"];
/// What is said to whoever says something wrong.
const WRONG: [&str; 2] = ["refuses these credentials", "password"];

fn url(text: String) -> NatsConfig {
    NatsConfig::from_url(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens() {
    let options = NatsOptions::new().config("authorization { token: \"open-sesame\" }");
    let Some(server) = server(&options) else {
        return;
    };
    let (config, address) = (config(&server), server.address());
    works(config.clone().token("open-sesame")).await;
    works(url(format!("nats://open-sesame@{address}"))).await;
    refused(config.clone().token("hush-hush"), Unauthorized, &WRONG).await;
    refused(
        url(format!("nats://hush@{address}")),
        Unauthorized,
        &[&address],
    )
    .await;
    let other = config.clone().user("app", "open-sesame");
    refused(other, Unauthorized, &WRONG).await;
    refused(config, Unauthorized, &WHO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_and_a_password_open() {
    let options = NatsOptions::new()
        .config("authorization { users = [ { user: app, password: \"open sesame:@\" } ] }");
    let Some(server) = server(&options) else {
        return;
    };
    let (config, address) = (config(&server), server.address());
    works(config.clone().user("app", "open sesame:@")).await;
    works(url(format!("nats://app:open%20sesame%3A%40@{address}"))).await;
    for (user, password) in [("app", "hush"), ("other", "open sesame:@"), ("app", "")] {
        refused(config.clone().user(user, password), Unauthorized, &WRONG).await;
    }
    let wrong = url(format!("nats://app:hush%20hush@{address}"));
    refused(wrong, Unauthorized, &WRONG).await;
    refused(config.clone().token("hush"), Unauthorized, &WRONG).await;
    refused(config, Unauthorized, &WHO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nkey_opens() {
    let (ours, theirs) = (KeyPair::new_user(), KeyPair::new_user());
    let user = format!("{{ nkey: {} }}", ours.public_key());
    let options = NatsOptions::new().config(&format!("authorization {{ users = [ {user} ] }}"));
    let Some(server) = server(&options) else {
        return;
    };
    let config = config(&server);
    let seed = ours.seed().unwrap();
    // As it is, and as it is read from a file.
    for seed in [seed.clone(), format!(" {seed}\n")] {
        let shown = works(config.clone().nkey(seed.clone())).await;
        assert!(!shown.contains(seed.trim()), "{shown}");
    }
    let foreign = theirs.seed().unwrap();
    let error = config.clone().nkey(foreign.clone());
    let error = refused(error, Unauthorized, &["refuses", "NKEY"]).await;
    assert!(!format!("{error:?}").contains(&foreign), "{error}");
    for wrong in [&seed[1..], &ours.public_key(), "hush", ""] {
        let words = ["not a seed", "begins with SU"];
        let error = config.clone().nkey(wrong);
        let error = refused(error, InvalidArgument, &words).await;
        assert!(!format!("{error:?}").contains(&seed[1..]), "{error}");
    }
    refused(config, Unauthorized, &WHO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open() {
    let (operator, other) = (Operator::new(), Operator::new());
    let Some(server) = server(&operator.options()) else {
        return;
    };
    let config = config(&server);
    let ours = operator.user(None);
    // The token of one with the seed of another.
    let token = ours.lines().nth(1).unwrap();
    let mixed = credentials(token, &KeyPair::new_user().seed().unwrap());
    let parts = |content: &str| -> Vec<String> {
        let lines = content
            .lines()
            .filter(|line| line.len() > 50 && !line.contains(' '));
        lines.map(str::to_owned).collect()
    };
    let keeps = |shown: &str, content: &str| {
        for secret in parts(content) {
            assert!(!shown.contains(&secret), "{shown}");
        }
    };
    assert_eq!(parts(&ours).len(), 2);
    let shown = works(config.clone().credentials(ours.clone())).await;
    keeps(&shown, &ours);
    for wrong in [other.user(None), mixed, operator.user(Some(-10))] {
        let words = ["refuses", "credentials file"];
        let error = config.clone().credentials(wrong.clone());
        let error = refused(error, Unauthorized, &words).await;
        keeps(&format!("{error:?}"), &wrong);
    }
    let until = ours.find("-----BEGIN USER").unwrap();
    for wrong in [&ours[..until], token, "hush", ""] {
        let error = config.clone().credentials(wrong);
        let error = NatsTransport::connect(error).await.unwrap_err();
        assert_eq!(error.kind(), InvalidArgument, "{error}");
        let told = format!("{error:?}");
        assert!(told.contains("not those of a credentials file"), "{told}");
        keeps(&told, &ours);
    }
    refused(config, Unauthorized, &WHO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_no_longer_come_in_is_told() {
    let operator = Operator::new();
    let Some(server) = server(&operator.options()) else {
        return;
    };
    let user = operator.user(Some(3));
    let config = config(&server).credentials(user);
    let transport = connect(config.response_timeout(Duration::from_secs(1))).await;
    publish(&transport, "orders", 1).await;
    // It may come back once within the last second.
    let words = ["no longer lets this user in"];
    let error = soon("the server sends the user away", || async {
        let batch = vec![Message::new("orders", "x").unwrap()];
        let until = Instant::now() + Duration::from_secs(1);
        let outcome = transport.publish(batch, until).await.await.pop().unwrap();
        match outcome {
            Err(error) if error.kind() == Unauthorized => Ok(error),
            outcome => Err(format!("{outcome:?}")),
        }
    })
    .await;
    says(&error, Unauthorized, &words);
    let error = transport.admin().health().await.unwrap_err();
    says(&error, Unauthorized, &words);
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_one_that_answers_is_enough() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let alive = server.address();
    works(url(format!("nats://{dead},nats://{alive}"))).await;
    works(NatsConfig::new(format!("{dead}, {dead}, {alive}"))).await;
    // Which one is asked first is left to chance.
    for _ in 0..4 {
        let both = NatsConfig::new(format!("{silent},{alive}"));
        works(both.connect_timeout(Duration::from_secs(2))).await;
    }
    let limit = Duration::from_secs(1);
    let none = NatsConfig::new(format!("{dead},{dead}")).connect_timeout(limit);
    let words = ["cannot be reached", &dead.to_string()];
    refused(none, Unavailable, &words).await;
    let none = NatsConfig::new(silent.to_string()).connect_timeout(limit);
    let words = ["did not answer in time", &silent.to_string()];
    refused(none, Unavailable, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_came_back_are_counted() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let transport = connect(config(&server)).await;
    let count = || {
        let there = transport.connections().unwrap();
        (there.configured, there.reconnects)
    };
    assert_eq!(count(), (1, 0));
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    for times in 1..=2 {
        server.kill().unwrap();
        server.restart().unwrap();
        soon("it comes back", || async {
            one(&transport, "orders", "x")
                .await
                .map_err(|e| e.to_string())
        })
        .await;
        let held = member.delivery().await;
        member.ack(&[held]).await;
        assert_eq!(count(), (1, times));
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}

/// What is logged, whoever logs it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // For this thread, on which everything here runs.
    let _guard = tracing::subscriber::set_default(subscriber);
    // With one alone, the thread that comes first to a place in the code decides whether it logs.
    let second = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
    let _second = tracing::Dispatch::new(second.with_writer(std::io::sink).finish());
    let (operator, key) = (Operator::new(), KeyPair::new_user());
    let token = NatsOptions::new().config("authorization { token: \"open-sesame\" }");
    let users = NatsOptions::new().config(&format!(
        "authorization {{ users = [ {{ user: app, password: \"open-sesame\" }}, {{ nkey: {} }} ] }}",
        key.public_key()
    ));
    let (Some(first), Some(second), Some(third)) =
        (server(&token), server(&users), server(&operator.options()))
    else {
        return;
    };
    let (first, second, third) = (config(&first), config(&second), config(&third));
    let (seed, foreign) = (key.seed().unwrap(), KeyPair::new_user().seed().unwrap());
    let user = operator.user(None);
    for right in [
        first.clone().token("open-sesame"),
        second.clone().user("app", "open-sesame"),
        second.clone().nkey(seed.clone()),
        third.clone().credentials(user.clone()),
    ] {
        tracing::trace!(config = ?right, "as configured");
        works(right).await;
    }
    for wrong in [
        first.token("hush-hush"),
        second.clone().user("app", "hush-hush"),
        second.nkey(foreign.clone()),
        third.credentials(Operator::new().user(None)),
    ] {
        let error = NatsTransport::connect(wrong).await.unwrap_err();
        tracing::error!(%error, ?error, "as refused");
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("as configured") && log.contains("write operation: CONNECT"),
        "{log}"
    );
    keeps_secrets(&log);
    for secret in user.lines().chain([&*seed, &*foreign]) {
        // Not the words between.
        let words = secret.len() < 50 || secret.contains(' ');
        assert!(words || !log.contains(secret), "{log}");
    }
}
