#include "clocks.h"

#include <algorithm>

#include "scheduler.h"

namespace emulator {

namespace {

const Snapshot* find(const KnowledgePtr& knowledge, uint32_t block) {
    if (knowledge == nullptr) return nullptr;
    auto before = [](const std::shared_ptr<const Snapshot>& s, uint32_t b) { return s->block < b; };
    auto at = std::lower_bound(knowledge->begin(), knowledge->end(), block, before);
    return at != knowledge->end() && (*at)->block == block ? at->get() : nullptr;
}

bool covers(const Snapshot& a, const Snapshot& b) {
    for (size_t i = 0; i < a.times.size(); ++i) {
        if (a.times[i] < b.times[i]) return false;
    }
    return true;
}

std::shared_ptr<const Snapshot> join(const std::shared_ptr<const Snapshot>& a, const std::shared_ptr<const Snapshot>& b) {
    if (a == b || covers(*a, *b)) return a;
    if (covers(*b, *a)) return b;
    auto both = std::make_shared<Snapshot>(*a);
    for (size_t i = 0; i < both->times.size(); ++i) both->times[i] = std::max(both->times[i], b->times[i]);
    return both;
}

KnowledgePtr join(const KnowledgePtr& a, const KnowledgePtr& b) {
    if (a == b || b == nullptr) return a;
    if (a == nullptr) return b;
    auto both = std::make_shared<Knowledge>();
    both->reserve(a->size() + b->size());
    auto x = a->begin(), y = b->begin();
    while (x != a->end() || y != b->end()) {
        if (y == b->end() || (x != a->end() && (*x)->block < (*y)->block)) {
            both->push_back(*x++);
        } else if (x == a->end() || (*y)->block < (*x)->block) {
            both->push_back(*y++);
        } else {
            both->push_back(join(*x++, *y++));
        }
    }
    return both;
}

// What barriers told `lane` about a thread of its block, and about its copies.
uint32_t known_time(const Lane& lane, uint32_t thread) {
    if (thread == lane.index) return lane.clock.now;
    const uint32_t floor = lane.block->clock.floor;
    return thread / 32 == lane.warp->index ? std::max(floor, lane.warp->clock.floor) : floor;
}
uint32_t known_copies(const Lane& lane, uint32_t thread) {
    if (thread == lane.index) return lane.copies.completed;
    const uint32_t told = lane.block->clock.copies[thread];
    return thread / 32 == lane.warp->index ? std::max(told, lane.warp->clock.copies[thread % 32]) : told;
}

bool acquired(const Lane& lane, Epoch epoch) {
    const Snapshot* snapshot = find(lane.clock.acquired, block_of(epoch));
    if (snapshot == nullptr) return false;
    const uint32_t who = who_of(epoch), time = time_of(epoch);
    const size_t threads = snapshot->times.size() / 2;
    if (who < kCopiesOf) return time <= snapshot->times[who];
    if (who < kWarpOf) return time <= snapshot->times[threads + who - kCopiesOf];
    for (uint32_t i = 0; i < 32; ++i) {
        if (time > snapshot->times[(who - kWarpOf) * 32 + i]) return false;
    }
    return true;
}

void advance(Lane& lane, uint32_t time) {
    lane.clock.now = time;
    if (time < kLatest) return;
    lane.launch->faults.add("launch too long", lane.site, "a thread's clock has run out: too many barriers");
    stop(*lane.launch);
}

}  // namespace

bool happened_before(const Lane& lane, Epoch epoch) {
    if (block_of(epoch) == lane.block->index) {
        const uint32_t who = who_of(epoch), time = time_of(epoch);
        if (who < kCopiesOf) {
            if (time <= known_time(lane, who)) return true;
        } else if (who < kWarpOf) {
            if (time <= known_copies(lane, who - kCopiesOf)) return true;
        } else {
            if (time <= lane.block->clock.floor) return true;
            if (who - kWarpOf == lane.warp->index && time <= lane.warp->clock.floor) return true;
        }
    }
    return acquired(lane, epoch);
}

void order_block(Block& block) {
    uint32_t latest = 0;
    KnowledgePtr all;
    for (Lane& lane : block.lanes) {
        latest = std::max(latest, lane.clock.now);
        block.clock.copies[lane.index] = lane.copies.completed;
        all = join(all, lane.clock.acquired);
    }
    block.clock.floor = latest;
    for (Lane& lane : block.lanes) {
        lane.clock.acquired = all;
        advance(lane, latest + 1);
    }
}

void order_warp(Warp& warp) {
    uint32_t latest = 0;
    KnowledgePtr all;
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        const Lane& lane = warp.lanes[i];
        latest = std::max(latest, lane.clock.now);
        warp.clock.copies[i] = lane.copies.completed;
        all = join(all, lane.clock.acquired);
    }
    warp.clock.floor = latest;
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        warp.lanes[i].clock.acquired = all;
        advance(warp.lanes[i], latest + 1);
    }
}

KnowledgePtr release(Lane& lane, const KnowledgePtr& before) {
    auto mine = std::make_shared<Snapshot>();
    mine->block = lane.block->index;
    const uint32_t threads = lane.launch->threads;
    mine->times.resize(2 * static_cast<size_t>(threads));
    for (uint32_t i = 0; i < threads; ++i) {
        mine->times[i] = known_time(lane, i);
        mine->times[threads + i] = known_copies(lane, i);
    }
    auto whole = std::make_shared<Knowledge>(1, std::move(mine));
    advance(lane, lane.clock.now + 1);
    return join(join(whole, lane.clock.acquired), before);
}

void acquire(Lane& lane, const KnowledgePtr& released) { lane.clock.acquired = join(lane.clock.acquired, released); }

}  // namespace emulator
