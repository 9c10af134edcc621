// Number types and the words that CUDA C++ and the emulator's C++ say differently.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
// The entry of a kernel: its name, the struct it takes, threads of a block, blocks that a multiprocessor should hold, bytes of
// dynamic shared memory.
#define KERNEL(name, Params, threads, blocks, shared_bytes) \
    static_assert((shared_bytes) <= 227 * 1024, "no GPU gives a block more"); \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params params)
#else
#include "../emulator/prelude.h"
#endif

namespace inducer {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using i32 = int32_t;
using i64 = int64_t;
using u64 = uint64_t;

// 16-bit floats as storage; arithmetic is f32.
struct alignas(2) f16 {
    u16 bits;
};
struct alignas(2) bf16 {
    u16 bits;
};
using f32 = float;

template <class T>
constexpr bool is_f16 = false;
template <>
constexpr bool is_f16<f16> = true;

// Sixteen bytes, the unit in which tiles are copied.
struct alignas(16) u32x4 {
    u32 x, y, z, w;
};
struct alignas(16) f32x4 {
    float x, y, z, w;
};
struct alignas(8) f32x2 {
    float x, y;
};

}  // namespace inducer
