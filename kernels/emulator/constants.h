// Memory of the program that nobody can write: where the kernels' constants are.
#pragma once

#include <stddef.h>

namespace emulator {

bool is_constant(const void* address, size_t bytes);

}  // namespace emulator
