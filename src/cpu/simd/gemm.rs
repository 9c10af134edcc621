//! The matrix product that all attention products are made of.
//!
//! C (+)= A·B with B and C in rows of whole vectors and A read one scalar at a time, from wherever the caller keeps it
//! and in either orientation, so that keys and values are used in place. A block of C of [`Vector::GEMM_ROWS`] rows and
//! [`Vector::GEMM_VECTORS`] vectors lives in registers while k runs; each step costs one load per vector of B, one
//! broadcast per row of A, and their product in multiply-adds.
//!
//! **Every element of A·B is a chain of multiply-adds in the order of k**, starting from zero; after every [`K_BLOCK`] steps
//! a new one begins, and chains are added up in order, to C if the product accumulates. So its value depends on its row of
//! A, its column of B and the instruction set alone: not on the other sizes of the product or on where in it the element
//! lies. Chains are short because a chain's rounding error grows with the square root of its length, relative to what
//! has been summed: one over all keys of a long sequence would lose a digit.

#![allow(unsafe_op_in_unsafe_fn, reason = "vector and pointer operations under the functions' contracts")]

use super::vector::Vector;

/// The operands of C (+)= A·B.
///
/// For [`gemm`] an element is an `f32`. For [`gemm_bf16`] an element of A and B is a pair of bfloat16, consecutive along
/// the summed dimension (the first in the low half), `k` counts pairs, and C is `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C, a multiple of [`Vector::LANES`].
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// A(0, 0), four bytes of any alignment.
    pub a: *const u8,
    /// Bytes from A(i, j) to A(i + 1, j). Rows or columns are adjacent: this or [`a_col`](Self::a_col) is 4.
    pub a_row: isize,
    /// Bytes from A(i, j) to A(i, j + 1).
    pub a_col: isize,
    /// B(0, 0); columns are adjacent.
    pub b: *const f32,
    /// Elements from B(i, j) to B(i + 1, j).
    pub b_row: usize,
    /// C(0, 0); columns are adjacent.
    pub c: *mut f32,
    /// Elements from C(i, j) to C(i + 1, j).
    pub c_row: usize,
    /// Adds to C instead of overwriting it.
    pub accumulate: bool,
    /// What is fetched meanwhile.
    pub ahead: Ahead,
}

/// Memory that the next step will read: fetched into the second-level cache while a product computes, whose own operands
/// are there already. Only a hint, so any address will do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// The first row.
    pub ptr: *const u8,
    /// Bytes between rows.
    pub stride: usize,
    pub rows: usize,
    /// Bytes of a row.
    pub bytes: usize,
}

impl Ahead {
    /// Nothing.
    pub(crate) const NONE: Self = Self { ptr: core::ptr::null(), stride: 0, rows: 0, bytes: 0 };
}

/// C (+)= A·B in `f32`.
///
/// # Safety
///
/// The contract of [`Vector`]; every element of A and B that the sizes name is readable, every one of C writable (and,
/// to accumulate, readable), C overlaps neither; `n` is a multiple of [`Vector::LANES`]; `a_row` or `a_col` is 4.
#[inline(always)]
pub(super) unsafe fn gemm<V: Vector>(g: &Gemm) {
    product::<V, false>(g);
}

/// C (+)= A·B of pairs of bfloat16, accumulated in `f32`.
///
/// # Safety
///
/// As for [`gemm`].
#[inline(always)]
pub(super) unsafe fn gemm_bf16<V: Vector>(g: &Gemm) {
    if V::BF16_DOT {
        product::<V, true>(g);
    } else {
        one_by_one::<V>(g);
    }
}

/// [`gemm_bf16`] without the instruction: for comparison, not for use, and therefore small instead of fast.
#[inline(always)]
unsafe fn one_by_one<V: Vector>(g: &Gemm) {
    for row in 0..g.m {
        let mut column = 0;
        while column < g.n {
            let c = g.c.add(row * g.c_row + column);
            let mut sum = if g.accumulate { V::load(c) } else { V::zero() };
            let mut from = 0;
            while from < g.k {
                let to = g.k.min(from + K_BLOCK);
                let mut acc = V::zero();
                for i in from..to {
                    let a = V::splat_unaligned(g.a.offset(row as isize * g.a_row + i as isize * g.a_col));
                    acc = V::dot_bf16(acc, a, V::load(g.b.add(i * g.b_row + column)));
                }
                sum = acc.add(sum);
                from = to;
            }
            sum.store(c);
            column += V::LANES;
        }
    }
}

