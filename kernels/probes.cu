// What single instructions do, for comparison with what the PTX ISA says: one small kernel for each group of functions in
// arch/. tests/probes has the expected values. No part of the attention; these kernels go into tests only.
#include "arch/arch.cuh"

namespace inducer {

// Where a probe reads and writes; what lies there is told at each kernel.
struct ProbeParams {
    const void* input;
    void* output;
};

DEVICE const u32* input_words(const ProbeParams& params) { return static_cast<const u32*>(params.input); }
DEVICE const float* input_floats(const ProbeParams& params) { return static_cast<const float*>(params.input); }
DEVICE u32* output_words(const ProbeParams& params) { return static_cast<u32*>(params.output); }
DEVICE float* output_floats(const ProbeParams& params) { return static_cast<float*>(params.output); }

// Number of the thread in the grid, for blocks of one warp.
DEVICE u32 lane_of_grid() { return block_x() * 32 + thread_index(); }

// Per lane: in a[4], b[2], c[4]; out c[4].
template <class T>
DEVICE void probe_mma(const ProbeParams& params) {
    const u32* words = input_words(params) + lane_of_grid() * 10;
    const float* floats = input_floats(params) + lane_of_grid() * 10;
    u32 a[4];
    float c[4];
    UNROLL
    for (int i = 0; i < 4; ++i) {
        a[i] = words[i];
        c[i] = floats[6 + i];
    }
    mma(c, a, words[4], words[5], T{});
    UNROLL
    for (int i = 0; i < 4; ++i) output_floats(params)[lane_of_grid() * 4 + i] = c[i];
}

// In: 32 rows of four words, then for each lane the row whose address it gives. Out: four words per lane.
template <bool Transposed>
DEVICE void probe_matrices(const ProbeParams& params) {
    u32* rows = reinterpret_cast<u32*>(shared_memory());
    UNROLL
    for (int i = 0; i < 4; ++i) rows[thread_index() * 4 + i] = input_words(params)[thread_index() * 4 + i];
    sync_threads();
    const u32* row = rows + input_words(params)[128 + thread_index()] * 4;
    u32 r[4];
    if (Transposed) {
        load_matrices_transposed(r, row);
    } else {
        load_matrices(r, row);
    }
    UNROLL
    for (int i = 0; i < 4; ++i) output_words(params)[thread_index() * 4 + i] = r[i];
}

}  // namespace inducer

KERNEL(probe_mma_f16, inducer::ProbeParams, 32, 1, 0) { inducer::probe_mma<inducer::f16>(params); }
KERNEL(probe_mma_bf16, inducer::ProbeParams, 32, 1, 0) { inducer::probe_mma<inducer::bf16>(params); }
KERNEL(probe_matrices, inducer::ProbeParams, 32, 1, 512) { inducer::probe_matrices<false>(params); }
KERNEL(probe_matrices_transposed, inducer::ProbeParams, 32, 1, 512) { inducer::probe_matrices<true>(params); }

// Copies in three groups. In: three times 128 chunks of four words; then for each thread whether its copies are valid. Out,
// per thread: the first word of its chunk of each group, read once that group is done; then the last word of the chunk of
// group 2 that the thread 33 places further copied.
KERNEL(probe_copies, inducer::ProbeParams, 128, 1, 3 * 128 * 16) {
    using namespace inducer;
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    const u32* in = input_words(params);
    u32* out = output_words(params) + thread_index() * 4;
    const u32 own = thread_index() * 4;
    const bool valid = in[3 * 512 + thread_index()] != 0;
    // What zeros must replace.
    UNROLL
    for (u32 group = 0; group < 3; ++group) {
        UNROLL
        for (u32 i = 0; i < 4; ++i) shared[group * 512 + own + i] = 0xdeadbeefu;
    }
    sync_threads();
    UNROLL
    for (u32 group = 0; group < 3; ++group) {
        copy_async(shared + group * 512 + own, in + group * 512 + own, valid);
        copy_commit();
    }
    copy_wait<2>();
    out[0] = shared[own];
    copy_wait<1>();
    out[1] = shared[512 + own];
    copy_wait<0>();
    out[2] = shared[1024 + own];
    sync_threads();
    out[3] = shared[1024 + (thread_index() + 33) % 128 * 4 + 3];
}

