// The fused forward for sm_90a: O, lse, and U or attn where they are wanted. What forward_sm80.cu computes, with the products of
// warpgroups, and copies by warps that do nothing else.
//
// A task is one tile of queries in one head of one sequence. A multiprocessor has one block at a time; where tasks are alike, or two by
// two, it stays and takes one after the other, where they are not, each has a block (src/cuda/plan/forward.rs). Its first warpgroup serves the others,
// the consumers, which own 64 rows each: one of its warps fetches Q and values, one fetches keys, into a ring of four slots; the other two
// prepare the virtual token meanwhile.
//
//     fetch                  consumers                                       virtual token
//     K 0, Q      ──► slots  S = Q K₀ᵀ, softmax                              Q ──► u, W → s0
//     K 1, V 0    ──►        S' = Q K₁ᵀ and O += P V₀ under way together;          h
//                            softmax of S' meanwhile                               │
//     …                      …                                                     │
//     V of the last ──►      O += P V                                              │
//     K 0 of the next        lse is known: O /= sum;  s0 → λ;  O += λ h B + λ b  ◄─┘
//     task, Q                O is written
//
// All of the virtual token that does not ask for lse is done while the consumers are busy with keys: s0 of the rows, and h, which lies
// where the consumers' registers want it: with two stages, one pass over Q gives both. Adapters are staged (16 ranks at a time, core/inducer.cuh), and the
// value's B is multiplied like values. With more ranks, h and B come chunk by chunk.
//
// Tiles that ask for more than a softmax (masked ones; all of them with softcap, ALiBi or dropout) are taken one by one: S, softmax,
// O += P V, and another warpgroup's products have the tensor cores meanwhile. `is_plain` says which; those who fetch and consumers ask
// it alike, since it decides in which order K and V come.
//
// Each slot has two barriers: `full`, which the warp that fetches it arrives at, and `empty`, which the consumers' warps do. Use i of the
// ring is use i / 4 of slot i % 4; the phase of its barriers follows from that. Q has two places (one at head_dim 256) with the same kind
// of barriers: `query_full` also says that the task is laid down, `query_empty` that nobody reads Q or the task any more. So a
// warpgroup that is done goes on with the next task, and its products fill the time in which the other's have nothing to do.
// `virtual_full` and `virtual_empty` are those of s0, h and the stages. What products read is fenced for the asynchronous proxy, by which
// they read it, before who wrote it arrives.
//
// A masked tile whose V holds a NaN or an infinity is poisoned: 0·NaN would reach rows that must not see it. The warp that fetches it
// finds out, and that product leaves hidden pairs out one by one (add_visible), with P in shared memory. Rare, and slow.
//
// Shared memory: Q [rows] once or twice, four slots of [keys], a stage of 32 rows or two, each of head_dim columns; h [rows, 16] and s0
// [rows] in f32; for each consumers' warp 16 rows of 32 columns (64 at head_dim 64), by way of which O leaves; the softmax's sums; 227 KB
// for bf16 at head_dim 128.
//
// The sums lie in shared memory for the sake of order: the assembler moves arithmetic behind a wait for products, where exponentials
// would no longer be computed while O += P V is under way, but no store; and a sum is stored when all of them have been computed.
//
// Symbols are those of src/lib.rs. NT, OT: blocks of 8 columns of S and of O; `half` and `e` choose within a fragment
// (core/product.cuh).
#include "core/atom_adapter.cuh"
#include "core/atoms.cuh"
#include "core/forward_task.cuh"
#include "core/inducer.cuh"
#include "core/softmax.cuh"
#include "list.h"

