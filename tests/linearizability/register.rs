//! Whether reads of a value that only ever grows can have happened one after another, each at a moment between its call
//! and its return.
//!
//! They can if no read that was called after another had returned shows a smaller version. For such a register that is
//! all there is to check: sorted by return, with the greatest version so far, it takes O(n log n).

/// One read, or the one write of its version; times in nanoseconds since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    pub called: u64,
    pub returned: u64,
    pub version: u64,
}

/// A read that shows less than another had shown before it was called.
#[derive(Debug, PartialEq, Eq)]
pub struct Stale {
    pub read: Read,
    pub before: Read,
}

/// Every read that is out of order. Leaves the reads sorted by their return.
pub fn stale(reads: &mut [Read]) -> Vec<Stale> {
    reads.sort_unstable_by_key(|read| read.returned);
    // Of those that returned up to here, the one with the greatest version.
    let mut greatest: Vec<u32> = Vec::with_capacity(reads.len());
    for (index, read) in reads.iter().enumerate() {
        let best = greatest.last().filter(|best| reads[**best as usize].version >= read.version);
        greatest.push(best.copied().unwrap_or_else(|| u32::try_from(index).unwrap()));
    }
    let out_of_order = |read: &Read| {
        let returned = reads.partition_point(|other| other.returned < read.called);
        let before = reads[*greatest.get(returned.checked_sub(1)?)? as usize];
        (before.version > read.version).then_some(Stale { read: *read, before })
    };
    reads.iter().filter_map(out_of_order).collect()
}

mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read((called, returned, version): (u64, u64, u64)) -> Read {
        Read { called, returned, version }
    }

    fn stale_of(reads: &[(u64, u64, u64)]) -> Vec<(u64, u64)> {
        let mut reads: Vec<_> = reads.iter().copied().map(read).collect();
        stale(&mut reads).into_iter().map(|stale| (stale.read.version, stale.before.version)).collect()
    }

    #[test]
    fn reads_that_could_have_happened_one_after_another_pass() {
        assert_eq!(stale_of(&[]), []);
        assert_eq!(stale_of(&[(0, 9, 1)]), []);
        assert_eq!(stale_of(&[(0, 1, 1), (2, 3, 1), (4, 5, 2), (6, 7, 9)]), []);
        // They overlap: either may have been the first, also where one returns as the other is called.
        assert_eq!(stale_of(&[(0, 5, 2), (3, 9, 1)]), []);
        assert_eq!(stale_of(&[(0, 5, 2), (5, 9, 1)]), []);
        // A long one that began before all others.
        assert_eq!(stale_of(&[(0, 100, 1), (10, 20, 2), (30, 40, 3)]), []);
    }

    #[test]
    fn a_read_that_shows_less_than_one_that_had_returned_is_found() {
        assert_eq!(stale_of(&[(0, 5, 2), (6, 9, 1)]), [(1, 2)]);
        // Of another connection, with others between and around.
        assert_eq!(stale_of(&[(0, 90, 1), (1, 5, 7), (2, 30, 3), (31, 40, 6), (41, 50, 7)]), [(6, 7)]);
        // The greatest counts, not the last.
        assert_eq!(stale_of(&[(0, 1, 9), (0, 2, 3), (3, 4, 5), (3, 5, 9)]), [(5, 9)]);
        // Each of them.
        assert_eq!(stale_of(&[(0, 1, 3), (2, 3, 2), (4, 5, 1)]), [(2, 3), (1, 3)]);
    }

    proptest! {
        #[test]
        fn it_finds_what_comparing_each_with_each_finds(
            reads in prop::collection::vec((0..60_u64, 0..20_u64, 0..8_u64), 0..40)
        ) {
            let mut reads: Vec<_> =
                reads.into_iter().map(|(called, took, version)| read((called, called + took, version))).collect();
            let mut expected: Vec<_> = reads
                .iter()
                .filter(|read| reads.iter().any(|o| o.returned < read.called && o.version > read.version))
                .map(|read| (read.called, read.returned, read.version))
                .collect();
            let mut found: Vec<_> = stale(&mut reads)
                .into_iter()
                .inspect(|stale| assert!(stale.before.returned < stale.read.called))
                .inspect(|stale| assert!(stale.before.version > stale.read.version))
                .map(|stale| (stale.read.called, stale.read.returned, stale.read.version))
                .collect();
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
