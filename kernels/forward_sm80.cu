// The fused forward for sm_80 and newer: O, lse, and U or attn where they are wanted.
//
// A block computes one tile of queries in one head of one sequence; a warp owns 16 or 32 of its rows for good, so that
// softmax and output stay in its registers.
//
//     Q  ──────────────────────────────────────────┐ stays in shared memory
//     for each tile of prefix and keys             │
//         K arrives          S = Q Kᵀ              │ while V is under way
//         V arrives          softmax, O += P V     │ while the next K is under way
//     ───────────────────────────────────────────  │
//     lse is known: O /= sum                       │
//     adapters arrive        u, W → s0 → λ    ◄────┘ where K and V were
//                            h;  O += λ h B + λ b
//
// Shared memory: Q [rows], K [keys], V [keys], each of head_dim columns; 48 KB for bf16 at head_dim 128, 66 KB with wide tiles. O
// leaves by way of where Q was. Two barriers a tile: one after K has arrived, which also says that all warps are done with V, and
// one after V has, likewise for K.
//
// A masked tile whose V holds a NaN or an infinity is poisoned: 0·NaN would reach rows that must not see it. That product leaves
// hidden pairs out one by one (add_visible_staged), with P in shared memory and a barrier more. Rare, and slow.
//
// Symbols are those of src/lib.rs. MT, NT, OT: blocks of 16 rows, of 8 columns of S, of 8 columns of O; `half` and `e` choose within
// a fragment (core/product.cuh).
#include "core/forward_task.cuh"
#include "core/inducer.cuh"
#include "core/output.cuh"
#include "core/softmax.cuh"
#include "list.h"

