// The main pass of the backward for sm_80 and newer: dQ, dK, dV. It is the plain attention's; of the inducer it sees a factor w
// and a constant D′ per row (see backward_prepare.cu).
//
// A block takes one tile of keys. A warp owns 16 or 32 of the keys for good, so that dK and dV stay in its registers. Where these would
// not fit, two warps own the same keys, each half of the columns, and both compute the scores.
//
//     K, V ─────────────────────────────────────────────────────┐ stay in shared memory
//     for each query head of the group, each tile of queries    │
//         Q arrives           Pᵀ = exp(K Qᵀ − lse)              │ while dO is under way
//         dO arrives          dV += (w P∘m̃)ᵀ dO                 │
//                             dSᵀ = P ∘ (w m̃∘(V dOᵀ) − D′)  ────┼─► shared memory, where dO was
//                             dK += dSᵀ Q                       │
//         dS is complete      dQ += dS K                        │ while the next Q is under way
//     ──────────────────────────────────────────────────────────┘
//     dK, dV are written
//
// dS K is shared out among the warps anew: each has 32 rows (or the 16 there are) and some columns. Tasks, items and the order in which
// blocks add to dQ are those of core/backward_task.cuh.
//
// A masked tile that holds a NaN or an infinity is poisoned: 0·NaN would reach rows and keys that must not see it. Its products
// leave hidden pairs out one by one (add_visible), with P or dS in shared memory and barriers of their own. Rare, and slow.
//
// Shared memory: K, V [keys], Q, dO [rows], each of head_dim columns, dS [keys, rows] in a place of its own if there is room for
// it; 97 KB for bf16 at head_dim 128, 113 KB with that room. Barriers of an item:
//   1. Q has arrived; dQ is written, and its turn may pass on
//   2. dO has arrived
//   3. all are done with dO: dS may overwrite it
//   4. dS and the next item are there
//   5. the turn has come (fixed order only)
// With a place of its own for dS, dO arrives with Q: 3 falls away, and 2 but for masked tiles, where it carries the vote on NaN.
//
// Symbols are those of src/lib.rs. MT, OT: blocks of 16 keys and of 8 columns of dK and dV; NT: of 8 queries of the scores; QB,
// QT: of 16 rows and 8 columns of dQ; `half` and `e` choose within a fragment (core/product.cuh).
#include "core/backward_task.cuh"
#include "list.h"

namespace inducer {

// The last warp prepares the next item while the others work on this one.
struct BackwardWork {
    BackwardItem items[2];
    BackwardTask task;
    i32 keys_not_finite;
};
constexpr int kTaskBytes = 384;
static_assert(sizeof(BackwardWork) <= kTaskBytes);

template <class T, int D, int Rows, int Keys, int Warps, int MostShared>
struct BackwardTile {
    static constexpr int kThreads = Warps * 32;
    // Columns of dK and dV are shared by this many warps.
    static constexpr int kColumnGroups = 16 * Warps > Keys ? 16 * Warps / Keys : 1;
    static constexpr int kKeyGroups = Warps / kColumnGroups;
    static constexpr int kKeyBlocks = Keys / (16 * kKeyGroups);     // of 16 keys, per warp
    static constexpr int kColumns = D / kColumnGroups;              // of dK and dV, per warp
    // Scores of all rows at once do not fit the registers of a warp with 32 keys.
    static constexpr int kScoreRows = kKeyBlocks == 1 || Rows < 32 ? Rows : 32;
    // dS is computed in so many parts, each of which frees the registers that its probabilities had. Only at 128 columns do they
    // run out: at 64 there are fewer columns, at 256 fewer rows.
    static constexpr int kParts = D == 128 ? 2 : 1;
    // Blocks of 16 columns of a product that are laid out at once: as many as registers have room for addresses.
    static constexpr int kUnroll = kColumnGroups > 1 ? 2 : D == 128 ? 8 : 4;
    // How dQ is shared: a warp owns 32 rows (or the 16 there are) and some columns.
    static constexpr int kQueryBlocks = Rows < 32 ? 1 : 2;
    static constexpr int kQueryGroups = Rows / (16 * kQueryBlocks);
    static constexpr int kQueryColumns = D * kQueryGroups / Warps;

