// What the virtual token of a tile of queries is made of: staged adapters, hidden units, Q·Q, τ, given logits, λ.
//
// Adapters are staged in shared memory as rows that look like keys and values, kChunk ranks at a time:
//
//     rows 0 to 15     Aᵀ   what Q is multiplied by for the hidden units: z = Q A
//     rows 16 to 31    B    for the key, W = Q Bᵀ; for the value, λh·B
//
// Behind the last rank, B has one more row, b: a bias is a rank whose hidden unit is 1.
//
// The virtual key P = Q + u B + b is never formed: Q·P = Q·Q + u·W, where column j of u and of W lie in the same lane.
#pragma once

#include "dropout.cuh"
#include "scores.cuh"

namespace inducer {

constexpr int kChunk = 16;              // ranks in a stage
constexpr int kStageRows = 2 * kChunk;
constexpr int kChunkTiles = kChunk / 8; // blocks of 8 columns

// Reads element `index` of an adapter's tensor, f32 or of type T.
template <class T>
DEVICE float parameter(const void* data, i64 index, bool is_f32) {
    return is_f32 ? static_cast<const float*>(data)[index] : to_float(static_cast<const T*>(data)[index]);
}

// Four numbers that are neighbours in memory.
template <class S>
struct alignas(4 * sizeof(S)) Four {
    S x[4];
};

// Two ways to read four parameters that are neighbours, from element `index` on, of which `count` exist (any number; the others are
// 0): in one load, of a type known here, or one by one, of the type that `is_f32` says.
template <class S>
struct ParametersInFours {
    const S* data;

    DEVICE ParametersInFours(const void* data, bool) : data(static_cast<const S*>(data)) {}
    DEVICE Four<S> four(i64 index, int count) const {
        Four<S> x{};
        if (count > 0) x = *reinterpret_cast<const Four<S>*>(data + index);
        return x;
    }
};
template <class T>
struct ParametersOneByOne {
    const void* data;
    bool is_f32;

    DEVICE ParametersOneByOne(const void* data, bool is_f32) : data(data), is_f32(is_f32) {}
    DEVICE Four<float> four(i64 index, int count) const {
        Four<float> x{};
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if (i < count) x.x[i] = parameter<T>(data, index + i, is_f32);
        }
        return x;
    }
};

// stage_adapter for parameters that are read as `Parameters` says, `AtOnce` fours of each weight before the first is needed. Blocks
// wait for it once, most of them: the code is short, as it is fetched for that one time.
template <class Tile, class Parameters, int Threads, int AtOnce>
DEVICE void stage_adapter_of(char* stage, const Adapter& adapter, i32 head, i32 rank, i32 head_dim, int thread) {
    constexpr int D = Tile::kColumns;
    constexpr int each = D * kChunk / 4 / Threads;      // fours of a thread
    constexpr int batch = each < AtOnce ? each : AtOnce;
    static_assert(D * kChunk % (4 * Threads) == 0 && D % 4 == 0, "threads have the same number of fours");
    static_assert(each % batch == 0);
    const int ranks = adapter.rank - rank;
    const bool has_up = adapter.up_weight != nullptr;
    const Parameters down(adapter.down_weight, adapter.is_f32);
    const i64 down_first = head * adapter.down_weight_head + rank;
    const i64 up_first = head * adapter.up_weight_head + rank * adapter.up_weight_row, bias_first = head * adapter.up_bias_head;
    NO_UNROLL
    for (int first = thread; first < each * Threads; first += batch * Threads) {
        // Four ranks of a column of A; four columns of a rank of B.
        decltype(down.four(0, 0)) a[batch], b[batch];
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int at = first + i * Threads, column = at % D, j = at / D * 4;
            a[i] = down.four(down_first + column * adapter.down_weight_row + j, column < head_dim ? ranks - j : 0);
        }
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int at = first + i * Threads, column = at % (D / 4) * 4, j = at / (D / 4);
            const bool is_bias = j == ranks;
            const Parameters from(is_bias ? adapter.up_bias : adapter.up_weight, adapter.is_f32);
            b[i] = from.four((is_bias ? bias_first : up_first + j * adapter.up_weight_row) + column,
                             has_up && j <= ranks ? head_dim - column : 0);
        }
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int at = first + i * Threads, column = at % D, j = at / D * 4;
            UNROLL
            for (int k = 0; k < 4; ++k) store_element(Tile::element(stage, j + k, column), to_float(a[i].x[k]));
        }
        if (!has_up) continue;
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int at = first + i * Threads, column = at % (D / 4) * 4, j = at / (D / 4);
            auto* to = Tile::element(stage, kChunk + j, column);
            store_pair(to, to_float(b[i].x[0]), to_float(b[i].x[1]));
            store_pair(to + 2, to_float(b[i].x[2]), to_float(b[i].x[3]));
        }
    }
}

