//! The evaluation of [`Lanes`] with the vectors of AVX-512 and its permutations of bytes (VBMI): Ice Lake, Zen 4, later.
//!
//! The one file of this crate with `unsafe`: the loads and stores of whole arrays, and the one call that needs the
//! processor to have what [`available`] asks for. All indices are checked.
#![expect(unsafe_code, reason = "4 to 20 times as fast as the plain form: cargo bench -p hotserve-models")]

use std::arch::x86_64::*;

use super::lanes::{Bytes, LEAVES, Lanes, RUNGS, Ranked, Run, Words};
use super::{Forest, Number};

/// Rows of one vector of bytes.
const ROWS: usize = 64;

/// From so many rows on it pays to have rows side by side: fewer, if the way to a leaf is not that through a full tree.
const BATCH: usize = 28;
const FULL_BATCH: usize = 60;

/// What the columns of a block may take of the second-level cache.
const CACHE: usize = 256 << 10;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

/// What [`Forest::add_margins`] says. The forest has lanes only where this is [`available`].
pub(super) fn add_margins<T: Number>(forest: &Forest<T>, lanes: &Lanes<T>, rows: &[T], margins: &mut [T]) {
    // SAFETY: `Forest::add_lanes`, which alone makes lanes, has found the features to be available.
    unsafe { add(forest, lanes, rows, margins) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn add<T: Number>(forest: &Forest<T>, lanes: &Lanes<T>, mut rows: &[T], mut margins: &mut [T]) {
    let (features, groups) = (forest.features.max(1), forest.groups.max(1));
    let batch = if lanes.left_over.is_empty() { FULL_BATCH } else { BATCH };
    let mut scratch = Scratch::default();
    loop {
        let count = rows.len() / features;
        if count == 0 {
            return;
        }
        let fits = |words: usize| count > words / 2 * ROWS && lanes.columns * words * ROWS <= CACHE;
        let now = if count < batch && lanes.narrow() {
            1
        } else if fits(8) {
            8 * ROWS
        } else if fits(4) {
            4 * ROWS
        } else if fits(2) {
            2 * ROWS
        } else {
            ROWS
        }
        .min(count);
        let (block, rest) = rows.split_at(now * features);
        let (sums, others) = margins.split_at_mut((now * groups).min(margins.len()));
        match now {
            1 if lanes.narrow() => match lanes.ranks {
                0..=64 => add_row::<T, 1>(forest, lanes, block, sums, &mut scratch.codes),
                65..=128 => add_row::<T, 2>(forest, lanes, block, sums, &mut scratch.codes),
                _ => add_row::<T, 4>(forest, lanes, block, sums, &mut scratch.codes),
            },
            0..=64 => add_block::<T, 1>(forest, lanes, block, sums, &mut scratch),
            65..=128 => add_block::<T, 2>(forest, lanes, block, sums, &mut scratch),
            129..=256 => add_block::<T, 4>(forest, lanes, block, sums, &mut scratch),
            _ => add_block::<T, 8>(forest, lanes, block, sums, &mut scratch),
        }
        (rows, margins) = (rest, others);
    }
}

#[derive(Default)]
struct Scratch<T> {
    codes: Vec<u8>,
    columns: Vec<Bytes>,
    sums: Vec<T>,
}

/// One row: all splits of a tree are compared at once, and the bits lead to the leaf.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn add_row<T: Number, const TABLES: usize>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    row: &[T],
    margins: &mut [T],
    codes: &mut Vec<u8>,
) {
    let mut table = [Bytes([0; 64]); TABLES];
    let bytes = table.as_mut_slice();
    for ranked in &lanes.ranked {
        let x = row.get(ranked.feature as usize).copied().unwrap_or_default();
        ranked.each(rank(lanes, ranked, x), |column, byte| {
            if let Some(place) = bytes.get_mut(column / 64) {
                place.0[column % 64] = byte;
            }
        });
    }
    codes.clear();
    for coded in &lanes.coded {
        codes.push(lanes.code(coded, row.get(coded.feature as usize).copied().unwrap_or_default()));
    }
    let table = table.map(|bytes| load(&bytes));

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
        for ((trees, wide), leaves) in trees.chunks(64).zip(wide.chunks(64)).zip(leaves.chunks(64)) {
            let mut goes_right = [0_u64; 64];
            for (mask, [columns, ranks]) in goes_right.iter_mut().zip(wide) {
                let x = look_up(&table, load(columns));
                *mask = _mm512_cmpgt_epu8_mask(x, load(ranks));
            }
            let mut known = true;
            for (coded, code) in lanes.coded.iter().zip(&*codes) {
                let masks = lanes.codes_go_right(coded, *code);
                known &= masks.is_some();
                let masks = masks.unwrap_or_default().get(at..).unwrap_or_default();
                goes_right.iter_mut().zip(masks).for_each(|(mask, more)| *mask |= more);
            }
            for (mask, tree) in goes_right.iter_mut().zip(trees) {
                if !known {
                    let mut more = 0;
                    for test in lanes.sets.get(set..tree.sets as usize).unwrap_or_default() {
                        let code = codes.get(usize::from(test.coded)).copied().unwrap_or_default();
                        more |= u64::from(test.has(code)) << (test.slot % 64);
                    }
                    *mask |= more;
                }
                set = tree.sets as usize;
            }
            at += trees.len();
            let mut exits = [0_u64; 64];
            if lanes.left_over.is_empty() {
                for (masks, exits) in goes_right.as_chunks::<8>().0.iter().zip(exits.as_chunks_mut::<8>().0) {
                    full_exits(masks, exits);
                }
            } else {
                for ((mask, exit), tree) in goes_right.iter().zip(&mut exits).zip(trees) {
                    let words = lanes.left_over.get(over..tree.left_over as usize).unwrap_or_default();
                    *exit = exit_of(*mask, words);
                    over = tree.left_over as usize;
                }
            }
            if let [margin] = &mut *margins {
                let mut sum = *margin;
                for (exit, leaves) in exits.iter().zip(leaves) {
                    sum += leaves[*exit as usize % LEAVES];
                }
                *margin = sum;
            } else {
                for ((exit, leaves), tree) in exits.iter().zip(leaves).zip(trees) {
                    if let Some(margin) = margins.get_mut(tree.group as usize) {
                        *margin += leaves[*exit as usize % LEAVES];
                    }
                }
            }
        }
    }
}

