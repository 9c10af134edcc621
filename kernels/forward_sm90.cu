// The fused forward for sm_90a: O, lse, and U or attn where they are wanted. What forward_sm80.cu computes, with the products of
// warpgroups, and copies by warps that do nothing else.
//
// A task is one tile of queries in one head of one sequence. A multiprocessor has one block at a time; where tasks are alike it stays
// and takes one after the other, where they are not, each has a block (src/cuda/plan/forward.rs). Its first warpgroup, the producer,
// fills a ring of four slots; the others, the consumers, own 64 rows each and empty it:
//
//     producer                               consumers
//     K 0, Q           ──► slots ──►         S = Q K₀ᵀ, softmax
//     K 1, V 0         ──►       ──►         S' = Q K₁ᵀ and O += P V₀ under way together; softmax of S' meanwhile
//     …                                      …
//     V of the last    ──►       ──►         O += P V
//     adapters of the virtual token ──►      lse is known: O /= sum;  u, W → s0 → λ;  h;  O += λ h B + λ b
//     K 0 of the next task, Q                O is written
//
// The virtual token is more turns of the same ring: the producer stages a chunk of an adapter (16 ranks, core/inducer.cuh) in a slot
// while the consumers are still busy with keys; A and B lie there as rows that look like keys and values, and are multiplied like them.
//
// Tiles that ask for more than a softmax (masked ones; all of them with softcap, ALiBi or dropout) are taken one by one: S, softmax,
// O += P V, and another warpgroup's products have the tensor cores meanwhile. `is_plain` says which; producer and consumers ask it
// alike, since it decides in which order K and V come.
//
// Each slot has two barriers: `full`, which the producer's warps arrive at, and `empty`, which the consumers' warps do. Use i of the
// ring is use i / 4 of slot i % 4; the phase of its barriers follows from that. Q has two places (one at head_dim 256) with the same kind
// of barriers: `query_full` also says that the task is laid down, `query_empty` that no consumer reads Q or the task any more. So a
// warpgroup that is done goes on with the next task, and its products fill the time in which the other's have nothing to do. What a
// producer writes is fenced for the asynchronous proxy, by which products read it, before it arrives.
//
// A masked tile whose V holds a NaN or an infinity is poisoned: 0·NaN would reach rows that must not see it. The producer finds out,
// and that product leaves hidden pairs out one by one (add_visible), with P in shared memory. Rare, and slow.
//
// Shared memory: Q [rows] once or twice, four slots of [keys], each of head_dim columns; for each consumers' warp P [16, keys], by way
// of which O leaves as well; the softmax's sums; 227 KB for bf16 at head_dim 128.
//
// The sums lie in shared memory for the sake of order: the assembler moves arithmetic behind a wait for products, where exponentials
// would no longer be computed while O += P V is under way, but no store; and a sum is stored when all of them have been computed.
//
// Symbols are those of src/lib.rs. NT, OT: blocks of 8 columns of S and of O; `half` and `e` choose within a fragment
// (core/product.cuh).
#include "core/atoms.cuh"
#include "core/forward_task.cuh"
#include "core/inducer.cuh"
#include "core/softmax.cuh"
#include "list.h"

