//! Dropout that every backend reproduces bit for bit.
//!
//! The keep mask is a pure function of (seed, batch entry, head, row, column), so that the backward pass, another
//! backend, another tile size or another thread count drops exactly the same entries, and nothing has to be stored.
//!
//! # Generator
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011):
//! [`philox4x32_10`] maps a 128-bit counter under a 64-bit key to four 32-bit words.
//!
//! * key = (low 32 bits of the seed, high 32 bits of the seed);
//! * counter = (column group, row group, `b · Hq + h`, stream), where `b` is the batch entry, or the sequence of a packed
//!   batch, `h` the query head, and the [`Stream`] is 0 for real keys, 1 for the shared prefix, 2 for the virtual token.
//!
//! Rows and columns are those of the attention matrix (query, key), local to the sequence where sequences are packed.
//!
//! # One call, eight entries
//!
//! The four words are eight 16-bit entries: entry `e` is the low half of word `e/2` for even `e`, its high half for odd
//! `e`. They cover what one lane of a tensor core's 16×16 accumulator block holds (rows `g` and `g + 8`, columns
//! `2t`, `2t + 1`, `2t + 8`, `2t + 9`), so that a GPU lane calls the generator once for each block that it owns:
//!
//! ```text
//! column group = (column / 16) · 4 + (column % 8) / 2
//! row group    = (row / 16) · 8 + row % 8
//! e            = (row / 8 % 2) · 4 + (column / 8 % 2) · 2 + column % 2
//! ```
//!
//! The virtual token has one entry per row: column group 0, row group = `row / 8`, `e = row % 8`.
//!
//! # Probability
//!
//! An entry is kept iff its 16 bits are below `threshold = round((1 − p) · 65536)`, clamped to `[1, 65536]`. The
//! probability that is applied is therefore `p̂ = 1 − threshold / 65536`, and what is kept is multiplied by
//! `1 / (1 − p̂) = 65536 / threshold`: the expectation is exact for p̂.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32 with ten rounds: four uniformly distributed words from a counter and a key.
///
/// Agrees with the known-answer vectors of Random123.
///
/// ```
/// use inducer_attention::dropout::philox4x32_10;
/// assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
#[inline]
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let left = MULTIPLIER[0] as u64 * c0 as u64;
        let right = MULTIPLIER[1] as u64 * c2 as u64;
        c0 = (right >> 32) as u32 ^ c1 ^ k0;
        c1 = right as u32;
        c2 = (left >> 32) as u32 ^ c3 ^ k1;
        c3 = left as u32;
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// Which part of the attention row an entry of the keep mask belongs to; the last word of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Stream {
    /// The probabilities of the real keys.
    Keys = 0,
    /// The probabilities of the shared prefix, whose columns count from 0.
    Prefix = 1,
    /// The weight λ of the virtual token.
    Lambda = 2,
}

/// The keep mask of one call: dropout probability and seed.
///
/// `head` is everywhere the index `b · Hq + h` of batch entry (or packed sequence) `b` and query head `h`.
///
/// ```
/// use inducer_attention::dropout::KeepMask;
/// let mask = KeepMask::new(0.25, 7);
/// assert_eq!(mask.threshold(), 49152);
/// assert_eq!(mask.scale(), 65536.0 / 49152.0);
/// let kept = (0..1000).filter(|&column| mask.keep_real(0, 0, column)).count();
/// assert!((700..800).contains(&kept));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeepMask {
    threshold: u32,
    key: [u32; 2],
}

impl KeepMask {
    /// The mask that drops with probability `p`, rounded to a multiple of 1/65536.
    ///
    /// `p` belongs to `[0, 1)`; the threshold is clamped, so that no value of `p`, not even NaN, gives a mask without a
    /// finite [`scale`](Self::scale).
    pub fn new(p: f32, seed: u64) -> Self {
        let threshold = ((1.0 - f64::from(p)) * 65536.0).round().clamp(1.0, 65536.0) as u32;
        Self { threshold: threshold.max(1), key: [seed as u32, (seed >> 32) as u32] }
    }

    /// An entry is kept iff its 16 bits are below this number, which lies in `[1, 65536]`.
    #[inline]
    pub const fn threshold(&self) -> u32 {
        self.threshold
    }

    /// What a kept entry is multiplied by: `65536 / threshold`.
    #[inline]
    pub fn scale(&self) -> f64 {
        65536.0 / f64::from(self.threshold)
    }

    /// Whether the probability of the real key `column` is kept in query row `row`.
    #[inline]
    pub fn keep_real(&self, head: u32, row: u32, column: u32) -> bool {
        self.keep(Stream::Keys, head, row, column)
    }

    /// Whether the probability of token `column` of the shared prefix is kept in query row `row`.
    #[inline]
    pub fn keep_prefix(&self, head: u32, row: u32, column: u32) -> bool {
        self.keep(Stream::Prefix, head, row, column)
    }

    /// Whether λ is kept in query row `row`.
    #[inline]
    pub fn keep_lambda(&self, head: u32, row: u32) -> bool {
        u32::from(self.group(Stream::Lambda, head, row / 8, 0)[(row % 8) as usize]) < self.threshold
    }

