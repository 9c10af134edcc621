// The words of arch/types.cuh for the host's compiler.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

// Inlined like __forceinline__: arrays that are handed on by reference then stay where no hook needs to look at them.
#define DEVICE inline __attribute__((always_inline))
#define UNROLL
#define NO_UNROLL

namespace emulator {

// One line of the table of kernels.
struct Kernel {
    const char* name;
    uint32_t threads;
    uint32_t shared_bytes;
    size_t params_bytes;
    void (*body)(const void* params);
    Kernel* next;
};

// Puts a kernel into the table before main begins.
struct Registrar {
    Kernel kernel;
    Registrar(const char* name, uint32_t threads, uint32_t shared_bytes, size_t params_bytes, void (*body)(const void*));
};

}  // namespace emulator

#define KERNEL(name, Params, threads, blocks, shared_bytes)                                                                 \
    static_assert((shared_bytes) <= 227 * 1024, "no GPU gives a block more");                                               \
    static void name(const Params& params);                                                                                 \
    static const emulator::Registrar name##_registrar(#name, threads, shared_bytes, sizeof(Params), [](const void* params) {\
        name(*static_cast<const Params*>(params));                                                                          \
    });                                                                                                                     \
    static void name(const Params& params)
