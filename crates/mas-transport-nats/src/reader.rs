//! The pulls of a member, over a connection of its own.
//!
//! It lives in a task, never in a `fetch` that may be dropped. A pull waits at the server for an
//! eighth of the lease at most, because the lease of what it brings may have begun when it was sent.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures::stream::ReadyChunks;
use futures::{FutureExt as _, StreamExt as _};
use mas_transport_core::backend::{Wait, Waiter};
use mas_transport_core::{ErrorKind, Event, Result};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::connection::{HELD, Link};
use crate::error::error;
use crate::member::Member;
use crate::pulls::{Pulls, REMEMBERED};
use crate::taken::Taken;

/// Most entries in one pull.
pub(crate) const COUNT: usize = 1000;
/// Most entries that are taken in at a time.
const AT_ONCE: usize = 500;
// The client drops what a subscription cannot hold: less is asked for, and read in between.
const _: () = assert!(COUNT * REMEMBERED < HELD);
/// After the connection broke over an entry, so many are pulled one by one: another like it would
/// take its neighbours along.
const CAREFUL: u32 = 32;

/// Reads until the member closes.
pub(crate) async fn run(member: Arc<Member>) {
    let _left = member.left.clone().drop_guard();
    let closing = member.closing.clone();
    let mut wait = Wait::new();
    let mut outage = false;
    let mut suspicious = false;
    loop {
        let elsewhere = member.link.epoch();
        let dialled = closing
            .run_until_cancelled(Link::dial(member.link.config.clone()))
            .await;
        let failed = match dialled {
            None => return,
            Some(Ok(link)) => {
                if std::mem::take(&mut outage) {
                    member.inbox.recovered();
                }
                wait = Wait::new();
                let read = read(&member, &link, suspicious).await;
                link.close(Instant::now() + member.link.config.response_timeout)
                    .await;
                // Where only this connection broke, it may have been over what it read.
                suspicious = member.link.is_up() && member.link.epoch() == elsewhere;
                match read {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Some(Err(error)) => error,
        };
        outage = true;
        member.inbox.fail(failed.with("topic", &member.topic));
        if closing
            .run_until_cancelled(sleep(wait.next()))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// How long a pull waits at the server while messages come, which is how long closing may take; and
/// how long at most, where none come.
const SHORT: Duration = Duration::from_millis(250);
pub(crate) const LONG: Duration = Duration::from_secs(4);

/// How a pull ended; of several, the last of these counts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// As it should.
    Over,
    /// The server asks to wait.
    Later,
    /// Stream or group may be gone.
    Lost,
}

struct Reader<'a> {
    member: &'a Arc<Member>,
    link: &'a Link,
    /// Where pulls are asked for, and below what they are answered.
    subject: String,
    prefix: String,
    pulls: Pulls,
    /// The server's process that what comes is from.
    process: Arc<str>,
    careful: u32,
    /// How long the next pull may wait.
    patience: Duration,
    /// Something came for the current pull.
    active: bool,
}

/// Reads over one connection, which heals by itself, until the member closes.
async fn read(member: &Arc<Member>, link: &Link, suspicious: bool) -> Result<()> {
    let gone = |e: &dyn std::fmt::Display| {
        tracing::debug!(error = %e, "the connection for reading is gone");
        error(
            ErrorKind::Unavailable,
            "fetch",
            "the connection for reading is gone",
        )
        .with("address", link.config.address())
    };
    let prefix = link.client().new_inbox();
    let subscriber = link.client().subscribe(format!("{prefix}.*")).await;
    let subscriber = subscriber.map_err(|e| gone(&e))?;
    let mut messages = subscriber.ready_chunks(AT_ONCE);
    let mut reader = Reader {
        member,
        link,
        subject: format!(
            "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
            member.shared.streams.keys.stream(&member.topic),
            member.group
        ),
        prefix,
        pulls: Pulls::new(member.shared.streams.takes_back()),
        process: link.process(),
        careful: 0,
        patience: SHORT,
        active: false,
    };
    let mut changes = link.changes();
    let closing = &member.closing;
    let (mut epoch, mut elsewhere) = (link.epoch(), member.link.epoch());
    let mut down = false;
    let mut wait = Wait::new();
    if suspicious {
        reader.suspect().await;
    }
    loop {
        // What such a pull still brings may have been sent at any time since. It is taken to be that old, or
        // comes again when its lease ends.
        if reader.pulls.is_silent() && !down {
            while let Some(Some(chunk)) = messages.next().now_or_never() {
                reader.take(chunk).await;
            }
            reader.prefix = link.client().new_inbox();
            let client = link.client();
            let subscriber = client.subscribe(format!("{}.*", reader.prefix)).await;
            messages = subscriber.map_err(|e| gone(&e))?.ready_chunks(AT_ONCE);
            reader.pulls.clear();
        }
        let most = if reader.careful > 0 { 1 } else { COUNT };
        if reader.pulls.is_empty() && !down {
            let wanted = member.inbox.wanted(Waiter::Reader, most);
            tokio::select! {
                count = wanted => {
                    if let Err(error) = reader.ask(count).await {
                        return Err(gone(&error));
                    }
                }
                // What an earlier pull still brings, where they overlap.
                chunk = messages.next() => {
                    let Some(chunk) = chunk else { return Err(gone(&"closed")) };
                    reader.take(chunk).await;
                }
                changed = changes.changed() => if changed.is_err() { return Err(gone(&"closed")) },
                () = member.closing.cancelled() => return reader.leave(messages).await,
            }
        } else {
            let (until, successor) = (reader.pulls.until(), reader.pulls.successor());
            let wanted = async {
                sleep_until(successor.unwrap_or_else(Instant::now)).await;
                member.inbox.wanted(Waiter::Reader, most).await
            };
            tokio::select! {
                // What the client keeps for a connection that is gone goes out over the next one.
                count = wanted, if successor.is_some() && reader.careful == 0 && link.is_up() => {
                    if let Err(error) = reader.ask(count).await {
                        return Err(gone(&error));
                    }
                }
                chunk = messages.next() => {
                    let Some(chunk) = chunk else { return Err(gone(&"closed")) };
                    let seen = member.joined();
                    let ended = reader.take(chunk).await;
                    if ended == Some(End::Over) {
                        wait = Wait::new();
                    }
                    if ended == Some(End::Lost)
                        && let Err(error) = member.rejoin(seen).await
                    {
                        member.inbox.fail(error);
                    }
                    if matches!(ended, Some(End::Lost | End::Later)) {
                        // Asking at once would not help the server.
                        let pause = member.closing.run_until_cancelled(sleep(wait.next()));
                        if pause.await.is_none() {
                            return reader.leave(messages).await;
                        }
                    }
                }
                // The server did not say that it is over: the request or the answer was lost.
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    reader.pulls.expire(Instant::now());
                }
                changed = changes.changed() => if changed.is_err() { return Err(gone(&"closed")) },
                () = member.closing.cancelled() => return reader.leave(messages).await,
            }
        }
        // Nothing will come for it.
        if let Some(asked) = reader.pulls.oldest()
            && let Some(refused) = link.refused("fetch", &reader.subject, asked)
        {
            reader.pulls.clear();
            member.inbox.fail(refused.with("topic", &member.topic));
            let pause = closing.run_until_cancelled(sleep(wait.next()));
            if pause.await.is_none() {
                return reader.leave(messages).await;
            }
        }
        if link.has_ended() {
            return Err(gone(&"the client has given up"));
        }
        if !link.is_up() && !down {
            down = true;
            member.inbox.fail(link.broken("fetch"));
        }
        if link.is_up() && (down || link.epoch() != epoch) {
            down = false;
            epoch = link.epoch();
            // What came over the old connection; over this one nothing was asked for yet.
            while let Some(Some(chunk)) = messages.next().now_or_never() {
                reader.take(chunk).await;
            }
            reader.process = link.process();
            reader.pulls.clear();
            member.inbox.recovered();
            member.inbox.control(Event::Reconnected);
            if member.link.epoch() == elsewhere && member.link.is_up() {
                reader.suspect().await;
            }
            elsewhere = member.link.epoch();
        }
    }
}

impl Reader<'_> {
    /// The connection may have broken over an entry with headers that the client cannot read.
    async fn suspect(&mut self) {
        self.careful = CAREFUL;
        if let Err(error) = self.member.unreadable().await {
            tracing::debug!(%error, "could not look for entries with unreadable headers");
        }
    }

    /// Pulls so many, with those that are still out.
    async fn ask(&mut self, wanted: usize) -> std::result::Result<(), async_nats::PublishError> {
        let lease = self.member.lease;
        let wait = self.patience.min(lease / 8);
        let slack = self.link.config.response_timeout.min(lease);
        let (number, count) = self.pulls.ask(wanted, wait, slack);
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let request = json!({ "batch": count, "expires": nanos });
        self.active = false;
        let reply = format!("{}.{number}", self.prefix);
        let payload = request.to_string().into();
        self.link
            .client()
            .publish_with_reply(self.subject.clone(), reply, payload)
            .await
    }

    /// Takes in what came; how a pull ended, if one did.
    async fn take(&mut self, chunk: Vec<Message>) -> Option<End> {
        let mut ended = None;
        let mut taken: Vec<Taken> = Vec::with_capacity(chunk.len());
        // Before what ends them is read: it was sent behind the entries.
        let asked = self.pulls.since(Instant::now(), self.member.lease);
        let seen = self.member.joined();
        for mut message in chunk {
            // Only the server can give a message such a reply, whatever status it carries. It keeps the
            // subject that it was published to, so that it does not say which pull it is for.
            if let Some(entry) = Taken::read(&mut message) {
                taken.push(entry);
                self.careful = self.careful.saturating_sub(1);
                if self.pulls.entry() {
                    ended = ended.max(Some(End::Over));
                }
                continue;
            }
            let place = message.subject.get(self.prefix.len() + 1..);
            let number = place.and_then(|number| number.parse::<u64>().ok());
            if number.is_some_and(|number| self.pulls.over(number, missing(&message))) {
                let end = self.ended(&message);
                // What comes behind it is a successor's, and may be of a group that was made since: it must not be
                // given up with the old one.
                if end == End::Lost && !self.pulls.is_empty() {
                    self.active |= !taken.is_empty();
                    let before = std::mem::take(&mut taken);
                    if !before.is_empty() {
                        self.member.admit(before, asked, &self.process).await;
                    }
                    if let Err(error) = self.member.rejoin(seen).await {
                        self.member.inbox.fail(error);
                    }
                }
                ended = ended.max(Some(end));
            }
        }
        self.active |= !taken.is_empty();
        if ended.is_some() {
            // A pull that waits cannot be called back: the next one waits longer only where nothing comes, and
            // where no entry is taken back because a pull has ended (see `Pulls`).
            let waits = self.active || self.member.shared.streams.takes_back();
            self.patience = if waits {
                SHORT
            } else {
                LONG.min(self.patience * 2)
            };
        }
        if !taken.is_empty() {
            self.member.admit(taken, asked, &self.process).await;
        }
        ended
    }

    fn ended(&self, message: &Message) -> End {
        let text = message.description.as_deref().unwrap_or_default();
        match message.status {
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => End::Over,
            Some(StatusCode::NO_RESPONDERS) => End::Lost,
            _ if text.contains("Deleted") || text.contains("deleted") => End::Lost,
            status => {
                tracing::debug!(?status, text, topic = %self.member.topic, "a pull was ended");
                End::Later
            }
        }
    }

    /// Stops pulling and takes in what is on its way, which is returned because the inbox is closed.
    async fn leave(&mut self, mut messages: ReadyChunks<Subscriber>) -> Result<()> {
        // The server ends a pull behind all that it sends for it. Unsubscribing ends it too, but then the
        // client no longer listens for what was sent meanwhile; where nothing comes, nothing is lost.
        if let Some(until) = self.pulls.end()
            && (self.active || self.patience == SHORT)
        {
            let ending = async {
                while !self.pulls.is_empty() && self.link.is_up() {
                    match messages.next().await {
                        Some(chunk) => {
                            self.take(chunk).await;
                        }
                        None => return,
                    }
                }
            };
            let _ = timeout_at(until, ending).await;
        }
        let limit = self.link.config.response_timeout.min(self.member.lease);
        let leaving = async {
            if messages.get_mut().drain().await.is_ok() && self.link.is_up() {
                while let Some(chunk) = messages.next().await {
                    self.take(chunk).await;
                }
            }
        };
        let _ = timeout(limit, leaving).await;
        Ok(())
    }
}

/// How many entries a pull that is over had not brought, as the server says.
fn missing(message: &Message) -> Option<usize> {
    let headers = message.headers.as_ref()?;
    headers.get("Nats-Pending-Messages")?.as_str().parse().ok()
}