    /// The eight entries of one generator call, in order of `e` (see the [module](self) for which these are).
    ///
    /// An entry is kept iff it is below [`threshold`](Self::threshold).
    #[inline]
    pub const fn group(&self, stream: Stream, head: u32, row_group: u32, column_group: u32) -> [u16; 8] {
        let [a, b, c, d] = philox4x32_10([column_group, row_group, head, stream as u32], self.key);
        [
            a as u16,
            (a >> 16) as u16,
            b as u16,
            (b >> 16) as u16,
            c as u16,
            (c >> 16) as u16,
            d as u16,
            (d >> 16) as u16,
        ]
    }

    fn keep(&self, stream: Stream, head: u32, row: u32, column: u32) -> bool {
        let column_group = (column / 16) * 4 + (column % 8) / 2;
        let row_group = (row / 16) * 8 + row % 8;
        let entry = (row / 8 % 2) * 4 + (column / 8 % 2) * 2 + column % 2;
        u32::from(self.group(stream, head, row_group, column_group)[entry as usize]) < self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The vectors `philox4x32 10` of Random123's `kat_vectors`.
    #[test]
    fn philox_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn threshold_is_rounded_and_clamped() {
        for (p, threshold) in [
            (0.0, 65536),
            (0.5, 32768),
            (0.1, 58982),
            (0.999_999_9, 1),
            (1.0, 1),
            (-1.0, 65536),
            (f32::NAN, 1),
        ] {
            assert_eq!(KeepMask::new(p, 0).threshold(), threshold, "p = {p}");
        }
        assert!((0..4096).all(|column| KeepMask::new(0.0, 3).keep_real(1, 2, column)));
    }

    /// The eight entries of a group are those of one lane's accumulators: rows g, g + 8; columns 2t, 2t + 1, 2t + 8, 2t + 9.
    #[test]
    fn a_group_is_what_one_lane_holds() {
        let mask = KeepMask::new(0.5, 0x0123_4567_89ab_cdef);
        for (block_row, block_column, g, t) in [(0, 0, 0, 0), (3, 5, 6, 2), (1, 7, 7, 3)] {
            let group = mask.group(Stream::Keys, 9, block_row * 8 + g, block_column * 4 + t);
            let (row, column) = (block_row * 16 + g, block_column * 16 + 2 * t);
            let held = [
                (row, column),
                (row, column + 1),
                (row, column + 8),
                (row, column + 9),
                (row + 8, column),
                (row + 8, column + 1),
                (row + 8, column + 8),
                (row + 8, column + 9),
            ];
            for ((row, column), bits) in held.into_iter().zip(group) {
                assert_eq!(mask.keep_real(9, row, column), bits < 32768);
            }
        }
    }

    /// Eight rows of λ share a call, one entry each.
    #[test]
    fn lambda_takes_one_entry_per_row() {
        let mask = KeepMask::new(0.5, 0x0123_4567_89ab_cdef);
        let kept = |row: u32| {
            let words = philox4x32_10([0, row / 8, 3, 2], [0x89ab_cdef, 0x0123_4567]);
            let entry = row % 8;
            (words[entry as usize / 2] >> (16 * (entry % 2))) & 0xffff < 32768
        };
        assert!((0..64).all(|row| mask.keep_lambda(3, row) == kept(row)));
    }

    /// No two entries of a matrix share their bits: every (group, entry) is taken once.
    #[test]
    fn every_entry_has_bits_of_its_own() {
        let mut seen = HashSet::new();
        for row in 0..40u32 {
            for column in 0..50u32 {
                let column_group = (column / 16) * 4 + (column % 8) / 2;
                let row_group = (row / 16) * 8 + row % 8;
                let entry = (row / 8 % 2) * 4 + (column / 8 % 2) * 2 + column % 2;
                assert!(seen.insert((row_group, column_group, entry)));
            }
        }
    }

    /// Seed (both halves), head, stream and row all change the mask; the rate is p̂ within five standard deviations.
    #[test]
    fn masks_differ_and_have_the_rate() {
        let bits = |mask: KeepMask, head, row| (0..512).map(move |column| mask.keep_real(head, row, column));
        let mask = KeepMask::new(0.5, 1);
        let base: Vec<bool> = bits(mask, 0, 0).collect();
        for other in [
            bits(KeepMask::new(0.5, 2), 0, 0).collect::<Vec<_>>(),
            bits(KeepMask::new(0.5, 1 | 1 << 32), 0, 0).collect(),
            bits(mask, 1, 0).collect(),
            bits(mask, 0, 1).collect(),
            (0..512).map(|column| mask.keep_prefix(0, 0, column)).collect(),
            (0..512).map(|row| mask.keep_lambda(0, row)).collect(),
        ] {
            let agreeing = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((200..312).contains(&agreeing), "{agreeing} of 512 agree");
        }
        let mask = KeepMask::new(0.1, 11);
        let kept = (0..200).flat_map(|row| (0..200).map(move |column| (row, column)));
        let kept = kept.filter(|&(row, column)| mask.keep_real(5, row, column)).count() as f64;
        assert!((kept - 36_000.0).abs() < 5.0 * (40_000.0_f64 * 0.9 * 0.1).sqrt(), "{kept} of 40000 kept");
    }
}
