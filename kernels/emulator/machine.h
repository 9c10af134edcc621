// What a launch is made of: blocks of warps of lanes. A lane is one CUDA thread.
#pragma once

#include <stdint.h>

#include <deque>
#include <memory>
#include <vector>

#include "clocks.h"
#include "copies.h"
#include "emulator.h"
#include "faults.h"
#include "fibers.h"
#include "hooks.h"
#include "phases.h"
#include "prelude.h"
#include "random.h"
#include "registers.h"
#include "runtime.h"
#include "shadow.h"
#include "sites.h"
#include "warpgroups.h"

namespace emulator {

struct Block;
struct Launch;
struct Warp;

enum class Policy : uint32_t { kRoundRobin = 0, kOneWarpAhead = 1, kReversed = 2, kRandom = 3 };
enum class CopyTiming : uint32_t { kEarly = 0, kLate = 1, kRandom = 2 };

enum class State : uint8_t {
    kRunnable,
    kAtCollective,  // waits for the other lanes of its warp
    kAtBarrier,     // waits for the other threads of its block
    kAtSomeBarrier, // for the other warps of a barrier with a number
    kAtPhase,       // for a phase of a barrier in shared memory
    kAtProduct,     // for the other warps of its warpgroup
    kAtRegisters,   // for other warps to give registers back
    kSpinning,      // looked, and waits until something has changed
    kExited,
};

constexpr uint32_t kWarpLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Lane {
    OwnMemory own = {0, UINTPTR_MAX};   // its stack, and nothing while registers are watched
    OwnMemory stack = {0, 0};
    std::vector<OwnMemory> touched;     // of its stack, since the last fence for products
    uintptr_t shared_low = 0;
    uintptr_t shared_bytes = 0;
    Launch* launch = nullptr;
    Block* block = nullptr;
    Warp* warp = nullptr;
    uint32_t index = 0;         // in the block
    uint32_t lane = 0;          // in the warp
    State state = State::kRunnable;
    Site site = {"(before the first instruction)", 0};  // the last collective, copy, wait or atomic
    void* argument = nullptr;   // of the collective that it waits at
    PhaseWait phase_wait = {nullptr, 0};
    LaneClock clock;
    Copies copies;
    const void* polled = nullptr;   // what it looked at last, if nothing came after, and how often in a row
    uint32_t polls = 0;
    Context context;
};

struct Warp {
    Block* block = nullptr;
    uint32_t index = 0;         // in the block
    uint32_t runnable = 0;      // lanes, one bit each, likewise below
    uint32_t at_collective = 0;
    uint32_t at_barrier = 0;
    uint32_t exited = 0;
    Site site = {nullptr, 0};   // of the collective that lanes wait at
    const char* collective = nullptr;
    WarpClock clock;
    WarpProducts products;
    WarpRegisters registers;
    Warpgroup* warpgroup = nullptr;     // if the block's warps are enough for one
    Lane* lanes = nullptr;      // 32 of them
};

// A barrier with a number.
struct SomeBarrier {
    uint32_t threads = 0;       // that it is for
    std::vector<Warp*> warps;   // that have come
};
constexpr uint32_t kSomeBarriers = 16;

struct Block {
    Launch* launch = nullptr;
    uint32_t index = 0;         // in the grid
    bool live = false;
    uint32_t alive = 0;         // threads that have not exited
    uint32_t arrived = 0;       // threads at the barrier
    bool any = false;           // of the values that they brought
    bool result = false;        // of the last barrier; the next one cannot end before all have read it
    Site site = {nullptr, 0};   // of the barrier
    const char* barrier = nullptr;
    SomeBarrier some_barriers[kSomeBarriers];
    std::vector<PhaseBarrier> phases;
    uint32_t free_registers = 0;    // of a thread each, for the threads of so many warps
    BlockClock clock;
    std::vector<Lane> lanes;    // none moves once it is there
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    SharedMemory shared;
};

struct Launch {
    const Kernel* kernel = nullptr;
    const EmulatorLaunch* request = nullptr;
    EmulatorOptions options = {};
    uint32_t threads = 0;
    std::deque<Block> blocks;   // those that are resident
    std::vector<Warp*> warps;   // of all resident blocks
    uint32_t next_block = 0;
    size_t current_warp = 0;
    Context main;               // the OS thread's own stack
    bool stopped = false;       // a fault after which nothing sensible can follow

    // How often something happened that a spinning thread may have waited for, now and when spinning threads were last woken.
    uint64_t progress = 1, progress_seen = 0;
    uint32_t spinning = 0;

    Random random;
    LatestJoins joins;
    Faults faults;
    Sites sites;
    GlobalMemory global;
    ReaderSets readers;
};

// The lane that runs on this OS thread, if one does.
extern __thread Lane* current __attribute__((tls_model("initial-exec")));

}  // namespace emulator
