//! The state of a consumer: what is buffered, what is handed out, what is being settled. A plain
//! structure without I/O; times come in as arguments.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use crate::transport::{Position, RawDelivery, Token, Want};

/// Tokens are a slot and a generation, dense by design: one multiplication spreads them.
#[derive(Default)]
struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u32(u32::from(*b));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type TokenMap<T> = HashMap<Token, T, BuildHasherDefault<TokenHasher>>;

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In the buffer.
    Buffered,
    /// With the application.
    Held,
    /// Its settlement is on the way.
    Settling,
}

#[derive(Debug)]
struct Lease {
    stage: Stage,
    deadline: Instant,
    bytes: usize,
    position: Position,
    attempt: u32,
    /// An extension is on the way.
    extending: bool,
    /// The application let it lapse, and has been told.
    expired: bool,
}

/// A reclaimed or nacked delivery, which has to be begun before it is handed out.
#[derive(Debug)]
struct Again {
    raw: RawDelivery,
    begun: Begun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    No,
    OnTheWay,
    Yes,
}

/// What a receiver gets.
#[derive(Debug)]
pub(super) enum Taken {
    /// A delivery, now held by the application.
    Delivery(RawDelivery),
    /// `Begin` has to be settled for this delivery; it can be taken when that is confirmed.
    Begin(Token),
    /// There is nothing now.
    Nothing,
}

/// Why the application's settlement is refused without asking the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) position: Position,
    /// That it had ended was noticed before.
    pub(super) noticed: bool,
}

/// What the settlement of a held delivery needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    pub(super) deadline: Instant,
    pub(super) position: Position,
    pub(super) attempt: u32,
}

#[derive(Debug)]
pub(super) struct Window {
    messages: usize,
    bytes: usize,
    lease: Duration,
    max_attempts: u32,
    alone_on_last: bool,
    leases: TokenMap<Lease>,
    bytes_used: usize,
    fresh: VecDeque<RawDelivery>,
    again: VecDeque<Again>,
    /// Receivers that wait, by how many deliveries they ask for.
    waiting: usize,
    /// How many of `again` are begun or about to be.
    begun: usize,
    /// Deliveries with the application, and those of them whose lease has lapsed.
    held: usize,
    lapsed: usize,
    /// A suspect on its last attempt is with the application: nothing else is handed out.
    alone: Option<Token>,
    /// Held deliveries by deadline; each change of a deadline adds an entry, and entries that are no
    /// longer true are cleaned lazily.
    expiry: BinaryHeap<Reverse<(Instant, Token)>>,
    /// No lease in the buffer that is not being extended ends before that. What was extended stands before
    /// what came later and may end sooner, so that the first in line says nothing.
    first_end: Option<Instant>,
}

impl Window {
    pub(super) fn new(
        messages: usize,
        bytes: usize,
        lease: Duration,
        max_attempts: u32,
        alone_on_last: bool,
    ) -> Self {
        Self {
            messages,
            bytes,
            lease,
            max_attempts,
            alone_on_last,
            leases: TokenMap::default(),
            bytes_used: 0,
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            waiting: 0,
            begun: 0,
            held: 0,
            lapsed: 0,
            alone: None,
            expiry: BinaryHeap::new(),
            first_end: None,
        }
    }

    /// The room for more. None while handlers hang past their leases: such a member gives up its
    /// share. None either when the bytes are used up: a fetch brings one message whatever its size.
    pub(super) fn want(&self) -> Want {
        let full = self.bytes_used >= self.bytes && !self.leases.is_empty();
        let messages = match self.lapsed == 0 && !full {
            true => self.messages.saturating_sub(self.leases.len()),
            false => 0,
        };
        Want {
            give_back: self.lapsed > 0,
            ..Want::new(messages, self.bytes.saturating_sub(self.bytes_used))
        }
    }

    /// Whether the room has grown enough since `asked` to ask again: small windows at once, large
    /// ones in worthwhile steps.
    pub(super) fn outgrew(&self, asked: Want) -> bool {
        let want = self.want();
        let step = (self.messages / 4).max(1);
        if asked.messages == 0 {
            return want.messages > 0;
        }
        if want.messages == 0 {
            return true;
        }
        asked.messages < step && want.messages >= step.min(self.messages)
    }

    /// A lease that the pump settles itself: poison, malformed entries.
    pub(super) fn insert_settling(&mut self, token: Token, at: Settling, bytes: usize) {
        let Settling {
            deadline,
            position,
            attempt,
        } = at;
        self.insert(
            token,
            Lease {
                stage: Stage::Settling,
                deadline,
                bytes,
                position,
                attempt,
                extending: false,
                expired: false,
            },
        );
    }

