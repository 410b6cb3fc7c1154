//! Settlements.
//!
//! Each is a message to the subject that came with the delivery. Of a batch only the last one asks for
//! an answer: a server takes those of one consumer that came over one connection in order, so that the
//! answer covers them all, if the connection was one and the same from the first to the last. A
//! settlement that the server took says nothing about whose lease it was; so every one passes the
//! local check of its deadline.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Request, RequestErrorKind, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join5;
use mas_transport_core::backend::{Leases, persist_each};
use mas_transport_core::{Error, ErrorKind, Outcome, Result, Settle, Settled, Token};
use tokio::time::{Instant, timeout_at};

use crate::BACKEND;
use crate::bury::bury_all;
use crate::connection::lock;
use crate::lease::{Lease, Origin};
use crate::member::Member;
use crate::notes::Attempts;

const ACK: &[u8] = b"+ACK";
const NAK: &[u8] = b"-NAK";
const PROGRESS: &[u8] = b"+WPI";

/// The longest delay: ten years, far within the nanoseconds that servers count.
const MOST_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a server keeps what comes back a second time.
const RETURN_DELAY: Duration = Duration::from_millis(20);

/// The settling half of a member.
#[derive(Debug)]
pub(crate) struct NatsSettle(pub(crate) Arc<Member>);

/// One settlement that passed the local check: its place in the batch, its token, its lease.
pub(crate) type Item = (usize, Token, Lease);
/// What a settlement is sent for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) reply: Subject,
    pub(crate) sequence: u64,
    pub(crate) origin: Origin,
}

impl From<&Lease> for Target {
    fn from(lease: &Lease) -> Self {
        Self {
            reply: lease.reply.clone(),
            sequence: lease.sequence,
            origin: lease.origin.clone(),
        }
    }
}

/// What became of one.
pub(crate) type Answer = (usize, Result<Settled>);

#[async_trait]
impl Settle for NatsSettle {
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        // A task of its own, so that whoever gives up waiting does not give up the settlements.
        let count = batch.len();
        let member = Arc::clone(&self.0);
        let task = self.0.shared.tasks.spawn(settle(member, batch));
        task.await.unwrap_or_else(|_| {
            let error = self.0.error(
                ErrorKind::Closed,
                "settle",
                "the runtime was shut down meanwhile",
            );
            vec![Err(error.maybe_stored()); count]
        })
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.close(deadline).await;
        Ok(())
    }
}

async fn settle(member: Arc<Member>, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
    let member = &member;
    if let Err(error) = member.recheck().await {
        // Each settlement makes sure of it for itself.
        tracing::debug!(%error, "what the server knows to have sent is looked at later");
    }
    let mut results: Vec<Result<Settled>> = Vec::with_capacity(batch.len());
    let mut acks = Vec::with_capacity(batch.len());
    let (mut begins, mut renewals) = (Vec::new(), Vec::new());
    let (mut moves, mut burials) = (Vec::new(), Vec::new());
    {
        let lost = lost(member);
        let (now, joined) = (Instant::now(), member.joined());
        let mut leases = lock(&member.leases);
        for (at, (token, outcome)) in batch.into_iter().enumerate() {
            results.push(Err(lost.clone()));
            let lease = match outcome {
                Outcome::Begin | Outcome::Extend => leases.held_until(token, now),
                _ => leases.settle(token, now),
            };
            let Some(lease) = lease else {
                continue;
            };
            // The group was made again: what bears the same number now is another entry, or another's.
            if lease.joined != joined {
                leases.done(token);
                continue;
            }
            let item = (at, token, lease);
            match outcome {
                Outcome::Ack => acks.push(item),
                Outcome::Begin => begins.push(item),
                Outcome::Extend => renewals.push(item),
                Outcome::Nack(delay) => {
                    let nanos = delay.min(MOST_DELAY).as_nanos();
                    moves.push((item, Some(u64::try_from(nanos).unwrap_or(u64::MAX))));
                }
                Outcome::Return => moves.push((item, None)),
                Outcome::DeadLetter(record) => burials.push((item, record, false)),
                Outcome::Quarantine(record) => burials.push((item, record, true)),
            }
        }
    }
    let (acked, begun, renewed, moved, buried) = join5(
        ack(member, acks),
        begin(member, begins),
        renew(member, renewals),
        move_back(member, moves),
        bury_all(member, burials),
    )
    .await;
    let answers = acked.into_iter().chain(begun).chain(renewed);
    for (at, answer) in answers.chain(moved).chain(buried) {
        if let Some(result) = results.get_mut(at) {
            *result = answer;
        }
    }
    member.released();
    results
}