namespace inducer {

constexpr int kSlots = 4;
static_assert(kSlots >= 3, "each of the warps that fetch has one of three uses in a row");
constexpr int kWarpgroupRows = 64;
constexpr int kFetchWarps = 2, kTokenWarps = 2;
constexpr int kFetchThreads = kFetchWarps * 32, kTokenThreads = kTokenWarps * 32;
static_assert(kFetchThreads + kTokenThreads == kWarpgroup);
// Of sync_some.
constexpr int kFetchBarrier = 1, kTokenBarrier = 2;

// Behind the tiles in shared memory.
template <int Keys>
struct ForwardState {
    ForwardTask<Keys> tasks[2];         // `rows` is 0 behind the last one
    MBarrier query_full[2], query_empty[2];
    MBarrier full[kSlots], empty[kSlots];
    MBarrier virtual_full, virtual_empty;
    MBarrier turn[2];                       // of the warpgroups of consumers
    u32 not_finite[kSlots];                 // found in a masked V
};
constexpr int kStateBytes = 512;

template <class T, int D, int Rows, int Keys, int Warps>
struct HopperTile {
    static constexpr int kThreads = Warps * 32, kConsumers = Rows / kWarpgroupRows;
    static constexpr int kConsumerThreads = kConsumers * kWarpgroup;
    static constexpr int kScoreTiles = Keys / 8, kOutputTiles = D / 8;
    // What of O, or of P, lies in a warp's part of shared memory at a time.
    static constexpr int kPart = D > 64 ? 32 : 64;
    static constexpr int kQueryBytes = Rows * kRowBytes<T, D>;
    static constexpr int kSlotBytes = Keys * kRowBytes<T, D>;
    // Of the key's adapter and of the value's, if there is room for both.
    static constexpr int kStages = D > 128 ? 1 : 2, kStageBytes = kStageRows * kRowBytes<T, D>;
    static constexpr int kHiddenBytes = Rows * kChunk * 4, kLogitBytes = Rows * 4;
    static constexpr int kScratchBytes = Rows * kRowBytes<T, kPart>;
    static constexpr int kSumBytes = kConsumerThreads * 2 * 4;
    static constexpr int kOtherBytes =
        kSlots * kSlotBytes + kStages * kStageBytes + kHiddenBytes + kLogitBytes + kScratchBytes + kSumBytes + kStateBytes;
    // Two places for Q if there is room: the next task's is there early, and whichever warpgroup is done first goes on with it.
    static constexpr int kQueries = 2 * kQueryBytes + kOtherBytes <= kSharedOfHopper ? 2 : 1;
    static constexpr int kSharedBytes = kQueries * kQueryBytes + kOtherBytes;
    // Registers of a thread: a block is launched with what all threads can have, then the first warpgroup leaves some of its own.
    static constexpr int kServerRegisters = D > 128 ? 88 : 120, kConsumerRegisters = D > 128 ? 208 : 192;
    static_assert(kServerRegisters + kConsumers * kConsumerRegisters <= Warps / 4 * kLaunchRegisters<kThreads>);
    // Fours of an adapter's numbers under way at a time, of each weight and thread: what registers allow.
    static constexpr int kParametersAtOnce = D > 128 ? 2 : 4, kParametersAtOnce16 = D > 128 ? 2 : 8;
    // Whether consumers take turns at the tensor cores.
    static constexpr bool kTurns = D <= 128;
    static_assert(kThreads == kWarpgroup + kConsumerThreads && kConsumers == 2);
    static_assert(sizeof(ForwardState<Keys>) <= kStateBytes && kSharedBytes <= kSharedOfHopper);
};

// Where things lie; `number` is a task's, of this block's.
template <class T, int D, int Rows, int Keys, int Warps>
struct ForwardBlock {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;

    const ForwardParams& params;
    char* memory;

    DEVICE char* q_tile(i32 number) const { return memory + number % Tile::kQueries * Tile::kQueryBytes; }
    DEVICE char* slot(int slot) const { return memory + Tile::kQueries * Tile::kQueryBytes + slot * Tile::kSlotBytes; }
    DEVICE char* stage() const { return slot(kSlots); }
    DEVICE char* behind_stages() const { return stage() + Tile::kStages * Tile::kStageBytes; }
    // Two pieces of `unit`s, of a warp's 16 rows: as an accumulator, one block of 8 ranks after the other.
    DEVICE f32x4* hidden(int warp) const { return reinterpret_cast<f32x4*>(behind_stages()) + warp * 64; }
    DEVICE float* logits() const { return reinterpret_cast<float*>(behind_stages() + Tile::kHiddenBytes); }
    // A consumers' warp's.
    DEVICE char* scratch(int warp) const {
        return behind_stages() + Tile::kHiddenBytes + Tile::kLogitBytes + warp * 16 * kRowBytes<T, Tile::kPart>;
    }
    // A lane's two sums lie 32 from each other.
    DEVICE float* sums(int warp) const {
        return reinterpret_cast<float*>(memory + Tile::kSharedBytes - kStateBytes - Tile::kSumBytes) + warp * 64;
    }
    DEVICE ForwardState<Keys>& state() const {
        return *reinterpret_cast<ForwardState<Keys>*>(memory + Tile::kSharedBytes - kStateBytes);
    }
    DEVICE ForwardTask<Keys>& task(i32 number) const { return state().tasks[number % 2]; }
};

// Whether a tile's scores are only scaled.
template <int Keys>
DEVICE bool is_plain(const Problem& p, const ForwardTask<Keys>& task, i32 tile) {
    return (p.flags & (kTransform | kDropout)) == 0 && !task.tiles.is_masked(p, tile);
}

// What this block takes in a round, behind the last pair if there is nothing left. Pairs of sequence and head are worked on in groups, whose keys the L2 cache holds; in a group the last tiles go first, which see the most where
// the mask is causal. Folded, a tile is followed by its counterpart from the other end of the sequence, so that under such a mask all
// blocks have as much to do.
DEVICE TilePlace place_of(const ForwardParams& params, i32 round) {
    const bool folded = params.folded != 0;
    const i32 tiles = folded ? params.row_tiles / 2 : params.row_tiles;
    const i64 at = static_cast<i64>(folded ? round / 2 : round) * params.blocks + static_cast<i32>(block_x());
    if (at >= static_cast<i64>(tiles) * params.pairs) return {0, params.pairs};
    const i32 index = static_cast<i32>(at), size = params.group * tiles, first = index / size * params.group;
    const i32 pairs = minimum(params.group, params.pairs - first), within = index % size;
    const i32 early = within / pairs;
    return {folded && round % 2 == 1 ? early : params.row_tiles - 1 - early, first + within % pairs};
}

// Which of `Places` places use `use` is of, and the parity of that place's phase.
template <int Places>
struct Turn {
    i32 use = 0;

