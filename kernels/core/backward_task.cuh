// What a block of the backward's main pass works on: a tile of keys, and the tiles of queries that see it, one after the other.
//
// A task is one tile of keys of one kv head and sequence, or one tile of the prefix for a group of sequences. dQ is gathered in f32 in
// global memory (query_gradient.cuh), and in a fixed order, so that sums do not depend on which block is faster: `turns` counts how
// many tiles have added to a tile of dQ, and a block waits until all before its own have. A tile of keys visits a tile of queries if
// and only if some row of it sees some key of the other; those that visit one are neighbours. First add the tiles of the prefix, then
// the last visitor, and so on to the first: where the mask is causal, that is the order in which they come by, and nobody waits long.
// Blocks draw their tasks from `ticket` in the same order: all that a tile waits for has been drawn by blocks that run already, so that
// whoever waits, waits for someone who can go on. With a causal mask and three tiles of keys, tile 2 of the queries is visited by 2, 1,
// 0, which have the turns 0, 1, 2 behind the prefix's, and are drawn in this order.
//
// Gradients of the prefix are sums over sequences: each group has its own partial sum, and finish adds them up.
#pragma once

#include "gradient.cuh"
#include "partials.cuh"
#include "query_gradient.cuh"

namespace inducer {

// A tile of queries of one head. It lies in shared memory, from where it is read when it is needed; someone prepares the next one while
// the others work on this one.
struct BackwardItem {
    Sequence sequence;
    i32 head;
    i32 tile;               // of queries
    i32 first_tile, tiles_end;      // those that see the keys
    i32 row, rows;          // first row of the tile, local to the sequence, and how many
    i32 masked;             // some row of the tile does not see some key
    i32 turn;               // tiles of keys that add to this tile of dQ before
    i32 exists;
    u32 dropout_head;
    float slope;            // ALiBi
};

struct BackwardTask {
    i32 is_prefix;
    i32 kv_head;
    i32 sequence, sequences_end;    // one, or the prefix's group
    i32 group;              // of the prefix
    i32 first_key;          // of the tile, local to its source
    i32 tile;
};

// Which tiles of queries see the task's keys; none if tiles_end = first_tile.
template <int Rows, int Keys>
DEVICE void find_tiles(BackwardItem& item, const BackwardTask& task, const BackwardParams& params) {
    const Sequence& s = item.sequence;
    i32 begin = 0, end = s.rows;
    if (!task.is_prefix) {
        i32 first = maximum(task.first_key, s.key_start), last = minimum(task.first_key + Keys, s.key_end) - 1;
        begin = s.seen_by(first).first;
        end = first <= last ? s.seen_by(last).end : 0;
    }
    item.first_tile = begin / Rows;
    item.tiles_end = begin < end ? minimum(ceil_divide(end, Rows), params.row_tiles) : item.first_tile;
    item.tile = item.first_tile;
}

// Completes the item if its tile exists; otherwise goes on to the next head, then to the next sequence of the group.
template <int Rows, int Keys>
DEVICE void seek(BackwardItem& item, const BackwardTask& task, const BackwardParams& params) {
    const Problem& p = params.problem;
    const i32 group = p.query_heads / p.kv_heads;
    while (item.tile >= item.tiles_end) {
        ++item.head;
        if (item.head == (task.kv_head + 1) * group) {
            i32 next = item.sequence.index + 1;
            if (next >= task.sequences_end) {
                item.exists = 0;
                return;
            }
            item.sequence = read_sequence(p, next);
            item.head = task.kv_head * group;
        }
        find_tiles<Rows, Keys>(item, task, params);
    }
    const Sequence& s = item.sequence;
    item.row = item.tile * Rows;
    item.rows = minimum(s.rows - item.row, Rows);
    if (task.is_prefix) {
        item.turn = task.tile;
        item.masked = task.first_key + Keys > p.prefix_len;
    } else {
        Interval top = s.visible(item.row), bottom = s.visible(item.row + item.rows - 1);
        item.masked = task.first_key < bottom.first || task.first_key + Keys > top.end;
        // A caller's upper bound of the lengths may be too low: keys behind it have no tile, and nobody waits for them.
        item.turn = params.prefix_tiles + minimum(ceil_divide(bottom.end, Keys), params.key_tiles) - 1 - task.tile;
    }
    // Rows that do not exist see nothing.
    item.masked = item.masked || item.rows < Rows;
    item.dropout_head = static_cast<u32>(s.index) * static_cast<u32>(p.query_heads) + static_cast<u32>(item.head);
    item.slope = p.flags & kAlibi && !task.is_prefix
                     ? p.alibi_slopes[static_cast<i64>(s.index) * p.alibi_sequence_stride + item.head]
                     : 0.0f;
    item.exists = 1;
}

// One thread draws a task and finds its first item.
template <int Rows, int Keys>
DEVICE void draw_task(BackwardTask& task, BackwardItem& item, const BackwardParams& params) {
    const Problem& p = params.problem;
    i32 ticket = fetch_add(params.ticket, 1);
    const i32 prefix_tasks = p.kv_heads * params.prefix_tiles * params.prefix_groups;
    task.is_prefix = ticket < prefix_tasks;
    i32 tiles = task.is_prefix ? params.prefix_tiles : params.key_tiles;
    i32 index = task.is_prefix ? ticket : ticket - prefix_tasks;
    task.tile = task.is_prefix ? index % tiles : tiles - 1 - index % tiles;
    task.first_key = task.tile * Keys;
    task.kv_head = index / tiles % p.kv_heads;
    i32 place = index / tiles / p.kv_heads;
    task.group = place;
    auto group_begin = [&](i32 group) {
        return static_cast<i32>(static_cast<i64>(group) * p.sequences / params.prefix_groups);
    };
    task.sequence = task.is_prefix ? group_begin(place) : place;
    task.sequences_end = task.is_prefix ? group_begin(place + 1) : place + 1;
    item.exists = 0;
    item.head = task.kv_head * (p.query_heads / p.kv_heads);
    if (task.sequence < task.sequences_end) {
        item.sequence = read_sequence(p, task.sequence);
        find_tiles<Rows, Keys>(item, task, params);
        seek<Rows, Keys>(item, task, params);
    }
}

// Where the task's keys, or its values, begin in memory.
template <class T>
DEVICE const T* first_key_address(const BackwardTask& task, const Sequence& s, const Tensor& from) {
    return row_address<const T>(from, task.is_prefix ? 0 : s.batch, task.kv_head,
                                static_cast<i64>(task.first_key) + (task.is_prefix ? 0 : s.key_base));
}

// Keys of the tile that some row of the item's sequence sees: the others are not even loaded.
DEVICE Interval keys_to_load(const Problem& p, const BackwardTask& task, const Sequence& s) {
    const Interval seen = task.is_prefix ? Interval{0, p.prefix_len} : s.seen();
    return {seen.first - task.first_key, seen.end - task.first_key};
}

// The tile's rows that see its key `i`; of a key that does not exist, none.
DEVICE Interval rows_that_see(const Problem& p, const BackwardTask& task, const BackwardItem& item, int i) {
    const Sequence& s = item.sequence;
    const i32 key = task.first_key + i;
    const bool exists = task.is_prefix ? key < p.prefix_len : key >= s.key_start && key < s.key_end;
    const Interval rows = task.is_prefix ? Interval{0, s.rows} : s.seen_by(key);
    return {rows.first - item.row, exists ? rows.end - item.row : -1};
}

// The tile's keys that its row `i` sees.
DEVICE Interval keys_seen_by(const Problem& p, const BackwardTask& task, const BackwardItem& item, int i) {
    if (task.is_prefix) return {0, p.prefix_len - task.first_key};
    const Interval seen = item.sequence.visible(item.row + i);
    return {seen.first - task.first_key, seen.end - task.first_key};
}

// One row's numbers (RowStatistics).
struct RowNumbers {
    float lse, weight, constant;
};

// Those of the tile's row `i`, which need not exist.
DEVICE RowNumbers read_row_numbers(const BackwardParams& params, const BackwardItem& item, int i) {
    const Problem& p = params.problem;
    RowNumbers x{infinity(), 0.0f, 0.0f};
    if (i < item.rows) {
        const Sequence& s = item.sequence;
        float lse = *element(params.lse, s.batch, item.head, static_cast<i64>(s.row_base) + item.row + i);
        // Rows are numbered as in Q's tensor.
        const i64 at = (static_cast<i64>(s.batch) * p.query_heads + item.head) * p.rows + s.row_base + (item.row + i);
        if (lse != -infinity()) x.lse = lse * kLog2E;
        x.weight = params.row_factor[at] * (p.flags & kDropout ? p.dropout_scale : 1.0f);
        x.constant = params.row_constant[at];
    }
    return x;
}

// The counter of the item's tile of dQ. A packed sequence begins its counters at row_base / Rows + index, so that no two share one.
template <int Rows>
DEVICE i32* turn_of(const BackwardParams& params, const BackwardItem& item) {
    const Sequence& s = item.sequence;
    return params.turns + (static_cast<i64>(s.batch) * params.problem.query_heads + item.head) * params.turn_tiles +
           s.row_base / Rows + (s.index - s.batch) + item.tile;
}

// Writes a warp's dK and dV, from its key `warp_key` and column `warp_column` of the tile on. `Warps` take part, `thread` is one's
// number: those behind the last tile's keys become 0, as a caller's upper bound of the lengths may be too low for the padding.
template <class T, int Keys, int Warps, int MT, int OT>
DEVICE void store_key_gradients(const BackwardParams& params, const BackwardTask& task, const float (&dk)[MT][OT][4],
                                const float (&dv)[MT][OT][4], int warp_key, int warp_column, int thread) {
    const Problem& p = params.problem;
    i32 keys = p.prefix_len - task.first_key, clear_end = 0;
    i32 key_base = 0, batch = 0;
    if (!task.is_prefix) {
        const Sequence s = read_sequence(p, task.sequence);
        keys = s.key_rows - task.first_key;
        key_base = s.key_base;
        batch = s.batch;
        if (task.tile == params.key_tiles - 1) clear_end = keys;
    }
    const float value_scale = 1.0f / probability_scale<T>(p);
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            int local = warp_key + fragment_row(mt, half * 2);
            if (local >= keys) continue;
            auto scaled_pair = [&](const float(&x)[MT][OT][4], int ot, float scale) {
                return f32x2{x[mt][ot][half * 2] * scale, x[mt][ot][half * 2 + 1] * scale};
            };
            const int column = warp_column + lane_column(), columns = p.head_dim - column;
            if (task.is_prefix) {
                float* d_k = params.prefix_partials +
                             prefix_partial(params, task.group, task.kv_head, task.first_key + local) + column;
                float* d_v = d_k + prefix_partial_size(params);
                UNROLL
                for (int ot = 0; ot < OT; ++ot) {
                    if (ot * 8 >= columns) continue;
                    *reinterpret_cast<f32x2*>(d_k + ot * 8) = scaled_pair(dk, ot, p.scale);
                    *reinterpret_cast<f32x2*>(d_v + ot * 8) = scaled_pair(dv, ot, value_scale);
                }
            } else {
                const i64 key = static_cast<i64>(key_base) + task.first_key + local;
                T* d_k = row_address<T>(params.d_k, batch, task.kv_head, key) + column;
                T* d_v = row_address<T>(params.d_v, batch, task.kv_head, key) + column;
                UNROLL
                for (int ot = 0; ot < OT; ++ot) {
                    if (ot * 8 >= columns) continue;
                    const f32x2 k = scaled_pair(dk, ot, p.scale), v = scaled_pair(dv, ot, value_scale);
                    store_pair(d_k + ot * 8, k.x, k.y);
                    store_pair(d_v + ot * 8, v.x, v.y);
                }
            }
        }
    }
    NO_UNROLL
    for (i32 local = Keys + thread / 32; local < clear_end; local += Warps) {
        i64 key = static_cast<i64>(key_base) + task.first_key + local;
        NO_UNROLL
        for (int column = thread % 32; column < p.head_dim; column += 32) {
            store_element(row_address<T>(params.d_k, batch, task.kv_head, key) + column, 0.0f);
            store_element(row_address<T>(params.d_v, batch, task.kv_head, key) + column, 0.0f);
        }
    }
}

}  // namespace inducer
