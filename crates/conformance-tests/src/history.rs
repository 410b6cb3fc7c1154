//! What happened in a trial, in order, for the checker to judge and for people to read.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mas_transport_core::{Error, ErrorKind, Message, Position, Stored};
use tokio::time::Instant;

/// How a delivery was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is done.
    Ack,
    /// It comes back, not before this has passed.
    Nack(Duration),
    /// Dropped: it comes back, not before this backoff has passed.
    Dropped(Duration),
    /// Not handed out: it comes back at once.
    Return,
    /// It goes to the dead letters.
    Reject,
}

/// How a settlement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The broker confirmed it.
    Done,
    /// The lease was lost: the broker was not touched.
    Lost,
    /// Nobody knows, or nobody asked.
    Unknown,
    /// It certainly had no effect.
    Failed,
}

impl Ended {
    /// What the answer to a settlement says.
    pub fn of<T>(answer: &Result<T, Error>) -> Self {
        match answer {
            Ok(_) => Self::Done,
            Err(e) if e.kind() == ErrorKind::LeaseLost => Self::Lost,
            Err(e) if e.stored() == Stored::Unknown => Self::Unknown,
            Err(_) => Self::Failed,
        }
    }
}

/// What a trial does to its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The broker's process dies.
    Kill,
    /// It does not answer.
    Freeze,
    /// Connections break.
    Cut,
    /// It has no room.
    Full,
    /// It forgets a group, or everything.
    Forget,
    /// Answers are lost, refused or delayed.
    Plan,
}

/// Names a member across its history.
pub type MemberId = u32;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// A publish was called.
    Publishing {
        /// Whose: the order among one sender's messages counts.
        sender: u32,
        /// The topic.
        topic: String,
        /// The message.
        id: String,
        /// Its key.
        key: Option<String>,
        /// Its contents, as [`digest`] has it.
        digest: u64,
    },
    /// A receipt came.
    Accepted {
        /// The message.
        id: String,
    },
    /// The publish failed, and the message is certainly not stored.
    Refused {
        /// The message.
        id: String,
    },
    /// The publish failed, or was given up, and the message is stored once or not at all.
    Uncertain {
        /// The message.
        id: String,
    },
    /// A member joined: `subscribe` returned.
    Joined {
        /// The member.
        member: MemberId,
        /// Its topic.
        topic: String,
        /// Its group.
        group: String,
        /// The group begins with the oldest entry.
        earliest: bool,
        /// The lease.
        lease: Duration,
        /// The prefetch window.
        prefetch: usize,
        /// The most attempts.
        max_attempts: u32,
    },
    /// A member died without a word.
    Crashed {
        /// The member.
        member: MemberId,
    },
    /// A member was closed or dropped.
    Left {
        /// The member.
        member: MemberId,
    },
    /// A message was handed out.
    Delivered {
        /// To this member.
        member: MemberId,
        /// The message.
        id: String,
        /// The topic it says it is from.
        topic: String,
        /// Its contents, as [`digest`] has it.
        digest: u64,
        /// Its key.
        key: Option<String>,
        /// Where it stands.
        position: Position,
        /// Which attempt it is.
        attempt: u32,
        /// Until when it is leased, on the history's clock.
        deadline: Duration,
    },
    /// A lease was renewed.
    Extended {
        /// The member.
        member: MemberId,
        /// The message.
        id: String,
        /// Which attempt of it.
        attempt: u32,
        /// Until when it is leased now.
        deadline: Duration,
    },
    /// A settlement was called.
    Settling {
        /// The member.
        member: MemberId,
        /// The message.
        id: String,
        /// Which attempt of it.
        attempt: u32,
        /// How.
        how: How,
        /// When it was called, where that was heard of later: from another process.
        called: Option<Duration>,
    },
    /// The answer to a settlement came.
    Settled {
        /// The member.
        member: MemberId,
        /// The message.
        id: String,
        /// Which attempt of it.
        attempt: u32,
        /// How it was called.
        how: How,
        /// How it ended.
        ended: Ended,
    },
    /// A loss was raised.
    Gap {
        /// To this member.
        member: MemberId,
        /// How many are gone, where known.
        lost: Option<u64>,
    },
    /// A lease ended, or was taken away, while its holder had it.
    Revoked {
        /// The member.
        member: MemberId,
        /// Where the message stands.
        position: Position,
    },
    /// A member begins or stops to wait for a delivery.
    Waiting {
        /// The member.
        member: MemberId,
        /// It begins.
        on: bool,
    },
    /// A fault begins or ends.
    Fault {
        /// Which.
        what: Trouble,
        /// It begins.
        on: bool,
    },
    /// A foreign entry was written.
    Injected {
        /// Into this topic.
        topic: String,
    },
    /// Entries were taken away behind the library's back.
    Taken {
        /// From this topic.
        topic: String,
    },
    /// The trial waits for the rest.
    Draining,
    /// The trial has waited long enough: what has not come will not come.
    Drained,
    /// For people.
    Note(String),
}

/// One entry of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When, from the beginning of the trial.
    pub at: Duration,
    /// What.
    pub what: Happened,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.3?} {:?}", self.at, self.what)
    }
}

/// A history that is being written.
#[derive(Debug)]
pub struct History {
    start: Instant,
    entries: Mutex<Vec<Entry>>,
}

impl History {
    /// A history that begins now.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            entries: Mutex::default(),
        }
    }

    /// Adds what has just happened.
    pub fn push(&self, what: Happened) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry {
            at: self.start.elapsed(),
            what,
        });
    }

    /// A point in time on the history's clock.
    pub fn at(&self, instant: Instant) -> Duration {
        instant.duration_since(self.start)
    }

    /// What has happened so far.
    pub fn entries(&self) -> Vec<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.clone()
    }

    /// The last entries, for a failure's message.
    pub fn tail(&self, most: usize) -> String {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = entries.len().saturating_sub(most);
        let mut text = String::new();
        if skipped > 0 {
            text.push_str(&format!("    … {skipped} earlier\n"));
        }
        for entry in entries.iter().skip(skipped) {
            text.push_str(&format!("    {entry}\n"));
        }
        text
    }
}

/// What a message holds, in one number: everything that has to come out as it went in.
pub fn digest(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.payload().hash(&mut hasher);
    message.source().hash(&mut hasher);
    message.get_kind().hash(&mut hasher);
    message.get_content_type().hash(&mut hasher);
    message.get_key().hash(&mut hasher);
    message.get_priority().hash(&mut hasher);
    for (name, value) in message.headers().iter() {
        (name, value.as_bytes()).hash(&mut hasher);
    }
    for (attribute, value) in message.attributes() {
        (attribute, value).hash(&mut hasher);
    }
    message.tags().hash(&mut hasher);
    message.get_time().hash(&mut hasher);
    message.expires_at().hash(&mut hasher);
    message.get_max_attempts().hash(&mut hasher);
    message.get_processing_timeout().hash(&mut hasher);
    hasher.finish()
}
