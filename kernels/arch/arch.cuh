// Every special instruction that kernels use, as a function. This folder is the only place with inline PTX; where there is
// no CUDA compiler, kernels/emulator defines the same functions after the PTX ISA.
#pragma once

#include "types.cuh"

#ifdef __CUDACC__
#include "sm80.cuh"
#else
#include "../emulator/sm80.h"
#endif
