//! What has to be done now and then: what waits too long goes back, what is settled is removed, what
//! is gone is told.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream;
use mas_transport_core::{Error, ErrorKind, Group, Result};
use tokio::time::{Instant, sleep_until};

use crate::connection::lock;
use crate::member::Member;
use crate::streams::{incarnation, made_at};

/// From so many settled entries on they are removed where a pull waits, and whatever waits.
const MANY: u64 = 5_000;
const TOO_MANY: u64 = 50_000;
/// From then on they need not wait for it that nothing is unsettled.
const OVERDUE: Duration = Duration::from_secs(10);
/// How often it is looked for notes of dead members.
const TIDY: Duration = Duration::from_secs(60);
/// Most that are removed at a time: where servers delete them one by one, closing waits for it.
const MOST: u64 = 5_000;

/// Sweeps until the member closes.
pub(crate) async fn run(member: Arc<Member>) {
    let period = member.patience();
    let mut next = Instant::now() + period;
    let mut tidy = Instant::now() + TIDY;
    loop {
        tokio::select! {
            () = member.closing.cancelled() => return,
            () = member.inbox.unwanted() => {
                let unwanted = member.inbox.take_unwanted();
                member.give_back(unwanted).await;
                continue;
            }
            () = sleep_until(next) => {}
        }
        let now = Instant::now();
        next = now + period;
        lock(&member.leases).expire(now);
        let stale = member.inbox.take_stale(now, member.lease / 4);
        member.give_back(stale).await;
        let house = async {
            member.recheck().await?;
            member.look().await?;
            member.trim().await?;
            if now >= tidy {
                tidy = now + TIDY;
                member.tidy().await?;
            }
            Ok::<_, Error>(())
        };
        let house = member.closing.run_until_cancelled(house).await;
        if let Some(Err(error)) = house {
            tracing::debug!(%error, topic = %member.topic, "looked in vain");
            // A broken connection is the reader's to tell of.
            if !error.is_retryable() {
                member.inbox.fail(error);
            }
        }
    }
}

/// Whether a topic is half full.
fn is_crowded(stream: &stream::Info) -> bool {
    let near =
        |is: u64, most: i64| u64::try_from(most).is_ok_and(|most| most > 0 && is >= most / 2);
    let (is, config) = (&stream.state, &stream.config);
    near(is.messages, config.max_messages) || near(is.bytes, config.max_bytes)
}

/// What is to be removed, and how pressing that is.
#[derive(Clone, Copy, Debug)]
struct Removal {
    count: u64,
    /// The topic has come near a bound, at which publishing fails.
    crowded: bool,
    /// It has waited for long.
    overdue: bool,
}

impl Removal {
    /// Whether entries may be purged from the stream of a group.
    ///
    /// A purge makes a server (2.10 to 2.15) forget which entries wait to be sent again at once: they then
    /// come when their leases end. None does where nothing is unsettled, and hardly any where a pull waits.
    /// Few entries can wait for that; a topic that is full cannot.
    fn is_safe(self, info: &Info) -> bool {
        let many = self.count >= MANY || self.crowded || self.overdue;
        info.num_ack_pending == 0
            || self.count >= TOO_MANY
            || many && info.num_waiting > 0
            || self.crowded && self.overdue
    }
}

impl Member {
    /// Looks how far the group has come, and whether entries are gone that it had not settled.
    pub(crate) async fn look(self: &Arc<Self>) -> Result<()> {
        let _one = self.looking.lock().await;
        let (streams, notes) = (&self.shared.streams, &self.shared.notes);
        let seen = self.joined();
        let (group, stream) = (
            streams
                .find_group("fetch", &self.topic, &self.group)
                .await?,
            streams.find("fetch", &self.topic).await?,
        );
        let (current, made) = {
            let place = lock(&self.place);
            (place.incarnation, place.made)
        };
        // Somebody else may have made them again: what is held here is of those that are gone.
        let group = group.filter(|group| made_at(group) == made);
        let stream = stream.filter(|stream| incarnation(stream) == current);
        let (Some(group), Some(stream)) = (group, stream) else {
            // Whoever closes makes nothing anew.
            return match self.closing.is_cancelled() {
                true => Ok(()),
                false => self.rejoin(seen).await,
            };
        };
        let before = stream.state.first_sequence.saturating_sub(1);
        let (floor, trimmed) = {
            let mut place = lock(&self.place);
            if place.incarnation != current || self.joined() != seen {
                return Ok(());
            }
            place.sort_in();
            place.crowded = is_crowded(&stream);
            (place.floor, place.trimmed)
        };
        // What members removed, every group had settled.
        let trimmed = match before > floor && before > trimmed {
            true => notes.trimmed(&self.topic, current).await?,
            false => trimmed,
        };
        let delivered = group.delivered.consumer_sequence;
        let settled = group.ack_floor.stream_sequence;
        let Some((missing, others)) = self.found(before, settled, delivered, trimmed) else {
            return Ok(());
        };
        // Or somebody else of the group told it.
        self.learn().await?;
        if lock(&self.place).noted.is_none_or(|noted| noted < before) && missing > 0 {
            // Whoever closes hears of nothing any more: the next member looks for itself.
            if self.closing.is_cancelled() {
                return Ok(());
            }
            self.gap((!others).then_some(missing));
        }
        {
            let mut place = lock(&self.place);
            if place.incarnation != current {
                return Ok(());
            }
            place.floor = place.floor.max(before);
            place.settled.prune(before);
        }
        self.note().await
    }