/// The bytes of a table of up to 256, by index.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up<const TABLES: usize>(table: &[__m512i; TABLES], index: __m512i) -> __m512i {
    match table.as_slice() {
        [one] => _mm512_permutexvar_epi8(index, *one),
        [low, high] => _mm512_permutex2var_epi8(*low, index, *high),
        [a, b, c, d, ..] => {
            let low = _mm512_permutex2var_epi8(*a, index, *b);
            let high = _mm512_permutex2var_epi8(*c, index, *d);
            _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high)
        }
        _ => index,
    }
}

/// Eight full trees: six turns, each the bit of the split where the path is.
#[target_feature(enable = "avx512f")]
fn full_exits(goes_right: &[u64; 8], exits: &mut [u64; 8]) {
    let masks = load_words(goes_right);
    let one = _mm512_set1_epi64(1);
    let mut path = one;
    for _ in 0..6 {
        let bit = _mm512_and_si512(_mm512_srlv_epi64(masks, path), one);
        path = _mm512_or_si512(_mm512_add_epi64(path, path), bit);
    }
    store_words(exits, path);
}

/// Any tree: the leftmost leaf that every split which goes right leaves over.
#[target_feature(enable = "avx512f,avx512dq,bmi1")]
fn exit_of(goes_right: u64, left_over: &[Words]) -> u64 {
    let all = _mm512_set1_epi64(-1);
    let masks = goes_right.to_le_bytes();
    let mut halves = [all; 2];
    if let ([words], _) = left_over.as_chunks::<8>() {
        // The most usual size by far, so that it is without a loop.
        for at in 0..8 {
            halves[at % 2] = _mm512_mask_and_epi64(halves[at % 2], masks[at], halves[at % 2], load_words(&words[at].0));
        }
    } else {
        for (mask, words) in masks.into_iter().zip(left_over) {
            halves[0] = _mm512_mask_and_epi64(halves[0], mask, halves[0], load_words(&words.0));
        }
    }
    let left = _mm512_and_si512(halves[0], halves[1]);
    u64::from((_mm512_reduce_and_epi64(left) as u64).trailing_zeros())
}