namespace inducer {

constexpr int kSlots = 4;
constexpr int kWarpgroupRows = 64;
constexpr int kProducerBarrier = 1;     // of sync_some

// Behind the tiles in shared memory.
template <int Keys>
struct ForwardState {
    ForwardTask<Keys> tasks[2];         // `rows` is 0 behind the last one
    MBarrier query_full[2], query_empty[2];
    MBarrier full[kSlots], empty[kSlots];
    u32 not_finite[kSlots][4];          // what each of the producer's warps found in a masked V
};
constexpr int kStateBytes = 512;

template <class T, int D, int Rows, int Keys, int Warps>
struct HopperTile {
    static constexpr int kThreads = Warps * 32, kConsumers = Rows / kWarpgroupRows;
    static constexpr int kConsumerThreads = kConsumers * kWarpgroup;
    static constexpr int kScoreTiles = Keys / 8, kOutputTiles = D / 8;
    static constexpr int kQueryBytes = Rows * kRowBytes<T, D>;
    static constexpr int kSlotBytes = Keys * kRowBytes<T, D>;
    static constexpr int kProbabilityBytes = Rows * Keys * static_cast<int>(sizeof(T));
    static constexpr int kSumBytes = kConsumerThreads * 2 * 4;
    static constexpr int kOtherBytes = kSlots * kSlotBytes + kProbabilityBytes + kSumBytes + kStateBytes;
    // Two places for Q if there is room: the next task's is there early, and whichever warpgroup is done first goes on with it.
    static constexpr int kQueries = 2 * kQueryBytes + kOtherBytes <= kSharedOfHopper ? 2 : 1;
    static constexpr int kSharedBytes = kQueries * kQueryBytes + kOtherBytes;
    // Registers of a thread: a block is launched with what all threads can have, then the producer leaves most of its own.
    static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32, kConsumerRegisters = kConsumers == 2 ? 232 : 160;
    static_assert(kThreads == kWarpgroup + kConsumerThreads && (kConsumers == 2 || kConsumers == 3));
    static_assert(Keys >= kStageRows && sizeof(ForwardState<Keys>) <= kStateBytes);
    static_assert(kSharedBytes <= kSharedOfHopper);
};

// Whether a tile's scores are only scaled.
template <int Keys>
DEVICE bool is_plain(const Problem& p, const ForwardTask<Keys>& task, i32 tile) {
    return (p.flags & (kTransform | kDropout)) == 0 && !task.tiles.is_masked(p, tile);
}

// Task `index` of all. Pairs of sequence and head are worked on in groups, whose keys the L2 cache holds; in a group the last tiles go
// first, which see the most where the mask is causal.
DEVICE TilePlace place_of(const ForwardParams& params, i32 index) {
    const i32 size = params.group * params.row_tiles, first = index / size * params.group;
    const i32 pairs = minimum(params.group, params.pairs - first), within = index % size;
    return {params.row_tiles - 1 - within / pairs, first + within % pairs};
}

// Ranks of the adapters, biases among them, that are staged for the virtual token: none where there is none.
struct StagedRanks {
    i32 key, value;

    DEVICE explicit StagedRanks(const Problem& p)
        : key(p.key_kind == kKeyNone || is_given(p) ? 0 : ranks_and_bias(p.key)),
          value(p.key_kind == kKeyNone ? 0 : ranks_and_bias(p.value)) {}
};

// Which of `Places` places use `use` is of, and the parity of that place's phase.
template <int Places>
struct Turn {
    i32 use = 0;

    DEVICE int slot() const { return use % Places; }
    DEVICE u32 parity() const { return static_cast<u32>(use / Places % 2); }
};

// ---- The producer --------------------------------------------------------------------------------------------------------

template <class T, int D, int Rows, int Keys, int Warps>
struct Producer {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;

    const ForwardParams& params;
    ForwardState<Keys>& state;
    char *q_tile, *slots;
    Turn<kSlots> place;
    i32 number = 0;         // of the task, of this block's
    // Whose copies are under way, and whether they are to be searched: a slot, Q, or nothing.
    static constexpr int kNothing = -2, kQuery = -1;
    int pending = kNothing;
    bool pending_search = false;

    // Read anew: what is computed from it is cheap, and registers are few.
    static DEVICE int thread() { return static_cast<int>(thread_index_anew()); }
    DEVICE ForwardTask<Keys>& task() { return state.tasks[number % 2]; }
    DEVICE Turn<Tile::kQueries> query() const { return {number}; }

    // The copies that are under way are done, but those begun `Later`: tells the consumers.
    template <int Later>
    DEVICE void deliver() {
        copy_wait<Later>();
        if (pending == kNothing) return;
        if (pending_search) {
            const bool found = warp_any(own_atoms_not_finite<T, D, Keys, kWarpgroup>(slots + pending * Tile::kSlotBytes, thread()));
            if (thread() % 32 == 0) state.not_finite[pending][thread() / 32] = found;
        }
        announce(pending == kQuery ? state.query_full[query().slot()] : state.full[pending]);
        pending = kNothing;
    }

