// Kernels of warpgroups with a fault each, and the same without it, as faults.cu. tests/emulator/warpgroups.rs says what each
// must be called.
#include "../../arch/hopper.cuh"
#include "params.h"

namespace selftest {

constexpr u32 kTileWords = 2048;        // 64 rows of 64 elements
constexpr u32 kTileBytes = kTileWords * 4;

DEVICE u32* words() { return reinterpret_cast<u32*>(shared_memory_of_warpgroups()); }

// The word that thread t of 128 has of a tile, its i-th of 16.
DEVICE u32 own_word(u32 t, u32 i) { return t % 128 * 16 + i; }

DEVICE void store_tile(u32* tile, const u32* from, u32 t) {
    for (u32 i = 0; i < 16; ++i) tile[own_word(t, i)] = from[own_word(t, i)];
}
DEVICE void copy_tile(u32* tile, const u32* from, u32 t) {
    for (u32 i = 0; i < 16; i += 4) copy_async(tile + own_word(t, i), from + own_word(t, i), true);
}

DEVICE u64 rows_of(const u32* tile) { return matrix_descriptor(tile, 16, 1024); }
DEVICE u64 columns_of(const u32* tile) { return matrix_descriptor(tile, 1024, 1024); }

// c = or += A·Bᵀ of tiles, all four products.
DEVICE void issue(float (&c)[8][4], u64 a, u64 b, bool accumulate) {
    for (u32 k = 0; k < 4; ++k) multiply<false, false>(c, a + 2 * k, b + 2 * k, accumulate || k > 0, bf16{});
}
DEVICE float sum_of(const float (&c)[8][4]) {
    float sum = 0.0f;
    for (int i = 0; i < 32; ++i) sum += c[i / 4][i % 4] * static_cast<float>(i + 1);
    return sum;
}

// ---- The asynchronous proxy --------------------------------------------------------------------------------------------

DEVICE void multiply_tile(const Params& params) {
    float c[8][4];
    warpgroup_fence();
    issue(c, rows_of(words()), rows_of(words()), false);
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}

// What a thread stored, products read behind a barrier: it has to be fenced before.
template <bool Faulty>
DEVICE void unfenced_store(const Params& params) {
    store_tile(words(), params.in, thread_index());
    if (!Faulty) fence_async_proxy();
    sync_threads();
    multiply_tile(params);
}
// By each thread that wrote.
template <bool Faulty>
DEVICE void fenced_by_some(const Params& params) {
    store_tile(words(), params.in, thread_index());
    if (!Faulty || thread_index() % 32 == 0) fence_async_proxy();
    sync_threads();
    multiply_tile(params);
}
// And not by who reads.
template <bool Faulty>
DEVICE void fenced_by_reader(const Params& params) {
    store_tile(words(), params.in, thread_index());
    if (!Faulty) fence_async_proxy();
    sync_threads();
    if (Faulty) fence_async_proxy();
    multiply_tile(params);
}
template <bool Faulty>
DEVICE void stored_behind_fence(const Params& params) {
    if (Faulty) fence_async_proxy();
    store_tile(words(), params.in, thread_index());
    if (!Faulty) fence_async_proxy();
    sync_threads();
    multiply_tile(params);
}
template <bool Faulty>
DEVICE void unfenced_copy(const Params& params) {
    copy_tile(words(), params.in, thread_index());
    copy_commit();
    copy_wait<0>();
    if (!Faulty) fence_async_proxy();
    sync_threads();
    multiply_tile(params);
}
// A copy that is not complete is not fenced.
template <bool Faulty>
DEVICE void fence_before_wait(const Params& params) {
    copy_tile(words(), params.in, thread_index());
    copy_commit();
    if (Faulty) fence_async_proxy();
    copy_wait<0>();
    if (!Faulty) fence_async_proxy();
    sync_threads();
    multiply_tile(params);
}
// A fence does not order one thread behind another.
template <bool Faulty>
DEVICE void fence_as_barrier(const Params& params) {
    store_tile(words(), params.in, thread_index());
    fence_async_proxy();
    if (!Faulty) sync_threads();
    multiply_tile(params);
}
template <bool Faulty>
DEVICE void unwritten_row(const Params& params) {
    if (!Faulty || thread_index() != 77) store_tile(words(), params.in, thread_index());
    fence_async_proxy();
    sync_threads();
    multiply_tile(params);
}

// ---- Fences, commits and waits of products -----------------------------------------------------------------------------

DEVICE void fill(const Params& params, u32 tiles) {
    for (u32 i = 0; i < tiles; ++i) store_tile(words() + i * kTileWords, params.in, thread_index());
    fence_async_proxy();
    sync_threads();
}

enum class Leave { kNothing, kFence, kCommit, kWait };

template <Leave Out>
DEVICE void multiply_without(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    if (Out != Leave::kFence) warpgroup_fence();
    issue(c, rows_of(words()), rows_of(words()), true);
    if (Out != Leave::kCommit) warpgroup_commit();
    if (Out != Leave::kWait) warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}
template <bool Faulty>
DEVICE void product_without_fence(const Params& params) {
    multiply_without<Faulty ? Leave::kFence : Leave::kNothing>(params);
}
template <bool Faulty>
DEVICE void product_without_commit(const Params& params) {
    multiply_without<Faulty ? Leave::kCommit : Leave::kNothing>(params);
}
template <bool Faulty>
DEVICE void product_without_wait(const Params& params) {
    multiply_without<Faulty ? Leave::kWait : Leave::kNothing>(params);
}
// The fence of one group is none for the next.
template <bool Faulty>
DEVICE void second_group_without_fence(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    for (int i = 0; i < 2; ++i) {
        if (!Faulty || i == 0) warpgroup_fence();
        issue(c, rows_of(words()), rows_of(words()), true);
        warpgroup_commit();
    }
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}
// Two groups under way, of which a wait for all but one leaves the second one.
template <bool Faulty>
DEVICE void lax_product_wait(const Params& params) {
    fill(params, 1);
    float c[8][4] = {}, d[8][4] = {};
    warpgroup_fence();
    issue(c, rows_of(words()), rows_of(words()), true);
    warpgroup_commit();
    warpgroup_fence();
    issue(d, rows_of(words()), rows_of(words()), true);
    warpgroup_commit();
    warpgroup_wait<1>();
    float sum = sum_of(Faulty ? d : c);
    warpgroup_wait<0>();
    sum += sum_of(Faulty ? c : d);
    params.out[thread_index()] = as_bits(sum);
}
// The fence comes before registers are written, not after: c, and A.
template <bool Faulty>
DEVICE void scaled_after_fence(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    for (int i = 0; i < 2; ++i) {
        if (Faulty) warpgroup_fence();
        for (int j = 0; j < 32; ++j) c[j / 4][j % 4] *= as_float(params.in[i]);
        pin(c);
        if (!Faulty) warpgroup_fence();
        issue(c, rows_of(words()), rows_of(words()), true);
        warpgroup_commit();
        warpgroup_wait<0>();
    }
    params.out[thread_index()] = as_bits(sum_of(c));
}
template <bool Faulty>
DEVICE void operand_after_fence(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    u32 a[2][4];
    pin(a);
    if (Faulty) warpgroup_fence();
    for (int j = 0; j < 8; ++j) a[j / 4][j % 4] = params.in[j];
    pin(a);
    if (!Faulty) warpgroup_fence();
    for (int i = 0; i < 2; ++i) multiply<true>(c, a[i], columns_of(words()), i > 0, bf16{});
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}
// A register is written, and not read.
template <bool Faulty>
DEVICE void written_under_way(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    warpgroup_fence();
    issue(c, rows_of(words()), rows_of(words()), true);
    warpgroup_commit();
    if (Faulty && thread_index() == 33) c[3][2] = 1.0f;
    warpgroup_wait<0>();
    if (!Faulty && thread_index() == 33) c[3][2] = 1.0f;
    params.out[thread_index()] = as_bits(sum_of(c));
}
template <bool Faulty>
DEVICE void operand_written_under_way(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    u32 a[4] = {params.in[0], params.in[1], params.in[2], params.in[3]};
    warpgroup_fence();
    multiply<true>(c, a, columns_of(words()), true, bf16{});
    warpgroup_commit();
    if (Faulty && thread_index() == 33) a[3] = 1;
    warpgroup_wait<0>();
    if (!Faulty && thread_index() == 33) a[3] = 1;
    params.out[thread_index()] = as_bits(sum_of(c)) + a[3];
}
// One product's sum as the next one's operand, before it is there.
template <bool Faulty>
DEVICE void operand_of_sum(const Params& params) {
    fill(params, 1);
    float c[8][4] = {}, d[8][4] = {};
    warpgroup_fence();
    issue(c, rows_of(words()), rows_of(words()), true);
    warpgroup_commit();
    if (!Faulty) warpgroup_wait<0>();
    u32(&a)[4] = reinterpret_cast<u32(&)[4]>(c[1]);
    warpgroup_fence();
    multiply<true>(d, a, columns_of(words()), true, bf16{});
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(d));
}
// The tile is filled anew while products read it: the wait comes behind the barrier.
template <bool Faulty>
DEVICE void refill_under_way(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    for (int i = 0; i < 2; ++i) {
        warpgroup_fence();
        issue(c, rows_of(words()), rows_of(words()), true);
        warpgroup_commit();
        if (!Faulty) warpgroup_wait<0>();
        sync_threads();
        store_tile(words(), params.in + 16 * (i + 1), thread_index());
        if (Faulty) warpgroup_wait<0>();
        fence_async_proxy();
        sync_threads();
    }
    params.out[thread_index()] = as_bits(sum_of(c));
}
template <bool Faulty>
DEVICE void copy_under_way(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    warpgroup_fence();
    issue(c, rows_of(words()), rows_of(words()), true);
    warpgroup_commit();
    if (!Faulty) warpgroup_wait<0>();
    sync_threads();
    copy_tile(words(), params.in, thread_index());
    copy_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}

