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
    bool is_a = true;
    both->reserve(a->size() + b->size());
    auto x = a->begin(), y = b->begin();
    while (x != a->end() || y != b->end()) {
        if (y == b->end() || (x != a->end() && (*x)->block < (*y)->block)) {
            both->push_back(*x++);
        } else if (x == a->end() || (*y)->block < (*x)->block) {
            both->push_back(*y++);
            is_a = false;
        } else {
            both->push_back(join(*x, *y++));
            is_a &= both->back() == *x++;
        }
    }
    return is_a ? a : both;
}

KnowledgePtr join(LatestJoins& latest, const KnowledgePtr& a, const KnowledgePtr& b) {
    if (a == b || b == nullptr) return a;
    if (a == nullptr) return b;
    for (const LatestJoins::Join& each : latest.joins) {
        if (each.a == a && each.b == b) return each.both;
    }
    LatestJoins::Join& slot = latest.joins[latest.next++ % LatestJoins::kKept];
    slot = {a, b, join(a, b)};
    return slot.both;
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
// And what about the products of a warpgroup: those of its own are known to a warp that has waited for them.
uint32_t known_products(const Lane& lane, uint32_t warpgroup) {
    const uint32_t told = lane.block->clock.products[warpgroup];
    return lane.index / kWarpgroupLanes == warpgroup ? std::max(told, lane.warp->products.completed) : told;
}

bool acquired(const Lane& lane, Epoch epoch) {
    const Snapshot* snapshot = find(lane.clock.acquired, block_of(epoch));
    if (snapshot == nullptr) return false;
    const uint32_t who = who_of(epoch), time = time_of(epoch);
    const size_t threads = lane.launch->threads;
    if (who < kCopiesOf) return time <= snapshot->times[who];
    if (who < kWarpOf) return time <= snapshot->times[threads + who - kCopiesOf];
    if (who >= kProductsOf) return time <= snapshot->times[2 * threads + who - kProductsOf];
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
        } else if (who >= kProductsOf) {
            if (time <= known_products(lane, who - kProductsOf)) return true;
        } else {
            if (time <= lane.block->clock.floor) return true;
            if (who - kWarpOf == lane.warp->index && time <= lane.warp->clock.floor) return true;
        }
    }
    return acquired(lane, epoch);
}

namespace {

// The thread that did something, or one that did it with others.
uint32_t thread_of(uint32_t who) {
    if (who < kCopiesOf) return who;
    if (who < kWarpOf) return who - kCopiesOf;
    return who < kProductsOf ? (who - kWarpOf) * kWarpLanes : (who - kProductsOf) * kWarpgroupLanes;
}

// Of what `lane` knows of a thread of its block: whether a fence follows what the thread, or a copy of it, did.
bool fenced_before(const Lane& lane, Epoch epoch) {
    const uint32_t who = who_of(epoch), thread = thread_of(who);
    uint32_t known = known_time(lane, thread);
    if (const Snapshot* snapshot = find(lane.clock.acquired, block_of(epoch))) known = std::max(known, snapshot->times[thread]);
    const std::vector<ProxyFence>& fences = lane.block->lanes[thread].clock.fences;
    // Mostly the last one, or nearly.
    size_t at = fences.size();
    while (at != 0 && fences[at - 1].time > known) --at;
    if (at == 0) return false;
    return time_of(epoch) <= (who < kCopiesOf ? fences[at - 1].time : fences[at - 1].copies);
}

}  // namespace

Party::Party(const Warp* warps, uint32_t count) : first_thread(warps->index * kWarpLanes), threads(count * kWarpLanes) {
    for (uint32_t w = 0; w < count; ++w) {
        const Lane* lanes = warps[w].lanes;
        const uint32_t first_inside = inside_count;
        const Lane* last = nullptr;
        bool last_twice = false;
        for (uint32_t i = 0; i < kWarpLanes; ++i) {
            const Lane& lane = lanes[i];
            auto same = [&](const Lane* other) { return other->clock.acquired == lane.clock.acquired; };
            if (last != nullptr && last_twice && same(last)) continue;
            // Two of each sort: what one of them did itself, the other must have been told.
            uint32_t before = 0;
            for (uint32_t j = first_inside; j < inside_count; ++j) before += same(of_inside[j]);
            last = &lane;
            last_twice = before >= 1;
            if (before >= 2) continue;
            of_inside[inside_count++] = &lane;
            bool known = false;
            for (uint32_t j = 0; j < outside_count; ++j) known |= same(of_outside[j]);
            if (!known) of_outside[outside_count++] = &lane;
        }
    }
}

