//! The evaluation of [`Lanes`] for one row without vectors of its own: full trees are gone down by bytes, of which a whole
//! forest has few enough to stay near. Others are gone down faster in the plain form.

use super::lanes::{Bytes, Coded, LEAVES, Lanes, NARROW, RUNGS, Ranked, Run, Small, Words};
use super::{Forest, Number};

/// How many trees are gone down at the same time.
const PATHS: usize = 8;

/// What there is to be asked of a tree.
pub(super) struct Branches<'a> {
    /// The column and the rank of each split.
    pub(super) wide: &'a [Bytes; 2],
    /// The splits that go right for their sets.
    pub(super) sets: u64,
    /// Which leaves each split that goes right leaves over; empty, if the tree is full.
    pub(super) left_over: &'a [Words],
}

/// What [`Forest::add_margins`] says, if the trees are full and the lanes narrow.
pub(super) fn add_margins<T: Number>(forest: &Forest<T>, lanes: &Lanes<T>, rows: &[T], margins: &mut [T]) {
    let mut codes = Vec::new();
    let rows = rows.chunks_exact(forest.features.max(1));
    for (row, margins) in rows.zip(margins.chunks_exact_mut(forest.groups.max(1))) {
        if lanes.coded.is_empty() {
            let exit = |row: &[u8; NARROW], tree: &Branches<'_>| full_exit(row, &Branches { sets: 0, ..*tree });
            add_row(forest, lanes, row, margins, &mut codes, reached, exit);
        } else {
            add_row(forest, lanes, row, margins, &mut codes, reached, full_exit);
        }
    }
}

/// Adds a row's leaves, if the lanes are narrow. `reached` says how many of the numbers are not above one, and `exit` which
/// leaf the bytes of a row lead to.
#[inline(always)]
pub(super) fn add_row<T: Number>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    row: &[T],
    margins: &mut [T],
    codes: &mut Vec<u8>,
    reached: impl Fn(&[T; RUNGS], T) -> usize,
    exit: impl Fn(&[u8; NARROW], &Branches<'_>) -> usize,
) {
    let mut table = [0_u8; NARROW];
    for ranked in &lanes.ranked {
        let x = row.get(ranked.feature as usize).copied().unwrap_or_default();
        ranked.each(rank(lanes, ranked, x, &reached), |column, byte| {
            if let Some(place) = table.get_mut(column) {
                *place = byte;
            }
        });
    }
    codes.clear();
    let x = |coded: &Coded| row.get(coded.feature as usize).copied().unwrap_or_default();
    codes.extend(lanes.coded.iter().map(|coded| lanes.code(coded, x(coded))));

    let (mut set, mut over) = (0, 0);
    for run in &lanes.runs {
        let (from, end) = match *run {
            Run::Small { from, end } => (from, end),
            Run::Plain { root, group } => {
                if let Some(margin) = margins.get_mut(group as usize) {
                    *margin += forest.leaf(root, row);
                }
                continue;
            }
        };
        let trees = lanes.trees.get(from..end).unwrap_or_default();
        let wide = lanes.wide.get(from..end).unwrap_or_default();
        let leaves = lanes.leaves.get(from..end).unwrap_or_default();
        let mut at = from;
        for ((trees, wide), leaves) in trees.chunks(PATHS).zip(wide.chunks(PATHS)).zip(leaves.chunks(PATHS)) {
            let sets = if codes.is_empty() { [0; PATHS] } else { sets(lanes, codes, at, &mut set, trees) };
            let mut exits = [0; PATHS];
            for (((place, wide), tree), sets) in exits.iter_mut().zip(wide).zip(trees).zip(sets) {
                let left_over = lanes.left_over.get(over..tree.left_over as usize).unwrap_or_default();
                over = tree.left_over as usize;
                *place = exit(&table, &Branches { wide, sets, left_over });
            }
            at += trees.len();
            add_leaves(trees, leaves, &exits, margins);
        }
    }
}

/// The splits of each tree where a code goes right.
fn sets<T: Number>(lanes: &Lanes<T>, codes: &[u8], at: usize, set: &mut usize, trees: &[Small]) -> [u64; PATHS] {
    let mut right = [0_u64; PATHS];
    let mut known = true;
    for (coded, code) in lanes.coded.iter().zip(codes) {
        let masks = lanes.codes_go_right(coded, *code);
        known &= masks.is_some();
        let masks = masks.unwrap_or_default().get(at..).unwrap_or_default();
        right.iter_mut().zip(masks).for_each(|(right, mask)| *right |= mask);
    }
    for (right, tree) in right.iter_mut().zip(trees) {
        if !known {
            for test in lanes.sets.get(*set..tree.sets as usize).unwrap_or_default() {
                let code = codes.get(usize::from(test.coded)).copied().unwrap_or_default();
                *right |= u64::from(test.has(code)) << (test.slot % 64);
            }
        }
        *set = tree.sets as usize;
    }
    right
}

/// A full tree: six turns.
#[inline(always)]
pub(super) fn full_exit(row: &[u8; NARROW], tree: &Branches<'_>) -> usize {
    let [Bytes(columns), Bytes(ranks)] = tree.wide;
    let mut path = 1;
    for _ in 0..6 {
        let right = (ranks[path] < row[usize::from(columns[path])]) | (tree.sets >> (path % 64) & 1 == 1);
        path = path << 1 | usize::from(right);
    }
    path
}

#[inline(always)]
fn add_leaves<T: Number>(trees: &[Small], leaves: &[[T; LEAVES]], exits: &[usize], margins: &mut [T]) {
    if let [margin] = margins {
        let mut sum = *margin;
        for (exit, leaves) in exits.iter().zip(leaves) {
            sum += leaves[*exit % LEAVES];
        }
        *margin = sum;
        return;
    }
    for ((exit, leaves), tree) in exits.iter().zip(leaves).zip(trees) {
        if let Some(margin) = margins.get_mut(tree.group as usize) {
            *margin += leaves[*exit % LEAVES];
        }
    }
}

/// How many thresholds a number reaches; none, if it is missing.
#[inline(always)]
pub(super) fn rank<T: Number>(
    lanes: &Lanes<T>,
    ranked: &Ranked,
    x: T,
    reached: impl Fn(&[T; RUNGS], T) -> usize,
) -> Option<usize> {
    if x.is_nan() {
        return None;
    }
    Some(match lanes.rungs(ranked) {
        Some((first, others)) => climb(first, others, x, reached),
        None => lanes.cuts(ranked).partition_point(|cut| *cut <= x),
    })
}

#[inline(always)]
pub(super) fn climb<T: Number>(
    first: &[T; RUNGS],
    others: &[[T; RUNGS]; RUNGS],
    x: T,
    reached: impl Fn(&[T; RUNGS], T) -> usize,
) -> usize {
    // The last of 256 would be there only if there were 256.
    let rung = reached(first, x) % RUNGS;
    rung * RUNGS + reached(&others[rung], x)
}

/// How many of the numbers are not above one.
fn reached<T: Number>(numbers: &[T; RUNGS], x: T) -> usize {
    numbers.iter().map(|number| usize::from(*number <= x)).sum()
}
