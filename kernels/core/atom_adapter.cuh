// Adapters, staged as inducer.cuh says, by two warps that do little else: a stage of atoms.
//
// What stage_adapter does, with fewer instructions and more registers: a thread's places are constants away from its first one, and
// parameters of the tensors' type are not converted.
#pragma once

#include "atoms.cuh"
#include "inducer.cuh"

namespace inducer {

// Four parameters of type S, neighbours in memory and as registers have them.
template <class S, int Bytes = sizeof(S)>
struct alignas(16) Parameters {
    S x[4];

    DEVICE S at(int i) const { return x[i]; }
};
template <class S>
struct alignas(8) Parameters<S, 2> {
    u32 pairs[2];

    DEVICE S at(int i) const { return S{static_cast<u16>(pairs[i / 2] >> (i % 2 * 16))}; }
};

// From element `index` on, of which `count` exist (any number, the others are 0): at once, where all four exist or
// none, or one by one.
template <class S>
DEVICE Parameters<S> parameters_at_once(const void* data, i64 index, int count) {
    Parameters<S> x{};
    if (count > 0) x = *reinterpret_cast<const Parameters<S>*>(static_cast<const S*>(data) + index);
    return x;
}
template <class T>
DEVICE Parameters<float> parameters_one_by_one(const void* data, i64 index, int count, bool is_f32) {
    Parameters<float> x{};
    UNROLL
    for (int i = 0; i < 4; ++i) {
        if (i < count) x.x[i] = parameter<T>(data, index + i, is_f32);
    }
    return x;
}

// Into a stage, from their type, which is T or f32; four at a multiple of 4.
template <class T, class S>
DEVICE void store_parameter(T* to, S x) {
    if constexpr (sizeof(S) == sizeof(T)) {
        *to = x;
    } else {
        store_element(to, x);
    }
}
template <class T, class S>
DEVICE void store_parameters(T* to, const Parameters<S>& x) {
    if constexpr (sizeof(S) == sizeof(T)) {
        *reinterpret_cast<Parameters<T>*>(to) = x;
    } else {
        store_pair(to, x.x[0], x.x[1]);
        store_pair(to + 2, x.x[2], x.x[3]);
    }
}

// How threads share out rows of `Columns`: thread t takes t, t + Threads, …, counted along the rows, in batches. `i` counts within a
// batch that begins with a thread's `first`. Where a batch is whole rows, columns do not depend on `first`.
template <int Columns, int Threads, int Batch>
struct Places {
    static constexpr bool kWide = Columns > Threads;    // a row is several threads' worth, else threads have several rows
    static constexpr int kTimes = kWide ? Columns / Threads : Threads / Columns;
    static_assert(kWide ? Columns % Threads == 0 : Threads % Columns == 0);

    static DEVICE int column(int thread, int first, int i) {
        if (!kWide) return thread % Columns;
        return thread + (Batch % kTimes == 0 ? i : first + i) % kTimes * Threads;
    }
    static DEVICE int row(int thread, int first, int i) {
        if (!kWide) return thread / Columns + (first + i) * kTimes;
        return Batch % kTimes == 0 ? first / kTimes + i / kTimes : (first + i) / kTimes;
    }
};

// `read(data, index, count)` reads four; of each weight, `AtOnce` before the first is needed.
template <class T, int D, int Threads, int AtOnce, class Read>
DEVICE void stage_atoms_by(char* stage, const Adapter& adapter, i32 head, i32 rank, i32 head_dim, int thread, Read read) {
    using Tile = AtomTile<T, D>;
    constexpr int each = D * kChunk / 4 / Threads;      // fours of a thread
    constexpr int batch = each < AtOnce ? each : AtOnce;
    using Down = Places<D, Threads, batch>;
    // A thread has the same columns of all rows of B that it has a part in.
    constexpr int up_rows = Threads / (D / 4);
    static_assert(Threads % (D / 4) == 0 && D * kChunk % (4 * Threads) == 0 && each % batch == 0);
    const int ranks = adapter.rank - rank;
    const bool has_up = adapter.up_weight != nullptr;
    const i64 down_first = head * adapter.down_weight_head + rank;
    const int up_column = thread % (D / 4) * 4, up_row = thread / (D / 4);
    const i64 bias_at = head * adapter.up_bias_head + up_column;
    i64 up_at = head * adapter.up_weight_head + (rank + up_row) * adapter.up_weight_row + up_column;
    NO_UNROLL
    for (int first = 0; first < each; first += batch) {
        // Four ranks of a column of A; four columns of a rank of B.
        decltype(read(nullptr, 0, 0)) a[batch], b[batch];
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int column = Down::column(thread, first, i), j = Down::row(thread, first, i) * 4;
            a[i] = read(adapter.down_weight, down_first + column * adapter.down_weight_row + j, column < head_dim ? ranks - j : 0);
        }
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int j = up_row + (first + i) * up_rows;
            const bool is_bias = j == ranks;
            b[i] = read(is_bias ? adapter.up_bias : adapter.up_weight, is_bias ? bias_at : up_at,
                        has_up && j <= ranks ? head_dim - up_column : 0);
            up_at += up_rows * adapter.up_weight_row;
        }
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int column = Down::column(thread, first, i), j = Down::row(thread, first, i) * 4;
            UNROLL
            for (int k = 0; k < 4; ++k) store_parameter(Tile::element(stage, j + k, column), a[i].at(k));
        }
        if (!has_up) continue;
        UNROLL
        for (int i = 0; i < batch; ++i) {
            const int j = up_row + (first + i) * up_rows;
            store_parameters(Tile::element(stage, kChunk + j, up_column), b[i]);
        }
    }
}

// As stage_adapter of inducer.cuh.
template <class T, int D, int Threads, int AtOnce, int AtOnce16>
DEVICE void stage_atoms(char* stage, const Adapter& adapter, i32 head, i32 rank, i32 head_dim, int thread) {
    if (adapter.is_f32 && in_fours<float>(adapter)) {
        stage_atoms_by<T, D, Threads, AtOnce>(stage, adapter, head, rank, head_dim, thread, [](const void* data, i64 index, int count) {
            return parameters_at_once<float>(data, index, count);
        });
    } else if (!adapter.is_f32 && in_fours<T>(adapter)) {
        stage_atoms_by<T, D, Threads, AtOnce16>(stage, adapter, head, rank, head_dim, thread, [](const void* data, i64 index, int count) {
            return parameters_at_once<T>(data, index, count);
        });
    } else {
        const bool is_f32 = adapter.is_f32;
        stage_atoms_by<T, D, Threads, 1>(stage, adapter, head, rank, head_dim, thread, [=](const void* data, i64 index, int count) {
            return parameters_one_by_one<T>(data, index, count, is_f32);
        });
    }
}

}  // namespace inducer
