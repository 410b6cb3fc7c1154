//! Who sends what to whom, and when: pure arithmetic, no clock.

use std::time::Duration;

/// The whole run: `rate` messages a second, evenly spaced, dealt to the agents in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    agents: u64,
    rate: u64,
    /// How many messages there are in all.
    total: u64,
}

impl Plan {
    /// A plan for at least one agent and one message a second.
    pub(crate) fn new(agents: usize, rate: u64, duration: Duration) -> Self {
        let total = u128::from(rate) * duration.as_nanos() / 1_000_000_000;
        Self {
            agents: agents.max(1) as u64,
            rate: rate.max(1),
            total: u64::try_from(total).unwrap_or(u64::MAX),
        }
    }

    /// The part of one agent.
    pub(crate) fn agent(&self, agent: usize) -> Schedule {
        Schedule {
            plan: *self,
            agent: agent as u64,
            next: 0,
        }
    }

    /// An upper bound of the messages between any two agents.
    pub(crate) fn most_per_pair(&self) -> u64 {
        self.total.div_ceil(self.agents).div_ceil(self.others())
    }

    fn others(&self) -> u64 {
        // An agent that is alone writes to itself.
        (self.agents - 1).max(1)
    }
}

/// What one agent sends: to each of the others in turn, each pair with sequence numbers of its own
/// that count from 0 without a hole.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    plan: Plan,
    agent: u64,
    next: u64,
}

/// One message of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// When it is to be sent, from the start of the run.
    pub(crate) at: Duration,
    /// The agent that it is for.
    pub(crate) recipient: usize,
    /// Its number between this sender and this recipient.
    pub(crate) seq: u64,
}

impl Schedule {
    /// The next message, if there is one left.
    pub(crate) fn peek(&self) -> Option<Slot> {
        let Plan { agents, rate, .. } = self.plan;
        let index = self.next.checked_mul(agents)?.checked_add(self.agent)?;
        if index >= self.plan.total {
            return None;
        }
        let nanos = u128::from(index) * 1_000_000_000 / u128::from(rate);
        let others = self.plan.others();
        Some(Slot {
            at: Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)),
            recipient: self.recipient(self.next % others),
            seq: self.next / others,
        })
    }

    /// The next message if it is due `elapsed` after the start; it is then done with.
    pub(crate) fn due(&mut self, elapsed: Duration) -> Option<Slot> {
        let slot = self.peek().filter(|slot| slot.at <= elapsed)?;
        self.next += 1;
        Some(slot)
    }

    /// How many messages were taken for each agent so far.
    pub(crate) fn taken(&self) -> Vec<u64> {
        let others = self.plan.others();
        let mut taken = vec![0; self.plan.agents as usize];
        for turn in 0..others.min(self.next) {
            taken[self.recipient(turn)] = (self.next - turn).div_ceil(others);
        }
        taken
    }

    fn recipient(&self, turn: u64) -> usize {
        // The neighbour comes first, and with two agents or more nobody is their own.
        let agents = self.plan.agents;
        ((self.agent + 1 + turn) % agents) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut schedule: Schedule) -> Vec<Slot> {
        std::iter::from_fn(|| schedule.due(Duration::MAX)).collect()
    }

    #[test]
    fn the_agents_together_send_rate_times_duration() {
        for (agents, rate, secs) in [(10, 10_000, 10), (3, 1_000, 1), (7, 1, 3), (1, 5, 2)] {
            let plan = Plan::new(agents, rate, Duration::from_secs(secs));
            let sent: usize = (0..agents).map(|a| drain(plan.agent(a)).len()).sum();
            assert_eq!(sent as u64, rate * secs);
            assert_eq!(plan.total, rate * secs);
        }
        let half = Plan::new(2, 10, Duration::from_millis(1_550));
        assert_eq!(half.total, 15);
    }

    #[test]
    fn the_sends_are_evenly_spaced_across_the_agents() {
        let plan = Plan::new(4, 1_000, Duration::from_secs(1));
        let mut times: Vec<_> = (0..4)
            .flat_map(|a| drain(plan.agent(a)))
            .map(|slot| slot.at)
            .collect();
        times.sort();
        let even: Vec<_> = (0..1_000).map(Duration::from_millis).collect();
        assert_eq!(times, even);
    }

    #[test]
    fn an_agent_writes_to_the_others_in_turn_and_numbers_each_pair() {
        let plan = Plan::new(4, 8 * 4, Duration::from_secs(1));
        let slots: Vec<_> = drain(plan.agent(2))
            .iter()
            .map(|s| (s.recipient, s.seq))
            .collect();
        let turns = [
            (3, 0),
            (0, 0),
            (1, 0),
            (3, 1),
            (0, 1),
            (1, 1),
            (3, 2),
            (0, 2),
        ];
        assert_eq!(slots, turns);
    }

    #[test]
    fn an_agent_alone_writes_to_itself() {
        let slots = drain(Plan::new(1, 3, Duration::from_secs(1)).agent(0));
        let seen: Vec<_> = slots.iter().map(|s| (s.recipient, s.seq)).collect();
        assert_eq!(seen, [(0, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut schedule = Plan::new(2, 10, Duration::from_secs(1)).agent(1);
        assert_eq!(schedule.due(Duration::from_millis(99)), None);
        assert!(schedule.due(Duration::from_millis(100)).is_some());
        assert_eq!(schedule.due(Duration::from_millis(100)), None);
    }

    #[test]
    fn what_was_taken_is_counted_per_recipient() {
        for agents in [1, 2, 5] {
            let plan = Plan::new(agents, 100, Duration::from_secs(1));
            let mut schedule = plan.agent(0);
            let mut counted = vec![0; agents];
            assert_eq!(schedule.taken(), counted);
            while let Some(slot) = schedule.due(Duration::MAX) {
                assert_eq!(slot.seq, counted[slot.recipient]);
                counted[slot.recipient] += 1;
                assert_eq!(schedule.taken(), counted);
                assert!(slot.seq < plan.most_per_pair());
            }
        }
    }
}