/// Steps of k for which a panel of B stays in the first-level cache next to the rows of A that pass by, and length of a
/// chain of multiply-adds.
pub(crate) const K_BLOCK: usize = 256;

/// Most rows of any instance of the micro-kernel.
const MAX_ROWS: usize = 12;

/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;

#[inline(always)]
unsafe fn product<V: Vector, const PAIRS: bool>(g: &Gemm) {
    debug_assert!(g.n.is_multiple_of(V::LANES));
    debug_assert!(g.a_row == 4 || g.a_col == 4);
    const { assert!(V::GEMM_ROWS <= MAX_ROWS && V::GEMM_VECTORS <= 2) };
    let mut from = 0;
    loop {
        let k = (g.k - from).min(K_BLOCK);
        let block = Gemm {
            k,
            a: g.a.offset(from as isize * g.a_col),
            b: g.b.add(from * g.b_row),
            accumulate: g.accumulate || from > 0,
            ahead: if from == 0 { g.ahead } else { Ahead::NONE },
            ..*g
        };
        blocks_of_c::<V, PAIRS>(&block);
        from += k;
        if from == g.k {
            break;
        }
    }
}

/// All register blocks of C. Panels of columns each go past all rows, so that the panel of B stays in the first-level cache.
#[inline(always)]
unsafe fn blocks_of_c<V: Vector, const PAIRS: bool>(g: &Gemm) {
    let tiles = g.m.div_ceil(V::GEMM_ROWS);
    // Of the widest panels; narrower ones that are left over fetch what is left.
    let panels = g.n.div_ceil(panel_width::<V>(g.m, g.n).max(1));
    let lines = g.ahead.bytes.div_ceil(LINE_BYTES);
    let rows_each = g.ahead.rows.div_ceil((tiles * panels).max(1));
    let mut fetched = 0;
    let mut column = 0;
    while column < g.n {
        let width = panel_width::<V>(g.m, g.n - column);
        let mut row = 0;
        for tile in 0..tiles {
            let rows = even_share(g.m - row, tiles - tile);
            if fetched < g.ahead.rows {
                for row in fetched..fetched + rows_each {
                    let from = g.ahead.ptr.wrapping_add(row * g.ahead.stride);
                    for line in 0..lines {
                        V::prefetch(from.wrapping_add(line * LINE_BYTES));
                    }
                }
                fetched += rows_each;
            }
            tile_of_c::<V, PAIRS>(&Gemm {
                m: rows,
                n: width,
                a: g.a.offset(row as isize * g.a_row),
                b: g.b.add(column),
                c: g.c.add(row * g.c_row + column),
                ..*g
            });
            row += rows;
        }
        column += width;
    }
}

/// Vectors of the next panel's rows. A row or two of so few vectors would wait for their own multiply-adds most of the time.
#[inline(always)]
fn panel_vectors<V: Vector>(rows: usize, left: usize) -> usize {
    match (rows, left / V::LANES) {
        (1, 8..) => 8,
        (1 | 2, 4..) => 4,
        (_, vectors) => vectors.min(V::GEMM_VECTORS),
    }
}

/// Columns of the next panel of so many rows when `left` are left.
#[inline(always)]
fn panel_width<V: Vector>(rows: usize, left: usize) -> usize {
    panel_vectors::<V>(rows, left) * V::LANES
}

/// Rows are dealt out evenly: 13 rows are 7 + 6, not 12 + 1.
#[inline(always)]
fn even_share(left: usize, tiles: usize) -> usize {
    left / tiles
}