pub(crate) fn lost(member: &Member) -> Error {
    member.error(
        ErrorKind::LeaseLost,
        "settle",
        "the lease had ended: another member may hold the message",
    )
}

/// Sends messages to one consumer, and waits until it has taken them all.
async fn control(
    member: &Member,
    operation: &'static str,
    mut messages: Vec<(Target, Bytes)>,
    until: Instant,
) -> Result<()> {
    let link = &member.link;
    let epoch = link.ready(operation, until).await?;
    if messages
        .iter()
        .any(|(target, _)| target.origin.epoch != epoch)
    {
        let known = member.known(operation, epoch).await?;
        let forgotten = |target: &Target| known.forgot(&target.origin, target.sequence);
        if messages.iter().any(|(target, _)| forgotten(target)) {
            let why = "the server was restarted meanwhile, and sends the message again";
            return Err(member.error(ErrorKind::LeaseLost, operation, why));
        }
    }
    let Some((last, payload)) = messages.pop() else {
        return Ok(());
    };
    let client = link.client();
    let since = Instant::now();
    for (target, payload) in messages {
        if client.publish(target.reply, payload).await.is_err() {
            return Err(link.broken(operation));
        }
    }
    // What goes out later than that may take an entry away from whoever has it then.
    let left = until.saturating_duration_since(Instant::now());
    let request = Request::new()
        .payload(payload)
        .timeout(Some(left.min(link.config.response_timeout)));
    let last = last.reply;
    let asked = client.send_request(last.clone(), request);
    tokio::pin!(asked);
    let mut changes = link.changes();
    let answer = loop {
        if let Some(refused) = link.refused(operation, &last, since) {
            return Err(refused);
        }
        tokio::select! {
            answer = &mut asked => break answer,
            changed = changes.changed() => {
                if changed.is_err() || !link.is_up() || link.epoch() != epoch {
                    return Err(link.broken(operation));
                }
            }
        }
    };
    // Some may have gone with an earlier connection.
    if link.epoch() != epoch {
        return Err(link.broken(operation));
    }
    match answer {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => {
            Err(nobody(member, operation).await)
        }
        Err(error) if error.kind() == RequestErrorKind::TimedOut => Err(link.silent(operation)),
        Err(error) => Err(link.broken(operation).because(error)),
    }
}

/// Why nobody takes settlements: the group is gone, or in a cluster nobody leads it at the moment.
async fn nobody(member: &Member, operation: &'static str) -> Error {
    let streams = &member.shared.streams;
    let found = streams.find_group(operation, &member.topic, &member.group);
    match found.await {
        Ok(Some(_)) => {
            let why = "the servers are choosing who leads the group";
            member.error(ErrorKind::Unavailable, operation, why)
        }
        Ok(None) => {
            let why = "the group is gone from the server, and its leases with it";
            member.error(ErrorKind::LeaseLost, operation, why)
        }
        Err(error) => error,
    }
}

/// Begins leases anew at the server.
pub(crate) async fn extend(member: &Member, targets: Vec<Target>, until: Instant) -> Result<()> {
    let payload = Bytes::from_static(PROGRESS);
    let messages = targets.into_iter().map(|r| (r, payload.clone())).collect();
    control(member, "renew", messages, until).await
}

/// Tells the server that entries are done.
pub(crate) async fn acknowledge(
    member: &Member,
    targets: Vec<Target>,
    until: Instant,
) -> Result<()> {
    let payload = Bytes::from_static(ACK);
    let messages = targets.into_iter().map(|r| (r, payload.clone())).collect();
    control(member, "ack", messages, until).await
}

/// When the first of the leases ends.
fn first_deadline<'a>(leases: impl Iterator<Item = &'a Lease>) -> Instant {
    let first = leases.map(|lease| lease.deadline).min();
    first.unwrap_or_else(Instant::now)
}

