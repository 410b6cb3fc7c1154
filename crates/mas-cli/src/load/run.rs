//! One run, from the first connection to the account.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use mas_transport::{Bus, Consumer, Durability, Group, Result, Subscription, Topic};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Args;
use super::ledger::Ledger;
use super::progress::Progress;
use super::receiver::{Receiver, count_events};
use super::report::{Report, round};
use super::schedule::Plan;
use super::sender::{Sender, Sent};
use super::tally::Tally;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output::tell;
use crate::usage::{Usage, usage};

/// The group of every inbox.
const GROUP: &str = "load";
/// How often a message may be attempted: its broker may be killed more than twice in a run.
const MAX_ATTEMPTS: u32 = 20;
/// Most connections that are made side by side.
const CONNECTING: usize = 16;
/// From the last connection to the first message.
const LEAD: Duration = Duration::from_millis(100);
/// How often the end of the drain is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// When every message has arrived: how long to wait until every ack has taken effect.
const SETTLING: Duration = Duration::from_secs(5);
/// How often that is asked.
const ASK: Duration = Duration::from_millis(200);
/// How long consumers, and then connections, may take to close.
const CLOSING: Duration = Duration::from_secs(10);

/// Connected agents, before anything is sent.
#[derive(Debug)]
pub(super) struct Run {
    agents: Vec<Agent>,
    inboxes: Arc<[Topic]>,
    group: Group,
    plan: Plan,
    tally: Arc<Tally>,
}

#[derive(Debug)]
struct Agent {
    bus: Bus,
    consumer: Arc<Consumer>,
}

impl Run {
    /// Connects every agent and subscribes it to its inbox.
    pub(super) async fn prepare(args: &Args, connection: &Connection) -> Result<Self, Failure> {
        let tally = Tally::new().map_err(|error| Failure::new(error.to_string()))?;
        let run = uuid::Uuid::now_v7().simple().to_string();
        // The end of the id is its random part.
        let name = &run[run.len() - 8..];
        let inboxes: Arc<[Topic]> = (0..args.agents)
            .map(|n| Topic::new(format!("{}.{name}.agent-{n}", args.topic_prefix)))
            .collect::<Result<_>>()?;
        let agents: Vec<Agent> = stream::iter(inboxes.iter().cloned())
            .map(|inbox| async move {
                let bus = connection.bus().await?;
                let subscription = Subscription::new(inbox.as_str())
                    .group(GROUP)
                    .lease(args.lease)
                    .max_attempts(MAX_ATTEMPTS)
                    .prefetch(args.prefetch as usize);
                let consumer = Arc::new(bus.subscribe(subscription).await?);
                Ok::<_, Failure>(Agent { bus, consumer })
            })
            .buffered(CONNECTING)
            .try_collect()
            .await?;
        Ok(Self {
            plan: Plan::new(agents.len(), args.rate, args.duration),
            group: Group::new(GROUP)?,
            tally: Arc::new(tally),
            agents,
            inboxes,
        })
    }

    /// Sends, drains, closes, and leaves no message behind.
    pub(super) async fn execute(
        &self,
        args: &Args,
        stop: &CancellationToken,
    ) -> Result<Report, Failure> {
        let outcome = self.perform(args, stop).await;
        self.clean_up().await;
        outcome
    }

    async fn perform(&self, args: &Args, stop: &CancellationToken) -> Result<Report, Failure> {
        let before = usage();
        let start = Instant::now() + LEAD;
        let give_up = CancellationToken::new();
        let mut counters = JoinSet::new();
        let mut receivers = JoinSet::new();
        let mut senders = JoinSet::new();
        for n in 0..self.agents.len() {
            let consumer = self.agents[n].consumer.clone();
            counters.spawn(count_events(n, consumer, start, self.tally.clone()));
            receivers.spawn(self.receiver(n, args, start).run());
            senders.spawn(self.sender(n, args, start, stop, &give_up).run());
        }

        let mut progress = Progress::new();
        let mut watch = Watch {
            start,
            tally: &self.tally,
            progress: &mut progress,
            receivers: &mut receivers,
        };
        let mut sent = Vec::with_capacity(self.agents.len());
        let sending = async {
            tokio::select! {
                joined = join_senders(&mut senders, &mut sent) => return joined,
                () = sleep_until(start + args.duration) => {}
                () = stop.cancelled() => {}
            }
            Ok(())
        };
        watch.during("sending", sending).await??;
        let deadline = Instant::now() + args.drain;
        let draining = async {
            let receipts = join_senders(&mut senders, &mut sent);
            match timeout_at(deadline, receipts).await {
                Ok(joined) => joined?,
                Err(_) => {
                    give_up.cancel();
                    join_senders(&mut senders, &mut sent).await?;
                }
            }
            let _ = timeout_at(deadline, self.everything_delivered()).await;
            let settled = deadline.min(Instant::now() + SETTLING);
            Ok::<_, Failure>(self.unsettled(settled).await)
        };
        let unsettled = watch.during("draining", draining).await??;
        watch.show("done");
        let took = Instant::now().saturating_duration_since(start);
        let used = before.zip(usage());
        progress.end();

        let closed = Instant::now() + CLOSING;
        join_all(self.agents.iter().map(|agent| agent.consumer.close(closed))).await;
        let mut ledgers = Vec::with_capacity(self.agents.len());
        while let Some(joined) = receivers.join_next().await {
            ledgers.push(joined.map_err(crashed)??);
        }
        let mut report = self.report(args, took, used).await;
        report.unsettled = unsettled;
        report.interrupted = stop.is_cancelled();
        (report.lost, report.unconfirmed) = account(&sent, &ledgers);
        Ok(report)
    }

