// How lanes meet.
#pragma once

#include "scheduler.h"

namespace emulator {

// A collective of the warp. Every lane brings an argument, on its own stack; the last one to come completes it for all.
template <class Complete>
void meet(Lane& lane, const char* what, Site site, void* argument, Complete complete) {
    Warp& warp = *lane.warp;
    lane.site = site;
    lane.argument = argument;
    lane.polled = nullptr;
    maybe_finish_copies(lane);
    if (warp.at_collective == 0) {
        warp.site = site;
        warp.collective = what;
    } else if (what != warp.collective || !same_site(site, warp.site)) {
        diverged(lane, what, site, warp.collective, warp.site);
    }
    if (warp.at_barrier != 0) diverged(lane, what, site, lane.block->barrier, lane.block->site);
    if (warp.exited != 0) diverged(lane, what, site, "exit", site);
    warp.at_collective |= 1u << lane.lane;
    if (warp.at_collective != kAllLanes) {
        wait(lane, State::kAtCollective);
        return;
    }
    complete(warp);
    warp.at_collective = 0;
    wake(warp, kAllLanes);
    maybe_preempt(lane);
}

template <class Argument>
Argument& argument_of(Warp& warp, uint32_t lane) {
    return *static_cast<Argument*>(warp.lanes[lane].argument);
}

}  // namespace emulator