namespace inducer {

template <class T, int D, int Rows, int Keys, int Warps>
struct ForwardTile {
    static constexpr int kThreads = Warps * 32;
    static constexpr int kBlocks = Rows / (16 * Warps);     // of 16 rows, per warp
    static constexpr int kScoreTiles = Keys / 8;            // blocks of 8 columns of S
    static constexpr int kOutputTiles = D / 8;              // and of O
    static constexpr int kQueryBytes = Rows * kRowBytes<T, D>;
    static constexpr int kValueBytes = Keys * kRowBytes<T, D>;
    // P must fit where K lay; only at head_dim 64 that asks for more than K does.
    static constexpr int kKeyBytes = Keys * kRowBytes<T, (Rows > D ? Rows : D)>;
    // Accumulators take three quarters of the registers: the sums of the softmax, used once a tile, lie in shared memory.
    static constexpr bool kScarce = kBlocks * 4 * (kScoreTiles + kOutputTiles) >= 192;
    static constexpr int kSumBytes = kScarce ? kThreads * kBlocks * 2 * 4 : 0;
    static constexpr int kSharedBytes = kTaskBytes + kQueryBytes + kKeyBytes + kValueBytes + kSumBytes;
    // Where K and V lay, the adapter of the virtual key is staged, and behind it, if there is room, that of the value.
    static constexpr bool kBothStages = 2 * Keys >= 2 * kStageRows;
    static_assert(Rows % (16 * Warps) == 0 && 2 * Keys >= kStageRows, "a warp owns whole blocks, a stage fits");
};

// Takes the virtual token into O, which is attn before, and stores U where it is wanted. Two passes over the adapters' ranks: the
// key's for s0, hence λ, then the value's. One loop, as every block goes through this code once, and fetching it is most of what it
// costs. Where both adapters have room, their first ranks are staged between the same two barriers. `stages` is where K and V were.
// Collective for the block.
template <class Tile, class T, int D, int MT, int OT, int Keys>
DEVICE void add_virtual_token(float (&o)[MT][OT][4], const float (&lse)[MT][2], const ForwardParams& params,
                              const ForwardTask<Keys>& task, const char* q_tile, char* stages, int warp_row) {
    constexpr int Threads = Tile::kThreads;
    const Problem& p = params.problem;
    const Sequence& s = task.sequence;
    const bool given = is_given(p);
    float dot[MT][2] = {}, weight[MT][2];       // Q·P of the rows, in parts; m₀λ
    // Where an adapter is staged: the key's is 0, the value's 1.
    auto stage_of = [&](int which) { return stages + (Tile::kBothStages ? which * kStageRows * kRowBytes<T, D> : 0); };
    bool value_is_staged = false;
    if (!given) row_squares<T, D, MT>(dot, q_tile, warp_row);
    NO_UNROLL
    for (int pass = 0; pass < 2; ++pass) {
        const bool is_value = pass == 1;
        const Adapter& adapter = is_value ? p.value : p.key;
        if (is_value) {
            const bool keeps_rest = p.value_kind == kValueDirect || p.value_kind == kValueZero;
            float rest[MT][2];
            virtual_weights<T>(weight, rest, dot, lse, p, s, task.head, task.row + warp_row, task.dropout_head);
            if (keeps_rest) scale_rows(o, rest);
        }
        const i32 ranks = ranks_and_bias(adapter);
        const char* stage = stage_of(pass);
        NO_UNROLL
        for (i32 rank = 0; rank < ranks; rank += kChunk) {
            if (rank > 0 || !(is_value && value_is_staged)) {
                sync_threads();     // the memory is free
                const bool with_value = Tile::kBothStages && !is_value && rank == 0 && p.value.rank > 0;
                const int last = with_value ? 1 : pass;
                NO_UNROLL
                for (int which = pass; which <= last; ++which) {
                    stage_adapter<RowTile<T, D>, Threads, 4>(stage_of(which), which == 0 ? p.key : p.value, task.head, rank,
                                                             p.head_dim, static_cast<int>(thread_index()));
                }
                value_is_staged = value_is_staged || with_value;
                sync_threads();
            }
            // u or h.
            float unit[MT][kChunkTiles][4];
            clear(unit);
            RowsByRows<T, D, MT, kChunkTiles, 1>::add(unit, q_tile, warp_row, stage, 0);
            hidden_units<T>(unit, adapter, task.head, rank, 1.0f);
            if (!is_value) {
                float w[MT][kChunkTiles][4];
                clear(w);
                RowsByRows<T, D, MT, kChunkTiles, 1>::add(w, q_tile, warp_row, stage, kChunk);
                add_products_of_units(dot, unit, w, rank, ranks);
                continue;
            }
            scale_rows(unit, weight);
            if (p.value_kind == kValueExtended) {
                T* u = row_address<T>(params.u, s.batch, task.head, static_cast<i64>(s.row_base) + task.row) + rank;
                store_elements(u, params.u.row, unit, warp_row, task.rows, p.value.rank - rank);
            } else {
                FragmentsByTile<T, D, MT, kChunkTiles, OT>::add(o, unit, stage, kChunk);
            }
        }
    }
}

template <class T, int D, int Rows, int Keys, int Warps>
DEVICE void forward(const ForwardParams& params) {
    using Tile = ForwardTile<T, D, Rows, Keys, Warps>;
    constexpr int MT = Tile::kBlocks, NT = Tile::kScoreTiles, OT = Tile::kOutputTiles, Threads = Tile::kThreads;
    const Problem& p = params.problem;
    static_assert(sizeof(ForwardTask<Keys>) <= kTaskBytes);
    auto& task = *reinterpret_cast<ForwardTask<Keys>*>(shared_memory());
    char* q_tile = shared_memory() + kTaskBytes;
    char* k_tile = q_tile + Tile::kQueryBytes;
    char* v_tile = k_tile + Tile::kKeyBytes;

    // Tiles of one head are neighbours, so that their blocks share K and V in the L2 cache; the last rows, which see the most
    // where the mask is causal, go first.
    const u32 row_tiles = static_cast<u32>(params.row_tiles);
    const TilePlace place = {params.row_tiles - 1 - static_cast<i32>(block_x() % row_tiles), static_cast<i32>(block_x() / row_tiles)};
    if (!begin_task<T, Rows, Threads>(task, params, place, static_cast<int>(thread_index()))) return;
    sync_threads();
    const Sequence& s = task.sequence;
    const int warp_row = warp_index() * MT * 16;
    const float scale = exponent_scale(p);

    // Starts to copy a tile of keys (K or V) or of the prefix.
    auto load_keys = [&](char* to, const void* keys, i64 keys_row, const void* prefix, i64 prefix_row, i32 tile) {
        const bool is_prefix = task.tiles.is_prefix(tile);
        const i32 first = task.tiles.first_key(tile);
        const i32 begin = is_prefix ? 0 : task.tiles.some_first - first;
        const i32 end = (is_prefix ? p.prefix_len : task.tiles.some_end) - first;
        const i64 stride = is_prefix ? prefix_row : keys_row;
        const T* address = static_cast<const T*>(is_prefix ? prefix : keys) + first * stride;
        load_tile<T, D, Keys, Threads, true, !Tile::kScarce>(to, address, stride, begin, end, p.head_dim);
    };
    auto load_k = [&](i32 tile) { load_keys(k_tile, task.k, p.k.row, task.prefix_k, p.prefix_k.row, tile); };
    auto load_v = [&](i32 tile) { load_keys(v_tile, task.v, p.v.row, task.prefix_v, p.prefix_v.row, tile); };

    load_tile<T, D, Rows, Threads>(q_tile, row_address<const T>(p.q, s.batch, task.head, static_cast<i64>(s.row_base) + task.row),
                                   p.q.row, 0, task.rows, p.head_dim);
    if (task.tiles.tiles > 0) load_k(0);
    copy_commit();

    float o[MT][OT][4];
    clear(o);
    float own_sums[MT * 2];
    float* sums = own_sums;
    if constexpr (Tile::kScarce) sums = reinterpret_cast<float*>(v_tile + Tile::kValueBytes) + thread_index();
    OnlineSoftmax<MT> softmax(sums, Tile::kScarce ? Threads : 1);
    if (task.tiles.tiles == 0) {
        // Q is here nonetheless: the virtual token needs it, and O goes where it lay.
        copy_wait<0>();
        sync_threads();
    }
    for (i32 tile = 0; tile < task.tiles.tiles; ++tile) {
        const bool masked = task.tiles.is_masked(p, tile), is_prefix = task.tiles.is_prefix(tile);
        const i32 first_key = task.tiles.first_key(tile);
        copy_wait<0>();
        sync_threads();     // K is here; V's memory is free
        load_v(tile);
        copy_commit();

        float scores[MT][NT][4];
        clear(scores);
        RowsByRows<T, D, MT, NT>::add(scores, q_tile, warp_row, k_tile, 0);
        if (p.flags & kTransform) {
            transform_scores<T>(scores, ScoreContext{p, s, is_prefix ? 0.0f : task.slope, task.row + warp_row, first_key});
        }

        copy_wait<0>();
        bool poisoned = false;
        if (masked) {
            poisoned = sync_threads_or(own_chunks_not_finite<T, D, Keys, Threads>(v_tile));
        } else {
            sync_threads();     // V is here; K's memory is free
        }
        auto load_next = [&] {
            if (tile + 1 < task.tiles.tiles) load_k(tile + 1);
            copy_commit();
        };
        if (!poisoned) load_next();

        // Keys of this tile that a row of this warp sees, counted from the tile's first.
        auto visible = [&](int warp_local_row) {
            if (is_prefix) return Interval{0, p.prefix_len - first_key};
            Interval seen = s.visible(task.row + warp_row + warp_local_row);
            return Interval{seen.first - first_key, seen.end - first_key};
        };
        if (masked) mask_scores(scores, visible);
        softmax.update(scores, o, scale);
        if (p.flags & kDropout) {
            apply_dropout(scores, p, is_prefix ? kDropPrefix : kDropKeys, task.dropout_head, task.row + warp_row, first_key);
        }
        if (poisoned) {
            // K is not needed any more, so P can lie there while hidden pairs are left out one by one.
            T* scratch = reinterpret_cast<T*>(k_tile) + warp_row * Keys;
            add_visible_staged<T, D>(o, scores, v_tile, scratch, visible);
            sync_threads();
            load_next();
        } else {
            FragmentsByTile<T, D, MT, NT, OT>::add(o, scores, v_tile, 0);
        }
    }
    float lse[MT][2], factor[MT][2];
    softmax.finish(lse, factor, scale);
    if (p.flags & kDropout) {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) factor[mt][half] *= p.dropout_scale;
        }
    }

    const i64 first_row = static_cast<i64>(s.row_base) + task.row;
    scale_rows(o, factor);
    if (params.lse.data != nullptr && lane_index() % 4 == 0) {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                i32 at = warp_row + fragment_row(mt, half * 2);
                if (at < task.rows) *element(params.lse, s.batch, task.head, first_row + at) = lse[mt][half];
            }
        }
    }
    if (params.attn.data != nullptr) {
        store_rows(row_address<T>(params.attn, s.batch, task.head, first_row), params.attn.row, o, warp_row, task.rows, p.head_dim);
    }

    if (p.key_kind != kKeyNone) add_virtual_token<Tile, T, D>(o, lse, params, task, q_tile, k_tile, warp_row);
    // Q is not needed any more.
    store_rows_staged<RowTile<T, D>>(row_address<T>(params.o, s.batch, task.head, first_row), params.o.row, o, q_tile, warp_row,
                                     task.rows, p.head_dim);
}

}  // namespace inducer

#define FORWARD_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                        \
    KERNEL(pass##_##type##_d##dim, inducer::ForwardParams, warps * 32, blocks,                                              \
           (inducer::ForwardTile<inducer::type, dim, rows, keys, warps>::kSharedBytes)) {                                    \
        inducer::forward<inducer::type, dim, rows, keys, warps>(params);                                                    \
    }
FORWARD_KERNELS(FORWARD_INSTANCE)
FORWARD_WIDE_KERNELS(FORWARD_INSTANCE)
