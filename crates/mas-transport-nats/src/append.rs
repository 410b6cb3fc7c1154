//! Appending to streams: many at a time, each with an answer of its own.
//!
//! Every entry is published with a reply subject of its own below one inbox, `<inbox>.<batch>.<index>`;
//! one task sorts the answers in. An answer that has not come when the connection breaks never will.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{HeaderMap, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::stream::ReadyChunks;
use futures::{FutureExt as _, StreamExt as _};
use mas_transport_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::connection::{Link, lock};
use crate::error::{answered, error};
use crate::refusals::{Refusal, Refusals};

/// Most answers that are sorted in at a time.
const AT_ONCE: usize = 256;
/// Without a subscription, how often it is tried to have one.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

/// What is to be appended.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) subject: Subject,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
}

/// What became of an entry.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It stands at this place of its stream.
    Stored { sequence: u64, duplicate: bool },
    /// The server refused it.
    Refused(jetstream::Error),
    /// There is no stream for its subject.
    Nobody,
    /// The user may not do this.
    Denied(Refusal),
    /// The answer has a form that is not known.
    Strange,
    /// It was not given to the client in time.
    Unsent,
    /// The connection broke, and with it went the answer.
    Broken,
    /// No answer came in time.
    Silent,
}

impl Answer {
    /// As the contract has it: the place in the stream, and whether it stood there before.
    pub(crate) fn into_result(self, link: &Link, operation: &'static str) -> Result<(u64, bool)> {
        match self {
            Self::Stored {
                sequence,
                duplicate,
            } => Ok((sequence, duplicate)),
            Self::Refused(told) => Err(answered(operation, &told)),
            Self::Nobody => Err(error(
                ErrorKind::Unavailable,
                operation,
                "no stream takes this: JetStream is not ready, or somebody deleted the stream",
            )),
            Self::Strange => Err(error(
                ErrorKind::Broker,
                operation,
                "the server's answer has a form that is not known",
            )
            .maybe_stored()),
            Self::Denied(refusal) => return Err(link.deny(operation, refusal)),
            Self::Unsent => Err(late(operation)),
            Self::Broken => return Err(link.broken(operation)),
            Self::Silent => return Err(link.silent(operation)),
        }
        .map_err(|e: Error| e.with("address", link.config.address()))
    }
}

/// It was not sent in time.
pub(crate) fn late(operation: &'static str) -> Error {
    error(ErrorKind::Timeout, operation, "it was not sent in time")
}

#[derive(Debug)]
struct Batch {
    answers: Vec<Option<Answer>>,
    /// From which place on they went to which subject.
    subjects: Vec<(usize, Subject)>,
    since: Instant,
    /// Over which connection it was sent.
    epoch: u64,
    /// How many are missing.
    left: usize,
    done: oneshot::Sender<Vec<Option<Answer>>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    batches: HashMap<u64, Batch>,
    /// The task that sorts has ended.
    closed: bool,
}

/// Appends, and sorts the answers.
#[derive(Debug)]
pub(crate) struct Appender {
    link: Arc<Link>,
    inbox: String,
    state: Arc<Mutex<State>>,
}

/// Entries that the client has.
#[derive(Debug)]
pub(crate) struct Sent {
    number: u64,
    answers: oneshot::Receiver<Vec<Option<Answer>>>,
    /// How many were given to the client.
    sent: usize,
    count: usize,
    state: Arc<Mutex<State>>,
}

impl Appender {
    /// Listens for answers; the second part is to be run as a task until `closing`.
    pub(crate) async fn new(
        link: Arc<Link>,
        closing: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let inbox = link.client().new_inbox();
        let answers = listen(&link, &inbox).await?;
        let state = Arc::new(Mutex::new(State::default()));
        let sorting = sort(link.clone(), answers, inbox.clone(), state.clone(), closing);
        let appender = Self { link, inbox, state };
        Ok((appender, sorting))
    }

