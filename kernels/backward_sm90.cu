// The main pass of the backward for sm_90a: dQ, dK, dV. What backward_sm80.cu computes, with the products of warpgroups, and with warps
// that do nothing but copy, or add to global memory.
//
// A block takes one tile of keys (core/backward_task.cuh). Of its three warpgroups two are consumers: each owns 64 of the keys for good,
// with dK and dV in registers. The first one serves them: two of its warps fetch tiles of queries, the other two add dQ to what is in
// global memory. One tile of queries is an item, and goes through
//
//     fetch                  consumers                                                  add
//     K, V, once
//     Q, dO ──► a stage ──►  Pᵀ = exp(K Qᵀ − lse)                 V dOᵀ under way
//                            dV += (w P∘m̃)ᵀ dO                    under way with V dOᵀ
//                            dSᵀ = P ∘ (w m̃∘(V dOᵀ) − D′)        dV under way
//                              and to shared memory
//                            dK += dSᵀ Q                         under way while all dS arrives
//                            dQ = dS K                           under way with K Qᵀ of the next item
//                              and to shared memory  ─────────► a place ──► waits for its turn, dQ += dS K
//                            dK, dV are written
//
// so that the tensor cores have something to do whatever the consumers are at. Pᵀ and dSᵀ are, as they lie in registers, left factors
// of dV and dK. dS K needs dSᵀ of all keys in shared memory: the consumers, who share dQ (64 rows × 64 columns each), meet once an
// item. dS has two places in turn: whoever writes the next one knows, from that meeting, that all are done with the one before the
// last. dQ lies in its place as fragments do (core/query_gradient.cuh). Only those who add it to memory wait for turns; consumers are
// held up when a place is not free again.
//
// Stages and places of dQ are rings: item i is use i / n of slot i % n, and fills it when it is empty of item i − n. Each slot has two
// barriers, `full` and `empty`, whose phases follow from i. An item that does not exist goes through both rings behind the last one, and
// ends the loops. What products read is fenced for the asynchronous proxy by all who wrote it, before anybody hears of it.
//
// A masked tile that holds a NaN or an infinity is poisoned: 0·NaN would reach rows and keys that must not see it. Those who fetch it
// find out, and the consumers take it apart: one product after the other, which leave hidden pairs out one by one (add_visible), P and dS
// being in shared memory. Rare, and slow. They also take items apart where scores are transformed one by one (softcap, ALiBi): there are
// no registers for that beside products under way, and the derivative of the softcap asks for the scores once more.
//
// Shared memory: K, V [keys], two Q, two dO [rows], each of head_dim columns; two dS [keys, rows]; dQ [rows] in f32, twice if there is
// room; 227 KB for bf16 at head_dim 128.
//
// Symbols are those of src/lib.rs. Of a part of 64 rows, NT: blocks of 8 queries of scores, KT: of 16. OT, QT: of 8 columns of dK, dV and
// of dQ. `half` and `e` choose within a fragment (core/product.cuh).
#include "core/atoms.cuh"
#include "core/backward_task.cuh"
#include "list.h"

namespace inducer {

constexpr int kPart = 64;               // keys of a warpgroup; queries whose scores are in registers at a time
constexpr int kStages = 2;
// Descriptions of items are a ring as well. The barriers of the others see to it that no more than six are in use at a time: those that
// are fetched, with the consumers, or waiting to be added.
constexpr int kItems = 8;
constexpr int kFetchThreads = 64, kAddWarps = 2;
// Of sync_some.
constexpr int kFetchBarrier = 1, kConsumersBarrier = 2;

template <class T, int D, int Rows, int Keys, int Warps>
struct HopperBackwardTile {
    static constexpr int kConsumers = Keys / kPart, kConsumerThreads = kConsumers * kWarpgroup;
    static constexpr int kParts = Rows / kPart;
    // Of dQ: with two, waiting for a turn holds the consumers up later.
    static constexpr int kPlaces = D == 128 ? 2 : 1;
    // How dQ is shared: a consumer has 64 rows and so many columns.
    static constexpr int kQueryColumns = D * kParts / kConsumers;

