//! Commits: one at a time, always of the latest state, so that whatever was settled while one was under
//! way goes with the next.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::ErrorKind;
use mas_transport_core::backend::lock;
use rdkafka::consumer::Consumer as _;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::{Instant, sleep};

use crate::consumer;
use crate::error;
use crate::member::Member;
use crate::settle::Place;
use crate::share::Commit;

/// How long to wait before what was not taken is committed again. The client asks for the broker that
/// keeps the group in between.
pub(crate) const AGAIN: Duration = Duration::from_millis(50);

/// How long a commit waits for company after one that several had waited for: each costs a broker as much
/// as hundreds of messages. Whoever settles one message after the other is not held up.
const COMPANY: Duration = Duration::from_millis(15);

/// What a commit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// There was nothing to commit, or it was taken; so many settlements had waited for it.
    Yes(usize),
    /// Not now.
    Later,
    /// The group went on without this member, as its keeper is about to hear.
    Fenced,
}

/// Commits whenever there is something to commit, until the member is closed.
pub(crate) async fn run(member: Arc<Member>) {
    loop {
        tokio::select! {
            () = member.dirty.notified() => {}
            () = member.closed.cancelled() => return,
        }
        loop {
            match commit(&member, None).await {
                Done::Yes(0 | 1) | Done::Fenced => break,
                Done::Yes(_) => {
                    tokio::select! {
                        () = sleep(COMPANY) => {}
                        () = member.hurry.notified() => {}
                        () = member.closed.cancelled() => return,
                    }
                    break;
                }
                Done::Later => {
                    tokio::select! {
                        () = sleep(AGAIN) => {}
                        () = member.closed.cancelled() => return,
                    }
                }
            }
        }
    }
}

/// Commits what there is to commit; of partitions that are given up, that they are.
pub(crate) async fn commit(member: &Arc<Member>, giving_up: Option<&[i32]>) -> Done {
    let _one = member.committing.lock().await;
    let (consumer, mut commits) = {
        let mut state = lock(&member.state);
        // The client joins its group again at once, and whatever it commits from then on is taken: a
        // broker does not ask whose a partition is. Its owner's commits would be replaced by old ones.
        if state.consumer.as_ref().is_some_and(|c| c.assignment_lost()) {
            state.fenced = true;
            member.events.notify_one();
            return Done::Fenced;
        }
        let commits = state.share.commits(giving_up);
        match &state.consumer {
            Some(consumer) if !commits.is_empty() => (consumer.clone(), commits),
            _ => return Done::Yes(0),
        }
    };
    let entry = |c: &mut Commit| {
        let metadata = std::mem::take(&mut c.snapshot.metadata);
        (c.partition, c.snapshot.position, metadata)
    };
    let entries: Vec<_> = commits.iter_mut().map(entry).collect();
    let topic = member.topic_name.clone();
    let since = Instant::now();
    // Moved there: it may be the last one.
    let done = tokio::task::spawn_blocking(move || {
        let done = consumer::commit(&consumer, &topic, &entries);
        done.map_err(|told| (told, consumer.assignment_lost()))
    });
    match done.await {
        Ok(Ok(())) => {}
        Ok(Err((told, lost))) => {
            // An old generation is named also while partitions change hands: then the next one is taken.
            let fenced = lost
                || matches!(
                    error::code(&told),
                    Some(Code::UnknownMemberId | Code::FencedMemberEpoch)
                );
            if fenced {
                lock(&member.state).fenced = true;
                member.events.notify_one();
            }
            let gone = error::code(&told).is_some_and(error::is_missing);
            let error = member.told("settle", since, told);
            if gone {
                lock(&member.state).topic_gone = true;
                member.events.notify_one();
            }
            tracing::debug!(%error, "a commit was not taken");
            if error.kind() == ErrorKind::Unauthorized {
                lock(&member.state).error = Some(error);
                member.arrived.notify_one();
            }
            return if fenced { Done::Fenced } else { Done::Later };
        }
        Err(_) => return Done::Fenced,
    }
    let (done, more): (Vec<Place>, bool) = {
        let mut state = lock(&member.state);
        let done = commits.iter();
        let done = done.flat_map(|commit| state.share.committed(commit));
        (done.collect(), state.full || state.share.ready() > 0)
    };
    let waited = done.len();
    for place in done {
        place.done(Ok(()));
    }
    if more {
        // What was read may be handed out now, or more be read.
        member.arrived.notify_one();
    }
    Done::Yes(waited)
}
