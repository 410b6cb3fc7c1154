//! What has come in for a member and waits for `fetch`: plain state behind a lock, and the signals
//! between the tasks that fill it and the call that empties it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::lock;
use crate::error::{Error, Result};
use crate::transport::{Event, Token, Want};

/// What is assumed of the size of a message before any was seen, and the least that is ever
/// assumed: it bounds how much the first reply can bring.
const FIRST_GUESS: usize = 64 * 1024;
const LEAST_GUESS: usize = 512;

/// An event that names a lease, its size, and when it came.
#[derive(Debug)]
struct Arrival {
    event: Event,
    token: Token,
    bytes: usize,
    at: Instant,
}

#[derive(Debug)]
struct State {
    control: VecDeque<Event>,
    ready: VecDeque<Arrival>,
    ready_bytes: usize,
    want: Want,
    /// The size of the messages seen lately, on the high side.
    guess: usize,
    error: Option<Error>,
    closed: bool,
}

/// The buffer between the tasks of a member that read and its
/// [`Fetch`](crate::Fetch): bounded by what is wanted, in messages and bytes.
#[derive(Debug)]
pub struct Inbox {
    backend: &'static str,
    state: Mutex<State>,
    /// Something is there to fetch.
    arrived: Notify,
    /// Something is wanted, for each of the two tasks that read.
    wanted: [Notify; 2],
    /// Something is there that is to be given back.
    unwanted: Notify,
}

/// Who waits for room: each may wait in one task at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// The task that reads what is new.
    Reader,
    /// The task that collects what comes back, where that is another one.
    Sweeper,
}

impl Inbox {
    /// An empty one, of a backend called so in errors.
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            state: Mutex::new(State {
                control: VecDeque::new(),
                ready: VecDeque::new(),
                ready_bytes: 0,
                want: Want::new(0, 0),
                guess: FIRST_GUESS,
                error: None,
                closed: false,
            }),
            arrived: Notify::new(),
            wanted: [Notify::new(), Notify::new()],
            unwanted: Notify::new(),
        }
    }

    /// Moves what is there and wanted to `out`, waiting until there is something. Cancel-safe.
    pub async fn fetch(&self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        loop {
            if let Some(result) = self.try_fetch(want, out) {
                return result;
            }
            self.arrived.notified().await;
        }
    }

    fn try_fetch(&self, want: Want, out: &mut Vec<Event>) -> Option<Result<()>> {
        let mut state = lock(&self.state);
        if state.closed {
            return Some(Err(Error::closed("fetch").on(self.backend)));
        }
        let before = out.len();
        out.extend(state.control.drain(..));
        let mut left = want;
        while left.messages > 0 {
            let Some(next) = state.ready.front() else {
                break;
            };
            if next.bytes > left.bytes && left.messages < want.messages {
                break;
            }
            left.messages -= 1;
            left.bytes = left.bytes.saturating_sub(next.bytes);
            if let Some(arrival) = state.ready.pop_front() {
                state.ready_bytes -= arrival.bytes;
                out.push(arrival.event);
            }
        }
        state.want = left;
        if state.has_unwanted() {
            self.unwanted.notify_one();
        }
        if state.room(usize::MAX) > 0 {
            self.wanted.iter().for_each(Notify::notify_one);
        }
        if out.len() > before {
            return Some(Ok(()));
        }
        state.error.take().map(Err)
    }

    /// Adds deliveries. They are returned when the member has been closed.
    pub fn add(&self, arrivals: impl IntoIterator<Item = (Event, Token, usize)>) -> Vec<Token> {
        let at = Instant::now();
        let mut refused = Vec::new();
        let mut state = lock(&self.state);
        let (mut count, mut sum) = (0, 0);
        for (event, token, bytes) in arrivals {
            if state.closed {
                refused.push(token);
                continue;
            }
            count += 1;
            sum += bytes;
            state.ready_bytes += bytes;
            state.ready.push_back(Arrival {
                event,
                token,
                bytes,
                at,
            });
        }
        if let Some(average) = sum.checked_div(count) {
            let eased = state.guess - state.guess / 2;
            state.guess = average.max(eased).max(LEAST_GUESS);
            if state.has_unwanted() {
                self.unwanted.notify_one();
            }
            self.arrived.notify_one();
        }
        refused
    }

    /// Adds events that `fetch` brings whatever it wants.
    pub fn control(&self, event: Event) {
        lock(&self.state).control.push_back(event);
        self.arrived.notify_one();
    }

    /// Lets the next `fetch` fail; a later failure takes the place of one not yet seen.
    pub fn fail(&self, error: Error) {
        lock(&self.state).error = Some(error);
        self.arrived.notify_one();
    }

    /// A failure that nobody has seen is over.
    pub fn recovered(&self) {
        lock(&self.state).error = None;
    }

    /// How many messages, `most` at most, and how many bytes may be read now.
    pub fn room(&self, most: usize) -> (usize, usize) {
        let state = lock(&self.state);
        let bytes = state.want.bytes.saturating_sub(state.ready_bytes);
        (state.room(most), bytes)
    }

    /// Waits until something is wanted; how many messages may be read then.
    pub async fn wanted(&self, waiter: Waiter, most: usize) -> usize {
        let [reader, sweeper] = &self.wanted;
        let wanted = match waiter {
            Waiter::Reader => reader,
            Waiter::Sweeper => sweeper,
        };
        loop {
            let room = self.room(most).0;
            if room > 0 {
                return room;
            }
            wanted.notified().await;
        }
    }

    /// Takes back what has waited since before `now - age` for a `fetch` that does not come.
    pub fn take_stale(&self, now: Instant, age: Duration) -> Vec<Token> {
        let mut state = lock(&self.state);
        let mut stale = Vec::new();
        while state.ready.front().is_some_and(|a| a.at + age <= now) {
            if let Some(arrival) = state.ready.pop_front() {
                state.ready_bytes -= arrival.bytes;
                stale.push(arrival.token);
            }
        }
        stale
    }

    /// Waits until something is to be given back.
    pub async fn unwanted(&self) {
        self.unwanted.notified().await;
    }

    /// Takes back what came in for a member that wants to hold nothing.
    pub fn take_unwanted(&self) -> Vec<Token> {
        let mut state = lock(&self.state);
        match state.has_unwanted() {
            true => state.empty(),
            false => Vec::new(),
        }
    }

    /// Drops what is buffered, because its leases are lost.
    pub fn revoke(&self) -> Vec<Token> {
        lock(&self.state).empty()
    }

    /// Makes `fetch` answer `Closed`, and takes back what was buffered.
    pub fn close(&self) -> Vec<Token> {
        lock(&self.state).closed = true;
        self.arrived.notify_one();
        self.revoke()
    }
}

