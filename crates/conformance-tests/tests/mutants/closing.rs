//! Mutants of cancellation (C), closing (E), what is not declared (U), figures (M) and recovery (R).

use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::layers::{Hooks, Joined};
use futures::FutureExt as _;
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    Admin, Confirm, Error, ErrorKind, Event, Fetch, Group, Message, Priority, Result, Subscription,
    Topic, Transport, Want,
};
use tokio::time::Instant;

use crate::edits::{Edits, pump, restored};
use crate::mutants;

mutants! {
    C1 recv_loses_when_dropped
        "a receive that is dropped while it waits loses the delivery that it had taken"
        = |_| pump(Mutation::RecvLosesOnCancel);
    C1 enqueue_loses_room_when_dropped
        "an enqueue that is dropped while it waits never gives back its room"
        = |_| pump(Mutation::PublishLosesOnCancel);
    C1 fetch_waits_with_full_hands
        "the backend waits between taking an event and passing it on"
        = |_| Arc::new(FetchWaits);
    E1 close_does_not_drain
        "closing a consumer does not wait for its handlers"
        = |_| pump(Mutation::NoDrain);
    E1 drain_is_short
        "closing a consumer waits a second for its handlers, whatever the deadline"
        = |_| pump(Mutation::DrainIsShort);
    E1 nothing_is_returned
        "what a closed consumer had fetched and not handed out comes back when its lease ends"
        = |_| pump(Mutation::NothingReturned);
    E2 publisher_does_not_flush
        "closing the publisher does not wait for what it had accepted"
        = |_| pump(Mutation::CloseDoesNotFlush);
    E2 publish_after_close_is_accepted
        "a publish after close gets a receipt and is thrown away"
        = |_| pump(Mutation::PublishAfterClose);
    E2 end_is_told_for_ever
        "after a close, receiving answers the end for ever"
        = |_| pump(Mutation::EndToldForEver);
    E2 closed_is_told_as_unavailable
        "a call after close is told that the broker is away, and is tried again"
        = |_| Edits::receipt(|outcome| outcome.map_err(|e| match e.kind() {
            ErrorKind::Closed => {
                restored(&Error::new(ErrorKind::Unavailable, "publish", "closed"), false)
            }
            _ => e,
        }));
    E3 task_outlives_its_consumer
        "a task of the consumer pump stays after close"
        = |_| pump(Mutation::TaskLeaks);
    E2 transport_stays_open
        "closing the transport closes nothing"
        = |_| Arc::new(StaysOpen);
    U1 options_are_ignored
        "what a backend cannot do with a message is left out in silence"
        = |_| Edits::outgoing(|message| {
            let (topic, id) = (message.topic().clone(), message.id().to_owned());
            let unsupported = message.get_delay().is_some()
                || message.expires_at().is_some()
                || message.get_priority() != Priority::Normal;
            match unsupported {
                true => Message::assemble(topic, id, message.payload().clone()),
                false => message,
            }
        });
    U1 pausing_is_a_no_op
        "pausing a group is answered as done, and nothing happens"
        = |_| Arc::new(PauseIsSaid);
    U1 unsupported_may_be_stored
        "a refused option is said to be stored, perhaps"
        = |_| Edits::receipt(|outcome| outcome.map_err(|e| match e.kind() {
            ErrorKind::Unsupported => restored(&e, true),
            _ => e,
        }));
    U1 wildcard_is_a_name
        "a subscription with a wildcard is taken as one to a topic"
        = |_| Edits::subscribe(|s| match s.has_wildcard() {
            true => Subscription::new("any").group("any").lease(s.get_lease()),
            false => s,
        });
    M1 pending_is_not_counted
        "the figures of a group leave out what is under lease"
        = |_| Edits::lag(|lag| lag.pending = 0);
    M1 pending_waits
        "the figures of a group count what is under lease as waiting too"
        = |_| Edits::lag(|lag| lag.waiting += lag.pending);
    M1 waiting_is_one_off
        "a group that is behind is said to be one message less behind"
        = |_| Edits::lag(|lag| lag.waiting = lag.waiting.saturating_sub(1));
    M1 groups_are_hidden
        "only the first group of a topic is listed"
        = |_| Edits::groups(|groups| groups.truncate(1));
    M1 purge_counts_nothing
        "a purge says that there was nothing"
        = |_| Edits::purged(|_| 0);
    R1 a_failed_fetch_ends_the_consumer
        "the first broken connection ends the consumer"
        = |_| pump(Mutation::NoRetry);
    R1 reconnection_is_not_told
        "nobody hears that the connection was lost and is back"
        = |_| Edits::event(|_, event| match event {
            Event::Reconnected => None,
            other => Some(other),
        });
    R1 publishing_does_not_come_back
        "after a connection broke, every publish fails"
        = |_| Arc::new(StaysBroken::default());
}

/// Breaks the rule of `fetch`: there is an await between taking an event and pushing it.
#[derive(Debug)]
struct FetchWaits;

#[async_trait]
impl Hooks for FetchWaits {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let mut taken = Vec::new();
        let result = next.fetch(want, &mut taken).await;
        tokio::task::yield_now().await;
        out.append(&mut taken);
        result
    }
}

/// A transport that cannot be closed.
#[derive(Debug)]
struct StaysOpen;

#[async_trait]
impl Hooks for StaysOpen {
    async fn close(&self, _next: &Arc<dyn Transport>, _deadline: Instant) -> Result<()> {
        Ok(())
    }
}

/// Pausing a group is said, not done.
#[derive(Debug)]
struct PauseIsSaid;

#[async_trait]
impl Hooks for PauseIsSaid {
    async fn pause(
        &self,
        _next: &dyn Admin,
        _topic: &Topic,
        _group: &Group,
        _paused: bool,
    ) -> Result<()> {
        Ok(())
    }
}

/// Publishing fails for good once anything has failed for a broken connection.
#[derive(Debug, Default)]
struct StaysBroken(Arc<std::sync::atomic::AtomicBool>);

#[async_trait]
impl Hooks for StaysBroken {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        use std::sync::atomic::Ordering::Relaxed;
        let broken = Arc::clone(&self.0);
        if broken.load(Relaxed) {
            let away = || Error::new(ErrorKind::Unavailable, "publish", "said by a mutant");
            let outcomes = batch.iter().map(|_| Err(away())).collect();
            return async move { outcomes }.boxed();
        }
        let confirm = next.publish(batch, deadline).await;
        async move {
            let outcomes = confirm.await;
            let away = |e: &Error| e.kind() == ErrorKind::Unavailable;
            if outcomes.iter().any(|o| o.as_ref().is_err_and(away)) {
                broken.store(true, Relaxed);
            }
            outcomes
        }
        .boxed()
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let result = next.fetch(want, out).await;
        if result
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::Unavailable)
        {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        result
    }
}