// Whether four neighbours, from every fourth on, are one load in each of an adapter's rows.
template <class S>
DEVICE bool in_fours(const Adapter& adapter) {
    const u64 rows = static_cast<u64>(adapter.down_weight_head | adapter.down_weight_row | adapter.up_weight_head |
                                      adapter.up_weight_row | adapter.up_bias_head | adapter.rank);
    const u64 addresses = reinterpret_cast<u64>(adapter.down_weight) | reinterpret_cast<u64>(adapter.up_weight) |
                          reinterpret_cast<u64>(adapter.up_bias);
    return rows % 4 == 0 && addresses % (4 * sizeof(S)) == 0;
}

// Ranks of an adapter, with the one that its bias is.
DEVICE i32 ranks_and_bias(const Adapter& adapter) { return adapter.rank + (adapter.up_bias != nullptr ? 1 : 0); }

// Copies ranks `rank` to `rank + kChunk - 1` of an adapter into a stage; what does not exist becomes 0. `Threads` threads take part,
// `thread` is one's number; a barrier of theirs must follow. `AtOnce`: as many as there are registers for.
template <class Tile, int Threads, int AtOnce>
DEVICE void stage_adapter(char* stage, const Adapter& adapter, i32 head, i32 rank, i32 head_dim, int thread) {
    using T = typename Tile::T;
    if (adapter.is_f32 && in_fours<float>(adapter)) {
        stage_adapter_of<Tile, ParametersInFours<float>, Threads, AtOnce>(stage, adapter, head, rank, head_dim, thread);
        return;
    }
    if constexpr (sizeof(T) == 2) {
        if (!adapter.is_f32 && in_fours<T>(adapter)) {
            stage_adapter_of<Tile, ParametersInFours<T>, Threads, AtOnce>(stage, adapter, head, rank, head_dim, thread);
            return;
        }
    }
    stage_adapter_of<Tile, ParametersOneByOne<T>, Threads, 1>(stage, adapter, head, rank, head_dim, thread);
}

// tanh z = 1 − 2 / (1 + exp(2z)), good to 1e-6 of its value, which is enough where it is rounded to 16 bits: where the difference
// cancels, the beginning of the series takes its place.
DEVICE float tanh_16(float z) {
    const float square = z * z, far = 1.0f - divide_fast(2.0f, 1.0f + exp2_fast(::fabsf(z) * (2.0f * kLog2E)));
    float series = fused_multiply_add(square, -17.0f / 315.0f, 2.0f / 15.0f);
    series = fused_multiply_add(square, series, -1.0f / 3.0f);
    series = fused_multiply_add(square * z, series, z);
    return ::fabsf(z) < 0.25f ? series : ::copysignf(far, z);
}

template <class T>
DEVICE float hyperbolic_tangent(float z) {
    if constexpr (sizeof(T) == 2) {
        return tanh_16(z);
    } else {
        return tanh_accurate(z);
    }
}

// a of rank j, 0 where there is none.
template <class T>
DEVICE float down_bias(const Adapter& adapter, i32 head, i32 j) {
    return j < adapter.rank ? parameter<T>(adapter.down_bias, head * adapter.down_bias_head + j, adapter.is_f32) : 0.0f;
}

// From z = Q A to the hidden units act(z + a) of ranks `rank` on; `bias_unit` behind the last rank, then 0. `bias_of(nt, e)` is a of a lane's
// column e (0 or 1) of block nt, anything where there is no such rank.
template <class T, int MT, class Bias>
DEVICE void hidden_units(float (&z)[MT][kChunkTiles][4], const Adapter& adapter, i32 rank, float bias_unit, Bias bias_of) {
    // What is the same in all lanes is jumped over, often half of a chunk; what is not is computed for nothing.
    UNROLL
    for (int nt = 0; nt < kChunkTiles; ++nt) {
        const int j = rank + fragment_column(nt, 0);
        if (rank + nt * 8 < adapter.rank) {
            const float bias[2] = {bias_of(nt, 0), bias_of(nt, 1)};
            UNROLL
            for (int mt = 0; mt < MT; ++mt) {
                UNROLL
                for (int e = 0; e < 4; ++e) z[mt][nt][e] += bias[e % 2];
            }
            if (!adapter.identity) {
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    UNROLL
                    for (int e = 0; e < 4; ++e) z[mt][nt][e] = hyperbolic_tangent<T>(z[mt][nt][e]);
                }
            }
        }
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                float& x = z[mt][nt][e];
                x = j + e % 2 < adapter.rank ? x : j + e % 2 == adapter.rank ? bias_unit : 0.0f;
            }
        }
    }
}

template <class T, int MT>
DEVICE void hidden_units(float (&z)[MT][kChunkTiles][4], const Adapter& adapter, i32 head, i32 rank, float bias_unit = 0.0f) {
    hidden_units<T>(z, adapter, rank, bias_unit,
                    [&](int nt, int e) { return down_bias<T>(adapter, head, rank + fragment_column(nt, e)); });
}

