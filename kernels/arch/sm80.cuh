// Instructions of sm_80 and newer, one function each. Section numbers are those of the PTX ISA 9.0.
#pragma once

#include "types.cuh"

namespace inducer {

// ---- Where a thread is -------------------------------------------------------------------------------------------------

DEVICE u32 thread_index() { return threadIdx.x; }
// The same, read anew: what is computed from it is not kept in registers from where it was computed before.
DEVICE u32 thread_index_anew() {
    u32 x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}
// 0, which the compiler does not know: what an address is added to it for is not kept in registers either.
DEVICE u32 zero_anew() {
    u32 x;
    asm volatile("mov.u32 %0, 0;" : "=r"(x));
    return x;
}
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }

// The block's dynamic shared memory, aligned to 128 bytes.
DEVICE char* shared_memory() {
    extern __shared__ __align__(128) char memory[];
    return memory;
}

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// ---- Barriers ----------------------------------------------------------------------------------------------------------

// bar.sync 0: all threads of the block arrive, and see what the others wrote before.
DEVICE void sync_threads() { __syncthreads(); }

// bar.red.or: the same, and whether `value` is true in any thread. The compiler does not know that all threads get the same
// answer; after a vote it does, and need not expect a warp to be split up.
DEVICE bool sync_threads_or(bool value) { return __any_sync(0xffffffffu, __syncthreads_or(value)) != 0; }

// bar.warp.sync: the same within a warp.
DEVICE void sync_warp() { __syncwarp(); }

// ---- Lanes of a warp ---------------------------------------------------------------------------------------------------

// shfl.sync.bfly and shfl.sync.idx over the whole warp. They exchange registers and order no memory.
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// vote.sync.any over the whole warp.
DEVICE bool warp_any(bool value) { return __any_sync(0xffffffffu, value) != 0; }

// ---- Copies from global to shared memory -------------------------------------------------------------------------------

// cp.async.cg of 16 bytes (9.7.9.25): both addresses are multiples of 16. A source size of 16 copies all; of 0, where `valid` is
// false, reads nothing and writes zeros. Done once the thread has waited for the group; other threads need a barrier after that.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// cp.async.commit_group: the copies since the last one are a group.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// cp.async.wait_group: all groups of this thread but the last `Pending` are done.
template <int Pending>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// ---- Matrix fragments --------------------------------------------------------------------------------------------------

// ldmatrix.m8n8.x4.b16 (9.7.14.5.15): four 8×8 matrices of 16-bit elements. Lanes 8i to 8i + 7 give the addresses of the rows
// of matrix i (16 bytes each, at multiples of 16). Lane l receives of matrix i, in register i, elements 2(l % 4) and
// 2(l % 4) + 1 of row l / 4; transposed, of column l / 4.
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// mma.m16n8k16 with f32 accumulation (9.7.14.5.8): c += a·b. With g = lane / 4 and t = lane % 4:
//   a[0..4]  rows g, g + 8, g, g + 8;  columns 2t, 2t, 2t + 8, 2t + 8  and the next one
//   b0, b1   rows 2t, 2t + 8 and the next one;  column g
//   c[0..4]  rows g, g, g + 8, g + 8;  columns 2t, 2t + 1, 2t, 2t + 1
DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Conversions -------------------------------------------------------------------------------------------------------

// cvt.rn.bf16x2.f32 and cvt.rn.f16x2.f32 (9.7.9.21): two numbers rounded to nearest even, the first in the low half.
DEVICE u32 pack(float low, float high, bf16) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
DEVICE u32 pack(float low, float high, f16) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
DEVICE float to_float(f16 x) {
    float r;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(r) : "h"(x.bits));
    return r;
}

// ---- Arithmetic --------------------------------------------------------------------------------------------------------

// ex2.approx.ftz.f32 (9.7.3.21): 2^x within 2 units in the last place; 2^-inf = 0, results under 2^-126 are 0.
DEVICE float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(x));
    return r;
}

// div.approx.ftz.f32 (9.7.3.8): a / b within 2 units in the last place; 0 for b over 2^126 and a that is finite.
DEVICE float divide_fast(float a, float b) {
    float r;
    asm("div.approx.ftz.f32 %0, %1, %2;\n" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// sqrt.approx.ftz.f32 (9.7.3.15): the square root, its relative error at most 2^-23; of numbers under 2^-126 it is 0. No call behind it.
DEVICE float sqrt_fast(float x) {
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(x));
    return r;
}

// Library functions within 1 to 2 units in the last place.
DEVICE float log2_accurate(float x) { return ::log2f(x); }
DEVICE float exp_accurate(float x) { return ::expf(x); }
DEVICE float tanh_accurate(float x) { return ::tanhf(x); }
DEVICE float sqrt_accurate(float x) { return ::sqrtf(x); }

// One rounding, and two: the compiler neither splits the first nor fuses the second with an addition.
DEVICE float fused_multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float x) { return __float_as_uint(x); }
DEVICE float infinity() { return as_float(0x7f800000u); }
DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }

// ---- Global memory shared by blocks ------------------------------------------------------------------------------------

// red.relaxed.gpu.add.f32: adds without an order. Subnormal numbers and results become 0.
DEVICE void add_unordered(float* address, float value) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;\n" ::"l"(address), "f"(value) : "memory");
}

// The same where what orders the additions to a place, and with it the sum, is something else: the emulator sees to it.
DEVICE void add_in_turn(float* address, float value) { add_unordered(address, value); }

// atom.relaxed.gpu.add.s32: adds and returns what was there.
DEVICE i32 fetch_add(i32* address, i32 value) {
    i32 old;
    asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], %2;\n" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
}

// ld.acquire.gpu: what the thread that released the value wrote before is seen after.
DEVICE i32 load_acquire(const i32* address) {
    i32 value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(value) : "l"(address) : "memory");
    return value;
}

// red.release.gpu.add.s32: the counterpart. With a barrier before it, it covers what the whole block wrote.
DEVICE void add_release(i32* address, i32 value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(address), "r"(value) : "memory");
}

// What a waiting loop does between two looks.
DEVICE void wait_a_little() { __nanosleep(20); }

}  // namespace inducer
