#include "numbers.h"

#include <limits>

#include "runtime.h"

namespace emulator {

uint16_t bf16_bits(float x) {
    if (x != x) return 0x7fff;
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t f16_bits(float x) {
    if (x != x) return 0x7fff;
    const uint32_t bits = bits_of(x);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const float magnitude = float_of(bits & 0x7fffffffu);
    if (magnitude >= 65520.0f) return sign | 0x7c00;     // rounds to 2^16, which is infinity
    if (magnitude < 0x1p-14f) {
        // Subnormal: adding 2^-1 leaves multiples of 2^-24, rounded as wanted.
        return sign | static_cast<uint16_t>(bits_of(magnitude + 0.5f) - bits_of(0.5f));
    }
    const uint32_t rebiased = (bits & 0x7fffffffu) - (112u << 23);
    return sign | static_cast<uint16_t>((rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
}

uint32_t pack_f16(float low, float high) { return f16_bits(low) | static_cast<uint32_t>(f16_bits(high)) << 16; }
uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | static_cast<uint32_t>(bf16_bits(high)) << 16; }
float f16_to_float(uint16_t bits) { return f16_value(bits); }

float exp2_flushed(float x) { return flushed(std::exp2(x)); }

float sqrt_flushed(float x) { return std::sqrt(flushed(x)); }

// PTX ISA 9.7.3.8, div.approx.ftz: subnormal numbers are 0, and so is a quotient by more than 2^126, that of infinity NaN.
float divide_flushed(float a, float b) {
    a = flushed(a);
    b = flushed(b);
    if (std::fabs(b) > 0x1p126f && std::isfinite(b)) {
        return std::isfinite(a) ? std::copysign(0.0f, a) * b : std::numeric_limits<float>::quiet_NaN();
    }
    return flushed(a / b);
}

}  // namespace emulator
