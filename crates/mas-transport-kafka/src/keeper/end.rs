//! The end of a member: it gives back what it holds, and leaves its group in good order.

use std::sync::Arc;

use mas_transport_core::backend::lock;
use rdkafka::consumer::Consumer as _;
use tokio::time::{Instant, sleep, sleep_until};

use super::{AT_LEAST, Keeper, forget};
use crate::commit::{AGAIN, Done, commit};
use crate::consumer::{self, Change, Consumer};
use crate::member::now;

impl Keeper {
    /// Waits until nothing is held, commits that everything is given up, and lets the client go.
    pub(super) async fn end(mut self) {
        let member = self.member.clone();
        let lease = lock(&member.state).share.lease();
        for leaving in &mut self.leaving {
            // Nobody may have heard that leases end earlier.
            leaving.until = Instant::now() + lease;
            for partition in &leaving.partitions {
                let mut state = lock(&member.state);
                state.share.leave(*partition, leaving.until);
            }
        }
        loop {
            {
                let mut state = lock(&member.state);
                state.share.advance(now());
                if state.share.live() == 0 {
                    break;
                }
            }
            if let Some(consumer) = self.consumer() {
                self.attend(&consumer).await;
            }
            let soon = Instant::now() + AT_LEAST;
            let next = lock(&member.state)
                .share
                .next_due()
                .map_or(soon, |at| at.min(soon));
            tokio::select! {
                () = member.events.notified() => {}
                () = sleep_until(next) => {}
                () = member.force.cancelled() => {
                    lock(&member.state).share.return_all(now());
                    break;
                }
            }
        }
        let config = &member.shared.asker.config;
        let owned = lock(&member.state).share.partitions();
        // Commits stand behind a request to join, which may have to wait until a dead member is missed.
        let limit = Instant::now() + config.response_timeout + 2 * config.session_timeout;
        let leaving = async {
            while !owned.is_empty()
                && commit(&member, Some(&owned)).await == Done::Later
                && Instant::now() < limit
            {
                sleep(AGAIN).await;
            }
            self.be_let_in(Instant::now() + config.session_timeout / 2)
                .await;
        };
        tokio::select! {
            () = leaving => {}
            () = async {
                member.force.cancelled().await;
                sleep(AT_LEAST).await;
            } => {}
        }
        forget(&member, &owned);
        member.dismiss().await;
        member.closed.cancel();
    }

    /// Hears, at the end, what the client has to tell: it is not to think that nobody is there any more.
    async fn attend(&mut self, consumer: &Arc<Consumer>) {
        self.listen(consumer);
        while let Some(change) = consumer.context().next_change() {
            match change {
                // Nothing is taken any more, and the group is not to wait for an answer.
                Change::Assigned(_) => {
                    self.joined = true;
                    consumer::answer(consumer, &self.member.topic_name);
                }
                Change::Revoked(partitions) => self.revoke(consumer, partitions),
            }
        }
        self.give_up(consumer).await;
    }

    /// Waits until the group has let this member in. The broker answers its request to join first, and
    /// forgets that it wants to leave when its client is gone by then: the others would wait until its
    /// session has ended.
    async fn be_let_in(&mut self, limit: Instant) {
        while self.subscribed && !self.joined && Instant::now() < limit {
            let Some(consumer) = self.consumer() else {
                return;
            };
            self.attend(&consumer).await;
            drop(consumer);
            if !self.joined {
                tokio::select! {
                    () = self.member.events.notified() => {}
                    () = sleep_until(limit.min(Instant::now() + AT_LEAST)) => {}
                }
            }
        }
    }
}