/// Does something to items, again and again while the server cannot take it, until their leases end.
async fn persist<T, F>(
    member: &Member,
    items: Vec<Item>,
    attempt: impl FnMut(Vec<Item>) -> F,
    done: impl FnMut(Vec<Item>, Result<T>),
) where
    F: Future<Output = Result<T>>,
{
    let deadline = |(_, _, lease): &Item| lease.deadline;
    persist_each(BACKEND, member.lease / 16, items, deadline, attempt, done).await;
}

async fn ack(member: &Arc<Member>, items: Vec<Item>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    let attempt = |items: Vec<Item>| async move {
        let until = first_deadline(items.iter().map(|(_, _, lease)| lease));
        let targets = items.iter().map(|(_, _, lease)| lease.into());
        acknowledge(member, targets.collect(), until).await
    };
    let done = |items: Vec<Item>, outcome: Result<()>| {
        answers.extend(finish(member, items, outcome.map(|()| Settled::Done), true));
    };
    persist(member, items, attempt, done).await;
    answers
}

/// Gives all items of a request the same answer; what is `gone` for good needs no note any more.
pub(crate) fn finish(
    member: &Arc<Member>,
    items: Vec<Item>,
    outcome: Result<Settled>,
    gone: bool,
) -> Vec<Answer> {
    if outcome.is_ok() && gone {
        let current = items
            .iter()
            .filter(|(_, _, lease)| lease.joined == member.joined());
        member.settled(current.map(|(_, _, lease)| lease.sequence));
        let notes: Vec<(u64, u64)> = items
            .iter()
            .filter_map(|(_, _, lease)| Some((lease.sequence, lease.note?)))
            .collect();
        if !notes.is_empty() {
            let of = member.clone();
            member.spawn(async move {
                let noted = &of.shared.notes;
                noted.forget(&of.topic, &of.group, notes).await;
            });
        }
    }
    let mut leases = lock(&member.leases);
    let close = |(at, token, _)| {
        match outcome {
            Ok(_) => leases.done(token),
            Err(_) => leases.leave(token),
        }
        (at, outcome.clone())
    };
    items.into_iter().map(close).collect()
}

/// Notes attempts: of which lease, how many were begun, and whether its holder gave it back.
async fn note_attempts(
    member: &Member,
    items: &[(&Lease, u32, bool)],
    until: Instant,
) -> Vec<Result<Option<u64>>> {
    let incarnation = member.incarnation();
    let notes: Vec<(u64, Attempts, u64)> = items
        .iter()
        .map(|(lease, begun, nacked)| {
            let note = Attempts::new(incarnation, *begun, *nacked);
            (lease.sequence, note, lease.note.unwrap_or(0))
        })
        .collect();
    let limit = Instant::now() + member.link.config.response_timeout;
    let notes_of = &member.shared.notes;
    notes_of
        .attempted(&member.topic, &member.group, &notes, until.min(limit))
        .await
}

/// Begins leases anew.
async fn renew(member: &Arc<Member>, items: Vec<Item>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    let attempt = |items: Vec<Item>| async move {
        let until = first_deadline(items.iter().map(|(_, _, lease)| lease));
        let asked = Instant::now();
        let targets = items.iter().map(|(_, _, lease)| lease.into());
        extend(member, targets.collect(), until).await?;
        Ok(asked)
    };
    let done = |items: Vec<Item>, outcome: Result<Instant>| {
        let mut leases = lock(&member.leases);
        answers.extend(items.into_iter().map(|item| match &outcome {
            Ok(asked) => renewed(member, &mut leases, &item, *asked, |_| ()),
            // It lasts as long as it did.
            Err(error) => (item.0, Err(error.clone())),
        }));
    };
    persist(member, items, attempt, done).await;
    answers
}

