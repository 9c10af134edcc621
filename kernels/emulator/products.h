// The arithmetic of warpgroups' products.
#pragma once

#include "warpgroups.h"

namespace emulator {

// Carries a product out, on what lies in shared memory now.
void carry_out(const Product& product, const char* shared, uint32_t shared_bytes);

}  // namespace emulator
