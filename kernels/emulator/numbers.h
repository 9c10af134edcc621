// 16-bit floats: conversions that the compiler can vectorise where whole fragments are converted. Subnormal numbers as 0.
#pragma once

#include <stdint.h>
#include <string.h>

#include <cfloat>
#include <cmath>

namespace emulator {

inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// As instructions with .ftz, and additions in global memory, take and give numbers.
inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

inline float bf16_value(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

// The exponent is moved to its place and its bias corrected by a multiplication, which also normalises subnormal numbers.
inline float f16_value(uint16_t bits) {
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    uint32_t value = bits_of(float_of(magnitude) * float_of(0x77800000u));    // times 2^112
    value |= magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
    return float_of(value | sign);
}

// Rounded to nearest, ties to even; NaN becomes 0x7fff, as cvt does.
uint16_t bf16_bits(float x);
uint16_t f16_bits(float x);

}  // namespace emulator
