// What a block of the forward works on at a time: a tile of queries in one head of one sequence.
#pragma once

#include "output.cuh"
#include "scores.cuh"

namespace inducer {

// What a block works on. It lies in shared memory, from where it is read when it is needed: in the main loop every register
// belongs to a fragment.
template <int Keys>
struct ForwardTask {
    Sequence sequence;
    KeyTiles<Keys> tiles;
    i32 head;
    i32 row, rows;          // first row of the tile, local to the sequence, and how many
    u32 dropout_head;
    float slope;            // ALiBi
    const void *k, *v;      // the head's first key of the sequence
    const void *prefix_k, *prefix_v;
};
constexpr int kTaskBytes = 128;

// Which tile of queries of which pair of sequence and head.
struct TilePlace {
    i32 tile, pair;
};

// Lays a tile's task down, and clears those of its rows that are padding. False if there are no others. `Threads` threads take part,
// `thread` is one's number; thread 0 writes the task, a barrier must follow.
template <class T, int Rows, int Threads, int Keys>
DEVICE bool begin_task(ForwardTask<Keys>& task, const ForwardParams& params, TilePlace place, int thread) {
    const Problem& p = params.problem;
    const i32 head = place.pair % p.query_heads;
    const Sequence s = read_sequence(p, place.pair / p.query_heads);
    const i32 row = place.tile * Rows;
    // A caller's upper bound of the lengths may be too low for the padding: the last tile takes all that is left of it.
    const i32 padding_end = place.tile == params.row_tiles - 1 ? s.padding_end : minimum(row + Rows, s.padding_end);
    clear_rows<T, Threads>(params, s.batch, head, s.row_base + maximum(row, s.rows), s.row_base + padding_end,
                           thread);
    const i32 rows = minimum(s.rows - row, Rows);
    if (rows <= 0) return false;
    if (thread == 0) {
        task.sequence = s;
        task.tiles = KeyTiles<Keys>(p, s, row, rows);
        task.head = head;
        const i32 kv_head = head / (p.query_heads / p.kv_heads);
        task.k = row_address<const T>(p.k, s.batch, kv_head, s.key_base);
        task.v = row_address<const T>(p.v, s.batch, kv_head, s.key_base);
        task.prefix_k = row_address<const T>(p.prefix_k, 0, kv_head, 0);
        task.prefix_v = row_address<const T>(p.prefix_v, 0, kv_head, 0);
        task.row = row;
        task.rows = rows;
        task.dropout_head = static_cast<u32>(s.index) * static_cast<u32>(p.query_heads) + static_cast<u32>(head);
        task.slope = p.flags & kAlibi ? p.alibi_slopes[static_cast<i64>(s.index) * p.alibi_sequence_stride + head] : 0.0f;
    }
    return true;
}

}  // namespace inducer
