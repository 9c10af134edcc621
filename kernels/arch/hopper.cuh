// As arch.cuh, with the instructions of sm_90a.
#pragma once

#include "arch.cuh"

#ifdef __CUDACC__
#include "wgmma.cuh"
#else
#include "../emulator/sm90.h"
#endif