/// Notes that attempts begin, and begins their leases anew. What could not be begun is not handed out.
async fn begin(member: &Arc<Member>, items: Vec<Item>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    let attempt = |items: Vec<Item>| async move {
        let until = first_deadline(items.iter().map(|(_, _, lease)| lease));
        let notes: Vec<_> = items
            .iter()
            .map(|(_, _, lease)| (lease, lease.attempt, false))
            .collect();
        let mut noted = note_attempts(member, &notes, until).await;
        // What somebody else has by now is lost by itself; any other failure is that of all.
        let other = |e: &Error| e.kind() != ErrorKind::LeaseLost;
        if let Some(at) = noted.iter().position(|n| n.as_ref().is_err_and(other)) {
            noted.swap_remove(at)?;
        }
        let asked = Instant::now();
        let mine = items.iter().zip(&noted).filter(|(_, n)| n.is_ok());
        let targets = mine.map(|((_, _, lease), _)| lease.into());
        extend(member, targets.collect(), until).await?;
        Ok((asked, noted))
    };
    let done = |items: Vec<Item>, outcome: Result<(Instant, Vec<Result<Option<u64>>>)>| {
        let mut leases = lock(&member.leases);
        let (asked, mut noted) = match outcome {
            Ok((asked, noted)) => (asked, noted.into_iter()),
            Err(error) => (Instant::now(), vec![Err(error); items.len()].into_iter()),
        };
        for item in items {
            answers.push(match noted.next() {
                Some(Err(error)) => {
                    leases.leave(item.1);
                    (item.0, Err(error))
                }
                place => renewed(member, &mut leases, &item, asked, |lease| {
                    lease.begun = lease.attempt;
                    if let Some(Ok(Some(place))) = place {
                        lease.note = Some(place);
                    }
                }),
            });
        }
    };
    persist(member, items, attempt, done).await;
    answers
}

/// Enters that a lease was begun anew by a request sent at `asked`.
fn renewed(
    member: &Member,
    leases: &mut Leases<Lease>,
    (at, token, _): &Item,
    asked: Instant,
    change: impl FnOnce(&mut Lease),
) -> Answer {
    let deadline = asked + member.lease;
    let renewed = leases.renewed(*token, |lease| {
        lease.deadline = lease.deadline.max(deadline);
        change(lease);
    });
    if renewed.is_none() {
        leases.done(*token);
        return (*at, Err(lost(member)));
    }
    (*at, Ok(Settled::Lease(deadline)))
}

/// Nacks (with a delay in nanoseconds) and returns. What has to be remembered of their attempts is
/// noted first: who gets them next must find it.
pub(crate) async fn move_back(
    member: &Arc<Member>,
    items: Vec<(Item, Option<u64>)>,
) -> Vec<Answer> {
    if items.is_empty() {
        return Vec::new();
    }
    let until = first_deadline(items.iter().map(|((_, _, lease), _)| lease));
    // A pull that still waits would take it again.
    if member.closing.is_cancelled() {
        let _ = timeout_at(until, member.left.cancelled()).await;
    }
    let mut notes = Vec::new();
    let mut noting = Vec::new();
    for (index, ((_, _, lease), delay)) in items.iter().enumerate() {
        let note = match delay {
            Some(_) => Some((lease, lease.attempt, true)),
            // It counts as begun unless a note says otherwise.
            None if !lease.again || lease.begun == lease.attempt => {
                Some((lease, lease.attempt - 1, true))
            }
            None => None,
        };
        if let Some(note) = note {
            notes.push(note);
            noting.push(index);
        }
    }
    let mut failed: Vec<Option<Error>> = vec![None; items.len()];
    if !notes.is_empty() {
        let noted = note_attempts(member, &notes, until).await;
        for (index, outcome) in noting.into_iter().zip(noted) {
            if let (Err(error), Some(slot)) = (outcome, failed.get_mut(index)) {
                *slot = Some(error);
            }
        }
    }
    let (mut moving, mut answers) = (Vec::with_capacity(items.len()), Vec::new());
    for ((item, delay), error) in items.into_iter().zip(failed) {
        match error {
            Some(error) => answers.extend(finish(member, vec![item], Err(error), false)),
            None => moving.push((item, delay)),
        }
    }
    let reads = !member.left.is_cancelled();
    let messages = moving.iter().map(|((_, _, lease), delay)| {
        // The member's own pull may still wait and take it at once, again and again.
        let delay = match delay {
            None if reads && lease.again => RETURN_DELAY.as_nanos().try_into().unwrap_or(0),
            _ => delay.unwrap_or(0),
        };
        let payload = match delay {
            0 => Bytes::from_static(NAK),
            nanos => format!("-NAK {{\"delay\": {nanos}}}").into(),
        };
        (lease.into(), payload)
    });
    // What still waits for a connection when the lease ends must not go out later.
    let moved = timeout_at(until, control(member, "nack", messages.collect(), until)).await;
    let moved = moved.unwrap_or_else(|_| Err(member.link.silent("nack")));
    let items = moving.into_iter().map(|(item, _)| item).collect();
    answers.extend(finish(member, items, moved.map(|()| Settled::Done), false));
    answers
}
