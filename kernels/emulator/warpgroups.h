// Products of warpgroups that are under way, and the registers that belong to them meanwhile.
//
// A warpgroup issues a product when its four warps have come to it. Fences, commits and waits are each warp's own: warps may
// run apart in between. The numbers of their groups must agree.
#pragma once

#include <stdint.h>

#include <deque>
#include <memory>
#include <vector>

#include "registers.h"
#include "runtime.h"

namespace emulator {

struct Block;
struct Lane;
struct Warp;

constexpr uint32_t kWarpgroupWarps = 4;
constexpr uint32_t kProductRows = 64;       // of a warpgroup
constexpr uint32_t kProductDepth = 16;      // what is summed over
constexpr uint32_t kWarpRows = 16;

// c of a warp, while products on it are under way: 16 rows of a matrix. Its lanes hold a pattern instead.
struct Accumulator {
    float* registers[32];       // of each lane
    uint32_t columns;
    uint32_t group;             // of the last product on it
    std::vector<float> values;  // row after row

    uint32_t words() const { return columns / 2; }      // of a lane
};

// A in registers, which must stay as it is.
struct HeldOperand {
    const uint32_t* registers[32];
    uint32_t group;
    uint32_t words[32][4];
};

struct WarpProducts {
    uint32_t committed = 0;     // groups; products since belong to the next one
    uint32_t completed = 0;     // groups that this warp has waited for
    bool fenced = false;        // since the last commit
    std::vector<std::unique_ptr<Accumulator>> accumulators;
    std::vector<std::unique_ptr<HeldOperand>> operands;

    // Whether it is looked at what lanes do with their registers.
    bool watched() const { return fenced || !accumulators.empty() || !operands.empty(); }
};

// One that has not been carried out.
struct Product {
    ProductForm form;
    bool accumulate;
    uint64_t a, b;              // descriptors
    std::vector<uint16_t> a_elements;   // where A was in registers, row after row; else empty
    Accumulator* c[kWarpgroupWarps];
    uint32_t group;
};

struct Warpgroup {
    Block* block = nullptr;
    uint32_t index = 0;         // in the block
    Warp* warps = nullptr;      // 4 of them
    uint32_t arrived = 0;       // warps at the product, one bit each
    Site site = {nullptr, 0};   // of the product that warps wait at
    std::deque<Product> pending;
    std::vector<RegisterCall> register_calls;   // in their order

    void reset();
};

// Where asynchronous work is done at random times: carries out the oldest product, perhaps.
void maybe_finish_products(Lane& lane);

// An access to the lane's own stack while its registers are watched.
void look_at_registers(Lane& lane, const void* address, size_t bytes);

}  // namespace emulator
