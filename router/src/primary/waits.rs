//! How long connections waited in the primary: a histogram of microseconds.
//!
//! Owns the counts. Promises: two significant digits between 1 µs and an hour; to record costs one
//! count, never an allocation. The buckets are those of hdrhistogram, whose crate is what the tests
//! compare with; it is not linked, as it alone would bring libm along: half a MiB of resident memory
//! for one logarithm.

/// Values up to `2^DIGITS` are told apart; of larger ones so many leading binary digits.
const DIGITS: u32 = 8;
/// Buckets of one power of two above that.
const STEPS: usize = 1 << (DIGITS - 1);
/// 2^32 µs are more than an hour.
const BUCKETS: usize = (1 << DIGITS) + (u32::BITS - DIGITS) as usize * STEPS;

/// See the module.
#[derive(Debug)]
pub(super) struct Waits {
    counts: Box<[u64]>,
    total: u64,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0 }
    }

    /// One that waited so long. What is beyond the largest that is told apart counts as that.
    pub(super) fn record(&mut self, us: u64) {
        let us = u32::try_from(us).unwrap_or(u32::MAX);
        if let Some(count) = self.counts.get_mut(bucket(us)) {
            *count += 1;
            self.total += 1;
        }
    }

    pub(super) const fn len(&self) -> u64 {
        self.total
    }

    /// The wait that the share `quantile` of all did not exceed: the upper edge of its bucket.
    pub(super) fn at(&self, quantile: f64) -> Option<u64> {
        at_quantile(self.counts.iter().copied(), quantile).map(upper_edge)
    }
}

const fn bucket(us: u32) -> usize {
    let power = us.checked_ilog2();
    match power {
        Some(power) if power >= DIGITS => {
            // The first digit is a 1 always: the ones after it choose the step.
            let above = (power - DIGITS) as usize;
            let step = (us >> (power + 1 - DIGITS)) as usize - STEPS;
            (1 << DIGITS) + above * STEPS + step
        }
        Some(_) | None => us as usize,
    }
}

fn upper_edge(bucket: usize) -> u64 {
    let Some(beyond) = bucket.checked_sub(1 << DIGITS) else { return bucket as u64 };
    let (above, step) = (beyond / STEPS, beyond % STEPS);
    (((STEPS + step + 1) as u64) << (above + 1)) - 1
}

/// In which of these counts the share `quantile` of all that they count is reached.
pub(super) fn at_quantile(
    counts: impl Iterator<Item = u64> + Clone,
    quantile: f64,
) -> Option<usize> {
    let total: u64 = counts.clone().sum();
    let mut passed = 0;
    counts.enumerate().find_map(|(at, count)| {
        passed += count;
        (count > 0 && passed as f64 >= quantile * total as f64).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;

    #[test]
    fn the_same_as_hdrhistogram() {
        let mut waits = Waits::new();
        let mut other = Histogram::<u64>::new_with_max(u64::from(u32::MAX), 2).unwrap();
        assert_eq!(waits.at(0.5), None);
        // Around every power of two, and far apart.
        let edges = (0..u32::BITS).flat_map(|power| [0, 1, 2].map(|by| (1 << power) - 1 + by));
        let spread = (1..2000).map(|n| u32::wrapping_mul(n * n, 1009));
        for us in edges.chain(spread) {
            waits.record(us.into());
            other.record(us.into()).unwrap();
            assert_eq!(upper_edge(bucket(us)), other.highest_equivalent(us.into()), "{us}");
        }
        assert_eq!(waits.len(), other.len());
        for thousandth in 0..=1000 {
            let quantile = f64::from(thousandth) / 1000.0;
            assert_eq!(waits.at(quantile), Some(other.value_at_quantile(quantile)), "{quantile}");
        }
    }

    #[test]
    fn beyond_the_largest_is_the_largest() {
        let mut waits = Waits::new();
        waits.record(u64::MAX);
        waits.record(1 << 32);
        assert_eq!((waits.len(), waits.at(0.0)), (2, Some(u64::from(u32::MAX))));
    }
}
