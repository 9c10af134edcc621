// Small kernels with a fault each, and the same without it. tests/emulator/faults.rs says what each must be called.
//
// The faulty ones are pieces of what real kernels do: a tile that is written and read, a ring of copies, a hand-over from
// one block to another.
#include "params.h"

namespace selftest {

constexpr u32 kThreads = 128;

DEVICE u32* words() { return reinterpret_cast<u32*>(shared_memory()); }

// Reads what another thread wrote, without the barrier in between.
template <bool Faulty>
DEVICE void missing_barrier(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    if (!Faulty) sync_threads();
    params.out[t] = words()[kThreads - 1 - t];
}

// Fills the tile again while others may still read it.
template <bool Faulty>
DEVICE void early_refill(const Params& params) {
    const u32 t = thread_index();
    u32 sum = 0;
    for (u32 i = 0; i < 3; ++i) {
        words()[t] = params.in[t] + i;
        sync_threads();
        sum += words()[(t + 37) % kThreads];
        if (!Faulty) sync_threads();
    }
    params.out[t] = sum;
}

// The same where a copy fills it.
template <bool Faulty>
DEVICE void early_copy(const Params& params) {
    const u32 t = thread_index();
    u32 sum = 0;
    for (u32 i = 0; i < 3; ++i) {
        copy_async(words() + t * 4, params.in + t * 4, true);
        copy_commit();
        copy_wait<0>();
        sync_threads();
        sum += words()[(t + 37) % kThreads * 4];
        if (!Faulty) sync_threads();
    }
    params.out[t] = sum;
}

// Reads copies that nobody waited for.
template <bool Faulty>
DEVICE void missing_wait(const Params& params) {
    const u32 t = thread_index();
    copy_async(words() + t * 4, params.in + t * 4, true);
    copy_commit();
    if (!Faulty) copy_wait<0>();
    sync_threads();
    params.out[t] = words()[(t + 1) % kThreads * 4];
}

// A ring of two stages whose wait lets the group that is read pend.
template <bool Faulty>
DEVICE void lax_wait(const Params& params) {
    const u32 t = thread_index();
    u32 sum = 0;
    auto load = [&](u32 i) {
        copy_async(words() + (i % 2 * kThreads + t) * 4, params.in + (i * kThreads + t) * 4, true);
        copy_commit();
    };
    load(0);
    for (u32 i = 0; i < 4; ++i) {
        if (i + 1 < 4) {
            load(i + 1);
            copy_wait<Faulty ? 2 : 1>();
        } else {
            copy_wait<0>();
        }
        sync_threads();
        sum += words()[(i % 2 * kThreads + (t + 5) % kThreads) * 4];
        sync_threads();
    }
    params.out[t] = sum;
}

// Waits for groups, but the last copies were never made one.
template <bool Faulty>
DEVICE void missing_commit(const Params& params) {
    const u32 t = thread_index();
    copy_async(words() + t * 4, params.in + t * 4, true);
    if (!Faulty) copy_commit();
    copy_wait<0>();
    sync_threads();
    params.out[t] = words()[(t + 1) % kThreads * 4];
}

// Waits only after the barrier, which is too late for what other threads copied.
template <bool Faulty>
DEVICE void wait_after_barrier(const Params& params) {
    const u32 t = thread_index();
    copy_async(words() + t * 4, params.in + t * 4, true);
    copy_commit();
    if (!Faulty) copy_wait<0>();
    sync_threads();
    if (Faulty) copy_wait<0>();
    params.out[t] = words()[(t + 1) % kThreads * 4];
}

// Two copies to one place, with no wait in between.
template <bool Faulty>
DEVICE void copy_twice(const Params& params) {
    const u32 t = thread_index();
    for (u32 i = 0; i < 2; ++i) {
        copy_async(words() + t * 4, params.in + (i * kThreads + t) * 4, true);
        copy_commit();
        if (!Faulty) copy_wait<0>();
    }
    copy_wait<0>();
    params.out[t] = words()[t * 4];
}

// `argument` elements, of which the faulty one takes one more.
template <bool Faulty>
DEVICE void tail_read(const Params& params) {
    const u32 t = thread_index(), end = static_cast<u32>(params.argument) + (Faulty ? 1 : 0);
    u32 x = 0;
    if (t < end) x = params.in[t];
    if (t < static_cast<u32>(params.argument)) params.out[t] = x;
}
template <bool Faulty>
DEVICE void tail_write(const Params& params) {
    const u32 t = thread_index(), end = static_cast<u32>(params.argument) + (Faulty ? 1 : 0);
    if (t < end) params.out[t] = t;
}
template <bool Faulty>
DEVICE void tail_copy(const Params& params) {
    const u32 t = thread_index(), end = static_cast<u32>(params.argument) / 4 + (Faulty ? 1 : 0);
    copy_async(words() + t * 4, params.in + t * 4, t < end);
    copy_commit();
    copy_wait<0>();
    params.out[t] = words()[t * 4];
}
template <bool Faulty>
DEVICE void shared_tail(const Params& params) {
    const u32 t = thread_index();
    words()[t + (Faulty ? 1 : 0)] = params.in[t];
    params.out[t] = words()[t + (Faulty ? 1 : 0)];
}

// Reads a row of the tile that nothing filled.
template <bool Faulty>
DEVICE void uninitialised_shared(const Params& params) {
    const u32 t = thread_index();
    if (!Faulty || t != 77) words()[t] = params.in[t];
    sync_threads();
    params.out[t] = words()[t ^ 1];
}
template <bool Faulty>
DEVICE void uninitialised_rows(const Params& params) {
    const u32 t = thread_index();
    for (u32 i = 0; i < (Faulty ? 3u : 4u); ++i) words()[t * 4 + i] = params.in[t];
    sync_threads();
    u32 r[4];
    load_matrices(r, words() + t * 4);
    params.out[t] = r[0];
}
template <bool Faulty>
DEVICE void uninitialised_global(const Params& params) {
    const u32 t = thread_index();
    if (!Faulty || t != 5) params.out[t] = params.in[t];
    params.out[t] += 1;
}

// Half of a warp goes another way to what looks like the same instruction.
template <bool Faulty>
DEVICE void divergent_lanes(const Params& params) {
    const u32 t = thread_index();
    float x = as_float(params.in[t]);
    if (Faulty && t % 32 < 16) {
        x = shuffle_xor(x, 1);
    } else {
        x = shuffle_xor(x, 1);
    }
    params.out[t] = x == 0.0f;
}
// A lane leaves before the others are done.
template <bool Faulty>
DEVICE void early_exit(const Params& params) {
    const u32 t = thread_index();
    if (Faulty && t == 40) return;
    params.out[t] = warp_any(params.in[t] == 1);
}
// A barrier that one warp does not come to.
template <bool Faulty>
DEVICE void skipped_barrier(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    if (!Faulty || t < 96) sync_threads();
    params.out[t] = words()[t];
}

// Lanes of one warp hand numbers to each other.
template <bool Faulty>
DEVICE void missing_sync_warp(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    if (!Faulty) sync_warp();
    params.out[t] = words()[t ^ 3];
}
// A shuffle orders no memory.
template <bool Faulty>
DEVICE void shuffle_as_barrier(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    float x = shuffle_xor(1.0f, 1);
    if (!Faulty) sync_warp();
    params.out[t] = words()[t ^ 3] + (x == 1.0f ? 0 : 1);
}
// sync_warp is not enough between warps.
template <bool Faulty>
DEVICE void sync_warp_between_warps(const Params& params) {
    const u32 t = thread_index();
    words()[t] = params.in[t];
    if (Faulty) {
        sync_warp();
    } else {
        sync_threads();
    }
    params.out[t] = words()[(t + 32) % kThreads];
}
// ldmatrix reads for all lanes, so what any lane wrote must be ordered before.
template <bool Faulty>
DEVICE void rows_without_barrier(const Params& params) {
    const u32 t = thread_index();
    for (u32 i = 0; i < 4; ++i) words()[t * 4 + i] = params.in[t];
    if (!Faulty) sync_warp();
    u32 r[4];
    load_matrices_transposed(r, words() + t * 4);
    params.out[t] = r[3];
}
// And all lanes have read when one writes again.
template <bool Faulty>
DEVICE void refill_of_rows(const Params& params) {
    const u32 t = thread_index();
    for (u32 i = 0; i < 4; ++i) words()[t * 4 + i] = params.in[t];
    sync_warp();
    u32 r[4];
    load_matrices(r, words() + t * 4);
    if (!Faulty) sync_warp();
    words()[t * 4] = r[0];
    params.out[t] = r[1];
}

// All threads write the same word.
template <bool Faulty>
DEVICE void same_word(const Params& params) {
    const u32 t = thread_index();
    if (Faulty || t == 0) words()[0] = 1;
    sync_threads();
    params.out[t] = words()[0];
}

template <bool Faulty>
DEVICE void misaligned_row(const Params& params) {
    const u32 t = thread_index();
    for (u32 i = 0; i < 4; ++i) words()[t * 4 + i] = params.in[t];
    sync_threads();
    u32 r[4];
    load_matrices(r, shared_memory() + (t % 16) * 16 + (Faulty && t == 9 ? 8 : 0));
    params.out[t] = r[0];
}
template <bool Faulty>
DEVICE void misaligned_copy(const Params& params) {
    const u32 t = thread_index();
    copy_async(words() + t * 4, params.in + t + (Faulty ? 0 : t * 3), true);
    copy_commit();
    copy_wait<0>();
    params.out[t] = words()[t * 4];
}
template <bool Faulty>
DEVICE void misaligned_word(const Params& params) {
    const u32 t = thread_index();
    const char* at = reinterpret_cast<const char*>(params.in + t) + (Faulty && t == 3 ? 2 : 0);
    params.out[t] = *reinterpret_cast<const u32*>(at);
}

template <bool Faulty>
DEVICE void write_to_input(const Params& params) {
    const u32 t = thread_index();
    params.out[t] = params.in[t];
    if (Faulty && t == 64) const_cast<u32*>(params.in)[t] = 0;
}

// ---- Between blocks: `out` is a flag, zero at first, 31 words of room, and data ------------------------------------------

DEVICE i32* flag_of(const Params& params) { return reinterpret_cast<i32*>(params.out); }

enum class HandOver { kRight, kNoBarrier, kNoRelease, kNoAcquire, kNoBarrierAfter, kNobodyReleases };

// The first block writes data and hands it over to the second, which adds to it.
template <HandOver Form>
DEVICE void hand_over(const Params& params) {
    const u32 t = thread_index();
    u32* data = params.out + 32;
    i32* flag = flag_of(params);
    if (block_x() == 0) {
        data[t] = params.in[t];
        if (Form != HandOver::kNoBarrier) sync_threads();
        if (t == 0) {
            if (Form == HandOver::kNoRelease) {
                fetch_add(flag, 1);
            } else if (Form != HandOver::kNobodyReleases) {
                add_release(flag, 1);
            }
        }
    } else {
        if (t == 0) {
            if (Form == HandOver::kNoAcquire) {
                while (fetch_add(flag, 0) != 1) wait_a_little();
            } else {
                while (load_acquire(flag) != 1) wait_a_little();
            }
        }
        if (Form != HandOver::kNoBarrierAfter) sync_threads();
        data[t ^ 64] += 1;
    }
}
template <bool Faulty>
DEVICE void release_without_barrier(const Params& params) {
    hand_over<Faulty ? HandOver::kNoBarrier : HandOver::kRight>(params);
}
template <bool Faulty>
DEVICE void relaxed_release(const Params& params) {
    hand_over<Faulty ? HandOver::kNoRelease : HandOver::kRight>(params);
}
template <bool Faulty>
DEVICE void relaxed_acquire(const Params& params) {
    hand_over<Faulty ? HandOver::kNoAcquire : HandOver::kRight>(params);
}
template <bool Faulty>
DEVICE void acquire_without_barrier(const Params& params) {
    hand_over<Faulty ? HandOver::kNoBarrierAfter : HandOver::kRight>(params);
}
template <bool Faulty>
DEVICE void deadlock(const Params& params) {
    hand_over<Faulty ? HandOver::kNobodyReleases : HandOver::kRight>(params);
}

// A chain over three blocks: what the first one wrote reaches the last through the second.
template <bool Faulty>
DEVICE void chain(const Params& params) {
    const u32 t = thread_index();
    u32* data = params.out + 32;
    i32* flag = flag_of(params);
    const i32 turn = static_cast<i32>(block_x());
    if (turn == 0) data[t] = params.in[t];
    if (t == 0) {
        if (!Faulty || turn != 2) {
            while (load_acquire(flag) < turn) wait_a_little();
        }
    }
    sync_threads();
    if (turn == 2) data[t ^ 1] += 1;
    sync_threads();
    if (t == 0) add_release(flag, 1);
}

// Blocks that do not speak to each other write to one place.
template <bool Faulty>
DEVICE void blocks_collide(const Params& params) {
    const u32 t = thread_index();
    if (Faulty || block_x() == 0) params.out[32 + t] = params.in[t];
}

// Atomic additions race with plain writes, not with each other.
template <bool Faulty>
DEVICE void plain_and_atomic(const Params& params) {
    const u32 t = thread_index();
    float* sum = reinterpret_cast<float*>(params.out + 32);
    add_unordered(sum + t / 2, as_float(params.in[t]));
    if (Faulty && block_x() == 1 && t == 6) sum[t / 2] = 0.0f;
}

// Additions whose order is said to be fixed, and is not.
template <bool Faulty>
DEVICE void add_out_of_turn(const Params& params) {
    const u32 t = thread_index();
    i32* flag = flag_of(params);
    if (t == 0 && !Faulty) {
        while (load_acquire(flag) < static_cast<i32>(block_x())) wait_a_little();
    }
    sync_threads();
    add_in_turn(reinterpret_cast<float*>(params.out + 32) + t, as_float(params.in[t]));
    sync_threads();
    if (t == 0) add_release(flag, 1);
}

}  // namespace selftest

