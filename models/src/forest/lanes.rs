//! The form of a forest that vectors of bytes go through: numbers become ranks, and nodes become comparisons of bytes.
//!
//! A feature's thresholds are sorted, and a number is replaced by how many of them it reaches: then `x < threshold` is a
//! comparison of two bytes, whatever the precision of the model. Each feature has a few *columns* of such bytes: one for
//! each 255 thresholds, twice if some splits send missing values left and others right, for then a missing value is the
//! least rank in one and the greatest in the other. Categories, and numbers that are compared for equality, become codes,
//! and a split a set of 256 bits.
//!
//! ```text
//!   one row: a tree's nodes side by side     rows: 64 rows side by side, node after node
//!     all comparisons of a tree at once        reach[left]  = reach[node] and not test
//!     ──► 64 bits ──► the leaf                 reach[right] = reach[node] and test
//! ```
//!
//! Nothing is decided here that the plain form would decide in another way: the leaf of a tree is the same, and leaves
//! are added in the same order and precision.

use super::Number;

/// Leaves of the largest tree that has this form; it has one split fewer, which fit the bits of a word.
pub(super) const LEAVES: usize = 64;

/// Ranks of one column: 0 to 255.
pub(super) const CUTS: usize = 255;

/// Two comparisons with so many thresholds find a rank.
pub(super) const RUNGS: usize = 16;

/// Codes of one set: [`OTHER`], [`MISSING`] and the categories.
pub(super) const CODES: usize = 256;
const OTHER: u8 = 0;
pub(super) const MISSING: u8 = 1;
pub(super) const FIRST: usize = 2;

/// Columns that a byte can name.
pub(super) const NARROW: usize = 256;

/// A vector of bytes, and a line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Bytes(pub(super) [u8; 64]);

/// A vector of words.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Words(pub(super) [u64; 8]);

#[derive(Debug)]
pub(super) struct Lanes<T> {
    /// What each used feature becomes.
    pub(super) ranked: Vec<Ranked>,
    pub(super) coded: Vec<Coded>,
    /// The sorted thresholds of all features.
    pub(super) cuts: Vec<T>,
    /// The same thresholds as vectors: the last of each sixteen, then the sixteens; NaN where there is none.
    pub(super) ladders: Vec<[T; RUNGS]>,
    /// The sorted categories, or numbers, of all sets.
    pub(super) categories: Vec<u32>,
    pub(super) values: Vec<T>,
    /// How many columns of ranks there are, and columns in all.
    pub(super) ranks: usize,
    pub(super) columns: usize,

    /// Whether all trees are numbered like full ones.
    pub(super) full: bool,
    /// Who adds to which margin, in the order of the additions.
    pub(super) runs: Vec<Run>,
    pub(super) trees: Vec<Small>,
    /// For rows side by side.
    pub(super) tests: Vec<Test>,
    pub(super) sets: Vec<SetTest>,
    /// Empty, if the trees are full.
    pub(super) steps: Vec<Step>,
    /// 64 for each tree.
    pub(super) leaves: Vec<[T; LEAVES]>,
    /// For nodes side by side: the column and the rank of each test, if a byte can name all columns.
    pub(super) wide: Vec<[Bytes; 2]>,
    /// For nodes side by side: by feature, code and tree, the splits where the code goes right. Empty, if it would be large.
    pub(super) masks: Vec<u64>,
    /// Which leaves each test that goes right leaves over; empty, if the trees are full.
    pub(super) left_over: Vec<Words>,
}

/// Trees that follow each other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Run {
    /// `trees[from..end]`.
    Small { from: usize, end: usize },
    /// One that does not fit: its root in the plain form, and its margin.
    Plain { root: u32, group: u32 },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Small {
    pub(super) group: u32,
    /// Where its parts end; they begin where those of the tree before end.
    pub(super) tests: u32,
    pub(super) sets: u32,
    pub(super) steps: u32,
    pub(super) left_over: u32,
    pub(super) leaves: u8,
}

/// `column[row] > rank` goes right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Test {
    pub(super) column: u16,
    pub(super) slot: u8,
    pub(super) rank: u8,
}

/// A code in the set goes right.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetTest {
    /// The column of bytes, the one of bits follows.
    pub(super) column: u16,
    /// The index into `coded`.
    pub(super) coded: u16,
    pub(super) slot: u8,
    pub(super) bits: [u8; CODES / 8],
}

/// Where a slot's rows go: a slot, or from [`LEAVES`] on a leaf. Parents stand before their children.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) slot: u8,
    pub(super) left: u8,
    pub(super) right: u8,
}

