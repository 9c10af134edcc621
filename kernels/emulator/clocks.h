// Vector clocks (after FastTrack, Flanagan and Freund 2009): what each thread knows to have happened.
//
// A thread has a clock of its own, and so have its asynchronous copies, whose time is the number of their group. A barrier
// tells all threads everything about each other, and sets their clocks to the same time, so that one number per block, and
// one per warp for sync_warp, holds what barriers told. Only what came by release and acquire needs vectors.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

namespace emulator {

struct Block;
struct Lane;
struct Warp;

// Who did something and when, or 0: block in the upper half; in the lower half who (11 bits), and the time (20 bits). The
// lower half's top bit is free for sets of readers.
using Epoch = uint64_t;

constexpr uint32_t kTimeBits = 20;
constexpr uint32_t kLatest = (1u << kTimeBits) - 1;
constexpr uint32_t kSetTag = 0x80000000u;

// Who: threads of the block, the copies of each thread, warps as a whole (for reads that all lanes make at the same time).
constexpr uint32_t kCopiesOf = 992;
constexpr uint32_t kWarpOf = 2 * kCopiesOf;
constexpr uint32_t kMostThreads = kCopiesOf;
constexpr uint32_t kMostBlocks = 1u << 30;
static_assert(kWarpOf + kMostThreads / 32 <= 1u << (31 - kTimeBits), "who must fit");

constexpr uint32_t moment(uint32_t who, uint32_t time) { return who << kTimeBits | time; }
constexpr uint32_t who_of(Epoch epoch) { return static_cast<uint32_t>(epoch) >> kTimeBits; }
constexpr uint32_t time_of(Epoch epoch) { return static_cast<uint32_t>(epoch) & kLatest; }
constexpr uint32_t block_of(Epoch epoch) { return static_cast<uint32_t>(epoch >> 32); }

// What a thread knew of a block when it released.
struct Snapshot {
    uint32_t block;
    std::vector<uint32_t> times;    // of threads, then of their copies
};

// Snapshots of several blocks, in their order.
using Knowledge = std::vector<std::shared_ptr<const Snapshot>>;
using KnowledgePtr = std::shared_ptr<const Knowledge>;

struct LaneClock {
    uint32_t now = 1;
    KnowledgePtr acquired;
};

struct WarpClock {
    uint32_t floor = 0;             // lanes know each other's doings up to here
    uint32_t copies[32] = {};       // and each other's copies up to these groups
};

struct BlockClock {
    uint32_t floor = 0;             // the same for all threads of the block
    std::vector<uint32_t> copies;

    void reset(uint32_t threads) {
        floor = 0;
        copies.assign(threads, 0);
    }
};

// Whether `lane` knows that `epoch` has happened, and everything before it.
bool happened_before(const Lane& lane, Epoch epoch);

// A barrier of the block, or of the warp, has all its threads.
void order_block(Block& block);
void order_warp(Warp& warp);

// Everything that `lane` knows, and what it does from now on is not part of it.
KnowledgePtr release(Lane& lane, const KnowledgePtr& before);
void acquire(Lane& lane, const KnowledgePtr& released);

}  // namespace emulator
