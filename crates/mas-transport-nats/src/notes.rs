//! What the library keeps for itself, in a stream of its own: the last note of a subject counts.
//!
//! - How far members have trimmed a topic: what is missing beyond that was removed by others.
//! - How far a group has come: where it is made again should it be lost, and what it is owed.
//! - How often an entry was handed out, which the server's count of what it sent does not tell.
//!
//! Every note names the incarnation of the stream that it speaks of: of a later one it says nothing.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, ErrorCode};
use futures::StreamExt as _;
use futures::stream;
use mas_transport_core::{ErrorKind, Group, Result, Topic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::append::{Answer, Appender, Entry};
use crate::streams::{Incarnation, LOOK_ONCE_MORE, LOOKS, Streams};

/// The version of what notes say.
const VERSION: u32 = 1;
/// Notes that are asked for at a time.
const AT_A_TIME: usize = 64;

/// How far members have trimmed a topic.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Trimmed {
    version: u32,
    incarnation: Incarnation,
    /// Up to and with this place.
    pub(crate) to: u64,
}

/// How far a group has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    version: u32,
    pub(crate) incarnation: Incarnation,
    /// All up to and with this place is settled, or was told as lost.
    pub(crate) floor: u64,
}

impl Progress {
    pub(crate) fn new(incarnation: Incarnation, floor: u64) -> Self {
        Self {
            version: VERSION,
            incarnation,
            floor,
        }
    }
}

/// How often an entry was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempts {
    version: u32,
    incarnation: Incarnation,
    /// Attempts that were begun.
    pub(crate) begun: u32,
    /// The last holder gave it back, rather than die with it.
    pub(crate) nacked: bool,
}

impl Attempts {
    pub(crate) fn new(incarnation: Incarnation, begun: u32, nacked: bool) -> Self {
        Self {
            version: VERSION,
            incarnation,
            begun,
            nacked,
        }
    }
}

/// The notes of a transport.
#[derive(Debug)]
pub(crate) struct Notes {
    pub(crate) streams: Arc<Streams>,
    pub(crate) appender: Arc<Appender>,
}

/// A note and where it stands.
type Found<T> = Option<(u64, T)>;

impl Notes {
    pub(crate) async fn trimmed(&self, topic: &Topic, of: Incarnation) -> Result<u64> {
        let note: Found<Trimmed> = self.read(self.streams.keys.trimmed(topic)).await?;
        Ok(note
            .filter(|(_, n)| n.incarnation == of)
            .map_or(0, |(_, n)| n.to))
    }

    /// Removes all entries up to a place, which every group has settled, or that somebody asked to be removed;
    /// how many there were. That is noted first: nobody is to take it for a loss.
    pub(crate) async fn remove(
        &self,
        operation: &'static str,
        topic: &Topic,
        of: Incarnation,
        to: u64,
    ) -> Result<u64> {
        let noted = self.trimming(topic, of, to).await;
        // A full store takes no note before there is room. Whoever looks in between may be mistaken.
        let full = matches!(&noted, Err(error) if error.kind() == ErrorKind::Full);
        if !full {
            noted?;
        }
        let removed = self.streams.remove(operation, topic, of, to).await?;
        if full {
            self.trimming(topic, of, to).await?;
        }
        Ok(removed)
    }

    /// Notes that a topic is about to be trimmed.
    async fn trimming(&self, topic: &Topic, of: Incarnation, to: u64) -> Result<()> {
        let note = Trimmed {
            version: VERSION,
            incarnation: of,
            to,
        };
        self.write(self.streams.keys.trimmed(topic), &note, None)
            .await
            .map(drop)
    }

    pub(crate) async fn progress(&self, topic: &Topic, group: &Group) -> Result<Found<Progress>> {
        self.read(self.streams.keys.group(topic, group)).await
    }

    /// Notes how far a group has come, unless somebody has since the note at `last` (0 for none).
    /// Where it stands; `None` when somebody was faster.
    pub(crate) async fn advance(
        &self,
        topic: &Topic,
        group: &Group,
        progress: Progress,
        last: u64,
    ) -> Result<Option<u64>> {
        let subject = self.streams.keys.group(topic, group);
        self.write(subject, &progress, Some(last)).await
    }

    /// How often entries were handed out, as far as there are notes.
    pub(crate) async fn attempts(
        &self,
        topic: &Topic,
        group: &Group,
        of: Incarnation,
        sequences: Vec<u64>,
    ) -> Result<Vec<Found<Attempts>>> {
        let ask = |sequence| async move {
            let subject = self.streams.keys.attempts(topic, group, sequence);
            let note: Found<Attempts> = self.read(subject).await?;
            Ok(note.filter(|(_, note)| note.incarnation == of))
        };
        let asked = stream::iter(sequences).map(ask).buffered(AT_A_TIME);
        let notes: Vec<Result<Found<Attempts>>> = asked.collect().await;
        notes.into_iter().collect()
    }

    /// Notes how often entries were handed out, each unless somebody has since the note that is known (0
    /// for none). Where each note stands; `None` where a server that is full took none, which makes an
    /// attempt count for less than it is.
    ///
    /// # Errors
    /// `LeaseLost` where somebody else has: the entry is theirs.
    pub(crate) async fn attempted(
        &self,
        topic: &Topic,
        group: &Group,
        notes: &[(u64, Attempts, u64)],
        deadline: Instant,
    ) -> Vec<Result<Option<u64>>> {
        let entries = notes.iter().map(|(sequence, note, last)| {
            let subject = self.streams.keys.attempts(topic, group, *sequence);
            self.entry(subject, note, Some(*last))
        });
        let answers = self.append(entries.collect(), deadline).await;
        let mut places = Vec::with_capacity(notes.len());
        for ((sequence, note, _), answer) in notes.iter().zip(answers) {
            places.push(match answer {
                Answer::Refused(told) if is_outrun(&told) => {
                    self.noted_otherwise(topic, group, *sequence, note).await
                }
                answer => match answer.into_result(&self.streams.link, "settle") {
                    Ok((place, _)) => Ok(Some(place)),
                    Err(error) if error.kind() == ErrorKind::Full => {
                        tracing::debug!(%error, "an attempt is not noted");
                        Ok(None)
                    }
                    Err(error) => Err(error),
                },
            });
        }
        places
    }

