// Tiles in shared memory: rows of D elements, copied sixteen bytes (a chunk) at a time.
//
// Chunk c of row r lies at place c ^ (r % 8) of its row. The eight rows that one ldmatrix reads at the same c then lie in
// eight different groups of four banks, and so do the rows that the lanes of a warp read in the f32 products. Rows of fewer
// than eight chunks share 128 bytes with their neighbours; these all have the same place, and the next 128 bytes another one.
#pragma once

#include "../arch/arch.cuh"

namespace inducer {

template <class T>
constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));

template <class T, int D>
constexpr int kRowBytes = D * static_cast<int>(sizeof(T));

// The bits that change are kept apart from those that do not, which become the constant offset of an instruction.
template <int Chunks>
DEVICE int swizzled(int row, int chunk) {
    if constexpr (Chunks < 8) {
        return chunk ^ (row / (8 / Chunks) & (Chunks - 1));
    } else {
        return (chunk & ~7) + ((chunk ^ row) & 7);
    }
}

template <class T, int D>
DEVICE char* chunk_address(char* tile, int row, int chunk) {
    return tile + row * kRowBytes<T, D> + (swizzled<D / kPerChunk<T>>(row, chunk) << 4);
}
template <class T, int D>
DEVICE const char* chunk_address(const char* tile, int row, int chunk) {
    return tile + row * kRowBytes<T, D> + (swizzled<D / kPerChunk<T>>(row, chunk) << 4);
}
template <class T, int D>
DEVICE T* element_address(char* tile, int row, int column) {
    return reinterpret_cast<T*>(chunk_address<T, D>(tile, row, column / kPerChunk<T>)) + column % kPerChunk<T>;
}
template <class T, int D>
DEVICE const T* element_address(const char* tile, int row, int column) {
    return reinterpret_cast<const T*>(chunk_address<T, D>(tile, row, column / kPerChunk<T>)) + column % kPerChunk<T>;
}

// The same as a type, for what is written once for this layout and that of core/atoms.cuh.
template <class Type, int Columns>
struct RowTile {
    using T = Type;
    static constexpr int kColumns = Columns;
    static DEVICE char* chunk(char* tile, int row, int chunk) { return chunk_address<T, Columns>(tile, row, chunk); }
    static DEVICE const char* chunk(const char* tile, int row, int chunk) { return chunk_address<T, Columns>(tile, row, chunk); }
    static DEVICE T* element(char* tile, int row, int column) { return element_address<T, Columns>(tile, row, column); }
    static DEVICE const T* element(const char* tile, int row, int column) {
        return element_address<T, Columns>(tile, row, column);
    }
};

// Bytes of shared memory that a block may have: on every GPU, on those of data centres (sm_80, 90, 100), and on Hopper.
constexpr int kSharedOfAll = 99 * 1024, kSharedOfWide = 163 * 1024, kSharedOfHopper = 227 * 1024;

// Starts to copy Rows rows of head_dim elements into a tile; `rows` points to the first one in global memory. Rows outside
// [begin, end) and columns from head_dim on become 0 and are not read. All threads of the block take part. Where registers are
// scarce, addresses are not `Kept` from one call to the next, and copies are not laid out one by one (`Unrolled`).
template <class T, int D, int Rows, int Threads, bool Unrolled = true, bool Kept = Unrolled>
DEVICE void load_tile(char* tile, const T* rows, i64 stride, int begin, int end, int head_dim) {
    constexpr int chunks = D / kPerChunk<T>, step = Threads / chunks;
    static_assert(Threads % chunks == 0 && Rows % step == 0, "a thread copies one chunk of every `step`-th row");
    static_assert(chunks >= 8 && (step & (step - 1)) == 0, "rows of one thread differ by an exclusive or of their places");
    const int thread = static_cast<int>(Kept ? thread_index() : thread_index_anew());
    const int row = thread / chunks, chunk = thread % chunks;
    const bool inside = chunk * kPerChunk<T> < head_dim;
    const T* from = rows + row * stride + chunk * kPerChunk<T>;
    const i64 by = stride * step;
    const u32 place = static_cast<u32>(row * kRowBytes<T, D> + (swizzled<chunks>(row, chunk) << 4));
    if (Unrolled && begin <= 0 && end >= Rows) {
        UNROLL
        for (int i = 0; i < Rows; i += step) {
            copy_async(tile + i * kRowBytes<T, D> + (place ^ ((i & 7) << 4)), inside ? from : rows, inside);
            from += by;
        }
    } else {
        NO_UNROLL
        for (int i = 0; i < Rows; i += step) {
            bool valid = inside && row + i >= begin && row + i < end;
            copy_async(tile + i * kRowBytes<T, D> + (place ^ ((i & 7) << 4)), valid ? from : rows, valid);
            from += by;
        }
    }
}

// Bits that are set in halves (or the whole) of a word that hold no finite number: adding one to an exponent of ones carries
// into the sign's place.
DEVICE u32 not_finite(u32 w, bf16) { return ((w & 0x7f807f80u) + 0x00800080u) & 0x80008000u; }
DEVICE u32 not_finite(u32 w, f16) { return ((w & 0x7c007c00u) + 0x04000400u) & 0x80008000u; }
DEVICE u32 not_finite(u32 w, float) { return ((w & 0x7f800000u) + 0x00800000u) & 0x80000000u; }

// Whether one of the chunks that this thread copied holds a NaN or an infinity; the thread's copies must be done.
template <class T, int D, int Rows, int Threads>
DEVICE bool own_chunks_not_finite(const char* tile) {
    constexpr int chunks = D / kPerChunk<T>, step = Threads / chunks;
    const int row = static_cast<int>(thread_index()) / chunks, chunk = static_cast<int>(thread_index()) % chunks;
    u32 bits = 0;
    NO_UNROLL
    for (int i = 0; i < Rows; i += step) {
        u32x4 v = *reinterpret_cast<const u32x4*>(chunk_address<T, D>(tile, row + i, chunk));
        bits |= not_finite(v.x, T{}) | not_finite(v.y, T{}) | not_finite(v.z, T{}) | not_finite(v.w, T{});
    }
    return bits != 0;
}

// Two neighbours of 16 bits, as they lie in a word.
template <class T>
DEVICE f32x2 unpack(u32 pair) {
    return {to_float(T{static_cast<u16>(pair & 0xffffu)}), to_float(T{static_cast<u16>(pair >> 16)})};
}

// Rounds one number, or two neighbours, to T and stores them.
DEVICE void store_element(float* to, float x) { *to = x; }
DEVICE void store_element(bf16* to, float x) { to->bits = static_cast<u16>(pack(x, 0.0f, bf16{})); }
DEVICE void store_element(f16* to, float x) { to->bits = static_cast<u16>(pack(x, 0.0f, f16{})); }
template <class T>
DEVICE void store_pair(T* to, float x, float y) {
    *reinterpret_cast<u32*>(to) = pack(x, y, T{});
}
DEVICE void store_pair(float* to, float x, float y) { *reinterpret_cast<f32x2*>(to) = {x, y}; }

}  // namespace inducer
