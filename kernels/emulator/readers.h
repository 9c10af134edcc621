// Sets of readers. A place in memory remembers who read it since it was last written: one epoch, or the number of a set.
//
// Neighbouring places are read by the same threads in the same order, so equal sets are one set: a step from a set to the set
// with one reader more is looked up before it is made.
#pragma once

#include <stdint.h>

#include <vector>

#include "clocks.h"

namespace emulator {

class ReaderSets {
  public:
    ReaderSets();

    // The readers `before` and `reader`, without those whose reads `lane` knows to have happened before.
    Epoch add(Epoch before, Epoch reader, const Lane& lane);

    // A reader of whom `lane` does not know that it has read, or 0. `block` is that of the set's first word.
    Epoch unordered(const Lane& lane, Epoch readers) const;

  private:
    struct Node {
        Epoch reader;
        uint32_t next;      // 0: the last one
    };
    std::vector<Node> nodes;
    struct Step {
        Epoch before, reader, after;
    };
    std::vector<Step> steps;    // a table by hash, where the newest wins
};

}  // namespace emulator
