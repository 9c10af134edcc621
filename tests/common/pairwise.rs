//! Cases in which every value of a factor meets every value of every other factor at least once.
//!
//! Two features that are each right and wrong together are found by some case, and it takes tens of cases where the full
//! product would take millions.

use super::case::{Case, InducerCase, KeyCase, Layout, LengthsCase, Slopes, ValueCase, mix};
use inducer_attention::{Activation, DType, Dropout};
use std::collections::HashSet;

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const HEAD_DIMS: [usize; 8] = [32, 40, 64, 80, 96, 128, 160, 256];
const RANKS: [usize; 6] = [1, 5, 8, 16, 33, 64];
/// Rows and keys.
const SHAPES: [(usize, usize); 7] = [(65, 65), (1, 200), (130, 70), (17, 150), (40, 16), (0, 5), (6, 0)];
const PREFIXES: [Option<usize>; 3] = [None, Some(5), Some(70)];

/// How many values each factor has, in the order in which [`case`] reads them.
const FACTORS: [usize; 17] = [
    DTYPES.len(),
    HEAD_DIMS.len(),
    5,
    4,
    RANKS.len(),
    RANKS.len(),
    5,
    3,
    3,
    5,
    2,
    2,
    3,
    SHAPES.len(),
    2,
    4,
    4,
];

type Row = [usize; FACTORS.len()];

/// The cases of a seed.
pub fn cases(seed: u64) -> Vec<Case> {
    rows(seed).iter().enumerate().map(|(i, row)| case(row, mix(seed ^ i as u64))).collect()
}

fn pairs_of(row: &Row) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let row = *row;
    (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| (a, row[a], b, row[b])))
}

/// Rows that cover all pairs: each is the best of a few, which begin with a pair that is still missing.
fn rows(seed: u64) -> Vec<Row> {
    let mut missing = HashSet::new();
    for (a, &values) in FACTORS.iter().enumerate() {
        for (b, &others) in FACTORS.iter().enumerate().skip(a + 1) {
            missing.extend((0..values).flat_map(|x| (0..others).map(move |y| (a, x, b, y))));
        }
    }
    let mut state = seed;
    let mut draw = |n: usize| {
        state = mix(state);
        (state % n as u64) as usize
    };
    let mut rows = Vec::new();
    // The least of the missing pairs, not whichever the set names first: the rows depend on the seed alone.
    while let Some(&(a, x, b, y)) = missing.iter().min() {
        let gain = |row: &Row| pairs_of(row).filter(|pair| missing.contains(pair)).count();
        let best = (0..60)
            .map(|_| {
                let mut row: Row = FACTORS.map(&mut draw);
                (row[a], row[b]) = (x, y);
                row
            })
            .max_by_key(gain)
            .expect("some candidates");
        for pair in pairs_of(&best) {
            missing.remove(&pair);
        }
        rows.push(best);
    }
    rows
}

fn case(row: &Row, seed: u64) -> Case {
    let [dtype, head_dim, key, value, key_rank, value_rank, mask, lengths, prefix, scores, rest @ ..] = *row;
    let [dropout, own_parameters, layout, shape, group, gradients, token] = rest;
    let (rows, keys) = SHAPES[shape];
    let mut case = Case {
        dtype: DTYPES[dtype],
        parameter_dtype: if own_parameters == 1 { DTYPES[dtype] } else { DType::F32 },
        batch: 2,
        kv_heads: 1,
        group: group + 1,
        rows,
        keys,
        head_dim: HEAD_DIMS[head_dim],
        layout: [Layout::Bhnd, Layout::Bnhd, Layout::Packed][layout],
        result_layout: [Layout::Bnhd, Layout::Bhnd, Layout::Bhnd][layout],
        prefix: PREFIXES[prefix],
        lse_gradient: gradients % 2 == 0,
        u_gradient: gradients != 1,
        saves_attention: gradients >= 2,
        parameter_gradients: gradients != 3,
        seed,
        ..Case::default()
    };
    case.config.causal = mask == 1 || mask == 2;
    case.config.window_left = [None, None, Some(20), Some(9), None][mask];
    case.config.window_right = [None, None, None, Some(30), Some(0)][mask];
    case.config.softmax_scale = (scores == 4).then_some(-0.2);
    case.config.softcap = (scores == 1 || scores == 3).then_some(5.0);
    case.alibi = [None, None, Some(Slopes::PerHead), Some(Slopes::PerEntry), None][scores];
    case.config.dropout = (dropout == 1).then_some(Dropout { p: 0.3, seed });
    case.lengths = match lengths {
        0 => LengthsCase::Full,
        1 => {
            let (n, m) = (rows as i32, keys as i32);
            LengthsCase::Padded {
                query_lengths: Some(vec![n - n / 4, n]),
                key_lengths: Some(vec![m, m - m / 3]),
                key_starts: Some(vec![m / 5, 0]),
            }
        }
        _ => {
            case.batch = 1;
            let cut = |n: usize| {
                let (end, first) = ((n - n / 8) as i32, (n / 3) as i32);
                vec![0, first, first, end]
            };
            LengthsCase::Packed { cu_seqlens_q: cut(rows), cu_seqlens_k: cut(keys) }
        }
    };
    let (key_rank, value_rank) = (RANKS[key_rank], RANKS[value_rank]);
    let key = match key {
        0 => return case,
        1 => KeyCase::Query,
        2 => KeyCase::Residual { rank: key_rank },
        3 => KeyCase::LogitPerHead,
        _ => KeyCase::LogitPerToken,
    };
    let value = match value {
        0 => ValueCase::Zero,
        1 => ValueCase::Residual { rank: value_rank },
        2 => ValueCase::Direct { rank: value_rank },
        _ => ValueCase::Extended { rank: value_rank },
    };
    let given = matches!(key, KeyCase::LogitPerHead | KeyCase::LogitPerToken);
    case.inducer = Some(InducerCase {
        activation: if token == 3 { Activation::Identity } else { Activation::Tanh },
        adaptive_length: !given && token >= 1,
        positions: !given && token == 2,
        some_logits_off: given && token == 1,
        ..InducerCase::new(key, value)
    });
    case
}

#[cfg(test)]
mod tests {
    use super::{FACTORS, pairs_of, rows};
    use std::collections::HashSet;

    #[test]
    fn every_pair_of_values_meets() {
        let rows = rows(1);
        let met: HashSet<_> = rows.iter().flat_map(pairs_of).collect();
        let sum: usize = FACTORS.iter().sum();
        let squares: usize = FACTORS.iter().map(|n| n * n).sum();
        assert_eq!(met.len(), (sum * sum - squares) / 2);
        assert!(rows.len() < 120, "{} cases", rows.len());
    }
}