    /// Gives entries to the client, in their order. What it has not taken by `deadline` is not
    /// sent. Dropping the future leaves a first part of them sent.
    pub(crate) async fn send(&self, entries: Vec<Entry>, deadline: Instant) -> Sent {
        let count = entries.len();
        let (done, answers) = oneshot::channel();
        let number = {
            let mut state = lock(&self.state);
            state.next += 1;
            let number = state.next;
            if !state.closed {
                let batch = Batch {
                    answers: std::iter::repeat_with(|| None).take(count).collect(),
                    subjects: subjects(&entries),
                    since: Instant::now(),
                    epoch: self.link.epoch(),
                    left: count,
                    done,
                };
                state.batches.insert(number, batch);
            }
            number
        };
        let mut sent = Sent {
            number,
            answers,
            sent: 0,
            count,
            state: self.state.clone(),
        };
        let client = self.link.client();
        let sending = async {
            for (index, entry) in entries.into_iter().enumerate() {
                let reply = Subject::from(format!("{}.{number}.{index}", self.inbox));
                let Entry {
                    subject,
                    headers,
                    payload,
                } = entry;
                let given = match headers {
                    Some(headers) => {
                        let publish =
                            client.publish_with_reply_and_headers(subject, reply, headers, payload);
                        publish.await
                    }
                    None => client.publish_with_reply(subject, reply, payload).await,
                };
                if let Err(error) = given {
                    tracing::debug!(%error, "the client refused a message");
                    return;
                }
                sent.sent += 1;
            }
        };
        let _ = timeout_at(deadline, sending).await;
        sent
    }
}

impl Sent {
    /// The answers, one per entry, in order, by `deadline`.
    pub(crate) async fn answers(mut self, deadline: Instant) -> Vec<Answer> {
        let (sent, count) = (self.sent, self.count);
        let answers = if sent < count {
            // They will never be complete.
            let answered = async {
                let asked = || {
                    let state = lock(&self.state);
                    state
                        .batches
                        .get(&self.number)
                        .is_none_or(|b| b.left <= count - sent)
                };
                while !asked() {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = timeout_at(deadline, answered).await;
            None
        } else {
            match timeout_at(deadline, &mut self.answers).await {
                Ok(answers) => Some(answers.unwrap_or_default()),
                Err(_) => None,
            }
        };
        let broken = answers.is_some();
        let known = answers.or_else(|| {
            let batch = lock(&self.state).batches.remove(&self.number);
            // Or it was completed at this moment.
            batch
                .map(|b| b.answers)
                .or_else(|| self.answers.try_recv().ok())
        });
        let mut known = known.unwrap_or_default().into_iter();
        (0..count)
            .map(|index| match known.next().flatten() {
                Some(answer) => answer,
                None if index >= sent => Answer::Unsent,
                None if broken => Answer::Broken,
                None => Answer::Silent,
            })
            .collect()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        lock(&self.state).batches.remove(&self.number);
    }
}

type Answers = ReadyChunks<Subscriber>;

async fn listen(link: &Link, inbox: &str) -> Result<Answers> {
    let subscriber = link.client().subscribe(format!("{inbox}.*.*")).await;
    let subscriber = subscriber.map_err(|e| {
        error(ErrorKind::Unavailable, "connect", "the connection is gone").because(e)
    })?;
    Ok(subscriber.ready_chunks(AT_ONCE))
}

/// Sorts answers in until `closing`.
async fn sort(
    link: Arc<Link>,
    mut answers: Answers,
    inbox: String,
    state: Arc<Mutex<State>>,
    closing: CancellationToken,
) {
    let prefix = inbox.len() + 1;
    let mut changes = link.changes();
    let mut epoch = link.epoch();
    // The client has given up, and with it went the subscription.
    let mut deaf = false;
    loop {
        tokio::select! {
            chunk = answers.next(), if !deaf => match chunk {
                Some(chunk) => enter(&state, prefix, chunk),
                None => deaf = true,
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    break;
                }
                deny(&mut lock(&state), link.refusals());
                if link.is_up() && link.epoch() == epoch {
                    continue;
                }
                epoch = link.epoch();
                // What came before the connection broke counts.
                while let Some(chunk) = answers.next().now_or_never() {
                    match chunk {
                        Some(chunk) => enter(&state, prefix, chunk),
                        None => {
                            deaf = true;
                            break;
                        }
                    }
                }
                // What was sent over the new connection is still answered.
                let broken = if link.is_up() { epoch } else { u64::MAX };
                give_up(&mut lock(&state), broken);
            }
            // The event of the new client may have come before the end of the old one was seen.
            () = sleep(LISTEN_AGAIN), if deaf => {}
            () = closing.cancelled() => break,
        }
        if deaf
            && link.is_up()
            && let Ok(again) = listen(&link, &inbox).await
        {
            answers = again;
            deaf = false;
        }
    }
    let mut state = lock(&state);
    state.closed = true;
    give_up(&mut state, u64::MAX);
}

/// What was sent over connections before this one and is missing will not come.
fn give_up(state: &mut State, epoch: u64) {
    let broken = state.batches.extract_if(|_, batch| batch.epoch < epoch);
    for (_, batch) in broken {
        let _ = batch.done.send(batch.answers);
    }
}

/// What the server refused will not be answered.
fn deny(state: &mut State, refusals: &Refusals) {
    let denied = state.batches.extract_if(|_, batch| {
        let ends = batch.subjects.iter().skip(1).map(|(at, _)| *at);
        let ends: Vec<usize> = ends.chain([batch.answers.len()]).collect();
        for ((begin, subject), end) in batch.subjects.iter().zip(ends) {
            if refusals.find(subject, batch.since).is_none() {
                continue;
            }
            let slots = batch.answers.get_mut(*begin..end).unwrap_or_default();
            for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
                *slot = refusals.find(subject, batch.since).map(Answer::Denied);
                batch.left -= usize::from(slot.is_some());
            }
        }
        batch.left == 0
    });
    for (_, batch) in denied {
        let _ = batch.done.send(batch.answers);
    }
}

