// Tiles as the products of warpgroups take them: rows of D 16-bit elements in atoms of 8 rows × 64 columns.
//
//     row 0 to 7:      [atom of columns 0 to 63] [atom of columns 64 to 127] …
//     row 8 to 15:     …
//
// An atom is 8 rows of 128 bytes; chunk c (16 bytes) of row r lies at place c ^ (r % 8) of its row. A tile begins at a multiple of
// 1024 bytes. Up to 64 columns this is the layout of tile.cuh.
#pragma once

#include "../arch/hopper.cuh"
#include "product.cuh"
#include "tile.cuh"

namespace inducer {

constexpr int kWarpgroup = 128;         // threads
constexpr int kAtomRows = 8, kAtomBytes = 1024;

// Registers of a thread that a block of so many threads is launched with, where it has a multiprocessor to itself. Its warpgroups share
// out these and no more: who asks for others waits for ever.
template <int Threads>
constexpr int kLaunchRegisters = 65536 / Threads / 8 * 8;

// From eight rows of a tile to the next eight.
template <int D>
constexpr int kAtomRowBytes = kAtomRows * D * 2;

template <class Type, int Columns>
struct AtomTile {
    using T = Type;
    static constexpr int kColumns = Columns;
    static_assert(sizeof(T) == 2 && Columns % 64 == 0);

    static DEVICE int offset(int row, int chunk) {
        return row / 8 * kAtomRowBytes<Columns> + chunk / 8 * kAtomBytes + row % 8 * 128 + ((chunk ^ row) & 7) * 16;
    }
    static DEVICE char* chunk(char* tile, int row, int chunk) { return tile + offset(row, chunk); }
    static DEVICE const char* chunk(const char* tile, int row, int chunk) { return tile + offset(row, chunk); }
    static DEVICE T* element(char* tile, int row, int column) {
        return reinterpret_cast<T*>(chunk(tile, row, column / 8)) + column % 8;
    }
    static DEVICE const T* element(const char* tile, int row, int column) {
        return reinterpret_cast<const T*>(chunk(tile, row, column / 8)) + column % 8;
    }
};

// What of a tile a thread copies: one chunk of every `kStep`-th row.
template <int D, int Threads>
struct AtomCopies {
    static constexpr int kChunks = D / 8, kStep = Threads / kChunks;
    static_assert(Threads % kChunks == 0 && (kStep % 8 == 0 || 8 % kStep == 0),
                  "rows of one thread differ in bits of their places that its first row has not");
    int row, chunk;

    DEVICE explicit AtomCopies(int thread) : row(thread / kChunks), chunk(thread % kChunks) {}
    // Where the chunk of the thread's row and of `i` rows further lies.
    DEVICE int offset(int i) const {
        return i / 8 * kAtomRowBytes<D> + i % 8 * 128 + (AtomTile<bf16, D>::offset(row, chunk) ^ (i % 8 * 16));
    }
};

// Starts to copy Rows rows of head_dim elements into a tile, as load_tile does. `Threads` threads take part, `thread` is one's number.
// `Unroll`: copies that are laid out one by one; all of them ask for more registers.
template <class T, int D, int Rows, int Threads, int Unroll = Rows>
DEVICE void load_atoms(char* tile, const T* rows, i64 stride, int begin, int end, int head_dim, int thread) {
    const AtomCopies<D, Threads> own(thread);
    const bool inside = own.chunk * 8 < head_dim;
    const T* from = rows + own.row * stride + own.chunk * 8;
    const i64 step = stride * own.kStep;
    if (begin <= 0 && end >= Rows) {
        // A chunk that is not inside is never read.
        const i64 by = inside ? step : 0;
        if (!inside) from = rows;
#pragma unroll Unroll
        for (int i = 0; i < Rows; i += own.kStep) {
            copy_async(tile + own.offset(i), from, inside);
            from += by;
        }
        return;
    }
    // Few at a time: registers.
#pragma unroll 2
    for (int i = 0; i < Rows; i += own.kStep) {
        const bool valid = inside && own.row + i >= begin && own.row + i < end;
        copy_async(tile + own.offset(i), valid ? from : rows, valid);
        from += step;
    }
}

// Whether one of the chunks that this thread copied so holds a NaN or an infinity; the thread's copies must be done. `AtOnce`: chunks
// that are under way at a time.
template <class T, int D, int Rows, int Threads, int AtOnce = 1>
DEVICE bool own_atoms_not_finite(const char* tile, int thread) {
    const AtomCopies<D, Threads> own(thread);
    u32 bits = 0;
#pragma unroll AtOnce
    for (int i = 0; i < Rows; i += own.kStep) {
        const u32x4 v = *reinterpret_cast<const u32x4*>(tile + own.offset(i));
        bits |= not_finite(v.x, T{}) | not_finite(v.y, T{}) | not_finite(v.z, T{}) | not_finite(v.w, T{});
    }
    return bits != 0;
}

// Where a lane reads fragments for the products of single warps (load_a and load_b of core/product.cuh): its row's first chunk or its
// second one, computed once; columns `column` to `column + 15` of `rows` rows further down, multiples of 16 and of 8, are an
// exclusive or away.
template <class T, int D>
struct AtomFragments {
    const char* row;
    u32 place;

