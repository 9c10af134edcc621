// Layouts of partial sums that finish adds up.
//
// Of one head's adapter gradients: rows of head_dim floats, then sums over rows.
//
//     dA_kᵀ [r_k]  dB_k [r_k]  db_k [1]      if the virtual key has an adapter
//     dA_vᵀ [r_v]  dB_v [r_v]  db_v [1]      if the value has one; the extended value has dA_vᵀ only
//     da_k [r_k]   da_v [r_v]  Σ ds0 [1]     floats
//
// Of the prefix's gradients, for each group of sequences: dK [Hkv, L, head_dim], dV likewise.
#pragma once

#include "sequence.cuh"

namespace inducer {

struct PartialLayout {
    i32 key_rank, value_rank;
    i32 key_rows;       // of head_dim floats
    i32 value_rows;
    i32 biases;         // where the sums over rows begin
    i32 floats;         // of the whole

    DEVICE explicit PartialLayout(const Problem& p) {
        key_rank = p.key.rank;
        value_rank = p.value.rank;
        key_rows = key_rank > 0 ? 2 * key_rank + 1 : 0;
        value_rows = value_rank == 0 ? 0 : p.value_kind == kValueExtended ? value_rank : 2 * value_rank + 1;
        biases = (key_rows + value_rows) * p.head_dim;
        floats = biases + key_rank + value_rank + 1;
    }
};

// Floats of a group's dK or dV of the prefix.
DEVICE i64 prefix_partial_size(const BackwardParams& params) {
    return static_cast<i64>(params.problem.kv_heads) * params.problem.prefix_len * params.problem.head_dim;
}

// Where a group's dK of a prefix key begins; dV is prefix_partial_size() further.
DEVICE i64 prefix_partial(const BackwardParams& params, i32 group, i32 kv_head, i32 key) {
    const i64 row = static_cast<i64>(kv_head) * params.problem.prefix_len + key;
    return group * (2 * prefix_partial_size(params)) + row * params.problem.head_dim;
}

}  // namespace inducer