/// The subjects of entries, each with the first place of those in a row that go there.
fn subjects(entries: &[Entry]) -> Vec<(usize, Subject)> {
    let mut subjects: Vec<(usize, Subject)> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        if subjects
            .last()
            .is_none_or(|(_, last)| *last != entry.subject)
        {
            subjects.push((at, entry.subject.clone()));
        }
    }
    subjects
}

fn enter(state: &Mutex<State>, prefix: usize, chunk: Vec<async_nats::Message>) {
    let read: Vec<_> = chunk
        .into_iter()
        .filter_map(|message| {
            let place = message.subject.get(prefix..)?;
            let (batch, index) = place.split_once('.')?;
            let place = (batch.parse::<u64>().ok()?, index.parse::<usize>().ok()?);
            Some((place, read(&message)))
        })
        .collect();
    let mut state = lock(state);
    for ((number, index), answer) in read {
        let Some(batch) = state.batches.get_mut(&number) else {
            continue;
        };
        let Some(slot) = batch.answers.get_mut(index) else {
            continue;
        };
        if slot.replace(answer).is_none() {
            batch.left -= 1;
        }
        if batch.left == 0
            && let Some(batch) = state.batches.remove(&number)
        {
            let _ = batch.done.send(batch.answers);
        }
    }
}

#[derive(Deserialize)]
struct Wire {
    error: Option<jetstream::Error>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
}

fn read(message: &async_nats::Message) -> Answer {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Answer::Nobody;
    }
    match serde_json::from_slice::<Wire>(&message.payload) {
        Ok(Wire {
            error: Some(error), ..
        }) => Answer::Refused(error),
        Ok(Wire {
            seq: Some(sequence),
            duplicate,
            ..
        }) => Answer::Stored {
            sequence,
            duplicate,
        },
        _ => Answer::Strange,
    }
}
