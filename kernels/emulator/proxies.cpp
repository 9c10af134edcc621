// The fence between what threads write to shared memory and the asynchronous proxy, by which products read it.
#include "scheduler.h"

namespace emulator {

void fence_async_proxy(Site site) {
    Lane& lane = *current;
    lane.site = site;
    lane.polled = nullptr;
    if (lane.launch->sites.enabled("fence_async_proxy", site)) fence_proxy(lane);
}

}  // namespace emulator
