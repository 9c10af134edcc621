// The online softmax (Milakov and Gimelshein, 2018): running maximum and sum of a row, in the layout of an accumulator.
#pragma once

#include "scores.cuh"

namespace inducer {

// A maximum stays until a score passes it by this much, in units of log2: O is rarely rescaled then, and probabilities are up to
// 2^8 with the same relative accuracy. Where O is narrow, rescaling it costs less than staying does.
template <int OutputTiles>
constexpr bool kIsWide = OutputTiles > 8;
template <int OutputTiles>
constexpr float kSlack = kIsWide<OutputTiles> ? 8.0f : 0.0f;

// exp2(scale·s − reference) instead of exp(σ(s − max)): one multiply-add and one instruction. The reference is the rounded
// product scale·max, the same number for all keys of a row and for lse, so that its rounding error cancels.
template <int MT>
struct OnlineSoftmax {
    float maximum[MT][2];   // of raw scores, or less by kSlack / scale at most; −∞ while the row has seen nothing
    float* sums;            // of this lane's columns, one for each of its rows, `stride` from each other
    int stride;

    DEVICE float& sum(int mt, int half) { return sums[(mt * 2 + half) * stride]; }

    DEVICE OnlineSoftmax(float* sums, int stride) : sums(sums), stride(stride) {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                maximum[mt][half] = -infinity();
                sum(mt, half) = 0.0f;
            }
        }
    }

    // The reference of a maximum; 0 where nothing was seen, so that exp2(−∞ − 0) = 0 and never ∞ − ∞.
    static DEVICE float reference(float maximum, float scale) {
        return maximum == -infinity() ? 0.0f : multiply(maximum, scale);
    }

    // Takes in a row's part of a tile of scores, which become probabilities up to the row's factor. Returns what O is to be scaled
    // by; says in `moved` if that is not 1. Collective.
    template <int NT>
    DEVICE float update_row(float (&s)[NT][4], int mt, int half, float scale, float slack, bool& moved) {
        const float before = maximum[mt][half];
        float largest = before;
        UNROLL
        for (int nt = 0; nt < NT; ++nt) {
            largest = ::fmaxf(largest, ::fmaxf(s[nt][half * 2], s[nt][half * 2 + 1]));
        }
        largest = row_maximum(largest);
        const bool moves = before == -infinity() ? largest != before : multiply(largest - before, scale) > slack;
        if (!moves) largest = before;
        const float now = reference(largest, scale);
        const float factor = exp2_fast(before == -infinity() ? before : multiply(before, scale) - now);
        moved |= moves;
        maximum[mt][half] = largest;
        float total = 0.0f;
        UNROLL
        for (int nt = 0; nt < NT; ++nt) {
            UNROLL
            for (int e = 0; e < 2; ++e) {
                float& x = s[nt][half * 2 + e];
                x = exp2_fast(fused_multiply_add(x, scale, -now));
                total += x;
            }
        }
        sum(mt, half) = fused_multiply_add(sum(mt, half), factor, total);
        return factor;
    }

    // Takes in a tile of scores, which become probabilities up to the row's factor; scales o to the new reference.
    template <int NT, int OT>
    DEVICE void update(float (&s)[MT][NT][4], float (&o)[MT][OT][4], float scale) {
        float factor[MT][2];
        bool moved = false;
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) factor[mt][half] = update_row(s[mt], mt, half, scale, kSlack<OT>, moved);
            // Where no reference has moved, scaling changes nothing: factors are 1, or 0 in rows that have seen nothing, where O is 0.
            // A wide O leaves no registers to keep the factors in.
            if constexpr (kIsWide<OT>) {
                if (warp_any(moved)) scale_rows(o[mt], factor[mt]);
                moved = false;
            }
        }
        if (!kIsWide<OT> && warp_any(moved)) scale_rows(o, factor);
    }

    // After the last tile: lse of a row in natural logarithm, −∞ if it saw nothing, and 1 / sum (0 then). Collective.
    DEVICE void finish(float (&lse)[MT][2], float (&inverse)[MT][2], float scale) {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                float total = row_sum(sum(mt, half));
                bool nothing = maximum[mt][half] == -infinity() && total == 0.0f;
                lse[mt][half] =
                    nothing ? -infinity() : (multiply(maximum[mt][half], scale) + log2_accurate(total)) * kLn2;
                inverse[mt][half] = nothing ? 0.0f : 1.0f / total;
            }
        }
    }
};

}  // namespace inducer
