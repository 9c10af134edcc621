/*
 * Inducer attention from C: attention in which every query has its own virtual key and value, forward and backward, on the CPU
 * or on an NVIDIA GPU.
 *
 * Link libinducer_attention_c (shared or static). Tensors are DLPack's DLTensor, which every framework can make of its own; they
 * are borrowed for the call. The equations and conventions are on the front page of the Rust crate's documentation; names and
 * shapes here are those of that page: Q is [B, Hq, N, d], K and V are [B, Hkv, M, d], Hq a multiple of Hkv, d 1 to 256, ranks 1 to 64.
 *
 *   - Query i stands at key position i + M - N: causal masks are aligned to the bottom right, and windows count from there. Where
 *     query_lengths are given it is i + key_length - query_length; packed sequences use their own lengths.
 *   - lse is the natural logarithm over real keys and prefix, without the virtual token.
 *   - Rows that see no key have lse = -inf and a virtual token of weight 1; rows that do not exist are 0 (lse -inf).
 *   - Strides are any, 0 included in what is read; the last dimension of Q, K, V, O, U, attn, prefix and adapters, and of gradients of
 *     Q's dtype, is contiguous. What is written shares no element with itself, with anything else that is written, or with anything
 *     that is read, lists included.
 *
 *     ia_attention a = {.struct_size = sizeof a, .q = &q, .k = &k, .v = &v, .options = IA_CAUSAL};
 *     ia_outputs out = {.struct_size = sizeof out, .o = &o, .lse = &lse};
 *     if (ia_forward(&a, &out, NULL) != IA_OK) fprintf(stderr, "%s\n", ia_last_error());
 *
 * Structs that are zero but for struct_size and what is named describe plain full attention; pointers that are null are things
 * that are not there. Every function may be called from any thread, and none unwinds into its caller. A process that is forked after the
 * first call has none of the library's threads: its calls return IA_INVALID.
 */
#ifndef INDUCER_ATTENTION_H
#define INDUCER_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* DLPack's own header, where it is used as well, must come first. */
#ifndef DLPACK_DLPACK_H_
typedef struct { int32_t device_type; int32_t device_id; } DLDevice;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
typedef struct {
  void *data;
  DLDevice device;     /* {kDLCPU = 1, ·} or {kDLCUDAHost = 3, ·}; for ia_cuda_... {kDLCUDA = 2, device} */
  int32_t ndim;
  DLDataType dtype;    /* {kDLFloat = 2, 32 or 16, 1}, {kDLBfloat = 4, 16, 1}; lists {kDLInt = 0, 32, 1} */
  int64_t *shape;
  int64_t *strides;    /* in elements, none below 0; null for row-major */
  uint64_t byte_offset;
} DLTensor;
#endif

/* What functions return. */
typedef enum {
  IA_OK = 0,
  IA_INVALID = 1,  /* a mistake in the arguments: nothing was written; ia_last_error() names the argument */
  IA_INTERNAL = 2, /* a bug in the library: outputs may be half written */
  IA_DEVICE = 3    /* ia_cuda_...: no driver, GPU or kernels to use, or an error of the driver's: outputs may be half written */
} ia_status;

/* This header's version of the interface; ia_abi_version() is the library's. They must be the same. */
#define IA_ABI_VERSION 2

/* Bits of ia_attention.options. A field that names one counts only where its bit is set. */
enum {
  IA_CAUSAL = 1,
  IA_SOFTMAX_SCALE = 2,
  IA_WINDOW_LEFT = 4,
  IA_WINDOW_RIGHT = 8,
  IA_SOFTCAP = 16,
  IA_DROPOUT = 32,
  IA_ADAPTIVE_LENGTH = 64,
  IA_ALL_OPTIONS = 127
};

/* Where the virtual token's score comes from. */
enum {
  IA_KEY_NONE = 0,            /* no virtual token: plain attention */
  IA_KEY_QUERY = 1,           /* P_k = Q */
  IA_KEY_RESIDUAL = 2,        /* P_k = Q + adapter(Q) */
  IA_KEY_LOGIT_PER_HEAD = 3,  /* the score itself, [Hq]: an attention sink */
  IA_KEY_LOGIT_PER_TOKEN = 4  /* the score itself, [B, Hq, N] */
};

