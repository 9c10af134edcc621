// Asynchronous copies of a lane: what it has started, grouped and waited for.
#pragma once

#include <stdint.h>

#include <vector>

namespace emulator {

struct Lane;

struct Copies {
    struct Pending {
        void* to;
        const void* from;   // null: zeros
        uint32_t group;
    };
    std::vector<Pending> pending;   // not yet done
    uint32_t committed = 0;         // groups; copies since belong to the next one
    uint32_t completed = 0;         // groups that were waited for

    void reset() {
        pending.clear();
        committed = completed = 0;
    }
};

// Does what is pending, when the lane exits.
void finish_copies(Lane& lane);

// Where copies are done at random times: does one of them, perhaps.
void maybe_finish_copies(Lane& lane);

}  // namespace emulator
