// Barriers in shared memory that go from phase to phase (mbarrier).
#pragma once

#include <stdint.h>

#include <vector>

#include "clocks.h"

namespace emulator {

struct Block;
struct Lane;

struct PhaseBarrier {
    uintptr_t address;
    uint32_t arrivals;              // that complete a phase
    uint32_t pending;               // of these, still missing in the current phase
    uint32_t phase = 0;
    Epoch init;                     // who made it
    Epoch completion = 0;           // the arrival that completed the last phase
    KnowledgePtr arriving;          // what arrivals in this phase released
    KnowledgePtr completed;         // and those in the one before
    std::vector<Lane*> waiting;     // for the end of this phase
};

// "shared memory + 0x40, for parity 1", of a lane that waits.
struct PhaseWait {
    const void* barrier;
    uint32_t parity;
};

// The block is done: no phase is half full.
void check_phases(Block& block);

}  // namespace emulator