    static constexpr int kKeyBytes = Keys * kRowBytes<T, D>;
    static constexpr int kQueryBytes = Rows * kRowBytes<T, D>;
    static constexpr int kScoreBytes = Keys * kRowBytes<T, Rows>;
    static constexpr int kSumBytes = Rows * kRowBytes<float, D>;
    static constexpr int kStateBytes = kStages * static_cast<int>(sizeof(RowStatistics<Rows>)) + 1024;
    static constexpr int kSharedBytes =
        2 * kKeyBytes + kStages * 2 * kQueryBytes + 2 * kScoreBytes + kPlaces * kSumBytes + kStateBytes;
    // Registers of a thread: a block is launched with what all threads can have, then the first warpgroup leaves most of its own.
    static constexpr int kServerRegisters = 40, kConsumerRegisters = 232;
    static_assert(kServerRegisters + kConsumers * kConsumerRegisters <= Warps / 4 * kLaunchRegisters<Warps * 32>);
    static_assert(kConsumers == 2 && Warps * 32 == kWarpgroup + kConsumerThreads && kQueryColumns == 64);
    static_assert(kFetchThreads + kAddWarps * 32 == kWarpgroup);
    static_assert(kSharedBytes <= 227 * 1024, "a block of sm_90 has no more");
};

// Behind the tiles in shared memory.
template <int Rows, int Places>
struct BackwardState {
    RowStatistics<Rows> statistics[kStages];
    BackwardTask task;
    BackwardItem items[kItems];
    MBarrier full[kStages], empty[kStages];
    MBarrier d_q_full[Places], d_q_empty[Places];
    u32 not_finite[kStages][kFetchThreads / 32];    // what each warp that fetches found in K and in a masked tile
};

// Where things lie; `use` is the number of an item.
template <class T, int D, int Rows, int Keys, int Warps>
struct BackwardBlock {
    using Tile = HopperBackwardTile<T, D, Rows, Keys, Warps>;
    using State = BackwardState<Rows, Tile::kPlaces>;

    const BackwardParams& params;
    char* memory;

    DEVICE char* k_tile() const { return memory; }
    DEVICE char* v_tile() const { return k_tile() + Tile::kKeyBytes; }
    DEVICE char* q_tile(u32 use) const { return v_tile() + Tile::kKeyBytes + use % kStages * Tile::kQueryBytes; }
    DEVICE char* d_o_tile(u32 use) const { return q_tile(use) + kStages * Tile::kQueryBytes; }
    DEVICE char* d_s_tile(u32 use) const {
        return v_tile() + Tile::kKeyBytes + 2 * kStages * Tile::kQueryBytes + use % 2 * Tile::kScoreBytes;
    }
    DEVICE float* d_q_tile(u32 use) const {
        char* first = v_tile() + Tile::kKeyBytes + 2 * kStages * Tile::kQueryBytes + 2 * Tile::kScoreBytes;
        return reinterpret_cast<float*>(first + use % Tile::kPlaces * Tile::kSumBytes);
    }
    DEVICE State& state() const {
        return *reinterpret_cast<State*>(memory + Tile::kSharedBytes - Tile::kStateBytes);
    }
    DEVICE const BackwardTask& task() const { return state().task; }
    DEVICE BackwardItem& item(u32 use) const { return state().items[use % kItems]; }
};

// The parity of the phase in which item `use` fills its slot of a ring. The other one is that of the phase before, in which the slot
// became empty; before the first, a wait for it goes through.
template <int Slots>
DEVICE u32 parity_of(u32 use) {
    return use / Slots % 2;
}

// ---- Fetching ------------------------------------------------------------------------------------------------------------

template <class T, int D, int Rows, int Keys, int Warps>
struct Fetcher {
    BackwardBlock<T, D, Rows, Keys, Warps> block;
    bool searched = false, keys_not_finite = false;

    // Not kept, nor what is computed from it.
    static DEVICE int thread() { return static_cast<int>(thread_index_anew()); }

    DEVICE void load_keys(char* to, const Tensor& keys, const Tensor& prefix, const Sequence& s) {
        const Problem& p = block.params.problem;
        const Tensor& from = block.task().is_prefix ? prefix : keys;
        const Interval wanted = keys_to_load(p, block.task(), s);
        load_atoms<T, D, Keys, kFetchThreads>(to, first_key_address<T>(block.task(), s, from), from.row, wanted.first, wanted.end,
                                              p.head_dim, thread());
    }

