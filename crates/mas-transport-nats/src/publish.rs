//! Publishing: each message is a publish with a reply subject of its own, and has its own outcome.

use std::sync::Arc;

use mas_transport_core::{
    Confirm, Error, ErrorKind, Message, RECORD_RESERVE, Receipt, Result, Topic,
};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use crate::BACKEND;
use crate::append::{Answer, Entry, late};
use crate::decode;
use crate::lease::position;
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

/// A batch on its way.
struct Batch {
    shared: Arc<Shared>,
    messages: Vec<Message>,
    /// For each message, what is already known.
    outcomes: Vec<Option<Result<Receipt>>>,
    deadline: Instant,
}

impl Batch {
    async fn run(mut self, line: OwnedMutexGuard<()>) -> Vec<Result<Receipt>> {
        let mut line = Some(line);
        // Twice, should somebody have deleted a stream.
        for attempt in 0..2 {
            let open = self.prepare().await;
            if open.is_empty() {
                break;
            }
            let most = self.shared.link.config.max_in_flight;
            let mut sent = Vec::new();
            for page in open.chunks(most) {
                let places: Vec<usize> = page.iter().map(|(at, _)| *at).collect();
                let count = u32::try_from(page.len()).unwrap_or(u32::MAX);
                let room = self.shared.room.clone().acquire_many_owned(count);
                let room = match timeout_at(self.deadline, room).await {
                    Ok(Ok(room)) => room,
                    _ => {
                        self.fill(&places, |_| Err(late("publish")));
                        continue;
                    }
                };
                let entries = page.iter().filter_map(|(at, topic)| self.entry(*at, topic));
                let answers = self
                    .shared
                    .appender
                    .send(entries.collect(), self.deadline)
                    .await;
                sent.push((places, answers, room));
            }
            drop(line.take());
            let mut gone = Vec::new();
            for (places, answers, room) in sent {
                let answers = answers.answers(self.deadline).await;
                drop(room);
                for (at, answer) in places.into_iter().zip(answers) {
                    if attempt == 0 && matches!(answer, Answer::Nobody) {
                        gone.push(at);
                    } else {
                        let outcome = self.outcome(answer);
                        self.set(at, outcome);
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
            let again = self.shared.line.clone().lock_owned();
            line = timeout_at(self.deadline, again).await.ok();
        }
        let each = |o: Option<_>| o.unwrap_or_else(|| Err(late("publish")));
        self.outcomes.into_iter().map(each).collect()
    }

    /// Sees to it that there is a connection, and streams for what is not decided yet: which messages
    /// those are, and the subject of each.
    async fn prepare(&mut self) -> Vec<(usize, String)> {
        let shared = self.shared.clone();
        let mut open = Vec::with_capacity(self.messages.len());
        let connected = shared.link.ready("publish", self.deadline).await;
        let mut last: Option<(Topic, Result<String>)> = None;
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
                        Ok(reached) => reached.map(|()| shared.streams.keys.subject(&topic)),
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
            let Some(message) = self.messages.get(*at) else {
                return false;
            };
            // Far below the limit there is nothing to count.
            if message.size() * 3 + RECORD_RESERVE < limit {
                return true;
            }
            let (headers, payload) = decode::encode(message);
            let bytes = decode::wire_size(&headers, &payload);
            if bytes <= limit {
                return true;
            }
            let why = "with its headers encoded the message is larger than the server takes \
                       (max_payload); send a reference to the data instead";
            let error = Error::new(ErrorKind::TooLarge, "publish", why)
                .on(BACKEND)
                .with("bytes", bytes)
                .with("limit", limit);
            if let Some(slot) = self.outcomes.get_mut(*at) {
                *slot = Some(Err(error));
            }
            false
        });
        open
    }

    fn undecided(&self, at: usize) -> Option<Topic> {
        match self.outcomes.get(at) {
            Some(None) => self.messages.get(at).map(|m| m.topic().clone()),
            _ => None,
        }
    }

    fn entry(&self, at: usize, subject: &str) -> Option<Entry> {
        let (headers, payload) = decode::encode(self.messages.get(at)?);
        Some(Entry {
            subject: subject.into(),
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

    fn fill(&mut self, places: &[usize], outcome: impl Fn(usize) -> Result<Receipt>) {
        for at in places {
            self.set(*at, outcome(*at));
        }
    }
}