/// One register block of C, by the instance of the micro-kernel for its size.
#[inline(always)]
unsafe fn tile_of_c<V: Vector, const PAIRS: bool>(g: &Gemm) {
    macro_rules! instances {
        ($($rows:literal)*) => {
            match g.m {
                $($rows if $rows <= V::GEMM_ROWS => {
                    match (g.n == 2 * V::LANES, g.a_row == 4) {
                        (true, true) => micro::<V, PAIRS, true, $rows, 2>(g),
                        (true, false) => micro::<V, PAIRS, false, $rows, 2>(g),
                        (false, true) => micro::<V, PAIRS, true, $rows, 1>(g),
                        (false, false) => micro::<V, PAIRS, false, $rows, 1>(g),
                    }
                })*
                _ => {}
            }
        };
    }
    macro_rules! wide {
        ($rows:literal, $vectors:literal) => {
            if g.a_row == 4 {
                micro::<V, PAIRS, true, $rows, $vectors>(g)
            } else {
                micro::<V, PAIRS, false, $rows, $vectors>(g)
            }
        };
    }
    match (g.m, g.n / V::LANES) {
        (1, 8) => wide!(1, 8),
        (1, 4) => wide!(1, 4),
        (2, 4) => wide!(2, 4),
        _ => instances!(1 2 3 4 5 6 7 8 9 10 11 12),
    }
}

/// The micro-kernel: a block of `ROWS` rows and `VECTORS` vectors of C. `ADJACENT` says that the rows of A are four bytes
/// apart; otherwise its columns are. Either way one of two offsets is a constant. In the instances that
/// do most of the work, four steps go between two branches; measured with vectors of eight lanes, and only there, for it
/// takes the compiler long.
#[inline(always)]
unsafe fn micro<
    V: Vector,
    const PAIRS: bool,
    const ADJACENT: bool,
    const ROWS: usize,
    const VECTORS: usize,
>(
    g: &Gemm,
) {
    let mut acc = [[V::zero(); VECTORS]; ROWS];
    let a_row = if ADJACENT { 4 } else { g.a_row };
    // Addresses have room for an offset once or twice, but not three times: rows in threes, behind a pointer each. Left to
    // itself, the compiler adds the offset up from row to row, once for every step.
    let groups = if ADJACENT { 1 } else { ROWS.div_ceil(3) };
    let mut a = [g.a; MAX_ROWS.div_ceil(3)];
    for group in 1..groups {
        a[group] = core::hint::black_box(g.a.offset(3 * group as isize * a_row));
    }
    let mut b = g.b;
    // A macro: a closure would be a function of its own, without the instruction set.
    macro_rules! step {
        ($ahead:literal) => {{
            let mut b_vectors = [V::zero(); VECTORS];
            for v in 0..VECTORS {
                b_vectors[v] = V::load(b.wrapping_add(v * V::LANES));
            }
            for r in 0..ROWS {
                let (group, r_within) = if ADJACENT { (0, r) } else { (r / 3, r % 3) };
                let along = if ADJACENT { 0 } else { 4 * $ahead };
                let a_element =
                    V::splat_unaligned(a[group].wrapping_offset(r_within as isize * a_row + along));
                for v in 0..VECTORS {
                    acc[r][v] = if PAIRS {
                        V::dot_bf16(acc[r][v], a_element, b_vectors[v])
                    } else {
                        V::fma(a_element, b_vectors[v], acc[r][v])
                    };
                }
            }
            if ADJACENT {
                a[0] = a[0].wrapping_offset(g.a_col);
            }
            b = b.wrapping_add(g.b_row);
        }};
    }
    macro_rules! advance {
        ($steps:literal) => {
            if !ADJACENT {
                for group in 0..groups {
                    a[group] = a[group].wrapping_add(4 * $steps);
                }
            }
        };
    }
    let mut left = g.k;
    if V::LANES == 8 && VECTORS == V::GEMM_VECTORS && ROWS + 1 >= V::GEMM_ROWS {
        while left >= 4 {
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            advance!(4);
            left -= 4;
        }
    }
    for _ in 0..left {
        step!(0);
        advance!(1);
    }
    for r in 0..ROWS {
        for v in 0..VECTORS {
            let c = g.c.add(r * g.c_row + v * V::LANES);
            let sum = if g.accumulate { acc[r][v].add(V::load(c)) } else { acc[r][v] };
            sum.store(c);
        }
    }
}
