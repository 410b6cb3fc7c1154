//! Publishing: each message is a publish with a reply subject of its own, and has its own outcome.

use std::sync::Arc;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use mas_transport_core::{
    Confirm, Error, ErrorKind, Message, RECORD_RESERVE, Receipt, Result, Topic,
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use crate::BACKEND;
use crate::append::{Answer, Entry, Sent, late};
use crate::decode::{self, MOST_HEADERS};
use crate::lease::position;
use crate::streams::{LOOK_ONCE_MORE, LOOKS};
use crate::transport::Shared;

/// Publishes a batch and returns when its place in line is fixed.
pub(crate) async fn publish(
    shared: &Arc<Shared>,
    messages: Vec<Message>,
    deadline: Instant,
) -> Confirm {
    let count = messages.len();
    if shared.is_closed() {
        return ready(vec![Err(Error::closed("publish").on(BACKEND)); count]);
    }
    let outcomes: Vec<Option<Result<Receipt>>> = messages
        .iter()
        .map(|message| shared.info.check_message(message).err().map(Err))
        .collect();
    // Before the line, in which one batch stands behind the other.
    let encoded = messages
        .iter()
        .zip(&outcomes)
        .map(|(message, outcome)| outcome.is_none().then(|| decode::encode(message)))
        .collect();
    let all_late = |outcomes: Vec<Option<Result<Receipt>>>| {
        let each = |o: Option<_>| o.unwrap_or_else(|| Err(late("publish")));
        ready(outcomes.into_iter().map(each).collect())
    };
    let line = timeout_at(deadline, shared.line.clone().lock_owned()).await;
    let Ok(line) = line
        .map_err(drop)
        .and_then(|line| match Instant::now() < deadline {
            true => Ok(line),
            false => Err(()),
        })
    else {
        return all_late(outcomes);
    };
    if shared.is_closed() {
        return ready(vec![Err(Error::closed("publish").on(BACKEND)); count]);
    }
    let batch = Batch {
        shared: shared.clone(),
        messages,
        encoded,
        outcomes,
        deadline,
    };
    // A task of its own: whoever gives up waiting must not hold up those behind.
    let task = shared.tasks.spawn(batch.run(line));
    Box::pin(async move {
        // It neither panics nor is it aborted; a runtime that shuts down drops it.
        task.await.unwrap_or_default()
    })
}

fn ready(outcomes: Vec<Result<Receipt>>) -> Confirm {
    Box::pin(std::future::ready(outcomes))
}

/// What is kept of the room for headers for the record of a dead letter, which is cut to what is left.
const RECORD: usize = 8 << 10;

/// Why a message is larger than the server takes it, once encoded.
fn too_large(message: &Message, headers: &HeaderMap, limit: usize) -> Option<Error> {
    let most_headers = MOST_HEADERS - RECORD;
    let head = message.size() - message.payload().len();
    // Far below the limits there is nothing to count.
    if message.size() * 3 + RECORD_RESERVE < limit && head * 3 + RECORD_RESERVE / 8 < most_headers {
        return None;
    }
    let head = decode::wire_size(headers);
    let (why, bytes, limit) = if head > most_headers {
        let why = "the headers and attributes are too large, encoded: the server takes 64 KiB, of which 8 KiB \
                   are kept for the record of a dead letter; put the data into the payload";
        (why, head, most_headers)
    } else {
        let why = "with its headers encoded the message is larger than the server takes \
                   (max_payload); send a reference to the data instead";
        (why, head + message.payload().len(), limit)
    };
    (bytes > limit).then(|| {
        Error::new(ErrorKind::TooLarge, "publish", why)
            .on(BACKEND)
            .with("bytes", bytes)
            .with("limit", limit)
    })
}

/// A batch on its way.
struct Batch {
    shared: Arc<Shared>,
    messages: Vec<Message>,
    /// How each goes out, until it does.
    encoded: Vec<Option<(HeaderMap, Bytes)>>,
    /// For each message, what is already known.
    outcomes: Vec<Option<Result<Receipt>>>,
    deadline: Instant,
}

impl Batch {
    async fn run(mut self, line: OwnedMutexGuard<()>) -> Vec<Result<Receipt>> {
        let mut line = Some(line);
        // Again, should somebody have deleted a stream, or be just making it.
        for attempt in 0..LOOKS {
            let open = self.prepare().await;
            if open.is_empty() {
                break;
            }
            let most = self.shared.link.config.max_in_flight;
            let mut pages = open.chunks(most).peekable();
            let mut gone = Vec::new();
            while let Some(page) = pages.next() {
                let sent = self.send(page).await;
                // Room for the next one comes with the answers to this one.
                if pages.peek().is_none() {
                    drop(line.take());
                }
                if let Some((answers, room)) = sent {
                    let answers = answers.answers(self.deadline).await;
                    drop(room);
                    for ((at, _), answer) in page.iter().zip(answers) {
                        if attempt + 1 < LOOKS && matches!(answer, Answer::Nobody) {
                            gone.push(*at);
                        } else {
                            let outcome = self.outcome(answer);
                            self.set(*at, outcome);
                        }
                    }
                }
            }
            if gone.is_empty() {
                break;
            }
            for at in gone {
                if let Some(message) = self.messages.get(at) {
                    self.shared.streams.forget(message.topic());
                }
            }
            sleep(LOOK_ONCE_MORE).await;
            let again = self.shared.line.clone().lock_owned();
            line = timeout_at(self.deadline, again).await.ok();
        }
        let each = |o: Option<_>| o.unwrap_or_else(|| Err(late("publish")));
        self.outcomes.into_iter().map(each).collect()
    }

    /// Sends messages, once there is room for them.
    async fn send(&mut self, page: &[(usize, Subject)]) -> Option<(Sent, OwnedSemaphorePermit)> {
        let count = u32::try_from(page.len()).unwrap_or(u32::MAX);
        let room = self.shared.room.clone().acquire_many_owned(count);
        let Ok(Ok(room)) = timeout_at(self.deadline, room).await else {
            page.iter()
                .for_each(|(at, _)| self.set(*at, Err(late("publish"))));
            return None;
        };
        let entries = page
            .iter()
            .filter_map(|(at, subject)| self.entry(*at, subject))
            .collect();
        let sent = self.shared.appender.send(entries, self.deadline).await;
        Some((sent, room))
    }

    /// Sees to it that there is a connection, and streams for what is not decided yet: which messages
    /// those are, and the subject of each.
    async fn prepare(&mut self) -> Vec<(usize, Subject)> {
        let shared = self.shared.clone();
        let mut open = Vec::with_capacity(self.messages.len());
        let connected = shared.link.ready("publish", self.deadline).await;
        let mut last: Option<(Topic, Result<Subject>)> = None;
        for at in 0..self.messages.len() {
            let Some(topic) = self.undecided(at) else {
                continue;
            };
            if let Err(error) = &connected {
                self.set(at, Err(error.clone()));
                continue;
            }
            let subject = match &last {
                Some((known, subject)) if *known == topic => subject.clone(),
                _ => {
                    let reach = shared.streams.reach("publish", &topic);
                    let reached = match timeout_at(self.deadline, reach).await {
                        Ok(reached) => reached.map(|()| shared.streams.keys.subject(&topic).into()),
                        Err(_) => Err(late("publish")),
                    };
                    // Making a stream stores no message.
                    let reached = reached.map_err(|error| {
                        let why = "the topic could not be reached or made";
                        Error::new(error.kind(), "publish", why)
                            .on(BACKEND)
                            .because(error)
                    });
                    last.insert((topic, reached)).1.clone()
                }
            };
            match subject {
                Ok(subject) => open.push((at, subject)),
                Err(error) => self.set(at, Err(error)),
            }
        }
        // Encoded sizes differ from what was checked.
        let limit = shared.link.client().max_payload();
        open.retain(|(at, _)| {
            let (Some(message), Some(Some((headers, _)))) =
                (self.messages.get(*at), self.encoded.get(*at))
            else {
                return true;
            };
            let told = too_large(message, headers, limit);
            let told = told.map(|e| e.with("topic", message.topic()));
            let fits = told.is_none();
            if let (Some(error), Some(slot)) = (told, self.outcomes.get_mut(*at)) {
                *slot = Some(Err(error));
            }
            fits
        });
        open
    }

    fn undecided(&self, at: usize) -> Option<Topic> {
        match self.outcomes.get(at) {
            Some(None) => self.messages.get(at).map(|m| m.topic().clone()),
            _ => None,
        }
    }

    fn entry(&mut self, at: usize, subject: &Subject) -> Option<Entry> {
        let encoded = self.encoded.get_mut(at).and_then(Option::take);
        // The second time it has gone out already.
        let (headers, payload) = match encoded {
            Some(encoded) => encoded,
            None => decode::encode(self.messages.get(at)?),
        };
        Some(Entry {
            subject: subject.clone(),
            headers: Some(headers),
            payload,
        })
    }

    fn outcome(&self, answer: Answer) -> Result<Receipt> {
        let stored = answer.into_result(&self.shared.link, "publish");
        stored.map(|(sequence, duplicate)| Receipt {
            position: position(sequence),
            durability: self.shared.info.capabilities.durability,
            duplicate,
        })
    }

    fn set(&mut self, at: usize, outcome: Result<Receipt>) {
        if let Some(slot) = self.outcomes.get_mut(at) {
            *slot = Some(outcome);
        }
    }
}