    DEVICE void announce(MBarrier& barrier) {
        fence_async_proxy();
        sync_warp();
        if (thread() % 32 == 0) mbarrier_arrive(barrier);
    }

    // Waits until the next slot is free.
    DEVICE char* begin_turn() {
        mbarrier_wait(state.empty[place.slot()], place.parity() ^ 1);
        return slots + place.slot() * Tile::kSlotBytes;
    }

    // Waits until the task's place for Q is free, as the first ones are.
    DEVICE void wait_for_query() { mbarrier_wait(state.query_empty[query().slot()], query().parity() ^ 1); }

    DEVICE void load_query() {
        if (Tile::kQueries == 1) wait_for_query();
        const Sequence& s = task().sequence;
        const T* rows = row_address<const T>(params.problem.q, s.batch, task().head, static_cast<i64>(s.row_base) + task().row);
        load_atoms<T, D, Rows, kWarpgroup>(q_tile + query().slot() * Tile::kQueryBytes, rows, params.problem.q.row, 0, task().rows, params.problem.head_dim, thread());
        copy_commit();
        deliver<1>();
        pending = kQuery;
        pending_search = false;
    }

    // A turn: a tile of keys or of the prefix, K or V.
    DEVICE void load_keys(bool is_value, i32 tile) {
        const Problem& p = params.problem;
        const KeyTiles<Keys>& tiles = task().tiles;
        char* to = begin_turn();
        const bool is_prefix = tiles.is_prefix(tile);
        const i32 first = tiles.first_key(tile);
        const i32 begin = is_prefix ? 0 : tiles.some_first - first;
        const i32 end = (is_prefix ? p.prefix_len : tiles.some_end) - first;
        const i64 stride = is_prefix ? (is_value ? p.prefix_v.row : p.prefix_k.row) : (is_value ? p.v.row : p.k.row);
        const void* keys = is_prefix ? (is_value ? task().prefix_v : task().prefix_k) : (is_value ? task().v : task().k);
        load_atoms<T, D, Keys, kWarpgroup>(to, static_cast<const T*>(keys) + first * stride, stride, begin, end, p.head_dim, thread());
        copy_commit();
        deliver<1>();
        pending = place.slot();
        pending_search = is_value && tiles.is_masked(p, tile);
        ++place.use;
    }

    // Turns with all chunks of the adapters, the key's first.
    DEVICE void stage_adapters() {
        const Problem& p = params.problem;
        const StagedRanks ranks(p);
        NO_UNROLL
        for (int which = 0; which < 2; ++which) {
            const i32 end = which == 0 ? ranks.key : ranks.value;
            NO_UNROLL
            for (i32 rank = 0; rank < end; rank += kChunk) {
                stage_adapter<AtomTile<T, D>, kWarpgroup, 2>(begin_turn(), which == 0 ? p.key : p.value, task().head, rank,
                                                             p.head_dim);
                announce(state.full[place.slot()]);
                ++place.use;
            }
        }
    }

    // All turns of a task that is laid down.
    DEVICE void run_task() {
        const Problem& p = params.problem;
        const i32 tiles = task().tiles.tiles;
        // The next tiles of K and of V, in the order in which consumers want them.
        i32 key = 0, value = 0;
        NO_UNROLL
        for (bool first = true;; first = false) {
            if (value < tiles) {
                const bool ahead = key == value + 1 && is_plain(p, task(), value) && key < task().tiles.unmasked_end(p, value);
                const bool is_value = key != value && !ahead;
                load_keys(is_value, is_value ? value++ : key++);
            }
            if (first) load_query();
            if (value >= tiles) break;
        }
        deliver<0>();
        stage_adapters();
    }