    DEVICE void load_rows(char* to, const Tensor& from, const BackwardItem& item) {
        const Sequence& s = item.sequence;
        const T* rows = row_address<const T>(from, s.batch, item.head, static_cast<i64>(s.row_base) + item.row);
        load_atoms<T, D, Rows, kFetchThreads>(to, rows, from.row, 0, item.rows, block.params.problem.head_dim, thread());
    }

    // Whether what this thread copied of K, or of the item, holds a NaN or an infinity. K is searched when the first one asks.
    DEVICE bool search(u32 use) {
        if (!searched) keys_not_finite = own_atoms_not_finite<T, D, Keys, kFetchThreads>(block.k_tile(), thread());
        searched = true;
        return keys_not_finite | own_atoms_not_finite<T, D, Rows, kFetchThreads>(block.q_tile(use), thread()) |
               own_atoms_not_finite<T, D, Rows, kFetchThreads>(block.d_o_tile(use), thread());
    }

    DEVICE void fetch(u32 use) {
        const BackwardParams& params = block.params;
        const BackwardItem& item = block.item(use);
        auto& state = block.state();
        if (use == 0) {
            load_keys(block.k_tile(), params.problem.k, params.problem.prefix_k, item.sequence);
            load_keys(block.v_tile(), params.problem.v, params.problem.prefix_v, item.sequence);
        }
        load_rows(block.q_tile(use), params.problem.q, item);
        load_rows(block.d_o_tile(use), params.d_o, item);
        copy_commit();
        RowStatistics<Rows>& statistics = state.statistics[use % kStages];
        NO_UNROLL
        for (int row = thread(); row < Rows; row += kFetchThreads) {
            const RowNumbers x = read_row_numbers(params, item, row);
            statistics.lse[row] = x.lse;
            statistics.weight[row] = x.weight;
            statistics.constant[row] = x.constant;
        }
        copy_wait<0>();
        if (item.masked) {
            const bool found = warp_any(search(use));
            if (thread() % 32 == 0) state.not_finite[use % kStages][thread() / 32] = found;
        }
        fence_async_proxy();
    }

    DEVICE void run() {
        auto& state = block.state();
        bool exists = true;
        NO_UNROLL
        for (u32 use = 0; exists; ++use) {
            mbarrier_wait(state.empty[use % kStages], parity_of<kStages>(use) ^ 1);
            sync_some<kFetchThreads>(kFetchBarrier);    // the item is described
            exists = block.item(use).exists;
            if (exists) fetch(use);
            sync_warp();
            if (thread() % 32 == 0) mbarrier_arrive(state.full[use % kStages]);
            // The next item is looked for while the consumers have this one.
            if (exists && thread() == 0) {
                BackwardItem& next = block.item(use + 1);
                next = block.item(use);
                ++next.tile;
                seek<Rows, Keys>(next, block.task(), block.params);
            }
        }
    }
};

// ---- Adding --------------------------------------------------------------------------------------------------------------

template <class T, int D, int Rows, int Keys, int Warps>
struct Adder {
    using Tile = HopperBackwardTile<T, D, Rows, Keys, Warps>;

    BackwardBlock<T, D, Rows, Keys, Warps> block;
    u32 warp;       // of those that add