/// A feature whose numbers become ranks.
#[derive(Debug)]
pub(super) struct Ranked {
    pub(super) feature: u32,
    pub(super) from: u32,
    pub(super) end: u32,
    /// Where in `ladders`, if there are not too few thresholds nor too many.
    pub(super) ladder: Option<u32>,
    /// The first column of those where a missing value is the least rank, and of those where it is the greatest.
    pub(super) low: Option<u16>,
    pub(super) high: Option<u16>,
}

/// A feature whose numbers become codes.
#[derive(Debug)]
pub(super) struct Coded {
    pub(super) feature: u32,
    pub(super) from: u32,
    pub(super) end: u32,
    /// Whether numbers are compared as they are; as categories otherwise.
    pub(super) equal: bool,
    pub(super) column: u16,
    /// Where its words are in `masks`.
    pub(super) masks: usize,
}

impl Coded {
    pub(super) fn codes(&self) -> usize {
        FIRST + (self.end - self.from) as usize
    }
}

impl SetTest {
    pub(super) fn has(&self, code: u8) -> bool {
        self.bits[usize::from(code / 8)] >> (code % 8) & 1 == 1
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            ranked: Vec::new(),
            coded: Vec::new(),
            cuts: Vec::new(),
            ladders: Vec::new(),
            categories: Vec::new(),
            values: Vec::new(),
            ranks: 0,
            columns: 0,
            full: false,
            runs: Vec::new(),
            trees: Vec::new(),
            tests: Vec::new(),
            sets: Vec::new(),
            steps: Vec::new(),
            leaves: Vec::new(),
            wide: Vec::new(),
            masks: Vec::new(),
            left_over: Vec::new(),
        }
    }
}

impl<T: Number> Lanes<T> {
    /// The splits of each tree where a code goes right, if they are known.
    pub(super) fn codes_go_right(&self, coded: &Coded, code: u8) -> Option<&[u64]> {
        let from = coded.masks + usize::from(code) * self.trees.len();
        self.masks.get(from..from + self.trees.len()).filter(|masks| !masks.is_empty())
    }

    /// Whether one row alone can be answered in this form.
    pub(super) fn narrow(&self) -> bool {
        self.ranks <= NARROW
    }

    /// The thresholds of a feature, sorted.
    pub(super) fn cuts(&self, ranked: &Ranked) -> &[T] {
        self.cuts.get(ranked.from as usize..ranked.end as usize).unwrap_or_default()
    }

    /// The thresholds as vectors, the first for which of the others to look at. Then there is one column of each kind.
    pub(super) fn rungs(&self, ranked: &Ranked) -> Option<(&[T; RUNGS], &[[T; RUNGS]; RUNGS])> {
        let (first, others) = self.ladders.get(ranked.ladder? as usize..)?.split_first()?;
        Some((first, others.first_chunk()?))
    }

    /// The code of a number.
    pub(super) fn code(&self, coded: &Coded, x: T) -> u8 {
        if x.is_nan() {
            return MISSING;
        }
        let range = coded.from as usize..coded.end as usize;
        let at = if coded.equal {
            let known = self.values.get(range).unwrap_or_default();
            let at = known.partition_point(|value| *value < x);
            known.get(at).is_some_and(|value| *value == x).then_some(at)
        } else {
            let known = self.categories.get(range).unwrap_or_default();
            x.category().and_then(|category| known.binary_search(&category).ok())
        };
        // There are no more than fit.
        at.map_or(OTHER, |at| (FIRST + at) as u8)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        fn of<V>(vec: &Vec<V>) -> usize {
            vec.capacity() * size_of::<V>()
        }
        of(&self.ranked)
            + of(&self.coded)
            + of(&self.cuts)
            + of(&self.ladders)
            + of(&self.categories)
            + of(&self.values)
            + of(&self.runs)
            + of(&self.trees)
            + of(&self.tests)
            + of(&self.sets)
            + of(&self.steps)
            + of(&self.leaves)
            + of(&self.wide)
            + of(&self.masks)
            + of(&self.left_over)
    }
}

impl Ranked {
    /// Calls back with each column and its byte, for a number that reaches so many thresholds, or none that is missing.
    pub(super) fn each(&self, rank: Option<usize>, mut put: impl FnMut(usize, u8)) {
        let columns = ((self.end - self.from) as usize).div_ceil(CUTS);
        for (first, missing) in [(self.low, 0), (self.high, u8::MAX)] {
            let Some(first) = first else { continue };
            for column in 0..columns {
                let byte = rank.map_or(missing, |rank| rank.saturating_sub(column * CUTS).min(CUTS) as u8);
                put(usize::from(first) + column, byte);
            }
        }
    }
}
