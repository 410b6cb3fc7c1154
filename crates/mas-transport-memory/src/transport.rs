//! One connection, as the contract has it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mas_transport_core::{
    Admin, Confirm, Connections, Durability, Error, ErrorKind, Fetch, Message, ReadSpec, Receipt,
    Result, Source, Subscription, Transport, TransportInfo,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::{Broker, MemoryBroker, Space};
use crate::connection::{Connection, Standing, refused, unanswered, unavailable};
use crate::fault::{FaultEffect, FaultOperation};
use crate::member::Member;
use crate::source::{MemoryFetch, MemorySettle};
use crate::store::Body;
use crate::topic::After;
use crate::{BACKEND, wire};

/// One connection to a [`MemoryBroker`], which makes it. Its `native` is that broker.
#[derive(Debug)]
pub struct MemoryTransport {
    pub(crate) connection: Arc<Connection>,
    broker: MemoryBroker,
    /// What the broker says of itself, with the limit of this connection.
    info: Arc<TransportInfo>,
}

/// A message that passed the checks, and how it is kept.
struct Entry {
    message: Message,
    wire: Option<Body>,
    bytes: u32,
}

impl MemoryTransport {
    pub(crate) fn new(
        broker: Arc<Broker>,
        space: Arc<Space>,
        info: Arc<TransportInfo>,
    ) -> Arc<Self> {
        Arc::new(Self {
            info,
            broker: MemoryBroker(Arc::clone(&broker)),
            connection: Arc::new(Connection::new(broker, space)),
        })
    }

