#include "readers.h"

#include "machine.h"

namespace emulator {

namespace {

constexpr size_t kSteps = 4096;
constexpr bool is_set(Epoch readers) { return (readers & kSetTag) != 0; }
constexpr uint32_t number_of(Epoch set) { return static_cast<uint32_t>(set) & ~kSetTag; }

}  // namespace

ReaderSets::ReaderSets() : nodes(1), steps(kSteps) {}

Epoch ReaderSets::add(Epoch before, Epoch reader, const Lane& lane) {
    const uint64_t hash = (before * 0x9e3779b97f4a7c15u) ^ (reader * 0xc2b2ae3d27d4eb4fu);
    Step& step = steps[(hash ^ hash >> 29) % kSteps];
    if (step.before == before && step.reader == reader) return step.after;

    // Keeps readers that are still of interest; a set's new nodes come before those that it shares with `before`.
    std::vector<Epoch> kept;
    bool dropped = false, there = false;
    auto look = [&](Epoch other) {
        there |= other == reader;
        if (happened_before(lane, other) && other != reader) {
            dropped = true;
        } else {
            kept.push_back(other);
        }
    };
    if (is_set(before)) {
        for (uint32_t at = number_of(before); at != 0; at = nodes[at].next) look(nodes[at].reader);
    } else {
        look(before);
    }
    Epoch after = before;
    if (!there || dropped) {
        uint32_t first = 0;
        auto push = [&](Epoch each) {
            nodes.push_back({each, first});
            first = static_cast<uint32_t>(nodes.size() - 1);
        };
        if (is_set(before) && !dropped) {
            first = number_of(before);
        } else {
            for (Epoch each : kept) push(each);
        }
        if (!there) push(reader);
        after = nodes[first].next == 0 ? nodes[first].reader : (reader >> 32 << 32 | kSetTag | first);
    }
    step = {before, reader, after};
    return after;
}

Epoch ReaderSets::unordered(const Lane& lane, Epoch readers) const {
    if (!is_set(readers)) return happened_before(lane, readers) ? 0 : readers;
    for (uint32_t at = number_of(readers); at != 0; at = nodes[at].next) {
        if (!happened_before(lane, nodes[at].reader)) return nodes[at].reader;
    }
    return 0;
}

}  // namespace emulator