    DEVICE void run() {
        const i32 all = params.row_tiles * params.pairs;
        NO_UNROLL
        for (i32 round = 0;; ++round) {
            const i64 index = static_cast<i64>(round) * params.blocks + static_cast<i32>(block_x());
            if (index >= all) break;
            // The task's place is that of the one before the last, which the consumers are done with when they are with its Q.
            if (Tile::kQueries == 2) wait_for_query();
            if (!begin_task<T, Rows, kWarpgroup>(task(), params, place_of(params, static_cast<i32>(index)), thread())) continue;
            sync_some<kWarpgroup>(kProducerBarrier);
            run_task();
            ++number;
        }
        // Behind the last one. No warp may arrive here before all have for the last use of this barrier.
        wait_for_query();
        if (thread() == 0) task().rows = 0;
        announce(state.query_full[query().slot()]);
    }
};

// ---- A consumer ----------------------------------------------------------------------------------------------------------

template <class T, int D, int Rows, int Keys, int Warps>
struct Consumer {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;
    static constexpr int NT = Tile::kScoreTiles, OT = Tile::kOutputTiles, KT = Keys / 16;

    const ForwardParams& params;
    ForwardState<Keys>& state;
    char *q_tile, *slots;
    char* scratch;                  // of the warp
    float* sums;                    // of the lane's rows in the softmax, 32 from each other
    int warp_row;                   // first row of the warp
    Turn<kSlots> place;
    i32 number = 0;                 // of the task, of this block's

    DEVICE const ForwardTask<Keys>& task() const { return state.tasks[number % 2]; }
    DEVICE Turn<Tile::kQueries> turn_of_query() const { return {number}; }
    DEVICE const char* query_tile() const { return q_tile + turn_of_query().slot() * Tile::kQueryBytes; }
    // The warpgroup's rows of Q.
    DEVICE u64 query() const { return rows_matrix<D>(query_tile(), warp_row / kWarpgroupRows * kWarpgroupRows); }

    // Waits for the next turn.
    DEVICE const char* take() {
        mbarrier_wait(state.full[place.slot()], place.parity());
        return slots + place.slot() * Tile::kSlotBytes;
    }
    // Gives the slot of turn `use` back. Of products that read it, all must be done.
    DEVICE void give(i32 use) {
        if (lane_index_anew() == 0) mbarrier_arrive(state.empty[use % kSlots]);
    }

    // The columns of a tile of keys that a row of this warp sees.
    DEVICE Interval visible(i32 tile, int row) const {
        const i32 first_key = task().tiles.first_key(tile);
        if (task().tiles.is_prefix(tile)) return {0, params.problem.prefix_len - first_key};
        const Interval seen = task().sequence.visible(task().row + warp_row + row);
        return {seen.first - first_key, seen.end - first_key};
    }

    DEVICE void to_operands(u32 (&p)[KT][4], const float (&s)[NT][4]) {
        UNROLL
        for (int kt = 0; kt < KT; ++kt) pack_a<T>(p[kt], s, kt);
    }

    DEVICE void rescale(float (&o)[OT][4], const float (&factor)[2], bool moved) {
        // Where no reference has moved, factors are 1, or 0 in rows that have seen nothing, where O is 0.
        if (warp_any(moved)) scale_rows(o, factor);
    }

