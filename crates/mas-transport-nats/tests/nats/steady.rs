//! Steady traffic, for a while, in which much is sent again: nobody waits for as long as a lease.
//!
//! An old server keeps an entry back for a whole lease when what it sends again meets a pull that has just
//! ended (see `pulls.rs`). Here some twenty entries a second are sent again, at every distance from the ends
//! of pulls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::fixtures::NatsOptions;
use mas_transport_core::{ErrorKind, Outcome, Settled, Transport as _};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::{Member, SOON, config, connect, one, server, subscription};

/// What is kept back comes when this is over: whatever comes later than that was kept back.
const LEASE: Duration = Duration::from_secs(2);
/// Between two publishes.
const EVERY: Duration = Duration::from_millis(10);
/// Of so many messages one is given back.
const BACK: usize = 5;

/// How many are published: for a minute with `MAS_FULL=1`.
fn count() -> usize {
    let full = std::env::var("MAS_FULL").is_ok_and(|v| v == "1");
    let time = Duration::from_secs(if full { 60 } else { 6 });
    usize::try_from(time.as_millis() / EVERY.as_millis()).unwrap()
}

/// When it is due again, which spreads over the time of several pulls.
fn delay(number: usize) -> Duration {
    Duration::from_millis(number as u64 * 37 % 601)
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_traffic_is_never_held_up() {
    let Some(server) = server(&NatsOptions::new()) else {
        return;
    };
    let transport = Arc::new(connect(config(&server)).await);
    let lease = u64::try_from(LEASE.as_millis()).unwrap();
    let mut member = Member::join(&transport, &subscription("orders", lease)).await;
    let count = count();
    let published = Arc::new(Mutex::new(Vec::with_capacity(count)));
    let publishing = {
        let (transport, published) = (transport.clone(), published.clone());
        tokio::spawn(async move {
            let mut tick = interval(EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut longest = Duration::ZERO;
            for number in 0..count {
                tick.tick().await;
                let asked = Instant::now();
                published.lock().unwrap().push(asked);
                one(&transport, "orders", &number.to_string())
                    .await
                    .unwrap();
                longest = longest.max(asked.elapsed());
            }
            longest
        })
    };
    let mut due = HashMap::new();
    // What became of those that were given back, for whoever has to find out why.
    let mut history: HashMap<usize, Vec<(Duration, u32, &str)>> = HashMap::new();
    let begin = Instant::now();
    let (mut settled, mut longest) = (0, Duration::ZERO);
    while settled < count {
        let delivery = member.delivery().await;
        let number = std::str::from_utf8(delivery.message.payload()).unwrap();
        let number: usize = number.parse().unwrap();
        let attempt = delivery.attempt;
        // Whoever cannot begin an attempt is handed nothing: somebody has the entry, or has settled it.
        if delivery.begin
            && let Err(error) = member.one(delivery.token, Outcome::Begin).await
        {
            assert_eq!(error.kind(), ErrorKind::LeaseLost, "{number}: {error}");
            continue;
        }
        let since = match attempt {
            1 => Some(published.lock().unwrap()[number]),
            _ => due.remove(&number),
        };
        // One that was settled would not be known here.
        let Some(since) = since else {
            let before = history.get(&number);
            panic!("{number} came for the time {attempt}, before: {before:?}");
        };
        let waited = since.elapsed();
        assert!(waited < LEASE, "{number}, attempt {attempt}: {waited:?}");
        longest = longest.max(waited);
        let back = number.is_multiple_of(BACK) && attempt == 1;
        let (what, outcome) = match back {
            true => ("back", Outcome::Nack(delay(number))),
            false => ("ack", Outcome::Ack),
        };
        if back {
            due.insert(number, Instant::now() + delay(number));
        } else {
            settled += 1;
        }
        if number.is_multiple_of(BACK) {
            let then = (begin.elapsed(), attempt, what);
            history.entry(number).or_default().push(then);
        }
        let done = member.one(delivery.token, outcome).await.unwrap();
        assert_eq!(done, Settled::Done, "{number}, attempt {attempt}");
    }
    assert!(due.is_empty(), "{due:?}");
    let publish = publishing.await.unwrap();
    assert!(publish < LEASE, "a publish took {publish:?}");
    println!("{count} messages, the longest wait {longest:?}, the longest publish {publish:?}");
    member.settle.close(Instant::now() + SOON).await.unwrap();
    transport.close(Instant::now() + SOON).await.unwrap();
}
