// Looks at accesses to shared memory, and at plain ones to global memory.
#include "shadow.h"

#include <string.h>

#include "constants.h"
#include "describe.h"

namespace emulator {

void SharedMemory::reset(uint32_t bytes, bool detector) {
    constexpr size_t kRoom = 4096, kAlignment = 1024;
    storage.resize(bytes + 2 * kRoom + kAlignment);
    const auto start = reinterpret_cast<uintptr_t>(storage.data()) + kRoom;
    base = storage.data() + kRoom + (kAlignment - start % kAlignment) % kAlignment;
    memset(storage.data(), 0xff, storage.size());   // NaN in every type
    cells.assign(detector ? (bytes + kGranule - 1) / kGranule : 0, {});
}

namespace {

Epoch tag(const Lane& lane) { return static_cast<Epoch>(lane.block->index) << 32; }
Epoch epoch_of(const Lane& lane, uint32_t word) { return tag(lane) | word; }
Epoch epoch_of(const Lane&, Epoch word) { return word & ~kAtomics; }

// Whether all accesses in the low half of an epoch were before the last barrier, seen from their own block.
bool before_barrier(const Lane& lane, uint32_t word) {
    if ((word & kSetTag) != 0) return false;
    const uint32_t who = word >> kTimeBits, time = word & kLatest;
    const BlockClock& clock = lane.block->clock;
    if (who - kCopiesOf < kWarpOf - kCopiesOf) return time <= clock.copies[who - kCopiesOf];
    if (who < kProductsOf) return time <= clock.floor;
    return who != kNobody && time <= clock.products[who - kProductsOf];
}
bool before_barrier(const Lane&, Epoch) { return false; }

// A cell's `write`: a barrier lies there.
constexpr uint32_t kBarrierCell = moment(kNobody, kLatest);
bool is_barrier(uint32_t word) { return word == kBarrierCell; }
bool is_barrier(Epoch) { return false; }

// Who reads: the lanes of a warp together, or one lane. What is wrong with reading what `word` wrote, or null.
struct Alone {
    const Lane& lane;

    template <class Word>
    const char* fault(Word word) const {
        const Epoch writer = epoch_of(lane, word);
        return before_barrier(lane, word) || writer == 0 || happened_before(lane, writer) ? nullptr : fault::kReadAfterWrite;
    }
    const Lane& knower() const { return lane; }
};
struct Together {
    const Lane& lane;

    template <class Word>
    const char* fault(Word word) const {
        const Epoch writer = epoch_of(lane, word);
        if (before_barrier(lane, word) || writer == 0) return nullptr;
        for (uint32_t i = 0; i < kWarpLanes; ++i) {
            if (!happened_before(lane.warp->lanes[i], writer)) return fault::kReadAfterWrite;
        }
        return nullptr;
    }
    const Lane& knower() const { return lane; }
};

// A product of a warpgroup. A tile has few writers, each of many places.
class Products {
  public:
    Products(const Lane& lane, const Party& party) : lane(lane), party(party) {}

    const char* fault(uint32_t word) const {
        Known& slot = known[(word ^ word >> kTimeBits) % kKept];
        if (slot.word != word) slot = {word, look(word)};
        return slot.fault;
    }
    const Party& knower() const { return party; }

  private:
    const char* look(uint32_t word) const {
        const Epoch writer = epoch_of(lane, word);
        if (!before_barrier(lane, word) && !party.know(writer)) return fault::kReadAfterWrite;
        return party.know_fenced(writer) ? nullptr : fault::kNotFenced;
    }

