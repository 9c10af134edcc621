// Products of tiles, with results in the registers of a warp.
//
// A warp owns MT blocks of 16 rows. An accumulator is float[MT][NT][4]: 16×8 blocks in the layout of mma.m16n8k16. Lane
// 4g + t holds, of block (mt, nt),
//
//     [0], [1]   row 16·mt + g,      columns 8·nt + 2t and 8·nt + 2t + 1
//     [2], [3]   row 16·mt + g + 8,  the same columns
//
// 16-bit tiles are multiplied by tensor cores. f32 tiles are multiplied in the same layout by plain multiply-adds: a lane
// computes what it holds. So everything around the products is written once for all types.
#pragma once

#include "sequence.cuh"
#include "tile.cuh"

namespace inducer {

DEVICE int lane_index() { return static_cast<int>(thread_index() % 32); }
// The same, not kept from before.
DEVICE int lane_index_anew() { return static_cast<int>(thread_index_anew() % 32); }
DEVICE int warp_index() { return static_cast<int>(thread_index() / 32); }
// g and t of the layout above.
DEVICE int lane_row() { return lane_index() / 4; }
DEVICE int lane_column() { return lane_index() % 4 * 2; }

// Row and column of an accumulator's element, local to the warp's first.
DEVICE int fragment_row(int mt, int e) { return mt * 16 + e / 2 * 8 + lane_row(); }
DEVICE int fragment_column(int nt, int e) { return nt * 8 + lane_column() + e % 2; }

// Sum and maximum over the four lanes that share a row.
DEVICE float row_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}
DEVICE float row_maximum(float x) {
    x = ::fmaxf(x, shuffle_xor(x, 1));
    return ::fmaxf(x, shuffle_xor(x, 2));
}

template <int MT, int NT>
DEVICE void clear(float (&c)[MT][NT][4]) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int nt = 0; nt < NT; ++nt) {
            UNROLL
            for (int e = 0; e < 4; ++e) c[mt][nt][e] = 0.0f;
        }
    }
}

// Multiplies rows: of one block of 16 rows, or of several.
template <int NT>
DEVICE void scale_rows(float (&c)[NT][4], const float (&by)[2]) {
    UNROLL
    for (int nt = 0; nt < NT; ++nt) {
        UNROLL
        for (int e = 0; e < 4; ++e) c[nt][e] *= by[e / 2];
    }
}
template <int MT, int NT>
DEVICE void scale_rows(float (&c)[MT][NT][4], const float (&by)[MT][2]) {
    UNROLL
    for (int mt = 0; mt < MT; ++mt) scale_rows(c[mt], by[mt]);
}

// Where a lane reads: `lane_row` and `lane_chunk` (0 or 1) are its own; `row`, a multiple of 8, and `chunk`, of 2, are the same
// in all lanes and known to the compiler, so that an address is the lane's part, computed once, and an exclusive or.
template <class T, int D>
DEVICE const char* fragment_address(const char* tile, int row, int chunk, int lane_row, int lane_chunk) {
    if constexpr (D / kPerChunk<T> < 8) {
        return chunk_address<T, D>(tile, row + lane_row, chunk + lane_chunk);
    } else {
        u32 part = static_cast<u32>(lane_row * kRowBytes<T, D>) + (static_cast<u32>(lane_chunk ^ (lane_row & 7)) << 4);
        return tile + row * kRowBytes<T, D> + (chunk & ~7) * 16 + (part ^ (static_cast<u32>(chunk & 7) << 4));
    }
}

// Fragments of A for mma from rows of a tile: a block of 16 rows from `row` on, 16 columns from chunk `chunk` on.
template <class T, int D>
DEVICE void load_a(u32 (&a)[4], const char* tile, int row, int chunk) {
    int lane = lane_index();
    load_matrices(a, fragment_address<T, D>(tile, row, chunk, lane % 16, lane / 16));
}

