// What sm80.h and sm90.h call. Kernels' sources are compiled with access hooks and the emulator's without, so nothing here may
// be an inline function: the linker would keep one copy of it for both sides.
#pragma once

#include <stdint.h>

namespace emulator {

// A place in a kernel's source.
struct Site {
    const char* file;
    int line;
};

// Four registers of a lane. Passed by value: the caller's arrays need no address then.
struct Floats4 {
    float x, y, z, w;
};
struct Words4 {
    uint32_t x, y, z, w;
};

// Which product of a warpgroup: c 64×columns, of operands of 16 bits.
struct ProductForm {
    uint32_t columns;
    bool is_f16, transpose_a, transpose_b;
};

// These are the same all along a thread's life, which `const` tells the compiler.
__attribute__((const)) uint32_t thread_index();
__attribute__((const)) uint32_t block_index();
__attribute__((const)) char* shared_memory();

void sync_threads(Site site);
bool sync_threads_or(bool value, Site site);
void sync_warp(Site site);

float shuffle_xor(float value, int mask, Site site);
float shuffle(float value, int lane, Site site);
bool warp_any(bool value, Site site);

void copy_async(void* shared, const void* global, bool valid, Site site);
void copy_commit(Site site);
void copy_wait(int pending, Site site);

Words4 load_matrices(const void* row, Site site);
Words4 load_matrices_transposed(const void* row, Site site);
Floats4 mma_f16(Floats4 c, Words4 a, uint32_t b0, uint32_t b1, Site site);
Floats4 mma_bf16(Floats4 c, Words4 a, uint32_t b0, uint32_t b1, Site site);

uint32_t pack_f16(float low, float high);
uint32_t pack_bf16(float low, float high);
float f16_to_float(uint16_t bits);
float exp2_flushed(float x);
float sqrt_flushed(float x);
float divide_flushed(float a, float b);

void add_unordered(float* address, float value, Site site);
void add_in_turn(float* address, float value, Site site);
int32_t fetch_add(int32_t* address, int32_t value, Site site);
int32_t load_acquire(const int32_t* address, Site site);
void add_release(int32_t* address, int32_t value, Site site);
void wait_a_little(Site site);

void sync_some(int barrier, int threads, Site site);
void mbarrier_init(void* barrier, int arrivals, Site site);
void mbarrier_arrive(void* barrier, Site site);
void mbarrier_wait(const void* barrier, uint32_t parity, Site site);
void fence_async_proxy(Site site);
void give_registers_back(int registers, Site site);
void take_registers(int registers, Site site);
void warpgroup_fence(Site site);
void warpgroup_commit(Site site);
void warpgroup_wait(int pending, Site site);
// These keep the addresses of c and a: products work on registers after the call.
void multiply_shared(float* c, uint64_t a, uint64_t b, bool accumulate, ProductForm form, Site site);
void multiply_registers(float* c, const uint32_t* a, uint64_t b, bool accumulate, ProductForm form, Site site);

}  // namespace emulator
