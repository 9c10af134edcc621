// Barriers of a block and of a warp.
#include "rendezvous.h"

namespace emulator {

namespace {

// All threads of the block meet. They see what the others wrote before if `orders`.
bool meet_block(Lane& lane, const char* what, bool value, bool orders, Site site) {
    Block& block = *lane.block;
    Warp& warp = *lane.warp;
    lane.site = site;
    lane.polled = nullptr;
    maybe_finish_copies(lane);
    if (block.arrived == 0) {
        block.site = site;
        block.barrier = what;
        block.any = false;
    } else if (what != block.barrier || !same_site(site, block.site)) {
        diverged(lane, what, site, "barrier", block.site);
    }
    if (warp.at_collective != 0) diverged(lane, what, site, warp.collective, warp.site);
    if (block.alive != lane.launch->threads) diverged(lane, what, site, "exit", site);
    block.any |= value;
    warp.at_barrier |= 1u << lane.lane;
    if (++block.arrived != lane.launch->threads) {
        wait(lane, State::kAtBarrier);
        return block.result;
    }
    if (orders) order_block(block);
    block.arrived = 0;
    block.result = block.any;
    for (Warp& each : block.warps) {
        each.at_barrier = 0;
        wake(each, kAllLanes);
    }
    maybe_preempt(lane);
    return block.result;
}

}  // namespace

void sync_threads(Site site) {
    Lane& lane = *current;
    if (lane.launch->sites.enabled("sync_threads", site)) meet_block(lane, "sync_threads", false, true, site);
}

bool sync_threads_or(bool value, Site site) {
    // Disabled, it still tells the value, which no program can do without, and orders nothing.
    Lane& lane = *current;
    return meet_block(lane, "sync_threads_or", value, lane.launch->sites.enabled("sync_threads_or", site), site);
}

void sync_warp(Site site) {
    Lane& lane = *current;
    if (!lane.launch->sites.enabled("sync_warp", site)) return;
    meet(lane, "sync_warp", site, nullptr, [](Warp& warp) { order_warp(warp); });
}

}  // namespace emulator
