// Instructions of sm_90a, one function each: barriers in shared memory, barriers of some of a block's threads, warpgroups. Section
// numbers are those of the PTX ISA 9.0. The products of warpgroups are in wgmma.cuh.
#pragma once

#include "sm80.cuh"

namespace inducer {

// The block's dynamic shared memory, aligned to 1024 bytes, after which a 128-byte swizzle repeats itself.
DEVICE char* shared_memory_of_warpgroups() {
    extern __shared__ __align__(1024) char memory_of_warpgroups[];
    return memory_of_warpgroups;
}

// ---- Barriers ----------------------------------------------------------------------------------------------------------

// bar.sync (9.7.13.1): like sync_threads, for `Threads` threads that name the same barrier, 1 to 15; whole warps.
template <int Threads>
DEVICE void sync_some(int barrier) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "n"(Threads) : "memory");
}

// A barrier in shared memory that some threads arrive at and others wait for (9.7.13.15). It goes from phase to phase, 0, 1, 2, …:
// a phase is complete when as many have arrived as `mbarrier_init` said.
struct alignas(8) MBarrier {
    u64 state;
};

// mbarrier.init: by one thread, before a barrier of the block.
DEVICE void mbarrier_init(MBarrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// mbarrier.arrive, with release semantics.
DEVICE void mbarrier_arrive(MBarrier& barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&barrier)) : "memory");
}

// mbarrier.try_wait.parity until it says so, with acquire semantics: the phase with this parity, the current one or the one before,
// is complete. A wait for parity 1 at a barrier that no phase of has been completed goes through.
DEVICE void mbarrier_wait(const MBarrier& barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(shared_address(&barrier)),
        "r"(parity)
        : "memory");
}

// fence.proxy.async (9.7.13.4): what this thread wrote to shared memory before can be seen by warpgroups' products that come after,
// in this thread or in one that a barrier orders behind it.
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// ---- Registers ---------------------------------------------------------------------------------------------------------

// setmaxnreg (9.7.19.6): a warpgroup gives registers back, or takes them once there are so many; multiples of 8, all its warps.
template <int Registers>
DEVICE void give_registers_back() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

// ---- Products of warpgroups --------------------------------------------------------------------------------------------

// wgmma.fence (9.7.15.7.1): registers that this warpgroup wrote before may be operands of the products that follow.
DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// wgmma.commit_group (9.7.15.7.2): the products since the last one are a group.
DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// wgmma.wait_group (9.7.15.7.3): all groups of this warpgroup but the last `Pending` are done.
template <int Pending>
DEVICE void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}

// No instruction: the compiler moves nothing that computes these registers, or computes with them, to the other side. Products work
// on registers behind its back, so it goes before warpgroup_fence for all that they take, and after warpgroup_wait for all that
// they give.
template <int Count>
DEVICE void pin(float (&x)[Count][4]) {
    UNROLL
    for (int i = 0; i < Count; ++i) {
        UNROLL
        for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(x[i][e])::"memory");
    }
}
template <int Count>
DEVICE void pin(u32 (&x)[Count][4]) {
    UNROLL
    for (int i = 0; i < Count; ++i) {
        UNROLL
        for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(x[i][e])::"memory");
    }
}

// A matrix in shared memory as products take it (9.7.15.5.1.2.2): atoms of 8 rows of 128 bytes, 1024 bytes each, where chunk c (16
// bytes) of row r lies at place c ^ r. With 64 elements of 16 bits in a row:
//   transposed = false   rows run along M or N, columns along K. `stride` bytes from 8 rows to the next 8; a product takes 16 columns,
//                        so the next ones begin 32 bytes further on, up to the end of the atom
//   transposed = true    rows run along K, columns along M or N. `stride` bytes from 8 rows to the next 8, of which a product takes
//                        two; `leading` bytes from 64 columns to the next 64
// `start` lies in the first 8 rows of an atom at a multiple of 1024, by a multiple of 32 if not transposed, 0 otherwise.
DEVICE u64 matrix_descriptor(const void* start, u32 leading, u32 stride) {
    const u64 address = shared_address(start);
    return (address & 0x3ffff) >> 4 | static_cast<u64>(leading >> 4) << 16 | static_cast<u64>(stride >> 4) << 32 | 1ull << 62;
}

}  // namespace inducer