// ---- Who comes to a product, and with what -----------------------------------------------------------------------------

// A lane goes another way.
template <bool Faulty>
DEVICE void lane_apart(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    warpgroup_fence();
    if (Faulty && thread_index() == 70) {
        issue(c, rows_of(words()), rows_of(words()), true);
    } else {
        multiply<false, false>(c, rows_of(words()), rows_of(words()), true, bf16{});
    }
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}
// A warp comes to another product than the others.
template <bool Faulty>
DEVICE void warp_apart(const Params& params) {
    fill(params, 1);
    float c[8][4] = {};
    warpgroup_fence();
    if (Faulty && thread_index() / 32 == 2) {
        multiply<false, false>(c, rows_of(words()), rows_of(words()), true, bf16{});
    } else {
        multiply<false, false>(c, rows_of(words()), rows_of(words()), true, bf16{});
    }
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}
template <bool Faulty>
DEVICE void warp_missing(const Params& params) {
    fill(params, 1);
    if (Faulty && thread_index() / 32 == 2) return;
    multiply_tile(params);
}
template <bool Faulty>
DEVICE void warp_commits_twice(const Params& params) {
    fill(params, 1);
    if (Faulty && thread_index() / 32 == 2) warpgroup_commit();
    multiply_tile(params);
}
template <bool Faulty>
DEVICE void operands_differ(const Params& params) {
    fill(params, 2);
    const u32* tile = words() + (Faulty && thread_index() == 100 ? kTileWords : 0);
    float c[8][4];
    warpgroup_fence();
    issue(c, rows_of(words()), rows_of(tile), false);
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}

