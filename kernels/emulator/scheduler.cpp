#include "scheduler.h"

#include <string.h>

#include "describe.h"

namespace emulator {

namespace {

// What hooks compare with, of the running lane.
void enter(Lane* lane) {
    current = lane;
    own = lane == nullptr ? OwnMemory{0, UINTPTR_MAX} : lane->own;
}

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }
uint32_t highest(uint32_t mask) { return 31 - static_cast<uint32_t>(__builtin_clz(mask)); }

// The warp after `from`, itself last, that has a lane to run.
bool next_warp(Launch& launch, size_t from) {
    const size_t count = launch.warps.size();
    for (size_t i = 1; i <= count; ++i) {
        const size_t at = (from + i) % count;
        if (launch.warps[at]->runnable != 0) {
            launch.current_warp = at;
            return true;
        }
    }
    return false;
}

bool pick_warp(Launch& launch) {
    const size_t count = launch.warps.size();
    const bool can_stay = launch.warps[launch.current_warp]->runnable != 0;
    switch (static_cast<Policy>(launch.options.policy)) {
        case Policy::kOneWarpAhead: {
            const size_t ahead = launch.options.seed % count;
            if (launch.warps[ahead]->runnable != 0) {
                launch.current_warp = ahead;
                return true;
            }
            return can_stay || next_warp(launch, launch.current_warp);
        }
        case Policy::kReversed:
            for (size_t at = count; at-- > 0;) {
                if (launch.warps[at]->runnable != 0) {
                    launch.current_warp = at;
                    return true;
                }
            }
            return false;
        case Policy::kRandom:
            if (can_stay && !launch.random.one_in(4)) return true;
            return next_warp(launch, launch.random.below(static_cast<uint32_t>(count)));
        case Policy::kRoundRobin:
            break;
    }
    return can_stay || next_warp(launch, launch.current_warp);
}

Lane& pick_lane(Launch& launch) {
    Warp& warp = *launch.warps[launch.current_warp];
    const uint32_t mask = warp.runnable;
    switch (static_cast<Policy>(launch.options.policy)) {
        case Policy::kReversed:
            return warp.lanes[highest(mask)];
        case Policy::kRandom: {
            const uint32_t from = launch.random.below(kWarpLanes);
            const uint32_t later = mask & (kAllLanes << from);
            return warp.lanes[lowest(later != 0 ? later : mask)];
        }
        default:
            return warp.lanes[lowest(mask)];
    }
}

// The common case: the lanes of a warp one after the other, up to where they wait.
bool stays_with_warp(const Launch& launch) {
    if (launch.stopped || launch.warps[launch.current_warp]->runnable == 0) return false;
    const auto policy = static_cast<Policy>(launch.options.policy);
    return policy == Policy::kRoundRobin ||
           (policy == Policy::kOneWarpAhead && launch.current_warp == launch.options.seed % launch.warps.size());
}

// Spinning threads look again.
void wake_spinning(Launch& launch) {
    launch.progress_seen = launch.progress;
    launch.spinning = 0;
    for (Warp* warp : launch.warps) {
        for (uint32_t i = 0; i < kWarpLanes; ++i) {
            if (warp->lanes[i].state == State::kSpinning) wake(*warp, 1u << i);
        }
    }
}

// The lane to run, or null where none can.
Lane* pick(Launch& launch) {
    if (stays_with_warp(launch)) return &pick_lane(launch);
    if (launch.stopped) return nullptr;
    const bool random = static_cast<Policy>(launch.options.policy) == Policy::kRandom;
    if (random && launch.spinning != 0 && launch.progress != launch.progress_seen && launch.random.one_in(16)) {
        wake_spinning(launch);
    }
    if (pick_warp(launch)) return &pick_lane(launch);
    // Everybody waits. Threads that spin look once more if anything happened since they last did.
    if (launch.spinning == 0 || launch.progress == launch.progress_seen) return nullptr;
    wake_spinning(launch);
    return pick_warp(launch) ? &pick_lane(launch) : nullptr;
}

void leave(Lane& lane) {
    Launch& launch = *lane.launch;
    Lane* next = pick(launch);
    if (next == &lane) return;
    enter(next);
    switch_context(lane.context, next == nullptr ? launch.main : next->context);
}

[[noreturn]] void exit_lane(Lane& lane) {
    Block& block = *lane.block;
    Warp& warp = *lane.warp;
    finish_copies(lane);
    if (warp.at_collective != 0) diverged(lane, "exit", lane.site, warp.collective, warp.site);
    if (block.arrived != 0) diverged(lane, "exit", lane.site, block.barrier, block.site);
    if (warp.warpgroup != nullptr && warp.warpgroup->arrived != 0) {
        diverged(lane, "exit", lane.site, "a product", warp.warpgroup->site);
    }
    lane.state = State::kExited;
    warp.exited |= 1u << lane.lane;
    warp.runnable &= ~(1u << lane.lane);
    --block.alive;
    note_progress(*lane.launch);
    // A finished block is replaced from outside: not while its last stack is in use.
    if (block.alive == 0) {
        enter(nullptr);
        switch_context(lane.context, lane.launch->main);
    }
    leave(lane);
    __builtin_unreachable();
}

void begin_lane() {
    Lane& lane = *current;
    lane.launch->kernel->body(lane.launch->request->params);
    exit_lane(lane);
}

void start_block(Launch& launch, Block& block, Stacks& stacks, size_t first_stack) {
    block.index = launch.next_block++;
    block.live = true;
    block.alive = launch.threads;
    block.arrived = 0;
    block.any = false;
    for (SomeBarrier& barrier : block.some_barriers) barrier.warps.clear();
    block.phases.clear();
    block.free_registers = 0;
    for (Warpgroup& warpgroup : block.warpgroups) warpgroup.reset();
    block.clock.reset(launch.threads);
    block.shared.reset(launch.request->shared_bytes, launch.options.detector != 0);
    for (Warp& warp : block.warps) {
        warp.runnable = kAllLanes;
        warp.at_collective = warp.at_barrier = warp.exited = 0;
        warp.clock = {};
        warp.products = {};
        warp.registers = {registers_at_launch(launch.threads), 0, 0};
    }
    for (Lane& lane : block.lanes) {
        char* stack = stacks.at(first_stack + lane.index);
        lane.stack = {reinterpret_cast<uintptr_t>(stack), kStackBytes};
        if (launch.options.detector != 0) lane.own = lane.stack;
        lane.shared_low = reinterpret_cast<uintptr_t>(block.shared.base);
        lane.shared_bytes = launch.request->shared_bytes;
        lane.state = State::kRunnable;
        lane.site = {"(before the first instruction)", 0};
        lane.clock.reset();
        lane.copies.reset();
        lane.polled = nullptr;
        prepare(lane.context, stack, begin_lane);
    }
    note_progress(launch);
}

std::string state_of(const Lane& lane) {
    switch (lane.state) {
        case State::kAtCollective:
            return "at a collective of the warp";
        case State::kAtBarrier:
            return "at a barrier of the block";
        case State::kAtSomeBarrier:
            return "at a barrier of some warps";
        case State::kAtPhase:
            return "at the barrier in " + place(lane, lane.phase_wait.barrier) +
                   print(", for parity %u", lane.phase_wait.parity);
        case State::kAtProduct:
            return "at a product of the warpgroup";
        case State::kAtRegisters:
            return describe_wanted(*lane.warp);
        default:
            return "in a loop that waits";
    }
}

// Who waits for what, lanes of a warp that wait at the same place together.
std::string waiting(Launch& launch) {
    std::string text;
    for (Warp* warp : launch.warps) {
        if (!warp->block->live) continue;
        uint32_t left = ~warp->exited;
        while (left != 0) {
            const Lane& first = warp->lanes[lowest(left)];
            uint32_t same = 0;
            for (uint32_t i = 0; i < kWarpLanes; ++i) {
                const Lane& lane = warp->lanes[i];
                const bool alike = lane.state == first.state && lane.phase_wait.barrier == first.phase_wait.barrier;
                if ((left >> i & 1) != 0 && alike && same_site(lane.site, first.site)) same |= 1u << i;
            }
            left &= ~same;
            text += print("\n    block %u, warp %u, lanes %08x: %s, %s:%d", warp->block->index, warp->index, same,
                          state_of(first).c_str(), first.site.file, first.site.line);
        }
    }
    return text;
}

}  // namespace

