//! The arithmetic: what rounds say together.
//!
//! Owns: median, spread, balance, ratios and what is an outlier. Promises: pure functions, tested
//! exactly; nothing is dropped from a set of values without a word. Never does: I/O, or decide what
//! is shown.

/// What a set of values comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// How many.
    pub n: usize,
    /// The middle one; of an even number the mean of the middle two.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample (n - 1); 0 of one value.
    pub deviation: f64,
}

impl Spread {
    /// `None` of no values. Values that are not numbers are no values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len();
        let mean = mean_of(&sorted)?;
        let deviation = if n < 2 {
            0.0
        } else {
            let squares: f64 = sorted.iter().map(|v| (v - mean) * (v - mean)).sum();
            (squares / count(n - 1)).sqrt()
        };
        Some(Self { n, median: median_of(&sorted)?, min, max, mean, deviation })
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts 2^52 workers or rounds")]
const fn count(n: usize) -> f64 {
    n as f64
}

fn mean_of(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / count(values.len()))
}

/// Of sorted values.
fn median_of(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted.get(half.checked_sub(1)?)? + upper) / 2.0)
}

/// The median; `None` of no values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// How evenly something is spread over workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    /// Coefficient of variation: standard deviation of the population over the mean. 0 is even.
    pub cv: f64,
    /// Largest over smallest; infinite when one has none.
    pub max_over_min: f64,
    /// Jain's index, (Σx)² / (n Σx²): 1 is even, 1/n is all on one.
    pub jain: f64,
}

impl Balance {
    /// `None` of no workers, or when none has anything.
    #[must_use]
    pub fn of(counts: &[u64]) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds, far below 2^52")]
        let counts: Vec<f64> = counts.iter().map(|n| *n as f64).collect();
        let mean = mean_of(&counts).filter(|mean| *mean > 0.0)?;
        let squares: f64 = counts.iter().map(|x| x * x).sum();
        let variance =
            counts.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count(counts.len());
        let largest = counts.iter().copied().fold(0.0, f64::max);
        let smallest = counts.iter().copied().fold(f64::INFINITY, f64::min);
        let sum: f64 = counts.iter().sum();
        Some(Self {
            cv: variance.sqrt() / mean,
            max_over_min: if smallest > 0.0 { largest / smallest } else { f64::INFINITY },
            jain: sum * sum / (count(counts.len()) * squares),
        })
    }
}

/// Ratios of two sets of (round, value), round by round: rounds that both have, where the second is
/// not 0.
#[must_use]
pub fn ratios(of: &[(u32, f64)], against: &[(u32, f64)]) -> Vec<f64> {
    of.iter()
        .filter_map(|(round, value)| {
            let (_, base) = against.iter().find(|(other, base)| other == round && *base > 0.0)?;
            Some(value / base)
        })
        .collect()
}

/// Which values are outliers: their modified z-score, 0.6745 × |x − median| / MAD, is above 3.5
/// (Iglewicz and Hoaglin, 1993), and they are more than a tenth of the median off it, since five
/// rounds that happen to agree have a MAD of nearly nothing. Of fewer than four values none can be
/// told.
#[must_use]
pub fn outliers(values: &[f64]) -> Vec<usize> {
    let Some(spread) = Spread::of(values).filter(|spread| spread.n >= 4) else { return Vec::new() };
    let distances: Vec<f64> = values.iter().map(|v| (v - spread.median).abs()).collect();
    let mad = median(&distances).unwrap_or(0.0);
    distances
        .iter()
        .enumerate()
        .filter(|(_, distance)| {
            0.6745 * **distance > 3.5 * mad && **distance > 0.1 * spread.median.abs()
        })
        .map(|(at, _)| at)
        .collect()
}

/// How many values it takes so that `beyond` of them lie beyond a percentile (of 100).
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of values, rounded up"
)]
pub fn needed_for(percentile: f64, beyond: u32) -> u64 {
    (f64::from(beyond) * 100.0 / (100.0 - percentile) - 1e-6).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn spread_of_known_values() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[f64::NAN]), None);
        let one = Spread::of(&[3.0]).unwrap();
        assert!(near(one.median, 3.0) && near(one.deviation, 0.0) && one.n == 1);
        let s = Spread::of(&[9.0, 2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0]).unwrap();
        assert!(near(s.median, 4.5) && near(s.mean, 5.0) && near(s.min, 2.0) && near(s.max, 9.0));
        assert!(near(s.deviation, (32.0_f64 / 7.0).sqrt()));
        assert!(near(median(&[5.0, 1.0, 3.0]).unwrap(), 3.0));
    }

    #[test]
    fn balance_of_known_counts() {
        assert_eq!(Balance::of(&[]), None);
        assert_eq!(Balance::of(&[0, 0]), None);
        let even = Balance::of(&[5, 5, 5, 5]).unwrap();
        assert!(near(even.cv, 0.0) && near(even.max_over_min, 1.0) && near(even.jain, 1.0));
        let one = Balance::of(&[8, 0, 0, 0]).unwrap();
        assert!(near(one.jain, 0.25) && one.max_over_min.is_infinite());
        assert!(near(one.cv, 3.0_f64.sqrt()));
        let two = Balance::of(&[1, 3]).unwrap();
        assert!(near(two.cv, 0.5) && near(two.max_over_min, 3.0) && near(two.jain, 0.8));
    }

    #[test]
    fn ratios_are_made_within_rounds() {
        let a = [(0, 10.0), (1, 30.0), (2, 5.0), (3, 1.0)];
        let b = [(1, 20.0), (0, 5.0), (2, 0.0)];
        assert_eq!(ratios(&a, &b), vec![2.0, 1.5]);
    }

    #[test]
    fn outliers_need_distance_and_company() {
        assert!(outliers(&[1.0, 1.0, 50.0]).is_empty(), "three rounds cannot tell");
        assert_eq!(outliers(&[100.0, 101.0, 99.0, 100.0, 300.0]), vec![4]);
        assert!(outliers(&[100.0, 100.0, 100.0, 100.0, 100.5]).is_empty(), "half a percent off");
        assert!(outliers(&[80.0, 100.0, 120.0, 90.0, 110.0]).is_empty(), "wide, but one crowd");
    }

    #[test]
    fn a_percentile_needs_values_beyond_it() {
        assert_eq!(needed_for(99.0, 10), 1_000);
        assert_eq!(needed_for(99.9, 10), 10_000);
        assert_eq!(needed_for(50.0, 10), 20);
    }
}
