// The virtual token of a tile of queries: its score s0, its weight λ, its hidden units h.
//
// Adapters are staged in shared memory as rows that look like keys and values, kChunk ranks at a time:
//
//     rows 0 to 15     Aᵀ   what Q is multiplied by for the hidden units: z = Q A
//     rows 16 to 31    B    for the key, W = Q Bᵀ; for the value, λh·B
//
// Behind the last rank, B has one more row, b: the value's bias is a rank whose hidden unit is 1.
//
// The virtual key P = Q + u B + b is never formed: Q·P = Q·(Q + b) + u·W, where column j of u and of W lie in the same lane.
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

// Loads that are under way at once: one after the other, each would be waited for.
constexpr int kLoadBatch = 4;

// stage_adapter for parameters of type S.
template <class T, class S, int D, int Threads>
DEVICE void stage_adapter_of(char* stage, const Adapter& adapter, i32 head, i32 rank, i32 head_dim) {
    constexpr int each = D * kChunk / Threads;
    static_assert(D * kChunk % Threads == 0 && each % kLoadBatch == 0);
    const int ranks = adapter.rank - rank, thread = static_cast<int>(thread_index());
    // Neighbouring threads read neighbouring elements of A's rows [d, r], so they write down a column of Aᵀ.
    const S* down = static_cast<const S*>(adapter.down_weight) + head * adapter.down_weight_head + rank;
    NO_UNROLL
    for (int first = thread; first < D * kChunk; first += kLoadBatch * Threads) {
        S x[kLoadBatch];
        UNROLL
        for (int i = 0; i < kLoadBatch; ++i) {
            int j = (first + i * Threads) % kChunk, column = (first + i * Threads) / kChunk;
            x[i] = S{};
            if (j < ranks && column < head_dim) x[i] = down[column * adapter.down_weight_row + j];
        }
        UNROLL
        for (int i = 0; i < kLoadBatch; ++i) {
            int j = (first + i * Threads) % kChunk, column = (first + i * Threads) / kChunk;
            store_element(element_address<T, D>(stage, j, column), to_float(x[i]));
        }
    }
    if (adapter.up_weight == nullptr) return;
    const S* up = static_cast<const S*>(adapter.up_weight) + head * adapter.up_weight_head + rank * adapter.up_weight_row;
    const S* bias = static_cast<const S*>(adapter.up_bias) + head * adapter.up_bias_head;
    NO_UNROLL
    for (int first = thread; first < D * kChunk; first += kLoadBatch * Threads) {
        S x[kLoadBatch];
        UNROLL
        for (int i = 0; i < kLoadBatch; ++i) {
            int j = (first + i * Threads) / D, column = (first + i * Threads) % D;
            x[i] = S{};
            if (j <= ranks && column < head_dim) x[i] = (j == ranks ? bias : up + j * adapter.up_weight_row)[column];
        }
        UNROLL
        for (int i = 0; i < kLoadBatch; ++i) {
            int j = (first + i * Threads) / D, column = (first + i * Threads) % D;
            store_element(element_address<T, D>(stage, kChunk + j, column), to_float(x[i]));
        }
    }
}

// Copies ranks `rank` to `rank + kChunk - 1` of an adapter into a stage; what does not exist becomes 0. All threads of the
// block take part; a barrier must follow.
template <class T, int D, int Threads>
DEVICE void stage_adapter(char* stage, const Adapter& adapter, i32 head, i32 rank, i32 head_dim) {
    if (adapter.is_f32) {
        stage_adapter_of<T, float, D, Threads>(stage, adapter, head, rank, head_dim);
    } else {
        stage_adapter_of<T, T, D, Threads>(stage, adapter, head, rank, head_dim);
    }
}

DEVICE float activate(float z, bool identity) { return identity ? z : tanh_accurate(z); }

// From z = Q A to the hidden units act(z + a) of ranks `rank` on; `bias_unit` behind the last rank, then 0.
template <class T, int MT>
DEVICE void hidden_units(float (&z)[MT][kChunkTiles][4], const Adapter& adapter, i32 head, i32 rank,
                         float bias_unit = 0.0f) {
    UNROLL
    for (int nt = 0; nt < kChunkTiles; ++nt) {
        UNROLL
        for (int e = 0; e < 2; ++e) {
            int j = rank + fragment_column(nt, e);
            bool exists = j < adapter.rank;
            float bias =
                exists ? parameter<T>(adapter.down_bias, head * adapter.down_bias_head + j, adapter.is_f32) : 0.0f;
            UNROLL
            for (int mt = 0; mt < MT; ++mt) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    float& x = z[mt][nt][half * 2 + e];
                    x = exists ? activate(x + bias, adapter.identity) : j == adapter.rank ? bias_unit : 0.0f;
                }
            }
        }
    }
}

