//! The two halves of a member, as the contract has them.

use std::sync::Arc;

use async_trait::async_trait;
use mas_transport_core::{Error, Event, Fetch, Outcome, Result, Settle, Settled, Token, Want};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, sleep_until};

use crate::connection::{Standing, refused, unanswered, unavailable};
use crate::fault::{FaultEffect, FaultOperation};
use crate::group::Taken;
use crate::member::{Look, Member};
use crate::{BACKEND, wire};

/// The fetching half.
#[derive(Debug)]
pub(crate) struct MemoryFetch {
    member: Arc<Member>,
    taken: Vec<Taken>,
    /// The outages of the connection that this half has failed for.
    failed: u64,
    /// Those whose end it has told of.
    told: u64,
}

impl MemoryFetch {
    pub(crate) fn new(member: Arc<Member>, outages: u64) -> Self {
        Self {
            member,
            taken: Vec::new(),
            failed: outages,
            told: outages,
        }
    }

    /// Brings what was taken into the form of the contract, outside of every lock.
    fn hand_over(&mut self, out: &mut Vec<Event>) {
        let topic = &self.member.topic.name;
        out.extend(self.taken.drain(..).map(|taken| wire::event(topic, taken)));
    }
}

impl Drop for MemoryFetch {
    fn drop(&mut self) {
        self.member.stop();
    }
}

/// A place in the waiting line; given up when the waiting future is dropped.
struct Waiting<'a>(Option<&'a Member>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(member) = self.0 {
            member.unwait();
        }
    }
}

#[async_trait]
impl Fetch for MemoryFetch {
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        // Nothing below waits while there is something to take: a loop over this must not keep
        // other tasks from running.
        consume_budget().await;
        let fault = self
            .member
            .connection
            .fault(FaultOperation::Fetch, &self.member.topic.name);
        match fault {
            Some(FaultEffect::Refuse(kind)) => return Err(refused("fetch", kind)),
            Some(FaultEffect::Delay(time)) => sleep(time).await,
            Some(FaultEffect::LoseAck) => {
                // Leased, and not seen by anybody until the leases end. What was lost for good is
                // told all the same.
                self.member.look(want, &mut self.taken, out);
                self.member.unwait();
                self.taken.clear();
                return Err(unanswered("fetch"));
            }
            _ => {}
        }
        loop {
            let until = match self.member.connection.standing() {
                Standing::Closed => return Err(Error::closed("fetch").on(BACKEND)),
                Standing::Down(until, outages) => {
                    self.told = self.told.min(outages - 1);
                    if self.failed < outages {
                        self.failed = outages;
                        return Err(unavailable("fetch"));
                    }
                    Some(until)
                }
                Standing::Up(outages) => {
                    let before = out.len();
                    if self.told < outages {
                        (self.told, self.failed) = (outages, outages);
                        out.push(Event::Reconnected);
                    }
                    match self.member.look(want, &mut self.taken, out) {
                        Look::Something => {
                            self.hand_over(out);
                            return Ok(());
                        }
                        Look::Closed if out.len() == before => {
                            return Err(Error::closed("fetch").on(BACKEND));
                        }
                        Look::Nothing(until) if out.len() == before => until,
                        _ => {
                            self.member.unwait();
                            return Ok(());
                        }
                    }
                }
            };
            let mut waiting = Waiting(Some(&self.member));
            let timer = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.member.bell.notified() => {}
                () = timer => {}
            }
            // The next look leaves the line by itself.
            waiting.0 = None;
        }
    }
}

/// The settling half.
#[derive(Debug)]
pub(crate) struct MemorySettle(pub(crate) Arc<Member>);

#[async_trait]
impl Settle for MemorySettle {
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        consume_budget().await;
        let (results, held_back) = self.0.settle(batch);
        if let Some(time) = held_back {
            sleep(time).await;
        }
        results
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.close(deadline).await;
        Ok(())
    }
}
