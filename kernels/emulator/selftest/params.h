// Parameters of the selftest kernels.
#pragma once

#include "../../arch/arch.cuh"

namespace selftest {

using namespace inducer;

struct Params {
    const u32* in;
    u32* out;
    i32 argument;
    i32 padding;
};

}  // namespace selftest
