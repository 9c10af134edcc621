// Faults, put into words.
#pragma once

#include <stddef.h>

#include "machine.h"

namespace emulator {

// One access, while it is looked at.
struct Access {
    Lane& lane;
    const void* address;
    size_t bytes;
    const char* agent;  // of the lane that does it: kItself and the like
};

constexpr const char* kItself = "";
constexpr const char* kItsCopy = "an asynchronous copy of ";
constexpr const char* kItsProduct = "a product of the warpgroup of ";

namespace fault {
constexpr const char* kReadAfterWrite = "race (read after unsynchronised write)";
constexpr const char* kWriteAfterRead = "race (write after unsynchronised read)";
constexpr const char* kWriteAfterWrite = "race (write after write)";
constexpr const char* kOutOfBounds = "out of bounds";
constexpr const char* kReadOnly = "read-only memory written";
constexpr const char* kSharedUninitialised = "uninitialised shared read";
constexpr const char* kGlobalUninitialised = "uninitialised global read";
constexpr const char* kMisaligned = "misaligned";
constexpr const char* kNotFenced = "shared write not fenced for the async proxy";
constexpr const char* kBarrierTouched = "mbarrier accessed as memory";
constexpr const char* kRegistersTouched = "registers of a product under way were touched";
constexpr const char* kNoWarpgroup = "warp without a warpgroup";
}  // namespace fault

// "shared memory + 0x40", "region 2 + 0x10".
std::string place(const Lane& lane, const void* address);

// Notes a fault; `other` is the access that it collides with, or 0. `at` is the place within the access.
void report(const Access& access, const char* name, const void* at, Epoch other);

// The same, and ends the launch.
[[noreturn]] void report_and_stop(const Access& access, const char* name);

}  // namespace emulator