template <class Test>
bool Party::all(Epoch epoch, Test test) const {
    const bool inside = thread_of(who_of(epoch)) - first_thread < threads;
    const Lane* const* lanes = inside ? of_inside : of_outside;
    const uint32_t count = inside ? inside_count : outside_count;
    for (uint32_t i = 0; i < count; ++i) {
        if (!test(*lanes[i], epoch)) return false;
    }
    return true;
}

bool Party::know(Epoch epoch) const { return all(epoch, happened_before); }
bool Party::know_fenced(Epoch epoch) const { return all(epoch, fenced_before); }

void fence_proxy(Lane& lane) {
    lane.clock.fences.push_back({lane.clock.now, lane.copies.completed});
    // What it writes from now on does not lie before the fence.
    advance(lane, lane.clock.now + 1);
}

void order_block(Block& block) {
    uint32_t latest = 0;
    KnowledgePtr all;
    for (Lane& lane : block.lanes) {
        latest = std::max(latest, lane.clock.now);
        block.clock.copies[lane.index] = lane.copies.completed;
        all = join(all, lane.clock.acquired);
    }
    for (uint32_t i = 0; i < block.clock.products.size(); ++i) {
        uint32_t& products = block.clock.products[i];
        const Warp* warps = &block.warps[i * kWarpgroupLanes / kWarpLanes];
        for (uint32_t w = 0; w < kWarpgroupLanes / kWarpLanes; ++w) products = std::max(products, warps[w].products.completed);
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

namespace {

// Everything that `lane` knows.
KnowledgePtr knowledge_of(const Lane& lane) {
    auto mine = std::make_shared<Snapshot>();
    mine->block = lane.block->index;
    const uint32_t threads = lane.launch->threads;
    const auto warpgroups = static_cast<uint32_t>(lane.block->clock.products.size());
    mine->times.resize(2 * static_cast<size_t>(threads) + warpgroups);
    for (uint32_t i = 0; i < threads; ++i) {
        mine->times[i] = known_time(lane, i);
        mine->times[threads + i] = known_copies(lane, i);
    }
    for (uint32_t i = 0; i < warpgroups; ++i) mine->times[2 * threads + i] = known_products(lane, i);
    return join(std::make_shared<Knowledge>(1, std::move(mine)), lane.clock.acquired);
}

}  // namespace

void order_warps(const std::vector<Warp*>& warps) {
    KnowledgePtr all;
    for (Warp* warp : warps) {
        // Of the first lane's own time no more than of the others': what they do from now on comes later.
        Lane& first = warp->lanes[0];
        order_warp(*warp);
        --first.clock.now;
        all = join(all, knowledge_of(first));
        ++first.clock.now;
    }
    for (Warp* warp : warps) {
        for (uint32_t i = 0; i < kWarpLanes; ++i) acquire(warp->lanes[i], all);
    }
}

KnowledgePtr release(Lane& lane, const KnowledgePtr& before) {
    const KnowledgePtr all = knowledge_of(lane);
    // The other lanes' clocks too: what a warp does together is cheapest where they show the same.
    uint32_t latest = 0;
    for (uint32_t i = 0; i < kWarpLanes; ++i) latest = std::max(latest, lane.warp->lanes[i].clock.now);
    for (uint32_t i = 0; i < kWarpLanes; ++i) advance(lane.warp->lanes[i], latest + 1);
    return join(all, before);
}

void acquire(Lane& lane, const KnowledgePtr& released) {
    lane.clock.acquired = join(lane.launch->joins, lane.clock.acquired, released);
}

}  // namespace emulator
