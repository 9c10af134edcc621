// Where a sequence lies in the tensors, and which keys its rows see.
#pragma once

#include "../arch/arch.cuh"
#include "../params.h"

namespace inducer {

DEVICE i32 clamp(i32 x, i32 low, i32 high) { return x < low ? low : x > high ? high : x; }
DEVICE i32 clamp64(i64 x, i32 low, i32 high) {
    return x < low ? low : x > high ? high : static_cast<i32>(x);
}
DEVICE i32 minimum(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 maximum(i32 a, i32 b) { return a > b ? a : b; }
DEVICE i32 ceil_divide(i32 a, i32 b) { return (a + b - 1) / b; }

// The keys [first, end) that a row sees.
struct Interval {
    i32 first, end;
};

// One batch entry, or one packed sequence.
struct Sequence {
    i32 index;
    i32 batch;          // in the tensors
    i32 row_base;       // its first row in Q
    i32 rows;           // that exist
    i32 padding_end;    // rows from `rows` up to here are padding: their results are 0
    i32 key_base;       // its first key in K and V
    i32 key_start, key_end;     // keys that exist, counted from key_base
    i32 key_rows;       // rows of K from key_base on that it owns, hidden ones too
    i32 offset;         // row i stands at key position i + offset
    i32 left, right;    // window

    DEVICE i64 position(i32 row) const { return static_cast<i64>(row) + offset; }

    // Both bounds never decrease with the row.
    DEVICE Interval visible(i32 row) const {
        i64 at = position(row);
        return {clamp64(at - left, key_start, key_end), clamp64(at + right + 1, key_start, key_end)};
    }

    // The keys that some row sees, where there are rows.
    DEVICE Interval seen() const { return {visible(0).first, visible(rows - 1).end}; }

    // The same relation from the other side: the rows that see a key that exists. Both bounds never decrease with the key.
    DEVICE Interval seen_by(i32 key) const {
        i64 at = static_cast<i64>(key) - offset;
        return {clamp64(at - right, 0, rows), clamp64(at + left + 1, 0, rows)};
    }
};

// Reads sequence `index` of the problem. Lists may hold anything: what they say is clamped to what the tensors hold. Index
// `sequences`, for packed batches only, is the rows and keys behind the last sequence, all padding.
DEVICE Sequence read_sequence(const Problem& p, i32 index) {
    Sequence s;
    s.index = index;
    s.left = p.window_left;
    s.right = p.window_right;
    if (p.cu_seqlens_q != nullptr) {
        s.batch = 0;
        s.row_base = clamp(p.cu_seqlens_q[index], 0, p.rows);
        s.key_base = clamp(p.cu_seqlens_k[index], 0, p.keys);
        if (index < p.sequences) {
            s.rows = clamp(p.cu_seqlens_q[index + 1], s.row_base, p.rows) - s.row_base;
            s.key_end = clamp(p.cu_seqlens_k[index + 1], s.key_base, p.keys) - s.key_base;
            s.padding_end = s.rows;
            s.key_rows = s.key_end;
        } else {
            s.rows = 0;
            s.key_end = 0;
            s.padding_end = p.rows - s.row_base;
            s.key_rows = p.keys - s.key_base;
        }
        s.key_start = 0;
        s.offset = s.key_end - s.rows;
        return s;
    }
    s.batch = index;
    s.row_base = 0;
    s.key_base = 0;
    s.padding_end = p.rows;
    s.key_rows = p.keys;
    s.rows = p.query_lengths != nullptr ? clamp(p.query_lengths[index], 0, p.rows) : p.rows;
    s.key_end = p.key_lengths != nullptr ? clamp(p.key_lengths[index], 0, p.keys) : p.keys;
    s.key_start = p.key_starts != nullptr ? clamp(p.key_starts[index], 0, s.key_end) : 0;
    s.offset = p.query_lengths != nullptr ? s.key_end - s.rows : p.keys - p.rows;
    return s;
}

// Address of row `row` of head `head` in a tensor of T.
template <class T>
DEVICE T* row_address(const Tensor& t, i32 batch, i32 head, i64 row) {
    return static_cast<T*>(t.data) + batch * t.batch + head * t.head + row * t.row;
}

DEVICE float* element(const Strided& t, i64 i, i64 j, i64 k) {
    return t.data + i * t.stride[0] + j * t.stride[1] + k * t.stride[2];
}

}  // namespace inducer