    DEVICE int slot() const { return use % Places; }
    DEVICE u32 parity() const { return static_cast<u32>(use / Places % 2); }
};

// ---- Fetching ------------------------------------------------------------------------------------------------------------

// One of two warps: the first one lays tasks down and fetches Q and V, the other one fetches K. Each has one tile under way at a time: the
// fence behind it would wait for later ones as well.
//
// A warp passes over the other's turns without waiting. Parity would mislead it if its slot's use of eight turns ago had not been given
// back yet. It has: of three turns in a row one is this warp's, for which it waited until a later use than that was given back, and
// slots are given back in their order.
template <class T, int D, int Rows, int Keys, int Warps>
struct Fetcher {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;

    const ForwardParams& params;
    Turn<kSlots> place;
    i32 number = 0;         // of the task
    static constexpr int kCopies = 16;

    // Read anew: what is computed from it is cheap, and registers are few.
    static DEVICE int thread() { return static_cast<int>(thread_index_anew()); }
    static DEVICE int lane() { return lane_index_anew(); }
    static DEVICE bool has_values() { return thread() < 32; }
    // Addresses are computed anew where they are needed.
    DEVICE ForwardBlock<T, D, Rows, Keys, Warps> block() const { return {params, shared_memory_of_warpgroups() + zero_anew()}; }
    DEVICE ForwardState<Keys>& state() const { return block().state(); }
    DEVICE ForwardTask<Keys>& task() const { return block().task(number); }
    DEVICE Turn<Tile::kQueries> query() const { return {number}; }

    DEVICE void announce(MBarrier& barrier) {
        fence_async_proxy();
        sync_warp();
        if (lane() == 0) mbarrier_arrive(barrier);
    }

    // Waits until the task's place for Q is free, as the first ones are.
    DEVICE void wait_for_query() { mbarrier_wait(state().query_empty[query().slot()], query().parity() ^ 1); }

    DEVICE void load_query() {
        if (Tile::kQueries == 1) wait_for_query();
        const Tensor& q = params.problem.q;
        const Sequence& s = task().sequence;
        const T* rows = row_address<const T>(q, s.batch, task().head, static_cast<i64>(s.row_base) + task().row);
        load_atoms<T, D, Rows, 32, kCopies>(block().q_tile(number), rows, q.row, 0, task().rows, params.problem.head_dim, lane());
        copy_commit();
        copy_wait<0>();
        announce(state().query_full[query().slot()]);
    }

    // A turn: a tile of keys or of the prefix, K or V.
    DEVICE void load_keys(bool is_value, i32 tile) {
        const Problem& p = params.problem;
        const KeyTiles<Keys>& tiles = task().tiles;
        mbarrier_wait(state().empty[place.slot()], place.parity() ^ 1);
        const bool is_prefix = tiles.is_prefix(tile);
        const i32 first = tiles.first_key(tile);
        const i32 begin = is_prefix ? 0 : tiles.some_first - first;
        const i32 end = (is_prefix ? p.prefix_len : tiles.some_end) - first;
        const i64 stride = is_prefix ? (is_value ? p.prefix_v.row : p.prefix_k.row) : (is_value ? p.v.row : p.k.row);
        const void* keys = is_prefix ? (is_value ? task().prefix_v : task().prefix_k) : (is_value ? task().v : task().k);
        load_atoms<T, D, Keys, 32, kCopies>(block().slot(place.slot()), static_cast<const T*>(keys) + first * stride, stride, begin, end,
                                            p.head_dim, lane());
        copy_commit();
        copy_wait<0>();
        if (is_value && tiles.is_masked(p, tile)) {
            const bool found = warp_any(own_atoms_not_finite<T, D, Keys, 32, 4>(block().slot(place.slot()), lane()));
            if (lane() == 0) state().not_finite[place.slot()] = found;
        }
        announce(state().full[place.slot()]);
    }

