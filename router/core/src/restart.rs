//! When a slot's next worker starts: at once, after a wait, or never.
//!
//! Owns the count of crashes in a row. Promises: the first crash costs no wait, the next ones cost
//! `base × 2ⁿ` up to `max`, each off by at most a fifth so that slots that crash together do not
//! start together. Never reads a clock: a wait is a length, not a moment.

use core::time::Duration;

use crate::config::RestartPolicy;

/// What a crash leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start again after this.
    Wait(Duration),
    /// The budget is used up.
    Fail,
}

/// Crashes of one slot in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Streak {
    crashes: u32,
}

impl Streak {
    /// One more crash.
    pub(crate) fn crashed(&mut self, policy: &RestartPolicy, dice: &mut Dice) -> Verdict {
        self.crashes = self.crashes.saturating_add(1);
        if self.crashes < policy.budget.max(1) {
            return Verdict::Wait(dice.spread(self.wait(policy)));
        }
        // `stay` never gives a slot up: it goes on at the longest wait.
        if policy.stay { Verdict::Wait(dice.spread(policy.max)) } else { Verdict::Fail }
    }

    /// A worker lived long enough: what was before it is forgotten.
    pub(crate) fn lived(&mut self) {
        self.crashes = 0;
    }

    pub(crate) fn crashes(self) -> u32 {
        self.crashes
    }

    fn wait(self, policy: &RestartPolicy) -> Duration {
        let Some(doublings) = self.crashes.checked_sub(2) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        policy.base.saturating_mul(factor).min(policy.max)
    }
}

/// Pseudo-random numbers (splitmix64): for jitter, never for anything that must be secret.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::sticky::mix(self.state)
    }

    /// A number from 0 to `most`.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        self.next() % most.saturating_add(1).max(1)
    }

    /// `wait`, off by at most a fifth.
    pub(crate) fn spread(&mut self, wait: Duration) -> Duration {
        // 800 to 1200 thousandths.
        let thousandths = u32::try_from(self.next() % 401).unwrap_or(0) + 800;
        wait.saturating_mul(thousandths) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        base: Duration::from_millis(100),
        max: Duration::from_secs(15),
        budget: 16,
        min_uptime: Duration::from_secs(1),
        first_tries: 3,
        stay: false,
    };

    fn ms(verdict: Verdict) -> u128 {
        match verdict {
            Verdict::Wait(wait) => wait.as_millis(),
            Verdict::Fail => panic!("failed"),
        }
    }

    #[test]
    fn the_first_restart_is_at_once_then_waits_double_to_the_longest() {
        let (mut streak, mut dice) = (Streak::default(), Dice::new(7));
        for middle in [0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000] {
            let wait = ms(streak.crashed(&POLICY, &mut dice));
            assert!((middle * 8 / 10..=middle * 12 / 10).contains(&wait), "{wait} for {middle}");
        }
    }

    #[test]
    fn the_budget_ends_it_and_a_long_life_renews_it() {
        let (mut streak, mut dice) = (Streak::default(), Dice::new(7));
        for _ in 0..15 {
            ms(streak.crashed(&POLICY, &mut dice));
        }
        assert_eq!(streak.crashed(&POLICY, &mut dice), Verdict::Fail);
        streak.lived();
        assert_eq!(streak.crashed(&POLICY, &mut dice), Verdict::Wait(Duration::ZERO));
    }

    #[test]
    fn stay_goes_on_for_ever_at_the_longest_wait() {
        let policy = RestartPolicy { stay: true, budget: 2, ..POLICY };
        let (mut streak, mut dice) = (Streak::default(), Dice::new(7));
        for _ in 0..100 {
            ms(streak.crashed(&policy, &mut dice));
        }
        assert!(ms(streak.crashed(&policy, &mut dice)) >= 12_000);
    }

    #[test]
    fn jitter_stays_within_a_fifth_and_differs() {
        let mut dice = Dice::new(1);
        let waits: alloc::vec::Vec<_> =
            (0..1000).map(|_| dice.spread(Duration::from_millis(1000)).as_millis()).collect();
        assert!(waits.iter().all(|wait| (800..=1200).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < 850) && waits.iter().any(|wait| *wait > 1150));
    }
}