    static constexpr uint32_t kKept = 256;
    struct Known {
        uint32_t word;
        const char* fault;
    };
    const Lane& lane;
    const Party& party;
    mutable Known known[kKept] = {};
};

// Reads `count` cells as `reader`. What is found for a cell holds for the next one too if it looks the same.
template <class Who, class Word>
void read_cells(const Access& access, const Who& who, Cell<Word>* cells, size_t count, Word reader, bool initialised,
                const char* uninitialised) {
    Lane& lane = access.lane;
    Cell<Word> last = {0, 0};
    Word last_result = 0;
    for (size_t i = 0; i < count; ++i) {
        Cell<Word>& cell = cells[i];
        if (i != 0 && cell.write == last.write && cell.read == last.read) {
            cell.read = last_result;
            continue;
        }
        last = cell;
        auto at = [&] { return static_cast<const char*>(access.address) + i * kGranule; };
        if (cell.write == 0) {
            if (!initialised) report(access, uninitialised, at(), 0);
        } else if (is_barrier(cell.write)) {
            report(access, fault::kBarrierTouched, at(), 0);
        } else if (const char* fault = who.fault(cell.write)) {
            report(access, fault, at(), epoch_of(lane, cell.write));
        }
        if (cell.read != reader) {
            if (cell.read == 0 || before_barrier(lane, cell.read)) {
                cell.read = reader;
            } else {
                ReaderSets& readers = lane.launch->readers;
                cell.read = static_cast<Word>(readers.add(epoch_of(lane, cell.read), epoch_of(lane, reader), who.knower()));
            }
        }
        last_result = cell.read;
    }
}

template <class Word>
void write_cells(const Access& access, Cell<Word>* cells, size_t count, Word writer) {
    Lane& lane = access.lane;
    Cell<Word> last = {0, 0};
    for (size_t i = 0; i < count; ++i) {
        Cell<Word>& cell = cells[i];
        if (i == 0 || cell.write != last.write || cell.read != last.read) {
            last = cell;
            auto at = [&] { return static_cast<const char*>(access.address) + i * kGranule; };
            if (is_barrier(cell.write)) {
                report(access, fault::kBarrierTouched, at(), 0);
            } else if (cell.write != 0 && !before_barrier(lane, cell.write)) {
                const Epoch before = epoch_of(lane, cell.write);
                if (before != 0 && !happened_before(lane, before)) report(access, fault::kWriteAfterWrite, at(), before);
            }
            if (cell.read != 0 && !before_barrier(lane, cell.read)) {
                const Epoch reader = lane.launch->readers.unordered(lane, epoch_of(lane, cell.read));
                if (reader != 0) report(access, fault::kWriteAfterRead, at(), reader);
            }
        }
        cell = {writer, 0};
    }
}

// The cells of an access, which begin within the granule that it begins in.
size_t first_cell(uintptr_t offset) { return offset / kGranule; }
size_t cell_count(uintptr_t offset, size_t bytes) { return (offset + bytes + kGranule - 1) / kGranule - offset / kGranule; }

bool within(uintptr_t address, size_t bytes, uintptr_t low, size_t size) {
    return address - low < size && bytes <= size - (address - low);
}

// Whether an access lies in shared memory. One that sticks out of it is out of bounds.
bool is_shared(const Access& access) {
    const auto address = reinterpret_cast<uintptr_t>(access.address);
    if (address - access.lane.shared_low >= access.lane.shared_bytes) return false;
    if (!within(address, access.bytes, access.lane.shared_low, access.lane.shared_bytes)) {
        report_and_stop(access, fault::kOutOfBounds);
    }
    return true;
}

// The region of an access, or null.
Region* region_of(const Access& access) {
    Region* region = access.lane.launch->global.find(reinterpret_cast<uintptr_t>(access.address));
    if (region != nullptr && !within(reinterpret_cast<uintptr_t>(access.address), access.bytes, region->low, region->bytes)) {
        report_and_stop(access, fault::kOutOfBounds);
    }
    return region;
}

bool had_atomics(const Cell<Epoch>* cells, size_t count) {
    Epoch all = 0;
    for (size_t i = 0; i < count; ++i) all |= cells[i].write;
    return (all & kAtomics) != 0;
}

// Atomics at the places of a plain access: those that `lane` does not know of.
void look_at_atomics_of(const Access& access, bool writes) {
    const auto begin = reinterpret_cast<uintptr_t>(access.address), end = begin + access.bytes;
    auto& places = access.lane.launch->global.atomics;
    for (uintptr_t word = begin / 4 * 4; word < end; word += 4) {
        auto place = places.find(word);
        if (place == places.end()) continue;
        for (Epoch adder : place->second.adders) {
            if (happened_before(access.lane, adder)) continue;
            report(access, writes ? fault::kWriteAfterWrite : fault::kReadAfterWrite, reinterpret_cast<void*>(word), adder);
        }
        if (!writes) continue;
        for (Epoch loader : place->second.loaders) {
            if (!happened_before(access.lane, loader)) {
                report(access, fault::kWriteAfterRead, reinterpret_cast<void*>(word), loader);
            }
        }
        places.erase(place);
    }
}

void look_at_global_read(const Access& access, Region& region, Epoch reader) {
    if (region.cells == nullptr) return;
    const uintptr_t offset = reinterpret_cast<uintptr_t>(access.address) - region.low;
    Cell<Epoch>* cells = &region.cells[first_cell(offset)];
    const size_t count = cell_count(offset, access.bytes);
    if (had_atomics(cells, count)) look_at_atomics_of(access, false);
    read_cells<Alone, Epoch>(access, {access.lane}, cells, count, reader, region.initialised, fault::kGlobalUninitialised);
}

uint32_t mine(const Lane& lane) { return moment(lane.index, lane.clock.now); }
uint32_t copy_of(const Lane& lane) { return moment(kCopiesOf + lane.index, lane.copies.committed + 1); }

// Stacks are looked at only while products work on registers, which lie there.
bool is_on_stack(const Lane& lane, const void* address) {
    return reinterpret_cast<uintptr_t>(address) - lane.stack.low < lane.stack.bytes;
}

void check_alignment(const Access& access, size_t alignment) {
    if (reinterpret_cast<uintptr_t>(access.address) % alignment != 0) report_and_stop(access, fault::kMisaligned);
}

}  // namespace

void look_at_read(Lane& lane, const void* address, size_t bytes, size_t alignment) {
    if (is_on_stack(lane, address)) return look_at_registers(lane, address, bytes);
    const Access access = {lane, address, bytes, kItself};
    if (is_shared(access)) {
        check_alignment(access, alignment);
        const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - lane.shared_low;
        read_cells<Alone, uint32_t>(access, {lane}, &lane.block->shared.cells[first_cell(offset)], cell_count(offset, bytes),
                                    mine(lane), false, fault::kSharedUninitialised);
        return;
    }
    if (Region* region = region_of(access)) {
        check_alignment(access, alignment);
        look_at_global_read(access, *region, epoch_of(lane, mine(lane)));
        return;
    }
    const EmulatorLaunch& request = *lane.launch->request;
    if (within(reinterpret_cast<uintptr_t>(address), bytes, reinterpret_cast<uintptr_t>(request.params), request.params_bytes)) {
        return;
    }
    if (!is_constant(address, bytes)) report_and_stop(access, fault::kOutOfBounds);
}

void look_at_write(Lane& lane, void* address, size_t bytes, size_t alignment) {
    if (is_on_stack(lane, address)) return look_at_registers(lane, address, bytes);
    const Access access = {lane, address, bytes, kItself};
    if (is_shared(access)) {
        check_alignment(access, alignment);
        const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - lane.shared_low;
        write_cells<uint32_t>(access, &lane.block->shared.cells[first_cell(offset)], cell_count(offset, bytes), mine(lane));
        return;
    }
    Region* region = region_of(access);
    if (region == nullptr) report_and_stop(access, fault::kOutOfBounds);
    if (!region->writable) report_and_stop(access, fault::kReadOnly);
    check_alignment(access, alignment);
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - region->low;
    Cell<Epoch>* cells = &region->cells[first_cell(offset)];
    const size_t count = cell_count(offset, bytes);
    if (had_atomics(cells, count)) look_at_atomics_of(access, true);
    write_cells<Epoch>(access, cells, count, epoch_of(lane, mine(lane)));
}

void look_at_copy(Lane& lane, void* to, const void* from, size_t bytes) {
    if (lane.launch->options.detector == 0) return;
    const Access writes = {lane, to, bytes, kItsCopy};
    check_alignment(writes, bytes);
    if (!is_shared(writes)) report_and_stop(writes, fault::kOutOfBounds);
    if (from != nullptr) {
        const Access reads = {lane, from, bytes, kItsCopy};
        check_alignment(reads, bytes);
        Region* region = region_of(reads);
        if (region == nullptr) report_and_stop(reads, fault::kOutOfBounds);
        look_at_global_read(reads, *region, epoch_of(lane, copy_of(lane)));
    }
    const uintptr_t offset = reinterpret_cast<uintptr_t>(to) - lane.shared_low;
    write_cells<uint32_t>(writes, &lane.block->shared.cells[first_cell(offset)], cell_count(offset, bytes), copy_of(lane));
}

void look_at_matrices(Warp& warp, const void* const (&rows)[32]) {
    if (warp.block->launch->options.detector == 0) return;
    constexpr size_t kBytes = 16;
    bool together = true;
    for (uint32_t i = 1; i < kWarpLanes; ++i) together &= warp.lanes[i].clock.now == warp.lanes[0].clock.now;
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
        const Access access = {warp.lanes[i], rows[i], kBytes, kItself};
        check_alignment(access, kBytes);
        if (!is_shared(access)) report_and_stop(access, fault::kOutOfBounds);
        const uintptr_t offset = reinterpret_cast<uintptr_t>(rows[i]) - access.lane.shared_low;
        Cell<uint32_t>* cells = &warp.block->shared.cells[first_cell(offset)];
        constexpr size_t kCells = kBytes / kGranule;
        if (together) {
            const uint32_t reader = moment(kWarpOf + warp.index, access.lane.clock.now);
            read_cells<Together, uint32_t>(access, {access.lane}, cells, kCells, reader, false, fault::kSharedUninitialised);
            continue;
        }
        for (uint32_t j = 0; j < kWarpLanes; ++j) {
            const Access one = {warp.lanes[j], rows[i], kBytes, kItself};
            read_cells<Alone, uint32_t>(one, {one.lane}, cells, kCells, mine(one.lane), false, fault::kSharedUninitialised);
        }
    }
}

