//! Single entries: read and removed, in ways that old servers survive.
//!
//! A server before 2.10 (by the source of 2.9.10) registers a stream before it has a store. Whoever asks for an
//! entry of such a stream, or deletes one, makes that server die (`jsMsgGetRequest`, `deleteMsg`: a nil
//! pointer). So there
//!
//! - notes are read with `DIRECT.GET`, which a stream listens to only once it has its store (`setLeader`
//!   comes after `setupStore`), and removed by a purge, which looks for the store. That is certain, also
//!   while somebody deletes the stream and makes it again. It needs a stream of one replica: of several each
//!   answers, also one that does not have the newest note yet.
//! - entries of topics, whose headers only `STREAM.MSG.GET` keeps away from the client, are read and deleted
//!   after `STREAM.INFO` has told when the stream was made, which is entered with the store. What is left to
//!   chance is a stream that is deleted and being made again between these two requests.

use async_nats::jetstream::ErrorCode;
use async_nats::{Message, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt as _, TryStreamExt as _};
use mas_transport_core::backend::Wait;
use mas_transport_core::{ErrorKind, Result, Topic};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::error::{answered, error, unanswered};
use crate::streams::{Incarnation, Streams, incarnation};

/// Entries that are deleted at a time, where that is done one by one.
const AT_A_TIME: u64 = 64;
const STRANGE: &str = "the server's answer has a form that is not known";

/// An entry as the server stores it.
#[derive(Debug)]
pub(crate) struct Raw {
    /// Its header block, `NATS/1.0` included; empty where it has none.
    pub(crate) headers: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

#[derive(Deserialize)]
struct Got {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Streams {
    /// The last entry of a subject of the notes, and where it stands.
    pub(crate) async fn last_note(
        &self,
        operation: &'static str,
        subject: &str,
    ) -> Result<Option<(u64, Vec<u8>)>> {
        let name = self.keys.notes_stream();
        let request = json!({ "last_by_subj": subject });
        if self.survives() {
            let got = self.get(operation, &name, &request).await?;
            return Ok(got.map(|(place, raw)| (place, raw.payload)));
        }
        let deadline = Instant::now() + self.link.config.response_timeout;
        let mut wait = Wait::new();
        loop {
            if !self.is_direct() {
                let Some(info) = self.stream(operation, &name).await? else {
                    return Ok(None);
                };
                if !info.config.allow_direct {
                    let got = self.get(operation, &name, &request).await?;
                    return Ok(got.map(|(place, raw)| (place, raw.payload)));
                }
                self.set_direct(true);
            }
            // One that is gone, or is being made and does not listen yet, says nothing at all.
            let (api, body) = (format!("DIRECT.GET.{name}"), request.to_string());
            let asked = self.link.request(operation, &api, body.into());
            match timeout(wait.next(), asked).await {
                Ok(answer) => {
                    let answer = answer?;
                    let address = self.link.config.address();
                    return direct(
                        operation,
                        &answer.map_err(|e| unanswered(operation, &address, e))?,
                    );
                }
                Err(_) if Instant::now() >= deadline => return Err(self.link.silent(operation)),
                Err(_) => self.set_direct(false),
            }
        }
    }

    /// Removes the note of a subject that stands at a place.
    pub(crate) async fn remove_note(&self, subject: String, place: u64) -> Result<()> {
        let name = self.keys.notes_stream();
        let (api, request) = match self.survives() {
            true => ("MSG.DELETE", json!({ "seq": place, "no_erase": true })),
            false => ("PURGE", json!({ "filter": subject, "seq": place + 1 })),
        };
        let asked = self.link.must::<_, serde_json::Value>(
            "settle",
            format!("STREAM.{api}.{name}"),
            &request,
        );
        asked.await.map(drop)
    }

    /// An entry of a topic in a form that cannot disturb the connection, whatever its headers are.
    pub(crate) async fn raw(
        &self,
        operation: &'static str,
        topic: &Topic,
        of: Incarnation,
        sequence: u64,
    ) -> Result<Option<Raw>> {
        if !self.survives() && !self.is_still(operation, topic, of).await? {
            return Ok(None);
        }
        let (name, request) = (self.keys.stream(topic), json!({ "seq": sequence }));
        let got = self.get(operation, &name, &request).await?;
        Ok(got.map(|(_, raw)| raw))
    }

