// From accumulators to the tensors that a forward writes.
#pragma once

#include "product.cuh"

namespace inducer {

// Stores this warp's rows of an accumulator. Rows from `rows` on and columns from head_dim on are not stored.
template <class T, int MT, int OT>
DEVICE void store_rows(T* to, i64 stride, const float (&o)[MT][OT][4], int first_row, i32 rows, i32 head_dim) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            i32 row = first_row + fragment_row(mt, half * 2);
            if (row >= rows) continue;
            UNROLL
            for (int ot = 0; ot < OT; ++ot) {
                int column = fragment_column(ot, 0);
                if (column < head_dim) store_pair(to + row * stride + column, o[mt][ot][half * 2], o[mt][ot][half * 2 + 1]);
            }
        }
    }
}

// The same for rows of any length and alignment, of which there are `columns`.
template <class T, int MT, int NT>
DEVICE void store_elements(T* to, i64 stride, const float (&x)[MT][NT][4], int first_row, i32 rows, i32 columns) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int nt = 0; nt < NT; ++nt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                const i32 row = first_row + fragment_row(mt, e), column = fragment_column(nt, e);
                if (row < rows && column < columns) store_element(to + row * stride + column, x[mt][nt][e]);
            }
        }
    }
}

// store_rows by way of the warp's own rows of `tile`, which is free: whole rows are written, sixteen bytes at a time where memory
// allows that.
template <class Tile, int MT, int OT>
DEVICE void store_rows_staged(typename Tile::T* to, i64 stride, const float (&o)[MT][OT][4], char* tile, int first_row,
                              i32 rows, i32 head_dim) {
    using T = typename Tile::T;
    constexpr int chunks = OT * 8 / kPerChunk<T>;
    sync_warp();
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            UNROLL
            for (int ot = 0; ot < OT; ++ot) {
                store_pair(Tile::element(tile, first_row + fragment_row(mt, half * 2), fragment_column(ot, 0)),
                           o[mt][ot][half * 2], o[mt][ot][half * 2 + 1]);
            }
        }
    }
    sync_warp();
    const bool whole = (reinterpret_cast<u64>(to) | static_cast<u64>(stride) * sizeof(T)) % 16 == 0;
#pragma unroll 4
    for (int i = lane_index(); i < MT * 16 * chunks; i += 32) {
        const int row = first_row + i / chunks, chunk = i % chunks;
        if (row >= rows || chunk * kPerChunk<T> >= head_dim) continue;
        const u32x4 x = *reinterpret_cast<const u32x4*>(Tile::chunk(tile, row, chunk));
        u32* at = reinterpret_cast<u32*>(to + row * stride + chunk * kPerChunk<T>);
        if (whole) {
            *reinterpret_cast<u32x4*>(at) = x;
        } else {
            at[0] = x.x, at[1] = x.y, at[2] = x.z, at[3] = x.w;
        }
    }
}

// Rows `begin` to `end` of one head's part of a tensor become 0, in elements of T.
template <class T, int Threads>
DEVICE void clear_rows_of(const Tensor& tensor, i32 batch, i32 head, i32 begin, i32 end, i32 columns, int thread) {
    NO_UNROLL
    for (i32 row = begin + thread / 32; row < end; row += Threads / 32) {
        T* to = row_address<T>(tensor, batch, head, row);
        NO_UNROLL
        for (int column = thread % 32; column < columns; column += 32) store_element(to + column, 0.0f);
    }
}

// Rows that belong to no sequence: O, U, attn become 0, lse −∞. `begin` to `end` are rows of the tensors.
template <class T, int Threads>
DEVICE void clear_rows(const ForwardParams& params, i32 batch, i32 head, i32 begin, i32 end, int thread) {
    const Problem& p = params.problem;
    if (begin >= end) return;
    // One after the other, as each has addresses of its own.
    clear_rows_of<T, Threads>(params.o, batch, head, begin, end, p.head_dim, thread);
    if (params.attn.data != nullptr) clear_rows_of<T, Threads>(params.attn, batch, head, begin, end, p.head_dim, thread);
    if (params.u.data != nullptr) clear_rows_of<T, Threads>(params.u, batch, head, begin, end, p.value.rank, thread);
    if (params.lse.data == nullptr) return;
    NO_UNROLL
    for (i32 row = begin + thread; row < end; row += Threads) *element(params.lse, batch, head, row) = -infinity();
}

}  // namespace inducer