/// Rows side by side: each test of a tree asks all of them, and the bits are carried down to the leaves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn add_block<T: Number, const WORDS: usize>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    rows: &[T],
    margins: &mut [T],
    scratch: &mut Scratch<T>,
) {
    let (features, groups) = (forest.features.max(1), forest.groups.max(1));
    encode(lanes, rows, features, WORDS, &mut scratch.columns);
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
                add_plain(forest, root, rows, features, sums);
                continue;
            }
        };
        let trees = lanes.trees.get(from..end).unwrap_or_default();
        for (tree, leaves) in trees.iter().zip(lanes.leaves.get(from..end).unwrap_or_default()) {
            for test in lanes.tests.get(test..tree.tests as usize).unwrap_or_default() {
                let Some(column) = columns.get(usize::from(test.column)) else { continue };
                let rank = _mm512_set1_epi8(test.rank.cast_signed());
                for (bits, bytes) in right[usize::from(test.slot) % LEAVES].iter_mut().zip(column) {
                    *bits = _mm512_cmpgt_epu8_mask(load(bytes), rank);
                }
            }
            test = tree.tests as usize;
            for test in lanes.sets.get(set..tree.sets as usize).unwrap_or_default() {
                let at = usize::from(test.column);
                let Some([bytes, bits]) = columns.get(at..at + 2) else { continue };
                let bitset = _mm512_broadcast_i64x4(load_half(&test.bits));
                let right = right[usize::from(test.slot) % LEAVES].iter_mut();
                for ((right, byte), bit) in right.zip(bytes).zip(bits) {
                    *right = _mm512_test_epi8_mask(_mm512_permutexvar_epi8(load(byte), bitset), load(bit));
                }
            }
            set = tree.sets as usize;

            if !tree.dense || usize::from(tree.leaves) < LEAVES {
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
            let planes = planes(&reach);
            let sums = sums.get_mut(tree.group as usize * block..).unwrap_or_default();
            add_leaves(leaves, &planes, sums);
        }
    }

    for (sums, group) in sums.chunks_exact(block).zip(0..) {
        margins.iter_mut().skip(group).step_by(groups).zip(sums).for_each(|(margin, sum)| *margin = *sum);
    }
}

fn add_plain<T: Number>(forest: &Forest<T>, root: u32, rows: &[T], features: usize, sums: &mut [T]) {
    for (row, sum) in rows.chunks_exact(features).zip(sums) {
        *sum += forest.leaf(root, row);
    }
}

