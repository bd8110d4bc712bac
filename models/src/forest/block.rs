//! The evaluation of [`Lanes`] for rows side by side: each test of a tree asks all of them, and the bits are carried down
//! to the leaves. What a processor has vectors for is passed in, and all else is written once: it is compiled into each
//! caller, for the processor that it is for.

use super::lanes::{Bytes, LEAVES, Lanes, RUNGS, Run};
use super::walk::{climb, rank};
use super::{Forest, Number};

/// Rows of one vector of bytes.
pub(super) const ROWS: usize = 64;

/// What the columns of a block may take of the second-level cache.
const CACHE: usize = 256 << 10;

#[derive(Default)]
pub(super) struct Scratch<T> {
    pub(super) codes: Vec<u8>,
    columns: Vec<Bytes>,
    sums: Vec<T>,
}

/// What a processor does at once.
pub(super) struct Kernels<Above, Among, Turns, Numbers, AddLeaves, Reached> {
    /// The bits of the bytes that are above one.
    pub(super) above: Above,
    /// The bits of the codes that are in a set, which has 256 bits: of each code the byte, and the bit in it.
    pub(super) among: Among,
    /// [`turns`] and [`numbers`], in functions of their own: within others they get no vectors.
    pub(super) turns: Turns,
    pub(super) numbers: Numbers,
    /// Adds to the sums the leaves whose numbers have these bits, the lowest first.
    pub(super) add_leaves: AddLeaves,
    /// How many of the numbers are not above one.
    pub(super) reached: Reached,
}

/// Splits rows into blocks, which go to `many` with their number of [`ROWS`], and, where fewer than `batch` are left, into
/// single rows, which go to `one`.
#[inline(always)]
pub(super) fn split<T: Number>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    (mut rows, mut margins): (&[T], &mut [T]),
    batch: usize,
    mut one: impl FnMut(&[T], &mut [T], &mut Scratch<T>),
    mut many: impl FnMut(usize, &[T], &mut [T], &mut Scratch<T>),
) {
    let (features, groups) = (forest.features.max(1), forest.groups.max(1));
    let mut scratch = Scratch::default();
    loop {
        let count = rows.len() / features;
        if count == 0 {
            return;
        }
        let fits = |words: usize| count > words / 2 * ROWS && lanes.columns * words * ROWS <= CACHE;
        let alone = count < batch && lanes.narrow();
        // Eight of them do not stay in the first-level cache on their way to the leaves.
        let words = [4, 2].into_iter().find(|words| fits(*words)).unwrap_or(1);
        let now = if alone { 1 } else { count.min(words * ROWS) };
        let (block, rest) = rows.split_at(now * features);
        let (sums, others) = margins.split_at_mut((now * groups).min(margins.len()));
        if alone {
            one(block, sums, &mut scratch);
        } else {
            many(words, block, sums, &mut scratch);
        }
        (rows, margins) = (rest, others);
    }
}

