//! Members that come and go at random, under load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conformance_tests::checker::{Rules, check};
use conformance_tests::history::{Entry, Happened};
use mas_transport_core::{Group, Message, PublishOptions, Publisher, Topic, Transport};
use mas_transport_kafka::{KafkaConfig, KafkaTransport};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::child::subscription;
use crate::recorded::{Held, Recorded, Recorder, counts};
use crate::support::{config, soon};

/// How many are published in a second, and how often some of them.
const RATE: usize = 5000;
const TICK: Duration = Duration::from_millis(20);
/// How many members there are at most.
const MEMBERS: u64 = 4;
/// How long a member stays, and how long it is away, in milliseconds. One of the four comes or goes every
/// two seconds or so; that all of them are away happens too.
const STAYS: std::ops::Range<u64> = 2000..20_000;
const AWAY: std::ops::Range<u64> = 300..4000;
/// How many of a hundred deliveries are given back.
const NACKED: u32 = 2;
/// Of how many deliveries one takes long, and how long at most, in milliseconds: longer than the notice of
/// 5 s before a partition is taken away.
const SLOW: u32 = 500;
const LONG: std::ops::Range<u64> = 0..7000;
/// Until everything that was published is acked: a rebalance or two, and a backlog that has come up
/// meanwhile.
const DRAINED: Duration = Duration::from_secs(90);
/// How long a member may take to close: longer than it has anything in hand.
const CLOSED: Duration = Duration::from_secs(20);

fn time() -> Duration {
    let full = std::env::var("MAS_FULL").is_ok_and(|v| v == "1");
    Duration::from_secs(if full { 60 } else { 15 })
}

/// Of `MAS_SEED`, or drawn.
fn seed() -> u64 {
    let given = std::env::var("MAS_SEED").ok();
    given.map_or_else(rand::random, |seed| seed.parse().unwrap())
}

async fn publish(config: KafkaConfig, recorder: Recorder) -> usize {
    let transport = Arc::new(KafkaTransport::connect(config).await.unwrap());
    let publisher = Publisher::new(transport.clone(), PublishOptions::default());
    let mut tick = interval(TICK);
    // What a busy machine is late with follows: the number counts.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut receipts = JoinSet::new();
    let count = RATE * usize::try_from(time().as_secs()).unwrap();
    let each = RATE * usize::try_from(TICK.as_millis()).unwrap() / 1000;
    for from in (0..count).step_by(each) {
        tick.tick().await;
        let mut waiting = Vec::with_capacity(each);
        for number in from..from + each {
            let mut message = Message::new("t", format!("{number:0100}")).unwrap();
            if number % 2 == 0 {
                message = message.key(format!("k{}", number % 64));
            }
            recorder.publishing(&message);
            let id = message.id().to_owned();
            waiting.push((id, publisher.enqueue(message).await.unwrap()));
        }
        let recorder = recorder.clone();
        receipts.spawn(async move {
            for (id, receipt) in waiting {
                recorder.published(id, &receipt.await);
            }
        });
    }
    receipts.join_all().await;
    let by = Instant::now() + CLOSED;
    publisher.close(by).await.unwrap();
    transport.close(by).await.unwrap();
    count
}

/// Receives until the consumer is closed, or this is aborted with what it has in hand.
async fn handle(member: Arc<Recorded>, mut rng: StdRng, acked: Arc<AtomicUsize>) {
    let mut settling = JoinSet::new();
    loop {
        let batch = member.recv_batch(50).await.unwrap();
        if batch.is_empty() {
            break;
        }
        for held in batch {
            let ack = rng.random_range(0..100) >= NACKED;
            let slow = rng.random_ratio(1, SLOW);
            let works = slow.then(|| Duration::from_millis(rng.random_range(LONG)));
            settling.spawn(settle(held, works, ack, acked.clone()));
        }
        while settling.try_join_next().is_some() {}
    }
    settling.join_all().await;
}

async fn settle(held: Held, works: Option<Duration>, ack: bool, acked: Arc<AtomicUsize>) {
    if let Some(works) = works {
        sleep(works).await;
    }
    held.settle(ack).await;
    acked.fetch_add(usize::from(ack), Ordering::Relaxed);
}