    // A warp's turns of a task that is laid down.
    DEVICE void run_task() {
        const Problem& p = params.problem;
        const i32 tiles = task().tiles.tiles;
        if (has_values()) load_query();
        // The next tiles of K and of V, in the order in which consumers want them.
        i32 key = 0, value = 0;
        NO_UNROLL
        while (value < tiles) {
            const bool ahead = key == value + 1 && is_plain(p, task(), value) && key < task().tiles.unmasked_end(p, value);
            const bool is_value = key != value && !ahead;
            const i32 tile = is_value ? value++ : key++;
            if (is_value == has_values()) load_keys(is_value, tile);
            ++place.use;
        }
    }

    DEVICE void run() {
        NO_UNROLL
        for (i32 round = 0;; ++round) {
            const TilePlace next = place_of(params, round);
            if (next.pair >= params.pairs) break;
            // The task's place is that of the one before the last. Consumers and who makes the token are done with that when they are with
            // its Q (with one place for Q, the one before's was waited for); the warp that fetches K came to the barrier of the one
            // before. A round without a task waits for the same once more.
            if (Tile::kQueries == 2 && has_values()) wait_for_query();
            if (!begin_task<T, Rows, kFetchThreads>(task(), params, next, thread())) continue;
            sync_some<kFetchThreads>(kFetchBarrier);
            run_task();
            ++number;
        }
        if (!has_values()) return;
        // Behind the last one.
        wait_for_query();
        if (lane() == 0) task().rows = 0;
        announce(state().query_full[query().slot()]);
    }
};

// ---- The virtual token ---------------------------------------------------------------------------------------------------

// A warp's units of 16 rows, as an accumulator; `units` is where they lie (ForwardBlock::hidden).
DEVICE void read_units(float (&unit)[kChunkTiles][4], const f32x4* units) {
    UNROLL
    for (int nt = 0; nt < kChunkTiles; ++nt) {
        const f32x4 x = units[nt * 32 + lane_index_anew()];
        unit[nt][0] = x.x, unit[nt][1] = x.y, unit[nt][2] = x.z, unit[nt][3] = x.w;
    }
}

DEVICE void write_units(f32x4* units, const float (&unit)[kChunkTiles][4]) {
    UNROLL
    for (int nt = 0; nt < kChunkTiles; ++nt) {
        units[nt * 32 + lane_index_anew()] = {unit[nt][0], unit[nt][1], unit[nt][2], unit[nt][3]};
    }
}

// Ranks of the value's adapter, with its bias: what of h and B there is.
DEVICE i32 value_ranks(const Problem& p) { return ranks_and_bias(p.value); }

template <class T, int D, int Rows, int Keys, int Warps>
struct TokenMaker {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;

    static constexpr int MT = D > 128 ? 1 : 2, kRows = MT * 16;     // at a time
    static constexpr int kSteps = D > 128 ? 4 : 2;                  // of 16 columns, likewise

    const ForwardParams& params;
    i32 number = 0;         // of the task
    Turn<1> place;          // for s0, h and the stages
    i32 staged_head = -1;

    static DEVICE int thread() { return static_cast<int>(thread_index_anew()) - kFetchThreads; }
    // Addresses are computed anew where they are needed.
    DEVICE ForwardBlock<T, D, Rows, Keys, Warps> block() const { return {params, shared_memory_of_warpgroups() + zero_anew()}; }
    DEVICE ForwardState<Keys>& state() const { return block().state(); }
    DEVICE const ForwardTask<Keys>& task() const { return block().task(number); }
    DEVICE const Problem& problem() const { return params.problem; }

    // Where the key's adapter is staged; the value's lies where consumers look for it.
    DEVICE char* key_stage() const { return block().stage() + (Tile::kStages - 1) * Tile::kStageBytes; }

    // Stages chunks of the key's adapter and of the value's, where they are wanted.
    DEVICE void stage(bool key, i32 key_rank, bool value, i32 value_rank) {
        sync_some<kTokenThreads>(kTokenBarrier);    // both warps are done with the ones before
        NO_UNROLL
        for (int i = 0; i < 2; ++i) {
            if (!(i == 0 ? key : value)) continue;
            const Adapter& adapter = i == 0 ? problem().key : problem().value;
            char* to = i == 0 ? key_stage() : block().stage();
            stage_atoms<T, D, kTokenThreads, Tile::kParametersAtOnce, Tile::kParametersAtOnce16>(
                to, adapter, task().head, i == 0 ? key_rank : value_rank, problem().head_dim, thread());
        }
        sync_some<kTokenThreads>(kTokenBarrier);
    }

