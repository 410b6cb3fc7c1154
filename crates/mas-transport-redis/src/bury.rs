//! Dead letters and quarantine.
//!
//! Each entry is moved by a call of its own of one script; several calls are under way at a time, as
//! one pipeline, so that a batch of dead letters is not as many round trips.

use futures::stream::{self, StreamExt as _};
use mas_transport_core::codec::fields::{self, RECORD_FIELD, encode_record};
use mas_transport_core::{Error, ErrorKind, Record, Result, Settled, Topic};
use redis::Cmd;
use tokio::time::{Instant, timeout_at};

use crate::connection::lock;
use crate::decode;
use crate::lease::Lease;
use crate::member::Member;
use crate::scripts;
use crate::settle::{Answer, Item, gone, lost};

/// Most entries on the way at a time: what has to be wrapped passes through here as a whole.
const AT_A_TIME: usize = 16;

/// One entry to be buried: its record, and whether it is malformed.
pub(crate) type Burial = (Item, Box<Record>, bool);

/// Buries entries, several at a time, in their order as far as none has to be wrapped.
pub(crate) async fn bury_all(member: &Member, items: Vec<Burial>) -> Vec<Answer> {
    if !member.topic.is_internal() {
        let deadlines = items.iter().map(|((_, _, lease), _, _)| lease.deadline);
        let until = deadlines.min().unwrap_or_else(Instant::now);
        for malformed in [false, true] {
            if items.iter().any(|(_, _, m)| *m == malformed) {
                // Not at the price of a lease.
                let target = target(member, malformed);
                let _ = timeout_at(until, register(member, &target)).await;
            }
        }
    }
    let each = |((at, token, lease), record, malformed): Burial| async move {
        let outcome = match Instant::now() < lease.deadline {
            true => timeout_at(lease.deadline, bury(member, &lease, *record, malformed)).await,
            // It stood behind others that the server would not answer.
            false => Ok(Err(lost(member))),
        };
        let outcome = outcome.unwrap_or_else(|_| Err(late(member)));
        let mut leases = lock(&member.leases);
        match &outcome {
            Ok(_) => leases.done(token),
            Err(error) if error.kind() == ErrorKind::LeaseLost => leases.done(token),
            Err(_) => leases.leave(token),
        }
        (at, outcome)
    };
    let burying = stream::iter(items).map(each).buffered(AT_A_TIME);
    burying.collect().await
}

/// The server may have done it all the same.
fn late(member: &Member) -> Error {
    let why = "the server did not answer before the lease ended";
    member
        .error(ErrorKind::Timeout, "dead-letter", why)
        .maybe_stored()
}

/// Where an entry goes.
fn target(member: &Member, malformed: bool) -> Topic {
    if malformed {
        Topic::quarantine(&member.topic, &member.group)
    } else {
        Topic::dead_letters(&member.topic, &member.group)
    }
}

/// A topic that is not listed is better than a dead letter that is not kept.
async fn register(member: &Member, target: &Topic) {
    if let Err(error) = member.shared.register(target).await {
        tracing::debug!(%error, "the dead-letter topic is not listed yet");
    }
}

/// Moves an entry to the dead-letter or the quarantine topic of topic and group.
async fn bury(member: &Member, lease: &Lease, record: Record, malformed: bool) -> Result<Settled> {
    if member.topic.is_internal() {
        return Err(member.error(
            ErrorKind::Unsupported,
            "dead-letter",
            "what stands in a dead-letter or quarantine topic has nowhere further to go: \
             ack it, or nack it with a delay",
        ));
    }
    let target = target(member, malformed);
    let mut answer = -2;
    if !malformed {
        let mut call = burial(member, lease, &target);
        call.arg("verbatim")
            .arg(RECORD_FIELD)
            .arg(encode_record(&record));
        answer = buried(member, call).await?;
    }
    if answer == -2 {
        // As the payload of a message of its own: what cannot be decoded, and what has more fields
        // than a script can copy.
        let mut ask = Cmd::new();
        let id = lease.id.to_string();
        ask.arg("XRANGE")
            .arg(member.keys.stream.as_str())
            .arg(&id)
            .arg(&id);
        let link = &member.link;
        let entries = decode::entries(link.command("quarantine", ask).await?);
        let found = entries.unwrap_or_default().into_iter().next();
        let Some(original) = found.and_then(|entry| entry.fields) else {
            return Err(gone(member));
        };
        let message = fields::quarantine(target.clone(), &original, record);
        let mut call = burial(member, lease, &target);
        call.arg("instead");
        fields::encode(&message, &mut |name, value| {
            call.arg(name).arg(value);
        });
        answer = buried(member, call).await?;
    }
    match answer {
        1 => Ok(Settled::Done),
        0 => Err(lost(member)),
        _ => {
            member.missed(1);
            Err(gone(member))
        }
    }
}

fn burial(member: &Member, lease: &Lease, target: &Topic) -> Cmd {
    let target = crate::keys::stream(&member.shared.link.config.namespace, target);
    let mut call = scripts::BURY.call(&[&member.keys.stream, &target]);
    call.arg(member.group.as_str())
        .arg(lease.id.to_string())
        .arg(member.consumer(lease.owner))
        .arg(lease.count)
        .arg(lease.attempt);
    call
}

async fn buried(member: &Member, call: Cmd) -> Result<i64> {
    let link = &member.link;
    let answer = link.run("dead-letter", &scripts::BURY, call).await?;
    Ok(decode::number(&answer).unwrap_or(-1))
}
