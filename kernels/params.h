// What a launch hands to a kernel: plain structs, shared byte for byte with src/cuda/params.rs (a test compares sizes and
// offsets). Pointers are addresses of device memory (of host memory in the emulator), strides are counted in elements.
#pragma once

#include <stdint.h>

namespace inducer {

// A tensor [B, H, N, d] whose last dimension is contiguous. Rows of 16-bit and f32 tensors begin at multiples of 16 bytes.
// `data` is null where the tensor is absent.
struct Tensor {
    void* data;
    int64_t batch, head, row;
};

// An f32 tensor with up to three dimensions and any strides: lse [B, H, N], parameter gradients such as [Hq, d, r].
struct Strided {
    float* data;
    int64_t stride[3];
};

// A, a, B, b of one adapter: [Hq, d, r], [Hq, r], [Hq, r, d], [Hq, d]; last dimensions contiguous. Null without adapter; the
// extended value has no up projection.
struct Adapter {
    const void* down_weight;
    const void* down_bias;
    const void* up_weight;
    const void* up_bias;
    int64_t down_weight_head, down_weight_row;
    int64_t down_bias_head;
    int64_t up_weight_head, up_weight_row;
    int64_t up_bias_head;
    int32_t rank;           // 1 to 64, 0 without adapter
    int32_t identity;       // 1: no tanh
    int32_t is_f32;         // 1: tensors are f32, 0: of Q's type
    int32_t padding;
};

enum KeyKind : int32_t { kKeyNone = 0, kKeyQuery = 1, kKeyResidual = 2, kKeyLogitPerHead = 3, kKeyLogitPerToken = 4 };
enum ValueKind : int32_t { kValueZero = 0, kValueResidual = 1, kValueDirect = 2, kValueExtended = 3 };

enum Flags : int32_t {
    kCausal = 1,            // positions for adaptive length count from the offset
    kTransform = 2,         // scores are scaled, capped and biased one by one: softcap, ALiBi, or a scale that is not positive
    kSoftcap = 4,
    kAlibi = 8,
    kDropout = 16,
    kAdaptiveLength = 32,
    kLogitIsF32 = 64,       // given logits are f32, not of Q's type
    kFromAttention = 128,   // backward: the saved output is attn, not O
    kUnordered = 256,       // backward: dQ may be added up in any order (faster, not deterministic)
};

// The attention problem. Lists may live on the device and hold anything: kernels clamp what they read from them.
struct Problem {
    Tensor q;               // [B, Hq, N, d]; packed sequences: B = 1, N = total
    Tensor k, v;            // [B, Hkv, M, d]
    Tensor prefix_k, prefix_v;      // [Hkv, L, d], batch stride 0
    Adapter key, value;
    const void* logit;      // [Hq] or [B, Hq, N]
    int64_t logit_stride[3];        // batch, head, row
    const int32_t* query_lengths;   // [B] or null, likewise below
    const int32_t* key_lengths;
    const int32_t* key_starts;
    const int32_t* cu_seqlens_q;    // [sequences + 1]
    const int32_t* cu_seqlens_k;
    const int32_t* positions;       // [B, N]
    const float* alibi_slopes;      // [Hq] or [sequences, Hq]
    int32_t alibi_sequence_stride;  // 0 or Hq
    int32_t sequences;      // batch entries, or packed sequences
    int32_t query_heads, kv_heads;
    int32_t rows, keys;     // N, M of the tensors
    int32_t head_dim;       // d, a multiple of 8
    int32_t prefix_len;     // L
    int32_t window_left, window_right;  // INT32_MAX: none; causal is window_right = 0
    int32_t flags;
    int32_t key_kind, value_kind;
    float scale;            // σ
    float softcap;
    uint32_t dropout_threshold;     // see src/dropout.rs
    float dropout_scale;
    uint32_t dropout_key[2];
    int32_t padding;
};

struct ForwardParams {
    Problem problem;
    Tensor o;               // of Q's type; padding rows become 0
    Tensor u;               // [B, Hq, N, r_v], extended value only
    Tensor attn;            // null: not wanted
    Strided lse;            // data null: not wanted
    int32_t row_tiles;      // tiles along a sequence: ceil(longest possible sequence / rows of a tile)
    int32_t pairs;          // of sequence and head: row_tiles · pairs tiles in all
    int32_t blocks;         // of the grid
    int32_t group;          // pairs whose keys are worked on at a time, where blocks take several tiles
    int32_t folded;         // where they do: 1, blocks take tiles by twos, one from either end of a sequence; row_tiles is even
    int32_t padding;
};

// Where the gradients of an adapter go, f32: like Adapter. `data` null: not wanted.
struct AdapterGradients {
    Strided down_weight, down_bias, up_weight, up_bias;
};

struct BackwardParams {
    Problem problem;
    Tensor saved;           // O, or attn (kFromAttention)
    Tensor d_o;
    Tensor d_u;             // null: zero
    Strided lse;
    Strided d_lse;          // data null: zero
    Tensor d_q, d_k, d_v;   // of Q's type
    Strided d_prefix_k, d_prefix_v;     // [Hkv, L, d]; data null: not wanted
    AdapterGradients d_key, d_value;
    Strided d_logit;        // [Hq] or [B, Hq, N]; data null: not wanted

    // Workspace. Rows are numbered as in Q's tensor: (batch * Hq + head) * N + row, but for those of dQ.
    float* d_q_sum;         // [B, Hq, gradient_blocks, 16·d] f32: dQ before rounding, see core/query_gradient.cuh
    float* row_factor;      // [B, Hq, N]: w
    float* row_constant;    // [B, Hq, N]: D'
    float* partials;        // [chunks, Hq, partial_size]: sums of adapter gradients, see core/partials.cuh
    float* prefix_partials; // [prefix_groups, 2, Hkv, L, d]: dK and dV of the prefix, see core/partials.cuh
    int32_t* turns;         // [B, Hq, turn_tiles]: how many key tiles have added to a tile of dQ; zeroed by prepare
    int32_t* ticket;        // [1]: next task of the main pass; zeroed by prepare
    int32_t row_tiles;      // tiles of queries along a sequence, main pass
    int32_t turn_tiles;     // row_tiles; packed sequences: those of all, N / rows of a tile + sequences + 1
    int32_t prepare_tiles;  // tiles of queries along a sequence, prepare
    int32_t chunks;         // partial sums per head
    int32_t key_tiles;      // tiles of keys along a sequence
    int32_t prefix_tiles;   // tiles of the prefix
    int32_t prefix_groups;  // of sequences, each of which has its own partial sums
    int32_t partial_size;   // floats from one partial sum to the next, a multiple of 4
    int32_t finish_blocks;  // blocks of finish, any number
    int32_t gradient_blocks;            // of 16 rows, of d_q_sum: those of a sequence; packed sequences: N / 16 + sequences + 1
    int32_t sequence_blocks;            // of 16 rows, along a sequence: prepare_tiles, in other units
    int32_t padding;
};

}  // namespace inducer
