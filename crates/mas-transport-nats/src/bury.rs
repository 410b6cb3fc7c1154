//! Dead letters and quarantine.
//!
//! The entry is asked for as the server stores it, appended with its record to where it goes, and
//! settled when that is confirmed. A crash in between leaves a second letter, never none.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use mas_transport_core::codec::fields;
use mas_transport_core::{ErrorKind, Record, Result, Settled, Topic};
use tokio::time::Instant;

use crate::append::{Answer, Entry};
use crate::decode::{self, MOST_HEADERS};
use crate::entries::Raw;
use crate::lease::Lease;
use crate::member::Member;
use crate::settle::{self, Item, acknowledge, finish};

/// Entries that are asked for at a time.
const AT_A_TIME: usize = 16;

/// One entry to be buried: its record, and whether it is malformed.
pub(crate) type Burial = (Item, Box<Record>, bool);

/// Buries entries, in their order.
pub(crate) async fn bury_all(member: &Arc<Member>, items: Vec<Burial>) -> Vec<settle::Answer> {
    let mut answers = Vec::new();
    // Few at a time: what is asked for passes through here as a whole.
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let page: Vec<Burial> = items.by_ref().take(AT_A_TIME).collect();
        answers.extend(bury_page(member, page).await);
    }
    answers
}

async fn bury_page(member: &Arc<Member>, page: Vec<Burial>) -> Vec<settle::Answer> {
    let mut answers = Vec::with_capacity(page.len());
    if member.topic.is_internal() {
        let error = member.error(
            ErrorKind::Unsupported,
            "dead-letter",
            "what stands in a dead-letter or quarantine topic has nowhere further to go: \
             ack it, or nack it with a delay",
        );
        let items = page.into_iter().map(|(item, _, _)| item).collect();
        return finish(member, items, Err(error), false);
    }
    let first = page
        .iter()
        .map(|((_, _, lease), _, _)| lease.deadline)
        .min();
    let until = first.unwrap_or_else(Instant::now);
    let mut ready: HashMap<bool, Vec<(Item, Entry)>> = HashMap::new();
    let look = |(item, record, malformed): Burial| async move {
        let entry = letter(member, &item.2, *record, malformed).await;
        (item, malformed, entry)
    };
    let looked: Vec<_> = stream::iter(page)
        .map(look)
        .buffered(AT_A_TIME)
        .collect()
        .await;
    for (item, malformed, entry) in looked {
        match entry {
            Ok(entry) => ready.entry(malformed).or_default().push((item, entry)),
            Err(error) => answers.extend(finish(member, vec![item], Err(error), false)),
        }
    }
    for (malformed, entries) in ready {
        let (items, entries): (Vec<Item>, Vec<Entry>) = entries.into_iter().unzip();
        let stored = append(member, &target(member, malformed), entries, until).await;
        let mut buried = Vec::with_capacity(items.len());
        for (item, outcome) in items.into_iter().zip(stored) {
            match outcome {
                // A lease that ended meanwhile may be somebody else's.
                Ok(()) if item.2.deadline <= Instant::now() => {
                    answers.extend(finish(member, vec![item], Err(settle::lost(member)), false));
                }
                Ok(()) => buried.push(item),
                Err(error) => answers.extend(finish(member, vec![item], Err(error), false)),
            }
        }
        let targets = buried.iter().map(|(_, _, lease)| lease.into());
        let done = acknowledge(member, targets.collect(), until).await;
        answers.extend(finish(member, buried, done.map(|()| Settled::Done), true));
    }
    answers
}

/// Where an entry goes.
fn target(member: &Member, malformed: bool) -> Topic {
    if malformed {
        Topic::quarantine(&member.topic, &member.group)
    } else {
        Topic::dead_letters(&member.topic, &member.group)
    }
}

/// An entry with its record, as it is to be stored.
async fn letter(member: &Member, lease: &Lease, record: Record, malformed: bool) -> Result<Entry> {
    let streams = &member.shared.streams;
    let raw = streams
        .raw(
            "dead-letter",
            &member.topic,
            member.incarnation(),
            lease.sequence,
        )
        .await?;
    let Some(Raw { headers, payload }) = raw else {
        let why = "the entry was deleted from the topic";
        return Err(member.error(ErrorKind::LeaseLost, "dead-letter", why));
    };
    let payload = Bytes::from(payload);
    let target = target(member, malformed);
    let parsed = decode::parse(&headers);
    let verbatim = match &parsed {
        Ok(headers) if !malformed => fitting(headers, record.clone()),
        _ => None,
    };
    let (headers, payload) = match (verbatim, parsed) {
        (Some(headers), _) => (headers, payload),
        (None, parsed) => {
            // As the payload of a message of its own, as it was found.
            let mut original: Vec<(Bytes, Bytes)> = match parsed {
                Ok(headers) => headers
                    .into_iter()
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect(),
                Err(_) => vec![(Bytes::from_static(b"headers"), headers.into())],
            };
            original.push((Bytes::from_static(b"data"), payload));
            decode::encode(&fields::quarantine(target.clone(), &original, record))
        }
    };
    Ok(Entry {
        subject: streams.keys.subject(&target).into(),
        headers: Some(headers),
        payload,
    })
}

/// The headers of a letter, with as much of its record as the server stores; `None` where what another
/// program wrote leaves no room for any.
fn fitting(headers: &[(String, String)], mut record: Record) -> Option<HeaderMap> {
    loop {
        let letter = decode::verbatim(headers, &record);
        if decode::wire_size(&letter) <= MOST_HEADERS {
            return Some(letter);
        }
        if record.history.is_empty() {
            // As much as tells what it was.
            let short: String = record.reason.text.chars().take(256).collect();
            if short.len() == record.reason.text.len() {
                return None;
            }
            record.reason.text = short;
        } else {
            // The oldest come first.
            let half = record.history.len().div_ceil(2);
            record.history.drain(..half);
        }
    }
}

async fn append(
    member: &Member,
    target: &Topic,
    entries: Vec<Entry>,
    until: Instant,
) -> Vec<Result<()>> {
    let shared = &member.shared;
    let link = &member.link;
    let count = entries.len();
    let until = until.min(Instant::now() + link.config.response_timeout);
    let made = async {
        link.ready("dead-letter", until).await?;
        shared.streams.reach("dead-letter", target).await
    };
    if let Err(error) = made.await {
        return vec![Err(error); count];
    }
    let sent = shared.appender.send(entries, until).await;
    let answers = sent.answers(until).await;
    if answers.iter().any(|a| matches!(a, Answer::Nobody)) {
        shared.streams.forget(target);
    }
    answers
        .into_iter()
        .map(|answer| answer.into_result(link, "dead-letter").map(drop))
        .collect()
}
