//! How each listener's clients are dealt.
//!
//! Owns the policy of every listener. Workers do not have one: a worker that listens on two addresses
//! is dealt to by load on the one and by address on the other, and its queue and its load count as one.
//! What is a worker's alone (its window, whether it is late or fresh) is worked out as soon as some
//! listener deals by it, and means nothing on the others ([`Ask::standing`](crate::scheduler::Ask)).
//!
//! Promises: one look-up for each connection, by number; either all listeners deal, or none does.

use alloc::vec::Vec;

use crate::config::Policy;
use crate::event::ListenerId;

/// See the module.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "what some listener does, each by itself")]
pub(crate) struct Policies {
    /// Of what was not opened yet; and in any case whether connections pass through the primary.
    default: Policy,
    /// By listener. One that is closed keeps its own: connections of its clients may be in hand, or in
    /// the queue of one who dies.
    known: Vec<Option<Policy>>,
    by_load: bool,
    sticks: bool,
    least: bool,
    differ: bool,
}

impl Policies {
    pub(crate) fn new(default: Policy) -> Self {
        let known = Vec::new();
        let (by_load, sticks, least, differ) = (false, false, false, false);
        let mut all = Self { default, known, by_load, sticks, least, differ };
        all.sum_up();
        all
    }

    /// A listener was opened.
    pub(crate) fn set(&mut self, listener: ListenerId, policy: Policy) {
        debug_assert_eq!(policy.by_hand(), self.by_hand(), "all deal, or none does");
        let place = usize::from(listener.0);
        if self.known.len() <= place {
            self.known.resize(place + 1, None);
        }
        if let Some(known) = self.known.get_mut(place) {
            *known = Some(policy);
        }
        self.sum_up();
    }

    fn sum_up(&mut self) {
        let some = |is_it: fn(Policy) -> bool| {
            let mut known = self.known.iter().flatten().copied().peekable();
            if known.peek().is_some() { known.any(is_it) } else { is_it(self.default) }
        };
        (self.by_load, self.sticks, self.least) = (
            some(Policy::by_load),
            some(|policy| policy == Policy::Ip),
            some(|policy| policy == Policy::Least),
        );
        let mut known = self.known.iter().flatten();
        let first = known.next();
        self.differ = known.any(|policy| Some(policy) != first);
    }

    /// How clients of this listener are dealt.
    pub(crate) fn of(&self, listener: ListenerId) -> Policy {
        self.known.get(usize::from(listener.0)).copied().flatten().unwrap_or(self.default)
    }

    /// Whether connections pass through the primary.
    pub(crate) fn by_hand(&self) -> bool {
        self.default.by_hand()
    }

    /// Whether some listener deals to whoever has least, or is next: windows adapt, workers may be
    /// late, and what waits for a late one is stolen.
    pub(crate) fn by_load(&self) -> bool {
        self.by_load
    }

    /// Whether some listener's clients stick to their workers.
    pub(crate) fn sticks(&self) -> bool {
        self.sticks
    }

    /// Whether some listener deals by load alone: a new worker is not to be flooded there.
    pub(crate) fn least(&self) -> bool {
        self.least
    }

    /// Whether listeners deal differently: one may give to whom the other, for the moment, would not.
    pub(crate) fn differ(&self) -> bool {
        self.differ
    }

    /// Whether one worker's queue may have both kinds of connections.
    pub(crate) fn mixed(&self) -> bool {
        self.by_load && self.sticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_those_that_are_known() {
        let sums = |all: &Policies| (all.by_load(), all.sticks(), all.least(), all.mixed());
        let mut all = Policies::new(Policy::Least);
        assert_eq!(sums(&all), (true, false, true, false), "nothing is open yet");
        assert!(!all.differ());
        all.set(ListenerId(1), Policy::Ip);
        assert_eq!(sums(&all), (false, true, false, false), "the default is nobody's");
        assert_eq!((all.of(ListenerId(0)), all.of(ListenerId(1))), (Policy::Least, Policy::Ip));
        assert_eq!(all.of(ListenerId(255)), Policy::Least);
        all.set(ListenerId(0), Policy::Rr);
        assert_eq!(sums(&all), (true, true, false, true));
        assert!(all.differ());
        // The number is used again.
        all.set(ListenerId(1), Policy::Least);
        assert_eq!(sums(&all), (true, false, true, false));
        assert!(all.by_hand() && !Policies::new(Policy::Shared).by_hand());
    }
}
