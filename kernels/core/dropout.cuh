// Dropout masks, the same as src/dropout.rs, entry by entry: a lane's eight entries of a 16×16 block are one call.
#pragma once

#include "product.cuh"

namespace inducer {

enum DropoutStream : u32 { kDropKeys = 0, kDropPrefix = 1, kDropLambda = 2 };

struct Philox {
    u32 word[4];

    // Entry e: the low half of word e / 2 where e is even, the high half where it is odd.
    DEVICE u32 entry(int e) const { return e % 2 == 0 ? word[e / 2] & 0xffffu : word[e / 2] >> 16; }
};

// Philox4x32-10 (Salmon et al., SC 2011).
DEVICE Philox philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
    UNROLL
    for (int round = 0; round < 10; ++round) {
        u32 high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        u32 high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// What is kept of a 16×16 block of probabilities, 1 or 0: entries [0..4] belong to this lane's block of columns 0 to 7, [4..8] to columns 8
// to 15, each in the order of an accumulator. `row` and `column` are the block's first, multiples of 16.
DEVICE void kept_entries(float (&kept)[8], const Problem& p, u32 stream, u32 head, i32 row, i32 column) {
    Philox bits = philox(static_cast<u32>(column / 16 * 4 + lane_index() % 4), static_cast<u32>(row / 16 * 8 + lane_row()),
                         head, stream, p.dropout_key[0], p.dropout_key[1]);
    UNROLL
    for (int block = 0; block < 2; ++block) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            UNROLL
            for (int e = 0; e < 2; ++e) {
                const u32 entry = bits.entry(half * 4 + block * 2 + e);
                kept[block * 4 + half * 2 + e] = entry < p.dropout_threshold ? 1.0f : 0.0f;
            }
        }
    }
}

// Drops entries of a warp's accumulator. Those that are kept are not scaled: f16 might not hold them.
template <int MT, int NT>
DEVICE void apply_dropout(float (&c)[MT][NT][4], const Problem& p, u32 stream, u32 head, i32 first_row, i32 first_column) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int np = 0; np < NT / 2; ++np) {
            float kept[8];
            kept_entries(kept, p, stream, head, first_row + mt * 16, first_column + np * 16);
            UNROLL
            for (int e = 0; e < 8; ++e) c[mt][2 * np + e / 4][e % 4] *= kept[e];
        }
    }
}

// Factor of λ in a row.
DEVICE float lambda_factor(const Problem& p, u32 head, i32 row) {
    Philox bits = philox(0, static_cast<u32>(row / 8), head, kDropLambda, p.dropout_key[0], p.dropout_key[1]);
    int e = row % 8;
    u32 word = e / 2 == 0 ? bits.word[0] : e / 2 == 1 ? bits.word[1] : e / 2 == 2 ? bits.word[2] : bits.word[3];
    u32 entry = e % 2 == 0 ? word & 0xffffu : word >> 16;
    return entry < p.dropout_threshold ? p.dropout_scale : 0.0f;
}

}  // namespace inducer