    static constexpr int kStatisticsBytes = static_cast<int>(sizeof(RowStatistics<Rows>));
    static constexpr int kKeyBytes = Keys * kRowBytes<T, D>;
    static constexpr int kQueryBytes = Rows * kRowBytes<T, D>;
    static constexpr int kScoreBytes = Keys * kRowBytes<T, Rows>;
    static constexpr int kAllBytes = kTaskBytes + kStatisticsBytes + 2 * kKeyBytes + 2 * kQueryBytes;
    static constexpr bool kOwnPlace = kAllBytes + kScoreBytes <= MostShared;
    static constexpr int kSharedBytes = kAllBytes + (kOwnPlace ? kScoreBytes : 0);
    static_assert(kOwnPlace || (kScoreBytes <= kQueryBytes && kScoreRows == Rows), "dS fits where dO was");
    static_assert(kStatisticsBytes % 128 == 0 || Rows < 32, "tiles begin at multiples of 128 bytes");
    static_assert(Rows <= kThreads && kQueryColumns % 16 == 0 && kRowBytes<T, kColumns> % 128 == 0);
};

template <class T, int D, int Rows, int Keys, int Warps, int MostShared>
DEVICE void backward(const BackwardParams& params) {
    using Tile = BackwardTile<T, D, Rows, Keys, Warps, MostShared>;
    constexpr int MT = Tile::kKeyBlocks, OT = Tile::kColumns / 8, Threads = Tile::kThreads;
    constexpr int ScoreRows = Tile::kScoreRows, NT = ScoreRows / 8, Parts = Tile::kParts;
    constexpr int QB = Tile::kQueryBlocks, QT = Tile::kQueryColumns / 8;
    const Problem& p = params.problem;
    auto& work = *reinterpret_cast<BackwardWork*>(shared_memory());
    BackwardTask& task = work.task;
    auto& statistics = *reinterpret_cast<RowStatistics<Rows>*>(shared_memory() + kTaskBytes);
    char* k_tile = shared_memory() + kTaskBytes + Tile::kStatisticsBytes;
    char* v_tile = k_tile + Tile::kKeyBytes;
    char* q_tile = v_tile + Tile::kKeyBytes;
    char* d_o_tile = q_tile + Tile::kQueryBytes;
    char* d_s_tile = Tile::kOwnPlace ? d_o_tile + Tile::kQueryBytes : d_o_tile;
    const int thread = static_cast<int>(thread_index());
    // What is known to be 0 is said to be, which saves registers.
    const int warp_key = warp_index() % Tile::kKeyGroups * (MT * 16);
    const int warp_column = Tile::kColumnGroups == 1 ? 0 : warp_index() / Tile::kKeyGroups * Tile::kColumns;
    const int query_row = Tile::kQueryGroups == 1 ? 0 : warp_index() % Tile::kQueryGroups * (QB * 16);
    const int query_column = warp_index() / Tile::kQueryGroups * Tile::kQueryColumns;
    // The warp's columns of a tile. They begin at a multiple of 128 bytes, where swizzling begins anew.
    auto own_columns = [&](const char* tile) { return tile + warp_column * static_cast<int>(sizeof(T)); };

    if (thread == 0) draw_task<Rows, Keys>(task, work.items[0], params);
    sync_threads();

    auto load_keys = [&](char* to, const Tensor& keys, const Tensor& prefix, const Sequence& s) {
        const Tensor& from = task.is_prefix ? prefix : keys;
        const Interval wanted = keys_to_load(p, task, s);
        const T* address = first_key_address<T>(task, s, from);
        load_tile<T, D, Keys, Threads, false>(to, address, from.row, wanted.first, wanted.end, p.head_dim);
    };
    auto load_rows = [&](char* to, const Tensor& from, const BackwardItem& item) {
        const Sequence& s = item.sequence;
        load_tile<T, D, Rows, Threads, false>(
            to, row_address<const T>(from, s.batch, item.head, static_cast<i64>(s.row_base) + item.row), from.row, 0, item.rows,
            p.head_dim);
    };
    // One row's numbers, read by the thread of that index, and where they are laid down.
    auto read_numbers = [&](const BackwardItem& item) { return read_row_numbers(params, item, thread); };
    auto lay_down = [&](const RowNumbers& x) {
        if (thread < Rows) {
            statistics.lse[thread] = x.lse;
            statistics.weight[thread] = x.weight;
            statistics.constant[thread] = x.constant;
        }
    };

    // Lays down the warp's part of Pᵀ or dSᵀ, once where two warps have the same.
    auto store_scores = [&](char* tile, const auto& s, int first_row) {
        constexpr int tiles = static_cast<int>(sizeof(s[0]) / sizeof(s[0][0]));
        if (warp_column > 0) return;
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int nt = 0; nt < tiles; ++nt) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    store_pair(element_address<T, Rows>(tile, warp_key + fragment_row(mt, half * 2),
                                                        first_row + fragment_column(nt, 0)),
                               s[mt][nt][half * 2], s[mt][nt][half * 2 + 1]);
                }
            }
        }
    };

    float dk[MT][OT][4], dv[MT][OT][4];
    clear(dk);
    clear(dv);
    if (work.items[0].exists) {
        load_keys(k_tile, p.k, p.prefix_k, work.items[0].sequence);
        load_keys(v_tile, p.v, p.prefix_v, work.items[0].sequence);
        load_rows(q_tile, p.q, work.items[0]);
        if (Tile::kOwnPlace) load_rows(d_o_tile, params.d_o, work.items[0]);
        copy_commit();
        lay_down(read_numbers(work.items[0]));
        copy_wait<0>();
        // Thread 0 keeps the answer in shared memory, to save a register, for the votes to come.
        bool not_finite = sync_threads_or(own_chunks_not_finite<T, D, Keys, Threads>(k_tile));
        if (thread == 0) work.keys_not_finite = not_finite;
    }

    for (int slot = 0; work.items[slot].exists; slot ^= 1) {
        const BackwardItem& item = work.items[slot];
        if (!Tile::kOwnPlace) {
            load_rows(d_o_tile, params.d_o, item);
            copy_commit();
        }
        if (thread == Threads - 32) {
            BackwardItem& next = work.items[slot ^ 1];
            next = item;
            ++next.tile;
            seek<Rows, Keys>(next, task, params);
        }
        bool poisoned = false;
        NO_UNROLL
        for (int first_row = 0; first_row < Rows; first_row += ScoreRows) {
            float s[MT][NT][4];
            clear(s);
            RowsByRows<T, D, MT, NT, Tile::kUnroll>::add(s, k_tile, warp_key, q_tile, first_row);
            if (p.flags & kTransform) {
                ScoreContext context{p, item.sequence, item.slope, item.row + first_row, task.first_key + warp_key};
                transform_scores_of_keys<T>(s, context);
            }
            probabilities(s, statistics, first_row, exponent_scale(p));
            // Rows of the tile that see the warp's key `i`.
            auto seen_by = [&](int i) { return rows_that_see(p, task, item, warp_key + i); };
            if (item.masked) {
                hide(s, first_row, seen_by);
            }
            if (p.flags & kDropout) {
                mark_dropped(s, p, task.is_prefix ? kDropPrefix : kDropKeys, item.dropout_head, item.row + first_row,
                             task.first_key + warp_key);
            }
            if (!Tile::kOwnPlace || item.masked) {
                if (first_row == 0) {
                    copy_wait<0>();
                    if (item.masked) {
                        poisoned = sync_threads_or((thread == 0 && work.keys_not_finite != 0) ||
                                                   own_chunks_not_finite<T, D, Rows, Threads>(q_tile) ||
                                                   own_chunks_not_finite<T, D, Rows, Threads>(d_o_tile));
                    } else {
                        sync_threads();
                    }
                }
            }
            auto weighted = [&](int nt, auto use) {
                float x[MT][2][4];
                weighted_probabilities(x, s, statistics, first_row, nt, probability_scale<T>(p));
                use(x);
            };
            if (poisoned) {
                // P lies where V was until hidden pairs are left out one by one.
                UNROLL
                for (int nt = 0; nt < NT; nt += 2) {
                    weighted(nt, [&](const auto& x) { store_scores(v_tile, x, first_row + nt * 8); });
                }
                sync_threads();
                add_visible<RowTile<T, D>>(
                    dv, own_columns(d_o_tile), 0, first_row, first_row + ScoreRows, lane_index_anew, seen_by,
                    [&](int i, int j) { return to_float(*element_address<T, Rows>(v_tile, warp_key + i, j)); });
                sync_threads();
                load_keys(v_tile, p.v, p.prefix_v, item.sequence);
                copy_commit();
                copy_wait<0>();
                sync_threads();
            } else {
                UNROLL
                for (int nt = 0; nt < NT; nt += 2) {
                    weighted(nt, [&](const auto& x) {
                        FragmentsByTile<T, D, MT, 2, OT>::add(dv, x, own_columns(d_o_tile), first_row + nt * 8);
                    });
                }
            }
            if (p.flags & kSoftcap) {
                // Scores once more, as there is no room to keep the derivative.
                UNROLL
                for (int nt = 0; nt < NT; nt += 2) {
                    float scores[MT][2][4];
                    clear(scores);
                    RowsByRows<T, D, MT, 2, 1>::add(scores, k_tile, warp_key, q_tile, first_row + nt * 8);
                    apply_softcap_derivative<T>(s, scores, nt, p);
                }
            }
            float dp[Parts][MT][NT / Parts][4];
            UNROLL
            for (int part = 0; part < Parts; ++part) {
                const int rows_of_part = first_row + part * (ScoreRows / Parts);
                clear(dp[part]);
                RowsByRows<T, D, MT, NT / Parts, Tile::kUnroll>::add(dp[part], v_tile, warp_key, d_o_tile, rows_of_part);
                score_gradients(dp[part], s, part * (NT / Parts), statistics, rows_of_part);
            }
            if (!Tile::kOwnPlace) sync_threads();   // all are done with dO
            UNROLL
            for (int part = 0; part < Parts; ++part) store_scores(d_s_tile, dp[part], first_row + part * (ScoreRows / Parts));
            if (poisoned) {
                sync_threads();
                add_visible<RowTile<T, D>>(
                    dk, own_columns(q_tile), 0, first_row, first_row + ScoreRows, lane_index_anew, seen_by,
                    [&](int i, int j) { return to_float(*element_address<T, Rows>(d_s_tile, warp_key + i, j)); });
            } else {
                UNROLL
                for (int part = 0; part < Parts; ++part) {
                    FragmentsByTile<T, D, MT, NT / Parts, OT>::add(dk, dp[part], own_columns(q_tile),
                                                                   first_row + part * (ScoreRows / Parts));
                }
            }
        }
        sync_threads();     // dS and the next item are here; Q's memory is free, and dO's unless dS lies there

        const BackwardItem& next = work.items[slot ^ 1];
        RowNumbers numbers{};
        if (next.exists) {
            load_rows(q_tile, p.q, next);
            if (Tile::kOwnPlace) load_rows(d_o_tile, params.d_o, next);
            numbers = read_numbers(next);
        }
        copy_commit();
        const Sequence& sequence = item.sequence;
        i32* turn = turn_of<Rows>(params, item);
        const bool ordered = !(p.flags & kUnordered);
        // One warp looks for the turn while the others go on.
        if (ordered && thread == 0) {
            while (load_acquire(turn) < item.turn) wait_a_little();
        }
        float dq[QB][QT][4];
        clear(dq);
        if (poisoned) {
            auto visible = [&](int i) { return keys_seen_by(p, task, item, query_row + i); };
            add_visible<RowTile<T, D>>(dq, k_tile, query_column, 0, Keys, lane_index_anew, visible, [&](int i, int j) {
                return to_float(*element_address<T, Rows>(d_s_tile, j, query_row + i));
            });
        } else {
            ColumnsByTile<T, Rows, D, QB, QT, Keys>::add(dq, d_s_tile, query_row, k_tile, query_column);
        }
        if (next.exists) lay_down(numbers);

        if (ordered) sync_threads();    // all tiles of keys before this one have added
        // Additions in memory: nobody waits for what was there. In a turn, no other block adds.
        UNROLL
        for (int qb = 0; qb < QB; ++qb) {
            const int row = query_row + qb * 16;
            if (row >= item.rows) continue;
            float* sum = query_gradient(params, sequence, item.head, item.row + row) + query_column / 8 * kGradientPiece;
            UNROLL
            for (int qt = 0; qt < QT; ++qt) {
                if (query_column + qt * 8 >= p.head_dim) continue;
                UNROLL
                for (int e = 0; e < 4; ++e) {
                    float* to = sum + qt * kGradientPiece + e * 32;
                    const float x = dq[qb][qt][e] * p.scale;
                    if (ordered) {
                        add_in_turn(to, x);
                    } else {
                        add_unordered(to, x);
                    }
                }
            }
        }
        copy_wait<0>();
        sync_threads();     // dQ is written; the next Q and its rows' numbers are here
        if (ordered && thread == 0) add_release(turn, 1);
    }

    store_key_gradients<T, Keys, Warps>(params, task, dk, dv, warp_key, warp_column, thread);
}

}  // namespace inducer

#define INSTANCE(pass, type, dim, rows, keys, warps, blocks, shared)                                                         \
    KERNEL(pass##_##type##_d##dim, inducer::BackwardParams, warps * 32, blocks,                                             \
           (inducer::BackwardTile<inducer::type, dim, rows, keys, warps, shared>::kSharedBytes)) {                           \
        inducer::backward<inducer::type, dim, rows, keys, warps, shared>(params);                                           \
    }
#define BACKWARD_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                        \
    INSTANCE(pass, type, dim, rows, keys, warps, blocks, inducer::kSharedOfAll)
#define BACKWARD_WIDE_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                   \
    INSTANCE(pass, type, dim, rows, keys, warps, blocks, inducer::kSharedOfWide)
BACKWARD_KERNELS(BACKWARD_INSTANCE)
BACKWARD_WIDE_KERNELS(BACKWARD_WIDE_INSTANCE)
