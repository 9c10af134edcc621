#include "describe.h"

#include "scheduler.h"

namespace emulator {

namespace {

std::string who(Epoch epoch) {
    const uint32_t number = who_of(epoch), block = block_of(epoch);
    if (number < kCopiesOf) return print("thread %u of block %u", number, block);
    if (number < kWarpOf) return print("an asynchronous copy of thread %u of block %u", number - kCopiesOf, block);
    if (number < kProductsOf) return print("warp %u of block %u", number - kWarpOf, block);
    return print("a product of warpgroup %u of block %u", number - kProductsOf, block);
}

}  // namespace

std::string place(const Lane& lane, const void* address) {
    // Beside the memory in question, and still closer to it than to anything else, presumably.
    constexpr intptr_t kNear = 1 << 16;
    const auto at = reinterpret_cast<intptr_t>(address);
    auto offset = [](intptr_t o) {
        return o < 0 ? print(" - 0x%llx", static_cast<unsigned long long>(-o)) : print(" + 0x%llx", static_cast<unsigned long long>(o));
    };
    const intptr_t in_shared = at - static_cast<intptr_t>(lane.shared_low);
    const auto shared_bytes = static_cast<intptr_t>(lane.shared_bytes);
    if (in_shared >= 0 && in_shared < shared_bytes) return "shared memory" + offset(in_shared);
    if (const Region* region = lane.launch->global.nearest(static_cast<uintptr_t>(at))) {
        const intptr_t in = at - static_cast<intptr_t>(region->low);
        if (in > -kNear && in < static_cast<intptr_t>(region->bytes) + kNear) {
            return print("region %u", region->index) + offset(in) + print(" (of 0x%zx bytes)", region->bytes);
        }
    }
    if (in_shared > -kNear && in_shared < shared_bytes + kNear) {
        return "shared memory" + offset(in_shared) + print(" (of 0x%zx bytes)", lane.shared_bytes);
    }
    return print("address 0x%llx, in no region", static_cast<unsigned long long>(at));
}

namespace {

std::string describe(const Access& access, const void* at, Epoch other) {
    const Lane& lane = access.lane;
    std::string text = place(lane, at) + ": " + access.agent + describe(lane);
    if (other != 0) text += ", against " + who(other);
    return text + print(", at or after %s:%d", lane.site.file, lane.site.line);
}

}  // namespace

void report(const Access& access, const char* name, const void* at, Epoch other) {
    Faults& faults = access.lane.launch->faults;
    if (!faults.repeated(name, access.lane.site)) faults.add(name, access.lane.site, describe(access, at, other));
}

void report_and_stop(const Access& access, const char* name) {
    report(access, name, access.address, 0);
    stop(*access.lane.launch);
}

}  // namespace emulator
