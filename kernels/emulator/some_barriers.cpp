// Barriers with numbers, for some of a block's warps.
#include "rendezvous.h"

namespace emulator {

namespace {

struct Arrival {
    int barrier, threads;
};

constexpr const char* kWrongCount = "named barrier with a wrong count";

[[noreturn]] void refuse(Lane& lane, Arrival arrival, const std::string& why) {
    lane.launch->faults.add(kWrongCount, lane.site,
                            print("%s comes to barrier %d for %d threads at %s:%d: %s", describe(lane).c_str(), arrival.barrier,
                                  arrival.threads, lane.site.file, lane.site.line, why.c_str()));
    stop(*lane.launch);
}

}  // namespace

void sync_some(int barrier, int threads, Site site) {
    Lane& lane = *current;
    if (!lane.launch->sites.enabled("sync_some", site)) return;
    Arrival mine = {barrier, threads};
    if (!come(lane, "sync_some", site, &mine)) {
        wait(lane, State::kAtCollective);
        return;
    }
    Warp& warp = *lane.warp;
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        const Arrival& other = argument_of<Arrival>(warp, i);
        if (other.barrier != barrier || other.threads != threads) refuse(lane, mine, "others of its warp do not");
    }
    if (barrier < 1 || barrier >= static_cast<int>(kSomeBarriers)) refuse(lane, mine, "there are barriers 1 to 15");
    if (threads <= 0 || threads % static_cast<int>(kWarpLanes) != 0) refuse(lane, mine, "these are no whole warps");
    const uint32_t wanted = static_cast<uint32_t>(threads);
    if (wanted > lane.launch->threads) refuse(lane, mine, "the block has fewer");
    SomeBarrier& at = lane.block->some_barriers[barrier];
    if (at.warps.empty()) at.threads = wanted;
    if (at.threads != wanted) refuse(lane, mine, print("others come to it for %u", at.threads));
    at.warps.push_back(&warp);
    if (at.warps.size() * kWarpLanes != wanted) {
        wait_together(lane, State::kAtSomeBarrier);
        return;
    }
    if (lane.launch->options.detector != 0) order_warps(at.warps);
    for (Warp* each : at.warps) go_on(*each);
    at.warps.clear();
    maybe_preempt(lane);
}

}  // namespace emulator
