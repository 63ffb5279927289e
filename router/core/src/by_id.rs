//! Lists in the order of worker ids.
//!
//! Ids count up, so where nobody has been replaced an id's place is its distance from the first, and
//! where few have been, a little before that. A binary search over 64 workers instead touches six of
//! them, all out of the cache by then, and is asked for several times for each connection.

use crate::event::WorkerId;

/// How far before the place that it has without gaps an id is looked for one by one.
const GAPS_MAX: usize = 4;

/// The index of `id` in a list sorted by id.
pub fn find_by_id<T>(sorted: &[T], id: WorkerId, id_of: impl Fn(&T) -> WorkerId) -> Option<usize> {
    let first = id_of(sorted.first()?);
    let distance = usize::try_from(id.0.checked_sub(first.0)?).ok()?;
    let last = distance.min(sorted.len() - 1);
    for i in (last.saturating_sub(GAPS_MAX)..=last).rev() {
        let found = id_of(sorted.get(i)?);
        if found <= id {
            return (found == id).then_some(i);
        }
    }
    sorted.get(..last)?.binary_search_by_key(&id, id_of).ok()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn finds_what_is_there_and_nothing_else_whatever_the_gaps() {
        // Every set of ids out of 3 to 12, so every pattern of gaps.
        for set in 0_u32..1 << 10 {
            let ids: Vec<WorkerId> =
                (0..10).filter(|bit| set & (1 << bit) != 0).map(|bit| WorkerId(bit + 3)).collect();
            for id in (0..16).map(WorkerId) {
                let place = ids.iter().position(|known| *known == id);
                assert_eq!(find_by_id(&ids, id, |id| *id), place, "{id:?} in {ids:?}");
            }
        }
    }
}