// The squares of the warp's rows of `tile`, each in one of the four lanes of its row, 0 in the others.
template <class T, int D, int MT>
DEVICE void row_squares(float (&square)[MT][2], const char* tile, int first_row) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        // Sixteen rows by themselves; the diagonal is what is wanted.
        float c[1][2][4];
        clear(c);
        RowsByRows<T, D, 1, 2, 1>::add(c, tile, first_row + mt * 16, tile, first_row + mt * 16);
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const float mine = lane_row() % 2 == 0 ? c[0][half][half * 2] : c[0][half][half * 2 + 1];
            square[mt][half] = lane_row() / 2 == lane_index() % 4 ? mine : 0.0f;
        }
    }
}

// τ of a row.
template <class T>
DEVICE float adaptive_factor(const Problem& p, const Sequence& s, i32 row) {
    if (!(p.flags & kAdaptiveLength)) return 1.0f;
    i64 position = row + 1;
    if (p.positions != nullptr) {
        position = p.positions[static_cast<i64>(s.batch) * p.rows + s.row_base + row];
    } else if (p.flags & kCausal) {
        position = s.position(row) + 1 > 1 ? s.position(row) + 1 : 1;
    }
    // The accurate one is a call, across which registers are few.
    const float x = static_cast<float>(position);
    return sizeof(T) == 2 ? sqrt_fast(x) : sqrt_accurate(x);
}

// The given logit of a row.
template <class T>
DEVICE float given_logit(const Problem& p, const Sequence& s, i32 head, i32 row) {
    i64 index = head * p.logit_stride[1];
    if (p.key_kind == kKeyLogitPerToken) index += s.batch * p.logit_stride[0] + (s.row_base + row) * p.logit_stride[2];
    return parameter<T>(p.logit, index, p.flags & kLogitIsF32);
}

// For 16-bit tensors good to 1e-5 of its value, where that is a normal number: x·log2 e is rounded before it is an exponent.
template <class T>
DEVICE float sigmoid(float x) {
    if constexpr (sizeof(T) == 2) {
        return divide_fast(1.0f, 1.0f + exp2_fast(-x * kLog2E));
    } else {
        return 1.0f / (1.0f + exp_accurate(-x));
    }
}

// λ and 1 − λ of a row, each from a sigmoid of its own so that neither loses its digits. A logit of −∞ is λ = 0, also where
// lse is −∞.
struct VirtualWeight {
    float lambda, rest;

    // T: of the tensors.
    template <class T>
    static DEVICE VirtualWeight of(float s0, float lse) {
        const bool off = s0 == -infinity();
        return {off ? 0.0f : sigmoid<T>(s0 - lse), off ? 1.0f : sigmoid<T>(lse - s0)};
    }
};

// Whether the virtual key is a logit, which comes from the caller.
DEVICE bool is_given(const Problem& p) { return p.key_kind == kKeyLogitPerHead || p.key_kind == kKeyLogitPerToken; }

// u·W of ranks `rank` on, of `ranks` in all, to the sums of rows, in parts.
template <int MT>
DEVICE void add_products_of_units(float (&dot)[MT][2], const float (&unit)[MT][kChunkTiles][4], const float (&w)[MT][kChunkTiles][4],
                                  i32 rank, i32 ranks) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int nt = 0; nt < kChunkTiles; ++nt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                // Where there is no rank, W is what an infinite Q makes of zeros.
                const bool exists = rank + fragment_column(nt, e) < ranks;
                dot[mt][e / 2] = fused_multiply_add(unit[mt][nt][e], exists ? w[mt][nt][e] : 0.0f, dot[mt][e / 2]);
            }
        }
    }
}

// s0 of a row: τσ Q·P, or the given logit.
template <class T>
DEVICE float virtual_logit(const Problem& p, const Sequence& s, i32 head, i32 row, float product) {
    return is_given(p) ? given_logit<T>(p, s, head, row) : product * (adaptive_factor<T>(p, s, row) * p.scale);
}

// m₀λ and 1 − λ of a row.
template <class T>
DEVICE VirtualWeight dropped_weight(const Problem& p, float s0, float lse, u32 dropout_head, i32 row) {
    VirtualWeight w = VirtualWeight::of<T>(s0, lse);
    w.lambda *= p.flags & kDropout ? lambda_factor(p, dropout_head, row) : 1.0f;
    return w;
}

// The same of a warp's rows, from `first_row` on. `dot` is Q·P in parts, lane by lane, where no logits are given.
template <class T, int MT>
DEVICE void virtual_weights(float (&weight)[MT][2], float (&rest)[MT][2], const float (&dot)[MT][2], const float (&lse)[MT][2],
                            const Problem& p, const Sequence& s, i32 head, i32 first_row, u32 dropout_head) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const i32 at = minimum(first_row + fragment_row(mt, half * 2), s.rows - 1);
            const float s0 = virtual_logit<T>(p, s, head, at, row_sum(dot[mt][half]));
            const VirtualWeight w = dropped_weight<T>(p, s0, lse[mt][half], dropout_head, at);
            weight[mt][half] = w.lambda;
            rest[mt][half] = w.rest;
        }
    }
}

}  // namespace inducer
