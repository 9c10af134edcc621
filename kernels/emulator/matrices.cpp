#include "matrices.h"

namespace emulator {

namespace {

constexpr uint32_t kChunkBytes = 16;
constexpr uint32_t kRowBytes = 128;
constexpr uint32_t kAtomBytes = 1024;       // 8 rows, after which the swizzle repeats itself
constexpr uint32_t kAddressBits = 0x3ffff;
// What holds nothing, and must be zero: between the fields, and a base offset.
constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
constexpr uint64_t kFields = 0x3fff | uint64_t{0x3fff} << 16 | uint64_t{0x3fff} << 32;

uint32_t field(uint64_t bits, uint32_t from) { return (static_cast<uint32_t>(bits >> from) & 0x3fff) << 4; }

// Bits 4 to 6 of an address, xor bits 7 to 9.
uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

}  // namespace

Matrix::Matrix(uint64_t descriptor, uint32_t extent, bool transposed)
    : bits(descriptor), extent(extent), across(transposed), start(field(descriptor, 0)), leading(field(descriptor, 16)),
      stride(field(descriptor, 32)) {}

const char* Matrix::fault() const {
    if ((bits & ~kFields) != kSwizzle128) return "matrix descriptor with an unsupported field";
    // Without a base offset, the pattern repeats itself from multiples of 1024 on.
    if (start % kAtomBytes >= kRowBytes || stride % kAtomBytes != 0) return "matrix not aligned to 1024 bytes";
    if (across && extent > 64 && leading % kAtomBytes != 0) return "matrix not aligned to 1024 bytes";
    // Where two chunks would lie on both sides of a row's end, or 64 columns would begin within one.
    if (start % (across ? kRowBytes : 2 * kChunkBytes) != 0) return "matrix begins within a product's columns";
    return nullptr;
}

// In units of chunks, before the swizzle (CUTLASS calls these the canonical layouts of 128-byte swizzle):
//   along K    line ((8, n) : (8, stride)), chunk (2 : 1)
//   across K   line ((8, 2) : (8, stride)), chunk ((8, n) : (1, leading))
uint32_t Matrix::offset(uint32_t line, uint32_t chunk) const {
    const uint32_t in_line = across ? chunk / 8 * leading + chunk % 8 * kChunkBytes : chunk * kChunkBytes;
    return swizzled((start + line / 8 * stride + line % 8 * kRowBytes + in_line) & kAddressBits);
}

void Matrix::append_spans(std::vector<Span>& spans) const {
    const uint32_t count = chunks();
    // Two chunks of a pair, or eight of a row, lie together in whatever order; a part of a row need not.
    const uint32_t together = !across ? 2 : count % 8 == 0 ? 8 : 1;
    const uint32_t bytes = together * kChunkBytes;
    for (uint32_t line = 0; line < lines(); ++line) {
        for (uint32_t chunk = 0; chunk < count; chunk += together) {
            spans.push_back({offset(line, chunk) / bytes * bytes, bytes});
        }
    }
}

}  // namespace emulator
