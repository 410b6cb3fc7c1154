//! Judging what has not come.

use std::collections::HashMap;
use std::time::Duration;

use super::state::{Group, Holding, Published};
use super::{Checker, Flaw};
use crate::history::{Ended, How};

impl Checker<'_> {
    /// The trial has waited long enough.
    pub(super) fn drained(&mut self) {
        let mut found = Vec::new();
        for (number, group) in self.state.groups.iter().enumerate() {
            let attended = self
                .state
                .members
                .values()
                .any(|m| m.group == number && !m.gone);
            if !attended {
                continue;
            }
            if group.taken {
                let why = format!("entries of {} were taken from {}", group.topic, group.name);
                found.push((Flaw::SilentGap, why));
            }
            if !group.gap {
                self.missing(group, &mut found);
            }
            self.stuck(number, group, &mut found);
        }
        for (flaw, why) in found {
            self.find(flaw, why);
        }
    }

    fn missing(&self, group: &Group<'_>, found: &mut Vec<(Flaw, String)>) {
        let due = |id: &str, m: &Published<'_>| {
            m.topic == group.topic
                && m.accepted > 0
                && (m.entry >= group.since || group.kept.contains(id))
                && (!m.forgotten || self.rules.receipts_survive == Some(Duration::ZERO))
        };
        let due: Vec<_> = self
            .state
            .messages
            .iter()
            .filter(|(id, m)| due(id, m))
            .collect();
        // Of each sender, the first and the last that came.
        let mut came: HashMap<u32, (usize, usize)> = HashMap::new();
        for (id, m) in &due {
            if group.delivered.contains(**id) {
                let (first, last) = came.entry(m.sender).or_insert((m.entry, m.entry));
                *first = m.entry.min(*first);
                *last = m.entry.max(*last);
            }
        }
        for (id, m) in due {
            if group.delivered.contains(*id) {
                continue;
            }
            let flaw = match came.get(&m.sender) {
                Some((first, _)) if m.entry < *first => Flaw::LostPrefix,
                Some((_, last)) if m.entry < *last => Flaw::LostMiddle,
                _ => Flaw::LostPostfix,
            };
            let why = format!("{id} on {} never came to {}", m.topic, group.name);
            found.push((flaw, why));
        }
    }

    fn stuck(&self, number: usize, group: &Group<'_>, found: &mut Vec<(Flaw, String)>) {
        let most = self.state.members.values().filter(|m| m.group == number);
        let most = most.map(|m| m.max_attempts).max().unwrap_or(0);
        for ((of, id), copies) in &self.state.copies {
            if *of != number || group.gap {
                continue;
            }
            for copy in copies {
                let (at, delay) = match copy.holding {
                    Holding::Settled {
                        how: How::Nack(delay) | How::Dropped(delay),
                        ended: Ended::Done,
                        called,
                        ..
                    } => (called, delay),
                    Holding::Settling {
                        how: How::Dropped(delay),
                        at,
                    } => (at, delay),
                    _ => continue,
                };
                let latency = self.rules.nack_latency.max(self.rules.delay_slack);
                if copy.attempt < most && self.now > at + delay + latency + self.rules.slack {
                    let why = format!("{id} was given back at {at:?} and never came again");
                    found.push((Flaw::Stuck, why));
                }
            }
        }
    }

    /// What can be said only at the end.
    pub(super) fn finish(&mut self) {
        let mut found = Vec::new();
        for group in &self.state.groups {
            for id in &group.delivered {
                let refused = |m: &Published<'_>| m.refused == m.asked;
                if self.state.messages.get(id).is_some_and(refused) {
                    found.push(format!("{id} was refused, and came to {}", group.name));
                }
            }
        }
        for why in found {
            self.find(Flaw::Aborted, why);
        }
    }
}