// In, per lane: a number, and a lane. Out, per lane: that number of lanes l ^ 1, l ^ 2, l ^ 4, l ^ 8, l ^ 16 and of the given
// lane; whether any lane's is negative.
KERNEL(probe_shuffles, inducer::ProbeParams, 32, 1, 0) {
    using namespace inducer;
    float value = input_floats(params)[thread_index()];
    int lane = static_cast<int>(input_words(params)[32 + thread_index()]);
    float* out = output_floats(params) + thread_index() * 7;
    UNROLL
    for (int bit = 0; bit < 5; ++bit) out[bit] = shuffle_xor(value, 1 << bit);
    out[5] = shuffle(value, lane);
    out[6] = warp_any(value < 0.0f) ? 1.0f : 0.0f;
}

// In, per block of 128 threads: a flag of each. Out: per thread, whether any is set.
KERNEL(probe_votes, inducer::ProbeParams, 128, 1, 0) {
    using namespace inducer;
    u32 at = block_x() * 128 + thread_index();
    output_words(params)[at] = sync_threads_or(input_words(params)[at] != 0);
}

// In, per lane: two numbers. Out: both packed, and widened again, for f16 and for bf16.
KERNEL(probe_conversions, inducer::ProbeParams, 32, 1, 0) {
    using namespace inducer;
    float low = input_floats(params)[lane_of_grid() * 2], high = input_floats(params)[lane_of_grid() * 2 + 1];
    u32* words = output_words(params) + lane_of_grid() * 6;
    float* floats = output_floats(params) + lane_of_grid() * 6;
    u32 half = pack(low, high, f16{}), brain = pack(low, high, bf16{});
    words[0] = half;
    floats[1] = to_float(f16{static_cast<u16>(half & 0xffffu)});
    floats[2] = to_float(f16{static_cast<u16>(half >> 16)});
    words[3] = brain;
    floats[4] = to_float(bf16{static_cast<u16>(brain & 0xffffu)});
    floats[5] = to_float(bf16{static_cast<u16>(brain >> 16)});
}

// In, per lane: a number. Out: exp2_fast, exp, log2 of its absolute value, tanh, the square root of its absolute value, what
// divide_fast makes of 2 and it, and what sqrt_fast makes of its absolute value.
KERNEL(probe_functions, inducer::ProbeParams, 32, 1, 0) {
    using namespace inducer;
    float x = input_floats(params)[lane_of_grid()];
    float magnitude = x < 0.0f ? -x : x;
    float* out = output_floats(params) + lane_of_grid() * 7;
    out[0] = exp2_fast(x);
    out[1] = exp_accurate(x);
    out[2] = log2_accurate(magnitude);
    out[3] = tanh_accurate(x);
    out[4] = sqrt_accurate(magnitude);
    out[5] = divide_fast(2.0f, x);
    out[6] = sqrt_fast(magnitude);
}

// In, per lane: two words. Out: the high half of their product.
KERNEL(probe_products, inducer::ProbeParams, 32, 1, 0) {
    using namespace inducer;
    const u32* in = input_words(params) + lane_of_grid() * 2;
    output_words(params)[lane_of_grid()] = multiply_high(in[0], in[1]);
}

// Blocks take turns in the order of their tickets, and hand on what the block before has written. Words of the output, zero at
// first: the next ticket, whose turn it is, a sum to which every thread adds 1, one unused; then 64 words for each ticket.
KERNEL(probe_turns, inducer::ProbeParams, 64, 1, 16) {
    using namespace inducer;
    i32* words = static_cast<i32*>(params.output);
    i32* shared = reinterpret_cast<i32*>(shared_memory());
    if (thread_index() == 0) {
        i32 ticket = fetch_add(words, 1);
        while (load_acquire(words + 1) != ticket) wait_a_little();
        shared[0] = ticket;
    }
    sync_threads();
    i32 ticket = shared[0];
    i32* own = words + 4 + ticket * 64;
    // Of another thread of the block before, so that it takes both barriers and both orders to see it.
    i32 before = ticket > 0 ? own[-64 + static_cast<i32>(thread_index() ^ 37u)] : 0;
    own[thread_index()] = before + 1;
    add_unordered(output_floats(params) + 2, 1.0f);
    sync_threads();
    if (thread_index() == 0) add_release(words + 1, 1);
}
