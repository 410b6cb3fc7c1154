//! The receiving half of a member: takes what the client has read, as much as is wanted. What is not
//! wanted stays with the client, and with it whoever owns the partition next finds it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mas_transport_core::backend::lock;
use mas_transport_core::{Error, ErrorKind, Event, Fetch, RawDelivery, Result, Want};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::{Instant, sleep_until};

use crate::BACKEND;
use crate::consumer::Queue;
use crate::error;
use crate::member::{Member, now};
use crate::record::Raw;
use crate::share::Taken;

/// The longest wait before the client is asked again: a wake-up of its may be lost (rdkafka issue 665).
const AT_LEAST: Duration = Duration::from_secs(1);

/// The receiving half of a member.
#[derive(Debug)]
pub(crate) struct KafkaFetch(pub(crate) Arc<Member>);

#[async_trait]
impl Fetch for KafkaFetch {
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        let member = &self.0;
        loop {
            let mut taken = Vec::new();
            let looked = look(member, want, &mut taken, out);
            out.extend(taken.into_iter().map(|taken| event(member, taken)));
            let Some(again) = looked? else {
                return Ok(());
            };
            tokio::select! {
                () = member.arrived.notified() => {}
                () = sleep_until(again) => {}
            }
        }
    }
}

impl Drop for KafkaFetch {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What was read, as it is handed out.
fn event(member: &Member, taken: Taken) -> Event {
    let Taken {
        token,
        raw,
        position,
        attempt,
        reclaimed,
        deadline,
    } = taken;
    match raw.message(&member.topic, position) {
        Ok(message) => Event::Delivery(RawDelivery {
            token,
            message,
            position,
            attempt,
            deadline,
            begin: attempt > 1,
            reclaimed,
        }),
        Err(reason) => Event::Malformed {
            token,
            reason,
            position,
            attempt,
        },
    }
}

/// Takes what is there; `Some` is when to look again if there was nothing.
fn look(
    member: &Arc<Member>,
    want: Want,
    taken: &mut Vec<Taken>,
    out: &mut Vec<Event>,
) -> Result<Option<Instant>> {
    if member.closing.is_cancelled() {
        return Err(Error::closed("fetch").on(BACKEND));
    }
    let before = out.len();
    let (mut queues, room) = {
        let mut state = lock(&member.state);
        let now = now();
        let wanted = want.messages > 0;
        // What lapsed before it asked for more is forgiven; what lapses now is not.
        state.share.lapsed &= !wanted;
        state.share.advance(now);
        if state.wants != wanted || (state.share.lapsed && !wanted) {
            state.wants = wanted;
            member.events.notify_one();
        }
        out.extend(state.control.drain(..));
        if let Some(error) = state.error.take() {
            if out.len() == before {
                return Err(error);
            }
            state.error = Some(error);
        }
        state.share.take(now, want, taken);
        let room = want
            .messages
            .saturating_sub(taken.len() + state.share.ready());
        let readable = |(partition, queue): &(i32, Arc<Queue>)| {
            let limit = state.share.room(*partition);
            (limit > 0).then(|| (*partition, queue.clone(), limit))
        };
        let queues: Vec<_> = match room {
            0 => Vec::new(),
            _ => state.queues.iter().filter_map(readable).collect(),
        };
        state.full = room > 0 && queues.len() < state.queues.len();
        (queues, room)
    };
    let bytes = want
        .bytes
        .saturating_sub(taken.iter().map(|t| t.raw.size()).sum());
    let read = read(member, &mut queues, room, bytes);
    let mut state = lock(&member.state);
    let now = now();
    // What was read before a partition went, and came again, is read anew.
    let ours = |(partition, queue, _): &&(i32, Arc<Queue>, usize)| {
        let mut queues = state.queues.iter();
        queues.any(|(p, q)| p == partition && Arc::ptr_eq(q, queue))
    };
    let ours: Vec<i32> = queues.iter().filter(ours).map(|(p, ..)| *p).collect();
    for (partition, offset, raw) in read {
        if ours.contains(&partition) {
            state.share.arrived(now, partition, offset, raw);
        }
    }
    for (partition, offset) in std::mem::take(&mut state.passed) {
        // Not what was lost: there is nothing for anybody in between.
        if state.share.skip_to(partition, offset) > 0 {
            member.dirty.notify_one();
        }
    }
    drop(queues);
    let rest = Want {
        messages: want.messages.saturating_sub(taken.len()),
        bytes,
        ..want
    };
    if rest.messages > 0 {
        state.share.take(now, rest, taken);
    }
    if state.share.wants_commit() {
        member.dirty.notify_one();
        if state.share.is_held_up() {
            member.hurry.notify_one();
        }
    }
    if out.len() > before || !taken.is_empty() {
        return Ok(None);
    }
    let soon = now.instant + AT_LEAST;
    Ok(Some(
        state.share.next_due().map_or(soon, |due| due.min(soon)),
    ))
}

/// Takes from the client what it has read, up to so many records and, but for the last one, bytes.
fn read(
    member: &Arc<Member>,
    queues: &mut [(i32, Arc<Queue>, usize)],
    mut room: usize,
    mut bytes: usize,
) -> Vec<(i32, u64, Raw)> {
    let mut read = Vec::new();
    let share = room.div_ceil(queues.len().max(1));
    // First each its share, then whoever has more.
    for most in [share, room] {
        for (partition, queue, limit) in &mut *queues {
            let mut left = most.min(*limit);
            while left > 0 && room > 0 && (bytes > 0 || read.is_empty()) {
                match queue.poll(Duration::ZERO) {
                    Some(Ok(record)) => {
                        let raw = Raw::of(&record);
                        let offset = u64::try_from(record.offset()).unwrap_or_default();
                        bytes = bytes.saturating_sub(raw.size());
                        left -= 1;
                        *limit -= 1;
                        room -= 1;
                        read.push((*partition, offset, raw));
                    }
                    Some(Err(told)) => trouble(member, Some(*partition), told),
                    None => break,
                }
            }
        }
    }
    read
}

/// The client told of an error while reading.
pub(crate) fn trouble(member: &Arc<Member>, partition: Option<i32>, told: KafkaError) {
    tracing::debug!(error = %told, ?partition, topic = %member.topic, "the client reports");
    let code = error::code(&told);
    let mut state = lock(&member.state);
    match (partition, code) {
        (Some(partition), Some(code)) if error::is_lost_place(code) => {
            state.lost_place.push(partition);
        }
        (_, Some(code)) if error::is_missing(code) => state.topic_gone = true,
        _ => {
            let error = error::told("fetch", told)
                .with("topic", &member.topic)
                .with("group", &member.group);
            // The client goes on by itself, and tells of every attempt.
            if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::LeaseLost) {
                return;
            }
            // Only what somebody has to change ends a consumer: signing in fails as well when a broker
            // goes away in the middle of it.
            let lasting = matches!(
                code,
                Some(
                    Code::TopicAuthorizationFailed
                        | Code::GroupAuthorizationFailed
                        | Code::InconsistentGroupProtocol
                        | Code::InvalidSessionTimeout
                        | Code::UnsupportedVersion
                )
            );
            let error = match lasting || error.is_retryable() {
                true => error,
                false => member
                    .error(
                        ErrorKind::Unavailable,
                        "fetch",
                        "a broker could not be read from",
                    )
                    .because(error),
            };
            state.down |= error.kind() == ErrorKind::Unavailable;
            state.error = Some(error);
            member.arrived.notify_one();
        }
    }
    drop(state);
    member.events.notify_one();
}
