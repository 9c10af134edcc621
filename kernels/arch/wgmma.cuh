// wgmma.mma_async (PTX ISA 9.0, 9.7.15.5): products of a warpgroup, 4 warps in a row of which the first one's number is a multiple of
// 4. They are asynchronous: between warpgroup_fence and warpgroup_wait nothing else may touch the registers.
//
//     c (+)= A·B        A 64×16, B 16×N, c 64×N in f32
//
// Warp w of the warpgroup has rows 16w to 16w + 15 of c, in the layout of mma.m16n8k16 (see mma in sm80.cuh), blocks of 8 columns one
// after the other. A lies in shared memory (`matrix_descriptor`) or in registers, of each warp its own 16 rows, as mma has it. B lies
// in shared memory. c must not be read in the first product of a sum: `accumulate` = false.
#pragma once

#include "sm90.cuh"

namespace inducer {

#define REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define REGISTERS_16 REGISTERS_8 \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define REGISTERS_32 REGISTERS_16 \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 REGISTERS_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128 REGISTERS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define BLOCK(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define BLOCKS_2(c, i) BLOCK(c, i), BLOCK(c, i + 1)
#define BLOCKS_4(c, i) BLOCKS_2(c, i), BLOCKS_2(c, i + 2)
#define BLOCKS_8(c, i) BLOCKS_4(c, i), BLOCKS_4(c, i + 4)
#define BLOCKS_16(c, i) BLOCKS_8(c, i), BLOCKS_8(c, i + 8)
#define BLOCKS_32(c, i) BLOCKS_16(c, i), BLOCKS_16(c, i + 16)

// Both operands in shared memory, either one transposed or not.
#define MULTIPLY_SHARED(n, blocks, registers, type, name, a, b, accumulates, transpose_a, transpose_b)                      \
    template <bool TransposeA, bool TransposeB>                                                                             \
    DEVICE void multiply(float (&c)[blocks][4], u64 a_matrix, u64 b_matrix, bool accumulate, type) {                        \
        asm volatile(                                                                                                       \
            "{\n.reg .pred p;\nsetp.ne.b32 p, " accumulates ", 0;\n"                                                        \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." name "." name " {" registers "}, " a ", " b                  \
            ", p, 1, 1, " transpose_a ", " transpose_b ";\n}\n"                                                             \
            : BLOCKS_##blocks(c, 0)                                                                                         \
            : "l"(a_matrix), "l"(b_matrix), "r"(static_cast<int>(accumulate)), "n"(TransposeA ? 1 : 0),                     \
              "n"(TransposeB ? 1 : 0));                                                                                     \
    }

// A in registers.
#define MULTIPLY_REGISTERS(n, blocks, registers, type, name, a0, a1, a2, a3, b, accumulates, transpose_b)                   \
    template <bool TransposeB>                                                                                              \
    DEVICE void multiply(float (&c)[blocks][4], u32 (&a)[4], u64 b_matrix, bool accumulate, type) {                         \
        asm volatile(                                                                                                       \
            "{\n.reg .pred p;\nsetp.ne.b32 p, " accumulates ", 0;\n"                                                        \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." name "." name " {" registers "}, {" a0 ", " a1 ", " a2 ", "  \
            a3 "}, " b ", p, 1, 1, " transpose_b ";\n}\n"                                                                   \
            : BLOCKS_##blocks(c, 0)                                                                                         \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_matrix), "r"(static_cast<int>(accumulate)),                 \
              "n"(TransposeB ? 1 : 0));                                                                                     \
    }

MULTIPLY_SHARED(16, 2, REGISTERS_8, f16, "f16", "%8", "%9", "%10", "%11", "%12")
MULTIPLY_REGISTERS(16, 2, REGISTERS_8, f16, "f16", "%8", "%9", "%10", "%11", "%12", "%13", "%14")
MULTIPLY_SHARED(16, 2, REGISTERS_8, bf16, "bf16", "%8", "%9", "%10", "%11", "%12")
MULTIPLY_REGISTERS(16, 2, REGISTERS_8, bf16, "bf16", "%8", "%9", "%10", "%11", "%12", "%13", "%14")
MULTIPLY_SHARED(32, 4, REGISTERS_16, f16, "f16", "%16", "%17", "%18", "%19", "%20")
MULTIPLY_REGISTERS(32, 4, REGISTERS_16, f16, "f16", "%16", "%17", "%18", "%19", "%20", "%21", "%22")
MULTIPLY_SHARED(32, 4, REGISTERS_16, bf16, "bf16", "%16", "%17", "%18", "%19", "%20")
MULTIPLY_REGISTERS(32, 4, REGISTERS_16, bf16, "bf16", "%16", "%17", "%18", "%19", "%20", "%21", "%22")
MULTIPLY_SHARED(64, 8, REGISTERS_32, f16, "f16", "%32", "%33", "%34", "%35", "%36")
MULTIPLY_REGISTERS(64, 8, REGISTERS_32, f16, "f16", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
MULTIPLY_SHARED(64, 8, REGISTERS_32, bf16, "bf16", "%32", "%33", "%34", "%35", "%36")
MULTIPLY_REGISTERS(64, 8, REGISTERS_32, bf16, "bf16", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
MULTIPLY_SHARED(128, 16, REGISTERS_64, f16, "f16", "%64", "%65", "%66", "%67", "%68")
MULTIPLY_REGISTERS(128, 16, REGISTERS_64, f16, "f16", "%64", "%65", "%66", "%67", "%68", "%69", "%70")
MULTIPLY_SHARED(128, 16, REGISTERS_64, bf16, "bf16", "%64", "%65", "%66", "%67", "%68")
MULTIPLY_REGISTERS(128, 16, REGISTERS_64, bf16, "bf16", "%64", "%65", "%66", "%67", "%68", "%69", "%70")
MULTIPLY_SHARED(256, 32, REGISTERS_128, f16, "f16", "%128", "%129", "%130", "%131", "%132")
MULTIPLY_REGISTERS(256, 32, REGISTERS_128, f16, "f16", "%128", "%129", "%130", "%131", "%132", "%133", "%134")
MULTIPLY_SHARED(256, 32, REGISTERS_128, bf16, "bf16", "%128", "%129", "%130", "%131", "%132")
MULTIPLY_REGISTERS(256, 32, REGISTERS_128, bf16, "bf16", "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef MULTIPLY_SHARED
#undef MULTIPLY_REGISTERS
#undef BLOCKS_32
#undef BLOCKS_16
#undef BLOCKS_8
#undef BLOCKS_4
#undef BLOCKS_2
#undef BLOCK
#undef REGISTERS_128
#undef REGISTERS_64
#undef REGISTERS_32
#undef REGISTERS_16
#undef REGISTERS_8

}  // namespace inducer
