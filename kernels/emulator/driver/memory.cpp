// Device memory: a range of addresses that is closed to the host.
#include <string.h>
#include <sys/mman.h>

#include "state.h"

namespace driver {

namespace {

constexpr size_t kRange = size_t{1} << 36;
constexpr size_t kPage = 4096;
// Allocations begin at multiples of this, as a GPU's do, and not at more: kernels may not count on it.
constexpr size_t kAlignment = 512;
// NaN in every type, and no index.
constexpr int kPoison = 0xff;

}  // namespace

Access::Access(Memory& m) : memory(m) {
    if (memory.accesses++ == 0) mprotect(reinterpret_cast<void*>(memory.low), memory.used, PROT_READ | PROT_WRITE);
}

Access::~Access() {
    if (--memory.accesses == 0) mprotect(reinterpret_cast<void*>(memory.low), memory.used, PROT_NONE);
}

uintptr_t Memory::allocate(size_t bytes, bool live) {
    if (bytes > state().settings.memory_bytes - allocated) return 0;
    if (low == 0) {
        void* range = mmap(nullptr, kRange, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) return 0;
        low = reinterpret_cast<uintptr_t>(range);
    }
    // A page apart, so that an access a little beside one allocation does not end in the next.
    const size_t shift = kAlignment * (1 + allocations.size() % 7);
    const size_t all = (kPage + shift + bytes + kPage - 1) / kPage * kPage;
    if (all > kRange - used - kPage) return 0;
    const uintptr_t address = low + used + kPage + shift;
    if (accesses > 0) mprotect(reinterpret_cast<void*>(low + used), all + kPage, PROT_READ | PROT_WRITE);
    used += all;
    allocated += bytes;
    allocations[address] = {bytes, live, false, false};
    Access access(*this);
    memset(reinterpret_cast<void*>(address), kPoison, bytes);
    return address;
}

Allocation* Memory::find(uintptr_t address, size_t bytes) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    auto& [start, allocation] = *--after;
    const size_t offset = address - start;
    return offset <= allocation.bytes && bytes <= allocation.bytes - offset ? &allocation : nullptr;
}

void Memory::release(uintptr_t address) {
    Allocation& allocation = allocations[address];
    allocation.live = false;
    Access access(*this);
    memset(reinterpret_cast<void*>(address), kPoison, allocation.bytes);
}

}  // namespace driver
