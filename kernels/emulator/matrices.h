// Descriptors of matrices in shared memory, which products of warpgroups read (PTX ISA 9.0, 9.7.15.5.1.2.2).
#pragma once

#include <stdint.h>

#include <vector>

#include "runtime.h"

namespace emulator {

// A piece of shared memory.
struct Span {
    uint32_t offset, bytes;
};

// A matrix with 128-byte swizzle, as lines of chunks (16 bytes, 8 elements).
//   along K    a line is a row of A or a column of B, and has 2 chunks, of what is summed over
//   across K   there are 16 lines, one for each element that is summed over, of `extent` / 8 chunks
class Matrix {
  public:
    // `extent`: rows of A or columns of B.
    Matrix(uint64_t descriptor, uint32_t extent, bool transposed);

    // What is wrong with the descriptor: a fault's name, or null.
    const char* fault() const;

    uint32_t lines() const { return across ? 16 : extent; }
    uint32_t chunks() const { return across ? extent / 8 : 2; }

    // Where in shared memory a chunk lies.
    uint32_t offset(uint32_t line, uint32_t chunk) const;

    // All of it, in as large pieces as there are.
    void append_spans(std::vector<Span>& spans) const;

  private:
    uint64_t bits;
    uint32_t extent;
    bool across;
    uint32_t start, leading, stride;
};

}  // namespace emulator