    // Additions in memory: nobody waits for what was there. In a turn, no other block adds.
    template <bool Ordered, int Pieces>
    DEVICE void add_pieces(float*& to, const float*& from) {
        f32x4 x[Pieces];
        UNROLL
        for (int i = 0; i < Pieces; ++i) x[i] = *reinterpret_cast<const f32x4*>(from + i * kGradientPiece);
        UNROLL
        for (int i = 0; i < Pieces; ++i) {
            const float sums[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
            UNROLL
            for (int e = 0; e < 4; ++e) {
                float* at = to + i * kGradientPiece + e * 32;
                const float sum = sums[e] * block.params.problem.scale;
                if (Ordered) {
                    add_in_turn(at, sum);
                } else {
                    add_unordered(at, sum);
                }
            }
        }
        to += Pieces * kGradientPiece;
        from += Pieces * kGradientPiece;
    }

    template <bool Ordered>
    DEVICE void add(u32 use) {
        const BackwardItem& item = block.item(use);
        const i32 pieces = block.params.problem.head_dim / 8;
        float* to = query_gradient(block.params, item.sequence, item.head, item.row);
        NO_UNROLL
        for (i32 row = 0; row < item.rows; row += kGradientRows) {
            const float* from = block.d_q_tile(use) + row * D + lane_index() * 4;
            // Four at a time, or a warp would mostly wait for shared memory.
            NO_UNROLL
            for (i32 piece = 4; piece <= pieces; piece += 4) add_pieces<Ordered, 4>(to, from);
            NO_UNROLL
            for (i32 piece = 0; piece < pieces % 4; ++piece) add_pieces<Ordered, 1>(to, from);
        }
    }

    DEVICE void run() {
        auto& state = block.state();
        const bool ordered = !(block.params.problem.flags & kUnordered);
        NO_UNROLL
        for (u32 use = 0;; ++use) {
            const BackwardItem& item = block.item(use);
            mbarrier_wait(state.d_q_full[use % Tile::kPlaces], parity_of<Tile::kPlaces>(use));
            if (!item.exists) break;
            // Every second item: a warp waits until its additions are done before it passes the turn on, and the other one adds.
            const bool own = use % kAddWarps == warp;
            i32* turn = turn_of<Rows>(block.params, item);
            if (own && ordered) {
                // All tiles of keys before this one have added.
                if (lane_index() == 0) {
                    while (load_acquire(turn) < item.turn) wait_a_little();
                }
                sync_warp();
                add<true>(use);
            } else if (own) {
                add<false>(use);
            }
            sync_warp();
            if (lane_index() == 0) {
                mbarrier_arrive(state.d_q_empty[use % Tile::kPlaces]);
                if (own && ordered) add_release(turn, 1);
            }
        }
    }
};

// x, which is the same in all lanes, in a way that tells the compiler: it then is in none of a lane's registers.
DEVICE u32 same_in_all_lanes(u32 x) { return as_bits(shuffle(as_float(x), 0)); }

// ---- A consumer ----------------------------------------------------------------------------------------------------------

template <class T, int D, int Rows, int Keys, int Warps>
struct BackwardConsumer {
    using Tile = HopperBackwardTile<T, D, Rows, Keys, Warps>;
    static constexpr int NT = kPart / 8, KT = kPart / 16, OT = D / 8, QT = Tile::kQueryColumns / 8;

    BackwardBlock<T, D, Rows, Keys, Warps> block;
    int warp_key;                   // first key of the warp
    u64 keys, values;               // the warpgroup's, left factors of scores
    int query_row, query_column;    // first of the warp's part of dQ
    u32 use = 0;                    // the item
    bool exists = false, apart = false;     // of the last one that was waited for: whether it does, and is taken apart

    DEVICE const BackwardItem& item() const { return block.item(use); }
    DEVICE const RowStatistics<Rows>& statistics() const { return block.state().statistics[use % kStages]; }

    // Waits until an item is there. After a vote the compiler knows that all lanes go the same way.
    DEVICE void take(u32 next) {
        mbarrier_wait(block.state().full[next % kStages], parity_of<kStages>(next));
        exists = warp_any(block.item(next).exists != 0);
        apart = exists && warp_any((block.params.problem.flags & kTransform) != 0 || is_poisoned(next));
    }
    // Gives the item's stage back. All products that read it must be done, and all lanes' own reads: consumers have met since.
    DEVICE void give() {
        if (lane_index() == 0) mbarrier_arrive(block.state().empty[use % kStages]);
    }

    DEVICE bool is_poisoned(u32 use) const {
        const u32(&found)[2] = block.state().not_finite[use % kStages];
        return block.item(use).masked && (found[0] | found[1]) != 0;
    }

    // Products of tiles. The zeros are never read, and cost nothing; without them the compiler would have them begin with whatever is in
    // some registers, which may be those of a product under way.
    DEVICE void begin_scores(float (&s)[1][NT][4], u32 use, int first_row) {
        clear(s);
        begin_rows_by_rows<T, D>(s[0], keys, rows_matrix<D>(block.q_tile(use), first_row));
    }
    DEVICE void begin_probability_gradients(float (&dp)[1][NT][4], int first_row) {
        clear(dp);
        begin_rows_by_rows<T, D>(dp[0], values, rows_matrix<D>(block.d_o_tile(use), first_row));
    }
    DEVICE void begin_query_gradient(float (&dq)[1][QT][4]) {
        const char* d_s = block.d_s_tile(use) + query_row / kPart * kAtomBytes;
        clear(dq);
        begin_columns_by_tile<T, Rows, D, Keys>(dq[0], columns_matrix<Rows>(d_s),
                                                columns_matrix<D>(block.k_tile() + query_column / 64 * kAtomBytes));
    }