// Fragments of B for two blocks of 8 columns, where B's columns are the tile's rows from `row` on (B = tileᵀ): {b0, b1} of the
// first in b[0..2], of the second in b[2..4].
template <class T, int D>
DEVICE void load_b(u32 (&b)[4], const char* tile, int row, int chunk) {
    int lane = lane_index();
    load_matrices(b, fragment_address<T, D>(tile, row, chunk, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}

// The same where B's rows are the tile's rows (B = tile): 16 rows from `row` on, two blocks of 8 columns from `chunk` on.
template <class T, int D>
DEVICE void load_b_rows(u32 (&b)[4], const char* tile, int row, int chunk) {
    int lane = lane_index();
    load_matrices_transposed(b, fragment_address<T, D>(tile, row, chunk, lane % 16, lane / 16));
}

// Fragments of A where A's columns are the tile's rows (A = tileᵀ): 16 rows of A from chunk `chunk` on, 16 columns from the
// tile's row `row` on.
template <class T, int D>
DEVICE void load_a_columns(u32 (&a)[4], const char* tile, int row, int chunk) {
    int lane = lane_index();
    load_matrices_transposed(a, fragment_address<T, D>(tile, row, chunk, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}

// Columns 16·kt to 16·kt + 15 of 16 rows of a tile, as two blocks of an accumulator have them. Collective for the warp.
template <class T, int D>
DEVICE void load_blocks(float (&c)[2][4], const char* tile, int row, int kt) {
    if constexpr (sizeof(T) == 2) {
        u32 a[4];
        load_a<T, D>(a, tile, row, kt * 2);
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const f32x2 x = unpack<T>(a[i]);
            c[i / 2][i % 2 * 2] = x.x;
            c[i / 2][i % 2 * 2 + 1] = x.y;
        }
    } else {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const int column = kt * 16 + i / 2 * 8 + lane_column();
            const f32x2 x = *reinterpret_cast<const f32x2*>(element_address<T, D>(tile, row + i % 2 * 8 + lane_row(), column));
            c[i / 2][i % 2 * 2] = x.x;
            c[i / 2][i % 2 * 2 + 1] = x.y;
        }
    }
}

// Fragments of A for mma from an accumulator: its columns 16·kt to 16·kt + 15, rounded to T.
template <class T, int NT>
DEVICE void pack_a(u32 (&a)[4], const float (&c)[NT][4], int kt) {
    a[0] = pack(c[2 * kt][0], c[2 * kt][1], T{});
    a[1] = pack(c[2 * kt][2], c[2 * kt][3], T{});
    a[2] = pack(c[2 * kt + 1][0], c[2 * kt + 1][1], T{});
    a[3] = pack(c[2 * kt + 1][2], c[2 * kt + 1][3], T{});
}

// ---- c += A·Bᵀ, both tiles with D columns --------------------------------------------------------------------------------

// A: this warp's MT·16 rows of `a_tile` from `a_row` on; B: 8·NT rows of `b_tile` from `b_row` on.
// `Unroll` blocks of 16 columns at a time: all of them in a main loop, one where registers are scarce and speed is not.
template <class T, int D, int MT, int NT, int Unroll = D / 16>
struct RowsByRows {
    static DEVICE void add(float (&c)[MT][NT][4], const char* a_tile, int a_row, const char* b_tile, int b_row) {
        static_assert(NT % 2 == 0, "ldmatrix reads two blocks of columns");
#pragma unroll Unroll
        for (int kt = 0; kt < D / 16; ++kt) {
            u32 a[MT][4];
            UNROLL
            for (int mt = 0; mt < MT; ++mt) load_a<T, D>(a[mt], a_tile, a_row + mt * 16, kt * 2);
            UNROLL
            for (int np = 0; np < NT / 2; ++np) {
                u32 b[4];
                load_b<T, D>(b, b_tile, b_row + np * 16, kt * 2);
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    mma(c[mt][2 * np], a[mt], b[0], b[1], T{});
                    mma(c[mt][2 * np + 1], a[mt], b[2], b[3], T{});
                }
            }
        }
    }
};

template <int D, int MT, int NT, int Unroll>
struct RowsByRows<float, D, MT, NT, Unroll> {
    static DEVICE void add(float (&c)[MT][NT][4], const char* a_tile, int a_row, const char* b_tile, int b_row) {
        int g = lane_row(), t = lane_column();
        NO_UNROLL
        for (int chunk = 0; chunk < D / 4; ++chunk) {
            f32x4 a[MT][2];
            UNROLL
            for (int mt = 0; mt < MT; ++mt) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    int row = a_row + mt * 16 + half * 8 + g;
                    a[mt][half] = *reinterpret_cast<const f32x4*>(chunk_address<float, D>(a_tile, row, chunk));
                }
            }
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    int row = b_row + nt * 8 + t + e;
                    f32x4 b = *reinterpret_cast<const f32x4*>(chunk_address<float, D>(b_tile, row, chunk));
                    UNROLL
                    for (int mt = 0; mt < MT; ++mt) {
                        UNROLL
                        for (int half = 0; half < 2; ++half) {
                            float& sum = c[mt][nt][half * 2 + e];
                            sum = fused_multiply_add(a[mt][half].x, b.x, sum);
                            sum = fused_multiply_add(a[mt][half].y, b.y, sum);
                            sum = fused_multiply_add(a[mt][half].z, b.z, sum);
                            sum = fused_multiply_add(a[mt][half].w, b.w, sum);
                        }
                    }
                }
            }
        }
    }
};