    // A tile by itself.
    DEVICE void take_tile(float (&o)[OT][4], OnlineSoftmax<1>& softmax, i32 tile, float scale) {
        const Problem& p = params.problem;
        const bool masked = task().tiles.is_masked(p, tile), is_prefix = task().tiles.is_prefix(tile);
        const i32 first_key = task().tiles.first_key(tile);
        float s[1][NT][4];
        const u64 k = rows_matrix<D>(take());
        begin_rows_by_rows<T, D>(s[0], query(), k);
        warpgroup_wait<0>();
        pin(s[0]);
        give(place.use++);
        if (p.flags & kTransform) {
            transform_scores<T>(s, ScoreContext{p, task().sequence, is_prefix ? 0.0f : task().slope, task().row + warp_row, first_key});
        }
        if (masked) mask_scores(s, [&](int row) { return visible(tile, row); });
        float factor[2];
        bool moved = false;
        UNROLL
        for (int half = 0; half < 2; ++half) factor[half] = softmax.update_row(s[0], 0, half, scale, kSlack<OT>, moved);
        rescale(o, factor, moved);
        if (p.flags & kDropout) {
            apply_dropout(s, p, is_prefix ? kDropPrefix : kDropKeys, task().dropout_head, task().row + warp_row, first_key);
        }
        u32 probabilities[KT][4];
        to_operands(probabilities, s[0]);

        const char* v_tile = take();
        const u32(&found)[4] = state.not_finite[place.slot()];
        if (masked && (found[0] | found[1] | found[2] | found[3]) != 0) {
            add_poisoned(o, probabilities, v_tile, tile);
        } else {
            begin_registers_by_tile<T, D>(o, probabilities, columns_matrix<D>(v_tile));
            warpgroup_wait<0>();
            pin(o);
        }
        // All lanes have read what was found.
        if (masked) sync_warp();
        give(place.use++);
    }