    // What follows from a rank and a lane is computed anew for each block of rows: there are no registers to keep it.
    static DEVICE i32 anew(i32 rank) { return rank + static_cast<i32>(zero_anew()); }
    // a of a lane's columns of a chunk, of an adapter that has a rank; something where there is none. Without branches, several loads are
    // under way at a time.
    using Biases = float[kChunkTiles][2];
    DEVICE void read_biases(Biases& bias, const Adapter& adapter, i32 rank) {
        const i64 first = task().head * adapter.down_bias_head;
        UNROLL
        for (int nt = 0; nt < kChunkTiles; ++nt) {
            UNROLL
            for (int e = 0; e < 2; ++e) {
                const i32 j = minimum(rank + fragment_column(nt, e), adapter.rank - 1);
                bias[nt][e] = parameter<T>(adapter.down_bias, first + j, adapter.is_f32);
            }
        }
    }
    DEVICE void activate(float (&z)[MT][kChunkTiles][4], const Adapter& adapter, i32 rank, const Biases& bias) {
        hidden_units<T>(z, adapter, anew(rank), 1.0f, [&](int nt, int e) { return bias[nt][e]; });
    }

    // What a staged chunk of the key's adapter, of the value's, or one of each, gives to all rows: u·W to s0, and h. Both need Q.
    template <bool Key, bool Value>
    DEVICE void take_chunks(i32 key_rank, i32 value_rank) {
        Biases key_bias, value_bias;
        if (Key) read_biases(key_bias, problem().key, key_rank);
        if (Value) read_biases(value_bias, problem().value, value_rank);
        // Half of a chunk without ranks, where a bias may lie, needs no product for z or h.
        const bool key_upper = key_rank + 8 < problem().key.rank, value_upper = value_rank + 8 < problem().value.rank;
        NO_UNROLL
        for (i32 row = first_row(); row < task().rows; row += kTokenWarps * kRows) {
            float z[MT][kChunkTiles][4], w[MT][kChunkTiles][4], h[MT][kChunkTiles][4], dot[MT][2] = {};
            clear(z);
            clear(w);
            clear(h);
            const auto queries = a_of_atoms<T, D>(block().q_tile(number), row);
            const auto keys = b_of_atoms<T, D>(key_stage(), 0), values = b_of_atoms<T, D>(block().stage(), 0);
            // Of all columns at once, fragments and addresses would take every register.
#pragma unroll kSteps
            for (int column = 0; column < D; column += 16) {
                u32 a[MT][4], b[4];
                UNROLL
                for (int mt = 0; mt < MT; ++mt) queries.load(a[mt], column, mt * 16);
                if (Key) {
                    keys.load(b, column);
                    multiply_chunk(z, a, b, key_upper);
                    keys.load(b, column, kChunk);
                    multiply_chunk(w, a, b, true);
                    UNROLL
                    for (int mt = 0; mt < MT; ++mt) add_squares(dot[mt], a[mt]);
                }
                if (Value) {
                    values.load(b, column);
                    multiply_chunk(h, a, b, value_upper);
                }
            }
            if (Key) {
                const i32 ranks = ranks_and_bias(problem().key);
                activate(z, problem().key, key_rank, key_bias);
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    if (key_rank > 0) dot[mt][0] = dot[mt][1] = 0.0f;   // Q·Q came with the first chunk
                }
                add_products_of_units(dot, z, w, anew(key_rank), ranks);
                UNROLL
                for (int mt = 0; mt < MT; ++mt) add_to_logits(row + mt * 16, dot[mt], key_rank == 0, key_rank + kChunk >= ranks);
            }
            if (Value) {
                activate(h, problem().value, value_rank, value_bias);
                UNROLL
                for (int mt = 0; mt < MT; ++mt) write_units(block().hidden(row / 16 + mt), h[mt]);
            }
        }
    }