/// Comes and goes until it is to stop: how often it closed, and how often it was dropped.
async fn come_and_go(
    config: KafkaConfig,
    recorder: Recorder,
    mut rng: StdRng,
    acked: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> (usize, usize) {
    let subscription = subscription(1000).max_attempts(1000);
    let (mut closed, mut dropped) = (0, 0);
    while !stop.is_cancelled() {
        let transport = Arc::new(KafkaTransport::connect(config.clone()).await.unwrap());
        let member = recorder.join(transport.clone(), &subscription).await;
        let member = Arc::new(member.unwrap());
        let handling = tokio::spawn(handle(
            member.clone(),
            StdRng::seed_from_u64(rng.random()),
            acked.clone(),
        ));
        let stays = Duration::from_millis(rng.random_range(STAYS));
        let _ = timeout(stays, stop.cancelled()).await;
        let by = Instant::now() + CLOSED;
        if rng.random_ratio(1, 3) {
            dropped += 1;
            // What it has in hand is dropped with it.
            handling.abort();
            let _ = handling.await;
            member.left();
            drop(member);
        } else {
            closed += 1;
            member.consumer.close(by).await.unwrap();
            member.left();
            handling.await.unwrap();
        }
        transport.close(by).await.unwrap();
        let away = Duration::from_millis(rng.random_range(AWAY));
        let _ = timeout(away, stop.cancelled()).await;
    }
    (closed, dropped)
}

/// As a service of four processes is that are started, stopped and moved all the time.
#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_load() {
    let Some(config) = config("churn").await else {
        return;
    };
    let config = config.partitions(8);
    let seed = seed();
    let recorder = Recorder::new();
    let stop = CancellationToken::new();
    let began = Instant::now();
    let transport = Arc::new(KafkaTransport::connect(config.clone()).await.unwrap());
    let rules = Rules::of(&transport.info().capabilities, Duration::from_secs(2));
    let acked = Arc::<AtomicUsize>::default();
    let mut members = JoinSet::new();
    for number in 0..MEMBERS {
        let rng = StdRng::seed_from_u64(seed ^ number);
        members.spawn(come_and_go(
            config.clone(),
            recorder.clone(),
            rng,
            acked.clone(),
            stop.clone(),
        ));
    }
    let count = publish(config.clone(), recorder.clone()).await;
    let published_in = began.elapsed();
    let meanwhile = acked.load(Ordering::Relaxed);
    stop.cancel();
    let (closed, dropped) = members
        .join_all()
        .await
        .into_iter()
        .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    // Whatever is left.
    let subscription = subscription(1000).max_attempts(1000);
    let last = recorder.join(transport.clone(), &subscription);
    let last = Arc::new(last.await.unwrap());
    let rng = StdRng::seed_from_u64(seed);
    let handling = tokio::spawn(handle(last.clone(), rng, acked.clone()));
    let until = Instant::now() + DRAINED;
    let mut before = usize::MAX;
    loop {
        let lag = lag(&transport).await;
        // Nothing is left, and nothing more has come.
        let now = acked.load(Ordering::Relaxed);
        if lag == 0 && now == before {
            break;
        }
        before = now;
        assert!(Instant::now() < until, "{lag} are left, seed {seed}");
        sleep(Duration::from_millis(200)).await;
    }
    recorder.history.push(Happened::Drained);
    last.consumer.close(Instant::now() + CLOSED).await.unwrap();
    last.left();
    handling.await.unwrap();
    transport.close(Instant::now() + CLOSED).await.unwrap();
    // Else it was about the last member alone.
    assert!(
        meanwhile > count / 4,
        "{meanwhile} of {count} were acked while members came and went, seed {seed}"
    );
    judge(
        &recorder,
        &rules,
        count,
        &format!(
            "seed {seed}: {count} in {published_in:.1?}, {meanwhile} of them acked meanwhile, drained after \
             {:.1?}; {closed} members closed, {dropped} dropped",
            began.elapsed()
        ),
    );
}

async fn lag(transport: &Arc<KafkaTransport>) -> u64 {
    let (topic, group) = (Topic::new("t").unwrap(), Group::new("g").unwrap());
    let lag = soon("the lag", async || {
        let lag = transport.admin().lag(&topic, &group).await;
        lag.map_err(|error| error.to_string())
    });
    let lag = lag.await;
    lag.waiting + lag.pending
}

/// Everything that happened to a message, for whoever has to find out why.
fn tell(entries: &[Entry], wanted: &str) {
    for entry in entries {
        let (Happened::Publishing { id, .. }
        | Happened::Accepted { id }
        | Happened::Delivered { id, .. }
        | Happened::Settling { id, .. }
        | Happened::Settled { id, .. }) = &entry.what
        else {
            continue;
        };
        if id == wanted {
            println!("    {entry}");
        }
    }
}

fn judge(recorder: &Recorder, rules: &Rules, count: usize, what: &str) {
    let entries = recorder.history.entries();
    let counts = counts(&entries);
    println!(
        "{what}\n{} published, {} delivered, {} acked and {} whose handler was gone before the answer, {} \
         nacked, {} came first as a later attempt\nagain: {:#?}",
        counts.published,
        counts.delivered,
        counts.acked.len(),
        counts.unheard,
        counts.nacked,
        counts.later,
        counts.again,
    );
    let mut notes = BTreeMap::<String, usize>::new();
    for entry in &entries {
        if let Happened::Note(note) = &entry.what {
            // Without the numbers in it, so that alike ones are one.
            let note: String = note.chars().filter(|c| !c.is_ascii_digit()).collect();
            let short: String = note.chars().take(200).collect();
            *notes.entry(short).or_default() += 1;
        }
    }
    println!("told: {notes:#?}");
    let findings = check(&entries, rules);
    let mut kinds = BTreeMap::new();
    for finding in &findings {
        *kinds.entry(finding.flaw).or_insert(0) += 1;
    }
    for finding in findings.iter().take(5) {
        println!("{finding}");
        if let Some(Happened::Delivered { id, .. }) = entries.get(finding.entry).map(|e| &e.what) {
            tell(&entries, id);
        }
    }
    if !findings.is_empty() {
        let moves =
            |what: &Happened| matches!(what, Happened::Joined { .. } | Happened::Left { .. });
        entries
            .iter()
            .filter(|entry| moves(&entry.what))
            .for_each(|entry| println!("{entry}"));
    }
    assert!(findings.is_empty(), "{kinds:?}");
    let unexplained = &counts.unexplained;
    assert!(
        unexplained.is_empty(),
        "{} {:#?}",
        unexplained.len(),
        &unexplained[..unexplained.len().min(10)]
    );
    assert_eq!(counts.published, count);
    let open = &counts.open;
    assert!(
        open.is_empty(),
        "{} {:#?}",
        open.len(),
        &open[..open.len().min(10)]
    );
}
