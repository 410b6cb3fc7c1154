//! What a member takes into its hands, and what it gives back.

use std::sync::Arc;

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use mas_transport_core::{Event, RawDelivery, Result, Token};
use tokio::time::Instant;

use crate::connection::lock;
use crate::decode;
use crate::lease::{Lease, position};
use crate::member::Member;
use crate::settle::{Item, extend};

/// What every acknowledgement's subject begins with.
const ACK: &str = "$JS.ACK.";
/// Entries that are returned at a time.
const PAGE: usize = 500;

/// An entry that was pulled.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) sequence: u64,
    /// How often the server sent it.
    delivered: u64,
    reply: Subject,
    headers: Option<HeaderMap>,
    payload: Bytes,
}

impl Taken {
    /// Reads a message of a pull; `None` when it is one of the server's own.
    pub(crate) fn read(message: &Message) -> Option<Self> {
        let reply = message.reply.clone()?;
        let tokens: Vec<&str> = reply.strip_prefix(ACK)?.split('.').collect();
        // stream, consumer, delivered, sequence, the consumer's sequence, time, pending; in the
        // second version behind a domain and an account, and before a token.
        let tokens = match tokens.len() {
            7 => tokens.as_slice(),
            9.. => tokens.get(2..)?,
            _ => return None,
        };
        Some(Self {
            delivered: tokens.get(2)?.parse().ok()?,
            sequence: tokens.get(3)?.parse().ok()?,
            headers: message.headers.clone(),
            payload: message.payload.clone(),
            reply,
        })
    }
}

impl Member {
    /// Takes in entries that were asked for at `asked`. When they were long on their way, their leases
    /// are begun anew first: nobody is handed a nearly ended one.
    pub(crate) async fn admit(self: &Arc<Self>, entries: Vec<Taken>, asked: Instant) {
        let mut asked = asked;
        if asked.elapsed() > self.lease / 4 {
            // One whose lease has ended may be somebody else's: it must not be taken away from them.
            if asked.elapsed() >= self.lease {
                tracing::debug!(topic = %self.topic, "what came too late comes back by itself");
                return;
            }
            let until = asked + self.lease;
            asked = Instant::now();
            let replies = entries.iter().map(|entry| entry.reply.clone());
            if let Err(error) = extend(self, replies.collect(), until).await {
                tracing::debug!(%error, "what came too late comes back when its lease ends");
                return;
            }
        }
        let deadline = asked + self.lease;
        let again: Vec<u64> = entries
            .iter()
            .filter(|entry| entry.delivered > 1)
            .map(|entry| entry.sequence)
            .collect();
        let mut notes = Vec::new();
        if !again.is_empty() {
            let notes_of =
                self.shared
                    .notes
                    .attempts(&self.topic, &self.group, self.incarnation(), again);
            match notes_of.await {
                Ok(found) => notes = found,
                Err(error) => {
                    // Their attempts are not known. The others are not held up.
                    tracing::debug!(%error, "redeliveries come back when their leases end");
                    notes.clear();
                }
            }
        }
        let known = notes.len();
        let mut notes = notes.into_iter();
        let mut arrivals = Vec::with_capacity(entries.len());
        {
            let mut leases = lock(&self.leases);
            for entry in entries {
                let mut note = None;
                let (mut attempt, mut reclaimed) = (1, false);
                let again = entry.delivered > 1;
                if again {
                    if known == 0 {
                        continue;
                    }
                    let found = notes.next().flatten();
                    note = found.map(|(at, _)| at);
                    // Without a note its first holder died with it, or never answered.
                    let (begun, nacked) = found.map_or((1, false), |(_, n)| (n.begun, n.nacked));
                    attempt = begun.saturating_add(1);
                    reclaimed = !nacked;
                }
                let lease = Lease {
                    sequence: entry.sequence,
                    reply: entry.reply,
                    attempt,
                    begun: if again { attempt - 1 } else { 0 },
                    again,
                    note,
                    deadline,
                };
                let position = position(entry.sequence);
                let token = leases.insert(lease);
                let raw = entry.payload.len();
                let message = decode::decode(&self.topic, position, entry.headers, entry.payload);
                arrivals.push(match message {
                    Ok(message) => {
                        let size = message.size();
                        let delivery = RawDelivery {
                            token,
                            message,
                            position,
                            attempt,
                            deadline,
                            begin: again,
                            reclaimed,
                        };
                        (Event::Delivery(delivery), token, size)
                    }
                    Err(reason) => {
                        let event = Event::Malformed {
                            token,
                            reason,
                            position,
                            attempt,
                        };
                        (event, token, raw)
                    }
                });
            }
        }
        lock(&self.place).received += arrivals.len() as u64;
        let refused = self.inbox.add(arrivals);
        self.give_back(refused).await;
    }

