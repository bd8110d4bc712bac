//! The evaluation of [`Lanes`] with the vectors of AVX-512 and its permutations of bytes (VBMI): Ice Lake, Zen 4, later;
//! and with those of AVX2.
//!
//! The one file of this crate with `unsafe`: the loads and stores of whole arrays, and the calls that need the processor
//! to have what [`avx512`] and [`avx2`] ask for. All indices are checked.
#![expect(unsafe_code, reason = "4 to 20 times as fast as the plain form: cargo bench -p hotserve-models")]

use std::arch::x86_64::*;

use super::block::{self, Kernels, ROWS, Scratch, split};
use super::lanes::{Bytes, LEAVES, Lanes, NARROW, RUNGS, Run, Words};
use super::walk::{self, Branches, rank};
use super::{Forest, Number};

/// From so many rows on it pays to have rows side by side: the time of 64 of them by that of one.
const BATCH: usize = 21;
const FULL_BATCH: usize = 31;

/// The same with AVX2.
const BATCH_2: usize = 19;
const FULL_BATCH_2: usize = 23;

pub(super) fn avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

pub(super) fn avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

/// What [`Forest::add_margins`] says, with AVX-512 or with AVX2.
pub(super) fn add_margins<T: Number>(wide: bool, forest: &Forest<T>, lanes: &Lanes<T>, rows: &[T], margins: &mut [T]) {
    if wide {
        // SAFETY: `Path::available` has asked for the features before `Forest::add_lanes` made lanes for them.
        unsafe { add_512(forest, lanes, rows, margins) }
    } else {
        // SAFETY: as above.
        unsafe { add_2(forest, lanes, rows, margins) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn add_512<T: Number>(forest: &Forest<T>, lanes: &Lanes<T>, rows: &[T], margins: &mut [T]) {
    let batch = if lanes.full { FULL_BATCH } else { BATCH };
    let one = |row: &[T], margins: &mut [T], scratch: &mut Scratch<T>| match lanes.ranks {
        0..=64 => add_row::<T, 1>(forest, lanes, row, margins, &mut scratch.codes),
        65..=128 => add_row::<T, 2>(forest, lanes, row, margins, &mut scratch.codes),
        _ => add_row::<T, 4>(forest, lanes, row, margins, &mut scratch.codes),
    };
    split(forest, lanes, (rows, margins), batch, one, |words, rows, margins, scratch| match words {
        1 => add_block_512::<T, 1>(forest, lanes, rows, margins, scratch),
        2 => add_block_512::<T, 2>(forest, lanes, rows, margins, scratch),
        _ => add_block_512::<T, 4>(forest, lanes, rows, margins, scratch),
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
#[inline(never)]
fn add_block_512<T: Number, const WORDS: usize>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    rows: &[T],
    margins: &mut [T],
    scratch: &mut Scratch<T>,
) {
    let kernels = Kernels {
        above: |bytes: &Bytes, rank: u8| _mm512_cmpgt_epu8_mask(load(bytes), _mm512_set1_epi8(rank.cast_signed())),
        among: |bytes: &Bytes, bits: &Bytes, set: &[u8; 32]| {
            let set = _mm512_broadcast_i64x4(load_half(set));
            _mm512_test_epi8_mask(_mm512_permutexvar_epi8(load(bytes), set), load(bits))
        },
        turns: |right: &[[u64; WORDS]; LEAVES]| turns_512(right),
        numbers: |reach: &[[u64; WORDS]; 2 * LEAVES]| numbers_512(reach),
        add_leaves: |leaves: &[T; LEAVES], planes: &[[u64; WORDS]; 6], sums: &mut [T]| add_leaves(leaves, planes, sums),
        reached: |numbers: &[T; RUNGS], x: T| reached(numbers, x),
    };
    block::add::<T, WORDS>(forest, lanes, rows, margins, scratch, &kernels);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn turns_512<const WORDS: usize>(right: &[[u64; WORDS]; LEAVES]) -> [[u64; WORDS]; 6] {
    block::turns(right)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn numbers_512<const WORDS: usize>(reach: &[[u64; WORDS]; 2 * LEAVES]) -> [[u64; WORDS]; 6] {
    block::numbers(reach)
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn add_2<T: Number>(forest: &Forest<T>, lanes: &Lanes<T>, rows: &[T], margins: &mut [T]) {
    let batch = if lanes.full { FULL_BATCH_2 } else { BATCH_2 };
    let one = |row: &[T], margins: &mut [T], scratch: &mut Scratch<T>| {
        let reached = |numbers: &[T; RUNGS], x: T| reached_2(numbers, x);
        let codes = &mut scratch.codes;
        macro_rules! add_row {
            ($exit:expr) => {
                walk::add_row(forest, lanes, row, margins, codes, reached, $exit)
            };
        }
        match (lanes.full, lanes.ranks) {
            (true, 0..=32) => add_row!(|x, tree| full_2::<2>(x, tree)),
            (true, 33..=64) => add_row!(|x, tree| full_2::<4>(x, tree)),
            (true, _) => add_row!(walk::full_exit),
            (false, 0..=32) => add_row!(|x, tree| exit_2::<2>(x, tree)),
            (false, 33..=64) => add_row!(|x, tree| exit_2::<4>(x, tree)),
            (false, 65..=128) => add_row!(|x, tree| exit_2::<8>(x, tree)),
            (false, _) => add_row!(|x, tree| exit_2::<16>(x, tree)),
        }
    };
    split(forest, lanes, (rows, margins), batch, one, |words, rows, margins, scratch| match words {
        1 => add_block_2::<T, 1>(forest, lanes, rows, margins, scratch),
        2 => add_block_2::<T, 2>(forest, lanes, rows, margins, scratch),
        _ => add_block_2::<T, 4>(forest, lanes, rows, margins, scratch),
    });
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
#[inline(never)]
fn add_block_2<T: Number, const WORDS: usize>(
    forest: &Forest<T>,
    lanes: &Lanes<T>,
    rows: &[T],
    margins: &mut [T],
    scratch: &mut Scratch<T>,
) {
    let kernels = Kernels {
        above: |bytes: &Bytes, rank: u8| above_2(bytes, rank),
        among: |bytes: &Bytes, bits: &Bytes, set: &[u8; 32]| among_2(bytes, bits, set),
        turns: |right: &[[u64; WORDS]; LEAVES]| turns_2(right),
        numbers: |reach: &[[u64; WORDS]; 2 * LEAVES]| numbers_2(reach),
        add_leaves: |leaves: &[T; LEAVES], planes: &[[u64; WORDS]; 6], sums: &mut [T]| {
            add_leaves_2(leaves, planes, sums)
        },
        reached: |numbers: &[T; RUNGS], x: T| reached_2(numbers, x),
    };
    block::add::<T, WORDS>(forest, lanes, rows, margins, scratch, &kernels);
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
        ranked.each(rank(lanes, ranked, x, |numbers, x| reached(numbers, x)), |column, byte| {
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
            if lanes.full {
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

/// Adds to each row's sum the leaf of its number.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
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

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
#[inline(never)]
fn turns_2<const WORDS: usize>(right: &[[u64; WORDS]; LEAVES]) -> [[u64; WORDS]; 6] {
    block::turns(right)
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
#[inline(never)]
fn numbers_2<const WORDS: usize>(reach: &[[u64; WORDS]; 2 * LEAVES]) -> [[u64; WORDS]; 6] {
    block::numbers(reach)
}

#[target_feature(enable = "avx2")]
fn above_2(bytes: &Bytes, rank: u8) -> u64 {
    // A rank is 254 at the most.
    let least = _mm256_set1_epi8(rank.wrapping_add(1).cast_signed());
    let [low, high] = load_halves(bytes);
    join(_mm256_cmpeq_epi8(_mm256_max_epu8(low, least), low), _mm256_cmpeq_epi8(_mm256_max_epu8(high, least), high))
}

#[target_feature(enable = "avx2")]
fn among_2(bytes: &Bytes, bits: &Bytes, set: &[u8; 32]) -> u64 {
    let set = load_half(set);
    let (first, second) = (_mm256_permute4x64_epi64::<0x44>(set), _mm256_permute4x64_epi64::<0xee>(set));
    let absent = |bytes: __m256i, bits: __m256i| {
        // The fifth bit of an index says which half, and becomes the sign.
        let (low, high) = (_mm256_shuffle_epi8(first, bytes), _mm256_shuffle_epi8(second, bytes));
        let words = _mm256_blendv_epi8(low, high, _mm256_slli_epi16::<3>(bytes));
        _mm256_cmpeq_epi8(_mm256_and_si256(words, bits), _mm256_setzero_si256())
    };
    let ([a, b], [c, d]) = (load_halves(bytes), load_halves(bits));
    !join(absent(a, c), absent(b, d))
}

/// The signs of the bytes.
#[target_feature(enable = "avx2")]
fn join(low: __m256i, high: __m256i) -> u64 {
    let (low, high) = (_mm256_movemask_epi8(low).cast_unsigned(), _mm256_movemask_epi8(high).cast_unsigned());
    u64::from(low) | u64::from(high) << 32
}

/// A byte of ones for each bit.
#[target_feature(enable = "avx2")]
fn spread(bits: u32) -> __m256i {
    let each = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let select = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let bits = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), each);
    _mm256_cmpeq_epi8(_mm256_and_si256(bits, select), select)
}

/// The bytes of a row that a tree compares are looked up in the first sixteenths of them, and those that are not above
/// their ranks become ones.
#[target_feature(enable = "avx2")]
fn not_above_2<const SIXTEENTHS: usize>(row: &[u8; NARROW], [columns, ranks]: &[Bytes; 2]) -> [__m256i; 2] {
    let (columns, ranks) = (load_halves(columns), load_halves(ranks));
    let mut found = [_mm256_setzero_si256(); 2];
    for (found, columns) in found.iter_mut().zip(columns) {
        for (at, bytes) in (0_u8..).zip(&row.as_chunks::<16>().0[..SIXTEENTHS]) {
            // What lies in another sixteenth gets its highest bit set, and is looked up as 0.
            let index = _mm256_sub_epi8(columns, _mm256_set1_epi8((16 * at).cast_signed()));
            let index = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
            *found = _mm256_or_si256(*found, _mm256_shuffle_epi8(load_twice(bytes), index));
        }
    }
    let [low, high] = found;
    [_mm256_cmpeq_epi8(_mm256_min_epu8(low, ranks[0]), low), _mm256_cmpeq_epi8(_mm256_min_epu8(high, ranks[1]), high)]
}

/// The leaf of a full tree: six turns, each the bit of the split where the path is.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn full_2<const SIXTEENTHS: usize>(row: &[u8; NARROW], tree: &Branches<'_>) -> usize {
    let [low, high] = not_above_2::<SIXTEENTHS>(row, tree.wide);
    let right = !join(low, high) | tree.sets;
    let mut path = 1_u64;
    for _ in 0..6 {
        path = 2 * path + (right >> (path % 64) & 1);
    }
    path as usize
}

/// The leaf of another tree: the leftmost that every split which goes right leaves over.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn exit_2<const SIXTEENTHS: usize>(row: &[u8; NARROW], tree: &Branches<'_>) -> usize {
    let mut left = not_above_2::<SIXTEENTHS>(row, tree.wide);
    if tree.sets != 0 {
        left[0] = _mm256_andnot_si256(spread(tree.sets as u32), left[0]);
        left[1] = _mm256_andnot_si256(spread((tree.sets >> 32) as u32), left[1]);
    }
    let mut goes_left = [0; 64];
    for (bytes, left) in goes_left.as_chunks_mut().0.iter_mut().zip(left) {
        store_half(bytes, left);
    }
    let mut halves = [_mm256_set1_epi64x(-1); 2];
    for (words, goes_left) in tree.left_over.iter().zip(goes_left.as_chunks::<8>().0) {
        let parts = words.0.as_chunks::<4>().0.iter().zip(goes_left.as_chunks::<4>().0);
        for (left, (words, goes_left)) in halves.iter_mut().zip(parts) {
            let goes_left = _mm256_cvtepi8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*goes_left)));
            *left = _mm256_and_si256(*left, _mm256_or_si256(load_words_2(words), goes_left));
        }
    }
    let left = _mm256_and_si256(halves[0], halves[1]);
    let left = _mm_and_si128(_mm256_castsi256_si128(left), _mm256_extracti128_si256::<1>(left));
    let left = _mm_cvtsi128_si64(left) & _mm_extract_epi64::<1>(left);
    left.trailing_zeros() as usize
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn add_leaves_2<T: Number, const WORDS: usize>(leaves: &[T; LEAVES], planes: &[[u64; WORDS]; 6], sums: &mut [T]) {
    for (at, sums) in sums.as_chunks_mut::<32>().0.iter_mut().take(2 * WORDS).enumerate() {
        let mut numbers = _mm256_setzero_si256();
        for (bit, plane) in planes.iter().enumerate() {
            let bytes = spread((plane[at / 2] >> (32 * (at % 2))) as u32);
            let bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(1 << bit));
            numbers = _mm256_or_si256(numbers, bytes);
        }
        let mut bytes = [0; 32];
        store_half(&mut bytes, numbers);
        for (sum, number) in sums.iter_mut().zip(bytes) {
            *sum += leaves[usize::from(number) % LEAVES];
        }
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn reached_2<T: Number>(numbers: &[T; RUNGS], x: T) -> usize {
    let x = std::slice::from_ref(&x);
    let mask = if let (Some(numbers), Some([x])) = (T::as_f32(numbers), T::as_f32(x)) {
        let (numbers, _) = numbers.as_chunks::<8>();
        let x = _mm256_set1_ps(*x);
        let compare = |numbers| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(load_f32_2(numbers), x));
        numbers.iter().fold(0, |mask, numbers| mask << 8 | compare(numbers))
    } else if let (Some(numbers), Some([x])) = (T::as_f64(numbers), T::as_f64(x)) {
        let (numbers, _) = numbers.as_chunks::<4>();
        let x = _mm256_set1_pd(*x);
        let compare = |numbers| _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_LE_OQ>(load_f64_2(numbers), x));
        numbers.iter().fold(0, |mask, numbers| mask << 4 | compare(numbers))
    } else {
        0
    };
    mask.count_ones() as usize
}

#[target_feature(enable = "avx512f")]
fn load(bytes: &Bytes) -> __m512i {
    // SAFETY: `bytes` are 64, and aligned to it.
    unsafe { _mm512_load_si512(bytes.0.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load_halves(bytes: &Bytes) -> [__m256i; 2] {
    let ([low, high], _) = bytes.0.as_chunks() else { return [_mm256_setzero_si256(); 2] };
    [load_half(low), load_half(high)]
}

#[target_feature(enable = "avx2")]
fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: these are 16 bytes, and any alignment will do.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
fn load_words_2(words: &[u64; 4]) -> __m256i {
    // SAFETY: these are 32 bytes, and any alignment will do.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store_half(bytes: &mut [u8; 32], vector: __m256i) {
    // SAFETY: these are 32 bytes, and any alignment will do.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
}

#[target_feature(enable = "avx2")]
fn load_f32_2(numbers: &[f32; 8]) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_loadu_ps(numbers.as_ptr()) }
}

#[target_feature(enable = "avx2")]
fn load_f64_2(numbers: &[f64; 4]) -> __m256d {
    // SAFETY: as above.
    unsafe { _mm256_loadu_pd(numbers.as_ptr()) }
}

#[target_feature(enable = "avx2")]
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