    // Pᵀ of 64 rows from their scores; what dropout takes has its sign turned.
    DEVICE void to_probabilities(float (&s)[1][NT][4], int first_row) {
        const Problem& p = block.params.problem;
        const BackwardTask& task = block.task();
        probabilities(s, statistics(), first_row, exponent_scale(p));
        if (item().masked) hide(s, first_row, [&](int i) { return rows_that_see(p, task, item(), warp_key + i); });
        if (p.flags & kDropout) {
            mark_dropped(s, p, task.is_prefix ? kDropPrefix : kDropKeys, item().dropout_head, item().row + first_row,
                         task.first_key + warp_key);
        }
    }

    // (w P∘m̃)ᵀ and dSᵀ as left factors. `Whole`: see core/gradient.cuh.
    template <bool Whole>
    DEVICE void pack_weighted(u32 (&operand)[KT][4], const float (&s)[1][NT][4], int first_row) {
        UNROLL
        for (int kt = 0; kt < KT; ++kt) {
            float x[1][2][4];
            weighted_probabilities<Whole>(x, s, statistics(), first_row, kt * 2, probability_scale<T>(block.params.problem));
            pack_a<T>(operand[kt], x[0], 0);
        }
    }
    template <bool Whole>
    DEVICE void pack_gradients(u32 (&operand)[KT][4], float (&dp)[1][NT][4], const float (&s)[1][NT][4], int first_row) {
        score_gradients<Whole>(dp, s, 0, statistics(), first_row);
        UNROLL
        for (int kt = 0; kt < KT; ++kt) pack_a<T>(operand[kt], dp[0], kt);
    }

    // Lays a left factor down in the item's place of dS. Addresses are not kept from one item to the next.
    DEVICE void lay_down(const u32 (&operand)[KT][4], int first_row) {
        using Scores = AtomTile<T, Rows>;
        const int lane = lane_index_anew();
        char* tile = block.d_s_tile(use);
        const int own = Scores::offset(warp_key + lane / 4, first_row / 8) + lane % 4 * 4;
        UNROLL
        for (int chunk = 0; chunk < 8; ++chunk) {
            // Of the eight chunks of an atom's row the lane's place is another one each time.
            char* to = tile + (own ^ chunk * 16);
            UNROLL
            for (int half = 0; half < 2; ++half) {
                *reinterpret_cast<u32*>(to + half * kAtomRowBytes<Rows>) = operand[chunk / 2][chunk % 2 * 2 + half];
            }
        }
    }

    // Hands dQ on.
    DEVICE void hand_on(const float (&dq)[1][QT][4]) {
        auto& state = block.state();
        const int place = use % Tile::kPlaces;
        mbarrier_wait(state.d_q_empty[place], parity_of<Tile::kPlaces>(use) ^ 1);
        float* to = block.d_q_tile(use) + query_row * D + query_column / 8 * kGradientPiece + lane_index_anew() * 4;
        UNROLL
        for (int qt = 0; qt < QT; ++qt) {
            *reinterpret_cast<f32x4*>(to + qt * kGradientPiece) = {dq[0][qt][0], dq[0][qt][1], dq[0][qt][2], dq[0][qt][3]};
        }
        sync_warp();
        if (lane_index() == 0) mbarrier_arrive(state.d_q_full[place]);
    }

    // Hands on that there are no more.
    DEVICE void tell_end() {
        auto& state = block.state();
        mbarrier_wait(state.d_q_empty[use % Tile::kPlaces], parity_of<Tile::kPlaces>(use) ^ 1);
        if (lane_index() == 0) mbarrier_arrive(state.d_q_full[use % Tile::kPlaces]);
    }