DEVICE void multiply_matrices(const Params& params, u64 a, u64 b) {
    fill(params, 3);
    float c[8][4];
    warpgroup_fence();
    multiply<false, true>(c, a, b, false, bf16{});
    warpgroup_commit();
    warpgroup_wait<0>();
    params.out[thread_index()] = as_bits(sum_of(c));
}
template <bool Faulty>
DEVICE void tile_not_aligned(const Params& params) {
    multiply_matrices(params, rows_of(words() + (Faulty ? 32 : 0)), columns_of(words()));
}
template <bool Faulty>
DEVICE void stride_not_aligned(const Params& params) {
    multiply_matrices(params, rows_of(words()), matrix_descriptor(words(), 1024, Faulty ? 512 : 1024));
}
template <bool Faulty>
DEVICE void start_in_columns(const Params& params) {
    multiply_matrices(params, rows_of(words() + (Faulty ? 4 : 0)), columns_of(words()));
}
template <bool Faulty>
DEVICE void other_swizzle(const Params& params) {
    multiply_matrices(params, rows_of(words()) ^ (Faulty ? 3ull << 62 : 0), columns_of(words()));
}
template <bool Faulty>
DEVICE void matrix_outside(const Params& params) {
    multiply_matrices(params, rows_of(words() + (Faulty ? 3 : 2) * kTileWords), columns_of(words()));
}