    // O += P V without hidden pairs.
    DEVICE void add_poisoned(float (&o)[OT][4], const u32 (&p)[KT][4], const char* v_tile, i32 tile) {
        T* own = reinterpret_cast<T*>(scratch);
        const int lane = lane_index_anew();
        UNROLL
        for (int kt = 0; kt < KT; ++kt) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + i % 2 * 8, column = kt * 16 + i / 2 * 8 + lane % 4 * 2;
                *reinterpret_cast<u32*>(own + row * Keys + column) = p[kt][i];
            }
        }
        sync_warp();
        // One block of rows, as add_visible has it.
        auto& block = reinterpret_cast<float(&)[1][OT][4]>(o);
        add_visible<AtomTile<T, D>>(
            block, v_tile, 0, 0, Keys, lane_index_anew, [&](int row) { return visible(tile, row); },
            [&](int i, int j) { return to_float(own[i * Keys + j]); });
    }

    // Plain tiles from `tile` on, as many as follow each other; returns the next one that is not. While O takes in a tile, the scores
    // of the next one are under way, or in the softmax.
    DEVICE i32 take_run(float (&o)[OT][4], OnlineSoftmax<1>& softmax, i32 tile, float scale) {
        const Problem& p = params.problem;
        float s[NT][4], factor[2];
        u32 probabilities[KT][4];
        auto soften = [&] {
            bool moved = false;
            UNROLL
            for (int half = 0; half < 2; ++half) factor[half] = softmax.update_row(s, 0, half, scale, kSlack<OT>, moved);
            return moved;
        };
        {
            const u64 k = rows_matrix<D>(take());
            begin_rows_by_rows<T, D>(s, query(), k);
            warpgroup_wait<0>();
            pin(s);
            give(place.use++);
            const bool moved = soften();
            rescale(o, factor, moved);
            to_operands(probabilities, s);
        }
        const i32 end = task().tiles.unmasked_end(p, tile);
        NO_UNROLL
        for (++tile; tile < end; ++tile) {
            const u64 k = rows_matrix<D>(take());
            begin_rows_by_rows<T, D>(s, query(), k);
            ++place.use;
            const u64 v = columns_matrix<D>(take());
            begin_registers_by_tile<T, D>(o, probabilities, v);
            warpgroup_wait<1>();
            pin(s);
            give(place.use - 1);
            const bool moved = soften();
            warpgroup_wait<0>();
            pin(o);
            give(place.use++);
            rescale(o, factor, moved);
            to_operands(probabilities, s);
        }
        const u64 v = columns_matrix<D>(take());
        begin_registers_by_tile<T, D>(o, probabilities, v);
        warpgroup_wait<0>();
        pin(o);
        give(place.use++);
        return tile;
    }

    // The squares of the warp's rows of Q, in parts: each lane has a quarter of the chunks of its rows.
    DEVICE void row_squares(float (&square)[1][2]) {
        const int lane = lane_index_anew();
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + half * 8 + lane / 4;
            float sum = 0.0f;
            NO_UNROLL
            for (int chunk = lane % 4; chunk < D / 8; chunk += 4) {
                const u32x4 x = *reinterpret_cast<const u32x4*>(AtomTile<T, D>::chunk(query_tile(), row, chunk));
                const u32 words[4] = {x.x, x.y, x.z, x.w};
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const float low = to_float(T{static_cast<u16>(words[i] & 0xffffu)}), high = to_float(T{static_cast<u16>(words[i] >> 16)});
                    sum = fused_multiply_add(low, low, sum);
                    sum = fused_multiply_add(high, high, sum);
                }
            }
            square[0][half] = sum;
        }
    }

    // Takes the virtual token into O, which is attn before, and stores U where it is wanted.
    DEVICE void add_virtual_token(float (&o)[OT][4], const float (&lse)[1][2]) {
        const Problem& p = params.problem;
        const Sequence& s = task().sequence;
        const StagedRanks ranks(p);
        float dot[1][2] = {}, weight[1][2], rest[1][2];
        if (!is_given(p)) row_squares(dot);
        NO_UNROLL
        for (i32 rank = 0; rank < ranks.key; rank += kChunk) {
            // Products with A and with B, which are neighbours in the stage.
            float z[2 * kChunkTiles][4];
            const u64 stage = rows_matrix<D>(take());
            begin_rows_by_rows<T, D>(z, query(), stage);
            warpgroup_wait<0>();
            pin(z);
            give(place.use++);
            auto& unit = reinterpret_cast<float(&)[1][kChunkTiles][4]>(z);
            auto& w = reinterpret_cast<float(&)[1][kChunkTiles][4]>(z[kChunkTiles]);
            hidden_units<T>(unit, p.key, task().head, rank, 1.0f);
            add_products_of_units(dot, unit, w, rank, ranks.key);
        }
        virtual_weights<T>(weight, rest, dot, lse, p, s, task().head, task().row + warp_row, task().dropout_head);
        if (p.value_kind == kValueDirect || p.value_kind == kValueZero) scale_rows(o, rest[0]);
        NO_UNROLL
        for (i32 rank = 0; rank < ranks.value; rank += kChunk) {
            float unit[1][kChunkTiles][4];
            const char* stage = take();
            begin_rows_by_rows<T, D>(unit[0], query(), rows_matrix<D>(stage));
            warpgroup_wait<0>();
            pin(unit[0]);
            hidden_units<T>(unit, p.value, task().head, rank, 1.0f);
            scale_rows(unit, weight);
            if (p.value_kind == kValueExtended) {
                T* u = row_address<T>(params.u, s.batch, task().head, static_cast<i64>(s.row_base) + task().row) + rank;
                store_elements(u, params.u.row, unit, warp_row, task().rows, p.value.rank - rank);
            } else {
                u32 operand[1][4];
                pack_a<T>(operand[0], unit[0], 0);
                begin_registers_by_tile<T, D>(o, operand, columns_matrix<D>(stage, kChunk));
                warpgroup_wait<0>();
                pin(o);
            }
            give(place.use++);
        }
    }

    // Q and the task are read no more.
    DEVICE void give_query() {
        sync_warp();
        if (lane_index_anew() == 0) mbarrier_arrive(state.query_empty[turn_of_query().slot()]);
    }

    // Stores O by way of the warp's scratch memory, as many columns at a time as P has.
    DEVICE void store(const float (&o)[OT][4], T* to, i32 rows) {
        constexpr int Part = D < Keys ? D : Keys;
        UNROLL
        for (int column = 0; column < D; column += Part) {
            auto& part = reinterpret_cast<const float(&)[1][Part / 8][4]>(o[column / 8]);
            store_rows_staged<AtomTile<T, Part>>(to + column, params.o.row, part, scratch, 0, rows, params.problem.head_dim - column);
        }
        sync_warp();
    }

    DEVICE void run_task() {
        const Problem& p = params.problem;
        const Sequence& s = task().sequence;
        const float scale = exponent_scale(p);
        float o[1][OT][4];
        clear(o);
        OnlineSoftmax<1> softmax(sums, 32);
        NO_UNROLL
        for (i32 tile = 0; tile < task().tiles.tiles;) {
            if (is_plain(p, task(), tile)) {
                tile = take_run(o[0], softmax, tile, scale);
            } else {
                take_tile(o[0], softmax, tile++, scale);
            }
        }
        float lse[1][2], factor[1][2];
        softmax.finish(lse, factor, scale);
        if (p.flags & kDropout) {
            UNROLL
            for (int half = 0; half < 2; ++half) factor[0][half] *= p.dropout_scale;
        }
        scale_rows(o, factor);
        const i64 first_row = static_cast<i64>(s.row_base) + task().row;
        if (params.lse.data != nullptr && lane_index_anew() % 4 == 0) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const i32 at = warp_row + fragment_row(0, half * 2);
                if (at < task().rows) *element(params.lse, s.batch, task().head, first_row + at) = lse[0][half];
            }
        }
        if (params.attn.data != nullptr) {
            store_rows(row_address<T>(params.attn, s.batch, task().head, first_row), params.attn.row, o, warp_row, task().rows,
                       p.head_dim);
        }
        if (p.key_kind != kKeyNone) add_virtual_token(o[0], lse);
        T* to = row_address<T>(params.o, s.batch, task().head, first_row + warp_row);
        const i32 rows = task().rows - warp_row;
        give_query();
        store(o[0], to, rows);
    }

    DEVICE void run() {
        NO_UNROLL
        for (;; ++number) {
            mbarrier_wait(state.query_full[turn_of_query().slot()], turn_of_query().parity());
            if (task().rows == 0) return;
            run_task();
        }
    }
};

