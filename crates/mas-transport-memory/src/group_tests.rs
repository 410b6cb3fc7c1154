//! The group against a naive model: any order of calls has the same results.

use std::time::Duration;

use mas_transport_core::{Lag, Message, Outcome, Settled, StartFrom, Token, Topic, Want};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::group::Group;
use crate::leases::MemberId;
use crate::store::{Body, Store};

pub(crate) const LEASE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
enum Op {
    Publish {
        entries: u8,
        bytes: u32,
    },
    Take {
        group: usize,
        member: usize,
        messages: usize,
        bytes: usize,
    },
    Settle {
        group: usize,
        member: usize,
        which: usize,
        outcome: Outcome,
    },
    Pass(u64),
    Trim(u64),
    Forget {
        group: usize,
    },
    Return {
        group: usize,
        member: usize,
    },
}

pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Ack),
        3 => (0..150u64).prop_map(|ms| Outcome::Nack(Duration::from_millis(ms))),
        1 => Just(Outcome::Nack(Duration::ZERO)),
        1 => Just(Outcome::Nack(Duration::MAX)),
        2 => Just(Outcome::Return),
        3 => Just(Outcome::Begin),
        2 => Just(Outcome::Extend),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let one = 0..2usize;
    prop_oneof![
        4 => (1..6u8, 1..50u32).prop_map(|(entries, bytes)| Op::Publish { entries, bytes }),
        6 => (one.clone(), one.clone(), 1..5usize, 0..120usize).prop_map(
            |(group, member, messages, bytes)| Op::Take { group, member, messages, bytes }
        ),
        8 => (one.clone(), one.clone(), 0..40usize, outcome()).prop_map(
            |(group, member, which, outcome)| Op::Settle { group, member, which, outcome }
        ),
        3 => (1..80u64).prop_map(Op::Pass),
        1 => (1..5u64).prop_map(Op::Trim),
        1 => one.clone().prop_map(|group| Op::Forget { group }),
        1 => (one.clone(), one).prop_map(|(group, member)| Op::Return { group, member }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    New,
    /// With a member, until then; whether the attempt counts if it lapses.
    Held(MemberId, Instant, bool),
    Back(Instant),
    Settled,
    Removed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: usize,
    at: Where,
    made: u32,
    reclaimed: bool,
}

/// What a group should be: a list of entries, looked through from the beginning every time.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    lost: u64,
}

impl Model {
    fn advance(&mut self, now: Instant, gone: &[bool]) {
        for offset in 0..self.entries.len() {
            let entry = &mut self.entries[offset];
            if let Where::Held(_, until, counted) = entry.at
                && until <= now
            {
                entry.made += u32::from(counted);
                entry.reclaimed = true;
                self.back(offset, now, gone);
            }
        }
    }

    fn back(&mut self, offset: usize, due: Instant, gone: &[bool]) {
        let entry = &mut self.entries[offset];
        entry.at = Where::Back(due);
        if gone[offset] {
            entry.at = Where::Removed;
            self.lost += 1;
        }
    }

    fn take(&mut self, now: Instant, member: MemberId, want: Want) -> Vec<(u64, u32, bool)> {
        let mut taken = Vec::new();
        let mut room = want;
        let back = |e: &Entry| matches!(e.at, Where::Back(due) if due <= now);
        let new = |e: &Entry| e.at == Where::New;
        let offsets = 0..self.entries.len();
        let order: Vec<_> = offsets
            .clone()
            .filter(|o| back(&self.entries[*o]))
            .chain(offsets.filter(|o| new(&self.entries[*o])))
            .collect();
        for offset in order {
            let entry = &mut self.entries[offset];
            let fits = taken.is_empty() || entry.bytes <= room.bytes;
            if room.messages == 0 || !fits {
                break;
            }
            room.messages -= 1;
            room.bytes = room.bytes.saturating_sub(entry.bytes);
            entry.at = Where::Held(member, now + LEASE, entry.made == 0);
            taken.push((offset as u64, entry.made + 1, entry.reclaimed));
        }
        taken
    }

