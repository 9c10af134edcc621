// What the hooks of plain accesses compare with first.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

// The running lane's own stack: not looked at. Outside of a launch, and without a detector: the whole address space.
struct OwnMemory {
    uintptr_t low, bytes;
};
extern __thread OwnMemory own __attribute__((tls_model("initial-exec")));

}  // namespace emulator
