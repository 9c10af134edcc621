// From scores to probabilities and their gradients, in tiles that lie on their side: an accumulator's rows are keys, its
// columns are queries. Pᵀ and dSᵀ then are, as they lie in registers, the left factors of dV and dK.
//
//     P = exp(s − lse)        dS = P ∘ (w m̃∘dP − D′)
//
// Between P and dS, a tile holds P times the derivative of the softcap, negative where dropout has dropped the probability (a P
// of 0 that is dropped becomes -0, which is as good; a NaN keeps no mark, and needs none).
#pragma once

#include "dropout.cuh"
#include "scores.cuh"

namespace inducer {

// What a tile needs to know of its queries. Those that do not exist, or see nothing, have lse = ∞, which makes P = 0.
template <int Rows>
struct RowStatistics {
    float lse[Rows];        // in units of log 2
    float weight[Rows];     // w, times the scale of what dropout keeps
    float constant[Rows];   // D′

    // Two neighbours.
    static DEVICE f32x2 pair(const float (&x)[Rows], int row) { return *reinterpret_cast<const f32x2*>(x + row); }
};

// What probabilities are multiplied by before they are rounded to T. f16 has few digits under 2^-14, where w P often is.
template <class T>
DEVICE float probability_scale(const Problem&) {
    return 1.0f;
}
template <>
DEVICE float probability_scale<f16>(const Problem& p) {
    // w m̃ P is at most dropout_scale.
    return divide_fast(32768.0f, p.flags & kDropout ? p.dropout_scale : 1.0f);
}

// s ← c·tanh(σs/c) − slope·|position − key|. `x.first_row` and `x.first_key` are the warp's first.
template <class T, int MT, int NT>
DEVICE void transform_scores_of_keys(float (&s)[MT][NT][4], const ScoreContext& x) {
    const Problem& p = x.problem;
    // Offsets of more than 2^30 do not fit; no sequence is so much longer than the other.
    const i32 start = clamp64(x.sequence.position(x.first_row) - x.first_key, -(1 << 30), 1 << 30);
    const Softcap<T> softcap(p);
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int nt = 0; nt < NT; ++nt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                float value = s[mt][nt][e];
                value = p.flags & kSoftcap ? softcap(value) : value * p.scale;
                i32 distance = start + fragment_column(nt, e) - fragment_row(mt, e);
                float length = static_cast<float>(distance < 0 ? -distance : distance);
                s[mt][nt][e] = fused_multiply_add(-x.slope, length, value);
            }
        }
    }
}

// s ← P.
template <int MT, int NT, int Rows>
DEVICE void probabilities(float (&s)[MT][NT][4], const RowStatistics<Rows>& rows, int first_row, float scale) {
    UNROLL
    for (int nt = 0; nt < NT; ++nt) {
        f32x2 lse = rows.pair(rows.lse, first_row + fragment_column(nt, 0));
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                s[mt][nt][e] = exp2_fast(fused_multiply_add(s[mt][nt][e], scale, e % 2 == 0 ? -lse.x : -lse.y));
            }
        }
    }
}

// P ← 0 where a query does not see a key, whatever it was. `seen_by(i)` gives the rows of the tile that see the warp's key i.
template <int MT, int NT, class SeenBy>
DEVICE void hide(float (&s)[MT][NT][4], int first_row, SeenBy seen_by) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            Interval seen = seen_by(fragment_row(mt, half * 2));
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    int row = first_row + fragment_column(nt, e);
                    float& x = s[mt][nt][half * 2 + e];
                    x = row >= seen.first && row < seen.end ? x : 0.0f;
                }
            }
        }
    }
}

// P ← P times the derivative of the softcap, for columns 8·`nt` to 8·`nt` + 15, whose products of keys and queries are
// `scores`. 0 stays 0: a hidden score may be anything.
template <class T, int MT, int NT>
DEVICE void apply_softcap_derivative(float (&s)[MT][NT][4], const float (&scores)[MT][2][4], int nt, const Problem& p) {
    const Softcap<T> softcap(p);
    const float inverse = 1.0f / p.softcap;
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int e = 0; e < 8; ++e) {
            float& x = s[mt][nt + e / 4][e % 4];
            float capped = softcap(scores[mt][e / 4][e % 4]) * inverse;
            x = x == 0.0f ? 0.0f : x * fused_multiply_add(-capped, capped, 1.0f);
        }
    }
}