/* What the virtual token adds to the output. */
enum {
  IA_VALUE_ZERO = 0,     /* O = (1 - lambda) attn */
  IA_VALUE_RESIDUAL = 1, /* O = attn + lambda delta */
  IA_VALUE_DIRECT = 2,   /* O = (1 - lambda) attn + lambda delta */
  IA_VALUE_EXTENDED = 3  /* O = attn and U = lambda h; the adapter's up projection is the caller's */
};

/* Between an adapter's projections. */
enum { IA_TANH = 0, IA_IDENTITY = 1 };

/* A low-rank adapter per query head, x -> act(x A + a) B + b, or the gradients of one (f32). */
typedef struct {
  const DLTensor *down_weight; /* A, [Hq, d, r] */
  const DLTensor *down_bias;   /* a, [Hq, r] */
  const DLTensor *up_weight;   /* B, [Hq, r, d]; null for the extended value */
  const DLTensor *up_bias;     /* b, [Hq, d]; null for the extended value */
} ia_adapter;

/* An attention problem. Q, K, V and prefix are of one dtype; each adapter's tensors and the logit are of that or f32. */
typedef struct {
  size_t struct_size;            /* sizeof(ia_attention) */
  const DLTensor *q;             /* [B, Hq, N, d]; any strides, the last 1 */
  const DLTensor *k;             /* [B, Hkv, M, d] */
  const DLTensor *v;             /* [B, Hkv, M, d] */
  const DLTensor *prefix_k;      /* [Hkv, L, d]: tokens before K that every query sees */
  const DLTensor *prefix_v;      /* [Hkv, L, d]; both or neither */

  const DLTensor *query_lengths; /* i32 [B]: rows that exist */
  const DLTensor *key_lengths;   /* i32 [B]: keys that exist, from the left */
  const DLTensor *key_starts;    /* i32 [B]: the first key that exists */
  const DLTensor *cu_seqlens_q;  /* i32 [sequences + 1]: packed sequences: Q is [1, Hq, total, d]; instead of the three above */
  const DLTensor *cu_seqlens_k;  /* i32 [sequences + 1] */
  const DLTensor *alibi_slopes;  /* f32 [Hq] or [B, Hq], contiguous; B counts sequences */

  uint32_t options;              /* IA_CAUSAL | ...; causal is the same as a window_right of 0, and stronger than any other */
  float softmax_scale;           /* IA_SOFTMAX_SCALE; otherwise 1/sqrt(d) */
  int64_t window_left;           /* IA_WINDOW_LEFT: keys seen to the left of a query's position, besides that */
  int64_t window_right;          /* IA_WINDOW_RIGHT */
  float softcap;                 /* IA_SOFTCAP: over 0 */
  float dropout_p;               /* IA_DROPOUT: 0 <= p < 1 */
  uint64_t dropout_seed;         /* IA_DROPOUT; a call that was captured into a CUDA graph has the same in every replay */

  uint32_t key;                  /* IA_KEY_... */
  uint32_t value;                /* IA_VALUE_... */
  uint32_t key_activation;       /* IA_TANH or IA_IDENTITY */
  uint32_t value_activation;
  ia_adapter key_adapter;        /* IA_KEY_RESIDUAL */
  ia_adapter value_adapter;      /* all values but IA_VALUE_ZERO */
  const DLTensor *logit;         /* IA_KEY_LOGIT_... */
  const DLTensor *positions;     /* i32 [B, N], contiguous, 0 or more: override those of IA_ADAPTIVE_LENGTH, which count from 1 */
  int64_t max_seqlen_q;          /* ia_cuda_...: no packed sequence has more rows (results of rows beyond are undefined); 0: not known */
  int64_t max_seqlen_k;          /* likewise keys, whose gradients are meant */
} ia_attention;

/* Where the forward's results go. They share memory with nothing else. */
typedef struct {
  size_t struct_size;   /* sizeof(ia_outputs) */
  const DLTensor *o;    /* [B, Hq, N, d], of Q's dtype */
  const DLTensor *lse;  /* f32 [B, Hq, N]; may be null, but the backward needs it */
  const DLTensor *u;    /* [B, Hq, N, r]; for IA_VALUE_EXTENDED, and only then */
  const DLTensor *attn; /* [B, Hq, N, d]; may be null: what the backward may take instead of O */
} ia_outputs;

/* What the backward reads besides the problem, and where its results go. They are overwritten, not added to, and share memory with
 * nothing else. */
