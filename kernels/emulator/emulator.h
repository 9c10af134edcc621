// The emulator from outside: runs a kernel's own source on the host. src/emulator/mod.rs says the same in Rust.
#pragma once

#include <stdint.h>

extern "C" {

// Memory that a kernel may touch besides its shared memory, its parameters and its constants.
struct EmulatorRegion {
    void* address;
    uint64_t bytes;
    uint32_t writable;
    uint32_t initialised;   // 0: reading what was not written is a fault
};

struct EmulatorOptions {
    uint32_t policy;            // who runs next: emulator::Policy
    uint32_t copies;            // when asynchronous copies and products are done: emulator::CopyTiming
    uint64_t seed;              // of what is random; chooses the warp that is driven ahead
    uint32_t resident_blocks;   // blocks that run at the same time, at least 1
    uint32_t detector;          // 0: no faults but those of collectives, and much faster
    // The barrier, fence, wait, commit or release here does nothing. The file is compared from its end; null: all work.
    const char* disabled_file;
    int32_t disabled_line;
    int32_t padding;
};

struct EmulatorLaunch {
    const char* kernel;
    uint32_t grid, threads, shared_bytes, region_count;
    const void* params;
    uint64_t params_bytes;
    const EmulatorRegion* regions;
};

// Called once for each distinct fault: its name, and a text that says where.
typedef void (*EmulatorFault)(void* context, const char* name, const char* text);
// Called once for each barrier, fence, wait, commit or release that was reached, and could be disabled.
typedef void (*EmulatorSite)(void* context, const char* kind, const char* file, int32_t line);

// Runs a launch to its end, or to the first fault after which nothing sensible can follow. Returns how many faults there were.
uint64_t inducer_emulator_launch(const EmulatorLaunch* launch, const EmulatorOptions* options, void* context,
                                 EmulatorFault fault, EmulatorSite site);

// Called once for each kernel in the table.
typedef void (*EmulatorKernel)(void* context, const char* name, uint32_t threads, uint32_t shared_bytes, uint64_t params_bytes);
void inducer_emulator_kernels(void* context, EmulatorKernel kernel);
}
