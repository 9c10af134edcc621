#include "products.h"

#include <string.h>

#include <memory>

#include <algorithm>

#include "matrices.h"
#include "numbers.h"
#include "wide.h"

namespace emulator {

namespace {

constexpr uint32_t kMostColumns = 256;

// Elements of an operand as numbers. The compiler vectorises each.
template <float (*Value)(uint16_t)>
inline void widen(float* to, const uint16_t* from, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) to[i] = Value(from[i]);
}
WIDE void widen_f16(float* to, const uint16_t* from, uint32_t count) { widen<f16_value>(to, from, count); }
WIDE void widen_bf16(float* to, const uint16_t* from, uint32_t count) { widen<bf16_value>(to, from, count); }

// A matrix in shared memory, line after line. Without a detector a descriptor may point anywhere: zeros then.
void gather(uint16_t* to, const Matrix& matrix, const char* shared, uint32_t shared_bytes) {
    constexpr uint32_t kBytes = 16;
    for (uint32_t line = 0; line < matrix.lines(); ++line) {
        for (uint32_t chunk = 0; chunk < matrix.chunks(); ++chunk, to += kBytes / sizeof *to) {
            const uint32_t offset = matrix.offset(line, chunk);
            if (offset + kBytes <= shared_bytes) {
                memcpy(to, shared + offset, kBytes);
            } else {
                memset(to, 0, kBytes);
            }
        }
    }
}

void transpose(float* to, const float* from, uint32_t rows, uint32_t columns) {
    for (uint32_t row = 0; row < rows; ++row) {
        for (uint32_t column = 0; column < columns; ++column) to[column * rows + row] = from[row * columns + column];
    }
}

using Vector = float __attribute__((vector_size(32)));
constexpr uint32_t kLanes = 8;

inline void load(Vector& v, const float* from) { memcpy(&v, from, sizeof v); }
inline void store(float* to, const Vector& v) { memcpy(to, &v, sizeof v); }

// Rows of c += rows of a · b, in the order of k, products exact and sums rounded to f32 each: the order and rounding of a
// tensor core are its own. a: [rows][16], b: [16][columns], c: [rows][columns]; 2 rows and 16 columns at a time.
WIDE void add_product(float* c, const float* a, const float* b, uint32_t rows, uint32_t columns) {
    for (uint32_t row = 0; row < rows; row += 2) {
        const float *a0 = a + row * kProductDepth, *a1 = a0 + kProductDepth;
        for (uint32_t column = 0; column < columns; column += 2 * kLanes) {
            float *c0 = c + row * columns + column, *c1 = c0 + columns;
            Vector sum00, sum01, sum10, sum11, left, right;
            load(sum00, c0), load(sum01, c0 + kLanes), load(sum10, c1), load(sum11, c1 + kLanes);
            const float* b_row = b + column;
            for (uint32_t k = 0; k < kProductDepth; ++k, b_row += columns) {
                load(left, b_row), load(right, b_row + kLanes);
                sum00 += a0[k] * left;
                sum01 += a0[k] * right;
                sum10 += a1[k] * left;
                sum11 += a1[k] * right;
            }
            store(c0, sum00), store(c0 + kLanes, sum01), store(c1, sum10), store(c1 + kLanes, sum11);
        }
    }
}

}  // namespace

void carry_out(const Product& product, const char* shared, uint32_t shared_bytes) {
    const ProductForm& form = product.form;
    const uint32_t columns = form.columns;
    // Neither on a fiber's small stack nor in the thread's own block, of which a library that is loaded late gets little.
    struct Room {
        uint16_t elements[kProductDepth * kMostColumns];
        float lines[kProductDepth * kMostColumns], a[kProductRows * kProductDepth], b[kProductDepth * kMostColumns];
    };
    static thread_local const std::unique_ptr<Room> room(new Room);
    uint16_t* const elements = room->elements;
    float *const lines = room->lines, *const a = room->a, *const b = room->b;
    auto widen_elements = [&](float* to, const uint16_t* from, uint32_t count) {
        if (form.is_f16) {
            widen_f16(to, from, count);
        } else {
            widen_bf16(to, from, count);
        }
    };
    if (!product.a_elements.empty()) {
        widen_elements(a, product.a_elements.data(), kProductRows * kProductDepth);
    } else {
        gather(elements, Matrix(product.a, kProductRows, form.transpose_a), shared, shared_bytes);
        widen_elements(form.transpose_a ? lines : a, elements, kProductRows * kProductDepth);
        if (form.transpose_a) transpose(a, lines, kProductDepth, kProductRows);
    }
    gather(elements, Matrix(product.b, columns, form.transpose_b), shared, shared_bytes);
    widen_elements(form.transpose_b ? b : lines, elements, kProductDepth * columns);
    if (!form.transpose_b) transpose(b, lines, columns, kProductDepth);
    for (uint32_t w = 0; w < kWarpgroupWarps; ++w) {
        Accumulator& c = *product.c[w];
        if (!product.accumulate) std::fill(c.values.begin(), c.values.end(), 0.0f);
        add_product(c.values.data(), a + w * kWarpRows * kProductDepth, b, kWarpRows, columns);
    }
}

}  // namespace emulator
