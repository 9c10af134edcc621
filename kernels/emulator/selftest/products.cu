// Products of warpgroups, in all their forms: operands in and the sum out. tests/emulator/products.rs has what must come out.
#include "../../arch/hopper.cuh"
#include "params.h"

namespace selftest {

// In, as words: how many products, how many words of shared memory; for each product where A and B begin in shared memory, with
// their leading and stride bytes; each thread's A of each product; each thread's c; shared memory.
// Out: each thread's c.
template <int Blocks, class T, bool TransposeA, bool TransposeB, bool InRegisters>
DEVICE void multiply_all(const Params& params, bool accumulate) {
    const u32 t = thread_index(), products = params.in[0], words = params.in[1];
    const u32* places = params.in + 2;
    const u32* a_words = places + 6 * products;
    const u32* c_words = a_words + 128 * 4 * products;
    const u32* image = c_words + 128 * Blocks * 4;
    char* shared = shared_memory_of_warpgroups();
    for (u32 i = t; i < words; i += 128) reinterpret_cast<u32*>(shared)[i] = image[i];
    fence_async_proxy();
    sync_threads();
    float c[Blocks][4];
    if (accumulate) {
        for (int i = 0; i < Blocks * 4; ++i) c[i / 4][i % 4] = as_float(c_words[t * Blocks * 4 + i]);
    }
    u32 a[8][4];
    for (u32 i = 0; i < products * 4; ++i) a[i / 4][i % 4] = a_words[t * 4 * products + i];
    pin(c);
    pin(a);
    warpgroup_fence();
    for (u32 i = 0; i < products; ++i, places += 6) {
        const u64 b_matrix = matrix_descriptor(shared + places[3], places[4], places[5]);
        if constexpr (InRegisters) {
            multiply<TransposeB>(c, a[i], b_matrix, i > 0 || accumulate, T{});
        } else {
            const u64 a_matrix = matrix_descriptor(shared + places[0], places[1], places[2]);
            multiply<TransposeA, TransposeB>(c, a_matrix, b_matrix, i > 0 || accumulate, T{});
        }
    }
    warpgroup_commit();
    warpgroup_wait<0>();
    pin(c);
    for (int i = 0; i < Blocks * 4; ++i) params.out[t * Blocks * 4 + i] = as_bits(c[i / 4][i % 4]);
}

// `argument`: 1 accumulate, 2 A transposed, 4 B transposed, 8 A in registers.
template <int Blocks, class T>
DEVICE void multiply_form(const Params& params) {
    const bool accumulate = (params.argument & 1) != 0;
    switch (params.argument >> 1) {
        case 0: return multiply_all<Blocks, T, false, false, false>(params, accumulate);
        case 1: return multiply_all<Blocks, T, true, false, false>(params, accumulate);
        case 2: return multiply_all<Blocks, T, false, true, false>(params, accumulate);
        case 3: return multiply_all<Blocks, T, true, true, false>(params, accumulate);
        case 4: return multiply_all<Blocks, T, false, false, true>(params, accumulate);
        case 6: return multiply_all<Blocks, T, false, true, true>(params, accumulate);
    }
}

}  // namespace selftest

#define FORMS(columns)                                                                                                      \
    KERNEL(selftest_product_##columns##_f16, selftest::Params, 128, 1, 200 * 1024) {                                        \
        selftest::multiply_form<columns / 8, inducer::f16>(params);                                                         \
    }                                                                                                                       \
    KERNEL(selftest_product_##columns##_bf16, selftest::Params, 128, 1, 200 * 1024) {                                       \
        selftest::multiply_form<columns / 8, inducer::bf16>(params);                                                        \
    }

FORMS(16)
FORMS(32)
FORMS(64)
FORMS(128)
FORMS(256)