    fn receiver(&self, n: usize, args: &Args, start: Instant) -> Receiver {
        Receiver {
            agent: n,
            consumer: self.agents[n].consumer.clone(),
            ledger: Ledger::new(self.agents.len(), self.plan.most_per_pair()),
            start,
            payload: args.payload,
            tally: self.tally.clone(),
        }
    }

    fn sender(
        &self,
        n: usize,
        args: &Args,
        start: Instant,
        stop: &CancellationToken,
        give_up: &CancellationToken,
    ) -> Sender {
        Sender {
            agent: n,
            bus: self.agents[n].bus.clone(),
            inboxes: self.inboxes.clone(),
            schedule: self.plan.agent(n),
            start,
            payload: args.payload,
            window: args.window as usize,
            tally: self.tally.clone(),
            stop: stop.clone(),
            give_up: give_up.clone(),
        }
    }

    /// Waits until there are as many deliveries as receipts.
    async fn everything_delivered(&self) {
        while self.tally.delivered.load(Relaxed) < self.tally.published.load(Relaxed) {
            sleep(LOOK).await;
        }
    }

    /// Waits until no inbox holds anything for its group; what it still holds at the deadline, as
    /// far as the backend can tell.
    async fn unsettled(&self, deadline: Instant) -> Option<u64> {
        loop {
            let lags = self.agents.iter().zip(&*self.inboxes);
            let lags = lags.map(|(agent, inbox)| agent.bus.admin().lag(inbox, &self.group));
            let held = match timeout_at(deadline, join_all(lags)).await {
                Ok(lags) => lags
                    .into_iter()
                    .map(|lag| lag.ok())
                    .try_fold(0, |sum, lag| lag.map(|lag| sum + lag.waiting + lag.pending)),
                Err(_) => None,
            };
            if held == Some(0) || Instant::now() + ASK >= deadline {
                return held;
            }
            sleep(ASK).await;
        }
    }

    async fn report(&self, args: &Args, took: Duration, used: Option<(Usage, Usage)>) -> Report {
        let info = self.agents[0].bus.info();
        let tally = &*self.tally;
        let delivered = tally.delivered.load(Relaxed);
        let duplicates = &tally.duplicates;
        let resent = duplicates.resent.load(Relaxed);
        let redelivered = duplicates.redelivered.load(Relaxed);
        let forgets = info.capabilities.ack_durability < Durability::Process;
        let (forgotten, unexplained) = tally.forgotten(forgets);
        let cpu = used.map(|(before, after)| after.cpu.saturating_sub(before.cpu).as_secs_f64());
        let span = tally.last_arrival().as_secs_f64();
        Report {
            backend: info.backend.to_owned(),
            server: info.server.clone(),
            agents: self.agents.len(),
            payload: args.payload,
            target_rate: args.rate,
            published: tally.published.load(Relaxed),
            delivered,
            lost: 0,
            duplicates: resent + redelivered + forgotten + unexplained,
            duplicates_explained: resent + redelivered + forgotten,
            duplicates_resent: resent,
            duplicates_redelivered: redelivered,
            duplicates_forgotten: forgotten,
            redelivered: tally.redelivered.load(Relaxed),
            corrupted: tally.corrupted.load(Relaxed),
            unconfirmed: 0,
            publish_errors: tally.publish_errors.load(Relaxed),
            publish_unknown: tally.unknown.load(Relaxed),
            ack_errors: tally.ack_errors.load(Relaxed),
            reconnects: tally.reconnects.load(Relaxed),
            gaps: tally.gaps.load(Relaxed),
            dead_lettered: tally.dead_lettered.load(Relaxed),
            unsettled: None,
            // The last message of a second comes before its end: a run of one second is one.
            rate: round(delivered as f64 / span.max(args.duration.min(took).as_secs_f64())),
            p50_ms: 0.0,
            p95_ms: 0.0,
            p99_ms: 0.0,
            max_ms: 0.0,
            cpu_percent: cpu.map(|cpu| round(100.0 * cpu / took.as_secs_f64().max(0.001))),
            cpu_seconds: cpu.map(round),
            memory_mb: used.map(|(_, after)| round(after.peak_memory as f64 / 1e6)),
            duration_s: round(took.as_secs_f64()),
            interrupted: false,
        }
        .latencies(tally.percentiles())
    }

