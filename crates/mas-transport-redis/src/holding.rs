//! What a member takes into its hands, and what it gives back.

use mas_transport_core::codec::fields;
use mas_transport_core::{Event, RawDelivery, Result, Token};
use tokio::time::Instant;

use crate::connection::lock;
use crate::decode::{self, Taken};
use crate::keys::PARKED;
use crate::lease::{Lease, Owner};
use crate::member::Member;
use crate::scripts;

/// Most entries in one call of a script.
const PAGE: usize = 500;

/// How many entries the fencing script found gone.
fn missing(answers: &[redis::Value]) -> u64 {
    let gone = answers.iter().filter(|a| decode::number(a) == Some(2));
    gone.count() as u64
}

impl Member {
    /// Takes in entries that were asked for at `asked`. When the answer was long on its way, their
    /// leases are begun anew first: nobody is handed a nearly ended one.
    pub(crate) async fn admit(
        &self,
        entries: impl IntoIterator<Item = Taken>,
        owner: Owner,
        asked: Instant,
    ) {
        let first = matches!(owner, Owner::Reader(_));
        let (mut entries, mut asked) = (Vec::from_iter(entries), asked);
        if asked.elapsed() > self.lease / 4 {
            asked = Instant::now();
            if let Err(error) = self.freshen(&mut entries, owner).await {
                tracing::debug!(%error, "what came too late comes back when its lease ends");
                return;
            }
        }
        let deadline = asked + self.lease;
        let read: Vec<_> = entries
            .into_iter()
            .map(|Taken { count, dead, entry }| {
                let fields = entry.fields.unwrap_or_default();
                let size: usize = fields.iter().map(|(n, v)| n.len() + v.len()).sum();
                let message = fields::decode(&self.topic, entry.id, fields);
                let attempt = if first { 1 } else { count.saturating_add(1) };
                let lease = Lease {
                    id: entry.id,
                    owner,
                    count,
                    attempt,
                    deadline,
                };
                (lease, dead, message, size)
            })
            .collect();
        let mut arrivals = Vec::with_capacity(read.len());
        {
            let mut leases = lock(&self.leases);
            for (lease, reclaimed, message, size) in read {
                let token = leases.insert(lease);
                let (position, attempt) = (lease.id, lease.attempt);
                arrivals.push(match message {
                    Ok(message) => {
                        let size = message.size();
                        let delivery = RawDelivery {
                            token,
                            message,
                            position,
                            attempt,
                            deadline,
                            begin: !first,
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
                });
            }
        }
        let refused = self.inbox.add(arrivals);
        self.give_back(refused).await;
    }

    /// Begins the leases of entries anew, and keeps those that were still this member's.
    async fn freshen(&self, entries: &mut Vec<Taken>, owner: Owner) -> Result<()> {
        let mut kept = Vec::with_capacity(entries.len());
        for page in entries.chunks(PAGE) {
            let mut call = self.fence();
            for Taken { count, entry, .. } in page {
                let lease = Lease {
                    id: entry.id,
                    owner,
                    count: *count,
                    attempt: *count,
                    deadline: Instant::now(),
                };
                self.operation(&mut call, "E", &lease);
                call.arg(0);
            }
            let link = &self.link;
            let answers = decode::list(link.run("fetch", &scripts::FENCE, call).await?);
            kept.extend(answers.iter().map(|a| decode::number(a) == Some(1)));
            self.missed(missing(&answers));
        }
        let mut kept = kept.into_iter();
        entries.retain(|_| kept.next().unwrap_or(false));
        Ok(())
    }

    /// Returns deliveries that were not handed out: their attempts do not count. What cannot be
    /// returned comes back when its lease ends.
    pub(crate) async fn give_back(&self, tokens: Vec<Token>) {
        for page in tokens.chunks(PAGE) {
            let now = Instant::now();
            let leases: Vec<(Token, Lease)> = {
                let mut table = lock(&self.leases);
                let settle = |t: &Token| Some((*t, table.settle(*t, now)?));
                page.iter().filter_map(settle).collect()
            };
            let moves: Vec<_> = leases
                .iter()
                .map(|(_, lease)| (*lease, lease.attempt - 1))
                .collect();
            let outcome = self.return_entries(&moves).await;
            if let Err(error) = &outcome {
                tracing::debug!(%error, "could not return what was not handed out");
            }
            let mut table = lock(&self.leases);
            for (token, _) in leases {
                match outcome {
                    Ok(()) => table.done(token),
                    Err(_) => table.leave(token),
                }
            }
        }
        if !tokens.is_empty() {
            self.released();
        }
    }

    /// Makes entries available again at once, each with the count given.
    pub(crate) async fn return_entries(&self, entries: &[(Lease, u32)]) -> Result<()> {
        for page in entries.chunks(PAGE) {
            let mut call = self.fence();
            for (lease, count) in page {
                self.operation(&mut call, "R", lease);
                call.arg(*count);
            }
            let link = &self.link;
            let answers = decode::list(link.run("return", &scripts::FENCE, call).await?);
            self.missed(missing(&answers));
        }
        Ok(())
    }

    /// Adds an operation to a call of the fencing script; its argument is to follow.
    pub(crate) fn operation(&self, call: &mut redis::Cmd, name: &str, lease: &Lease) {
        call.arg(name)
            .arg(lease.id.to_string())
            .arg(self.consumer(lease.owner))
            .arg(lease.count)
            .arg(lease.attempt);
    }

    /// A call of the fencing script, to be completed by settlements.
    pub(crate) fn fence(&self) -> redis::Cmd {
        let keys = &self.keys;
        let mut call = scripts::FENCE.call(&[&keys.stream, &keys.retry]);
        call.arg(self.group.as_str())
            .arg(PARKED)
            .arg(keys.channel.as_str());
        call
    }
}
