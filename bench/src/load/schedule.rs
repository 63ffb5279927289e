//! When which request is to start: made from a seed, so that every engine of a round meets the same.

use std::time::Duration;

use super::{Arrivals, RequestKind};

/// An endless row of intended starts and the kind of each.
#[derive(Debug)]
pub(super) struct Starts {
    random: fastrand::Rng,
    arrivals: Arrivals,
    mean: f64,
    /// Running sums of the kinds' weights.
    sums: Vec<f64>,
    next: f64,
    kind: usize,
}

impl Starts {
    pub(super) fn new(rate: f64, arrivals: Arrivals, kinds: &[RequestKind], seed: u64) -> Self {
        let mut sum = 0.0;
        let sums = kinds
            .iter()
            .map(|kind| {
                sum += kind.weight;
                sum
            })
            .collect();
        let random = fastrand::Rng::with_seed(seed);
        let mut starts = Self { random, arrivals, mean: 1.0 / rate, sums, next: 0.0, kind: 0 };
        starts.advance();
        starts
    }

    /// The next intended start and its kind.
    pub(super) fn next(&self) -> (Duration, usize) {
        (Duration::from_secs_f64(self.next), self.kind)
    }

    pub(super) fn advance(&mut self) {
        self.next += match self.arrivals {
            Arrivals::Even => self.mean,
            Arrivals::Random => -self.mean * (1.0 - self.random.f64()).ln(),
        };
        let place = self.random.f64() * self.sums.last().copied().unwrap_or(0.0);
        self.kind = self.sums.iter().position(|sum| place < *sum).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds() -> Vec<RequestKind> {
        vec![
            RequestKind { path: "/".to_owned(), weight: 99.0 },
            RequestKind { path: "/wait/50".to_owned(), weight: 1.0 },
        ]
    }

    fn first(n: usize, mut starts: Starts) -> Vec<(Duration, usize)> {
        (0..n)
            .map(|_| {
                let next = starts.next();
                starts.advance();
                next
            })
            .collect()
    }

    #[test]
    fn one_seed_is_one_schedule() {
        let of = |seed| first(1000, Starts::new(100.0, Arrivals::Random, &kinds(), seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn random_arrivals_have_the_rate_the_spread_and_the_mix() {
        let all = first(100_000, Starts::new(1000.0, Arrivals::Random, &kinds(), 7));
        let seconds = all.last().unwrap().0.as_secs_f64();
        assert!((seconds - 100.0).abs() < 1.0, "1000 a second: {seconds}");
        // Of a Poisson process, e^-1 of the distances are longer than the mean.
        let longer =
            all.windows(2).filter(|two| (two[1].0 - two[0].0).as_secs_f64() > 0.001).count();
        assert!((36_000..37_600).contains(&longer), "{longer}");
        let heavy = all.iter().filter(|(_, kind)| *kind == 1).count();
        assert!((900..1100).contains(&heavy), "{heavy}");
    }

    #[test]
    fn even_arrivals_are_even() {
        let all = first(10, Starts::new(100.0, Arrivals::Even, &kinds(), 7));
        assert_eq!(all[9].0.as_millis(), 100);
    }
}
