// Where dQ lies before it is rounded: prepare begins it, tiles of keys add to it, finish rounds it.
//
// It is f32, in the order in which accumulators hold it (core/product.cuh), so that what a warp adds with one instruction is
// whole lines of memory. Every sequence of a head has blocks of 16 rows, the last one filled up; a block is
//
//     [head_dim / 8] pieces of 16×8    [4] elements of a lane    [32] lanes
//
// In a packed batch, the blocks of a sequence begin at row_base / 16 + index, so that no two sequences share one.
#pragma once

#include "product.cuh"

namespace inducer {

constexpr int kGradientRows = 16;
constexpr int kGradientPiece = kGradientRows * 8;

// The lane's part of the block that begins at `row`, a multiple of 16: element e of piece i is at i·kGradientPiece + e·32.
DEVICE float* query_gradient(const BackwardParams& params, const Sequence& s, i32 head, i32 row) {
    const Problem& p = params.problem;
    const i64 block = (static_cast<i64>(s.batch) * p.query_heads + head) * params.gradient_blocks +
                      s.row_base / kGradientRows + (s.index - s.batch) + row / kGradientRows;
    return params.d_q_sum + block * (kGradientRows * p.head_dim) + lane_index();
}

}  // namespace inducer