#[inline(always)]
pub(super) fn add<T: Number, const WORDS: usize>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    rows: &[T],
    margins: &mut [T],
    scratch: &mut Scratch<T>,
    kernels: &Kernels<
        impl Fn(&Bytes, u8) -> u64,
        impl Fn(&Bytes, &Bytes, &[u8; 32]) -> u64,
        impl Fn(&[[u64; WORDS]; LEAVES]) -> [[u64; WORDS]; 6],
        impl Fn(&[[u64; WORDS]; 2 * LEAVES]) -> [[u64; WORDS]; 6],
        impl Fn(&[T; LEAVES], &[[u64; WORDS]; 6], &mut [T]),
        impl Fn(&[T; RUNGS], T) -> usize,
    >,
) {
    let (features, groups) = (forest.features.max(1), forest.groups.max(1));
    encode(lanes, rows, features, WORDS, &mut scratch.columns, &kernels.reached);
    let columns = scratch.columns.as_chunks::<WORDS>().0;

    // By margin, so that a tree adds to a run of numbers.
    let block = WORDS * ROWS;
    let sums = &mut scratch.sums;
    sums.clear();
    sums.resize(groups * block, T::default());
    for (sums, group) in sums.chunks_exact_mut(block).zip(0..) {
        sums.iter_mut().zip(margins.iter().skip(group).step_by(groups)).for_each(|(sum, margin)| *sum = *margin);
    }

    let mut right = [[0_u64; WORDS]; LEAVES];
    let mut reach = [[0_u64; WORDS]; 2 * LEAVES];
    let (mut test, mut set, mut step) = (0, 0, 0);
    for run in &lanes.runs {
        let (from, end) = match *run {
            Run::Small { from, end } => (from, end),
            Run::Plain { root, group } => {
                let sums = sums.get_mut(group as usize * block..).unwrap_or_default();
                for (row, sum) in rows.chunks_exact(features).zip(sums) {
                    *sum += forest.leaf(root, row);
                }
                continue;
            }
        };
        let trees = lanes.trees.get(from..end).unwrap_or_default();
        for (tree, leaves) in trees.iter().zip(lanes.leaves.get(from..end).unwrap_or_default()) {
            let whole = usize::from(tree.leaves) == LEAVES;
            if lanes.full && !whole {
                right.fill([0; WORDS]);
            }
            for test in lanes.tests.get(test..tree.tests as usize).unwrap_or_default() {
                let Some(column) = columns.get(usize::from(test.column)) else { continue };
                for (bits, bytes) in right[usize::from(test.slot) % LEAVES].iter_mut().zip(column) {
                    *bits = (kernels.above)(bytes, test.rank);
                }
            }
            test = tree.tests as usize;
            for test in lanes.sets.get(set..tree.sets as usize).unwrap_or_default() {
                let at = usize::from(test.column);
                let Some([bytes, bits]) = columns.get(at..at + 2) else { continue };
                let right = right[usize::from(test.slot) % LEAVES].iter_mut();
                for ((right, bytes), bits) in right.zip(bytes).zip(bits) {
                    *right = (kernels.among)(bytes, bits, &test.bits);
                }
            }
            set = tree.sets as usize;

            let planes = if lanes.full {
                (kernels.turns)(&right)
            } else {
                if !whole {
                    reach[LEAVES..].fill([0; WORDS]);
                }
                let steps = lanes.steps.get(step..tree.steps as usize).unwrap_or_default();
                step = tree.steps as usize;
                // A tree of one leaf has no step.
                let root = steps.first().map_or(LEAVES, |step| usize::from(step.slot));
                reach[root % (2 * LEAVES)] = [u64::MAX; WORDS];
                for step in steps {
                    let goes_right = &right[usize::from(step.slot) % LEAVES];
                    let here = reach[usize::from(step.slot) % LEAVES];
                    reach[usize::from(step.left) % (2 * LEAVES)] = std::array::from_fn(|at| here[at] & !goes_right[at]);
                    reach[usize::from(step.right) % (2 * LEAVES)] = std::array::from_fn(|at| here[at] & goes_right[at]);
                }
                (kernels.numbers)(&reach)
            };
            let sums = sums.get_mut(tree.group as usize * block..).unwrap_or_default();
            (kernels.add_leaves)(leaves, &planes, sums);
        }
    }

    for (sums, group) in sums.chunks_exact(block).zip(0..) {
        margins.iter_mut().skip(group).step_by(groups).zip(sums).for_each(|(margin, sum)| *margin = *sum);
    }
}