// Turns the signs of what is dropped. `first_row` and `first_key` are the warp's first, multiples of 16.
template <int MT, int NT>
DEVICE void mark_dropped(float (&s)[MT][NT][4], const Problem& p, u32 stream, u32 head, i32 first_row, i32 first_key) {
    // One call of the generator has eight entries: rows r and r + 8, keys 2i, 2i + 1, 2i + 8, 2i + 9. A lane has the rows 2t,
    // 2t + 1 and 8 more, each a call, of which it needs the keys g and g + 8; its neighbour g ^ 1 needs the others. Each makes
    // one of the two calls and tells the other what it says.
    const int g = lane_row(), own = g % 2;
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        NO_UNROLL
        for (int np = 0; np < NT / 2; ++np) {
            Philox bits = philox(static_cast<u32>((first_key + mt * 16) / 16 * 4 + g / 2),
                                 static_cast<u32>((first_row + np * 16) / 16 * 8 + lane_column() + own), head, stream,
                                 p.dropout_key[0], p.dropout_key[1]);
            u32 even = 0, odd = 0;      // of g
            UNROLL
            for (int block = 0; block < 2; ++block) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    u32 word = bits.word[block * 2 + half];
                    if ((word & 0xffffu) >= p.dropout_threshold) even |= 1u << (block * 4 + half * 2);
                    if (word >> 16 >= p.dropout_threshold) odd |= 1u << (block * 4 + half * 2);
                }
            }
            u32 told = shuffle_xor(own == 0 ? odd : even, 4);
            u32 dropped = (own == 0 ? even : odd) << own | told << (own ^ 1);
            // s[mt][2 * np + …] without an index that the compiler does not know, which would put s into memory.
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 4; ++e) {
                    bool turn = nt / 2 == np && (dropped >> (nt % 2 * 4 + e) & 1u) != 0;
                    s[mt][nt][e] = turn ? -s[mt][nt][e] : s[mt][nt][e];
                }
            }
        }
    }
}

// to ← w m̃∘P times `scale`, of columns 8·`nt` to 8·`nt` + 15: only these, as there is no room for more beside P. `Whole` here and
// below: nothing of the tile is hidden or dropped.
template <bool Whole = false, int MT, int NT, int Rows>
DEVICE void weighted_probabilities(float (&to)[MT][2][4], const float (&s)[MT][NT][4], const RowStatistics<Rows>& rows,
                                   int first_row, int nt, float scale) {
    UNROLL
    for (int block = 0; block < 2; ++block) {
        f32x2 weight = rows.pair(rows.weight, first_row + fragment_column(nt + block, 0));
        weight = {weight.x * scale, weight.y * scale};
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                float x = s[mt][nt + block][e];
                // Nothing of what is hidden or dropped, whatever the weight.
                to[mt][block][e] = !Whole && x <= 0.0f ? 0.0f : x * (e % 2 == 0 ? weight.x : weight.y);
            }
        }
    }
}

// dP ← dS, for columns of P from 8·`first_tile` on; 0 where P is, whatever dP is there. `first_row` is dP's first.
template <bool Whole = false, int MT, int Tiles, int NT, int Rows>
DEVICE void score_gradients(float (&dp)[MT][Tiles][4], const float (&s)[MT][NT][4], int first_tile,
                            const RowStatistics<Rows>& rows, int first_row) {
    UNROLL
    for (int nt = 0; nt < Tiles; ++nt) {
        f32x2 weight = rows.pair(rows.weight, first_row + fragment_column(nt, 0));
        f32x2 constant = rows.pair(rows.constant, first_row + fragment_column(nt, 0));
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                float x = s[mt][first_tile + nt][e];
                float kept = !Whole && x < 0.0f ? 0.0f : (e % 2 == 0 ? weight.x : weight.y);
                float inner = fused_multiply_add(kept, dp[mt][nt][e], e % 2 == 0 ? -constant.x : -constant.y);
                dp[mt][nt][e] = Whole ? x * inner : x == 0.0f ? 0.0f : ::fabsf(x) * inner;
            }
        }
    }
}

}  // namespace inducer
