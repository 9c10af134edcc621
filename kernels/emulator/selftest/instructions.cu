// Kernels that hand a warp's registers to one instruction, and back: each lane's words in, one after the other, and out.
// tests/emulator/instructions.rs has what must come out.
#include "params.h"

namespace selftest {

DEVICE u32 bits_of(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

// a[4], b[2], c[4] in; c[4] out.
template <class T>
DEVICE void multiply(const Params& params) {
    const u32* in = params.in + thread_index() * 10;
    u32* out = params.out + thread_index() * 4;
    u32 a[4];
    float c[4];
    for (int i = 0; i < 4; ++i) a[i] = in[i];
    for (int i = 0; i < 4; ++i) c[i] = as_float(in[6 + i]);
    mma(c, a, in[4], in[5], T{});
    for (int i = 0; i < 4; ++i) out[i] = bits_of(c[i]);
}

// In: four 8×8 matrices, row after row, 512 bytes; and from word 128 on, which of these rows each lane gives the address of.
// Out: four words a lane.
template <bool Transposed>
DEVICE void load(const Params& params) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    for (int i = 0; i < 4; ++i) shared[thread_index() * 4 + i] = params.in[thread_index() * 4 + i];
    sync_warp();
    u32 r[4];
    const char* row = shared_memory() + 16 * params.in[128 + thread_index()];
    if (Transposed) {
        load_matrices_transposed(r, row);
    } else {
        load_matrices(r, row);
    }
    for (int i = 0; i < 4; ++i) params.out[thread_index() * 4 + i] = r[i];
}

}  // namespace selftest

KERNEL(selftest_mma_f16, selftest::Params, 32, 1, 0) { selftest::multiply<inducer::f16>(params); }
KERNEL(selftest_mma_bf16, selftest::Params, 32, 1, 0) { selftest::multiply<inducer::bf16>(params); }
KERNEL(selftest_load_matrices, selftest::Params, 32, 1, 512) { selftest::load<false>(params); }
KERNEL(selftest_load_matrices_transposed, selftest::Params, 32, 1, 512) { selftest::load<true>(params); }

KERNEL(selftest_shuffle, selftest::Params, 32, 1, 0) {
    using namespace inducer;
    float mine = as_float(params.in[thread_index()]);
    params.out[thread_index()] = selftest::bits_of(shuffle(mine, params.argument));
}

// Every lane asks another one.
KERNEL(selftest_shuffle_each, selftest::Params, 32, 1, 0) {
    using namespace inducer;
    float mine = as_float(params.in[thread_index()]);
    params.out[thread_index()] = selftest::bits_of(shuffle(mine, static_cast<int>(thread_index()) * params.argument));
}

KERNEL(selftest_shuffle_xor, selftest::Params, 32, 1, 0) {
    using namespace inducer;
    float mine = as_float(params.in[thread_index()]);
    params.out[thread_index()] = selftest::bits_of(shuffle_xor(mine, params.argument));
}

// Two warps, of which each tells only its own.
KERNEL(selftest_warp_any, selftest::Params, 64, 1, 0) {
    using namespace inducer;
    params.out[thread_index()] = warp_any(params.in[thread_index()] != 0);
}

KERNEL(selftest_sync_threads_or, selftest::Params, 64, 1, 0) {
    using namespace inducer;
    params.out[2 * thread_index()] = sync_threads_or(params.in[thread_index()] != 0);
    params.out[2 * thread_index() + 1] = sync_threads_or(params.in[64 + thread_index()] != 0);
}

// Two numbers a lane in; packed as f16, as bf16, and both unpacked again, out.
KERNEL(selftest_pack, selftest::Params, 32, 1, 0) {
    using namespace inducer;
    float low = as_float(params.in[2 * thread_index()]), high = as_float(params.in[2 * thread_index() + 1]);
    u32* out = params.out + 6 * thread_index();
    u32 f = pack(low, high, f16{}), b = pack(low, high, bf16{});
    out[0] = f;
    out[1] = b;
    out[2] = selftest::bits_of(to_float(f16{static_cast<u16>(f)}));
    out[3] = selftest::bits_of(to_float(f16{static_cast<u16>(f >> 16)}));
    out[4] = selftest::bits_of(to_float(bf16{static_cast<u16>(b)}));
    out[5] = selftest::bits_of(to_float(bf16{static_cast<u16>(b >> 16)}));
}

KERNEL(selftest_exp2, selftest::Params, 32, 1, 0) {
    using namespace inducer;
    params.out[thread_index()] = selftest::bits_of(exp2_fast(as_float(params.in[thread_index()])));
}