    // c += A·B for two blocks of 8 columns, or only the first one.
    static DEVICE void multiply_chunk(float (&c)[MT][kChunkTiles][4], const u32 (&a)[MT][4], const u32 (&b)[4], bool upper) {
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            mma(c[mt][0], a[mt], b[0], b[1], T{});
            if (upper) mma(c[mt][1], a[mt], b[2], b[3], T{});
        }
    }

    // Adds to s0 of 16 rows, in parts. The last part is followed by the scale.
    DEVICE void add_to_logits(int row, const float (&dot)[2], bool first, bool last) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const int at = row + half * 8 + lane_index_anew() / 4;
            float sum = row_sum(dot[half]);
            if (lane_index_anew() % 4 != 0 || at >= task().rows) continue;
            if (!first) sum += block().logits()[at];
            if (last) sum *= adaptive_factor<T>(problem(), task().sequence, task().row + at) * problem().scale;
            block().logits()[at] = sum;
        }
    }

    // s0 of all rows where the virtual key is the query.
    DEVICE void take_squares() {
        NO_UNROLL
        for (i32 row = thread() / 32 * 16; row < task().rows; row += kTokenWarps * 16) {
            float dot[2] = {};
            const auto queries = a_of_atoms<T, D>(block().q_tile(number), row);
            UNROLL
            for (int column = 0; column < D; column += 16) {
                u32 a[4];
                queries.load(a, column);
                add_squares(dot, a);
            }
            add_to_logits(row, dot, true, true);
        }
    }

    // s0 of all rows where it is the caller's.
    DEVICE void take_given_logits() {
        NO_UNROLL
        for (i32 row = thread(); row < task().rows; row += kTokenThreads) {
            block().logits()[row] = given_logit<T>(problem(), task().sequence, task().head, task().row + row);
        }
    }

    static DEVICE void add_squares(float (&sum)[2], const u32 (&a)[4]) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const f32x2 x = unpack<T>(a[i]);
            sum[i % 2] = fused_multiply_add(x.x, x.x, sum[i % 2]);
            sum[i % 2] = fused_multiply_add(x.y, x.y, sum[i % 2]);
        }
    }

    // A warp takes every second block of rows.
    static DEVICE i32 first_row() { return thread() / 32 * kRows; }
    DEVICE void wait() { mbarrier_wait(state().virtual_empty, place.parity() ^ 1); }

    // Consumers take s0 and the first chunk of h at once, then the other chunks. The first one comes with the last of the key's, if there
    // is room for both.
    DEVICE void run_task() {
        wait();
        const i32 key_ranks = is_given(problem()) ? 0 : ranks_and_bias(problem().key), ranks = value_ranks(problem());
        if (is_given(problem())) {
            take_given_logits();
        } else if (key_ranks == 0) {
            take_squares();
        }
        // Where each adapter is one chunk, those of the task before are still staged.
        const bool is_staged = Tile::kStages == 2 && key_ranks <= kChunk && ranks <= kChunk && task().head == staged_head;
        staged_head = task().head;
        // The next chunks.
        i32 key = 0, value = 0;
        NO_UNROLL
        while (key < key_ranks || value == 0 || value < ranks) {
            const bool has_key = key < key_ranks, is_last = key + kChunk >= key_ranks;
            const bool has_value = value < ranks && is_last && (Tile::kStages == 2 || !has_key);
            if (value > 0) wait();
            if ((has_key || has_value) && !is_staged) stage(has_key, key, has_value, value);
            if (has_key && has_value) {
                take_chunks<true, Tile::kStages == 2>(key, value);
            } else if (has_key) {
                take_chunks<true, false>(key, 0);
            } else if (has_value) {
                take_chunks<false, true>(0, value);
            }
            key += kChunk;
            if (!has_value && !(is_last && ranks == 0)) continue;
            value += kChunk;
            fence_async_proxy();
            sync_warp();
            if (thread() % 32 == 0) mbarrier_arrive(state().virtual_full);
            ++place.use;
        }
    }

    DEVICE void run() {
        NO_UNROLL
        for (;; ++number) {
            const Turn<Tile::kQueries> query = {number};
            mbarrier_wait(state().query_full[query.slot()], query.parity());
            if (task().rows == 0) return;
            if (problem().key_kind != kKeyNone) run_task();
            sync_warp();
            if (thread() % 32 == 0) mbarrier_arrive(state().query_empty[query.slot()]);
        }
    }
};

// ---- A consumer ----------------------------------------------------------------------------------------------------------

template <class T, int D, int Rows, int Keys, int Warps>
struct Consumer {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;
    static constexpr int NT = Tile::kScoreTiles, OT = Tile::kOutputTiles, KT = Keys / 16;

    ForwardBlock<T, D, Rows, Keys, Warps> block;
    int warp_row;                   // first row of the warp
    Turn<kSlots> place;
    i32 number = 0;                 // of the task
    Turn<1> virtual_place;
    Turn<1> own_turn;               // at the tensor cores, of those in which both warpgroups want them

    DEVICE ForwardState<Keys>& state() const { return block.state(); }
    DEVICE const ForwardTask<Keys>& task() const { return block.task(number); }
    DEVICE char* scratch() const { return block.scratch(warp_row / 16); }
    DEVICE Turn<Tile::kQueries> turn_of_query() const { return {number}; }
    // The warpgroup's rows of Q.
    DEVICE u64 query() const { return rows_matrix<D>(block.q_tile(number) + anew(), warp_row / kWarpgroupRows * kWarpgroupRows); }
    // At head_dim 256 no register is left for addresses from one tile to the next.
    static DEVICE u32 anew() { return D > 128 ? zero_anew() : 0; }