    /// Takes in an entry that the client could not read, so that it is quarantined. The server sent it,
    /// so it is leased, to this member or another: nobody else could do anything with it.
    pub(crate) async fn admit_unreadable(self: &Arc<Self>, sequence: u64, why: String) {
        let stream = self.shared.streams.keys.stream(&self.topic);
        let reply = format!("{ACK}{stream}.{}.1.{sequence}.1.1.0", self.group);
        let lease = Lease {
            sequence,
            reply: reply.into(),
            attempt: 1,
            begun: 0,
            again: false,
            note: None,
            deadline: Instant::now() + self.lease,
        };
        let token = lock(&self.leases).insert(lease);
        let event = Event::Malformed {
            token,
            reason: mas_transport_core::Reason::new(mas_transport_core::ReasonCode::Malformed, why),
            position: position(sequence),
            attempt: 1,
        };
        let refused = self.inbox.add([(event, token, 0)]);
        self.give_back(refused).await;
    }

    /// Returns deliveries that were not handed out: their attempts do not count. What cannot be
    /// returned comes back when its lease ends.
    pub(crate) async fn give_back(self: &Arc<Self>, tokens: Vec<Token>) {
        // Before the reader has ended it would take them again; the last step of closing returns them.
        if self.closing.is_cancelled() && !self.left.is_cancelled() {
            self.keep_back(tokens);
            return;
        }
        for page in tokens.chunks(PAGE) {
            let now = Instant::now();
            let items: Vec<Item> = {
                let mut table = lock(&self.leases);
                let settle = |t: &Token| Some((0, *t, table.settle(*t, now)?));
                page.iter().filter_map(settle).collect()
            };
            let items = items.into_iter().map(|item| (item, None)).collect();
            for (_, outcome) in crate::settle::move_back(self, items).await {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "could not return what was not handed out");
                }
            }
        }
        if !tokens.is_empty() {
            self.released();
        }
    }

    /// Makes what is still out available to others. It may have been handed out, so its attempts
    /// count.
    pub(crate) async fn release_rest(self: &Arc<Self>) {
        let now = Instant::now();
        let items: Vec<_> = {
            let mut table = lock(&self.leases);
            let held = table.held();
            let settle = |t: Token| Some(((0, t, table.settle(t, now)?), Some(0)));
            held.into_iter().filter_map(settle).collect()
        };
        for (_, outcome) in crate::settle::move_back(self, items).await {
            if let Err(error) = outcome {
                tracing::debug!(%error, "what was still out comes back when its lease ends");
            }
        }
    }

    /// Looks among what is out for entries whose headers the client cannot read, over which the
    /// connection for reading breaks.
    pub(crate) async fn unreadable(self: &Arc<Self>) -> Result<()> {
        /// Most entries that are looked at.
        const MOST: u64 = 20_000;
        let streams = &self.shared.streams;
        let Some(info) = streams
            .find_group("fetch", &self.topic, &self.group)
            .await?
        else {
            return Ok(());
        };
        let first = info.ack_floor.stream_sequence + 1;
        let last = info.delivered.stream_sequence.min(first + MOST);
        for sequence in first..=last {
            let held = lock(&self.leases)
                .iter()
                .any(|lease| lease.sequence == sequence);
            let settled = {
                let place = lock(&self.place);
                place.settled.contains(sequence) || place.fresh.contains(&sequence)
            };
            if held || settled {
                continue;
            }
            let Some(raw) = streams.raw("fetch", &self.topic, sequence).await? else {
                continue;
            };
            if let Err(why) = decode::parse(&raw.headers) {
                self.admit_unreadable(sequence, why).await;
            }
        }
        Ok(())
    }
}