// ---- c += P·B, where P is an accumulator with 8·KT columns and B the tile's first 8·KT rows from `b_row` on ---------------

template <class T, int D, int MT, int KT, int NT>
struct FragmentsByTile {
    static DEVICE void add(float (&c)[MT][NT][4], const float (&p)[MT][KT][4], const char* b_tile, int b_row) {
        static_assert(KT % 2 == 0 && NT % 2 == 0, "mma sums over 16");
        UNROLL
        for (int kt = 0; kt < KT / 2; ++kt) {
            u32 a[MT][4];
            UNROLL
            for (int mt = 0; mt < MT; ++mt) pack_a<T>(a[mt], p[mt], kt);
            UNROLL
            for (int np = 0; np < NT / 2; ++np) {
                u32 b[4];
                load_b_rows<T, D>(b, b_tile, b_row + kt * 16, np * 2);
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    mma(c[mt][2 * np], a[mt], b[0], b[1], T{});
                    mma(c[mt][2 * np + 1], a[mt], b[2], b[3], T{});
                }
            }
        }
    }
};

// In f32 a tile's products are summed by themselves before they are added, so that no sum is one chain over all keys. Sixty-four
// columns at a time have room for that.
template <int D, int MT, int KT, int NT>
struct FragmentsByTile<float, D, MT, KT, NT> {
    static DEVICE void add(float (&c)[MT][NT][4], const float (&p)[MT][KT][4], const char* b_tile, int b_row) {
        constexpr int Part = NT < 8 ? NT : 8;
        static_assert(NT % Part == 0, "parts are of one size");
        UNROLL
        for (int first = 0; first < NT; first += Part) {
            float sum[MT][Part][4];
            clear(sum);
            add_part(sum, p, b_tile, b_row, first * 8);
            UNROLL
            for (int mt = 0; mt < MT; ++mt) {
                UNROLL
                for (int nt = 0; nt < Part; ++nt) {
                    UNROLL
                    for (int e = 0; e < 4; ++e) c[mt][first + nt][e] += sum[mt][nt][e];
                }
            }
        }
    }

private:
    // The columns from `b_column` on.
    template <int Part>
    static DEVICE void add_part(float (&c)[MT][Part][4], const float (&p)[MT][KT][4], const char* b_tile, int b_row,
                                int b_column) {
        int lane = lane_index(), t = lane_column();
        UNROLL
        for (int kt = 0; kt < KT; ++kt) {
            NO_UNROLL
            for (int column = 0; column < 8; ++column) {
                float a[MT][2];
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    UNROLL
                    for (int half = 0; half < 2; ++half) {
                        float mine = column % 2 == 0 ? p[mt][kt][half * 2] : p[mt][kt][half * 2 + 1];
                        a[mt][half] = shuffle(mine, (lane & ~3) | (column / 2));
                    }
                }
                int row = b_row + kt * 8 + column;
                UNROLL
                for (int nt = 0; nt < Part; ++nt) {
                    f32x2 b = *reinterpret_cast<const f32x2*>(element_address<float, D>(b_tile, row, b_column + nt * 8 + t));
                    UNROLL
                    for (int mt = 0; mt < MT; ++mt) {
                        c[mt][nt][0] = fused_multiply_add(a[mt][0], b.x, c[mt][nt][0]);
                        c[mt][nt][1] = fused_multiply_add(a[mt][0], b.y, c[mt][nt][1]);
                        c[mt][nt][2] = fused_multiply_add(a[mt][1], b.x, c[mt][nt][2]);
                        c[mt][nt][3] = fused_multiply_add(a[mt][1], b.y, c[mt][nt][3]);
                    }
                }
            }
        }
    }
};

// ---- c += Aᵀ·B, both tiles with the same rows: A's with DA columns, B's with D. Sums over `Rows` rows -------------------------

template <class T, int DA, int D, int MT, int NT, int Rows>
struct ColumnsByTile {
    static DEVICE void add(float (&c)[MT][NT][4], const char* a_tile, int a_column, const char* b_tile, int b_column) {
        static_assert(Rows % 16 == 0 && NT % 2 == 0, "mma sums over 16");
        UNROLL
        for (int kt = 0; kt < Rows / 16; ++kt) {
            u32 a[MT][4];
            UNROLL
            for (int mt = 0; mt < MT; ++mt) load_a_columns<T, DA>(a[mt], a_tile, kt * 16, a_column / 8 + mt * 2);
            UNROLL
            for (int np = 0; np < NT / 2; ++np) {
                u32 b[4];
                load_b_rows<T, D>(b, b_tile, kt * 16, b_column / 8 + np * 2);
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    mma(c[mt][2 * np], a[mt], b[0], b[1], T{});
                    mma(c[mt][2 * np + 1], a[mt], b[2], b[3], T{});
                }
            }
        }
    }
};

