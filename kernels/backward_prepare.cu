// What the backward does before its main pass: for every row the factor w and the constant D′ with which attention's backward
// takes the inducer in, the inducer's part of dQ, and the gradients of the adapters.
//
//     Residual:  ds0 = λ(1−λ) m₀ dO·Δ      D′ = dO·attn + ds0 − dLSE     w = 1          dO·attn = dO·O − m₀λ dO·Δ
//     Direct:    ds0 = λ(m₀ dO·Δ − dO·O)   D′ = (1−λ) dO·O − dLSE        w = 1 − λ
//     Extended:  ds0 = λ(1−λ) m₀ dU·h      D′ = dO·attn + ds0 − dLSE     w = 1
//     dz_k = τσ ds0 (W ∘ (1−u²))           dz_v = m₀λ G ∘ (1−h²)         G = dO B_vᵀ, Extended: dU
//     dQ   = τσ ds0 (2Q + u B_k + b_k) + dz_k A_kᵀ + dz_v A_vᵀ
//
// A block belongs to one head and takes every `chunks`-th tile of its rows, in order; a warp owns 16 rows of a tile, whose part
// of dQ stays in its registers. Ranks come 16 at a time: adapters are staged as in the forward (core/inducer.cuh), a bias being
// one more rank whose hidden unit is 1. The value's ranks are gone through twice, first for dO·Δ, on which ds0 depends. An adapter
// of one chunk is staged once for all tiles, if there is room for both adapters.
//
// Gradients of adapters sum over rows: coefficients (dz, h, …) of the tile's rows are laid down in shared memory, a warp takes
// some of the columns of coefficientsᵀ·Q or coefficientsᵀ·dO, and adds them to the block's own partial sum in global memory.
// Nothing is added to by two blocks, and finish adds the partial sums up in order: results do not depend on timing.
//
// Shared memory: Q, dO [rows], one or two stages [32 rows], each of head_dim columns, coefficients [rows × 16]; 50 KB for bf16
// at head_dim 128.
#include "core/inducer.cuh"
#include "core/partials.cuh"
#include "core/query_gradient.cuh"
#include "list.h"