    fn settle(&mut self, now: Instant, offset: usize, outcome: &Outcome, gone: &[bool]) -> Settled {
        let entry = &mut self.entries[offset];
        let Where::Held(member, _, counted) = entry.at else {
            panic!("not held");
        };
        match outcome {
            Outcome::Begin | Outcome::Extend => {
                let begun = counted || matches!(outcome, Outcome::Begin);
                entry.at = Where::Held(member, now + LEASE, begun);
                return Settled::Lease(now + LEASE);
            }
            Outcome::Nack(delay) => {
                entry.made += 1;
                entry.reclaimed = false;
                let far = Duration::from_secs(1 << 30);
                self.back(offset, now + (*delay).min(far), gone);
            }
            Outcome::Return => self.back(offset, now, gone),
            _ => entry.at = Where::Settled,
        }
        Settled::Done
    }

    fn lag(&self) -> Lag {
        let count =
            |which: fn(&Where) -> bool| self.entries.iter().filter(|e| which(&e.at)).count() as u64;
        Lag {
            waiting: count(|at| *at == Where::New),
            pending: count(|at| matches!(at, Where::Held(..) | Where::Back(_))),
        }
    }

    fn next_due(&self, now: Instant) -> Option<Instant> {
        let dues = self.entries.iter().filter_map(|e| match e.at {
            Where::Held(_, until, _) => Some(until),
            Where::Back(due) if due > now => Some(due),
            _ => None,
        });
        dues.min()
    }
}

/// A group, its model, and the tokens that were handed out: whose, and for which offset.
struct Pair {
    group: Group,
    model: Model,
    members: [MemberId; 2],
    tokens: Vec<(MemberId, Token, usize)>,
    lost: u64,
}