    DEVICE AtomFragments(const char* tile, int at, int lane_chunk)
        : row(tile + at / 8 * kAtomRowBytes<D> + at % 8 * 128), place(static_cast<u32>((lane_chunk ^ at) & 7) << 4) {}
    DEVICE void load(u32 (&x)[4], int column, int rows = 0) const {
        const int offset = rows / 8 * kAtomRowBytes<D> + column / 64 * kAtomBytes;
        load_matrices(x, row + offset + (place ^ static_cast<u32>(column / 8 % 8) << 4));
    }
};
// Of A, from the 16 rows from `first` on.
template <class T, int D>
DEVICE AtomFragments<T, D> a_of_atoms(const char* tile, int first) {
    const int lane = lane_index_anew();
    return {tile, first + lane % 16, lane / 16};
}
// Of B for two blocks of 8 columns, which are the 16 rows from `first` on.
template <class T, int D>
DEVICE AtomFragments<T, D> b_of_atoms(const char* tile, int first) {
    const int lane = lane_index_anew();
    return {tile, first + lane / 16 * 8 + lane % 8, lane / 8 % 2};
}

// Operands of products: how a tile of D columns lies, from a row on that is a multiple of 8 (16 for rows that are summed over).
//   rows_matrix      its rows are rows of A or columns of B; `next_columns` goes on by so many columns, multiples of 16
//   columns_matrix   its columns are columns of B, or rows of A; the rows are summed over. `next_rows` goes on by multiples of 16
template <int D>
DEVICE u64 rows_matrix(const char* tile, int row = 0) {
    return matrix_descriptor(tile + row / 8 * kAtomRowBytes<D>, 16, kAtomRowBytes<D>);
}
DEVICE u64 next_columns(u64 matrix, int columns) {
    return matrix + static_cast<u64>((columns / 64 * kAtomBytes + columns % 64 * 2) >> 4);
}
template <int D>
DEVICE u64 columns_matrix(const char* tile, int row = 0) {
    return matrix_descriptor(tile + row / 8 * kAtomRowBytes<D>, kAtomBytes, kAtomRowBytes<D>);
}
template <int D>
DEVICE u64 next_rows(u64 matrix, int rows) {
    return matrix + static_cast<u64>((rows / 8 * kAtomRowBytes<D>) >> 4);
}

// c = A·Bᵀ, both tiles with D columns: 64 rows of one, as many of the other as c has columns. A group of its own: it is under way
// until warpgroup_wait, and c has to be pinned then.
template <class T, int D, int NT>
DEVICE void begin_rows_by_rows(float (&c)[NT][4], u64 a, u64 b) {
    warpgroup_fence();
    UNROLL
    for (int column = 0; column < D; column += 16) {
        multiply<false, false>(c, next_columns(a, column), next_columns(b, column), column > 0, T{});
    }
    warpgroup_commit();
}

// c += P·B: P in registers, 16·KT columns, B the rows of a tile with D columns. Likewise, and P must stay as it is.
template <class T, int D, int KT, int NT>
DEVICE void begin_registers_by_tile(float (&c)[NT][4], u32 (&p)[KT][4], u64 b) {
    static_assert(NT * 8 == D);
    pin(p);
    pin(c);
    warpgroup_fence();
    UNROLL
    for (int kt = 0; kt < KT; ++kt) multiply<true>(c, p[kt], next_rows<D>(b, kt * 16), true, T{});
    warpgroup_commit();
}

// c = Aᵀ·B, both tiles with `Rows` rows: 64 of A's DA columns, as many of B's D as c has columns. Likewise.
template <class T, int DA, int D, int Rows, int NT>
DEVICE void begin_columns_by_tile(float (&c)[NT][4], u64 a, u64 b) {
    warpgroup_fence();
    UNROLL
    for (int row = 0; row < Rows; row += 16) multiply<true, true>(c, next_rows<DA>(a, row), next_rows<D>(b, row), row > 0, T{});
    warpgroup_commit();
}

}  // namespace inducer
