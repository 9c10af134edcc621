// As probes.cu, for products of warpgroups (wgmma): tiles laid out as core/atoms.cuh has it, multiplied by way of its operands.
// tests/probes/warpgroups.rs has the expected values.
#include "core/atoms.cuh"

namespace inducer {

struct ProbeParams {
    const void* input;
    void* output;
};

constexpr int kThreads = 128, kRows = 64;

// Lays Rows rows of D elements down as a tile; returns where the input goes on.
template <class T, int D, int Rows>
DEVICE const T* lay_down(char* tile, const T* from) {
    NO_UNROLL
    for (int i = static_cast<int>(thread_index()); i < Rows * D; i += kThreads) *AtomTile<T, D>::element(tile, i / D, i % D) = from[i];
    return from + Rows * D;
}

// Stores a warpgroup's 64 rows.
template <int NT>
DEVICE void store(float* to, const float (&c)[NT][4]) {
    const int warp = static_cast<int>(thread_index()) / 32, lane = static_cast<int>(thread_index()) % 32;
    UNROLL
    for (int nt = 0; nt < NT; ++nt) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
            const int row = warp * 16 + lane / 4 + e / 2 * 8, column = nt * 8 + lane % 4 * 2 + e % 2;
            to[row * NT * 8 + column] = c[nt][e];
        }
    }
}

// Where the swizzle begins, if that is where the pattern does; else nothing is computed.
DEVICE bool is_aligned(const char* tile) { return shared_address(tile) % kAtomBytes == 0; }

// In: A [A, D], B [N, D]. Out: A·Bᵀ, of A's last 64 rows.
template <class T, int A, int D, int N>
DEVICE void probe_rows(const ProbeParams& params) {
    char *a = shared_memory_of_warpgroups(), *b = a + A * D * 2;
    if (!is_aligned(a)) return;
    lay_down<T, D, N>(b, lay_down<T, D, A>(a, static_cast<const T*>(params.input)));
    fence_async_proxy();
    sync_threads();
    float c[N / 8][4];
    begin_rows_by_rows<T, D>(c, rows_matrix<D>(a, A - kRows), rows_matrix<D>(b));
    warpgroup_wait<0>();
    pin(c);
    store(static_cast<float*>(params.output), c);
}

// In: P [64, K], B [K, D]. Out: 1 + P·B, P in registers.
template <class T, int D, int K>
DEVICE void probe_registers(const ProbeParams& params) {
    char* b = shared_memory_of_warpgroups();
    const T* from = static_cast<const T*>(params.input);
    lay_down<T, D, K>(b, from + kRows * K);
    fence_async_proxy();
    sync_threads();
    const int warp = static_cast<int>(thread_index()) / 32, lane = static_cast<int>(thread_index()) % 32;
    u32 p[K / 16][4];
    float c[D / 8][4];
    UNROLL
    for (int kt = 0; kt < K / 16; ++kt) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const int row = warp * 16 + lane / 4 + i % 2 * 8, column = kt * 16 + i / 2 * 8 + lane % 4 * 2;
            p[kt][i] = *reinterpret_cast<const u32*>(from + row * K + column);
        }
    }
    UNROLL
    for (int nt = 0; nt < D / 8; ++nt) {
        UNROLL
        for (int e = 0; e < 4; ++e) c[nt][e] = 1.0f;
    }
    begin_registers_by_tile<T, D>(c, p, columns_matrix<D>(b));
    warpgroup_wait<0>();
    pin(c);
    store(static_cast<float*>(params.output), c);
}

// In: A [K, DA], B [K, D]. Out: Aᵀ·B, of A's last 64 columns and B's columns 64 to 127.
template <class T, int DA, int D, int K>
DEVICE void probe_columns(const ProbeParams& params) {
    char *a = shared_memory_of_warpgroups(), *b = a + K * DA * 2;
    lay_down<T, D, K>(b, lay_down<T, DA, K>(a, static_cast<const T*>(params.input)));
    fence_async_proxy();
    sync_threads();
    float c[8][4];
    begin_columns_by_tile<T, DA, D, K>(c, columns_matrix<DA>(a + (DA / 64 - 1) * kAtomBytes), columns_matrix<D>(b + kAtomBytes));
    warpgroup_wait<0>();
    pin(c);
    store(static_cast<float*>(params.output), c);
}

}  // namespace inducer

#define ROWS(type, a, d, n)                                                                                    \
    KERNEL(probe_rows_##type##_a##a##_d##d##_n##n, inducer::ProbeParams, 128, 1, (a + n) * d * 2) {           \
        inducer::probe_rows<inducer::type, a, d, n>(params);                                                  \
    }
#define REGISTERS(type, d, k)                                                                                  \
    KERNEL(probe_registers_##type##_d##d##_k##k, inducer::ProbeParams, 128, 1, k * d * 2) {                   \
        inducer::probe_registers<inducer::type, d, k>(params);                                                \
    }
#define COLUMNS(type, a, d, k)                                                                                 \
    KERNEL(probe_columns_##type##_a##a##_d##d##_k##k, inducer::ProbeParams, 128, 1, k * (a + d) * 2) {        \
        inducer::probe_columns<inducer::type, a, d, k>(params);                                               \
    }
#define PROBES(type)                                                                                           \
    ROWS(type, 64, 64, 256)                                                                                    \
    ROWS(type, 64, 64, 128)                                                                                    \
    ROWS(type, 64, 128, 64)                                                                                    \
    ROWS(type, 64, 128, 32)                                                                                    \
    ROWS(type, 128, 64, 128)                                                                                   \
    ROWS(type, 64, 256, 16)                                                                                    \
    REGISTERS(type, 64, 64)                                                                                    \
    REGISTERS(type, 128, 64)                                                                                   \
    REGISTERS(type, 256, 64)                                                                                   \
    COLUMNS(type, 64, 128, 64)                                                                                 \
    COLUMNS(type, 128, 128, 64)                                                                                \
    COLUMNS(type, 64, 128, 128)
PROBES(f16)
PROBES(bf16)
