//! A plan of faults, for tests of how a program takes them. The same plan on the same calls in the
//! same order raises the same faults.

use std::time::Duration;

use mas_transport_core::{ErrorKind, Topic};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Which calls a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultOperation {
    /// Publishing; each message is an occurrence.
    Publish,
    /// Fetching; each call is an occurrence.
    Fetch,
    /// Settling; each settlement is an occurrence.
    Settle,
    /// Subscribing; each call is an occurrence.
    Subscribe,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultEffect {
    /// It fails with this kind and nothing happens: [`Stored::No`](mas_transport_core::Stored::No).
    Refuse(ErrorKind),
    /// It happens at once and the answer comes later; a fetch or a subscribe starts later.
    Delay(Duration),
    /// It happens and the answer is lost: `Unavailable`, and
    /// [`Stored::Unknown`](mas_transport_core::Stored::Unknown). What a fetch took is leased and
    /// comes back when the lease ends.
    LoseAck,
    /// The connection breaks before it happens and stays down for this long: everything on it
    /// fails with `Unavailable`, and its fetches raise `Reconnected` afterwards.
    Disconnect(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Occurrence {
    Nth(u64),
    Every(u64),
    Probability(f64),
}

/// One rule of a [`FaultPlan`]: every occurrence of an operation, unless narrowed.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultRule {
    operation: FaultOperation,
    topic: Option<String>,
    occurrence: Occurrence,
    effect: FaultEffect,
}

impl FaultRule {
    /// Every occurrence of `operation`, on every topic, has `effect`.
    pub fn new(operation: FaultOperation, effect: FaultEffect) -> Self {
        Self {
            operation,
            topic: None,
            occurrence: Occurrence::Every(1),
            effect,
        }
    }

    /// Only on this topic, by its full name.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Only the nth occurrence; the first is 1.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.occurrence = Occurrence::Nth(nth);
        self
    }

    /// Only every nth occurrence: the nth, the 2nth, …
    #[must_use]
    pub fn every(mut self, nth: u64) -> Self {
        self.occurrence = Occurrence::Every(nth.max(1));
        self
    }

    /// Each occurrence with this probability, 0.0 to 1.0.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.occurrence = Occurrence::Probability(probability.clamp(0.0, 1.0));
        self
    }
}

/// A seeded plan of faults. Of the rules that apply to an occurrence the first one acts.
///
/// ```
/// # use mas_transport_memory::{FaultEffect, FaultOperation, FaultPlan, FaultRule};
/// let plan = FaultPlan::new(7)
///     .rule(FaultRule::new(FaultOperation::Publish, FaultEffect::LoseAck).probability(0.01))
///     .rule(FaultRule::new(FaultOperation::Settle, FaultEffect::LoseAck).topic("orders").nth(3));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    seed: u64,
    rules: Vec<FaultRule>,
}

impl FaultPlan {
    /// A plan without rules. The seed decides about rules with a probability.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rules: Vec::new(),
        }
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: FaultRule) -> Self {
        self.rules.push(rule);
        self
    }
}

/// A plan under way.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<(FaultRule, u64, StdRng)>,
}

impl Faults {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        let rules = (0..).zip(plan.rules);
        let rules = rules.map(|(at, rule): (u64, _)| {
            // A generator of its own for each rule: adding one does not change the others.
            let seed = plan
                .seed
                .wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            (rule, 0, StdRng::seed_from_u64(seed))
        });
        Self {
            rules: rules.collect(),
        }
    }

    /// What this occurrence comes to.
    pub(crate) fn draw(&mut self, operation: FaultOperation, topic: &Topic) -> Option<FaultEffect> {
        let mut effect = None;
        for (rule, seen, random) in &mut self.rules {
            let named = rule.topic.as_deref();
            if rule.operation != operation || named.is_some_and(|t| t != topic.as_str()) {
                continue;
            }
            *seen += 1;
            let acts = match rule.occurrence {
                Occurrence::Nth(nth) => *seen == nth,
                Occurrence::Every(nth) => seen.is_multiple_of(nth),
                Occurrence::Probability(p) => random.random_bool(p),
            };
            if acts && effect.is_none() {
                effect = Some(rule.effect);
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_repeats_itself_and_the_first_rule_that_applies_acts() {
        let topic = Topic::new("a").unwrap();
        let refuse = FaultEffect::Refuse(ErrorKind::Full);
        let plan = FaultPlan::new(1)
            .rule(FaultRule::new(FaultOperation::Publish, refuse).nth(2))
            .rule(FaultRule::new(FaultOperation::Publish, FaultEffect::LoseAck).every(2))
            .rule(FaultRule::new(FaultOperation::Fetch, refuse).probability(0.5))
            .rule(FaultRule::new(FaultOperation::Settle, refuse).topic("a.b"));
        let mut one = Faults::new(plan.clone());
        let drawn: Vec<_> = (0..4)
            .map(|_| one.draw(FaultOperation::Publish, &topic))
            .collect();
        let lose = Some(FaultEffect::LoseAck);
        assert_eq!(drawn, [None, Some(refuse), None, lose]);
        assert_eq!(one.draw(FaultOperation::Settle, &topic), None);
        let mut two = Faults::new(plan);
        let fetches = |faults: &mut Faults| -> Vec<_> {
            let draws = (0..64).map(|_| faults.draw(FaultOperation::Fetch, &topic));
            draws.collect()
        };
        let first = fetches(&mut one);
        assert_eq!(first, fetches(&mut two));
        assert!(first.contains(&None) && first.contains(&Some(refuse)));
    }
}
