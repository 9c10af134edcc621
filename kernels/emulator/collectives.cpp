// Shuffles, votes, ldmatrix and mma. They exchange registers and order no memory.
#include "numbers.h"
#include "rendezvous.h"
#include "wide.h"

namespace emulator {

uint32_t thread_index() { return current->index; }
uint32_t block_index() { return current->block->index; }
char* shared_memory() { return current->block->shared.base; }

namespace {

struct Shuffle {
    float value;
    uint32_t from;      // lane
    float result;
};

float shuffle_from(const char* what, float value, uint32_t from, Site site) {
    Shuffle mine = {value, from, 0.0f};
    meet(*current, what, site, &mine, [](Warp& warp) {
        for (uint32_t i = 0; i < kWarpLanes; ++i) {
            Shuffle& to = argument_of<Shuffle>(warp, i);
            to.result = argument_of<Shuffle>(warp, to.from).value;
        }
    });
    return mine.result;
}

}  // namespace

// shfl.sync.bfly with 0x1f for c: the source is the lane's number xor b.
float shuffle_xor(float value, int mask, Site site) {
    return shuffle_from("shuffle_xor", value, (current->lane ^ static_cast<uint32_t>(mask)) % kWarpLanes, site);
}

// shfl.sync.idx with 0x1f for c: only the low five bits of b count.
float shuffle(float value, int lane, Site site) {
    return shuffle_from("shuffle", value, static_cast<uint32_t>(lane) % kWarpLanes, site);
}

bool warp_any(bool value, Site site) {
    bool mine = value;
    meet(*current, "warp_any", site, &mine, [](Warp& warp) {
        bool any = false;
        for (uint32_t i = 0; i < kWarpLanes; ++i) any |= argument_of<bool>(warp, i);
        for (uint32_t i = 0; i < kWarpLanes; ++i) argument_of<bool>(warp, i) = any;
    });
    return mine;
}

namespace {

struct MatrixRow {
    const void* address;
    uint32_t registers[4];
};

// ldmatrix.m8n8.x4.b16: lane 8m + r brings the address of row r of matrix m. Lane l receives in register m the elements
// 2(l % 4) and 2(l % 4) + 1 of row l / 4 of matrix m, or of its column l / 4 where it is transposed.
template <bool Transposed>
void complete_load(Warp& warp) {
    const void* rows[kWarpLanes];
    for (uint32_t i = 0; i < kWarpLanes; ++i) rows[i] = argument_of<MatrixRow>(warp, i).address;
    look_at_matrices(warp, rows);
    for (uint32_t m = 0; m < 4; ++m) {
        uint16_t matrix[8][8];
        for (uint32_t r = 0; r < 8; ++r) memcpy(matrix[r], rows[8 * m + r], sizeof matrix[r]);
        for (uint32_t l = 0; l < kWarpLanes; ++l) {
            const uint32_t major = l / 4, minor = l % 4 * 2;
            const uint32_t low = Transposed ? matrix[minor][major] : matrix[major][minor];
            const uint32_t high = Transposed ? matrix[minor + 1][major] : matrix[major][minor + 1];
            argument_of<MatrixRow>(warp, l).registers[m] = low | high << 16;
        }
    }
}

template <bool Transposed>
Words4 load_from(const char* what, const void* row, Site site) {
    MatrixRow mine = {row, {}};
    meet(*current, what, site, &mine, complete_load<Transposed>);
    return {mine.registers[0], mine.registers[1], mine.registers[2], mine.registers[3]};
}

}  // namespace

Words4 load_matrices(const void* row, Site site) { return load_from<false>("load_matrices", row, site); }
Words4 load_matrices_transposed(const void* row, Site site) {
    return load_from<true>("load_matrices_transposed", row, site);
}

namespace {

using Row = float __attribute__((vector_size(32)));

// c += a·b, in the order of k.
WIDE void add_product(float (&c)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
    for (uint32_t row = 0; row < 16; ++row) {
        Row sum;
        memcpy(&sum, c[row], sizeof sum);
        for (uint32_t k = 0; k < 16; ++k) {
            Row b_row;
            memcpy(&b_row, b[k], sizeof b_row);
            sum += a[row][k] * b_row;
        }
        memcpy(c[row], &sum, sizeof sum);
    }
}

struct Product {
    float c[4];
    uint32_t a[4], b[2];
};

// mma.m16n8k16, the lane numbers as in the PTX ISA: g = lane / 4, t = lane % 4.
//   a[i]  rows g + 8(i % 2), columns 2t + 8(i / 2) and the next one
//   b[i]  rows 2t + 8i and the next one, column g
//   c[i]  rows g + 8(i / 2), columns 2t + i % 2
// Products are exact and summed in f32 in the order of k; the order and rounding of a tensor core are its own.
template <float (*Value)(uint16_t)>
void complete_product(Warp& warp) {
    uint16_t a_bits[16][16], b_bits[16][8];
    float a[16][16], b[16][8], c[16][8];
    for (uint32_t l = 0; l < kWarpLanes; ++l) {
        const Product& lane = argument_of<Product>(warp, l);
        const uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
            a_bits[row][column] = static_cast<uint16_t>(lane.a[i]);
            a_bits[row][column + 1] = static_cast<uint16_t>(lane.a[i] >> 16);
            c[g + i / 2 * 8][2 * t + i % 2] = lane.c[i];
        }
        for (uint32_t i = 0; i < 2; ++i) {
            b_bits[2 * t + i * 8][g] = static_cast<uint16_t>(lane.b[i]);
            b_bits[2 * t + i * 8 + 1][g] = static_cast<uint16_t>(lane.b[i] >> 16);
        }
    }
    for (uint32_t row = 0; row < 16; ++row) {
        for (uint32_t k = 0; k < 16; ++k) a[row][k] = Value(a_bits[row][k]);
        for (uint32_t n = 0; n < 8; ++n) b[row][n] = Value(b_bits[row][n]);
    }
    add_product(c, a, b);
    for (uint32_t l = 0; l < kWarpLanes; ++l) {
        Product& lane = argument_of<Product>(warp, l);
        const uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 4; ++i) lane.c[i] = c[g + i / 2 * 8][2 * t + i % 2];
    }
}

template <float (*Value)(uint16_t)>
Floats4 multiply(const char* what, Floats4 c, Words4 a, uint32_t b0, uint32_t b1, Site site) {
    Product mine = {{c.x, c.y, c.z, c.w}, {a.x, a.y, a.z, a.w}, {b0, b1}};
    meet(*current, what, site, &mine, complete_product<Value>);
    return {mine.c[0], mine.c[1], mine.c[2], mine.c[3]};
}

}  // namespace

Floats4 mma_f16(Floats4 c, Words4 a, uint32_t b0, uint32_t b1, Site site) {
    return multiply<f16_value>("mma", c, a, b0, b1, site);
}
Floats4 mma_bf16(Floats4 c, Words4 a, uint32_t b0, uint32_t b1, Site site) {
    return multiply<bf16_value>("mma", c, a, b0, b1, site);
}

}  // namespace emulator
