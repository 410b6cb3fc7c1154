//! What members and a publisher do, written down for the suite's checker.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use conformance_tests::history::{Ended, Entry, Happened, History, How, MemberId, digest};
use mas_transport_core::{
    Consumer, ConsumerEvent, Delivery, Message, Receipt, Result, Stored, Subscription, Transport,
};

/// A history, and who is in it.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) history: Arc<History>,
    members: Arc<AtomicU32>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            history: Arc::new(History::new()),
            members: Arc::default(),
        }
    }

    pub(crate) fn publishing(&self, message: &Message) {
        self.history.push(Happened::Publishing {
            sender: 0,
            topic: message.topic().to_string(),
            id: message.id().to_owned(),
            key: message.get_key().map(str::to_owned),
            digest: digest(message),
        });
    }

    pub(crate) fn published(&self, id: String, outcome: &Result<Receipt>) {
        self.history.push(match outcome {
            Ok(_) => Happened::Accepted { id },
            Err(e) if e.stored() == Stored::Unknown => Happened::Uncertain { id },
            Err(_) => Happened::Refused { id },
        });
    }

    /// Joins a group; what the consumer tells of is written down too.
    pub(crate) async fn join(
        &self,
        transport: Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Recorded> {
        let consumer = Consumer::start(transport, subscription.clone()).await?;
        let consumer = Arc::new(consumer);
        let member = self.members.fetch_add(1, Ordering::Relaxed);
        self.history.push(Happened::Joined {
            member,
            topic: subscription.pattern().to_owned(),
            group: subscription.get_group()?.to_string(),
            earliest: true,
            lease: subscription.get_lease(),
            prefetch: subscription.get_prefetch(),
            max_attempts: subscription.get_max_attempts(),
        });
        let listening = {
            let (history, consumer) = (self.history.clone(), consumer.clone());
            tokio::spawn(async move {
                while let Some(event) = consumer.next_event().await {
                    history.push(match event {
                        ConsumerEvent::Gap(gap) => Happened::Gap {
                            member,
                            lost: gap.lost,
                        },
                        ConsumerEvent::LeaseLost { position } => {
                            Happened::Revoked { member, position }
                        }
                        other => Happened::Note(format!("member {member}: {other:?}")),
                    });
                }
            })
        };
        Ok(Recorded {
            history: self.history.clone(),
            consumer,
            member,
            subscription: subscription.clone(),
            listening,
        })
    }
}

/// A member of which everything is written down.
pub(crate) struct Recorded {
    history: Arc<History>,
    pub(crate) consumer: Arc<Consumer>,
    pub(crate) member: MemberId,
    subscription: Subscription,
    listening: tokio::task::JoinHandle<()>,
}

impl Recorded {
    /// What is at hand, or comes next; empty once the consumer has been closed.
    pub(crate) async fn recv_batch(&self, most: usize) -> Result<Vec<Held>> {
        let batch = self.consumer.recv_batch(most).await?;
        let hold = |delivery: Delivery| {
            let deadline = self.history.at(delivery.deadline());
            self.history.push(Happened::Delivered {
                member: self.member,
                id: delivery.id().to_owned(),
                topic: delivery.topic().to_string(),
                digest: digest(&delivery),
                key: delivery.get_key().map(str::to_owned),
                position: delivery.position(),
                attempt: delivery.attempt(),
                deadline,
            });
            Held {
                history: self.history.clone(),
                member: self.member,
                backoff: self.subscription.get_backoff().after(delivery.attempt()),
                deadline,
                delivery: Some(delivery),
            }
        };
        Ok(batch.into_iter().map(hold).collect())
    }

