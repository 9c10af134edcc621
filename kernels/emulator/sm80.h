// The instructions of arch/sm80.cuh, after the PTX ISA, for the host: the same functions, and the place they are called from.
#pragma once

#include "../arch/types.cuh"
#include "runtime.h"

namespace inducer {

// The last parameter of everything that faults are reported from. Where a default argument stands is where the call is.
#define SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

// ---- Where a thread is -------------------------------------------------------------------------------------------------

DEVICE u32 thread_index() { return emulator::thread_index(); }
DEVICE u32 thread_index_anew() { return emulator::thread_index(); }
DEVICE u32 zero_anew() { return 0; }
DEVICE u32 block_x() { return emulator::block_index(); }
DEVICE u32 block_y() { return 0; }
DEVICE u32 block_z() { return 0; }
DEVICE char* shared_memory() { return emulator::shared_memory(); }
DEVICE u32 shared_address(const void* p) {
    return static_cast<u32>(static_cast<const char*>(p) - emulator::shared_memory());
}

// ---- Barriers ----------------------------------------------------------------------------------------------------------

DEVICE void sync_threads(SITE) { emulator::sync_threads(site); }
DEVICE bool sync_threads_or(bool value, SITE) { return emulator::sync_threads_or(value, site); }
DEVICE void sync_warp(SITE) { emulator::sync_warp(site); }

// ---- Bits of numbers ---------------------------------------------------------------------------------------------------

DEVICE float as_float(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
DEVICE u32 as_bits(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

// ---- Lanes of a warp ---------------------------------------------------------------------------------------------------

DEVICE float shuffle_xor(float value, int mask, SITE) { return emulator::shuffle_xor(value, mask, site); }
DEVICE u32 shuffle_xor(u32 value, int mask, SITE) { return as_bits(emulator::shuffle_xor(as_float(value), mask, site)); }
DEVICE float shuffle(float value, int lane, SITE) { return emulator::shuffle(value, lane, site); }
DEVICE bool warp_any(bool value, SITE) { return emulator::warp_any(value, site); }

// ---- Copies from global to shared memory -------------------------------------------------------------------------------

DEVICE void copy_async(void* shared, const void* global, bool valid, SITE) {
    emulator::copy_async(shared, global, valid, site);
}
DEVICE void copy_commit(SITE) { emulator::copy_commit(site); }
template <int Pending>
DEVICE void copy_wait(SITE) {
    emulator::copy_wait(Pending, site);
}

// ---- Matrix fragments --------------------------------------------------------------------------------------------------

DEVICE void load_matrices(u32 (&r)[4], const void* row, SITE) {
    emulator::Words4 v = emulator::load_matrices(row, site);
    r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row, SITE) {
    emulator::Words4 v = emulator::load_matrices_transposed(row, site);
    r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
}
DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, f16, SITE) {
    emulator::Floats4 v = emulator::mma_f16({c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, b0, b1, site);
    c[0] = v.x, c[1] = v.y, c[2] = v.z, c[3] = v.w;
}
DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16, SITE) {
    emulator::Floats4 v = emulator::mma_bf16({c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, b0, b1, site);
    c[0] = v.x, c[1] = v.y, c[2] = v.z, c[3] = v.w;
}

// ---- Conversions -------------------------------------------------------------------------------------------------------

DEVICE u32 pack(float low, float high, bf16) { return emulator::pack_bf16(low, high); }
DEVICE u32 pack(float low, float high, f16) { return emulator::pack_f16(low, high); }
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return as_float(static_cast<u32>(x.bits) << 16); }
DEVICE float to_float(f16 x) { return emulator::f16_to_float(x.bits); }

// ---- Arithmetic --------------------------------------------------------------------------------------------------------

DEVICE float exp2_fast(float x) { return emulator::exp2_flushed(x); }
DEVICE float log2_accurate(float x) { return ::log2f(x); }
DEVICE float exp_accurate(float x) { return ::expf(x); }
DEVICE float tanh_accurate(float x) { return ::tanhf(x); }
DEVICE float sqrt_accurate(float x) { return ::sqrtf(x); }
DEVICE float fused_multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
DEVICE float multiply(float a, float b) { return a * b; }
DEVICE float sqrt_fast(float x) { return emulator::sqrt_flushed(x); }
DEVICE float divide_fast(float a, float b) { return emulator::divide_flushed(a, b); }
DEVICE float infinity() { return as_float(0x7f800000u); }
DEVICE u32 multiply_high(u32 a, u32 b) { return static_cast<u32>((static_cast<u64>(a) * b) >> 32); }

// ---- Global memory shared by blocks ------------------------------------------------------------------------------------

DEVICE void add_unordered(float* address, float value, SITE) { emulator::add_unordered(address, value, site); }
DEVICE void add_in_turn(float* address, float value, SITE) { emulator::add_in_turn(address, value, site); }
DEVICE i32 fetch_add(i32* address, i32 value, SITE) { return emulator::fetch_add(address, value, site); }
DEVICE i32 load_acquire(const i32* address, SITE) { return emulator::load_acquire(address, site); }
DEVICE void add_release(i32* address, i32 value, SITE) { emulator::add_release(address, value, site); }
DEVICE void wait_a_little(SITE) { emulator::wait_a_little(site); }

#undef SITE

}  // namespace inducer