/// Makes the columns of a block of rows; what is beyond the last row has some byte or other.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn encode<T: Number>(lanes: &Lanes<T>, rows: &[T], features: usize, words: usize, columns: &mut Vec<Bytes>) {
    columns.resize(lanes.columns * words, Bytes([0; 64]));
    for ranked in &lanes.ranked {
        let numbers = || rows.iter().skip(ranked.feature as usize).step_by(features);
        if let Some((first, others)) = lanes.rungs(ranked) {
            for (column, missing) in [(ranked.low, 0), (ranked.high, u8::MAX)] {
                let Some(column) = column else { continue };
                let bytes = columns.get_mut(usize::from(column) * words..).unwrap_or_default();
                let bytes = bytes.iter_mut().flat_map(|bytes| &mut bytes.0);
                for (x, byte) in numbers().zip(bytes) {
                    *byte = if x.is_nan() { missing } else { climb(first, others, *x) as u8 };
                }
            }
            continue;
        }
        for (row, x) in numbers().enumerate() {
            ranked.each(rank(lanes, ranked, *x), |column, byte| put(columns, column * words, row, byte));
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

/// How many thresholds a number reaches; none, if it is missing.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
#[inline]
fn rank<T: Number>(lanes: &Lanes<T>, ranked: &Ranked, x: T) -> Option<usize> {
    if x.is_nan() {
        return None;
    }
    Some(match lanes.rungs(ranked) {
        Some((first, others)) => climb(first, others, x),
        None => lanes.cuts(ranked).partition_point(|cut| *cut <= x),
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
#[inline]
fn climb<T: Number>(first: &[T; RUNGS], others: &[[T; RUNGS]; RUNGS], x: T) -> usize {
    // The last of 256 would be there only if there were 256.
    let rung = reached(first, x) % RUNGS;
    rung * RUNGS + reached(&others[rung], x)
}

/// How many of the numbers are not above one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
#[inline]
fn reached<T: Number>(numbers: &[T; RUNGS], x: T) -> usize {
    let x = std::slice::from_ref(&x);
    let mask = if let (Some(numbers), Some([x])) = (T::as_f32(numbers), T::as_f32(x)) {
        let ([numbers], _) = numbers.as_chunks() else { return 0 };
        u32::from(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(load_f32(numbers), _mm512_set1_ps(*x)))
    } else if let (Some(numbers), Some([x])) = (T::as_f64(numbers), T::as_f64(x)) {
        let ([low, high], _) = numbers.as_chunks() else { return 0 };
        let x = _mm512_set1_pd(*x);
        let low = _mm512_cmp_pd_mask::<_CMP_LE_OQ>(load_f64(low), x);
        u32::from(low) | u32::from(_mm512_cmp_pd_mask::<_CMP_LE_OQ>(load_f64(high), x)) << 8
    } else {
        0
    };
    mask.count_ones() as usize
}

/// The bits of the numbers of the leaves that are reached.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn planes<const WORDS: usize>(reach: &[[u64; WORDS]; 2 * LEAVES]) -> [[u64; WORDS]; 6] {
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

/// Adds to each row's sum the leaf of its number.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_leaves<T: Number, const WORDS: usize>(leaves: &[T; LEAVES], planes: &[[u64; WORDS]; 6], sums: &mut [T]) {
    for (at, sums) in sums.chunks_exact_mut(ROWS).take(WORDS).enumerate() {
        let mut numbers = _mm512_maskz_set1_epi8(planes[0][at], 1);
        for (bit, plane) in planes.iter().enumerate().skip(1) {
            numbers = _mm512_mask_add_epi8(numbers, plane[at], numbers, _mm512_set1_epi8(1 << bit));
        }
        if let (Some(leaves), Some(sums)) = (T::as_f32(leaves), T::as_f32_mut(sums)) {
            add_f32(leaves, numbers, planes[5][at], sums);
        } else if let (Some(leaves), Some(sums)) = (T::as_f64(leaves), T::as_f64_mut(sums)) {
            add_f64(leaves, numbers, planes[4][at], planes[5][at], sums);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_f32(leaves: &[f32], numbers: __m512i, high: u64, sums: &mut [f32]) {
    let ([a, b, c, d], _) = leaves.as_chunks::<16>() else { return };
    let (a, b, c, d) = (load_f32(a), load_f32(b), load_f32(c), load_f32(d));
    let quarters = [
        _mm512_extracti32x4_epi32::<0>(numbers),
        _mm512_extracti32x4_epi32::<1>(numbers),
        _mm512_extracti32x4_epi32::<2>(numbers),
        _mm512_extracti32x4_epi32::<3>(numbers),
    ];
    let mut high = high;
    for (sums, quarter) in sums.as_chunks_mut::<16>().0.iter_mut().zip(quarters) {
        let index = _mm512_cvtepu8_epi32(quarter);
        let leaf =
            _mm512_mask_mov_ps(_mm512_permutex2var_ps(a, index, b), high as u16, _mm512_permutex2var_ps(c, index, d));
        store_f32(sums, _mm512_add_ps(load_f32(sums), leaf));
        high >>= 16;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_f64(leaves: &[f64], numbers: __m512i, middle: u64, high: u64, sums: &mut [f64]) {
    let ([a, b, c, d, e, f, g, h], _) = leaves.as_chunks::<8>() else { return };
    let (a, b, c, d) = (load_f64(a), load_f64(b), load_f64(c), load_f64(d));
    let (e, f, g, h) = (load_f64(e), load_f64(f), load_f64(g), load_f64(h));
    let quarters = [
        _mm512_extracti32x4_epi32::<0>(numbers),
        _mm512_extracti32x4_epi32::<1>(numbers),
        _mm512_extracti32x4_epi32::<2>(numbers),
        _mm512_extracti32x4_epi32::<3>(numbers),
    ];
    let (mut middle, mut high) = (middle, high);
    for (sums, quarter) in sums.as_chunks_mut::<16>().0.iter_mut().zip(quarters) {
        for (sums, part) in sums.as_chunks_mut::<8>().0.iter_mut().zip([quarter, _mm_srli_si128::<8>(quarter)]) {
            let index = _mm512_cvtepu8_epi64(part);
            let middle_half = middle as u8;
            let low = _mm512_mask_mov_pd(
                _mm512_permutex2var_pd(a, index, b),
                middle_half,
                _mm512_permutex2var_pd(c, index, d),
            );
            let top = _mm512_mask_mov_pd(
                _mm512_permutex2var_pd(e, index, f),
                middle_half,
                _mm512_permutex2var_pd(g, index, h),
            );
            store_f64(sums, _mm512_add_pd(load_f64(sums), _mm512_mask_mov_pd(low, high as u8, top)));
            middle >>= 8;
            high >>= 8;
        }
    }
}

#[target_feature(enable = "avx512f")]
fn load(bytes: &Bytes) -> __m512i {
    // SAFETY: `bytes` are 64, and aligned to it.
    unsafe { _mm512_load_si512(bytes.0.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn load_half(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: these are 32 bytes, and any alignment will do.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn load_words(words: &[u64; 8]) -> __m512i {
    // SAFETY: these are 64 bytes, and any alignment will do.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn store_words(words: &mut [u64; 8], vector: __m512i) {
    // SAFETY: as above.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}

#[target_feature(enable = "avx512f")]
fn load_f32(numbers: &[f32; 16]) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn store_f32(numbers: &mut [f32; 16], vector: __m512) {
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), vector) }
}

#[target_feature(enable = "avx512f")]
fn load_f64(numbers: &[f64; 8]) -> __m512d {
    // SAFETY: as above.
    unsafe { _mm512_loadu_pd(numbers.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn store_f64(numbers: &mut [f64; 8], vector: __m512d) {
    // SAFETY: as above.
    unsafe { _mm512_storeu_pd(numbers.as_mut_ptr(), vector) }
}
