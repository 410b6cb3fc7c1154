//! The partitioned log under any order of calls.

use std::collections::BTreeMap;
use std::time::Duration;

use mas_transport_core::{Outcome, Settled, StartFrom, Token, Want};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::group::Group;
use crate::group_tests::{LEASE, outcome};
use crate::leases::MemberId;
use crate::store::{Body, Store};

#[derive(Clone, Debug)]
enum LogOp {
    Publish(usize),
    Join,
    Leave(usize),
    Stop(usize),
    Call(usize),
    Take(usize, usize),
    Settle(usize, Outcome),
    Pass(u64),
}

fn log_op() -> impl Strategy<Value = LogOp> {
    let one = 0..4usize;
    prop_oneof![
        4 => (0..3usize).prop_map(LogOp::Publish),
        1 => Just(LogOp::Join),
        1 => one.clone().prop_map(LogOp::Leave),
        1 => one.clone().prop_map(LogOp::Stop),
        3 => one.clone().prop_map(LogOp::Call),
        6 => (one, 1..4usize).prop_map(|(member, messages)| LogOp::Take(member, messages)),
        6 => (0..20usize, outcome()).prop_map(|(which, outcome)| LogOp::Settle(which, outcome)),
        3 => (1..60u64).prop_map(LogOp::Pass),
    ]
}

/// In a partitioned log: nobody holds what another one holds, a lane has one owner who alone takes
/// from it, and whoever is left in the end gets everything that is not settled.
fn run_log(ops: Vec<LogOp>) {
    let body = || Body::Fields(Vec::new().into());
    let notice = Duration::from_millis(30);
    let mut now = Instant::now();
    let mut store = Store::new(3);
    let mut group = Group::new(LEASE, StartFrom::Earliest, Some(notice), &mut store);
    let mut members: Vec<(MemberId, bool)> = Vec::new();
    let mut holders: BTreeMap<(u64, u64), (MemberId, Token)> = BTreeMap::new();
    let mut dropped = Vec::new();
    let mut out = Vec::new();
    let mut settled = 0;
    let mut published = 0;
    for op in ops {
        match op {
            LogOp::Publish(lane) => {
                store.append(lane, body(), 1, 1);
                group.published(1);
                published += 1;
            }
            LogOp::Join if members.len() < 4 => members.push((group.join(now, &store), true)),
            LogOp::Leave(at) if at < members.len() => {
                let (id, _) = members.remove(at);
                group.leave(now, id, &store);
            }
            LogOp::Stop(at) if at < members.len() => {
                members[at].1 = false;
                group.stop(now, members[at].0);
            }
            LogOp::Call(at) if at < members.len() => {
                assert_eq!(group.call(now, members[at].0, true), members[at].1);
            }
            LogOp::Take(at, messages) if at < members.len() && members[at].1 => {
                let (id, _) = members[at];
                group.call(now, id, true);
                group.advance(now, &store);
                let want = Want::new(messages, 99);
                let owned: Vec<_> = group.lanes.iter().map(|l| l.owner == Some(id)).collect();
                group.take(now, id, want, &store, &mut out);
                for taken in out.drain(..) {
                    assert!(owned[taken.position.major as usize]);
                    let at = (taken.position.major, taken.position.minor);
                    if let Some((holder, token)) = holders.insert(at, (id, taken.token)) {
                        assert!(group.held(holder, token).is_none(), "two hold {at:?}");
                    }
                }
            }
            LogOp::Settle(which, outcome) => {
                let Some((at, (id, token))) = holders.iter().nth(which).map(|(a, h)| (*a, *h))
                else {
                    continue;
                };
                group.heard(now, id);
                group.advance(now, &store);
                let done = group.settle(now, id, token, &outcome, &mut store, &mut dropped);
                group.settled(now, &store);
                if done == Some(Settled::Done) {
                    holders.remove(&at);
                    settled += u64::from(matches!(outcome, Outcome::Ack));
                }
            }
            LogOp::Pass(ms) => now += Duration::from_millis(ms),
            _ => {}
        }
        group.advance(now, &store);
        let lag = group.lag();
        assert_eq!(lag.waiting + lag.pending, published - settled);
        for (index, lane) in group.lanes.iter().enumerate() {
            let on = group.leases.tokens(|l| l.lane as usize == index);
            assert_eq!(on.len(), lane.held);
        }
        for (id, member) in &group.members {
            assert_eq!(group.leases.tokens(|l| l.member == *id).len(), member.held);
        }
    }
    // All the others fall silent, and what was nacked for ever is given up.
    now += 3 * LEASE;
    let last = group.join(now, &store);
    let mut left = published - settled;
    for _ in 0..10 {
        now += LEASE / 10;
        group.call(now, last, true);
        group.advance(now, &store);
        let want = Want::new(1000, 99_999);
        group.take(now, last, want, &store, &mut out);
        for taken in out.drain(..) {
            let ack = &Outcome::Ack;
            let done = group.settle(now, last, taken.token, ack, &mut store, &mut dropped);
            assert_eq!(done, Some(Settled::Done));
            left -= 1;
        }
    }
    let far = group.lag().pending;
    assert_eq!((group.lag().waiting, left), (0, far));
    assert_eq!(store.messages(), far);
    assert!(group.next_due().is_none_or(|due| far == 0 || due > now));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_partitioned_log_keeps_its_rules(ops in prop::collection::vec(log_op(), 1..150)) {
        run_log(ops);
    }
}