template <class T, int D, int Rows, int Keys, int Warps>
DEVICE void forward_hopper(const ForwardParams& params) {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;
    char* q_tile = shared_memory_of_warpgroups();
    char* slots = q_tile + Tile::kQueries * Tile::kQueryBytes;
    char* scratch = slots + kSlots * Tile::kSlotBytes;
    auto& state = *reinterpret_cast<ForwardState<Keys>*>(scratch + Tile::kProbabilityBytes + Tile::kSumBytes);

    if (thread_index() == 0) {
        UNROLL
        for (int i = 0; i < Tile::kQueries; ++i) {
            mbarrier_init(state.query_full[i], kWarpgroup / 32);
            mbarrier_init(state.query_empty[i], Tile::kConsumerThreads / 32);
        }
        UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            mbarrier_init(state.full[slot], kWarpgroup / 32);
            mbarrier_init(state.empty[slot], Tile::kConsumerThreads / 32);
        }
    }
    sync_threads();
    if (warp_index() < kWarpgroup / 32) {
        give_registers_back<Tile::kProducerRegisters>();
        Producer<T, D, Rows, Keys, Warps>{params, state, q_tile, slots}.run();
    } else {
        take_registers<Tile::kConsumerRegisters>();
        const int warp_row = (warp_index() - kWarpgroup / 32) * 16;
        char* own = scratch + warp_row * Keys * static_cast<int>(sizeof(T));
        float* sums = reinterpret_cast<float*>(scratch + Tile::kProbabilityBytes) + warp_row / 16 * 64 + lane_index();
        Consumer<T, D, Rows, Keys, Warps>{params, state, q_tile, slots, own, sums, warp_row}.run();
    }
}

}  // namespace inducer

#define FORWARD_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                        \
    KERNEL(pass##_##type##_d##dim, inducer::ForwardParams, warps * 32, blocks,                                              \
           (inducer::HopperTile<inducer::type, dim, rows, keys, warps>::kSharedBytes)) {                                    \
        inducer::forward_hopper<inducer::type, dim, rows, keys, warps>(params);                                             \
    }
FORWARD_HOPPER_KERNELS(FORWARD_INSTANCE)