typedef struct {
  size_t struct_size;          /* sizeof(ia_gradients) */
  const DLTensor *o;           /* the forward's O; or null, and */
  const DLTensor *attn;        /* the forward's attn: more accurate in 16 bits where |lambda delta| is many times |attn| */
  const DLTensor *lse;         /* the forward's */
  const DLTensor *d_o;         /* [B, Hq, N, d], of Q's dtype */
  const DLTensor *d_lse;       /* f32 [B, Hq, N]; null for 0 */
  const DLTensor *d_u;         /* [B, Hq, N, r], of Q's dtype; null for 0 */
  const DLTensor *d_q;         /* [B, Hq, N, d], of Q's dtype */
  const DLTensor *d_k;         /* [B, Hkv, M, d] */
  const DLTensor *d_v;         /* [B, Hkv, M, d] */
  const DLTensor *d_prefix_k;  /* f32 [Hkv, L, d]; both or neither. These and the rest may be null: not wanted */
  const DLTensor *d_prefix_v;  /* f32 [Hkv, L, d] */
  ia_adapter d_key_adapter;    /* f32, of the adapter's shapes; all of an adapter's or none */
  ia_adapter d_value_adapter;
  const DLTensor *d_logit;     /* f32, of the logit's shape */
} ia_gradients;

/* Scratch memory, kept between calls by one thread at a time. A call that is given one that is too small makes it larger. */
typedef struct ia_workspace ia_workspace;

/* IA_ABI_VERSION of the library. */
uint32_t ia_abi_version(void);

/* Name, version, the instruction set that calls use, and whether there are kernels for GPUs, for a log: "inducer-attention 0.1.0, Avx2, CUDA
 * kernels". */
const char *ia_description(void);

/* What went wrong in this thread's last call that did not return IA_OK; until its next such call. Never null. */
const char *ia_last_error(void);

/* Threads that calls work on, 1 to 4096; the processors' number if it is never set. Only before the first call, and once. Results do not
 * depend on it. */
ia_status ia_set_threads(size_t threads);

/* An empty workspace. Free it with ia_workspace_free, which takes null, too. */
ia_workspace *ia_workspace_new(void);
void ia_workspace_free(ia_workspace *workspace);

/* Bytes of scratch that a pass of this problem needs: what a workspace will grow to. */
ia_status ia_forward_workspace(const ia_attention *attention, size_t *bytes);
ia_status ia_backward_workspace(const ia_attention *attention, size_t *bytes);

/* Computes O, and lse, U and attn where there is room for them. Without a workspace, scratch is allocated for the call. */
ia_status ia_forward(const ia_attention *attention, const ia_outputs *outputs, ia_workspace *workspace);

/* Computes dQ, dK, dV and the other gradients that there is room for. */
ia_status ia_backward(const ia_attention *attention, const ia_gradients *gradients, ia_workspace *workspace);

/*
 * The same on an NVIDIA GPU (Ampere or newer), where the library was built with feature cuda and nvcc.
 *
 * All tensors, lists included, are in the memory of the device that Q is on. Calls are enqueued on `stream`, a CUstream or cudaStream_t of
 * the device's primary context (null: the legacy default stream), and return without waiting; until the stream has come past a call, its
 * memory stays allocated and unchanged. They allocate nothing, may be captured into a CUDA graph once the device's kernels are loaded
 * (ia_cuda_load; to load them while any thread captures ends that capture), and leave the thread's current context as it was. The primary
 * context must not be reset once they are loaded. In a forked process the driver does not work, and calls return IA_DEVICE.
 *
 *   - head_dim is a multiple of 8. Rows of Q, K, V and prefix, and in the backward those of O or attn and dO, begin at multiples of 16
 *     bytes; rows of results of Q's dtype at multiples of two elements.
 *   - What lists say cannot be checked: kernels clamp it to what the tensors hold. Results must not overlap lists.
 */

/* Loads the kernels of a device, which its first call does otherwise: to know at once whether they can be used, or before a capture. */
ia_status ia_cuda_load(int32_t device);

/* As ia_forward, which needs no scratch memory here. */
ia_status ia_cuda_forward(const ia_attention *attention, const ia_outputs *outputs, void *stream);

/* Bytes of the device's memory that a backward of this problem needs as workspace. */
ia_status ia_cuda_backward_workspace(const ia_attention *attention, size_t *bytes);

/* As ia_backward, with `bytes` bytes of the device's memory at `workspace`, a multiple of 256 and not null. Gradients are the
 * same from run to run. */
ia_status ia_cuda_backward(const ia_attention *attention, const ia_gradients *gradients, void *workspace, size_t bytes, void *stream);

#ifdef __cplusplus
}
#endif
#endif