    /// Empties the inboxes, which nobody will read again, and closes the connections.
    async fn clean_up(&self) {
        let deadline = Instant::now() + CLOSING;
        let agents = self.agents.iter().zip(&*self.inboxes);
        let done = agents.map(|(agent, inbox)| async move {
            if let Ok(Err(error)) = timeout_at(deadline, agent.bus.admin().purge(inbox)).await {
                tell!("mas load: warning: an inbox was not emptied: {error}");
            }
            // The report stands, whether or not the connection ends in good order.
            let _ = agent.bus.close(CLOSING).await;
        });
        join_all(done).await;
    }
}

/// What goes on beside a phase of the run.
#[derive(Debug)]
struct Watch<'a> {
    start: Instant,
    tally: &'a Tally,
    progress: &'a mut Progress,
    receivers: &'a mut JoinSet<Result<(usize, Ledger)>>,
}

impl Watch<'_> {
    /// Shows progress once a second while `work` goes on; fails when a receiver ends meanwhile.
    async fn during<T>(
        &mut self,
        phase: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        const SECOND: Duration = Duration::from_secs(1);
        let passed = Instant::now().saturating_duration_since(self.start);
        let next = self.start + Duration::from_secs(passed.as_secs()) + SECOND;
        let mut seconds = interval_at(next, SECOND);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = seconds.tick() => self.show(phase),
                Some(ended) = self.receivers.join_next() => {
                    ended.map_err(crashed)??;
                    return Err(Failure::new("a consumer was closed while the run went on"));
                }
            }
        }
    }

    fn show(&mut self, phase: &str) {
        let elapsed = Instant::now().saturating_duration_since(self.start);
        self.progress.show(elapsed, phase, self.tally);
    }
}

/// Collects what senders have done, as they end. Dropping it loses none.
async fn join_senders(
    senders: &mut JoinSet<Result<Sent>>,
    sent: &mut Vec<Sent>,
) -> Result<(), Failure> {
    while let Some(joined) = senders.join_next().await {
        sent.push(joined.map_err(crashed)??);
    }
    Ok(())
}

fn crashed(error: JoinError) -> Failure {
    Failure::new(format!("an agent crashed: {error}"))
}

/// How many messages with a receipt have not arrived, and how many have no receipt.
fn account(sent: &[Sent], ledgers: &[(usize, Ledger)]) -> (u64, u64) {
    let mut lost = 0;
    for (recipient, ledger) in ledgers {
        for sender in sent {
            lost += ledger
                .missing(sender.agent, sender.taken[*recipient])
                .filter(|seq| !sender.unconfirmed.contains(&(*recipient, *seq)))
                .count() as u64;
        }
    }
    let unconfirmed = sent.iter().map(|s| s.unconfirmed.len() as u64).sum();
    (lost, unconfirmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_receipt_and_did_not_arrive_is_lost() {
        let sent = [
            Sent {
                agent: 0,
                taken: vec![0, 5],
                unconfirmed: [(1, 4)].into(),
            },
            Sent {
                agent: 1,
                taken: vec![3, 0],
                unconfirmed: [(0, 0)].into(),
            },
        ];
        let mut to_first = Ledger::new(2, 10);
        to_first.enter(1, 0);
        to_first.enter(1, 2);
        let mut to_second = Ledger::new(2, 10);
        to_second.enter(0, 1);
        // 1 from the second agent, then 0, 2 and 3 from the first; 4 has no receipt.
        let ledgers = [(0, to_first), (1, to_second)];
        assert_eq!(account(&sent, &ledgers), (4, 2));
    }
}
