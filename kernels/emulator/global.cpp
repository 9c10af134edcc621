// Regions of global memory, and the atomics on them.
#include <stdlib.h>

#include <algorithm>

#include "describe.h"

namespace emulator {

const char* GlobalMemory::set(const EmulatorLaunch& request, bool detector) {
    for (uint32_t i = 0; i < request.region_count; ++i) {
        const EmulatorRegion& from = request.regions[i];
        if (from.bytes == 0) continue;
        Region region = {reinterpret_cast<uintptr_t>(from.address), from.bytes, i, from.writable != 0, from.initialised != 0,
                         {nullptr, free}};
        if (region.low % 16 != 0) return "a region does not begin at a multiple of 16";
        if (detector && (region.writable || !region.initialised)) {
            region.cells.reset(static_cast<Cell<Epoch>*>(calloc(from.bytes / kGranule + 1, sizeof(Cell<Epoch>))));
        }
        regions.push_back(std::move(region));
    }
    std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.low < b.low; });
    for (size_t i = 1; i < regions.size(); ++i) {
        if (regions[i].low - regions[i - 1].low < regions[i - 1].bytes) return "regions overlap";
    }
    return nullptr;
}

Region* GlobalMemory::find(uintptr_t address) {
    if (last < regions.size() && address - regions[last].low < regions[last].bytes) return &regions[last];
    auto after = std::upper_bound(regions.begin(), regions.end(), address, [](uintptr_t a, const Region& r) { return a < r.low; });
    if (after == regions.begin()) return nullptr;
    Region& region = *(after - 1);
    if (address - region.low >= region.bytes) return nullptr;
    last = static_cast<size_t>(&region - regions.data());
    return &region;
}

const Region* GlobalMemory::nearest(uintptr_t address) const {
    const Region* best = nullptr;
    uintptr_t distance = UINTPTR_MAX;
    for (const Region& region : regions) {
        const uintptr_t end = region.low + region.bytes;
        const uintptr_t away = address < region.low ? region.low - address : address >= end ? address - end + 1 : 0;
        if (away < distance) best = &region, distance = away;
    }
    return best;
}

namespace {

// Of one thread the last access is enough.
void note(std::vector<Epoch>& accesses, Epoch access) {
    for (Epoch& each : accesses) {
        if (each >> kTimeBits == access >> kTimeBits) {
            each = access;
            return;
        }
    }
    accesses.push_back(access);
}

}  // namespace

// Atomics do not race with each other; with plain accesses they do. A release makes its place carry what the thread knew,
// and later additions do not take that away: they continue its release sequence.
void look_at_atomic(Lane& lane, const void* address, Atomic kind) {
    if (lane.launch->options.detector == 0) return;
    constexpr size_t kBytes = 4;
    const Access access = {lane, address, kBytes, kItself};
    const auto at = reinterpret_cast<uintptr_t>(address);
    const bool writes = kind == Atomic::kAdd || kind == Atomic::kRelease;
    Region* region = lane.launch->global.find(at);
    if (region == nullptr || at - region->low + kBytes > region->bytes) report_and_stop(access, fault::kOutOfBounds);
    if (at % kBytes != 0) report_and_stop(access, fault::kMisaligned);
    if (writes && !region->writable) report_and_stop(access, fault::kReadOnly);
    if (region->cells == nullptr) return;

    Cell<Epoch>* cells = &region->cells[(at - region->low) / kGranule];
    for (size_t i = 0; i < kBytes / kGranule; ++i) {
        const void* place = static_cast<const char*>(address) + i * kGranule;
        const Epoch writer = cells[i].write & ~kAtomics, reader = cells[i].read;
        if (cells[i].write == 0 && !region->initialised) report(access, fault::kGlobalUninitialised, place, 0);
        if (writer != 0 && !happened_before(lane, writer)) {
            report(access, writes ? fault::kWriteAfterWrite : fault::kReadAfterWrite, place, writer);
        }
        if (writes && reader != 0) {
            const Epoch unordered = lane.launch->readers.unordered(lane, reader);
            if (unordered != 0) report(access, fault::kWriteAfterRead, place, unordered);
        }
        cells[i].write |= kAtomics;
    }

    AtomicPlace& place = lane.launch->global.atomics[at];
    const Epoch now = static_cast<Epoch>(lane.block->index) << 32 | moment(lane.index, lane.clock.now);
    note(writes ? place.adders : place.loaders, now);
    if (kind == Atomic::kRelease) place.released = release(lane, place.released);
    if (kind == Atomic::kAcquire) acquire(lane, place.released);
}

}  // namespace emulator
