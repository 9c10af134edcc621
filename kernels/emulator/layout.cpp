// Sizes and offsets of the launch structs, for the test that compares them with src/cuda/params.rs.
#include <stddef.h>
#include <stdint.h>

#include "../params.h"

namespace {

struct Entry {
    const char* name;
    uint64_t value;
};

#define SIZE(type) {#type, sizeof(inducer::type)}
#define FIELD(type, field) {#type "." #field, offsetof(inducer::type, field)}

const Entry kEntries[] = {
    SIZE(Tensor), SIZE(Strided), SIZE(Adapter), SIZE(Problem), SIZE(ForwardParams), SIZE(AdapterGradients), SIZE(BackwardParams),
    FIELD(Tensor, batch), FIELD(Tensor, head), FIELD(Tensor, row), FIELD(Strided, stride),
    FIELD(Adapter, down_weight), FIELD(Adapter, down_bias), FIELD(Adapter, up_weight), FIELD(Adapter, up_bias),
    FIELD(Adapter, down_weight_head), FIELD(Adapter, down_weight_row), FIELD(Adapter, down_bias_head),
    FIELD(Adapter, up_weight_head), FIELD(Adapter, up_weight_row), FIELD(Adapter, up_bias_head),
    FIELD(Adapter, rank), FIELD(Adapter, identity), FIELD(Adapter, is_f32),
    FIELD(Problem, q), FIELD(Problem, k), FIELD(Problem, v), FIELD(Problem, prefix_k), FIELD(Problem, prefix_v),
    FIELD(Problem, key), FIELD(Problem, value), FIELD(Problem, logit), FIELD(Problem, logit_stride),
    FIELD(Problem, query_lengths), FIELD(Problem, key_lengths), FIELD(Problem, key_starts), FIELD(Problem, cu_seqlens_q),
    FIELD(Problem, cu_seqlens_k), FIELD(Problem, positions), FIELD(Problem, alibi_slopes),
    FIELD(Problem, alibi_sequence_stride), FIELD(Problem, sequences), FIELD(Problem, query_heads), FIELD(Problem, kv_heads),
    FIELD(Problem, rows), FIELD(Problem, keys), FIELD(Problem, head_dim), FIELD(Problem, prefix_len),
    FIELD(Problem, window_left), FIELD(Problem, window_right), FIELD(Problem, flags), FIELD(Problem, key_kind),
    FIELD(Problem, value_kind), FIELD(Problem, scale), FIELD(Problem, softcap), FIELD(Problem, dropout_threshold),
    FIELD(Problem, dropout_scale), FIELD(Problem, dropout_key),
    FIELD(ForwardParams, problem), FIELD(ForwardParams, o), FIELD(ForwardParams, u), FIELD(ForwardParams, attn),
    FIELD(ForwardParams, lse), FIELD(ForwardParams, row_tiles),
    FIELD(ForwardParams, pairs), FIELD(ForwardParams, blocks), FIELD(ForwardParams, group), FIELD(ForwardParams, folded),
    FIELD(AdapterGradients, down_weight), FIELD(AdapterGradients, down_bias), FIELD(AdapterGradients, up_weight),
    FIELD(AdapterGradients, up_bias),
    FIELD(BackwardParams, problem), FIELD(BackwardParams, saved), FIELD(BackwardParams, d_o), FIELD(BackwardParams, d_u),
    FIELD(BackwardParams, lse), FIELD(BackwardParams, d_lse), FIELD(BackwardParams, d_q), FIELD(BackwardParams, d_k),
    FIELD(BackwardParams, d_v), FIELD(BackwardParams, d_prefix_k), FIELD(BackwardParams, d_prefix_v),
    FIELD(BackwardParams, d_key), FIELD(BackwardParams, d_value), FIELD(BackwardParams, d_logit),
    FIELD(BackwardParams, d_q_sum), FIELD(BackwardParams, row_factor), FIELD(BackwardParams, row_constant),
    FIELD(BackwardParams, partials), FIELD(BackwardParams, prefix_partials), FIELD(BackwardParams, turns),
    FIELD(BackwardParams, ticket), FIELD(BackwardParams, turn_tiles), FIELD(BackwardParams, prefix_groups),
    FIELD(BackwardParams, row_tiles), FIELD(BackwardParams, prepare_tiles), FIELD(BackwardParams, chunks),
    FIELD(BackwardParams, key_tiles), FIELD(BackwardParams, prefix_tiles), FIELD(BackwardParams, partial_size),
    FIELD(BackwardParams, finish_blocks),
    FIELD(BackwardParams, gradient_blocks), FIELD(BackwardParams, sequence_blocks),
};

}  // namespace

// The size of a struct, or the offset of a field; -1 if there is none of that name.
extern "C" int64_t inducer_params_layout(const char* name) {
    for (const Entry& entry : kEntries) {
        const char *a = entry.name, *b = name;
        while (*a != 0 && *a == *b) ++a, ++b;
        if (*a == *b) return static_cast<int64_t>(entry.value);
    }
    return -1;
}