#define PAIR(name, shared)                                                                                  \
    KERNEL(selftest_fault_##name, selftest::Params, 128, 1, shared) { selftest::name<true>(params); }       \
    KERNEL(selftest_sound_##name, selftest::Params, 128, 1, shared) { selftest::name<false>(params); }

PAIR(missing_barrier, 512)
PAIR(early_refill, 512)
PAIR(early_copy, 2048)
PAIR(missing_wait, 2048)
PAIR(lax_wait, 4096)
PAIR(missing_commit, 2048)
PAIR(wait_after_barrier, 2048)
PAIR(copy_twice, 2048)
PAIR(tail_read, 0)
PAIR(tail_write, 0)
PAIR(tail_copy, 2048)
PAIR(shared_tail, 512)
PAIR(uninitialised_shared, 512)
PAIR(uninitialised_rows, 2048)
PAIR(uninitialised_global, 0)
PAIR(divergent_lanes, 0)
PAIR(early_exit, 0)
PAIR(skipped_barrier, 512)
PAIR(missing_sync_warp, 512)
PAIR(shuffle_as_barrier, 512)
PAIR(sync_warp_between_warps, 512)
PAIR(rows_without_barrier, 2048)
PAIR(refill_of_rows, 2048)
PAIR(same_word, 512)
PAIR(misaligned_row, 2048)
PAIR(misaligned_copy, 2048)
PAIR(misaligned_word, 0)
PAIR(write_to_input, 0)
PAIR(release_without_barrier, 0)
PAIR(relaxed_release, 0)
PAIR(relaxed_acquire, 0)
PAIR(acquire_without_barrier, 0)
PAIR(deadlock, 0)
PAIR(chain, 0)
PAIR(blocks_collide, 0)
PAIR(plain_and_atomic, 0)
PAIR(add_out_of_turn, 0)
