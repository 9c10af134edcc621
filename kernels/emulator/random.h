// Small seeded random numbers (splitmix64).
#pragma once

#include <stdint.h>

namespace emulator {

struct Random {
    uint64_t state = 0;

    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    // A number below `end`.
    uint32_t below(uint32_t end) { return static_cast<uint32_t>(((next() >> 32) * end) >> 32); }
    bool one_in(uint32_t n) { return below(n) == 0; }
};

}  // namespace emulator
