//! Users of limited rights, on real servers.

use std::time::Duration;

use conformance_tests::fixtures::{NatsOptions, NatsServer};
use mas_transport_core::{
    Error, ErrorKind, Group, Message, Outcome, Reason, ReasonCode, Record, Stored, TopicSpec,
    Transport as _,
};
use mas_transport_nats::{NatsConfig, NatsTransport};
use tokio::time::{Instant, timeout};

use crate::support::{
    Member, QUICK, SOON, config, connect, lag, one, outcomes, refused, says, server, subscription,
    topic,
};

use ErrorKind::Unauthorized;

/// All that a bus and its consumers need, as the documentation says.
const PUBLISH: [&str; 3] = ["mas.>", "$JS.API.>", "$JS.ACK.>"];
const SUBSCRIBE: &str = "_INBOX.>";

fn list(subjects: &[&str]) -> String {
    let quoted: Vec<String> = subjects.iter().map(|s| format!("\"{s}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// A user with these rights, in the language of the server's configuration.
fn user(name: &str, publish: &str, subscribe: &str) -> String {
    format!(
        "{{ user: {name}, password: \"open-sesame\", permissions: \
         {{ publish: {publish}, subscribe: {subscribe} }} }}\n"
    )
}

/// A server with these users, and `admin`, who may do everything.
fn with(users: &[String]) -> Option<NatsServer> {
    let admin = user("admin", "\">\"", "\">\"");
    let users: String = users.iter().chain([&admin]).map(String::as_str).collect();
    server(&NatsOptions::new().config(&format!("authorization {{ users = [\n{users}] }}")))
}

fn who(server: &NatsServer, name: &str) -> NatsConfig {
    config(server).user(name, "open-sesame")
}

fn record() -> Box<Record> {
    Box::new(Record {
        version: Record::VERSION,
        reason: Reason::new(ReasonCode::Rejected, "no"),
        topic: "t".into(),
        group: "g".into(),
        position: "1".into(),
        attempts: 1,
        member: "m".into(),
        first_failure_ms: 1,
        last_failure_ms: 1,
        history: vec![],
    })
}

/// All that a bus and its consumers do; the first error.
async fn everything(transport: &NatsTransport, name: &str) -> Result<(), Error> {
    let source = transport.subscribe(&subscription(name, 30_000)).await?;
    let mut member = Member::of(source);
    for end in ["ack", "nack", "dead", "extend", "return"] {
        one(transport, name, end).await?;
        let token = member.delivery().await.token;
        let outcome = match end {
            "ack" => Outcome::Ack,
            "dead" => Outcome::DeadLetter(record()),
            "extend" => Outcome::Extend,
            "return" => Outcome::Return,
            _ => Outcome::Nack(Duration::ZERO),
        };
        member.one(token, outcome).await?;
        let token = match end {
            "ack" | "dead" => continue,
            "extend" => token,
            _ => {
                let again = member.delivery().await.token;
                member.one(again, Outcome::Begin).await?;
                again
            }
        };
        member.one(token, Outcome::Ack).await?;
    }
    let (admin, topic, group) = (transport.admin(), topic(name), Group::new("g")?);
    admin.declare(&TopicSpec::new(topic.clone())).await?;
    assert!(admin.topics().await?.contains(&topic));
    assert_eq!(admin.groups(&topic).await?, std::slice::from_ref(&group));
    admin.lag(&topic, &group).await?;
    admin.purge(&topic).await?;
    admin.health().await?;
    member.settle.close(Instant::now() + SOON).await
}

/// What is refused is refused soon, in words that name the subject.
async fn denied<T: std::fmt::Debug>(
    asked: impl Future<Output = Result<T, Error>>,
    words: &[&str],
) -> Error {
    let error = timeout(QUICK, asked).await.expect("an answer in time");
    let error = error.unwrap_err();
    says(&error, Unauthorized, words);
    error
}

async fn close(transport: NatsTransport) {
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_rights_are_enough() {
    let least = user("least", &list(&PUBLISH), &list(&[SUBSCRIBE]));
    let Some(server) = with(&[least]) else {
        return;
    };
    for subject in PUBLISH.iter().chain([&SUBSCRIBE]) {
        let documented = include_str!("../../src/lib.rs").contains(&format!("`{subject}`"));
        assert!(documented, "{subject}");
    }
    let transport = connect(who(&server, "least")).await;
    everything(&transport, "orders").await.unwrap();
    close(transport).await;
    let wrong = config(&server).user("least", "hush-hush");
    refused(wrong, Unauthorized, &["password"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_or_an_inbox_nobody_connects() {
    let users = [
        user("asks", &list(&["mas.>", "$JS.ACK.>"]), &list(&[SUBSCRIBE])),
        user("hears", &list(&PUBLISH), &list(&["mas.>"])),
    ];
    let Some(server) = with(&users) else {
        return;
    };
    let words = ["may not publish to $JS.API.INFO", "permissions"];
    refused(who(&server, "asks"), Unauthorized, &words).await;
    let words = ["may not subscribe", "allow _INBOX.>", "permissions"];
    refused(who(&server, "hears"), Unauthorized, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_subjects_of_topics_nothing_is_published() {
    let only = "mas.allowed";
    let users = [
        user("none", &list(&PUBLISH[1..]), &list(&[SUBSCRIBE])),
        user(
            "one",
            &list(&[only, PUBLISH[1], PUBLISH[2]]),
            &list(&[SUBSCRIBE]),
        ),
    ];
    let Some(server) = with(&users) else {
        return;
    };
    let transport = connect(who(&server, "none")).await;
    for _ in 0..2 {
        let words = ["may not publish to mas.orders", "permissions"];
        let error = denied(one(&transport, "orders", "x"), &words).await;
        assert_eq!(error.stored(), Stored::No, "{error}");
    }
    let words = ["may not publish to mas.@.group.g.orders"];
    denied(transport.subscribe(&subscription("orders", 1000)), &words).await;
    close(transport).await;
    // What is refused takes nothing along.
    let transport = connect(who(&server, "one")).await;
    let batch = (0..20).map(|n| {
        let topic = if n % 2 == 0 { "allowed" } else { "other" };
        Message::new(topic, "x").unwrap()
    });
    let published = outcomes(&transport, batch.collect());
    let published = timeout(QUICK, published).await.expect("answers in time");
    for (n, outcome) in published.into_iter().enumerate() {
        match n % 2 {
            0 => assert_eq!(outcome.unwrap().position.minor, n as u64 / 2 + 1),
            _ => says(&outcome.unwrap_err(), Unauthorized, &["mas.other"]),
        }
    }
    close(transport).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_make_streams_uses_those_that_are_there() {
    let deny = "$JS.API.STREAM.CREATE.>";
    let publish = format!("{{ allow: {}, deny: \"{deny}\" }}", list(&PUBLISH));
    let Some(server) = with(&[user("guest", &publish, &list(&[SUBSCRIBE]))]) else {
        return;
    };
    let transport = connect(who(&server, "guest")).await;
    let words = ["may not publish to $JS.API.STREAM.CREATE.mas~orders"];
    let error = denied(one(&transport, "orders", "x"), &words).await;
    assert_eq!(error.stored(), Stored::No, "{error}");
    denied(transport.subscribe(&subscription("orders", 1000)), &words).await;
    let declared = TopicSpec::new(topic("orders"));
    denied(transport.admin().declare(&declared), &words).await;
    // Somebody who may makes it.
    let admin = connect(who(&server, "admin")).await;
    let member = Member::join(&admin, &subscription("orders", 30_000)).await;
    member.settle.close(Instant::now() + SOON).await.unwrap();
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    one(&transport, "orders", "x").await.unwrap();
    let held = member.delivery().await;
    member.ack(&[held]).await;
    close(transport).await;
    close(admin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_subjects_of_acks_nothing_is_settled() {
    let user = user("reader", &list(&PUBLISH[..2]), &list(&[SUBSCRIBE]));
    let Some(server) = with(&[user]) else {
        return;
    };
    let transport = connect(who(&server, "reader")).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    for outcome in [
        Outcome::Ack,
        Outcome::Nack(Duration::ZERO),
        Outcome::Extend,
        Outcome::DeadLetter(record()),
    ] {
        one(&transport, "orders", "x").await.unwrap();
        let held = member.delivery().await;
        let words = ["may not publish to $JS.ACK.", "permissions"];
        denied(member.one(held.token, outcome), &words).await;
    }
    assert_eq!(lag(&transport, "orders").await.pending, 4);
    transport.close(Instant::now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_pull_is_told_each_time() {
    let deny = "$JS.API.CONSUMER.MSG.NEXT.>";
    let publish = format!("{{ allow: {}, deny: \"{deny}\" }}", list(&PUBLISH));
    let Some(server) = with(&[user("deaf", &publish, &list(&[SUBSCRIBE]))]) else {
        return;
    };
    let transport = connect(who(&server, "deaf")).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    for _ in 0..3 {
        let error = timeout(QUICK, member.failure()).await;
        let words = ["may not publish to $JS.API.CONSUMER.MSG.NEXT.mas~orders.g"];
        says(&error.expect("a failure in time"), Unauthorized, &words);
    }
    member.settle.close(Instant::now() + SOON).await.unwrap();
    close(transport).await;
}
