// What the backward does after its main pass: dQ is rounded, the partial sums of adapters and prefix are added up and written
// where they belong. Memory traffic, nothing else: a warp takes 16 rows of dQ at a time, a thread a number of a sum, whose parts
// it adds up in their order.
//
// Blocks share out the rows of dQ (those that belong to no sequence are prepare's), then the numbers. No shared memory, no barriers.
#include "core/partials.cuh"
#include "core/query_gradient.cuh"
#include "list.h"

namespace inducer {

// Writes a number of a partial sum to the gradient it belongs to; `row` counts the layout's rows.
DEVICE void write_row(const AdapterGradients& to, i32 rank, i32 head, i32 row, i32 column, float x) {
    if (row < rank) {
        if (to.down_weight.data != nullptr) *element(to.down_weight, head, column, row) = x;
    } else if (row < 2 * rank) {
        if (to.up_weight.data != nullptr) *element(to.up_weight, head, row - rank, column) = x;
    } else {
        if (to.up_bias.data != nullptr) *element(to.up_bias, head, column, 0) = x;
    }
}

DEVICE void write_number(const BackwardParams& params, const PartialLayout& layout, i32 head, i32 index, float x) {
    if (index < layout.biases) {
        i32 row = index / params.problem.head_dim, column = index % params.problem.head_dim;
        bool is_key = row < layout.key_rows;
        write_row(is_key ? params.d_key : params.d_value, is_key ? layout.key_rank : layout.value_rank, head,
                  is_key ? row : row - layout.key_rows, column, x);
        return;
    }
    i32 j = index - layout.biases;
    if (j < layout.key_rank) {
        if (params.d_key.down_bias.data != nullptr) *element(params.d_key.down_bias, head, j, 0) = x;
    } else if (j < layout.key_rank + layout.value_rank) {
        if (params.d_value.down_bias.data != nullptr) *element(params.d_value.down_bias, head, j - layout.key_rank, 0) = x;
    } else if (params.problem.key_kind == kKeyLogitPerHead) {
        if (params.d_logit.data != nullptr) *element(params.d_logit, 0, head, 0) = x;
    }
}

// x[0] + x[stride] + …, `count` numbers, in their order; eight are under way at a time.
DEVICE float sum_in_order(const float* x, i64 stride, i32 count) {
    float sum = 0.0f;
    NO_UNROLL
    for (i32 first = 0; first < count; first += 8) {
        float part[8];
        UNROLL
        for (int i = 0; i < 8; ++i) part[i] = first + i < count ? x[(first + i) * stride] : 0.0f;
        UNROLL
        for (int i = 0; i < 8; ++i) sum += part[i];
    }
    return sum;
}

// Rounds the block of 16 rows of dQ from `first_row` on.
template <class T>
DEVICE void round_rows(const BackwardParams& params, const Sequence& s, i32 head, i32 first_row) {
    const Problem& p = params.problem;
    const float* from = query_gradient(params, s, head, first_row);
    const i32 row = first_row + lane_row();
    T* to = row_address<T>(params.d_q, s.batch, head, static_cast<i64>(s.row_base) + row) + lane_column();
    NO_UNROLL
    for (int column = 0; column < p.head_dim; column += 32) {
        float x[4][4];
        UNROLL
        for (int i = 0; i < 4; ++i) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                x[i][e] = column + i * 8 < p.head_dim ? from[(column / 8 + i) * kGradientPiece + e * 32] : 0.0f;
            }
        }
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if (column + i * 8 >= p.head_dim) continue;
            UNROLL
            for (int half = 0; half < 2; ++half) {
                if (row + half * 8 >= s.rows) continue;
                store_pair(to + half * 8 * params.d_q.row + column + i * 8, x[i][half * 2], x[i][half * 2 + 1]);
            }
        }
    }
}

template <class T, int Warps>
DEVICE void backward_finish(const BackwardParams& params) {
    const Problem& p = params.problem;
    const i64 threads = static_cast<i64>(params.finish_blocks) * (Warps * 32);
    const i64 thread = static_cast<i64>(block_x()) * (Warps * 32) + thread_index();
    const i64 blocks = static_cast<i64>(p.sequences) * p.query_heads * params.sequence_blocks;
    NO_UNROLL
    for (i64 i = thread / 32; i < blocks; i += threads / 32) {
        const i64 pair = i / params.sequence_blocks;
        const i32 row = static_cast<i32>(i % params.sequence_blocks) * kGradientRows;
        const Sequence s = read_sequence(p, static_cast<i32>(pair / p.query_heads));
        if (row < s.rows) round_rows<T>(params, s, static_cast<i32>(pair % p.query_heads), row);
    }

    const i64 size = prefix_partial_size(params);
    NO_UNROLL
    for (i64 i = thread; i < 2 * size; i += threads) {
        const bool is_key = i < size;
        const Strided& to = is_key ? params.d_prefix_k : params.d_prefix_v;
        if (to.data == nullptr) continue;
        const i64 at = is_key ? i : i - size, row = at / p.head_dim;
        *element(to, row / p.prefix_len, row % p.prefix_len, at % p.head_dim) =
            sum_in_order(params.prefix_partials + i, 2 * size, params.prefix_groups);
    }

    if (p.key_kind == kKeyNone) return;
    const PartialLayout layout(p);
    const i64 numbers = static_cast<i64>(p.query_heads) * layout.floats;
    NO_UNROLL
    for (i64 i = thread; i < numbers; i += threads) {
        const i32 head = static_cast<i32>(i / layout.floats), index = static_cast<i32>(i % layout.floats);
        write_number(params, layout, head, index,
                     sum_in_order(params.partials + static_cast<i64>(head) * params.partial_size + index,
                                  static_cast<i64>(p.query_heads) * params.partial_size, params.chunks));
    }
}

}  // namespace inducer

#define BACKWARD_FINISH_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                 \
    KERNEL(pass##_##type##_d##dim, inducer::BackwardParams, warps * 32, blocks, 0) {                                        \
        inducer::backward_finish<inducer::type, warps>(params);                                                             \
    }
BACKWARD_FINISH_KERNELS(BACKWARD_FINISH_INSTANCE)