    // Items that are not taken apart, as many as follow each other.
    //
    // Products end in the order in which they begin, and warpgroup_wait<1> means that all but the last one have. What it leaves under way
    // is bounded by registers: dK, dV, two tiles of scores and one or two left factors.
    DEVICE void take_run(float (&dk)[1][OT][4], float (&dv)[1][OT][4]) {
        float s[1][NT][4], dq[1][QT][4];
        u32 p[KT][4], ds[KT][4];
        begin_scores(s, use, 0);
        NO_UNROLL
        for (;;) {
            use = same_in_all_lanes(use);
            // Nothing is hidden or dropped.
            const bool whole = !warp_any(item().masked || (block.params.problem.flags & kDropout) != 0);
            UNROLL
            for (int part = 0; part < Tile::kParts; ++part) {
                const int first_row = part * kPart;
                float dp[1][NT][4];
                begin_probability_gradients(dp, first_row);
                warpgroup_wait<1>();
                pin(s[0]);
                to_probabilities(s, first_row);
                if (whole) {
                    pack_weighted<true>(p, s, first_row);
                } else {
                    pack_weighted<false>(p, s, first_row);
                }
                begin_registers_by_tile<T, D>(dv[0], p, columns_matrix<D>(block.d_o_tile(use), first_row));
                warpgroup_wait<1>();
                pin(dp[0]);
                if (whole) {
                    pack_gradients<true>(ds, dp, s, first_row);
                } else {
                    pack_gradients<false>(ds, dp, s, first_row);
                }
                // Before the product, which nobody may share the registers with.
                lay_down(ds, first_row);
                begin_registers_by_tile<T, D>(dk[0], ds, columns_matrix<D>(block.q_tile(use), first_row));
                if (part + 1 < Tile::kParts) begin_scores(s, use, first_row + kPart);
            }
            fence_async_proxy();
            take(use + 1);
            sync_some<Tile::kConsumerThreads>(kConsumersBarrier);   // dS is complete
            // dK has been under way all that time; its left factor's registers are needed.
            warpgroup_wait<0>();
            pin(dv[0]);
            pin(dk[0]);
            give();
            // Here and not below: where paths meet again, the compiler has to know what is under way.
            if (!exists || apart) break;
            begin_query_gradient(dq);
            begin_scores(s, use + 1, 0);
            warpgroup_wait<1>();
            pin(dq[0]);
            hand_on(dq);
            ++use;
        }
        begin_query_gradient(dq);
        warpgroup_wait<0>();
        pin(dq[0]);
        hand_on(dq);
        ++use;
    }

    // An item whose products are taken one by one, but for dV, which may wait.
    DEVICE void take_apart(float (&dk)[1][OT][4], float (&dv)[1][OT][4]) {
        const Problem& p = block.params.problem;
        const bool poisoned = warp_any(is_poisoned(use));
        auto seen_by = [&](int i) { return rows_that_see(p, block.task(), item(), warp_key + i); };
        // What was laid down for one of the warp's keys.
        auto left = [&](int i, int j) { return to_float(*AtomTile<T, Rows>::element(block.d_s_tile(use), warp_key + i, j)); };
        NO_UNROLL
        for (int first_row = 0; first_row < Rows; first_row += kPart) {
            float s[1][NT][4], dp[1][NT][4];
            u32 operand[KT][4];
            begin_scores(s, use, first_row);
            warpgroup_wait<0>();
            pin(s[0]);
            if (p.flags & kTransform) {
                transform_scores_of_keys<T>(s, ScoreContext{p, item().sequence, item().slope, item().row + first_row,
                                                            block.task().first_key + warp_key});
            }
            to_probabilities(s, first_row);
            pack_weighted<false>(operand, s, first_row);
            if (poisoned) {
                lay_down(operand, first_row);
                sync_warp();
                add_visible<AtomTile<T, D>>(dv, block.d_o_tile(use), 0, first_row, first_row + kPart, lane_index_anew, seen_by, left);
                sync_warp();
            } else {
                begin_registers_by_tile<T, D>(dv[0], operand, columns_matrix<D>(block.d_o_tile(use), first_row));
            }
            if (p.flags & kSoftcap) {
                begin_scores(dp, use, first_row);
                warpgroup_wait<0>();
                pin(dp[0]);
                UNROLL
                for (int nt = 0; nt < NT; nt += 2) {
                    float two[1][2][4];
                    UNROLL
                    for (int e = 0; e < 8; ++e) two[0][e / 4][e % 4] = dp[0][nt + e / 4][e % 4];
                    apply_softcap_derivative<T>(s, two, nt, p);
                }
            }
            begin_probability_gradients(dp, first_row);
            warpgroup_wait<0>();
            pin(dv[0]);
            pin(dp[0]);
            pack_gradients<false>(operand, dp, s, first_row);
            lay_down(operand, first_row);
            if (poisoned) {
                sync_warp();
                add_visible<AtomTile<T, D>>(dk, block.q_tile(use), 0, first_row, first_row + kPart, lane_index_anew, seen_by, left);
            } else {
                begin_registers_by_tile<T, D>(dk[0], operand, columns_matrix<D>(block.q_tile(use), first_row));
                warpgroup_wait<0>();
                pin(dk[0]);
            }
        }
        fence_async_proxy();
        sync_some<Tile::kConsumerThreads>(kConsumersBarrier);
        give();
        float dq[1][QT][4];
        if (poisoned) {
            clear(dq);
            add_visible<AtomTile<T, D>>(
                dq, block.k_tile(), query_column, 0, Keys, lane_index_anew,
                [&](int i) { return keys_seen_by(p, block.task(), item(), query_row + i); },
                [&](int i, int j) { return to_float(*AtomTile<T, Rows>::element(block.d_s_tile(use), j, query_row + i)); });
        } else {
            begin_query_gradient(dq);
            warpgroup_wait<0>();
            pin(dq[0]);
        }
        hand_on(dq);
        take(++use);
    }

