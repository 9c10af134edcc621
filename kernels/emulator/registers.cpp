// setmaxnreg: registers go back to the block, or come from it as soon as it has enough.
#include "registers.h"

#include <algorithm>

#include "describe.h"
#include "rendezvous.h"

namespace emulator {

namespace {

constexpr uint32_t kRegisters = 65536;      // of a multiprocessor
constexpr uint32_t kFewest = 24, kMost = 256, kUnit = 8;

constexpr const char* kWrongCount = "register count that is no multiple of 8 from 24 to 256";
constexpr const char* kDiffer = "warps of a warpgroup hand over different registers";

// The number that a warp, all of whose lanes have come, asks for; its warpgroup's others must ask for the same.
uint32_t asked_for(Warp& warp) {
    Lane& lane = *current;
    const int count = argument_of<int>(warp, 0);
    if (count < static_cast<int>(kFewest) || count > static_cast<int>(kMost) || count % static_cast<int>(kUnit) != 0) {
        refuse(lane, kWrongCount, print(": %d", count));
    }
    if (warp.warpgroup == nullptr) refuse(lane, fault::kNoWarpgroup, "");
    std::vector<RegisterCall>& calls = warp.warpgroup->register_calls;
    const uint32_t at = warp.registers.calls++;
    if (at == calls.size()) calls.push_back({lane.site, warp.collective, count});
    const RegisterCall& others = calls[at];
    if (others.what != warp.collective || others.registers != count) {
        refuse(lane, kDiffer, print(": %s %d, others %s %d", warp.collective, count, others.what, others.registers));
    }
    return static_cast<uint32_t>(count);
}

// Takes registers if there are enough.
bool takes(Warp& warp, uint32_t count) {
    WarpRegisters& own = warp.registers;
    const uint32_t more = count - std::min(count, own.owned);
    if (more > warp.block->free_registers) return false;
    warp.block->free_registers -= more;
    own.owned += more;
    own.wanted = 0;
    return true;
}

}  // namespace

uint32_t registers_at_launch(uint32_t threads) { return std::min(kRegisters / threads / kUnit * kUnit, kMost); }

void give_registers_back(int registers, Site site) {
    meet(*current, "give_registers_back", site, &registers, [](Warp& warp) {
        WarpRegisters& own = warp.registers;
        const uint32_t left = std::min(asked_for(warp), own.owned);
        warp.block->free_registers += own.owned - left;
        own.owned = left;
        for (Warp& each : warp.block->warps) {
            if (each.registers.wanted != 0 && takes(each, each.registers.wanted)) go_on(each);
        }
    });
}

void take_registers(int registers, Site site) {
    Lane& lane = *current;
    if (!come(lane, "take_registers", site, &registers)) {
        wait(lane, State::kAtCollective);
        return;
    }
    Warp& warp = *lane.warp;
    const uint32_t count = asked_for(warp);
    if (!takes(warp, count)) {
        warp.registers.wanted = count;
        wait_together(lane, State::kAtRegisters);
        return;
    }
    go_on(warp);
    maybe_preempt(lane);
}

std::string describe_wanted(const Warp& warp) {
    return print("with %u registers and in want of %u; the block has %u to give", warp.registers.owned, warp.registers.wanted,
                 warp.block->free_registers);
}

void check_register_calls(Block& block) {
    for (const Warpgroup& warpgroup : block.warpgroups) {
        for (uint32_t w = 0; w < kWarpgroupWarps; ++w) {
            const Warp& warp = warpgroup.warps[w];
            const uint32_t calls = warp.registers.calls;
            if (calls == warpgroup.register_calls.size()) continue;
            const RegisterCall& missing = warpgroup.register_calls[calls];
            block.launch->faults.add(kDiffer, missing.site,
                                     print("warp %u of block %u did not come to %s at %s:%d", warp.index, block.index,
                                           missing.what, missing.site.file, missing.site.line));
        }
    }
}

}  // namespace emulator
