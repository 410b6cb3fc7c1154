//! What a member takes into its hands, and what it gives back.

use std::collections::HashSet;
use std::sync::Arc;

use mas_transport_core::{Event, Message, RawDelivery, Result, Token};
use tokio::time::Instant;

use crate::connection::lock;
use crate::decode;
use crate::lease::{Lease, Origin, position};
use crate::member::Member;
use crate::notes::Attempts;
use crate::settle::{Item, Target, acknowledge, extend};
use crate::taken::{self, ACK, Taken};

/// Entries that are returned at a time.
const PAGE: usize = 500;

impl Member {
    /// Takes in entries that were asked for at `asked`. When they were long on their way, their leases
    /// are begun anew first: nobody is handed a nearly ended one.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        entries: Vec<Taken>,
        asked: Instant,
        process: &Arc<str>,
    ) {
        let mut asked = asked;
        let origin = Origin {
            process: process.clone(),
            epoch: self.link.epoch(),
        };
        let entries = match self.shared.streams.takes_back() {
            true => self.leave_out_known(entries, &origin),
            false => entries,
        };
        if asked.elapsed() > self.lease / 4 {
            // One whose lease has ended may be somebody else's: it must not be taken away from them.
            if asked.elapsed() >= self.lease {
                tracing::debug!(topic = %self.topic, "what came too late comes back by itself");
                return self.forgo(&entries).await;
            }
            let until = asked + self.lease;
            asked = Instant::now();
            let targets = entries.iter().map(|entry| Target {
                reply: entry.reply.clone(),
                sequence: entry.sequence,
                origin: origin.clone(),
            });
            if let Err(error) = extend(self, targets.collect(), until).await {
                tracing::debug!(%error, "what came too late comes back when its lease ends");
                return self.forgo(&entries).await;
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
                }
            }
        }
        let known = notes.len();
        let mut notes = notes.into_iter();
        let joined = self.joined();
        // Before the table is locked, which settlements wait for.
        let mut read = Vec::with_capacity(entries.len());
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
                joined,
                origin: origin.clone(),
                deadline,
            };
            let size = entry.payload.len();
            let position = position(entry.sequence);
            let message = decode::decode(&self.topic, position, entry.headers, entry.payload);
            read.push((lease, reclaimed, message, size));
        }
        let arrivals = {
            let mut leases = lock(&self.leases);
            let arrival = |(lease, reclaimed, message, size): (Lease, bool, _, usize)| {
                let (attempt, again) = (lease.attempt, lease.again);
                let position = position(lease.sequence);
                let token = leases.insert(lease);
                match message {
                    Ok(message) => {
                        let message: Message = message;
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
                        (event, token, size)
                    }
                }
            };
            read.into_iter().map(arrival).collect::<Vec<_>>()
        };
        lock(&self.place).received += arrivals.len() as u64;
        let refused = self.inbox.add(arrivals);
        self.give_back(refused).await;
    }

    /// Notes of what comes back by itself that nobody was handed it: it counts for no attempt. What was sent
    /// before has its note, if anybody had it.
    async fn forgo(&self, entries: &[Taken]) {
        let note = Attempts::new(self.incarnation(), 0, true);
        let first = entries.iter().filter(|entry| entry.delivered == 1);
        let notes: Vec<_> = first.map(|entry| (entry.sequence, note, 0)).collect();
        let until = Instant::now() + self.link.config.response_timeout;
        let noting = &self.shared.notes;
        for noted in noting
            .attempted(&self.topic, &self.group, &notes, until)
            .await
        {
            if let Err(error) = noted {
                tracing::debug!(%error, "what was not handed out may count for an attempt");
            }
        }
    }

    /// Leaves out what this member holds or has settled, of what comes as if for the first time.
    fn leave_out_known(self: &Arc<Self>, entries: Vec<Taken>, origin: &Origin) -> Vec<Taken> {
        let now = Instant::now();
        let held: HashSet<u64> = {
            let leases = lock(&self.leases);
            // What an earlier process of the server sent it may have forgotten, and sends as new.
            let live = |l: &&Lease| l.deadline > now && l.origin.process == origin.process;
            leases.iter().filter(live).map(|l| l.sequence).collect()
        };
        let (unknown, settled) = taken::sort(entries, &mut lock(&self.place), &held);
        if !settled.is_empty() {
            let target = |entry: Taken| Target {
                reply: entry.reply,
                sequence: entry.sequence,
                origin: origin.clone(),
            };
            let settled = settled.into_iter().map(target).collect();
            let (member, until) = (self.clone(), now + self.lease);
            self.spawn(async move {
                if let Err(error) = acknowledge(&member, settled, until).await {
                    tracing::debug!(%error, "what was settled before may come once more");
                }
            });
        }
        unknown
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
            joined: self.joined(),
            origin: Origin {
                process: self.link.process(),
                epoch: self.link.epoch(),
            },
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
        /// Most entries that are asked for.
        const MOST: usize = 20_000;
        let streams = &self.shared.streams;
        let Some(info) = streams
            .find_group("fetch", &self.topic, &self.group)
            .await?
        else {
            return Ok(());
        };
        let (first, last) = (
            info.ack_floor.stream_sequence + 1,
            info.delivered.stream_sequence,
        );
        let held: HashSet<u64> = lock(&self.leases).iter().map(|l| l.sequence).collect();
        let settled = {
            let mut place = lock(&self.place);
            place.sort_in();
            place.settled.clone()
        };
        let incarnation = self.incarnation();
        let unknown = (first..=last).filter(|s| !held.contains(s) && !settled.contains(*s));
        for sequence in unknown.take(MOST) {
            let raw = streams.raw("fetch", &self.topic, incarnation, sequence);
            let Some(raw) = raw.await? else {
                continue;
            };
            if let Err(why) = decode::parse(&raw.headers) {
                self.admit_unreadable(sequence, why).await;
            }
        }
        Ok(())
    }
}