    fn insert(&mut self, token: Token, lease: Lease) {
        self.bytes_used += lease.bytes;
        if let Some(old) = self.leases.insert(token, lease) {
            // A backend that reuses a token without a new generation: the old lease is gone.
            self.bytes_used -= old.bytes;
        }
    }

    fn ends_at(&mut self, deadline: Instant) {
        let first = self.first_end.unwrap_or(deadline);
        self.first_end = Some(first.min(deadline));
    }

    /// Buffers a delivery.
    pub(super) fn buffer(&mut self, raw: RawDelivery) {
        self.ends_at(raw.deadline);
        self.insert(
            raw.token,
            Lease {
                stage: Stage::Buffered,
                deadline: raw.deadline,
                bytes: raw.message.size(),
                position: raw.position,
                attempt: raw.attempt,
                extending: false,
                expired: false,
            },
        );
        if raw.begin {
            self.again.push_back(Again {
                raw,
                begun: Begun::No,
            });
        } else {
            self.fresh.push_back(raw);
        }
    }

    /// Whether something has to be begun before anything else is handed out, or keeps the others
    /// back: then a receiver has to wait in line, and a settlement may let it go on.
    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty() || self.alone.is_some()
    }

    /// A receiver begins to wait for up to `most` deliveries.
    pub(super) fn wait(&mut self, most: usize) {
        self.waiting += most;
    }

    /// A receiver stops waiting.
    pub(super) fn unwait(&mut self, most: usize) {
        self.waiting = self.waiting.saturating_sub(most);
    }

    /// Takes the next delivery for the application. What came back goes before what is new; no more
    /// of it is begun than receivers wait for, so that a begun attempt is one that is handed out.
    pub(super) fn take(&mut self, now: Instant) -> Taken {
        if let Some(token) = self.alone {
            if self.is_held(token) {
                return Taken::Nothing;
            }
            self.alone = None;
        }
        if !self.again.is_empty() {
            if let Some(i) = self.again.iter().position(|a| a.begun == Begun::Yes)
                && let Some(again) = self.again.remove(i)
            {
                self.begun -= 1;
                let alone = self.is_suspect(&again.raw);
                if let Some(raw) = self.hand_out(again.raw, now) {
                    if alone {
                        self.alone = Some(raw.token);
                    }
                    return Taken::Delivery(raw);
                }
                return self.take(now);
            }
            if self.again.iter().any(|a| self.is_suspect(&a.raw)) {
                return self.take_towards_suspect();
            }
            if self.begun < self.waiting {
                let next = self.again.iter().position(|a| a.begun == Begun::No);
                if let Some(again) = next.and_then(|i| self.again.get_mut(i)) {
                    again.begun = Begun::OnTheWay;
                    self.begun += 1;
                    return Taken::Begin(again.raw.token);
                }
            } else if self.begun > 0 {
                return Taken::Nothing;
            }
        }
        while let Some(raw) = self.fresh.pop_front() {
            if let Some(raw) = self.hand_out(raw, now) {
                return Taken::Delivery(raw);
            }
        }
        Taken::Nothing
    }

    /// A suspect goes next, alone: nothing else is handed out until it can be begun, which is when
    /// the application holds nothing.
    fn take_towards_suspect(&mut self) -> Taken {
        if self.held > self.lapsed || self.begun > 0 || self.waiting == 0 {
            return Taken::Nothing;
        }
        let (max, on) = (self.max_attempts, self.alone_on_last);
        let suspect = |a: &&mut Again| on && a.raw.reclaimed && a.raw.attempt >= max;
        match self.again.iter_mut().find(suspect) {
            Some(again) => {
                again.begun = Begun::OnTheWay;
                self.begun += 1;
                Taken::Begin(again.raw.token)
            }
            None => Taken::Nothing,
        }
    }

    fn is_suspect(&self, raw: &RawDelivery) -> bool {
        self.alone_on_last && raw.reclaimed && raw.attempt >= self.max_attempts
    }

    fn hand_out(&mut self, mut raw: RawDelivery, now: Instant) -> Option<RawDelivery> {
        let lease = self.leases.get_mut(&raw.token)?;
        if lease.deadline <= now {
            tracing::debug!(position = %raw.position, "a lease ended in the buffer; somebody else may have the message");
            self.release(raw.token);
            return None;
        }
        lease.stage = Stage::Held;
        raw.deadline = lease.deadline;
        self.held += 1;
        self.expiry.push(Reverse((raw.deadline, raw.token)));
        self.tidy_expiry();
        Some(raw)
    }

    fn tidy_expiry(&mut self) {
        while let Some(Reverse((_, token))) = self.expiry.peek() {
            if self.is_held(*token) {
                break;
            }
            self.expiry.pop();
        }
        if self.expiry.len() > 2 * self.held + 64 {
            let leases = &self.leases;
            let is_true = |at: Instant, token: &Token| {
                let lease = leases.get(token);
                lease.is_some_and(|l| l.stage == Stage::Held && l.deadline == at)
            };
            self.expiry
                .retain(|Reverse((at, token))| is_true(*at, token));
        }
    }

    fn is_held(&self, token: Token) -> bool {
        self.leases
            .get(&token)
            .is_some_and(|l| l.stage == Stage::Held && !l.expired)
    }

    /// `Begin` was answered: with the new end of the lease, or with a failure.
    pub(super) fn begun(&mut self, token: Token, lease: Option<Instant>) {
        let Some(i) = self.again.iter().position(|a| a.raw.token == token) else {
            return;
        };
        match (lease, self.again.get_mut(i), self.leases.get_mut(&token)) {
            (Some(deadline), Some(again), Some(lease)) => {
                again.begun = Begun::Yes;
                again.raw.deadline = deadline;
                lease.deadline = deadline;
                self.ends_at(deadline);
            }
            _ => {
                self.again.remove(i);
                self.begun = self.begun.saturating_sub(1);
                self.release(token);
            }
        }
    }

    /// The application settles a delivery. `Err` when its lease has ended: the slot is free, and
    /// the broker is not to be asked.
    pub(super) fn settle(&mut self, token: Token, now: Instant) -> Result<Settling, Option<Lost>> {
        let Some(lease) = self.leases.get_mut(&token) else {
            return Err(None);
        };
        if lease.stage != Stage::Held {
            return Err(None);
        }
        let settling = Settling {
            deadline: lease.deadline,
            position: lease.position,
            attempt: lease.attempt,
        };
        if lease.deadline <= now {
            let lost = Lost {
                position: lease.position,
                noticed: lease.expired,
            };
            self.release(token);
            return Err(Some(lost));
        }
        lease.stage = Stage::Settling;
        self.held -= 1;
        if self.alone == Some(token) {
            self.alone = None;
        }
        Ok(settling)
    }

    /// A settlement has its result: the slot is free.
    pub(super) fn release(&mut self, token: Token) {
        if let Some(lease) = self.leases.remove(&token) {
            self.bytes_used -= lease.bytes;
            if lease.stage == Stage::Held {
                self.held -= 1;
                if lease.expired {
                    self.lapsed -= 1;
                }
            }
        }
        if self.alone == Some(token) {
            self.alone = None;
        }
    }

    /// An extension was answered: with the new end of the lease, or with a failure. What could not
    /// be extended leaves the buffer: it comes back when the broker sees its lease end.
    pub(super) fn extended(&mut self, token: Token, lease: Option<Instant>) {
        let Some(entry) = self.leases.get_mut(&token) else {
            return;
        };
        entry.extending = false;
        // Of several extensions under way the answers may come in any order; the latest end holds.
        let lease = lease.map(|deadline| deadline.max(entry.deadline));
        match (lease, entry.stage) {
            (Some(deadline), Stage::Held) => {
                // Of two answers side by side the longer one holds.
                entry.deadline = entry.deadline.max(deadline);
                if std::mem::take(&mut entry.expired) {
                    self.lapsed -= 1;
                }
                self.expiry.push(Reverse((deadline, token)));
            }
            (Some(deadline), _) => {
                entry.deadline = deadline;
                self.ends_at(deadline);
            }
            (None, Stage::Buffered) => self.unbuffer(token),
            (None, _) => {}
        }
    }

    /// Whether the lease of a held delivery still lives, and until when.
    pub(super) fn deadline(&self, token: Token) -> Option<Instant> {
        let lease = self.leases.get(&token)?;
        (lease.stage != Stage::Settling).then_some(lease.deadline)
    }

    /// The backend took these leases away. Held ones are reported by position.
    pub(super) fn revoke(&mut self, tokens: &[Token], now: Instant) -> Vec<Position> {
        let mut lost = Vec::new();
        for token in tokens {
            match self.leases.get_mut(token) {
                Some(lease) if lease.stage == Stage::Held => {
                    lease.deadline = lease.deadline.min(now);
                    if !std::mem::replace(&mut lease.expired, true) {
                        self.lapsed += 1;
                        lost.push(lease.position);
                    }
                }
                Some(lease) if lease.stage == Stage::Buffered => self.unbuffer(*token),
                _ => {}
            }
        }
        lost
    }

    /// The backend will take these leases away: held ones end then. Buffered ones are given back
    /// by the caller: they are named.
    pub(super) fn revoking(&mut self, tokens: &[Token], until: Instant) -> Vec<Token> {
        let mut back = Vec::new();
        for token in tokens {
            let Some(lease) = self.leases.get_mut(token) else {
                continue;
            };
            lease.deadline = lease.deadline.min(until);
            if lease.stage == Stage::Held {
                self.expiry.push(Reverse((lease.deadline, *token)));
            } else if lease.stage == Stage::Buffered {
                back.push(*token);
            }
        }
        for token in &back {
            self.remove_from_queues(*token);
            if let Some(lease) = self.leases.get_mut(token) {
                lease.stage = Stage::Settling;
            }
        }
        back
    }

    fn unbuffer(&mut self, token: Token) {
        self.remove_from_queues(token);
        self.release(token);
    }

    fn remove_from_queues(&mut self, token: Token) {
        self.fresh.retain(|raw| raw.token != token);
        if let Some(i) = self.again.iter().position(|a| a.raw.token == token)
            && let Some(again) = self.again.remove(i)
            && again.begun != Begun::No
        {
            self.begun -= 1;
        }
    }

    /// Empties the buffer; what is named has to be returned to the broker.
    pub(super) fn empty(&mut self) -> Vec<(Token, Instant)> {
        let mut back = Vec::new();
        self.first_end = None;
        let fresh = std::mem::take(&mut self.fresh).into_iter();
        // What is being begun right now is returned when that has been answered.
        let (stay, go): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.again)
            .into_iter()
            .partition(|a| a.begun == Begun::OnTheWay);
        self.begun = stay.len();
        self.again = stay;
        for token in fresh.chain(go.into_iter().map(|a| a.raw)).map(|r| r.token) {
            if let Some(lease) = self.leases.get_mut(&token) {
                lease.stage = Stage::Settling;
                back.push((token, lease.deadline));
            }
        }
        back
    }

    /// Marks held deliveries whose lease has ended, and names their positions.
    pub(super) fn lapse(&mut self, now: Instant) -> Vec<Position> {
        let mut lost = Vec::new();
        while let Some(Reverse((at, token))) = self.expiry.peek().copied() {
            if at > now {
                break;
            }
            self.expiry.pop();
            if let Some(lease) = self.leases.get_mut(&token) {
                // A later deadline has an entry of its own.
                if lease.stage != Stage::Held || lease.expired || lease.deadline > now {
                    continue;
                }
                lease.expired = true;
                self.lapsed += 1;
                lost.push(lease.position);
            }
        }
        lost
    }

    /// Whether handlers hang past their leases.
    pub(super) fn hangs(&self) -> bool {
        self.lapsed > 0
    }

    /// What in the buffer has less than half of its lease left, marked as being extended.
    pub(super) fn due_for_extension(&mut self, now: Instant) -> Vec<(Token, Instant)> {
        let half = self.lease / 2;
        let again = self.again.iter().filter(|a| a.begun != Begun::OnTheWay);
        let buffered = self.fresh.iter().chain(again.map(|a| &a.raw));
        let mut due = Vec::new();
        let mut first_end = None::<Instant>;
        for raw in buffered {
            let Some(lease) = self.leases.get_mut(&raw.token) else {
                continue;
            };
            if !lease.extending && lease.deadline <= now + half {
                lease.extending = true;
                due.push((raw.token, lease.deadline));
            } else if !lease.extending {
                first_end = Some(first_end.map_or(lease.deadline, |end| end.min(lease.deadline)));
            }
        }
        self.first_end = first_end;
        due
    }

    /// When something is next due: an extension of the buffer, the end of a held lease.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let buffered = !self.fresh.is_empty() || !self.again.is_empty();
        let end = self.first_end.filter(|_| buffered);
        let extend = end.map(|end| end - self.lease / 2);
        let lapse = self.expiry.peek().map(|Reverse((at, _))| *at);
        extend.into_iter().chain(lapse).min()
    }

    /// How many deliveries the application holds whose leases live.
    pub(super) fn held(&self) -> usize {
        self.held - self.lapsed
    }

    /// How many are with the application or being settled, and how many wait in the buffer.
    pub(super) fn standing(&self) -> (usize, usize) {
        let buffered = self.fresh.len() + self.again.len();
        (self.leases.len().saturating_sub(buffered), buffered)
    }

    /// Whether the application holds deliveries, or settlements are on the way.
    pub(super) fn is_idle(&self) -> bool {
        self.leases.is_empty()
    }

    /// The positions still with the application, which loses them now.
    pub(super) fn forget_all(&mut self) -> Vec<Position> {
        let held = self.leases.values().filter(|l| l.stage == Stage::Held);
        let held = held.map(|l| l.position).collect();
        *self = Self::new(
            self.messages,
            self.bytes,
            self.lease,
            self.max_attempts,
            self.alone_on_last,
        );
        held
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