impl State {
    fn has_unwanted(&self) -> bool {
        self.want.give_back && !self.ready.is_empty()
    }

    fn empty(&mut self) -> Vec<Token> {
        self.ready_bytes = 0;
        self.ready.drain(..).map(|a| a.token).collect()
    }

    fn room(&self, most: usize) -> usize {
        if self.closed || self.want.messages == 0 {
            return 0;
        }
        let messages = self.want.messages.saturating_sub(self.ready.len());
        let bytes = self.want.bytes.saturating_sub(self.ready_bytes) / self.guess;
        // The first message is wanted whatever its size.
        let least = usize::from(self.ready.is_empty());
        messages.min(bytes.max(least)).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Position, Reason, ReasonCode};

    fn arrival(slot: u32, bytes: usize) -> (Event, Token, usize) {
        let token = Token {
            slot,
            generation: 0,
        };
        let event = Event::Malformed {
            token,
            reason: Reason::new(ReasonCode::Malformed, ""),
            position: Position::default(),
            attempt: 1,
        };
        (event, token, bytes)
    }

    fn want(messages: usize, bytes: usize) -> Want {
        Want::new(messages, bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_takes_what_it_wants_and_the_first_whatever_its_size() {
        let inbox = Inbox::new("test");
        inbox.add([arrival(0, 500), arrival(1, 10), arrival(2, 10)]);
        let mut out = Vec::new();
        inbox.fetch(want(3, 100), &mut out).await.unwrap();
        assert_eq!(out.len(), 1, "the first takes all the bytes");
        inbox.fetch(want(1, 100), &mut out).await.unwrap();
        assert_eq!(out.len(), 2);
        inbox.fetch(want(3, 100), &mut out).await.unwrap();
        assert_eq!(out.len(), 3);
        let nothing = inbox.fetch(want(3, 100), &mut out);
        let waited = tokio::time::timeout(Duration::from_secs(1), nothing).await;
        assert!(waited.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn control_events_come_also_when_nothing_is_wanted() {
        let inbox = Inbox::new("test");
        inbox.add([arrival(0, 1)]);
        inbox.control(Event::Reconnected);
        let mut out = Vec::new();
        inbox.fetch(want(0, 0), &mut out).await.unwrap();
        assert!(matches!(out.as_slice(), [Event::Reconnected]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_bytes_wanted_bound_what_is_read() {
        let inbox = Inbox::new("test");
        let mut out = Vec::new();
        assert_eq!(inbox.room(500).0, 0);
        assert!(inbox.try_fetch(want(1000, 1 << 20), &mut out).is_none());
        assert_eq!(inbox.room(500).0, (1 << 20) / FIRST_GUESS);
        let many = (0..16).map(|slot| arrival(slot, 1024));
        inbox.add(many);
        let _ = inbox.try_fetch(want(1000, 1 << 20), &mut out);
        assert_eq!(
            inbox.room(500).0,
            ((1 << 20) - 16 * 1024) / (FIRST_GUESS / 2)
        );
        assert!(inbox.try_fetch(want(1000, 1), &mut out).is_none());
        assert_eq!(inbox.room(500).0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_member_holds_nothing() {
        let inbox = Inbox::new("test");
        inbox.add([arrival(0, 1)]);
        let mut out = Vec::new();
        assert!(inbox.try_fetch(want(0, 0), &mut out).is_none());
        assert!(inbox.take_unwanted().is_empty(), "a full member may wait");
        let paused = Want {
            give_back: true,
            ..want(0, 0)
        };
        assert!(inbox.try_fetch(paused, &mut out).is_none());
        inbox.unwanted().await;
        assert_eq!(inbox.take_unwanted().len(), 1);
        // What a read brings that was under way.
        inbox.add([arrival(1, 1), arrival(2, 1)]);
        inbox.unwanted().await;
        assert_eq!(inbox.take_unwanted().len(), 2);
        assert!(out.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_fetches_is_taken_back() {
        let inbox = Inbox::new("test");
        inbox.add([arrival(0, 1)]);
        tokio::time::advance(Duration::from_secs(2)).await;
        inbox.add([arrival(1, 1)]);
        let stale = inbox.take_stale(Instant::now(), Duration::from_secs(1));
        assert_eq!(stale.len(), 1);
        assert_eq!(inbox.close().len(), 1);
        assert_eq!(inbox.add([arrival(2, 1)]).len(), 1, "too late");
        let closed = inbox.fetch(want(1, 1), &mut Vec::new()).await;
        assert_eq!(closed.unwrap_err().kind(), crate::ErrorKind::Closed);
    }
}