fn run(ops: Vec<Op>) {
    let body = || Body::Message(Message::new(Topic::new("a").unwrap(), "").unwrap());
    let mut now = Instant::now();
    let mut store = Store::new(1);
    let mut dropped = Vec::new();
    let mut gone: Vec<bool> = Vec::new();
    let mut pairs: Vec<_> = (0..2)
        .map(|_| {
            let mut group = Group::new(LEASE, StartFrom::Earliest, None, &mut store);
            let members = [group.join(now, &store), group.join(now, &store)];
            Pair {
                group,
                model: Model::default(),
                members,
                tokens: Vec::new(),
                lost: 0,
            }
        })
        .collect();
    for op in ops {
        match op {
            Op::Publish { entries, bytes } => {
                for _ in 0..entries {
                    assert_eq!(store.append(0, body(), bytes, 2), Some(gone.len() as u64));
                    gone.push(false);
                    for pair in &mut pairs {
                        pair.model.entries.push(Entry {
                            bytes: bytes as usize,
                            at: Where::New,
                            made: 0,
                            reclaimed: false,
                        });
                    }
                }
                for pair in &mut pairs {
                    pair.group.published(u64::from(entries));
                }
            }
            Op::Take {
                group,
                member,
                messages,
                bytes,
            } => {
                let pair = &mut pairs[group];
                let member = pair.members[member];
                let want = Want::new(messages, bytes);
                let mut out = Vec::new();
                pair.group.advance(now, &store);
                pair.group.take(now, member, want, &store, &mut out);
                pair.model.advance(now, &gone);
                let expected = pair.model.take(now, member, want);
                let taken = out
                    .iter()
                    .map(|t| (t.position.minor, t.attempt, t.reclaimed));
                assert_eq!(taken.collect::<Vec<_>>(), expected);
                for taken in out {
                    assert_eq!(taken.deadline, now + LEASE);
                    let offset = taken.position.minor as usize;
                    pair.tokens.push((member, taken.token, offset));
                }
            }
            Op::Settle {
                group,
                member,
                which,
                outcome,
            } => {
                let pair = &mut pairs[group];
                if pair.tokens.is_empty() {
                    continue;
                }
                // Mostly one of the last tokens, sometimes a stale one or another member's.
                let back = which.min(pair.tokens.len() - 1);
                let (holder, token, offset) = pair.tokens[pair.tokens.len() - 1 - back];
                let member = if which % 5 == 0 {
                    pair.members[member]
                } else {
                    holder
                };
                pair.group.advance(now, &store);
                pair.model.advance(now, &gone);
                let latest = pair.tokens.iter().rev().find(|(.., o)| *o == offset);
                let held = matches!(pair.model.entries[offset].at, Where::Held(..));
                let ours = held && member == holder && latest.is_some_and(|l| l.1 == token);
                let settled =
                    pair.group
                        .settle(now, member, token, &outcome, &mut store, &mut dropped);
                let expected = ours.then(|| pair.model.settle(now, offset, &outcome, &gone));
                assert_eq!(settled, expected);
            }
            Op::Pass(ms) => now += Duration::from_millis(ms),
            Op::Trim(entries) => {
                for pair in &mut pairs {
                    pair.group.advance(now, &store);
                    pair.model.advance(now, &gone);
                }
                let kept: Vec<_> = (0..gone.len())
                    .filter(|o| store.keeps(0, *o as u64))
                    .take(entries as usize)
                    .collect();
                assert_eq!(store.trim(entries, &mut dropped), kept.len() as u64);
                for offset in kept {
                    gone[offset] = true;
                    for pair in &mut pairs {
                        let at = &mut pair.model.entries[offset].at;
                        if matches!(at, Where::New | Where::Back(_)) {
                            *at = Where::Removed;
                            pair.model.lost += 1;
                        }
                    }
                }
                for pair in &mut pairs {
                    pair.group.trimmed("test", &store);
                }
            }
            Op::Forget { group } => {
                let pair = &mut pairs[group];
                pair.group.advance(now, &store);
                pair.model.advance(now, &gone);
                pair.group.forget(now, &store);
                for offset in 0..gone.len() {
                    let entry = &mut pair.model.entries[offset];
                    if matches!(entry.at, Where::Held(..) | Where::Back(_)) {
                        (entry.made, entry.reclaimed) = (0, false);
                        pair.model.back(offset, now, &gone);
                    }
                }
            }
            Op::Return { group, member } => {
                let pair = &mut pairs[group];
                let member = pair.members[member];
                pair.group.advance(now, &store);
                pair.model.advance(now, &gone);
                pair.group.return_all(now, member, &store);
                assert!(pair.group.is_drained(member));
                for offset in 0..gone.len() {
                    let entry = &mut pair.model.entries[offset];
                    if let Where::Held(m, _, counted) = entry.at
                        && m == member
                    {
                        entry.made += u32::from(counted);
                        pair.model.back(offset, now, &gone);
                    }
                }
            }
        }
        for pair in &mut pairs {
            pair.group.advance(now, &store);
            pair.model.advance(now, &gone);
            pair.lost += pair.group.take_gap().map_or(0, |(_, lost)| lost);
            assert_eq!(pair.lost, pair.model.lost);
            assert_eq!(pair.group.lag(), pair.model.lag());
            let near = |due: Option<Instant>| due.filter(|due| *due < now + 10 * LEASE);
            assert_eq!(near(pair.group.next_due()), near(pair.model.next_due(now)));
        }
        let kept = (0..gone.len()).filter(|offset| {
            let settled = |pair: &Pair| pair.model.entries[*offset].at == Where::Settled;
            !gone[*offset] && !pairs.iter().all(settled)
        });
        assert_eq!(store.messages(), kept.count() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_group_does_what_its_model_does(ops in prop::collection::vec(op(), 1..120)) {
        run(ops);
    }
}
