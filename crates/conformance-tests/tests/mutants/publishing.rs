//! Mutants of publishing (P) and of order (O).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::layers::Hooks;
use futures::FutureExt as _;
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{Confirm, Durability, Message, Position, Receipt, Stored, Transport};
use tokio::time::Instant;

use crate::edits::{Edits, lock, pump, restored};
use crate::mutants;

mutants! {
    P1 claims_more_durability
        "a receipt promises that the message is replicated, where it lives in memory only"
        = |_| Edits::receipt(|outcome| outcome.map(|mut receipt| {
            receipt.durability = Durability::Replicated;
            receipt
        }));
    P3 one_position_for_a_batch
        "every receipt of a batch has the position of its first message"
        = |_| Edits::publish(|_| Box::new(|mut outcomes| {
            let first = outcomes.iter().find_map(|o| o.as_ref().ok().map(|r| r.position));
            for receipt in outcomes.iter_mut().flatten() {
                receipt.position = first.unwrap_or_default();
            }
            outcomes
        }));
    P1 receipt_without_store
        "the last message of a batch gets a receipt and is never sent"
        = |_| {
            Edits::publish(|batch| {
                if batch.len() < 2 {
                    return Box::new(|outcomes| outcomes);
                }
                batch.pop();
                Box::new(|mut outcomes| {
                    outcomes.extend(outcomes.last().cloned());
                    outcomes
                })
            })
        };
    P2 unknown_is_told_as_not_stored
        "the answer to a publish was lost, and the error says that the message is not stored"
        = |_| Edits::receipt(|outcome| outcome.map_err(|e| restored(&e, false)));
    P2 not_stored_is_told_as_unknown
        "a message that was refused before the wire is said to be stored, perhaps"
        = |_| Edits::receipt(|outcome| outcome.map_err(|e| restored(&e, true)));
    P2 lost_answer_is_a_receipt
        "the answer to a publish was lost, and the caller gets a receipt"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.stored() == Stored::Unknown => Ok(Receipt {
                position: Position::default(),
                durability: Durability::Volatile,
                duplicate: false,
            }),
            other => other,
        });
    P3 one_refused_fails_its_batch
        "the publish pump fails every message of a batch that holds a refused one"
        = |_| pump(Mutation::BatchFailsTogether);
    P3 outcomes_out_of_order
        "where one message of a batch is refused, the outcomes are those of the neighbours"
        = |_| Edits::publish(|_| Box::new(|mut outcomes| {
            if outcomes.iter().any(|o| o.is_err()) {
                outcomes.rotate_left(1);
            }
            outcomes
        }));
    P3 what_follows_a_refusal_is_lost
        "the messages behind a refused one get a receipt and are not sent"
        = |_| Arc::new(StopsAtRefusal);
    P4 no_publish_timeout
        "the publish timeout is a hundred times as long"
        = |_| pump(Mutation::NoPublishTimeout);
    P4 unsent_may_be_stored
        "what never left the queue is said to be stored, perhaps"
        = |_| pump(Mutation::UnsentMayBeStored);
    P4 deadline_is_ignored
        "the transport gives itself an hour more than the deadline of the publish"
        = |_| Edits::deadline(|at| at + Duration::from_secs(3600));
    P5 queue_has_no_bound
        "the publish queue takes any number of messages"
        = |_| pump(Mutation::QueueUnbounded);
    P5 queue_has_no_bound_in_bytes
        "the publish queue takes any number of bytes"
        = |_| pump(Mutation::QueueBytesUnbounded);
    O1 batches_are_reversed
        "the publish pump sends each batch backwards"
        = |_| pump(Mutation::BatchReversed);
    O1 far_apart_is_swapped
        "a message changes place with the one that was published 64 earlier in its batch"
        = |_| Edits::publish(|batch| {
            if batch.len() <= 64 {
                return Box::new(|outcomes| outcomes);
            }
            batch.swap(0, 64);
            Box::new(|mut outcomes| {
                outcomes.swap(0, 64);
                outcomes
            })
        });
    O1 one_falls_far_behind
        "late in a long stream a message falls 300 places behind"
        = |_| Arc::new(FallsBehind::default());
    O1 batches_overtake
        "every other batch waits on the way, and the next one passes it"
        = |_| Arc::new(Overtakes::default());
}

/// Sends what stands before the first refused message of a batch, and answers the rest as stored.
#[derive(Debug)]
struct StopsAtRefusal;

#[async_trait]
impl Hooks for StopsAtRefusal {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        mut batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let info = next.info();
        let Some(bad) = batch.iter().position(|m| info.check_message(m).is_err()) else {
            return next.publish(batch, deadline).await;
        };
        let rest = batch.split_off(bad + 1).len();
        let confirm = next.publish(batch, deadline).await;
        async move {
            let mut outcomes = confirm.await;
            let stored = outcomes.iter().find_map(|o| o.as_ref().ok().copied());
            let stored = stored.unwrap_or(Receipt {
                position: Position::default(),
                durability: Durability::Volatile,
                duplicate: false,
            });
            outcomes.extend((0..rest).map(|_| Ok(stored)));
            outcomes
        }
        .boxed()
    }
}

/// Keeps the two thousandth message back until 300 others have gone by.
#[derive(Debug, Default)]
struct FallsBehind {
    count: AtomicU64,
    kept: Mutex<Option<(u64, Message)>>,
}

#[async_trait]
impl Hooks for FallsBehind {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        mut batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let first = self.count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let last = first + batch.len() as u64;
        let taken = (first..last).position(|n| n == 2000);
        if let Some(at) = taken {
            *lock(&self.kept) = Some((last + 300, batch.remove(at)));
        }
        let due = lock(&self.kept).take_if(|(due, _)| *due <= last);
        let more = due.is_some();
        batch.extend(due.map(|(_, message)| message));
        let confirm = next.publish(batch, deadline).await;
        async move {
            let mut outcomes = confirm.await;
            if more {
                outcomes.pop();
            }
            if let (Some(at), Some(like)) = (taken, outcomes.first().cloned()) {
                outcomes.insert(at, like);
            }
            outcomes
        }
        .boxed()
    }
}

/// Sends every other batch only once its confirmation is awaited, and a little later.
#[derive(Debug, Default)]
struct Overtakes(AtomicU64);

#[async_trait]
impl Hooks for Overtakes {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        if self.0.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            return next.publish(batch, deadline).await;
        }
        let next = Arc::clone(next);
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            next.publish(batch, deadline).await.await
        }
        .boxed()
    }
}
