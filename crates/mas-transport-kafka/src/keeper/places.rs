//! Where logs and the client are: what is read next may not be there any more, or stand elsewhere.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::backend::lock;
use rdkafka::consumer::Consumer as _;
use tokio::time::Instant;

use super::{AT_LEAST, Keeper};
use crate::consumer::{self, Consumer, Standing};
use crate::mark::Mark;
use crate::member::State;
use crate::tracker::Tracker;

/// How often it is looked whether partitions stand still.
const STALL: Duration = Duration::from_secs(5);

const TRIMMED: &str = "entries were deleted or trimmed before this group had settled them";
const BEFORE: &str = "the log ends before the place where the group stood: the topic was made again, or the broker lost data";

impl Keeper {
    /// What is known of a partition that is taken over.
    pub(super) fn restore<T>(&self, state: &mut State, standing: &Standing) -> Tracker<T> {
        let (low, high) = (standing.low, standing.high);
        let Some((position, metadata)) = &standing.committed else {
            return Tracker::restored(low, None, high);
        };
        if *position > high {
            self.member.gap(state, BEFORE, None);
            return Tracker::restored(low, None, high);
        }
        // What nobody can read was refused before.
        let mark = Mark::decode(metadata).ok().flatten();
        let mut tracker = Tracker::restored(*position, mark.as_ref(), high);
        if *position < low {
            let lost = tracker.skip_to(low);
            if lost > 0 {
                self.member.gap(state, TRIMMED, Some(lost));
            }
        }
        tracker
    }

    /// Asks how far the client has come in partitions in which nothing is open. Marks of transactions, and
    /// records that were taken back, stand at the end of a log like records that wait, and are gone one
    /// day like records that were lost.
    ///
    /// Whatever the client has handed out by now has been kept here, or is with the fetch that took it,
    /// which keeps it before it takes note of this.
    pub(super) async fn pass(&mut self, consumer: &Arc<Consumer>) {
        if self.passed.is_some_and(|at| at.elapsed() < AT_LEAST) {
            return;
        }
        let idle = lock(&self.member.state).share.idle();
        if idle.is_empty() {
            return;
        }
        self.passed = Some(Instant::now());
        let asked = self.member.blocking(consumer, consumer::positions).await;
        let Some(Ok(positions)) = asked else {
            return;
        };
        let mut state = lock(&self.member.state);
        for (partition, position) in positions {
            match position {
                None if !self.fresh.contains(&partition) => self.fresh.push(partition),
                Some(position)
                    if self.fresh.contains(&partition)
                        && idle
                            .iter()
                            .any(|(p, next)| *p == partition && *next < position) =>
                {
                    state.passed.push((partition, position));
                    self.member.arrived.notify_one();
                }
                _ => {}
            }
        }
    }

    /// The log of partitions may not hold what was to be read next; true when it is another log, in which
    /// what is held means nothing.
    pub(super) async fn find_place(
        &mut self,
        consumer: &Arc<Consumer>,
        mut partitions: Vec<i32>,
    ) -> bool {
        let member = self.member.clone();
        partitions.sort_unstable();
        partitions.dedup();
        // Before it is asked how far the log reaches: it is read meanwhile.
        let places: Vec<(i32, u64)> = {
            let state = lock(&member.state);
            let place = |p: &i32| state.share.next(*p).map(|next| (*p, next));
            partitions.iter().filter_map(place).collect()
        };
        let partitions: Vec<i32> = places.iter().map(|(p, _)| *p).collect();
        if partitions.is_empty() {
            return false;
        }
        let asked = member
            .standings("fetch", consumer, partitions.clone())
            .await;
        let Ok(standings) = asked else {
            // Asked again with the next round.
            lock(&member.state).lost_place.extend(partitions);
            return false;
        };
        let place = |partition| places.iter().find(|(p, _)| *p == partition);
        if standings
            .iter()
            .any(|s| place(s.partition).is_some_and(|(_, next)| *next > s.high))
        {
            return true;
        }
        for standing in standings {
            let from = {
                let mut state = lock(&member.state);
                let Some(next) = state.share.next(standing.partition) else {
                    continue;
                };
                if next < standing.low {
                    let lost = state.share.skip_to(standing.partition, standing.low);
                    if lost > 0 {
                        member.gap(&mut state, TRIMMED, Some(lost));
                    }
                }
                next.max(standing.low)
            };
            let topic = member.topic_name.clone();
            let moved = member.blocking(consumer, move |consumer| {
                consumer.seek(
                    &topic,
                    standing.partition,
                    rdkafka::Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX)),
                    Duration::from_secs(1),
                )
            });
            if let Some(Err(error)) = moved.await {
                tracing::debug!(%error, "reading on elsewhere is tried again");
                lock(&member.state).lost_place.push(standing.partition);
            }
        }
        member.dirty.notify_one();
        member.arrived.notify_one();
        false
    }

    /// Looks, now and then, whether partitions of which nothing comes have nothing: the client says only
    /// once that a log does not hold what it was to read next, and forgets it when partitions change hands.
    pub(super) async fn look_for_stalls(&mut self, consumer: &Arc<Consumer>) {
        if self.looked.elapsed() < STALL {
            return;
        }
        self.looked = Instant::now();
        let places: Vec<(i32, u64)> = {
            let state = lock(&self.member.state);
            // Whoever wants nothing, or has not handed out what it read, reads nothing.
            if !state.wants || state.share.ready() > 0 {
                self.places.clear();
                return;
            }
            let share = &state.share;
            let owned = share.partitions().into_iter();
            owned
                .filter(|p| share.room(*p) > 0)
                .filter_map(|p| share.next(p).map(|next| (p, next)))
                .collect()
        };
        let before = std::mem::replace(&mut self.places, places);
        let still = |place: &&(i32, u64)| before.contains(place);
        let still: Vec<(i32, u64)> = self.places.iter().filter(still).copied().collect();
        if still.is_empty() {
            return;
        }
        let partitions = still.iter().map(|(p, _)| *p).collect();
        let asked = self.member.standings("fetch", consumer, partitions).await;
        let Ok(standings) = asked else {
            return;
        };
        let stalls = standings.iter().filter(|s| {
            let place = still.iter().find(|(p, _)| *p == s.partition);
            place.is_some_and(|(_, next)| *next < s.low || *next > s.high)
        });
        let mut state = lock(&self.member.state);
        state.lost_place.extend(stalls.map(|s| s.partition));
        if !state.lost_place.is_empty() {
            self.member.events.notify_one();
        }
    }
}
