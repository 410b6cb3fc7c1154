//! What has to be done now and then: what waits too long goes back, what is settled is removed, what
//! is gone is told.

use std::sync::Arc;

use async_nats::jetstream::consumer::Info;
use mas_transport_core::{Group, Result};
use tokio::time::{Instant, sleep_until};

use crate::connection::lock;
use crate::member::Member;
use crate::streams::incarnation;

/// From so many settled entries on they are removed whatever waits.
const OVERDUE: u64 = 50_000;

/// Sweeps until the member closes.
pub(crate) async fn run(member: Arc<Member>) {
    let period = member.patience();
    let mut next = Instant::now() + period;
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
            member.look().await?;
            member.trim().await
        };
        let house = member.closing.run_until_cancelled(house).await;
        if let Some(Err(error)) = house {
            // A broken connection is the reader's to tell of.
            tracing::debug!(%error, topic = %member.topic, "looked in vain");
        }
    }
}

impl Member {
    /// Looks how far the group has come, and whether entries are gone that it had not settled.
    pub(crate) async fn look(&self) -> Result<()> {
        let _one = self.looking.lock().await;
        let (streams, notes) = (&self.shared.streams, &self.shared.notes);
        let seen = self.joined();
        let Some(group) = streams
            .find_group("fetch", &self.topic, &self.group)
            .await?
        else {
            return Ok(());
        };
        let Some(stream) = streams.find("fetch", &self.topic).await? else {
            return Ok(());
        };
        let current = incarnation(&stream);
        let before = stream.state.first_sequence.saturating_sub(1);
        let (floor, trimmed) = {
            let mut place = lock(&self.place);
            if place.incarnation != current || self.joined() != seen {
                return Ok(());
            }
            let fresh = std::mem::take(&mut place.fresh);
            place.settled.add(fresh);
            (place.floor, place.trimmed)
        };
        // What members removed, every group had settled.
        let trimmed = match before > floor && before > trimmed {
            true => notes.trimmed(&self.topic, current).await?,
            false => trimmed,
        };
        let delivered = group.delivered.consumer_sequence;
        let settled = group.ack_floor.stream_sequence;
        let (told, floor) = self.found(before, settled, delivered, trimmed);
        let Some((missing, others)) = told else {
            return Ok(());
        };
        let noted = lock(&self.place).note;
        self.note().await?;
        // Or somebody else of the group told it.
        let first = {
            let place = lock(&self.place);
            place.noted == floor && place.note != noted
        };
        if missing > 0 && first {
            self.gap((!others).then_some(missing));
        }
        Ok(())
    }

    /// Enters what a look found: that all before the stream's first entry is gone, how far the server has
    /// the group settled, how many deliveries it counts, and how far members have trimmed. How many entries
    /// the group had not settled and whether others may have, if there is something to tell; and the floor.
    fn found(
        &self,
        before: u64,
        settled: u64,
        delivered: u64,
        trimmed: u64,
    ) -> (Option<(u64, bool)>, u64) {
        let mut told = None;
        let mut place = lock(&self.place);
        let floor = place.floor;
        place.trimmed = place.trimmed.max(trimmed);
        if before > floor && before > trimmed {
            let missing = place.settled.missing(floor, before);
            // What other members settled since the last look is not known here.
            let others = delivered.saturating_sub(place.delivered) > place.received;
            place.floor = before;
            told = Some((missing, others));
        } else {
            // Or the server has moved it over what was removed.
            place.floor = floor.max(settled);
        }
        place.delivered = delivered;
        place.received = 0;
        let floor = place.floor;
        place.settled.prune(floor);
        (told, floor)
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
                (place.floor, place.trimmed)
            };
            let floor = floor.unwrap_or(0).min(own);
            // A purge makes a server (2.9 to 2.15) forget which entries wait to be sent again at once;
            // they then come when their leases end. Where a pull waits, none of them does.
            let waits = |info: &Info| info.num_ack_pending > 0 && info.num_waiting == 0;
            let safe = !groups.iter().any(waits);
            if floor > trimmed && !safe && floor - trimmed < OVERDUE {
                self.trim_later();
            } else if floor > trimmed {
                notes.trimming(&self.topic, incarnation, floor).await?;
                streams.purge("trim", &self.topic, Some(floor + 1)).await?;
                let mut place = lock(&self.place);
                place.trimmed = place.trimmed.max(floor);
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
