// The instructions of arch/sm90.cuh and arch/wgmma.cuh, after the PTX ISA, for the host: as sm80.h.
#pragma once

#include "sm80.h"

namespace inducer {

#define SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

// The emulator aligns shared memory to 1024 bytes.
DEVICE char* shared_memory_of_warpgroups() { return emulator::shared_memory(); }

// ---- Barriers ----------------------------------------------------------------------------------------------------------

template <int Threads>
DEVICE void sync_some(int barrier, SITE) {
    emulator::sync_some(barrier, Threads, site);
}

struct alignas(8) MBarrier {
    u64 state;
};
DEVICE void mbarrier_init(MBarrier& barrier, int arrivals, SITE) { emulator::mbarrier_init(&barrier, arrivals, site); }
DEVICE void mbarrier_arrive(MBarrier& barrier, SITE) { emulator::mbarrier_arrive(&barrier, site); }
DEVICE void mbarrier_wait(const MBarrier& barrier, u32 parity, SITE) { emulator::mbarrier_wait(&barrier, parity, site); }
DEVICE void fence_async_proxy(SITE) { emulator::fence_async_proxy(site); }

// ---- Registers ---------------------------------------------------------------------------------------------------------

template <int Registers>
DEVICE void give_registers_back(SITE) {
    emulator::give_registers_back(Registers, site);
}
template <int Registers>
DEVICE void take_registers(SITE) {
    emulator::take_registers(Registers, site);
}

// ---- Products of warpgroups --------------------------------------------------------------------------------------------

DEVICE void warpgroup_fence(SITE) { emulator::warpgroup_fence(site); }
DEVICE void warpgroup_commit(SITE) { emulator::warpgroup_commit(site); }
template <int Pending>
DEVICE void warpgroup_wait(SITE) {
    emulator::warpgroup_wait(Pending, site);
}

// The host's compiler keeps such arrays in memory, whose addresses it hands on: it has to know before a fence already.
template <int Count>
DEVICE void pin(float (&x)[Count][4]) {
    asm volatile("" ::"r"(&x) : "memory");
}
template <int Count>
DEVICE void pin(u32 (&x)[Count][4]) {
    asm volatile("" ::"r"(&x) : "memory");
}

DEVICE u64 matrix_descriptor(const void* start, u32 leading, u32 stride) {
    const u64 address = shared_address(start);
    return (address & 0x3ffff) >> 4 | static_cast<u64>(leading >> 4) << 16 | static_cast<u64>(stride >> 4) << 32 | 1ull << 62;
}

template <int Blocks, class T>
DEVICE emulator::ProductForm product_form(bool transpose_a, bool transpose_b, T) {
    static_assert(Blocks == 2 || Blocks == 4 || Blocks == 8 || Blocks == 16 || Blocks == 32, "as in arch/wgmma.cuh");
    static_assert(sizeof(T) == 2, "f16 or bf16");
    return {Blocks * 8, is_f16<T>, transpose_a, transpose_b};
}
template <bool TransposeA, bool TransposeB, int Blocks, class T>
DEVICE void multiply(float (&c)[Blocks][4], u64 a_matrix, u64 b_matrix, bool accumulate, T type, SITE) {
    const emulator::ProductForm form = product_form<Blocks>(TransposeA, TransposeB, type);
    emulator::multiply_shared(&c[0][0], a_matrix, b_matrix, accumulate, form, site);
}
template <bool TransposeB, int Blocks, class T>
DEVICE void multiply(float (&c)[Blocks][4], u32 (&a)[4], u64 b_matrix, bool accumulate, T type, SITE) {
    emulator::multiply_registers(&c[0][0], a, b_matrix, accumulate, product_form<Blocks>(false, TransposeB, type), site);
}

#undef SITE

}  // namespace inducer