// ---- Barriers in shared memory: the first warpgroup fills a ring of two tiles, the second one empties it ------------------

enum class Ring {
    kRight,
    kNoFence,               // for the asynchronous proxy
    kNoWarpBarrier,         // before the first lane arrives for all
    kNoArrival,             // of one of the producer's warps
    kArrivesTwice,          // one of them
    kEarlyArrival,          // at `full`, before the copies are complete
    kNoWait,                // for an empty tile
    kWrongParity,           // of the wait for a full tile
    kWrongStart,            // of the producer's: as if the ring had been full
    kGivesBackEarly,        // before the products are done
    kOneWait,               // of one lane of a warp, without a barrier after
};

template <Ring Form>
DEVICE void ring(const Params& params) {
    constexpr u32 kTurns = 7;
    MBarrier* full = reinterpret_cast<MBarrier*>(words() + 2 * kTileWords);
    MBarrier* empty = full + 2;
    const u32 t = thread_index(), lane = t % 32, warp = t / 32;
    if (t == 0) {
        for (u32 i = 0; i < 2; ++i) {
            mbarrier_init(full[i], 4);
            mbarrier_init(empty[i], 4);
        }
    }
    sync_threads();
    if (warp < 4) {
        give_registers_back<40>();
        for (u32 turn = 0; turn < kTurns; ++turn) {
            const u32 slot = turn % 2, parity = turn / 2 % 2;
            if (Form != Ring::kNoWait) mbarrier_wait(empty[slot], Form == Ring::kWrongStart ? parity : parity ^ 1);
            copy_tile(words() + slot * kTileWords, params.in + turn * 16, t);
            copy_commit();
            if (Form != Ring::kEarlyArrival) copy_wait<0>();
            if (Form != Ring::kNoFence) fence_async_proxy();
            if (Form != Ring::kNoWarpBarrier) sync_warp();
            if (lane == 0 && (Form != Ring::kNoArrival || warp != 2 || turn != 3)) mbarrier_arrive(full[slot]);
            if (Form == Ring::kArrivesTwice && lane == 0 && warp == 2 && turn == 1) mbarrier_arrive(full[slot]);
        }
    } else {
        take_registers<232>();
        float c[8][4] = {};
        for (u32 turn = 0; turn < kTurns; ++turn) {
            const u32 slot = turn % 2, parity = turn / 2 % 2;
            const u32 expected = Form == Ring::kWrongParity ? parity ^ 1 : parity;
            if (Form != Ring::kOneWait || lane == 0) mbarrier_wait(full[slot], expected);
            warpgroup_fence();
            issue(c, rows_of(words() + slot * kTileWords), rows_of(words() + slot * kTileWords), true);
            warpgroup_commit();
            if (Form != Ring::kGivesBackEarly) warpgroup_wait<0>();
            if (lane == 0) mbarrier_arrive(empty[slot]);
            if (Form == Ring::kGivesBackEarly) warpgroup_wait<0>();
        }
        params.out[t - 128] = as_bits(sum_of(c));
    }
}
template <bool Faulty>
DEVICE void ring_without_fence(const Params& params) { ring<Faulty ? Ring::kNoFence : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_without_warp_barrier(const Params& params) { ring<Faulty ? Ring::kNoWarpBarrier : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_arrival_missing(const Params& params) { ring<Faulty ? Ring::kNoArrival : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_arrival_twice(const Params& params) { ring<Faulty ? Ring::kArrivesTwice : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_early_arrival(const Params& params) { ring<Faulty ? Ring::kEarlyArrival : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_without_wait(const Params& params) { ring<Faulty ? Ring::kNoWait : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_wrong_parity(const Params& params) { ring<Faulty ? Ring::kWrongParity : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_wrong_start(const Params& params) { ring<Faulty ? Ring::kWrongStart : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_gives_back_early(const Params& params) { ring<Faulty ? Ring::kGivesBackEarly : Ring::kRight>(params); }
template <bool Faulty>
DEVICE void ring_one_wait(const Params& params) { ring<Faulty ? Ring::kOneWait : Ring::kRight>(params); }

DEVICE MBarrier& barrier_at(u32 word) { return *reinterpret_cast<MBarrier*>(words() + word); }

template <bool Faulty>
DEVICE void barrier_without_init(const Params& params) {
    if (!Faulty && thread_index() == 0) mbarrier_init(barrier_at(0), 128);
    sync_threads();
    mbarrier_arrive(barrier_at(0));
    mbarrier_wait(barrier_at(0), 0);
    params.out[thread_index()] = 1;
}
// The others must know of it.
template <bool Faulty>
DEVICE void barrier_after_init(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(0), 128);
    if (!Faulty) sync_threads();
    mbarrier_arrive(barrier_at(0));
    mbarrier_wait(barrier_at(0), 0);
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void barrier_init_twice(const Params& params) {
    if (thread_index() < (Faulty ? 2 : 1)) mbarrier_init(barrier_at(0), 128);
    sync_threads();
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void barrier_read(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(0), 128), words()[2] = 1;
    sync_threads();
    params.out[thread_index()] = words()[Faulty ? 1 : 2];
}
template <bool Faulty>
DEVICE void barrier_written(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(0), 128);
    sync_threads();
    if (thread_index() == 0) words()[Faulty ? 1 : 2] = 0;
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void barrier_misaligned(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(Faulty ? 1 : 2), 128);
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void barrier_of_nobody(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(0), Faulty ? 0 : 128);
    params.out[thread_index()] = 1;
}
// Memory that other threads still read becomes a barrier.
template <bool Faulty>
DEVICE void barrier_over_data(const Params& params) {
    words()[thread_index()] = params.in[thread_index()];
    sync_threads();
    params.out[thread_index()] = words()[thread_index() ^ 64];
    if (!Faulty) sync_threads();
    if (thread_index() == 0) mbarrier_init(barrier_at(64), 128);
}
// An arrival that no wait sees, and that the end finds.
template <bool Faulty>
DEVICE void barrier_half_full(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(0), 64);
    sync_threads();
    if (thread_index() < (Faulty ? 65 : 64)) mbarrier_arrive(barrier_at(0));
    params.out[thread_index()] = 1;
}
// Who waits sees what was written before the arrivals; who does not, does not.
template <bool Faulty>
DEVICE void barrier_not_waited_for(const Params& params) {
    if (thread_index() == 0) mbarrier_init(barrier_at(128), 128);
    sync_threads();
    words()[thread_index()] = params.in[thread_index()];
    mbarrier_arrive(barrier_at(128));
    if (!Faulty || thread_index() != 5) mbarrier_wait(barrier_at(128), 0);
    params.out[thread_index()] = words()[thread_index() ^ 64];
}

// The first warp tells the others a number a lane and phase. The faulty one waits as if something had been heard before.
template <bool Faulty>
DEVICE void phases(const Params& params) {
    const u32 t = thread_index();
    MBarrier &told = barrier_at(64), &heard = barrier_at(66);
    if (t == 0) {
        mbarrier_init(told, 32);
        mbarrier_init(heard, 96);
    }
    sync_threads();
    // Phase 1 before the first one is complete.
    mbarrier_wait(told, 1);
    mbarrier_wait(heard, 1);
    sync_threads();
    u32 sum = 0;
    for (u32 phase = 0; phase < 7; ++phase) {
        if (t < 32) {
            mbarrier_wait(heard, Faulty ? phase % 2 : (phase + 1) % 2);
            words()[t] = phase * 100 + t;
            mbarrier_arrive(told);
            ++sum;
        } else {
            mbarrier_wait(told, phase % 2);
            mbarrier_wait(told, phase % 2);
            sum += words()[t % 32];
            mbarrier_arrive(heard);
        }
    }
    params.out[t] = sum;
}

// ---- Barriers with numbers ---------------------------------------------------------------------------------------------

// Two pairs of warps, each with a barrier of its own.
template <bool Faulty>
DEVICE void pairs_of_warps(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    sync_some<64>(1 + static_cast<int>(t / 64));
    params.out[t] = words()[Faulty ? t ^ 64 : t ^ 32];
}
template <bool Faulty>
DEVICE void pairs_without_barrier(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    if (!Faulty || t >= 64) sync_some<64>(1 + static_cast<int>(t / 64));
    params.out[t] = words()[t ^ 32];
}
template <bool Faulty>
DEVICE void counts_differ(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    if (Faulty && t < 32) {
        sync_some<96>(3);
    } else {
        sync_some<128>(3);
    }
    params.out[t] = words()[t ^ 96];
}
template <bool Faulty>
DEVICE void count_too_large(const Params& params) {
    sync_some<(Faulty ? 256 : 128)>(3);
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void barrier_zero(const Params& params) {
    sync_some<128>(Faulty ? 0 : 15);
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void barrier_sixteen(const Params& params) {
    sync_some<128>(Faulty ? 16 : 1);
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void warp_does_not_come(const Params& params) {
    if (!Faulty || thread_index() < 96) sync_some<128>(2);
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void lane_at_other_barrier(const Params& params) {
    sync_some<128>(Faulty && thread_index() == 40 ? 3 : 2);
    params.out[thread_index()] = 1;
}

// ---- Registers ---------------------------------------------------------------------------------------------------------

template <bool Faulty>
DEVICE void odd_registers(const Params& params) {
    take_registers<(Faulty ? 100 : 104)>();
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void too_few_registers(const Params& params) {
    give_registers_back<(Faulty ? 16 : 24)>();
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void registers_of_some(const Params& params) {
    if (!Faulty || thread_index() < 96) take_registers<104>();
    params.out[thread_index()] = 1;
}
template <bool Faulty>
DEVICE void registers_differ(const Params& params) {
    if (Faulty && thread_index() >= 96) {
        take_registers<96>();
    } else {
        take_registers<104>();
    }
    params.out[thread_index()] = 1;
}
// 384 threads have 168 each at first, 504 in all three warpgroups; what comes in sum is 504, or 512.
template <bool Faulty>
DEVICE void registers_run_out(const Params& params) {
    if (thread_index() < 128) {
        give_registers_back<(Faulty ? 64 : 72)>();
    } else {
        take_registers<(Faulty ? 224 : 216)>();
    }
    if (thread_index() < 128) params.out[thread_index()] = 1;
}

}  // namespace selftest

#define PAIR(name, threads, shared)                                                                              \
    KERNEL(selftest_fault_hopper_##name, selftest::Params, threads, 1, shared) { selftest::name<true>(params); } \
    KERNEL(selftest_sound_hopper_##name, selftest::Params, threads, 1, shared) { selftest::name<false>(params); }

PAIR(unfenced_store, 128, 8192)
PAIR(fenced_by_some, 128, 8192)
PAIR(fenced_by_reader, 128, 8192)
PAIR(stored_behind_fence, 128, 8192)
PAIR(unfenced_copy, 128, 8192)
PAIR(fence_before_wait, 128, 8192)
PAIR(fence_as_barrier, 128, 8192)
PAIR(unwritten_row, 128, 8192)
PAIR(product_without_fence, 128, 8192)
PAIR(product_without_commit, 128, 8192)
PAIR(product_without_wait, 128, 8192)
PAIR(second_group_without_fence, 128, 8192)
PAIR(lax_product_wait, 128, 8192)
PAIR(scaled_after_fence, 128, 8192)
PAIR(operand_after_fence, 128, 8192)
PAIR(written_under_way, 128, 8192)
PAIR(operand_written_under_way, 128, 8192)
PAIR(operand_of_sum, 128, 8192)
PAIR(refill_under_way, 128, 8192)
PAIR(copy_under_way, 128, 8192)
PAIR(lane_apart, 128, 8192)
PAIR(warp_apart, 128, 8192)
PAIR(warp_missing, 128, 8192)
PAIR(warp_commits_twice, 128, 8192)
PAIR(operands_differ, 128, 16384)
PAIR(tile_not_aligned, 128, 24576)
PAIR(stride_not_aligned, 128, 24576)
PAIR(start_in_columns, 128, 24576)
PAIR(other_swizzle, 128, 24576)
PAIR(matrix_outside, 128, 24576)
PAIR(ring_without_fence, 256, 16384 + 32)
PAIR(ring_without_warp_barrier, 256, 16384 + 32)
PAIR(ring_arrival_missing, 256, 16384 + 32)
PAIR(ring_arrival_twice, 256, 16384 + 32)
PAIR(ring_early_arrival, 256, 16384 + 32)
PAIR(ring_without_wait, 256, 16384 + 32)
PAIR(ring_wrong_parity, 256, 16384 + 32)
PAIR(ring_wrong_start, 256, 16384 + 32)
PAIR(ring_gives_back_early, 256, 16384 + 32)
PAIR(ring_one_wait, 256, 16384 + 32)
PAIR(barrier_without_init, 128, 1024)
PAIR(barrier_after_init, 128, 1024)
PAIR(barrier_init_twice, 128, 1024)
PAIR(barrier_read, 128, 1024)
PAIR(barrier_written, 128, 1024)
PAIR(barrier_misaligned, 128, 1024)
PAIR(barrier_of_nobody, 128, 1024)
PAIR(barrier_over_data, 128, 1024)
PAIR(barrier_half_full, 128, 1024)
PAIR(barrier_not_waited_for, 128, 1024)
PAIR(phases, 128, 1024)
PAIR(pairs_of_warps, 128, 512)
PAIR(pairs_without_barrier, 128, 512)
PAIR(counts_differ, 128, 512)
PAIR(count_too_large, 128, 0)
PAIR(barrier_zero, 128, 0)
PAIR(barrier_sixteen, 128, 0)
PAIR(warp_does_not_come, 128, 0)
PAIR(lane_at_other_barrier, 128, 0)
PAIR(odd_registers, 128, 0)
PAIR(too_few_registers, 128, 0)
PAIR(registers_of_some, 128, 0)
PAIR(registers_differ, 128, 0)
PAIR(registers_run_out, 384, 0)
