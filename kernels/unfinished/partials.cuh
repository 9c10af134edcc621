// Layout of a partial sum of one head's adapter gradients: rows of head_dim floats, then sums over rows.
//
//     dA_kᵀ [r_k]  dB_k [r_k]  db_k [1]      if the virtual key has an adapter
//     dA_vᵀ [r_v]  dB_v [r_v]  db_v [1]      if the value has one; the extended value has dA_vᵀ only
//     da_k [r_k]   da_v [r_v]  Σ ds0 [1]     floats
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

}  // namespace inducer
