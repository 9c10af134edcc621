// Adapters, staged as inducer.cuh says, by two warps that do little else: a stage of atoms.
//
// What stage_adapter does, with fewer instructions and more registers: a thread's places are constants away from its first one, and
// parameters of the tensors' type are not converted.
#pragma once

#include "atoms.cuh"
#include "inducer.cuh"

namespace inducer {

// Four 16-bit parameters that are neighbours, as registers have them.
template <class T>
struct alignas(8) Pairs {
    u32 x[2];
};
// From element `index` on; all four exist, or none (`count` is not positive), which is 0.
template <class T>
DEVICE Pairs<T> read_pairs(const void* data, i64 index, int count) {
    Pairs<T> x{};
    if (count > 0) x = *reinterpret_cast<const Pairs<T>*>(static_cast<const T*>(data) + index);
    return x;
}

// Into a stage: the `k`-th of four, and all four, at a multiple of 4.
template <class T>
DEVICE void store_parameter(T* to, const Four<float>& x, int k) {
    store_element(to, x.x[k]);
}
template <class T>
DEVICE void store_parameter(T* to, const Pairs<T>& x, int k) {
    *to = T{static_cast<u16>(x.x[k / 2] >> (k % 2 * 16))};
}
template <class T>
DEVICE void store_parameters(T* to, const Four<float>& x) {
    store_pair(to, x.x[0], x.x[1]);
    store_pair(to + 2, x.x[2], x.x[3]);
}
template <class T>
DEVICE void store_parameters(T* to, const Pairs<T>& x) {
    *reinterpret_cast<Pairs<T>*>(to) = x;
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
            for (int k = 0; k < 4; ++k) store_parameter(Tile::element(stage, j + k, column), a[i], k);
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
            return ParametersInFours<float>(data, true).four(index, count);
        });
    } else if (!adapter.is_f32 && in_fours<T>(adapter)) {
        stage_atoms_by<T, D, Threads, AtOnce16>(stage, adapter, head, rank, head_dim, thread, [](const void* data, i64 index, int count) {
            return read_pairs<T>(data, index, count);
        });
    } else {
        const bool is_f32 = adapter.is_f32;
        stage_atoms_by<T, D, Threads, 1>(stage, adapter, head, rank, head_dim, thread, [=](const void* data, i64 index, int count) {
            return ParametersOneByOne<T>(data, is_f32).four(index, count);
        });
    }
}

}  // namespace inducer