    DEVICE void run() {
        float dk[1][OT][4], dv[1][OT][4];
        clear(dk);
        clear(dv);
        take(0);
        NO_UNROLL
        while (exists) {
            if (apart) {
                take_apart(dk, dv);
            } else {
                take_run(dk, dv);
            }
        }
        tell_end();
        store_key_gradients<T, Keys, Tile::kConsumerThreads / 32>(block.params, block.task(), dk, dv, warp_key, 0,
                                                                  static_cast<int>(thread_index()) - kWarpgroup);
    }
};

template <class T, int D, int Rows, int Keys, int Warps>
DEVICE void backward_hopper(const BackwardParams& params) {
    using Tile = HopperBackwardTile<T, D, Rows, Keys, Warps>;
    const BackwardBlock<T, D, Rows, Keys, Warps> block{params, shared_memory_of_warpgroups()};
    auto& state = block.state();
    static_assert(sizeof(state) <= Tile::kStateBytes);
    const int thread = static_cast<int>(thread_index());
    if (thread == 0) {
        draw_task<Rows, Keys>(state.task, state.items[0], params);
        UNROLL
        for (int stage = 0; stage < kStages; ++stage) {
            mbarrier_init(state.full[stage], kFetchThreads / 32);
            mbarrier_init(state.empty[stage], Tile::kConsumerThreads / 32);
        }
        UNROLL
        for (int place = 0; place < Tile::kPlaces; ++place) {
            mbarrier_init(state.d_q_full[place], Tile::kConsumerThreads / 32);
            mbarrier_init(state.d_q_empty[place], kAddWarps);
        }
    }
    sync_threads();
    if (warp_index() < kWarpgroup / 32) {
        give_registers_back<Tile::kServerRegisters>();
        if (thread < kFetchThreads) {
            Fetcher<T, D, Rows, Keys, Warps>{block}.run();
        } else {
            Adder<T, D, Rows, Keys, Warps>{block, static_cast<u32>(warp_index() - kFetchThreads / 32)}.run();
        }
    } else {
        take_registers<Tile::kConsumerRegisters>();
        const int number = static_cast<int>(same_in_all_lanes(static_cast<u32>(warp_index())));
        const int group = number / (kWarpgroup / 32) - 1, warp = number % (kWarpgroup / 32);
        const int query_part = Tile::kParts == 1 ? 0 : group;
        BackwardConsumer<T, D, Rows, Keys, Warps>{block,
                                                  group * kPart + warp * 16,
                                                  rows_matrix<D>(block.k_tile(), group * kPart),
                                                  rows_matrix<D>(block.v_tile(), group * kPart),
                                                  query_part * kPart + warp * 16,
                                                  Tile::kParts == 1 ? group * Tile::kQueryColumns : 0}
            .run();
    }
}

}  // namespace inducer

#define BACKWARD_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                        \
    KERNEL(pass##_##type##_d##dim, inducer::BackwardParams, warps * 32, blocks,                                             \
           (inducer::HopperBackwardTile<inducer::type, dim, rows, keys, warps>::kSharedBytes)) {                            \
        inducer::backward_hopper<inducer::type, dim, rows, keys, warps>(params);                                            \
    }
BACKWARD_HOPPER_KERNELS(BACKWARD_INSTANCE)