    /// It was closed, or is about to be dropped.
    pub(crate) fn left(&self) {
        self.history.push(Happened::Left {
            member: self.member,
        });
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// A delivery in hand; that it is dropped is written down too.
pub(crate) struct Held {
    history: Arc<History>,
    member: MemberId,
    backoff: Duration,
    /// Of its lease, when it was handed out.
    deadline: Duration,
    delivery: Option<Delivery>,
}

impl Held {
    fn settling(&self, delivery: &Delivery, how: How) {
        // A partition that is to be given up ends its leases earlier, which the delivery tells.
        let deadline = self.history.at(delivery.deadline());
        if deadline < self.deadline {
            self.history.push(Happened::Extended {
                member: self.member,
                id: delivery.id().to_owned(),
                attempt: delivery.attempt(),
                deadline,
            });
        }
        self.history.push(Happened::Settling {
            member: self.member,
            id: delivery.id().to_owned(),
            attempt: delivery.attempt(),
            how,
            called: None,
        });
    }

    /// Acks it, or gives it back at once, and waits for the answer.
    pub(crate) async fn settle(mut self, ack: bool) {
        let Some(delivery) = self.delivery.take() else {
            return;
        };
        let how = match ack {
            true => How::Ack,
            false => How::Nack(Duration::ZERO),
        };
        self.settling(&delivery, how);
        let (id, attempt) = (delivery.id().to_owned(), delivery.attempt());
        let answer = match ack {
            true => delivery.ack().await,
            false => delivery.nack().await,
        };
        if let Err(error) = &answer {
            let note = format!("member {}: {how:?} of {id}: {error}", self.member);
            self.history.push(Happened::Note(note));
        }
        self.history.push(Happened::Settled {
            member: self.member,
            id,
            attempt,
            how,
            ended: Ended::of(&answer),
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(delivery) = &self.delivery {
            self.settling(delivery, How::Dropped(self.backoff));
        }
    }
}

/// What a history comes to.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) published: usize,
    pub(crate) delivered: usize,
    pub(crate) acked: HashSet<String>,
    pub(crate) nacked: usize,
    /// How often which end of a delivery explains that the message came once more.
    pub(crate) again: BTreeMap<&'static str, usize>,
    /// Acked, and whoever did so was gone before the answer came.
    pub(crate) unheard: usize,
    /// What was published and not acked in the end.
    pub(crate) open: Vec<String>,
    /// Those that nothing explains.
    pub(crate) unexplained: Vec<String>,
    /// First deliveries that were not first attempts.
    pub(crate) later: usize,
}

#[derive(Clone, Copy)]
struct Last {
    member: MemberId,
    attempt: u32,
    at: Duration,
    position: mas_transport_core::Position,
    settled: Option<(How, Option<Ended>)>,
}

impl Last {
    fn is(&self, member: MemberId, attempt: u32) -> bool {
        (self.member, self.attempt) == (member, attempt)
    }
}

pub(crate) fn counts(entries: &[Entry]) -> Counts {
    let mut counts = Counts::default();
    // A revocation is told by a task of its own, perhaps after what it explains.
    let revoked: HashSet<_> = entries
        .iter()
        .filter_map(|entry| match &entry.what {
            Happened::Revoked { member, position } => Some((*member, *position)),
            _ => None,
        })
        .collect();
    let (mut published, mut gone) = (Vec::new(), HashSet::new());
    let mut changed = Duration::ZERO;
    let mut seen: HashMap<&str, Last> = HashMap::new();
    for entry in entries {
        match &entry.what {
            Happened::Accepted { id } => {
                counts.published += 1;
                published.push(id);
            }
            Happened::Joined { .. } => changed = entry.at,
            Happened::Left { member } => {
                gone.insert(*member);
                changed = entry.at;
            }
            Happened::Delivered {
                member,
                id,
                position,
                attempt,
                ..
            } => {
                counts.delivered += 1;
                let now = Last {
                    member: *member,
                    attempt: *attempt,
                    at: entry.at,
                    position: *position,
                    settled: None,
                };
                let Some(last) = seen.insert(id, now) else {
                    counts.later += usize::from(*attempt > 1);
                    continue;
                };
                let taken = revoked.contains(&(last.member, last.position));
                let why = match last.settled {
                    Some((How::Nack(_), Some(Ended::Done))) => "nacked",
                    Some((How::Nack(_), _)) => "nacked, and back before that was confirmed",
                    Some((How::Dropped(_), _)) => "dropped by its handler",
                    Some((How::Ack, Some(Ended::Lost))) => "its ack came too late, as was said",
                    Some((How::Ack, Some(Ended::Failed))) => "its ack failed, as was said",
                    Some((How::Ack, Some(Ended::Unknown))) => {
                        "whether its ack counts was not known, as was said"
                    }
                    Some((How::Ack, None)) | None if taken => "its partition was taken away",
                    Some((How::Ack, None)) | None if gone.contains(&last.member) => {
                        "its member had left"
                    }
                    // As the checker has it: one that does not fetch is not heard saying that it knows.
                    Some((How::Ack, None)) | None if changed >= last.at => {
                        "its partition went, which its member was not told"
                    }
                    other => {
                        counts.unexplained.push(format!(
                            "{id} came to member {member} at {:?}, attempt {attempt}; member {} had it \
                             before: {other:?}",
                            entry.at, last.member
                        ));
                        continue;
                    }
                };
                *counts.again.entry(why).or_default() += 1;
            }
            Happened::Settling {
                member,
                id,
                attempt,
                how,
                ..
            } => {
                let last = seen.get_mut(&**id);
                if let Some(last) = last.filter(|last| last.is(*member, *attempt)) {
                    last.settled = Some((*how, None));
                }
            }
            Happened::Settled {
                member,
                id,
                attempt,
                how,
                ended,
            } => {
                match (how, ended) {
                    (How::Ack, Ended::Done) => {
                        counts.acked.insert(id.clone());
                    }
                    (How::Nack(_), Ended::Done) => counts.nacked += 1,
                    _ => {}
                }
                // The answer to a nack may come when the message is back already.
                let last = seen.get_mut(&**id);
                if let Some(last) = last.filter(|last| last.is(*member, *attempt)) {
                    last.settled = Some((*how, Some(*ended)));
                }
            }
            _ => {}
        }
    }
    for id in published {
        let end = seen.get(&**id).and_then(|last| last.settled);
        match end {
            Some((How::Ack, Some(Ended::Done))) => {}
            Some((How::Ack, None)) => counts.unheard += 1,
            other => counts.open.push(format!("{id}: {other:?}")),
        }
    }
    counts
}