void look_at_product(const Warpgroup& warpgroup, Lane& lane, uint32_t group, const std::vector<Span>& spans) {
    if (lane.launch->options.detector == 0) return;
    const Party party(warpgroup.warps, kWarpgroupWarps);
    const Products products(lane, party);
    const uint32_t reader = moment(kProductsOf + warpgroup.index, group);
    for (const Span& span : spans) {
        const Access access = {lane, lane.block->shared.base + span.offset, span.bytes, kItsProduct};
        if (!is_shared(access)) report_and_stop(access, fault::kOutOfBounds);
        Cell<uint32_t>* cells = &lane.block->shared.cells[first_cell(span.offset)];
        read_cells<Products, uint32_t>(access, products, cells, span.bytes / kGranule, reader, false, fault::kSharedUninitialised);
    }
}

void look_at_barrier(Lane& lane, void* address, size_t bytes) {
    if (lane.launch->options.detector == 0) return;
    const Access access = {lane, address, bytes, kItself};
    if (!is_shared(access)) report_and_stop(access, fault::kOutOfBounds);
    check_alignment(access, bytes);
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - lane.shared_low;
    Cell<uint32_t>* cells = &lane.block->shared.cells[first_cell(offset)];
    write_cells<uint32_t>(access, cells, bytes / kGranule, mine(lane));
    for (size_t i = 0; i < bytes / kGranule; ++i) cells[i] = {kBarrierCell, 0};
}

}  // namespace emulator
