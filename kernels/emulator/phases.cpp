// Barriers in shared memory. What they hold is kept here; a kernel that reads or writes their memory is at fault.
#include "phases.h"

#include <algorithm>

#include "describe.h"
#include "scheduler.h"

namespace emulator {

namespace {

constexpr size_t kBytes = 8;
constexpr uint32_t kMostArrivals = (1u << 20) - 1;
constexpr const char* kNotInitialised = "mbarrier not initialised";
constexpr const char* kInitialisedTwice = "mbarrier initialised twice";
constexpr const char* kWrongCount = "mbarrier with a wrong count";
constexpr const char* kBeyondCount = "mbarrier arrival beyond its phase's count";
constexpr const char* kLeftIncomplete = "mbarrier left within a phase";

Lane& begin(Site site) {
    Lane& lane = *current;
    lane.site = site;
    lane.polled = nullptr;
    maybe_finish_copies(lane);
    maybe_finish_products(lane);
    // What others do in between shows only where they get the chance.
    maybe_preempt(lane);
    return lane;
}

PhaseBarrier* find(Block& block, const void* address) {
    for (PhaseBarrier& each : block.phases) {
        if (each.address == reinterpret_cast<uintptr_t>(address)) return &each;
    }
    return nullptr;
}

void note(Lane& lane, const char* name, const void* barrier, const std::string& text) {
    Faults& faults = lane.launch->faults;
    if (faults.repeated(name, lane.site)) return;
    const std::string where = print(" at %s:%d", lane.site.file, lane.site.line);
    faults.add(name, lane.site, place(lane, barrier) + ": " + describe(lane) + where + text);
}

// The barrier that `lane` uses.
PhaseBarrier& used(Lane& lane, const void* address) {
    PhaseBarrier* barrier = find(*lane.block, address);
    if (barrier == nullptr) {
        note(lane, kNotInitialised, address, "");
        stop(*lane.launch);
    }
    if (lane.launch->options.detector != 0 && !happened_before(lane, barrier->init)) {
        report({lane, address, kBytes, kItself}, fault::kReadAfterWrite, address, barrier->init);
    }
    return *barrier;
}

}  // namespace

// Disabled, it leaves no barrier behind.
void mbarrier_init(void* address, int arrivals, Site site) {
    Lane& lane = begin(site);
    if (!lane.launch->sites.enabled("mbarrier_init", site)) return;
    const auto count = static_cast<uint32_t>(arrivals);
    if (count < 1 || count > kMostArrivals) {
        note(lane, kWrongCount, address, print(", for %d arrivals", arrivals));
        stop(*lane.launch);
    }
    if (find(*lane.block, address) != nullptr) {
        note(lane, kInitialisedTwice, address, "");
        stop(*lane.launch);
    }
    look_at_barrier(lane, address, kBytes);
    PhaseBarrier barrier = {};
    barrier.address = reinterpret_cast<uintptr_t>(address);
    barrier.arrivals = barrier.pending = count;
    barrier.init = static_cast<Epoch>(lane.block->index) << 32 | moment(lane.index, lane.clock.now);
    lane.block->phases.push_back(std::move(barrier));
}

// Disabled, it still counts, without which nobody would go on, and releases nothing.
void mbarrier_arrive(void* address, Site site) {
    Lane& lane = begin(site);
    const bool orders = lane.launch->sites.enabled("mbarrier_arrive", site);
    PhaseBarrier& barrier = used(lane, address);
    // Who arrives in a phase knows that the one before is complete, or means that one, which has all its arrivals.
    if (lane.launch->options.detector != 0 && barrier.completion != 0 && !happened_before(lane, barrier.completion)) {
        note(lane, kBeyondCount, address,
             print(", in phase %u, does not know that %u arrivals completed the one before", barrier.phase, barrier.arrivals));
    }
    const Epoch now = static_cast<Epoch>(lane.block->index) << 32 | moment(lane.index, lane.clock.now);
    if (orders && lane.launch->options.detector != 0) barrier.arriving = release(lane, barrier.arriving);
    if (--barrier.pending != 0) return;
    barrier.pending = barrier.arrivals;
    barrier.completion = now;
    ++barrier.phase;
    barrier.completed = std::move(barrier.arriving);
    barrier.arriving = nullptr;
    for (Lane* each : barrier.waiting) {
        acquire(*each, barrier.completed);
        wake(*each->warp, 1u << each->lane);
    }
    barrier.waiting.clear();
    maybe_preempt(lane);
}

// Disabled, it neither waits nor acquires.
void mbarrier_wait(const void* address, uint32_t parity, Site site) {
    Lane& lane = begin(site);
    if (!lane.launch->sites.enabled("mbarrier_wait", site)) return;
    PhaseBarrier& barrier = used(lane, address);
    if (barrier.phase % 2 != parity % 2) {
        acquire(lane, barrier.completed);
        return;
    }
    barrier.waiting.push_back(&lane);
    lane.phase_wait = {address, parity};
    wait(lane, State::kAtPhase);
}

void check_phases(Block& block) {
    Launch& launch = *block.launch;
    for (const PhaseBarrier& each : block.phases) {
        if (each.pending == each.arrivals) continue;
        const std::string text = print(" in block %u: %u of %u arrivals of phase %u are missing at the end", block.index,
                                       each.pending, each.arrivals, each.phase);
        launch.faults.add(kLeftIncomplete, {"", 0}, place(block.lanes[0], reinterpret_cast<void*>(each.address)) + text);
    }
}

}  // namespace emulator
