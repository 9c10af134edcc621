// The online softmax (Milakov and Gimelshein, 2018): running maximum and sum of a row, in the layout of an accumulator.
#pragma once

#include "scores.cuh"

namespace inducer {

// exp2(scale·s − reference) instead of exp(σ(s − max)): one multiply-add and one instruction. The reference is the rounded
// product scale·max, the same number for all keys of a row and for lse, so that its rounding error cancels.
template <int MT>
struct OnlineSoftmax {
    float maximum[MT][2];   // of raw scores; −∞ while the row has seen nothing
    float sum[MT][2];       // of this lane's columns

    DEVICE void init() {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                maximum[mt][half] = -infinity();
                sum[mt][half] = 0.0f;
            }
        }
    }

    // The reference of a maximum; 0 where nothing was seen, so that exp2(−∞ − 0) = 0 and never ∞ − ∞.
    static DEVICE float reference(float maximum, float scale) {
        return maximum == -infinity() ? 0.0f : multiply(maximum, scale);
    }

    // Takes in a tile of scores, which become probabilities up to the row's factor; scales o to the new maximum.
    template <int NT, int OT>
    DEVICE void update(float (&s)[MT][NT][4], float (&o)[MT][OT][4], float scale) {
        float factor[MT][2];
        bool moved = false;
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                float largest = maximum[mt][half];
                UNROLL
                for (int nt = 0; nt < NT; ++nt) {
                    largest = ::fmaxf(largest, ::fmaxf(s[mt][nt][half * 2], s[mt][nt][half * 2 + 1]));
                }
                largest = row_maximum(largest);
                float now = reference(largest, scale);
                float before = maximum[mt][half];
                factor[mt][half] = exp2_fast(before == -infinity() ? before : multiply(before, scale) - now);
                moved |= largest != before;
                maximum[mt][half] = largest;
                float total = 0.0f;
                UNROLL
                for (int nt = 0; nt < NT; ++nt) {
                    UNROLL
                    for (int e = 0; e < 2; ++e) {
                        float& x = s[mt][nt][half * 2 + e];
                        x = exp2_fast(fused_multiply_add(x, scale, -now));
                        total += x;
                    }
                }
                sum[mt][half] = fused_multiply_add(sum[mt][half], factor[mt][half], total);
            }
        }
        // Where no maximum has moved, factors are 1, or 0 in rows that have seen nothing, where O is 0.
        if (!warp_any(moved)) return;
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int ot = 0; ot < OT; ++ot) {
                UNROLL
                for (int e = 0; e < 4; ++e) o[mt][ot][e] *= factor[mt][e / 2];
            }
        }
    }

    // After the last tile: lse of a row in natural logarithm, −∞ if it saw nothing, and 1 / sum (0 then). Collective.
    DEVICE void finish(float (&lse)[MT][2], float (&inverse)[MT][2], float scale) {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                float total = row_sum(sum[mt][half]);
                bool nothing = maximum[mt][half] == -infinity() && total == 0.0f;
                lse[mt][half] =
                    nothing ? -infinity() : (multiply(maximum[mt][half], scale) + log2_accurate(total)) * kLn2;
                inverse[mt][half] = nothing ? 0.0f : 1.0f / total;
            }
        }
    }
};

}  // namespace inducer
