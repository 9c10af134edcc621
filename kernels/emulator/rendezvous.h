// How lanes meet.
#pragma once

#include "scheduler.h"

namespace emulator {

// The lane has come to a collective of its warp, with an argument on its own stack. Whether it is the last one to come.
inline bool come(Lane& lane, const char* what, Site site, void* argument) {
    Warp& warp = *lane.warp;
    lane.site = site;
    lane.argument = argument;
    lane.polled = nullptr;
    maybe_finish_copies(lane);
    maybe_finish_products(lane);
    if (warp.at_collective == 0) {
        warp.site = site;
        warp.collective = what;
    } else if (what != warp.collective || !same_site(site, warp.site)) {
        diverged(lane, what, site, warp.collective, warp.site);
    }
    if (warp.at_barrier != 0) diverged(lane, what, site, lane.block->barrier, lane.block->site);
    if (warp.exited != 0) diverged(lane, what, site, "exit", site);
    warp.at_collective |= 1u << lane.lane;
    return warp.at_collective == kAllLanes;
}

// The warp goes on.
inline void go_on(Warp& warp) {
    warp.at_collective = 0;
    wake(warp, kAllLanes);
}

// A collective of the warp: the last lane to come completes it for all.
template <class Complete>
void meet(Lane& lane, const char* what, Site site, void* argument, Complete complete) {
    if (!come(lane, what, site, argument)) {
        wait(lane, State::kAtCollective);
        return;
    }
    complete(*lane.warp);
    go_on(*lane.warp);
    maybe_preempt(lane);
}

// The warp has met, all but `last` having been waiting, and goes on waiting for others.
inline void wait_together(Lane& last, State state) {
    for (uint32_t i = 0; i < kWarpLanes; ++i) last.warp->lanes[i].state = state;
    wait(last, state);
}

template <class Argument>
Argument& argument_of(Warp& warp, uint32_t lane) {
    return *static_cast<Argument*>(warp.lanes[lane].argument);
}

}  // namespace emulator
