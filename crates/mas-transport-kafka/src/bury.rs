//! Dead letters and quarantine: the record is written as it was read, with what befell it, to where it
//! goes, and settled when that is confirmed. A crash in between leaves a second letter, never none.

use std::sync::Arc;

use mas_transport_core::backend::lock;
use mas_transport_core::{ErrorKind, Outcome, Record, Token, Topic};
use tokio::time::Instant;

use crate::member::{Member, now};
use crate::publish::{Fate, Letter, hand_over};
use crate::settle::{Answer, keeping, settle_here};

/// One record to be buried.
#[derive(Debug)]
pub(crate) struct Burial {
    pub(crate) at: usize,
    pub(crate) token: Token,
    pub(crate) record: Box<Record>,
    pub(crate) malformed: bool,
}

/// Buries records, in their order.
pub(crate) async fn bury_all(member: &Arc<Member>, burials: Vec<Burial>) -> Vec<Answer> {
    if member.topic.is_internal() {
        let why = "what stands in a dead-letter or quarantine topic has nowhere further to go: ack it, or \
                   nack it with a delay";
        let error = member.error(ErrorKind::Unsupported, "dead-letter", why);
        // They come back: whoever asked has nothing in hand any more.
        return burials.iter().map(|b| (b.at, Err(error.clone()))).collect();
    }
    let mut answers = Vec::with_capacity(burials.len());
    for malformed in [false, true] {
        let part: Vec<&Burial> = burials
            .iter()
            .filter(|b| b.malformed == malformed)
            .collect();
        if part.is_empty() {
            continue;
        }
        let target = match malformed {
            true => Topic::quarantine(&member.topic, &member.group),
            false => Topic::dead_letters(&member.topic, &member.group),
        };
        // A message is not handed out again while its letter is written.
        let tokens: Vec<Token> = part.iter().map(|b| b.token).collect();
        answers.extend(keeping(member, &tokens, bury(member, target, part)).await);
    }
    answers
}

async fn bury(member: &Arc<Member>, target: Topic, burials: Vec<&Burial>) -> Vec<Answer> {
    let shared = &member.shared;
    let until = Instant::now() + shared.asker.config.response_timeout;
    let known = match shared.topics.reach("dead-letter", &target).await {
        Ok(known) => known,
        Err(error) => return burials.iter().map(|b| (b.at, Err(error.clone()))).collect(),
    };
    let mut answers = Vec::with_capacity(burials.len());
    let mut letters = Vec::with_capacity(burials.len());
    let mut sent = Vec::with_capacity(burials.len());
    {
        let mut state = lock(&member.state);
        state.share.advance(now());
        for burial in burials {
            let Some(raw) = state.share.held(burial.token) else {
                answers.push((burial.at, Err(member.lost())));
                continue;
            };
            let record = match burial.malformed {
                true => raw.quarantined(target.clone(), (*burial.record).clone()),
                false => raw.letter(&burial.record),
            };
            let letter = Letter {
                topic: target.clone(),
                record,
            };
            letters.push((letter, known));
            sent.push(burial);
        }
    }
    let handed = hand_over(shared, letters.into_iter(), until).await;
    let fates = handed.fates("dead-letter", until).await;
    let mut settled = Vec::with_capacity(sent.len());
    for (burial, fate) in sent.into_iter().zip(fates) {
        match fate {
            Fate::Stored(_) => settled.push((burial.at, burial.token, Outcome::Ack)),
            Fate::Gone => {
                shared.topics.forget(&target);
                let why = "the topic of dead letters was deleted meanwhile";
                let error = member.error(ErrorKind::Unavailable, "dead-letter", why);
                answers.push((burial.at, Err(error)));
            }
            Fate::Failed(error) => answers.push((burial.at, Err(error))),
        }
    }
    answers.extend(settle_here(member, settled).await);
    answers
}