/// Makes the columns of a block of rows; what is beyond the last row has some byte or other.
#[inline(always)]
fn encode<T: Number>(
    lanes: &Lanes<T>,
    rows: &[T],
    features: usize,
    words: usize,
    columns: &mut Vec<Bytes>,
    reached: impl Fn(&[T; RUNGS], T) -> usize,
) {
    columns.resize(lanes.columns * words, Bytes([0; 64]));
    for ranked in &lanes.ranked {
        let numbers = || rows.iter().skip(ranked.feature as usize).step_by(features);
        if let Some((first, others)) = lanes.rungs(ranked) {
            for (column, missing) in [(ranked.low, 0), (ranked.high, u8::MAX)] {
                let Some(column) = column else { continue };
                let bytes = columns.get_mut(usize::from(column) * words..).unwrap_or_default();
                let bytes = bytes.iter_mut().flat_map(|bytes| &mut bytes.0);
                for (x, byte) in numbers().zip(bytes) {
                    *byte = if x.is_nan() { missing } else { climb(first, others, *x, &reached) as u8 };
                }
            }
            continue;
        }
        for (row, x) in numbers().enumerate() {
            ranked.each(rank(lanes, ranked, *x, &reached), |column, byte| put(columns, column * words, row, byte));
        }
    }
    for coded in &lanes.coded {
        let column = usize::from(coded.column);
        for (row, x) in rows.iter().skip(coded.feature as usize).step_by(features).enumerate() {
            let code = lanes.code(coded, *x);
            put(columns, column * words, row, code / 8);
            put(columns, (column + 1) * words, row, 1 << (code % 8));
        }
    }
}

fn put(columns: &mut [Bytes], column: usize, row: usize, byte: u8) {
    if let Some(bytes) = columns.get_mut(column + row / ROWS) {
        bytes.0[row % ROWS] = byte;
    }
}

/// The bits of the paths through a full tree, from the bits of its splits: at each depth the turns before choose the
/// split whose bit is the next turn.
#[inline(always)]
pub(super) fn turns<const WORDS: usize>(right: &[[u64; WORDS]; LEAVES]) -> [[u64; WORDS]; 6] {
    let mut planes = [[0; WORDS]; 6];
    planes[5] = right[1];
    planes[4] = chosen::<WORDS, 2>(right, &planes);
    planes[3] = chosen::<WORDS, 4>(right, &planes);
    planes[2] = chosen::<WORDS, 8>(right, &planes);
    planes[1] = chosen::<WORDS, 16>(right, &planes);
    planes[0] = chosen::<WORDS, 32>(right, &planes);
    planes
}

/// Of the splits of one depth, `SPLITS` from the one of that number on, the bit of that where a path is.
#[inline(always)]
fn chosen<const WORDS: usize, const SPLITS: usize>(
    right: &[[u64; WORDS]; LEAVES],
    planes: &[[u64; WORDS]; 6],
) -> [u64; WORDS] {
    let mut open = [[0; WORDS]; SPLITS];
    open.copy_from_slice(&right[SPLITS..2 * SPLITS]);
    let mut width = SPLITS;
    for turn in planes.iter().rev().take(SPLITS.ilog2() as usize) {
        width /= 2;
        for at in 0..width {
            for word in 0..WORDS {
                let (left, right) = (open[at][word], open[at + width][word]);
                open[at][word] = left ^ (left ^ right) & turn[word];
            }
        }
    }
    open[0]
}

/// The bits of the numbers of the leaves that are reached.
#[inline(always)]
pub(super) fn numbers<const WORDS: usize>(reach: &[[u64; WORDS]; 2 * LEAVES]) -> [[u64; WORDS]; 6] {
    let mut planes = [[0; WORDS]; 6];
    let mut fold = [[0; WORDS]; LEAVES];
    fold.copy_from_slice(&reach[LEAVES..]);
    let mut width = LEAVES;
    for plane in &mut planes {
        width /= 2;
        for at in 0..width {
            for word in 0..WORDS {
                let odd = fold[2 * at + 1][word];
                plane[word] |= odd;
                fold[at][word] = fold[2 * at][word] | odd;
            }
        }
    }
    planes
}