namespace inducer {

// What a block works on, in shared memory, from where it is read when it is needed.
struct PrepareTask {
    PartialLayout layout;
    float* partial;         // the block's partial sum
    i32 head;
    i32 next;               // tile of the list of all sequences' tiles; in the end, more than there are
    i32 last;               // whether the tile is a sequence's last
    Sequence sequence;
    i32 row, rows;          // first row of the tile, local to the sequence, and how many
    u32 dropout_head;
    i32 staged[2];          // what lies in the stages
};
constexpr int kTaskBytes = 256;
static_assert(sizeof(PrepareTask) <= kTaskBytes);

template <class T, int D, int Rows, int Warps>
struct PrepareTile {
    static constexpr int kThreads = Warps * 32;
    static constexpr int kQueryBytes = Rows * kRowBytes<T, D>;
    static constexpr int kStageBytes = kStageRows * kRowBytes<T, D>;
    static constexpr int kCoefficientBytes = Rows * kRowBytes<T, kChunk>;
    static constexpr int kSumBytes = (Warps * kChunk + Rows + Warps) * 4;
    static constexpr int kOneStage = kTaskBytes + 2 * kQueryBytes + kStageBytes + kCoefficientBytes + kSumBytes;
    static constexpr bool kBothStages = kOneStage + kStageBytes <= kSharedOfAll;
    static constexpr int kSharedBytes = kOneStage + (kBothStages ? kStageBytes : 0);
    // How a sum over rows is shared: columns of a warp, as many at once as registers allow.
    static constexpr int kColumns = D / Warps;
    static constexpr int kColumnTiles = kColumns / 8 < 4 || D == 256 ? 2 : 4;
    // Whether registers last for h and G to be kept from one pass to the next.
    static constexpr bool kKeepsUnits = true;
    static_assert(Rows == 16 * Warps && kColumns % (8 * kColumnTiles) == 0, "a warp owns 16 rows");
};

// x lies between 2^exponent_of(x) and twice that.
DEVICE int exponent_of(float x) { return static_cast<int>(as_bits(x) >> 23 & 255) - 127; }
// Where registers are fewest, a lane reads its number anew.
template <int D>
DEVICE int lane_of() { return D == 64 ? lane_index_anew() : lane_index(); }

// For powers from -126 to 127.
DEVICE float power_of_two(int power) { return as_float(static_cast<u32>(power + 127) << 23); }

// Zeroes `count` numbers; blocks share them out.
template <class T, int Threads>
DEVICE void clear_shared_out(T* to, i64 count, i32 blocks) {
    NO_UNROLL
    for (i64 i = static_cast<i64>(block_x()) * Threads + thread_index(); i < count; i += static_cast<i64>(blocks) * Threads) {
        to[i] = T{};
    }
}

template <class T, int D, int Rows, int Warps>
DEVICE void backward_prepare(const BackwardParams& params) {
    using Tile = PrepareTile<T, D, Rows, Warps>;
    constexpr int Threads = Tile::kThreads, OT = D / 8;
    const Problem& p = params.problem;
    auto& task = *reinterpret_cast<PrepareTask*>(shared_memory());
    char* q_tile = shared_memory() + kTaskBytes;
    char* d_o_tile = q_tile + Tile::kQueryBytes;
    char* stages = d_o_tile + Tile::kQueryBytes;
    char* coefficients = stages + (Tile::kBothStages ? 2 : 1) * Tile::kStageBytes;
    float* sums = reinterpret_cast<float*>(coefficients + Tile::kCoefficientBytes);     // [Warps, kChunk]
    float* row_numbers = sums + Warps * kChunk;                                            // [Rows]: dO·saved, later ds0
    float* maxima = row_numbers + Rows;                                                     // [Warps]: of coefficients
    const Sequence& s = task.sequence;
    const int warp_row = warp_index() * 16;
    const bool has_inducer = p.key_kind != kKeyNone;
    const PartialLayout& layout = task.layout;
    const i32& head = task.head;
    float* const& partial = task.partial;

    const i64 batch = p.cu_seqlens_q != nullptr ? 1 : p.sequences;
    clear_shared_out<i32, Threads>(params.turns, batch * p.query_heads * params.turn_tiles, p.query_heads * params.chunks);
    if (block_x() == 0 && thread_index() == 0) *params.ticket = 0;
    if (thread_index() == 0) {
        const i32 chunk = static_cast<i32>(block_x()) % params.chunks;
        task.layout = PartialLayout(p);
        task.head = static_cast<i32>(block_x()) / params.chunks;
        task.partial = params.partials + (static_cast<i64>(chunk) * p.query_heads + task.head) * params.partial_size;
        task.next = chunk;
        task.staged[0] = task.staged[1] = -1;
    }
    sync_threads();
    NO_UNROLL
    for (int i = static_cast<int>(thread_index()); i < layout.floats; i += Threads) partial[i] = 0.0f;

    // Stages ranks `rank` on of an adapter, unless they are there. Collective.
    auto stage = [&](bool is_value, i32 rank) {
        const int place = Tile::kBothStages && is_value ? 1 : 0;
        const i32 name = rank * 2 + (is_value ? 1 : 0);
        char* to = stages + place * Tile::kStageBytes;
        if (task.staged[place] != name) {
            sync_threads();     // whoever read the last one is done
            stage_adapter<RowTile<T, D>, Threads, 2>(to, is_value ? p.value : p.key, head, rank, p.head_dim, static_cast<int>(thread_index()));
            if (thread_index() == 0) task.staged[place] = name;
            sync_threads();
        }
        return to;
    };

    // dU of the warp's rows, of ranks `rank` on.
    auto read_d_u = [&](float(&x)[1][kChunkTiles][4], i32 rank) {
        UNROLL
        for (int nt = 0; nt < kChunkTiles; ++nt) {
            UNROLL
            for (int e = 0; e < 4; ++e) {
                const int lane = lane_of<D>(), row = warp_row + e / 2 * 8 + lane / 4, j = rank + nt * 8 + lane % 4 * 2 + e % 2;
                if (row >= task.rows || j >= p.value.rank) continue;
                const i64 at = static_cast<i64>(s.row_base) + task.row + row;
                x[0][nt][e] = to_float(row_address<const T>(params.d_u, s.batch, head, at)[j]);
            }
        }
    };

    // Adds coefficientsᵀ·tile to `count` rows of the partial sum. Collective; ends with the coefficients' memory free.
    auto add_product = [&](const float(&x)[1][kChunkTiles][4], const char* tile, i32 row, i32 count) {
        // Coefficients are of the order of λ dO, where f16 has few digits: its tiles are scaled, each by a power of two of its
        // own. The largest coefficient comes near 2^14; with the exponent of 0 or of an infinity any factor does.
        float scale = 1.0f, inverse = 1.0f;
        if constexpr (is_f16<T>) {
            float most = 0.0f;
            UNROLL
            for (int nt = 0; nt < kChunkTiles; ++nt) {
                UNROLL
                for (int e = 0; e < 4; ++e) most = ::fmaxf(most, ::fabsf(x[0][nt][e]));
            }
            NO_UNROLL
            for (int by = 1; by < 32; by *= 2) most = ::fmaxf(most, shuffle_xor(most, by));
            if (lane_index() == 0) maxima[warp_index()] = most;
            sync_threads();
            NO_UNROLL
            for (int warp = 0; warp < Warps; ++warp) most = ::fmaxf(most, maxima[warp]);
            const int power = clamp(14 - exponent_of(most), -126, 126);
            scale = power_of_two(power);
            inverse = power_of_two(-power);
        }
        // Where the lane's coefficients lie is computed anew, as there are no registers to keep it in.
        const int thread = static_cast<int>(thread_index_anew()), own_row = thread / 32 * 16 + thread % 32 / 4;
        UNROLL
        for (int nt = 0; nt < kChunkTiles; ++nt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                store_pair(element_address<T, kChunk>(coefficients, own_row + half * 8, nt * 8 + thread % 4 * 2),
                           x[0][nt][half * 2] * scale, x[0][nt][half * 2 + 1] * scale);
            }
        }
        sync_threads();
        NO_UNROLL
        for (int part = 0; part < Tile::kColumns; part += Tile::kColumnTiles * 8) {
            const int first = warp_index() * Tile::kColumns + part;
            // The lane's first pair of the result. Whole blocks of columns exist or do not.
            const int lane = lane_index_anew();
            float* const to = partial + static_cast<i64>(row + lane / 4) * p.head_dim + first + lane % 4 * 2;
            auto exists = [&](int nt, int half) { return first + nt * 8 < p.head_dim && half * 8 + lane / 4 < count; };
            auto place = [&](int nt, int half) { return reinterpret_cast<f32x2*>(to + half * 8 * p.head_dim + nt * 8); };
            // What is there is read first, so that it comes while the product is under way.
            f32x2 before[Tile::kColumnTiles][2] = {};
            UNROLL
            for (int nt = 0; nt < Tile::kColumnTiles; ++nt) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    if (exists(nt, half)) before[nt][half] = *place(nt, half);
                }
            }
            float c[1][Tile::kColumnTiles][4];
            clear(c);
            ColumnsByTile<T, kChunk, D, 1, Tile::kColumnTiles, Rows>::add(c, coefficients, 0, tile, first);
            UNROLL
            for (int nt = 0; nt < Tile::kColumnTiles; ++nt) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    const f32x2 old = before[nt][half];
                    if (!exists(nt, half)) continue;
                    *place(nt, half) = {fused_multiply_add(c[0][nt][half * 2], inverse, old.x),
                                        fused_multiply_add(c[0][nt][half * 2 + 1], inverse, old.y)};
                }
            }
        }
        sync_threads();
    };
    // Adds the coefficients' sums over the tile's rows to `count` floats of the partial sum. Collective; a barrier must follow
    // before it is called again.
    auto add_sums = [&](const float(&x)[1][kChunkTiles][4], i32 at, i32 count) {
        UNROLL
        for (int nt = 0; nt < kChunkTiles; ++nt) {
            UNROLL
            for (int e = 0; e < 2; ++e) {
                float sum = x[0][nt][e] + x[0][nt][e + 2];
                sum += shuffle_xor(sum, 4);
                sum += shuffle_xor(sum, 8);
                sum += shuffle_xor(sum, 16);
                if (lane_row() == 0) sums[warp_index() * kChunk + fragment_column(nt, e)] = sum;
            }
        }
        sync_threads();
        if (static_cast<i32>(thread_index()) < minimum(count, kChunk)) {
            float sum = 0.0f;
            NO_UNROLL
            for (int warp = 0; warp < Warps; ++warp) sum += sums[warp * kChunk + static_cast<int>(thread_index())];
            partial[at + static_cast<i32>(thread_index())] += sum;
        }
    };

    NO_UNROLL
    while (true) {
        sync_threads();     // all are done with the last tile
        if (thread_index() == 0) {
            const i32 index = task.next / params.prepare_tiles, tile = task.next % params.prepare_tiles;
            task.row = -1;
            if (index < p.sequences + (p.cu_seqlens_q != nullptr ? 1 : 0)) {
                task.sequence = read_sequence(p, index);
                task.row = tile * Rows;
                task.rows = minimum(s.rows - task.row, Rows);
                task.last = tile == params.prepare_tiles - 1;
                task.dropout_head = static_cast<u32>(index) * static_cast<u32>(p.query_heads) + static_cast<u32>(head);
            }
            task.next += params.chunks;
        }
        sync_threads();
        if (task.row < 0) return;
        {
            // Rows that belong to no sequence have no gradient, nor have those that a caller's upper bound of the lengths leaves
            // out. The last tile takes all that is left of them.
            const i32 end = task.last ? s.padding_end : minimum(task.row + Rows, s.padding_end);
            NO_UNROLL
            for (i32 row = task.row + clamp(s.rows - task.row, 0, Rows) + warp_index(); row < end; row += Warps) {
                T* d_q = row_address<T>(params.d_q, s.batch, head, static_cast<i64>(s.row_base) + row);
                NO_UNROLL
                for (int column = lane_index(); column < p.head_dim; column += 32) store_element(d_q + column, 0.0f);
                if (p.key_kind == kKeyLogitPerToken && params.d_logit.data != nullptr && lane_index() == 0) {
                    *element(params.d_logit, s.batch, head, static_cast<i64>(s.row_base) + row) = 0.0f;
                }
            }
            if (task.rows <= 0) continue;
        }
        auto load_rows = [&](char* to, const Tensor& from) {
            const T* address = row_address<const T>(from, s.batch, head, static_cast<i64>(s.row_base) + task.row);
            load_tile<T, D, Rows, Threads, D < 256, false>(to, address, from.row, 0, task.rows, p.head_dim);
        };
        if (has_inducer) load_rows(q_tile, p.q);
        load_rows(d_o_tile, params.d_o);
        copy_commit();
        copy_wait<0>();
        sync_threads();

        // dO·O, or dO·attn, of the warp's rows.
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + fragment_row(0, half * 2);
            float dot = 0.0f;
            if (row < task.rows) {
                const T* from = row_address<const T>(params.saved, s.batch, head, static_cast<i64>(s.row_base) + task.row + row);
                NO_UNROLL
                for (int c = lane_index() % 4; c * kPerChunk<T> < p.head_dim; c += 4) {
                    const T* a = reinterpret_cast<const T*>(chunk_address<T, D>(d_o_tile, row, c));
                    u32x4 words = *reinterpret_cast<const u32x4*>(from + c * kPerChunk<T>);
                    const T* b = reinterpret_cast<const T*>(&words);
                    UNROLL
                    for (int i = 0; i < kPerChunk<T>; ++i) dot = fused_multiply_add(to_float(a[i]), to_float(b[i]), dot);
                }
            }
            dot = row_sum(dot);
            if (lane_index() % 4 == 0) row_numbers[row] = dot;
            sync_warp();
        }

        // Four passes over the adapters' ranks: the key's for s0, the value's for dO·Δ (Extended: dU·h), then, as ds0 is known,
        // the value's and the key's for the gradients. One loop, so that products are laid out once.
        const bool given = p.key_kind == kKeyLogitPerHead || p.key_kind == kKeyLogitPerToken;
        const bool has_key = has_inducer && !given, extended = p.value_kind == kValueExtended;
        float dq[1][OT][4];
        clear(dq);
        float of_key[2], of_value[2];   // a row's s0 and dO·Δ; from the third pass on τσ ds0 and m₀λ
        // u and W, or h and G, of a chunk. Those of the value are wanted in two passes that follow each other.
        float unit[1][kChunkTiles][4] = {}, other[1][kChunkTiles][4] = {};
        NO_UNROLL
        for (int pass = 0; pass < 4; ++pass) {
            const bool is_value = pass == 1 || pass == 2;
            const Adapter& adapter = is_value ? p.value : p.key;
            const i32 ranks = ranks_and_bias(adapter);
            float dot[1][2] = {};
            if (pass == 0 && has_key) row_squares<T, D, 1>(dot, q_tile, warp_row);
            if (pass == 2) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int row = warp_row + fragment_row(0, half * 2);
                    const bool exists = row < task.rows;
                    const i32 at = task.row + minimum(row, task.rows - 1);
                    const i64 tensor_row = static_cast<i64>(s.row_base) + at;
                    const float lse = *element(params.lse, s.batch, head, tensor_row);
                    const float scale = adaptive_factor<T>(p, s, at) * p.scale;
                    const auto virtual_weight = VirtualWeight::of<T>(
                        given ? given_logit<T>(p, s, head, at) : has_key ? of_key[half] * scale : -infinity(), lse);
                    const float lambda = exists ? virtual_weight.lambda : 0.0f, rest = virtual_weight.rest;
                    // The gradient of the lse of a row that sees nothing has nowhere to go.
                    const float d_lse = params.d_lse.data != nullptr && lse != -infinity()
                                            ? *element(params.d_lse, s.batch, head, tensor_row)
                                            : 0.0f;
                    const float keep = p.flags & kDropout ? lambda_factor(p, task.dropout_head, at) : 1.0f;
                    const float kept = keep * of_value[half];
                    const bool from_attention = p.flags & kFromAttention;
                    const float saved = row_numbers[row];
                    sync_warp();
                    float d_s0, w = 1.0f, constant;
                    if (p.value_kind == kValueZero || p.value_kind == kValueDirect) {
                        float output = saved;
                        w = rest;
                        if (from_attention) {
                            // dO·Δ − dO·O = (1−λ)(dO·Δ − dO·attn), without the cancellation where λ is close to 1.
                            d_s0 = lambda * rest * (kept - saved);
                            output = fused_multiply_add(lambda, kept, rest * saved);
                        } else {
                            // Where λ is 1 it stays there, whatever rounding has made of O.
                            d_s0 = rest == 0.0f ? 0.0f : lambda * (kept - saved);
                        }
                        constant = rest * output - d_lse;
                    } else {
                        d_s0 = lambda * rest * kept;
                        const bool is_attention = from_attention || extended;
                        constant = (is_attention ? saved : saved - lambda * kept) + d_s0 - d_lse;
                    }
                    if (exists && lane_index() % 4 == 0) {
                        const i64 to = (static_cast<i64>(s.batch) * p.query_heads + head) * p.rows + tensor_row;
                        params.row_factor[to] = w;
                        params.row_constant[to] = constant;
                        if (p.key_kind == kKeyLogitPerToken && params.d_logit.data != nullptr) {
                            *element(params.d_logit, s.batch, head, tensor_row) = d_s0;
                        }
                    }
                    if (!exists) d_s0 = 0.0f;
                    if (lane_index() % 4 == 0) row_numbers[row] = d_s0;
                    of_key[half] = has_key ? scale * d_s0 : 0.0f;
                    of_value[half] = lambda * keep;
                }
                if (p.key_kind == kKeyLogitPerHead) {
                    sync_threads();
                    if (warp_index() == 0) {
                        float sum = 0.0f;
                        NO_UNROLL
                        for (int row = lane_index(); row < Rows; row += 32) sum += row_numbers[row];
                        NO_UNROLL
                        for (int by = 1; by < 32; by *= 2) sum += shuffle_xor(sum, by);
                        if (lane_index() == 0) partial[layout.floats - 1] += sum;
                    }
                }
            }
            NO_UNROLL
            for (i32 rank = 0; rank < ranks; rank += kChunk) {
                const char* from = stage(is_value, rank);
                const char* other_tile = is_value ? d_o_tile : q_tile;
                if (!Tile::kKeepsUnits || pass != 2 || ranks > kChunk) {
                    clear(unit);
                    clear(other);
                    RowsByRows<T, D, 1, kChunkTiles, 1>::add(unit, q_tile, warp_row, from, 0);
                    hidden_units<T>(unit, adapter, head, rank, adapter.up_bias != nullptr ? 1.0f : 0.0f);
                    if (!is_value || !extended) {
                        RowsByRows<T, D, 1, kChunkTiles, 1>::add(other, other_tile, warp_row, from, kChunk);
                    } else if (params.d_u.data != nullptr) {
                        read_d_u(other, rank);
                    }
                }
                if (pass < 2) {
                    UNROLL
                    for (int nt = 0; nt < kChunkTiles; ++nt) {
                        UNROLL
                        for (int e = 0; e < 4; ++e) {
                            float x = rank + fragment_column(nt, e) < ranks ? unit[0][nt][e] : 0.0f;
                            dot[0][e / 2] = fused_multiply_add(x, other[0][nt][e], dot[0][e / 2]);
                        }
                    }
                    continue;
                }
                // dz, and what multiplies B.
                UNROLL
                for (int nt = 0; nt < kChunkTiles; ++nt) {
                    UNROLL
                    for (int e = 0; e < 4; ++e) {
                        const float x = unit[0][nt][e], by = is_value ? of_value[e / 2] : of_key[e / 2];
                        const float slope = adapter.identity ? 1.0f : fused_multiply_add(-x, x, 1.0f);
                        const bool exists = rank + fragment_column(nt, e) < adapter.rank;
                        other[0][nt][e] = exists ? by * other[0][nt][e] * slope : 0.0f;
                        unit[0][nt][e] = by * x;
                    }
                }
                FragmentsByTile<T, D, 1, kChunkTiles, OT>::add(dq, other, from, 0);
                if (!is_value) FragmentsByTile<T, D, 1, kChunkTiles, OT>::add(dq, unit, from, kChunk);
                const i32 row = (is_value ? layout.key_rows : 0) + rank;
                add_sums(other, layout.biases + (is_value ? layout.key_rank : 0) + rank, adapter.rank - rank);
                add_product(other, q_tile, row, adapter.rank - rank);
                if (adapter.up_weight != nullptr) add_product(unit, other_tile, row + adapter.rank, ranks - rank);
            }
            UNROLL
            for (int half = 0; half < 2; ++half) {
                if (pass == 0) of_key[half] = row_sum(dot[0][half]);
                if (pass == 1) of_value[half] = row_sum(dot[0][half]);
            }
        }

        // Where a lane is, is read anew: kept since the beginning, it would be one register too many at head_dim 256.
        const int first_row = static_cast<int>(thread_index_anew()) / 32 * 16;
        if (first_row >= task.rows) continue;
        // Without a virtual key that follows from Q, it is 0 in all rows.
        const bool scaled = has_key;
        float* to = query_gradient(params, s, head, task.row + first_row);
        UNROLL
        for (int kt = 0; kt < D / 16; ++kt) {
            if (kt * 16 >= p.head_dim) continue;
            if (scaled) {
                float q[2][4];
                load_blocks<T, D>(q, q_tile, first_row, kt);
                UNROLL
                for (int nt = 0; nt < 2; ++nt) {
                    UNROLL
                    for (int e = 0; e < 4; ++e) {
                        float& x = dq[0][kt * 2 + nt][e];
                        x = fused_multiply_add(2.0f * of_key[e / 2], q[nt][e], x);
                    }
                }
            }
            UNROLL
            for (int ot = kt * 2; ot < kt * 2 + 2; ++ot) {
                if (ot * 8 >= p.head_dim) continue;
                UNROLL
                for (int e = 0; e < 4; ++e) to[ot * kGradientPiece + e * 32] = dq[0][ot][e];
            }
        }
    }
}

}  // namespace inducer

#define BACKWARD_PREPARE_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                \
    KERNEL(pass##_##type##_d##dim, inducer::BackwardParams, warps * 32, blocks,                                             \
           (inducer::PrepareTile<inducer::type, dim, rows, warps>::kSharedBytes)) {                                          \
        inducer::backward_prepare<inducer::type, dim, rows, warps>(params);                                                 \
    }
BACKWARD_PREPARE_KERNELS(BACKWARD_PREPARE_INSTANCE)
