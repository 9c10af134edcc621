// Registers that warpgroups hand over to each other: a block is launched with a number of them, which stays as it is.
#pragma once

#include <stdint.h>

#include <string>

#include "runtime.h"

namespace emulator {

struct Block;
struct Warp;

// Numbers are of a thread's, as the instructions have them.
struct WarpRegisters {
    uint32_t owned = 0;
    uint32_t wanted = 0;    // while it waits, else 0
    uint32_t calls = 0;
};

// A call that gave back or took registers, of a warpgroup's.
struct RegisterCall {
    Site site;
    const char* what;
    int registers;
};

// What each thread has at first. A launch does not say how many its kernel was compiled for: the most that so many threads can have.
uint32_t registers_at_launch(uint32_t threads);

// What a warp waits for, in words.
std::string describe_wanted(const Warp& warp);

// The block is done: what its warpgroups should have done alike, they have.
void check_register_calls(Block& block);

}  // namespace emulator
