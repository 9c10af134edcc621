// All kernels, each named once. The .cu files make the instances from this list, the emulator its table, build.rs the Rust
// table in src/cuda/kernels.rs (it reads the lines that begin with X).
//
//   X(pass, type, head_dim, rows, keys, warps, blocks)
//
// head_dim  columns of a tile in shared memory: serves every head dimension up to it, multiples of 8
// rows      queries of a tile
// keys      keys of a tile (0 where the pass has none)
// warps     of a block
// blocks    that should fit a multiprocessor at once, on GPUs with the most shared memory (the compiler's register limit follows)
//
// The instance is called pass_type_dhead_dim, such as forward_bf16_d128. Tiles fit the 99 KB of shared memory that every GPU has.
// Those of wide passes are for GPUs of data centres (sm_80, 90, 100), whose blocks may have 163 KB or more: there a block of the
// backward has room for dS, and two blocks of the forward have room for 64 keys each.
#pragma once

// clang-format off
#define FORWARD_KERNELS(X) \
    X(forward, bf16, 64, 128, 64, 4, 2) \
    X(forward, bf16, 128, 128, 32, 4, 2) \
    X(forward, bf16, 256, 64, 32, 4, 2) \
    X(forward, f16, 64, 128, 64, 4, 2) \
    X(forward, f16, 128, 128, 32, 4, 2) \
    X(forward, f16, 256, 64, 32, 4, 2) \
    X(forward, f32, 64, 64, 64, 4, 2) \
    X(forward, f32, 128, 64, 32, 4, 3) \
    X(forward, f32, 256, 64, 16, 4, 2)

#define FORWARD_WIDE_KERNELS(X) \
    X(forward_wide, bf16, 128, 128, 64, 4, 2) \
    X(forward_wide, f16, 128, 128, 64, 4, 2)

// For sm_90 alone: warpgroups, of which the first one of a block serves the others.
#define FORWARD_HOPPER_KERNELS(X) \
    X(forward_hopper, bf16, 64, 128, 128, 12, 1) \
    X(forward_hopper, bf16, 128, 128, 128, 12, 1) \
    X(forward_hopper, bf16, 256, 128, 64, 12, 1) \
    X(forward_hopper, f16, 64, 128, 128, 12, 1) \
    X(forward_hopper, f16, 128, 128, 128, 12, 1) \
    X(forward_hopper, f16, 256, 128, 64, 12, 1)

#define BACKWARD_HOPPER_KERNELS(X) \
    X(backward_hopper, bf16, 64, 128, 128, 12, 1) \
    X(backward_hopper, bf16, 128, 64, 128, 12, 1) \
    X(backward_hopper, f16, 64, 128, 128, 12, 1) \
    X(backward_hopper, f16, 128, 64, 128, 12, 1)

#define BACKWARD_PREPARE_KERNELS(X) \
    X(backward_prepare, bf16, 64, 64, 0, 4, 4) \
    X(backward_prepare, bf16, 128, 64, 0, 4, 3) \
    X(backward_prepare, bf16, 256, 64, 0, 4, 1) \
    X(backward_prepare, f16, 64, 64, 0, 4, 4) \
    X(backward_prepare, f16, 128, 64, 0, 4, 3) \
    X(backward_prepare, f16, 256, 64, 0, 4, 1) \
    X(backward_prepare, f32, 64, 64, 0, 4, 2) \
    X(backward_prepare, f32, 128, 64, 0, 4, 1) \
    X(backward_prepare, f32, 256, 32, 0, 2, 1)

#define BACKWARD_KERNELS(X) \
    X(backward, bf16, 64, 64, 128, 4, 2) \
    X(backward, bf16, 128, 64, 128, 8, 1) \
    X(backward, bf16, 256, 32, 64, 8, 1) \
    X(backward, f16, 64, 64, 128, 4, 2) \
    X(backward, f16, 128, 64, 128, 8, 1) \
    X(backward, f16, 256, 32, 64, 8, 1) \
    X(backward, f32, 64, 32, 64, 4, 2) \
    X(backward, f32, 128, 32, 64, 4, 1) \
    X(backward, f32, 256, 16, 32, 4, 1)

#define BACKWARD_WIDE_KERNELS(X) \
    X(backward_wide, bf16, 128, 64, 128, 8, 1) \
    X(backward_wide, bf16, 256, 32, 64, 8, 1) \
    X(backward_wide, f16, 128, 64, 128, 8, 1) \
    X(backward_wide, f16, 256, 32, 64, 8, 1)

#define BACKWARD_FINISH_KERNELS(X) \
    X(backward_finish, bf16, 256, 0, 0, 8, 1) \
    X(backward_finish, f16, 256, 0, 0, 8, 1) \
    X(backward_finish, f32, 256, 0, 0, 8, 1)
// clang-format on
