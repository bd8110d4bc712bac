//! Rows of short decimals, eight numbers at a time: what most bodies of many rows are. With AVX-512 and its permutations
//! of bytes (VBMI, VBMI2): Ice Lake, Zen 4, later. Elsewhere one number is read after the other.
//!
//! Of each block of 64 bytes it is known at once where its numbers end and what the eight bytes before each end are.
//! What lies between the numbers is not looked at: they, the commas and the brackets must take all the bytes there are.
#![expect(unsafe_code, reason = "2 to 3 times as fast as one after the other: cargo bench --bench bodies")]

use super::super::element::Element;

/// An element that every short decimal has a nearest value of.
pub(super) trait Float: Element + Copy {
    fn nearest(value: f64) -> Self;
}

impl Float for f32 {
    fn nearest(value: f64) -> Self {
        value as Self
    }
}

impl Float for f64 {
    fn nearest(value: f64) -> Self {
        value
    }
}

/// Reads rows of `width` numbers, from the bracket at `at` on, as long as they are nothing but short decimals, commas, and
/// single spaces behind these. Answers how many there were and where the last one ends; nothing if there was none, or if
/// the processor has not what this takes.
pub(super) fn rows<T: Float>(body: &[u8], at: usize, width: usize, values: &mut Vec<T>) -> Option<(usize, usize)> {
    #[cfg(target_arch = "x86_64")]
    if avx512::available() {
        // SAFETY: the processor has what it takes.
        return unsafe { avx512::rows(body, at, width, values) };
    }
    _ = (body, at, width, values);
    None
}