void run(Launch& launch) {
    static thread_local Stacks stacks;
    const size_t first = static_cast<size_t>(launch.threads);
    for (size_t i = 0; i < launch.blocks.size(); ++i) start_block(launch, launch.blocks[i], stacks, i * first);
    for (;;) {
        Lane* lane = pick(launch);
        if (lane == nullptr) break;
        enter(lane);
        switch_context(launch.main, lane->context);
        for (size_t i = 0; i < launch.blocks.size() && !launch.stopped; ++i) {
            Block& block = launch.blocks[i];
            if (!block.live || block.alive != 0) continue;
            block.live = false;
            check_phases(block);
            check_register_calls(block);
            if (launch.next_block < launch.request->grid) start_block(launch, block, stacks, i * first);
        }
    }
    bool alive = false;
    for (Block& block : launch.blocks) alive |= block.live;
    if (alive && !launch.stopped) {
        launch.faults.add("deadlock", {"", 0}, "nothing can go on; waiting are" + waiting(launch));
    }
}

void wait(Lane& lane, State state) {
    lane.state = state;
    lane.warp->runnable &= ~(1u << lane.lane);
    if (state == State::kSpinning) ++lane.launch->spinning;
    leave(lane);
}

void wake(Warp& warp, uint32_t lanes) {
    for (uint32_t left = lanes; left != 0; left &= left - 1) warp.lanes[lowest(left)].state = State::kRunnable;
    warp.runnable |= lanes;
}

void maybe_preempt(Lane& lane) {
    Launch& launch = *lane.launch;
    if (static_cast<Policy>(launch.options.policy) == Policy::kRandom && launch.random.one_in(2)) leave(lane);
}

void stop(Launch& launch) {
    Lane& lane = *current;
    launch.stopped = true;
    enter(nullptr);
    switch_context(lane.context, launch.main);
    __builtin_unreachable();
}

void refuse(Lane& lane, const char* name, const std::string& text) {
    lane.launch->faults.add(name, lane.site,
                            print("%s at %s:%d%s", describe(lane).c_str(), lane.site.file, lane.site.line, text.c_str()));
    stop(*lane.launch);
}

void diverged(Lane& lane, const char* what, Site site, const char* others, Site others_site) {
    const bool of_warpgroup = strcmp(what, "a product") == 0 || strcmp(others, "a product") == 0;
    const char* whose = strcmp(others, "barrier") == 0 ? "block" : of_warpgroup ? "warpgroup" : "warp";
    lane.launch->faults.add("divergent lanes at collective", site,
                            print("%s comes to %s at %s:%d, others of its %s to %s at %s:%d", describe(lane).c_str(), what,
                                  site.file, site.line, whose, others, others_site.file, others_site.line));
    stop(*lane.launch);
}

}  // namespace emulator