    /// Notes an attempt although there is another note than the one that was known. It may be this member's
    /// own, stored when the answer was lost; one of an earlier stream or group; or it was removed.
    async fn noted_otherwise(
        &self,
        topic: &Topic,
        group: &Group,
        sequence: u64,
        note: &Attempts,
    ) -> Result<Option<u64>> {
        let subject = self.streams.keys.attempts(topic, group, sequence);
        let found = self.read::<Attempts>(subject.clone()).await?;
        let stands = match found {
            Some((place, found)) if found == *note => return Ok(Some(place)),
            // Whoever gets an entry later begins a later attempt of it.
            Some((place, found))
                if found.incarnation != note.incarnation || found.begun <= note.begun =>
            {
                Some(place)
            }
            Some(_) => None,
            None => Some(0),
        };
        if let Some(place) = stands
            && let Some(at) = self.write(subject, note, Some(place)).await?
        {
            return Ok(Some(at));
        }
        let why = "another member of the group has had the message since";
        Err(crate::error::error(ErrorKind::LeaseLost, "settle", why))
    }

    /// Where the last note of all stands.
    pub(crate) async fn end(&self) -> Result<u64> {
        let name = self.streams.keys.notes_stream();
        let info = self.streams.stream("trim", &name).await?;
        Ok(info.map_or(0, |info| info.state.last_sequence))
    }

    /// Removes what a group that holds nothing was noted to have attempted, up to where the last note
    /// stood before that was seen. Members remove their notes by themselves; those of dead ones stay.
    pub(crate) async fn tidy(&self, topic: &Topic, group: &Group, end: u64) -> Result<()> {
        let keys = &self.streams.keys;
        let subject = format!("STREAM.PURGE.{}", keys.notes_stream());
        let request = json!({ "filter": keys.all_attempts(topic, group), "seq": end + 1 });
        let link = &self.streams.link;
        let purged = link.must::<_, serde_json::Value>("trim", subject, &request);
        purged.await.map(drop)
    }

    /// Removes notes of entries that are settled, each by where its entry and where it stands. What is left of
    /// it does no harm.
    pub(crate) async fn forget(&self, topic: &Topic, group: &Group, notes: Vec<(u64, u64)>) {
        let remove = |(sequence, place)| async move {
            let subject = self.streams.keys.attempts(topic, group, sequence);
            if let Err(error) = self.streams.remove_note(subject, place).await {
                tracing::debug!(%error, "a note that nobody needs is left");
            }
        };
        stream::iter(notes)
            .map(remove)
            .buffer_unordered(AT_A_TIME)
            .for_each(|()| async {})
            .await;
    }

    fn entry<T: Serialize>(&self, subject: String, note: &T, last: Option<u64>) -> Entry {
        let headers = last.map(|last| {
            let mut headers = HeaderMap::new();
            headers.insert(
                "Nats-Expected-Last-Subject-Sequence",
                last.to_string().as_str(),
            );
            headers
        });
        Entry {
            subject: subject.into(),
            headers,
            // Numbers and switches: there is nothing that JSON cannot say.
            payload: serde_json::to_vec(note).unwrap_or_default().into(),
        }
    }

    /// Appends notes; makes their stream first where it is missing.
    async fn append(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Answer> {
        if let Err(error) = self.streams.reach_notes("settle").await {
            tracing::debug!(%error, "there is nowhere to keep notes");
        }
        let answers = self
            .appender
            .send(entries, deadline)
            .await
            .answers(deadline)
            .await;
        if answers.iter().any(|a| matches!(a, Answer::Nobody)) {
            self.streams.forget_notes();
        }
        answers
    }

    async fn write<T: Serialize>(
        &self,
        subject: String,
        note: &T,
        last: Option<u64>,
    ) -> Result<Option<u64>> {
        let link = &self.streams.link;
        let deadline = Instant::now() + link.config.response_timeout;
        let mut answers = Vec::new();
        // The second time its stream has been made again, unless somebody else is still at it.
        for attempt in 0..LOOKS {
            if attempt > 1 {
                sleep(LOOK_ONCE_MORE).await;
            }
            let entry = self.entry(subject.clone(), note, last);
            answers = self.append(vec![entry], deadline).await;
            if !matches!(answers.first(), Some(Answer::Nobody)) {
                break;
            }
        }
        match answers.pop() {
            Some(Answer::Refused(told)) if is_outrun(&told) => Ok(None),
            Some(answer) => Ok(Some(answer.into_result(link, "note")?.0)),
            None => Err(link.silent("note")),
        }
    }

    async fn read<T: DeserializeOwned>(&self, subject: String) -> Result<Found<T>> {
        let found = self.streams.last_note("note", &subject).await?;
        Ok(
            found
                .and_then(|(place, payload)| Some((place, serde_json::from_slice(&payload).ok()?))),
        )
    }
}

/// Whether there is a newer note than the one that was to be replaced.
fn is_outrun(told: &jetstream::Error) -> bool {
    let code = told.error_code();
    code == ErrorCode::STREAM_WRONG_LAST_SEQUENCE
        || code == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
}
