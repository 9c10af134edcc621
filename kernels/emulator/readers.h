// Sets of readers. A place in memory remembers who read it since it was last written: one epoch, or the number of a set.
//
// Neighbouring places are read by the same threads in the same order, so equal sets are one set: a step from a set to the set
// with one reader more is looked up before it is made. Lanes of a warp that read at the same time are one node of a set, and
// who read last comes first, so that the set with one lane more differs in one node.
#pragma once

#include <stdint.h>

#include <vector>

#include "clocks.h"

namespace emulator {

class ReaderSets {
  public:
    ReaderSets();

    // The readers `before` and `reader`, without some of those whose reads `knower`, a lane or a party, knows to have happened
    // before.
    template <class Knower>
    Epoch add(Epoch before, Epoch reader, const Knower& knower);

    // A reader of whom `lane` does not know that it has read, or 0. `block` is that of the set's first word.
    Epoch unordered(const Lane& lane, Epoch readers) const;

  private:
    struct Node {
        Epoch reader;       // of threads: the warp's first one
        uint32_t lanes;     // of threads: which, one bit each; else 0
        uint32_t next;      // 0: the last one
    };
    static Node node_of(Epoch reader);
    template <class Knower>
    static bool known(const Node& node, const Knower& knower);

    std::vector<Node> nodes;
    struct Step {
        Epoch before, reader, after;
    };
    std::vector<Step> steps;    // a table by hash, where the newest wins
};

}  // namespace emulator
