// What is known of memory, two bytes at a time: who wrote it last, and who has read it since.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "emulator.h"
#include "matrices.h"
#include "readers.h"

namespace emulator {

struct Warpgroup;

constexpr size_t kGranule = 2;

// Words are lower halves of epochs in shared memory, where the block is known, and epochs in global memory.
template <class Word>
struct Cell {
    Word write, read;
};

// In a global cell's `write`: atomics were done here.
constexpr Epoch kAtomics = Epoch{1} << 63;

// A block's dynamic shared memory, with room around it, so that an access beside it is one beside it.
struct SharedMemory {
    char* base = nullptr;
    std::vector<Cell<uint32_t>> cells;

    void reset(uint32_t bytes, bool detector);

  private:
    std::vector<char> storage;
};

struct Region {
    uintptr_t low;
    size_t bytes;
    uint32_t index;     // in the caller's list
    bool writable, initialised;
    // Only where a look at them can find something. Zeroed pages cost nothing until they are touched.
    std::unique_ptr<Cell<Epoch>[], void (*)(void*)> cells;
};

// An address that atomics use.
struct AtomicPlace {
    std::vector<Epoch> adders, loaders;
    KnowledgePtr released;
};

struct GlobalMemory {
    std::vector<Region> regions;    // by address
    std::unordered_map<uintptr_t, AtomicPlace> atomics;

    // What is wrong with the regions, or null.
    const char* set(const EmulatorLaunch& request, bool detector);
    Region* find(uintptr_t address);
    const Region* nearest(uintptr_t address) const;

  private:
    size_t last = 0;
};

enum class Atomic { kAdd, kRelease, kLoad, kAcquire };

// A look at an access before it happens. After a fault that leaves nothing to go on with, they do not return.
void look_at_read(Lane& lane, const void* address, size_t bytes, size_t alignment);
void look_at_write(Lane& lane, void* address, size_t bytes, size_t alignment);
// `from` is null where nothing is read.
void look_at_copy(Lane& lane, void* to, const void* from, size_t bytes);
// Rows of 16 bytes, one address from each lane, read by all of them.
void look_at_matrices(Warp& warp, const void* const (&rows)[32]);
// Pieces of shared memory, which the warps' products read as a part of a group. `lane` is the one that issues it.
void look_at_product(const Warpgroup& warpgroup, Lane& lane, uint32_t group, const std::vector<Span>& spans);
// Makes a barrier of shared memory.
void look_at_barrier(Lane& lane, void* address, size_t bytes);
void look_at_atomic(Lane& lane, const void* address, Atomic kind);

}  // namespace emulator