template <int DA, int D, int MT, int NT, int Rows>
struct ColumnsByTile<float, DA, D, MT, NT, Rows> {
    static DEVICE void add(float (&c)[MT][NT][4], const char* a_tile, int a_column, const char* b_tile, int b_column) {
        int g = lane_row(), t = lane_column();
        NO_UNROLL
        for (int row = 0; row < Rows; ++row) {
            float a[MT][2];
            UNROLL
            for (int mt = 0; mt < MT; ++mt) {
                a[mt][0] = *element_address<float, DA>(a_tile, row, a_column + mt * 16 + g);
                a[mt][1] = *element_address<float, DA>(a_tile, row, a_column + mt * 16 + g + 8);
            }
            UNROLL
            for (int nt = 0; nt < NT; ++nt) {
                f32x2 b = *reinterpret_cast<const f32x2*>(element_address<float, D>(b_tile, row, b_column + nt * 8 + t));
                UNROLL
                for (int mt = 0; mt < MT; ++mt) {
                    c[mt][nt][0] = fused_multiply_add(a[mt][0], b.x, c[mt][nt][0]);
                    c[mt][nt][1] = fused_multiply_add(a[mt][0], b.y, c[mt][nt][1]);
                    c[mt][nt][2] = fused_multiply_add(a[mt][1], b.x, c[mt][nt][2]);
                    c[mt][nt][3] = fused_multiply_add(a[mt][1], b.y, c[mt][nt][3]);
                }
            }
        }
    }
};

// ---- The same product where a mask meets a tile with numbers that are not finite -----------------------------------------

// 0·NaN is NaN: where B holds a NaN or an infinity in a row that some row of the result must not see, pairs that are hidden have
// to be left out one by one. `visible(i)` gives the rows of the tile that row i of the warp's result takes in, `left(i, j)` what
// multiplies row j there. Only rows `begin` to `end` are taken in. `lane_of`: lane_index, or lane_index_anew where a lane's number is
// one register too many. Slow, and rare: one loop, as laid out block by block this would be a third of a kernel's code.
template <class Tile, int MT, int NT, class Lane, class Visible, class Left>
DEVICE void add_visible(float (&c)[MT][NT][4], const char* tile, int column, int begin, int end, Lane lane_of, Visible visible,
                        Left left) {
    NO_UNROLL
    for (int block = 0; block < MT * 2 * NT; ++block) {
        const int lane = lane_of(), i = block / NT * 8 + lane / 4;
        const Interval seen = visible(i);
        const int first = maximum(seen.first, begin), last = minimum(seen.end, end);
        float x = 0.0f, y = 0.0f;
        NO_UNROLL
        for (int j = first; j < last; ++j) {
            const float a = left(i, j);
            const auto* b = Tile::element(tile, j, column + block % NT * 8 + lane % 4 * 2);
            x = fused_multiply_add(a, to_float(b[0]), x);
            y = fused_multiply_add(a, to_float(b[1]), y);
        }
        // c is indexed by constants only: an index known at run time would put it into memory.
        UNROLL
        for (int mt = 0; mt < MT; ++mt) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                UNROLL
                for (int nt = 0; nt < NT; ++nt) {
                    const bool here = block == (mt * 2 + half) * NT + nt;
                    c[mt][nt][half * 2] = here ? c[mt][nt][half * 2] + x : c[mt][nt][half * 2];
                    c[mt][nt][half * 2 + 1] = here ? c[mt][nt][half * 2 + 1] + y : c[mt][nt][half * 2 + 1];
                }
            }
        }
    }
}

// c += P·B in this way, P laid down in shared memory: `scratch` holds 16·MT rows of 8·KT elements for this warp alone.
template <class T, int D, int MT, int KT, int NT, class Visible>
DEVICE void add_visible_staged(float (&c)[MT][NT][4], const float (&p)[MT][KT][4], const char* tile, T* scratch,
                               Visible visible) {
    constexpr int keys = KT * 8;
    int g = lane_row(), t = lane_column();
    UNROLL
    for (int mt = 0; mt < MT; ++mt) {
        UNROLL
        for (int kt = 0; kt < KT; ++kt) {
            store_pair(scratch + (mt * 16 + g) * keys + kt * 8 + t, p[mt][kt][0], p[mt][kt][1]);
            store_pair(scratch + (mt * 16 + g + 8) * keys + kt * 8 + t, p[mt][kt][2], p[mt][kt][3]);
        }
    }
    sync_warp();
    add_visible<RowTile<T, D>>(c, tile, 0, 0, keys, lane_index, visible,
                               [&](int i, int j) { return to_float(scratch[i * keys + j]); });
}

}  // namespace inducer