    /// Enters what a look found: that all before the stream's first entry is gone, how far the server has
    /// the group settled, how many deliveries it counts, and how far members have trimmed. If others removed
    /// what lay above the group's floor: how many entries it had not settled, and whether other members may
    /// have.
    fn found(
        &self,
        before: u64,
        settled: u64,
        delivered: u64,
        trimmed: u64,
    ) -> Option<(u64, bool)> {
        let mut place = lock(&self.place);
        let floor = place.floor;
        place.before = before;
        place.trimmed = place.trimmed.max(trimmed);
        // What other members settled since the last look is not known here.
        let others = delivered.saturating_sub(place.delivered) > place.received;
        place.delivered = delivered;
        place.received = 0;
        if before > floor && before > trimmed {
            return Some((place.settled.missing(floor, before), others));
        }
        // Or the server has moved it over what was removed.
        place.floor = floor.max(settled);
        let floor = place.floor;
        place.settled.prune(floor);
        None
    }

    /// Removes what dead members of this group left of notes, where it holds nothing.
    pub(crate) async fn tidy(&self) -> Result<()> {
        let (streams, notes) = (&self.shared.streams, &self.shared.notes);
        // First, so that what is noted from now on stays.
        let end = notes.end().await?;
        let group = streams.find_group("trim", &self.topic, &self.group).await?;
        if end == 0 || group.is_none_or(|group| group.num_ack_pending > 0) {
            return Ok(());
        }
        notes.tidy(&self.topic, &self.group, end).await
    }

    /// Removes what all groups have settled, if anything was settled since, and notes how far this
    /// group has come.
    pub(crate) async fn trim(&self) -> Result<()> {
        if !self.take_settled() {
            return Ok(());
        }
        let trimming = async {
            let (streams, notes) = (&self.shared.streams, &self.shared.notes);
            let groups = streams.groups("trim", &self.topic).await?;
            let incarnation = self.incarnation();
            let mut floor = None::<u64>;
            for info in &groups {
                let mut settled = info.ack_floor.stream_sequence;
                // When entries are removed the server moves its floor over them; the group's own note
                // does not move before the group was told.
                if let Ok(group) = Group::new(&info.name)
                    && group != self.group
                    && let Some((_, note)) = notes.progress(&self.topic, &group).await?
                    && note.incarnation == incarnation
                {
                    settled = settled.min(note.floor);
                }
                floor = Some(floor.map_or(settled, |floor| floor.min(settled)));
            }
            let (own, trimmed) = {
                let place = lock(&self.place);
                (place.floor, place.trimmed.max(place.before))
            };
            let settled = floor.unwrap_or(0).min(own);
            let most = if streams.purges() { u64::MAX } else { MOST };
            let floor = settled.min(trimmed.saturating_add(most));
            let count = floor.saturating_sub(trimmed);
            let removal = {
                let mut place = lock(&self.place);
                place.waiting = match count {
                    0 => None,
                    _ => place.waiting.or_else(|| Some(Instant::now())),
                };
                Removal {
                    count,
                    overdue: place.waiting.is_some_and(|at| at.elapsed() >= OVERDUE),
                    crowded: place.crowded,
                }
            };
            let unsafe_now = |groups: &[Info]| {
                streams.purges() && !groups.iter().all(|info| removal.is_safe(info))
            };
            if count > 0 && unsafe_now(&groups) {
                self.trim_later();
            } else if count > 0 {
                // First, so that a group that has to be made again knows what it is owed. A full server
                // takes no note before there is room.
                match self.note().await {
                    Err(error) if error.kind() != ErrorKind::Full => return Err(error),
                    _ => {}
                }
                let groups = streams.groups("trim", &self.topic).await?;
                if unsafe_now(&groups) {
                    self.trim_later();
                    return Ok(());
                }
                notes
                    .remove("trim", &self.topic, incarnation, floor)
                    .await?;
                let mut place = lock(&self.place);
                place.trimmed = place.trimmed.max(floor);
                place.waiting = None;
                if floor < settled {
                    self.trim_later();
                }
            }
            self.note().await
        };
        let trimmed = trimming.await;
        if trimmed.is_err() {
            self.trim_later();
        }
        trimmed
    }
}