/// Whether this processor has what it takes.
#[cfg(test)]
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::Float;

    const BLOCK: usize = 64;
    /// How many numbers are looked for before they are read.
    const ROOM: usize = 512;
    /// Of a wider row not one might find room.
    const WIDEST: usize = ROOM - BLOCK;
    /// How many rows are looked for at first. Each time they are found they are twice as many, so that what is done in
    /// vain is not more than a part of what is done.
    const FIRST: usize = 4;

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn rows<T: Float>(
        body: &[u8],
        mut at: usize,
        width: usize,
        values: &mut Vec<T>,
    ) -> Option<(usize, usize)> {
        if !(1..=WIDEST).contains(&width) || body.get(at) != Some(&b'[') {
            return None;
        }
        let mut words = [0; ROOM];
        let mut read_before = None;
        let mut rows = 0;
        let mut most = FIRST;
        loop {
            let found = find(body, at, width, most, &mut words);
            let (numbers, before) = (words.get(..found.rows * width)?, values.len());
            // A bracket and the commas, or the bracket at the end; and a comma and a bracket between two rows.
            let structure = (numbers.len() + 2 * found.rows + found.spaces).checked_sub(1);
            let length = structure.and_then(|structure| (found.end - at).checked_sub(structure));
            if length.is_none_or(|length| read(numbers, values) != Some(length)) {
                values.truncate(before);
                return read_before;
            }
            most = (2 * most).min(ROOM);
            rows += found.rows;
            read_before = Some((rows, found.end));
            at = match found.next {
                Some(next) => next,
                None => return read_before,
            };
        }
    }

    /// Whole rows.
    #[derive(Default)]
    struct Found {
        rows: usize,
        /// Where the last one ends, and the next begins if there is one.
        end: usize,
        next: Option<usize>,
        /// How many spaces are in them, and between them, that lie behind a comma.
        spaces: usize,
    }

    /// Looks for the ends of the numbers of some rows, and puts the eight bytes before each into `words`.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
    fn find(body: &[u8], at: usize, width: usize, most: usize, words: &mut [u64; ROOM]) -> Found {
        let mut found = Found { end: at, ..Found::default() };
        let (mut count, mut spaces, mut row_end) = (0, 0, width);
        let mut last = _mm512_setzero_si512();
        let (mut after_comma, mut after_close) = (0, 0);
        let mut base = at;
        while let Some(bytes) = body.get(base..).filter(|rest| !rest.is_empty())
            && let Some(room) = words.get_mut(count..count + BLOCK)
        {
            let block = load(bytes);
            let is = |byte: u8| _mm512_cmpeq_epi8_mask(block, _mm512_set1_epi8(byte.cast_signed()));
            let (commas, closes) = (is(b','), is(b']'));
            let behind = commas << 1 | after_comma;
            let spaced = is(b' ') & behind;
            // A comma behind a row ends no number.
            let mut ends = (commas | closes) & !(commas & (closes << 1 | after_close));
            let mut left = closes;
            let mut over = false;
            while left != 0 && !over {
                let before = (left & left.wrapping_neg()) - 1;
                left &= left - 1;
                if count + (ends & before).count_ones() as usize + 1 != row_end {
                    // A row of another width. Those before it are whole.
                    put(last, block, ends & before, room);
                    return found;
                }
                row_end += width;
                found.rows += 1;
                found.end = base + before.count_ones() as usize + 1;
                found.spaces = spaces + (spaced & before).count_ones() as usize;
                found.next = match body.get(found.end..) {
                    Some([b',', b'[', ..]) => Some(found.end + 1),
                    Some([b',', b' ', b'[', ..]) => Some(found.end + 2),
                    _ => None,
                };
                if found.next.is_none() || found.rows == most {
                    ends &= before << 1 | 1;
                    over = true;
                }
            }
            put(last, block, ends, room);
            if over {
                return found;
            }
            count += ends.count_ones() as usize;
            spaces += spaced.count_ones() as usize;
            (after_comma, after_close) = (commas >> 63, closes >> 63);
            last = block;
            base += BLOCK;
        }
        found
    }

    /// Puts the eight bytes before each end in a block into `words`, eight ends at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
    fn put(last: __m512i, block: __m512i, ends: u64, words: &mut [u64]) {
        const EACH: i64 = 0x0101_0101_0101_0101;
        let eighths = _mm512_set_epi64(7 * EACH, 6 * EACH, 5 * EACH, 4 * EACH, 3 * EACH, 2 * EACH, EACH, 0);
        let one = _mm512_set1_epi64(0x0706_0504_0302_0100);
        let all = _mm512_add_epi8(one, _mm512_slli_epi64::<3>(eighths));
        let places = _mm512_maskz_compress_epi8(ends, all);
        // The bytes of the last block come before those of this one.
        let before = _mm512_add_epi8(one, _mm512_set1_epi8(BLOCK as i8 - 8));
        let groups = words.as_chunks_mut::<8>().0.iter_mut().take(ends.count_ones().div_ceil(8) as usize);
        let mut which = eighths;
        for words in groups {
            let index = _mm512_add_epi8(_mm512_permutexvar_epi8(which, places), before);
            store(words, _mm512_permutex2var_epi8(last, index, block));
            which = _mm512_add_epi8(which, _mm512_set1_epi8(8));
        }
    }

    /// Reads all numbers. Answers how many bytes they take together, or nothing if one is no short decimal.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
    fn read<T: Float>(words: &[u64], values: &mut Vec<T>) -> Option<usize> {
        let mut bits = _mm512_setzero_si512();
        let mut wrong = 0;
        let (eights, rest) = words.as_chunks::<8>();
        let mut add = |words: &[u64; 8], count: usize| {
            let there = u8::MAX >> (8 - count);
            let (numbers, more, bad) = eight(words);
            values.extend_from_slice(numbers.map(T::nearest).get(..count).unwrap_or_default());
            bits = _mm512_mask_add_epi64(bits, there, bits, more);
            wrong |= bad & there;
        };
        eights.iter().for_each(|words| add(words, 8));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            add(&last, rest.len());
        }
        (wrong == 0).then(|| _mm512_reduce_add_epi64(bits) as usize / 8)
    }

    /// The numbers that stand at the ends of eight words, how many bits each takes, and which are no short decimals: up to
    /// seven characters, with a minus and with a point or without.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
    fn eight(words: &[u64; 8]) -> ([f64; 8], __m512i, __mmask8) {
        let each = |byte: u8| _mm512_set1_epi8(byte.cast_signed());
        let all = |number: i64| _mm512_set1_epi64(number);
        let first = |words: __m512i| _mm512_and_si512(words, all(0xff));

        // Characters of a number are those from the minus to the nine.
        let words = load_words(words);
        let others = _mm512_cmpgt_epu8_mask(_mm512_sub_epi8(words, each(b'-')), each(b'9' - b'-'));
        let taken = _mm512_lzcnt_epi64(_mm512_movm_epi8(others));
        let mut wrong = _mm512_cmpgt_epu64_mask(_mm512_sub_epi64(taken, all(8)), all(48));

        let words = _mm512_srlv_epi64(words, _mm512_sub_epi64(all(64), taken));
        let negative = _mm512_cmpeq_epi64_mask(first(words), all(i64::from(b'-')));
        let words = _mm512_mask_srli_epi64::<8>(words, negative, words);
        let bits = _mm512_mask_sub_epi64(taken, negative, taken, all(8));
        wrong |= _mm512_testn_epi64_mask(bits, bits);
        // No zero leads, but alone or before the point.
        wrong |= _mm512_cmpeq_epi64_mask(_mm512_and_si512(words, all(0xf0ff)), all(0x3030));

        // The bit that digits have, and neither a point nor what is behind the end: all below the first place without.
        let lacking = _mm512_andnot_si512(words, each(0x10));
        let below = _mm512_andnot_si512(lacking, _mm512_sub_epi64(lacking, all(1)));
        let point = _mm512_sub_epi64(all(60), _mm512_lzcnt_epi64(below));
        let pointed = _mm512_cmpneq_epi64_mask(point, bits);
        wrong |= _mm512_mask_cmpneq_epi64_mask(pointed, first(_mm512_srlv_epi64(words, point)), all(i64::from(b'.')));
        // There is a digit on both sides of it.
        let room = _mm512_sub_epi64(bits, all(16));
        wrong |= _mm512_mask_cmpge_epu64_mask(pointed, _mm512_sub_epi64(point, all(8)), room);

        // What is behind the point moves into its place, and all of it to the end.
        let moved = _mm512_srli_epi64::<8>(words);
        let digits = _mm512_mask_ternarylogic_epi64::<0xe4>(words, pointed, moved, _mm512_srli_epi64::<4>(below));
        let bits = _mm512_mask_sub_epi64(bits, pointed, bits, all(8));
        let digits = _mm512_sllv_epi64(_mm512_xor_si512(digits, each(b'0')), _mm512_sub_epi64(all(64), bits));
        let no_digits = _mm512_movm_epi8(_mm512_cmpgt_epu8_mask(digits, each(9)));
        wrong |= _mm512_test_epi64_mask(no_digits, no_digits);

        // By twos, by fours, and all eight.
        let twos = _mm512_maddubs_epi16(digits, _mm512_set1_epi16(0x010a));
        let fours = _mm512_madd_epi16(twos, _mm512_set1_epi32(0x0001_0064));
        let whole = _mm512_add_epi64(_mm512_mul_epu32(fours, all(10_000)), _mm512_srli_epi64::<32>(fours));
        let scales = _mm512_set_pd(1e7, 1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1e0);
        let scale = _mm512_permutexvar_pd(_mm512_srli_epi64::<3>(_mm512_sub_epi64(bits, point)), scales);
        // Both are exact, so that the quotient is the double nearest to the text.
        let values = _mm512_div_pd(_mm512_cvtepi64_pd(whole), scale);
        let values = _mm512_mask_xor_pd(values, negative, values, _mm512_set1_pd(-0.0));
        (store_numbers(values), taken, wrong)
    }

    /// A block, filled up with zeros at the end of the body.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(bytes: &[u8]) -> __m512i {
        let there = u64::MAX >> (BLOCK - bytes.len().min(BLOCK));
        // SAFETY: only so many bytes are read as there are.
        unsafe { _mm512_maskz_loadu_epi8(there, bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn load_words(words: &[u64; 8]) -> __m512i {
        // SAFETY: these are 64 bytes, and any alignment will do.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn store(words: &mut [u64; 8], vector: __m512i) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
    }

    #[target_feature(enable = "avx512f")]
    fn store_numbers(vector: __m512d) -> [f64; 8] {
        let mut numbers = [0.0; 8];
        // SAFETY: as above.
        unsafe { _mm512_storeu_pd(numbers.as_mut_ptr(), vector) };
        numbers
    }
}
