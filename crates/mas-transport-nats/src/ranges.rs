//! Which places of a stream are settled: plain state, no I/O.

/// Sets of numbers, kept as ranges that do not touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds numbers, in any order.
    pub(crate) fn add(&mut self, mut numbers: Vec<u64>) {
        if numbers.is_empty() {
            return;
        }
        numbers.sort_unstable();
        let mut all: Vec<(u64, u64)> = std::mem::take(&mut self.0);
        all.extend(numbers.into_iter().map(|n| (n, n)));
        all.sort_unstable();
        for (from, to) in all {
            match self.0.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => self.0.push((from, to)),
            }
        }
    }

    /// Forgets what is not above `floor`.
    pub(crate) fn prune(&mut self, floor: u64) {
        self.0.retain_mut(|(from, to)| {
            *from = (*from).max(floor.saturating_add(1));
            *from <= *to
        });
    }

    /// How many numbers above `floor` and up to `to` are not here.
    pub(crate) fn missing(&self, floor: u64, to: u64) -> u64 {
        let all = to.saturating_sub(floor);
        let here = self.0.iter().map(|(a, b)| {
            let (a, b) = ((*a).max(floor.saturating_add(1)), (*b).min(to));
            if a <= b { b - a + 1 } else { 0 }
        });
        all - here.sum::<u64>()
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= number);
        let before = after.checked_sub(1).and_then(|at| self.0.get(at));
        before.is_some_and(|(_, to)| number <= *to)
    }

    /// The number up to which everything above `floor` is here.
    pub(crate) fn reach(&self, floor: u64) -> u64 {
        let next = floor.saturating_add(1);
        let found = self
            .0
            .iter()
            .find(|(from, to)| *from <= next && *to >= next);
        found.map_or(floor, |(_, to)| *to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        let mut ranges = Ranges::default();
        ranges.add(vec![5, 3, 4, 9]);
        ranges.add(vec![6, 1]);
        assert_eq!(ranges.0, [(1, 1), (3, 6), (9, 9)]);
        assert!(ranges.contains(5) && !ranges.contains(2));
        assert_eq!(ranges.reach(0), 1);
        assert_eq!(ranges.reach(1), 1);
        assert_eq!(ranges.reach(2), 6);
        assert_eq!(ranges.missing(0, 9), 3);
        assert_eq!(ranges.missing(2, 5), 0);
        assert_eq!(ranges.missing(9, 2), 0);
        ranges.prune(4);
        assert_eq!(ranges.0, [(5, 6), (9, 9)]);
        ranges.prune(20);
        assert!(ranges.0.is_empty());
    }
}