    // Waits for the next turn.
    DEVICE const char* take() {
        mbarrier_wait(state().full[place.slot()], place.parity());
        return block.slot(place.slot()) + anew();
    }
    // Gives the slot of turn `use` back. Of products that read it, all must be done.
    DEVICE void give(i32 use) {
        if (lane_index_anew() == 0) mbarrier_arrive(state().empty[use % kSlots]);
    }

    // The columns of a tile of keys that a row of this warp sees.
    DEVICE Interval visible(i32 tile, int row) const {
        const i32 first_key = task().tiles.first_key(tile);
        if (task().tiles.is_prefix(tile)) return {0, block.params.problem.prefix_len - first_key};
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
        const Problem& p = block.params.problem;
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
        if (masked && state().not_finite[place.slot()] != 0) {
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

    // O += P V without hidden pairs, as many keys at a time as P has room for.
    DEVICE void add_poisoned(float (&o)[OT][4], const u32 (&p)[KT][4], const char* v_tile, i32 tile) {
        constexpr int Part = Tile::kPart;
        T* own = reinterpret_cast<T*>(scratch());
        NO_UNROLL
        for (int first = 0; first < Keys; first += Part) {
            const int lane = lane_index_anew();
            sync_warp();
            UNROLL
            for (int kt = 0; kt < KT; ++kt) {
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const int row = lane / 4 + i % 2 * 8, column = kt * 16 + i / 2 * 8 + lane % 4 * 2 - first;
                    if (kt * 16 / Part * Part == first) *reinterpret_cast<u32*>(own + row * Part + column) = p[kt][i];
                }
            }
            sync_warp();
            // One block of rows, as add_visible has it.
            auto& block_of_rows = reinterpret_cast<float(&)[1][OT][4]>(o);
            add_visible<AtomTile<T, D>>(
                block_of_rows, v_tile, 0, first, first + Part, lane_index_anew, [&](int row) { return visible(tile, row); },
                [&](int i, int j) { return to_float(own[i * Part + j - first]); });
        }
    }

    // The two warpgroups give their products to the tensor cores in turn, the first one first: one has a softmax to do while the products
    // of the other are under way. Nothing but time depends on it.
    DEVICE void wait_for_turn() {
        if (!Tile::kTurns) return;
        const int own = warp_row / kWarpgroupRows;
        // Of the first one, turn i comes behind turn i − 1 of the other; of the second one, behind turn i of the other.
        mbarrier_wait(state().turn[own], own == 0 ? own_turn.parity() ^ 1 : own_turn.parity());
    }
    DEVICE void pass_turn() {
        if (!Tile::kTurns) return;
        if (lane_index_anew() == 0) mbarrier_arrive(state().turn[1 - warp_row / kWarpgroupRows]);
        ++own_turn.use;
    }

    // Plain tiles from `tile` on, as many as follow each other; returns the next one that is not. While O takes in a tile, the scores
    // of the next one are under way, or in the softmax.
    DEVICE i32 take_run(float (&o)[OT][4], OnlineSoftmax<1>& softmax, i32 tile, float scale) {
        const Problem& p = block.params.problem;
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
            wait_for_turn();
            begin_rows_by_rows<T, D>(s, query(), k);
            ++place.use;
            const u64 v = columns_matrix<D>(take());
            begin_registers_by_tile<T, D>(o, probabilities, v);
            pass_turn();
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

    // Takes the virtual token into O, which is attn before, and stores U where it is wanted.
    DEVICE void add_virtual_token(float (&o)[OT][4], const float (&lse)[2]) {
        const Problem& p = block.params.problem;
        const i32 ranks = value_ranks(p);
        float weight[2] = {};
        NO_UNROLL
        for (i32 rank = 0; rank == 0 || rank < ranks; rank += kChunk) {
            mbarrier_wait(state().virtual_full, virtual_place.parity());
            if (rank == 0) {
                float rest[2];
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    const i32 at = minimum(warp_row + fragment_row(0, half * 2), task().rows - 1);
                    const VirtualWeight w = dropped_weight<T>(p, block.logits()[at], lse[half], task().dropout_head, task().row + at);
                    weight[half] = w.lambda;
                    rest[half] = w.rest;
                }
                if (p.value_kind == kValueDirect || p.value_kind == kValueZero) scale_rows(o, rest);
            }
            if (rank < ranks) {
                float unit[1][kChunkTiles][4];
                clear(unit);
                // Of rows that are none, nobody has made h.
                if (warp_row < task().rows) read_units(unit[0], block.hidden(warp_row / 16));
                scale_rows(unit[0], weight);
                if (p.value_kind == kValueExtended) {
                    const Tensor& u = block.params.u;
                    const Sequence& s = task().sequence;
                    T* to = row_address<T>(u, s.batch, task().head, static_cast<i64>(s.row_base) + task().row) + rank;
                    store_elements(to, u.row, unit, warp_row, task().rows, p.value.rank - rank);
                } else {
                    u32 operand[1][4];
                    pack_a<T>(operand[0], unit[0], 0);
                    begin_registers_by_tile<T, D>(o, operand, columns_matrix<D>(block.stage(), kChunk));
                    warpgroup_wait<0>();
                    pin(o);
                }
            }
            sync_warp();
            if (lane_index_anew() == 0) mbarrier_arrive(state().virtual_empty);
            ++virtual_place.use;
        }
    }

    // Q and the task are read no more.
    DEVICE void give_query() {
        sync_warp();
        if (lane_index_anew() == 0) mbarrier_arrive(state().query_empty[turn_of_query().slot()]);
    }

    // Stores O by way of the warp's scratch memory, as many columns at a time as there is room for.
    DEVICE void store(const float (&o)[OT][4], T* to, i32 rows) {
        constexpr int Part = Tile::kPart;
        UNROLL
        for (int column = 0; column < D; column += Part) {
            auto& part = reinterpret_cast<const float(&)[1][Part / 8][4]>(o[column / 8]);
            store_rows_staged<RowTile<T, Part>>(to + column, block.params.o.row, part, scratch(), 0, rows,
                                                block.params.problem.head_dim - column);
        }
    }

    DEVICE void run_task() {
        const Problem& p = block.params.problem;
        const Sequence& s = task().sequence;
        const float scale = exponent_scale(p);
        float o[1][OT][4];
        clear(o);
        OnlineSoftmax<1> softmax(block.sums(warp_row / 16) + lane_index_anew(), 32);
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
        const ForwardParams& params = block.params;
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
        if (p.key_kind != kKeyNone) add_virtual_token(o[0], lse[0]);
        T* to = row_address<T>(params.o, s.batch, task().head, first_row + warp_row);
        const i32 rows = task().rows - warp_row;
        give_query();
        store(o[0], to, rows);
    }

    DEVICE void run() {
        NO_UNROLL
        for (;; ++number) {
            mbarrier_wait(state().query_full[turn_of_query().slot()], turn_of_query().parity());
            if (task().rows == 0) return;
            run_task();
        }
    }
};

template <class T, int D, int Rows, int Keys, int Warps>
DEVICE void forward_hopper(const ForwardParams& params) {
    using Tile = HopperTile<T, D, Rows, Keys, Warps>;
    const ForwardBlock<T, D, Rows, Keys, Warps> block = {params, shared_memory_of_warpgroups()};
    constexpr int consumers = Tile::kConsumerThreads / 32;
    if (thread_index() == 0) {
        ForwardState<Keys>& state = block.state();
        UNROLL
        for (int i = 0; i < Tile::kQueries; ++i) {
            mbarrier_init(state.query_full[i], 1);
            mbarrier_init(state.query_empty[i], consumers + kTokenWarps);
        }
        UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            mbarrier_init(state.full[slot], 1);
            mbarrier_init(state.empty[slot], consumers);
        }
        UNROLL
        for (int i = 0; i < Tile::kConsumers; ++i) mbarrier_init(state.turn[i], kWarpgroup / 32);
        mbarrier_init(state.virtual_full, kTokenWarps);
        mbarrier_init(state.virtual_empty, consumers);
    }
    sync_threads();
    if (warp_index() < kWarpgroup / 32) {
        give_registers_back<Tile::kServerRegisters>();
        if (warp_index() < kFetchWarps) {
            Fetcher<T, D, Rows, Keys, Warps>{params}.run();
        } else {
            TokenMaker<T, D, Rows, Keys, Warps>{params}.run();
        }
    } else {
        take_registers<Tile::kConsumerRegisters>();
        Consumer<T, D, Rows, Keys, Warps>{block, (warp_index() - kWarpgroup / 32) * 16}.run();
    }
}

}  // namespace inducer

#define FORWARD_INSTANCE(pass, type, dim, rows, keys, warps, blocks)                                                        \
    KERNEL(pass##_##type##_d##dim, inducer::ForwardParams, warps * 32, blocks,                                              \
           (inducer::HopperTile<inducer::type, dim, rows, keys, warps>::kSharedBytes)) {                                    \
        inducer::forward_hopper<inducer::type, dim, rows, keys, warps>(params);                                             \
    }
FORWARD_HOPPER_KERNELS(FORWARD_INSTANCE)
