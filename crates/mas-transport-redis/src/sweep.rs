//! The sweeper of a member: takes what has become due for redelivery, finds what the dead have
//! left, and keeps house.
//!
//! It looks when it is woken (a nack of any member publishes when its entry comes due), when
//! something that it knows of comes due, and in any case every eighth of a lease, a second at most.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::backend::Waiter;
use mas_transport_core::{Error, Result, Stored};
use redis::{Cmd, Value};
use tokio::time::{Instant, sleep, sleep_until};

use crate::connection::lock;
use crate::decode;
use crate::keys::PARKED;
use crate::lease::{Lease, Owner};
use crate::member::{Member, says_lost};
use crate::scripts;

/// Most entries taken at once: the bodies pass through the server's script engine.
const COUNT: usize = 100;
/// Most bytes taken at once.
const BYTES: usize = 4 << 20;
/// Every how many looks all ids are looked at, and empty consumers of the dead removed.
const THOROUGH: u32 = 16;
/// How long a consumer without entries must have been quiet before it is removed.
const REAP: Duration = Duration::from_secs(60);
/// Entries of a lost answer that are looked at in one go.
const PAGE: usize = 500;

/// How one look is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Due,
    Dead,
    Thorough,
}

/// Sweeps until the member closes.
pub(crate) async fn run(member: Arc<Member>) {
    let closing = member.closing.clone();
    let period = member.patience();
    let mut next_look = Instant::now();
    let mut looks = 0;
    let mut number = 1;
    member.uses(Owner::Sweeper(number));
    // Something is there and there was no room for it.
    let mut starved = false;
    // The dead may have left more than was taken.
    let mut more_dead = false;
    loop {
        let due = member.bell.due().filter(|_| !starved);
        let wake = due.map_or(next_look, |due| due.min(next_look));
        tokio::select! {
            () = closing.cancelled() => return,
            () = sleep_until(wake) => {}
            () = member.bell.rung(), if !starved => continue,
            _ = member.inbox.wanted(Waiter::Sweeper, 1), if starved => starved = false,
            () = member.inbox.unwanted() => {
                let unwanted = member.inbox.take_unwanted();
                member.give_back(unwanted).await;
                continue;
            }
        }
        let now = Instant::now();
        let periodic = now >= next_look;
        let mode = if periodic {
            looks += 1;
            next_look = now + period;
            if looks % THOROUGH == 1 {
                Mode::Thorough
            } else {
                Mode::Dead
            }
        } else if more_dead {
            Mode::Dead
        } else {
            Mode::Due
        };
        let work = async {
            if periodic {
                keep_house(&member, now).await?;
            }
            for owner in member.take_orphans() {
                if let Err(error) = recover(&member, owner).await {
                    tracing::debug!(%error, "entries of a lost answer are looked for later");
                    if error.is_retryable() {
                        member.lost_answer(owner);
                    }
                }
            }
            let (room, bytes) = member.inbox.room(COUNT);
            if room == 0 && !periodic {
                return Ok::<_, Error>((0, Left::Due));
            }
            member.bell.answer(now);
            let left = sweep(&member, Owner::Sweeper(number), room, bytes, mode).await?;
            Ok((room, left))
        };
        // A look that is under way at the end is finished: what it took is returned.
        match work.await {
            Ok((room, left)) => {
                if room > 0 {
                    member.swept.cancel();
                    more_dead = left == Left::Dead;
                }
                starved = left != Left::Nothing || !member.swept.is_cancelled();
            }
            Err(error) => {
                member.swept.cancel();
                if error.stored() == Stored::Unknown {
                    let lost = Owner::Sweeper(number);
                    number += 1;
                    member.uses(Owner::Sweeper(number));
                    member.lost_answer(lost);
                }
                // A broken connection is the reader's to tell of.
                if !error.is_retryable() {
                    member.inbox.fail(error);
                }
                if closing.run_until_cancelled(sleep(period)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// What has to be done now and then, whatever there is to deliver.
async fn keep_house(member: &Member, now: Instant) -> Result<()> {
    lock(&member.leases).expire(now);
    let stale = member.inbox.take_stale(now, member.lease / 4);
    member.give_back(stale).await;
    let link = &member.link;
    let check = link.run("fetch", &scripts::CHECK, member.check());
    member.checked(&check.await?);
    member.trim().await;
    Ok(())
}

/// What a look has left for want of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Due,
    /// Perhaps: it took as many as there was room for.
    Dead,
}

/// One look.
async fn sweep(
    member: &Member,
    owner: Owner,
    room: usize,
    bytes: usize,
    mode: Mode,
) -> Result<Left> {
    let keys = &member.keys;
    let reap = REAP.max(member.lease * 4);
    let mut call = scripts::SWEEP.call(&[&keys.stream, &keys.hash, &keys.retry]);
    call.arg(member.group.as_str())
        .arg(member.consumer(owner))
        .arg(PARKED)
        .arg(member.incarnation())
        .arg(member.lease_ms())
        .arg(room)
        .arg(bytes.clamp(1, BYTES))
        .arg(mode as u8)
        .arg(u64::try_from(reap.as_millis()).unwrap_or(u64::MAX));
    let seen = member.joined();
    let asked = Instant::now();
    let link = &member.link;
    let answer = link.run("fetch", &scripts::SWEEP, call).await?;
    if says_lost(&answer) {
        member.rejoin(seen).await?;
        return Ok(Left::Nothing);
    }
    let unknown = || {
        let message = "the answer of a script has a form that is not known";
        member
            .error(mas_transport_core::ErrorKind::Broker, "fetch", message)
            .maybe_stored()
    };
    let mut parts = decode::list(answer).into_iter().skip(1);
    let mut figure = || parts.next().as_ref().and_then(decode::number);
    let (Some(next), Some(gone)) = (figure(), figure()) else {
        return Err(unknown());
    };
    let taken = parts.next().and_then(decode::taken).ok_or_else(unknown)?;
    if gone > 0 {
        member.gap(Some(gone.unsigned_abs()));
        member.released();
    }
    let filled = room > 0 && taken.len() >= room;
    if !taken.is_empty() {
        member.admit(taken, owner, asked).await;
    }
    if next >= 0 {
        member.bell.ring(Duration::from_millis(next.unsigned_abs()));
    }
    Ok(if filled && mode != Mode::Due {
        Left::Dead
    } else if next == 0 {
        Left::Due
    } else {
        Left::Nothing
    })
}

/// Makes available again what the server counts as delivered to `owner` and what never arrived
/// here. What has been there for nearly a lease is left to the search for the dead: it may be a
/// delivery whose lease has ended here.
pub(crate) async fn recover(member: &Member, owner: Owner) -> Result<(), Error> {
    let consumer = member.consumer(owner);
    let young = i64::try_from(member.lease_ms() / 4 * 3).unwrap_or(i64::MAX);
    let mut from = "-".to_owned();
    loop {
        let mut ask = Cmd::new();
        ask.arg("XPENDING")
            .arg(member.keys.stream.as_str())
            .arg(member.group.as_str())
            .arg(&from)
            .arg("+")
            .arg(PAGE)
            .arg(&consumer);
        let page = decode::list(member.link.command("fetch", ask).await?);
        // Asked for after the server has answered: nothing is added under this name any more.
        let known = member.known(owner);
        let mut lost = Vec::new();
        for line in &page {
            let Value::Array(line) = line else { continue };
            let [id, _, idle, count] = line.as_slice() else {
                continue;
            };
            let id = decode::position(id);
            let numbers = (decode::number(idle), decode::number(count));
            let (Some(id), (Some(idle), Some(count))) = (id, numbers) else {
                continue;
            };
            from = format!("({id}");
            if idle < young && !known.contains(&id) {
                let count = u32::try_from(count).unwrap_or(0);
                // A first delivery counted one that did not happen; a sweep counts nothing.
                let wanted = match owner {
                    Owner::Reader(_) => count.saturating_sub(1),
                    Owner::Sweeper(_) => count,
                };
                let lease = Lease {
                    id,
                    owner,
                    count,
                    attempt: count,
                    deadline: Instant::now(),
                };
                lost.push((lease, wanted));
            }
        }
        member.return_entries(&lost).await?;
        if page.len() < PAGE {
            return Ok(());
        }
    }
}