    /// Whether the stream of a topic is this one.
    async fn is_still(
        &self,
        operation: &'static str,
        topic: &Topic,
        of: Incarnation,
    ) -> Result<bool> {
        let found = self.find(operation, topic).await?;
        Ok(found.is_some_and(|info| incarnation(&info) == of))
    }

    async fn get(
        &self,
        operation: &'static str,
        stream: &str,
        request: &serde_json::Value,
    ) -> Result<Option<(u64, Raw)>> {
        let asked = self
            .link
            .ask(operation, format!("STREAM.MSG.GET.{stream}"), request);
        let got: Got = match asked.await? {
            Ok(got) => got,
            Err(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => return Ok(None),
            Err(told) if told.code() == 404 => return Ok(None),
            Err(told) => return Err(answered(operation, &told).with("stream", stream)),
        };
        let decoded = |text: &str| {
            let strange = |e| error(ErrorKind::Broker, operation, STRANGE).because(e);
            STANDARD.decode(text).map_err(strange)
        };
        let raw = Raw {
            headers: decoded(&got.message.hdrs)?,
            payload: decoded(&got.message.data)?,
        };
        Ok(Some((got.message.seq, raw)))
    }

    /// Removes all entries up to and with a place; how many there were.
    ///
    /// A purge makes servers before 2.10 forget every entry that a group was sent and has not settled:
    /// they are never sent again (seen on 2.9.10, not on 2.10.25). There each entry is deleted by itself.
    pub(crate) async fn remove(
        &self,
        operation: &'static str,
        topic: &Topic,
        of: Incarnation,
        last: u64,
    ) -> Result<u64> {
        if self.purges() {
            return self.purge(operation, topic, last + 1).await;
        }
        let subject = format!("STREAM.MSG.DELETE.{}", self.keys.stream(topic));
        let delete = |sequence: u64| {
            let subject = subject.clone();
            async move {
                let request = json!({ "seq": sequence, "no_erase": true });
                let asked = self
                    .link
                    .ask::<_, serde_json::Value>(operation, subject, &request);
                // What was gone already is answered in several ways; what is left is looked at.
                asked.await.map(|answer| u64::from(answer.is_ok()))
            }
        };
        let (mut removed, mut done) = (0, 0);
        loop {
            let found = self.find(operation, topic).await?;
            // What has these places in another stream is none of what was meant.
            let Some(info) = found.filter(|info| incarnation(info) == of) else {
                return Ok(removed);
            };
            // From what is there: others may be removing, or have died over it.
            let first = info.state.first_sequence;
            if info.state.messages == 0 || first > last {
                return Ok(removed);
            }
            if first <= done {
                let why = "the server did not delete what was asked for";
                return Err(error(ErrorKind::Broker, operation, why).with("topic", topic));
            }
            done = last.min(first + (AT_A_TIME - 1));
            let deleting = futures::stream::iter(first..=done).map(delete);
            removed += deleting
                .buffered(AT_A_TIME as usize)
                .try_fold(0, |sum, one| std::future::ready(Ok(sum + one)))
                .await?;
        }
    }

    /// Removes what lies before a place; how many entries that were.
    async fn purge(&self, operation: &'static str, topic: &Topic, before: u64) -> Result<u64> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let request = json!({ "seq": before });
        let subject = format!("STREAM.PURGE.{}", self.keys.stream(topic));
        let purged: Purged = self
            .link
            .must(operation, subject, &request)
            .await
            .map_err(|e| e.with("topic", topic))?;
        Ok(purged.purged)
    }
}

/// What `DIRECT.GET` answered: where the entry stands, and its payload.
fn direct(operation: &'static str, message: &Message) -> Result<Option<(u64, Vec<u8>)>> {
    if message.status == Some(StatusCode::NOT_FOUND) {
        return Ok(None);
    }
    let headers = message.headers.as_ref();
    let place = headers.and_then(|headers| headers.get_last("Nats-Sequence"));
    let place = place.and_then(|place| place.as_str().parse().ok());
    match (message.status, place) {
        (None, Some(place)) => Ok(Some((place, message.payload.to_vec()))),
        (status, _) => {
            let text = message.description.clone().unwrap_or_default();
            Err(error(ErrorKind::Broker, operation, STRANGE)
                .with("status", status.map_or(0, |status| status.as_u16()))
                .with("description", text))
        }
    }
}