    /// Publishes a batch; answers how long the answer is to be held back, too.
    fn publish_now(
        &self,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> (Vec<Result<Receipt>>, Option<Duration>) {
        let refusal = self.connection.check("publish").err().or_else(|| {
            (Instant::now() >= deadline).then(|| {
                let why = "the deadline had passed before anything was sent";
                Error::new(ErrorKind::Timeout, "publish", why).on(BACKEND)
            })
        });
        if let Some(error) = refusal {
            return (batch.iter().map(|_| Err(error.clone())).collect(), None);
        }
        // Everything that can be done outside of a topic's lock.
        let broker = &self.connection.broker;
        let mut checked: Vec<Result<Entry>> = Vec::with_capacity(batch.len());
        checked.extend(batch.into_iter().map(|message| {
            self.info.check_message(&message)?;
            Ok(Entry {
                wire: broker.config.wire.then(|| wire::encode(&message)),
                bytes: u32::try_from(message.size()).unwrap_or(u32::MAX),
                message,
            })
        }));
        let mut results = Vec::with_capacity(checked.len());
        let mut after = After::default();
        let mut line = Line::default();
        let mut checked = checked.into_iter().peekable();
        loop {
            while let Some(Err(error)) = checked.next_if(Result::is_err) {
                results.push(Err(error));
            }
            let Some(Ok(first)) = checked.peek() else {
                break;
            };
            // One lock for all neighbours of one topic.
            let name = first.message.topic().clone();
            let same =
                |entry: &Result<Entry>| entry.as_ref().is_ok_and(|e| *e.message.topic() == name);
            let topic = match broker.topic(&self.connection.space, &name, "publish") {
                Ok(topic) => topic,
                Err(error) => {
                    while checked.next_if(same).is_some() {
                        results.push(Err(error.clone()));
                    }
                    continue;
                }
            };
            let mut state = topic.lock();
            let mut appended = 0;
            while let Some(Ok(entry)) = checked.next_if(same) {
                let (effect, refusal) = line.draw(&self.connection, &name);
                let room = refusal.map_or_else(|| broker.room(&state, &name, entry.bytes), Err);
                if let Err(error) = room {
                    results.push(Err(error));
                    continue;
                }
                let Entry {
                    message,
                    wire,
                    bytes,
                } = entry;
                let position = match wire {
                    Some(body) => state.append(body, bytes, message.get_key()),
                    None if state.store.partitions() == 1 => {
                        state.append(Body::Message(message), bytes, None)
                    }
                    None => {
                        let key = message.get_key().map(str::to_owned);
                        state.append(Body::Message(message), bytes, key.as_deref())
                    }
                };
                appended += 1;
                results.push(match effect {
                    Some(FaultEffect::LoseAck) => Err(unanswered("publish")),
                    _ => Ok(Receipt {
                        position,
                        durability: Durability::Volatile,
                        duplicate: false,
                    }),
                });
            }
            state.published(appended, &mut after);
        }
        after.run();
        (results, line.held_back)
    }
}

/// What the fault plan does to one batch.
#[derive(Default)]
struct Line {
    cut: bool,
    held_back: Option<Duration>,
}

impl Line {
    fn draw(
        &mut self,
        connection: &Connection,
        topic: &mas_transport_core::Topic,
    ) -> (Option<FaultEffect>, Option<Error>) {
        let effect = connection.fault(FaultOperation::Publish, topic);
        let refusal = match effect {
            Some(FaultEffect::Disconnect(_)) => {
                self.cut = true;
                None
            }
            Some(FaultEffect::Refuse(kind)) => Some(refused("publish", kind)),
            Some(FaultEffect::Delay(time)) => {
                self.held_back = self.held_back.max(Some(time));
                None
            }
            _ => None,
        };
        (
            effect,
            refusal.or_else(|| self.cut.then(|| unavailable("publish"))),
        )
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn info(&self) -> Arc<TransportInfo> {
        Arc::clone(&self.info)
    }

    async fn publish(&self, batch: Vec<Message>, deadline: Instant) -> Confirm {
        // Nothing below waits: a loop over this must not keep other tasks from running.
        tokio::task::coop::consume_budget().await;
        let (results, held_back) = self.publish_now(batch, deadline);
        let Some(time) = held_back else {
            return Box::pin(std::future::ready(results));
        };
        let due = Instant::now() + time;
        Box::pin(async move {
            tokio::time::sleep_until(due.min(deadline)).await;
            if due < deadline {
                return results;
            }
            let late = |result: Result<Receipt>| {
                result.and_then(|_| {
                    let why = "the answer did not come in time, by the fault plan";
                    Err(Error::new(ErrorKind::Timeout, "publish", why)
                        .on(BACKEND)
                        .maybe_stored())
                })
            };
            results.into_iter().map(late).collect()
        })
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Source> {
        let connection = &self.connection;
        connection.check("subscribe")?;
        self.info.check_subscription(subscription)?;
        let (topic, name) = (subscription.get_topic()?, subscription.get_group()?);
        let fault = connection.fault(FaultOperation::Subscribe, &topic);
        match fault {
            Some(FaultEffect::Refuse(kind)) => return Err(refused("subscribe", kind)),
            Some(FaultEffect::Disconnect(_)) => return Err(unavailable("subscribe")),
            Some(FaultEffect::Delay(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        let cell = connection
            .broker
            .topic(&connection.space, &topic, "subscribe")?;
        let bell = Arc::new(Notify::new());
        let lease = subscription.get_lease();
        let mut after = After::default();
        let member = {
            let mut state = cell.lock();
            let number = state.find_or_create(&name, lease, subscription.get_start());
            let Some((members, store)) = state.group(number) else {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "subscribe",
                    "a group is missing",
                ));
            };
            let stored = members.group.leases.length();
            if stored != lease {
                let why = "the group exists with another lease; ask for that one";
                return Err(Error::new(ErrorKind::Conflict, "subscribe", why)
                    .on(BACKEND)
                    .with("topic", &topic)
                    .with("group", &name)
                    .with("lease_ms", stored.as_millis())
                    .with("asked_ms", lease.as_millis()));
            }
            let id = members.group.join(Instant::now(), store);
            members.bells.insert(id, Arc::clone(&bell));
            members.wake(store, &mut after);
            (number, id)
        };
        after.run();
        let (number, id) = member;
        let member = Member::new(Arc::clone(connection), cell, name, number, id, bell);
        let member = Arc::new(member);
        connection.adopt(&member)?;
        if fault == Some(FaultEffect::LoseAck) {
            return Err(unanswered("subscribe"));
        }
        let outages = match connection.standing() {
            Standing::Up(outages) | Standing::Down(_, outages) => outages,
            Standing::Closed => 0,
        };
        Ok(Source {
            fetch: Box::new(MemoryFetch::new(Arc::clone(&member), outages)),
            settle: Arc::new(MemorySettle(member)),
        })
    }

    async fn read(&self, _spec: &ReadSpec) -> Result<Box<dyn Fetch>> {
        self.connection.check("read")?;
        let why = "reading without a group is not supported";
        Err(Error::unsupported(BACKEND, "read", why))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    // There is nothing to be connected to.
    fn connections(&self) -> Option<Connections> {
        None
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.broker)
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.connection.close();
        let members = self.connection.members();
        for member in &members {
            member.stop();
        }
        futures::future::join_all(members.iter().map(|m| m.close(deadline))).await;
        Ok(())
    }
}
