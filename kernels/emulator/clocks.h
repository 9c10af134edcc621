// Vector clocks (after FastTrack, Flanagan and Freund 2009): what each thread knows to have happened.
//
// A thread has a clock of its own, and so have its asynchronous copies and the products of each warpgroup, whose time is the
// number of their group. A barrier tells all threads everything about each other, and sets their clocks to the same time: one
// number per block, and one per warp for sync_warp, holds what barriers told. Only what came by release and acquire, and by
// barriers of some of a block's threads, needs vectors.
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

// Who: threads of the block, the copies of each thread, warps as a whole (for reads that all lanes make at the same time), the
// products of each warpgroup. Where a barrier lies in shared memory stands who nobody is.
constexpr uint32_t kWarpgroupLanes = 128;
constexpr uint32_t kCopiesOf = 992;
constexpr uint32_t kWarpOf = 2 * kCopiesOf;
constexpr uint32_t kProductsOf = kWarpOf + kCopiesOf / 32;
constexpr uint32_t kNobody = (1u << (31 - kTimeBits)) - 1;
constexpr uint32_t kMostThreads = kCopiesOf;
constexpr uint32_t kMostBlocks = 1u << 30;
static_assert(kProductsOf + kMostThreads / kWarpgroupLanes < kNobody, "who must fit");

constexpr uint32_t moment(uint32_t who, uint32_t time) { return who << kTimeBits | time; }
constexpr uint32_t who_of(Epoch epoch) { return static_cast<uint32_t>(epoch) >> kTimeBits; }
constexpr uint32_t time_of(Epoch epoch) { return static_cast<uint32_t>(epoch) & kLatest; }
constexpr uint32_t block_of(Epoch epoch) { return static_cast<uint32_t>(epoch >> 32); }

// What a thread knew of a block when it released.
struct Snapshot {
    uint32_t block;
    std::vector<uint32_t> times;    // of threads, then of their copies, then of warpgroups' products
};

// Snapshots of several blocks, in their order.
using Knowledge = std::vector<std::shared_ptr<const Snapshot>>;
using KnowledgePtr = std::shared_ptr<const Knowledge>;

// A thread's fence for the asynchronous proxy: what it wrote before, and its copies that were complete.
struct ProxyFence {
    uint32_t time, copies;
};

struct LaneClock {
    uint32_t now = 1;
    KnowledgePtr acquired;
    std::vector<ProxyFence> fences;     // in their order

    void reset() {
        now = 1;
        acquired = nullptr;
        fences.clear();
    }
};

struct WarpClock {
    uint32_t floor = 0;             // lanes know each other's doings up to here
    uint32_t copies[32] = {};       // and each other's copies up to these groups
};

struct BlockClock {
    uint32_t floor = 0;             // the same for all threads of the block
    std::vector<uint32_t> copies;
    std::vector<uint32_t> products;     // of warpgroups

    void reset(uint32_t threads) {
        floor = 0;
        copies.assign(threads, 0);
        products.assign(threads / kWarpgroupLanes, 0);
    }
};

// What was joined lately: lanes of a warp learn the same, one after the other.
struct LatestJoins {
    static constexpr uint32_t kKept = 8;
    struct Join {
        KnowledgePtr a, b, both;
    };
    Join joins[kKept];
    uint32_t next = 0;
};

// Whether `lane` knows that `epoch` has happened, and everything before it.
bool happened_before(const Lane& lane, Epoch epoch);

// Warps that do something together. They know what each of their lanes knows.
class Party {
  public:
    Party(const Warp* warps, uint32_t count);

    bool know(Epoch epoch) const;

    // Whether what happened is, besides, known to lie before a fence for the asynchronous proxy of the thread that did it.
    bool know_fenced(Epoch epoch) const;

  private:
    template <class Test>
    bool all(Epoch epoch, Test test) const;

    // Lanes that learnt the same by acquiring it know the same of threads outside; of the same warp, also of others within.
    uint32_t first_thread, threads;
    const Lane* of_outside[kWarpgroupLanes];
    const Lane* of_inside[kWarpgroupLanes];
    uint32_t outside_count = 0, inside_count = 0;
};

// A barrier of the block, or of the warp, or of some warps, has all its threads.
void order_block(Block& block);
void order_warp(Warp& warp);
void order_warps(const std::vector<Warp*>& warps);

// A fence for the asynchronous proxy.
void fence_proxy(Lane& lane);

// Everything that `lane` knows, and what it does from now on is not part of it.
KnowledgePtr release(Lane& lane, const KnowledgePtr& before);
void acquire(Lane& lane, const KnowledgePtr& released);

}  // namespace emulator
