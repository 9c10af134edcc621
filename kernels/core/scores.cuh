// From products of queries and keys to scores: scale, softcap, ALiBi, mask. Key sources: the shared prefix, then the keys.
#pragma once

#include "product.cuh"

namespace inducer {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// What a tile of scores needs to know of its rows and keys.
struct ScoreContext {
    const Problem& problem;
    const Sequence& sequence;
    float slope;        // ALiBi, 0 for the prefix
    i32 first_row;      // of this warp, local to the sequence
    i32 first_key;      // of the tile, local to its source
};

// What multiplies a score inside exp2. Where scores are transformed one by one they are already scaled.
DEVICE float exponent_scale(const Problem& p) { return p.flags & kTransform ? kLog2E : p.scale * kLog2E; }

// c·tanh(σs/c) = c − 2c / (1 + exp(2σs/c)). In 16 bits by exp2 and a division that are good to 1e-7·c; f32 asks for more.
template <class T>
struct Softcap {
    float cap, factor;

    DEVICE explicit Softcap(const Problem& p)
        : cap(p.softcap), factor(sizeof(T) == 2 ? 2.0f * kLog2E * (p.scale / p.softcap) : p.scale / p.softcap) {}
    DEVICE float operator()(float s) const {
        if constexpr (sizeof(T) == 2) {
            return fused_multiply_add(-2.0f * cap, divide_fast(1.0f, 1.0f + exp2_fast(s * factor)), cap);
        } else {
            return cap * tanh_accurate(s * factor);
        }
    }
};

// s ← c·tanh(σs/c) − slope·|position − key|.
template <class T, int MT, int NT>
DEVICE void transform_scores(float (&s)[MT][NT][4], const ScoreContext& x) {
    const Problem& p = x.problem;
    if (p.flags & kSoftcap) {
        const Softcap<T> softcap(p);
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 4; ++e) s[mt][nt][e] = softcap(s[mt][nt][e]);
            }
        }
    } else {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 4; ++e) s[mt][nt][e] *= p.scale;
            }
        }
    }
    if (!(p.flags & kAlibi)) return;
    // Offsets of more than 2^30 do not fit; no sequence is so much longer than the other. Distances are exact up to 2^24.
    const i32 start = clamp64(x.sequence.position(x.first_row) - x.first_key, -(1 << 30), 1 << 30);
    const int lane = lane_index_anew();
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const float first = static_cast<float>(start + mt * 16 + half * 8 + lane / 4 - lane % 4 * 2);
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float& value = s[mt][nt][half * 2 + e];
                    value = fused_multiply_add(-x.slope, ::fabsf(first - static_cast<float>(nt * 8 + e)), value);
                }
            }
        }
    }
}

// Scores of keys that a row does not see become −∞. `visible(row)` gives the interval of columns that a row of this warp sees.
template <int MT, int NT, class Visible>
DEVICE void mask_scores(float (&s)[MT][NT][4], Visible visible) {
    const int lane = lane_index_anew(), own_column = lane % 4 * 2;
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const Interval seen = visible(mt * 16 + half * 8 + lane / 4);
            const i32 first = seen.first - own_column, end = seen.end - own_column;
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float& x = s[mt][nt][half * 2 + e];
                    x = nt * 8 + e >= first && nt * 8 + e < end ? x : -infinity();
                }
            }
        }
    }
}

// Tiles of keys that a tile of rows has to look at: first those of the prefix, then those of the keys that some row sees.
template <int Keys>
struct KeyTiles {
    i32 prefix_tiles;
    i32 first;          // first key of the first tile behind the prefix, a multiple of Keys
    i32 tiles;          // of both
    i32 all_first, all_end;     // keys that all rows see
    i32 some_first, some_end;   // keys that some row sees: the others are not even loaded

    // `rows` > 0 rows from `first_row` on.
    DEVICE KeyTiles(const Problem& p, const Sequence& s, i32 first_row, i32 rows) {
        prefix_tiles = ceil_divide(p.prefix_len, Keys);
        Interval top = s.visible(first_row), bottom = s.visible(first_row + rows - 1);
        all_first = bottom.first;
        all_end = top.end;
        some_first = top.first;
        some_end = bottom.end;
        first = top.first / Keys * Keys;
        tiles = prefix_tiles + (bottom.end > top.first ? ceil_divide(bottom.end - first, Keys) : 0);
    }
    DEVICE bool is_prefix(i32 tile) const { return tile < prefix_tiles; }
    DEVICE i32 first_key(i32 tile) const {
        return is_prefix(tile) ? tile * Keys : first + (tile - prefix_tiles) * Keys;
    }
    // Whether some row must not see some key of the tile.
    DEVICE bool is_masked(const Problem& p, i32 tile) const {
        i32 key = first_key(tile);
        return is_prefix(tile) ? key + Keys > p.prefix_len : key < all_first || key + Keys > all_end;
    }
    // Behind the tiles of the same source that follow `tile`, which is not masked, and are not either.
    DEVICE i32 unmasked_end(const Problem& p, i32 tile) const {
        return is_prefix(tile) ? p.prefix_len / Keys : prefix_tiles + (all_end - first) / Keys;
    }
};

}  // namespace inducer