// What this lane's columns add to a·(a + bias) in its rows: a chunk in four of each row of `tile`. `bias` may be null.
template <class T, int D, int MT>
DEVICE void row_products(float (&dot)[MT][2], const char* tile, int first_row, const void* bias, i64 bias_index,
                         bool bias_is_f32, i32 head_dim) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) dot[mt][0] = dot[mt][1] = 0.0f;
    NO_UNROLL
    for (int chunk = lane_index() % 4; chunk * kPerChunk<T> < head_dim; chunk += 4) {
        float b[kPerChunk<T>];
        const i64 first = bias_index + chunk * kPerChunk<T>;
        if (bias == nullptr) {
            UNROLL
            for (int i = 0; i < kPerChunk<T>; ++i) b[i] = 0.0f;
        } else if (bias_is_f32) {
            UNROLL
            for (int i = 0; i < kPerChunk<T>; ++i) b[i] = static_cast<const float*>(bias)[first + i];
        } else {
            UNROLL
            for (int i = 0; i < kPerChunk<T>; ++i) b[i] = to_float(static_cast<const T*>(bias)[first + i]);
        }
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int row = first_row + fragment_row(mt, half * 2);
                const T* a = reinterpret_cast<const T*>(chunk_address<T, D>(tile, row, chunk));
                UNROLL
                for (int i = 0; i < kPerChunk<T>; ++i) {
                    float x = to_float(a[i]);
                    dot[mt][half] = fused_multiply_add(x, x + b[i], dot[mt][half]);
                }
            }
        }
    }
}

// τ of a row.
DEVICE float adaptive_factor(const Problem& p, const Sequence& s, i32 row) {
    if (!(p.flags & kAdaptiveLength)) return 1.0f;
    i64 position = row + 1;
    if (p.positions != nullptr) {
        position = p.positions[static_cast<i64>(s.batch) * p.rows + s.row_base + row];
    } else if (p.flags & kCausal) {
        position = s.position(row) + 1 > 1 ? s.position(row) + 1 : 1;
    }
    return sqrt_accurate(static_cast<float>(position));
}

// The given logit of a row.
template <class T>
DEVICE float given_logit(const Problem& p, const Sequence& s, i32 head, i32 row) {
    i64 index = head * p.logit_stride[1];
    if (p.key_kind == kKeyLogitPerToken) index += s.batch * p.logit_stride[0] + (s.row_base + row) * p.logit_stride[2];
    return parameter<T>(p.logit, index, p.flags & kLogitIsF32);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_accurate(-x)); }

// λ and 1 − λ of a row, each from a sigmoid of its own so that neither loses its digits. A logit of −∞ is λ = 0, also where
// lse is −∞.
struct VirtualWeight {
    float lambda, rest;

    DEVICE VirtualWeight(float s0, float lse) {
        bool off = s0 == -infinity();
        lambda = off ? 0.0f : sigmoid(s0 - lse);
        rest = off ? 1.0f : sigmoid(lse - s0);
    }
};

// Scores of the virtual token for this warp's rows, the same in all four lanes of a row. `q` is the tile of queries, `stage`
// room for kStageRows rows, `first_row` the warp's first row in the tile, `row` the tile's first in the sequence. Collective
// for the block; begins with a barrier, after which the stage is overwritten. `prefetch` is called before the next barrier, so
// that what it stages is there on return.
template <class T, int D, int MT, int Threads, class Prefetch>
DEVICE void virtual_scores(float (&s0)[MT][2], const Problem& p, const Sequence& s, i32 head, const char* q, char* stage,
                           int first_row, i32 row, Prefetch prefetch) {
    sync_threads();     // Q is here, whatever ran before; the stage's memory is free
    if (p.key_kind == kKeyLogitPerHead || p.key_kind == kKeyLogitPerToken) {
        prefetch();
        sync_threads();
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                i32 at = minimum(row + first_row + fragment_row(mt, half * 2), s.rows - 1);
                s0[mt][half] = given_logit<T>(p, s, head, at);
            }
        }
        return;
    }
    const void* bias = p.key.rank > 0 ? p.key.up_bias : nullptr;
    row_products<T, D, MT>(s0, q, first_row, bias, head * p.key.up_bias_head, p.key.is_f32, p.head_dim);
    if (p.key.rank == 0) {
        prefetch();
        sync_threads();
    }
    NO_UNROLL
    for (i32 rank = 0; rank < p.key.rank; rank += kChunk) {
        if (rank > 0) sync_threads();
        stage_adapter<T, D, Threads>(stage, p.key, head, rank, p.head_dim);
        if (rank == 0) prefetch();
        sync_threads();
        float u[MT][kChunkTiles][4], w[MT][kChunkTiles][4];
        clear(u);
        clear(w);
        RowsByRows<T, D, MT, kChunkTiles, 1>::add(u, q, first_row, stage, 0);
        RowsByRows<T, D, MT, kChunkTiles, 1>::add(w, q, first_row, stage, kChunk);
        hidden_units<T>(u, p.key, head, rank);
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int nt = 0; nt < kChunkTiles; ++nt) {
                UNROLL
                for (int e = 0; e < 4; ++e) {
                    // Where there is no rank, W is what an infinite Q makes of zeros, or Q·b.
                    bool exists = rank + fragment_column(nt, e) < p.key.rank;
                    s0[mt][e / 2] = fused_multiply_add(u[mt][nt][e], exists ? w[mt][nt][e] : 0.0f, s0[mt][e / 2]);
                }
            }
        }
    }
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            i32 at = minimum(row + first_row + fragment_row(mt, half * 2), s.rows - 1);
            s0[mt][half] = row_sum(s0[mt][half]) * (adaptive_factor(p, s, at) * p.scale);
        }
    }
}

}  // namespace inducer
