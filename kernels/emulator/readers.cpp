#include "readers.h"

#include "machine.h"

namespace emulator {

namespace {

constexpr size_t kSteps = 4096;
constexpr bool is_set(Epoch readers) { return (readers & kSetTag) != 0; }
constexpr uint32_t number_of(Epoch set) { return static_cast<uint32_t>(set) & ~kSetTag; }

}  // namespace

ReaderSets::ReaderSets() : nodes(1), steps(kSteps) {}

namespace {

bool knows(const Lane& lane, Epoch epoch) { return happened_before(lane, epoch); }
bool knows(const Party& party, Epoch epoch) { return party.know(epoch); }

// One lane's read, of a node's.
Epoch lane_of(Epoch reader, uint32_t lane) { return reader + moment(lane, 0); }

}  // namespace

ReaderSets::Node ReaderSets::node_of(Epoch reader) {
    const uint32_t who = who_of(reader);
    if (who >= kCopiesOf) return {reader, 0, 0};
    return {reader - moment(who % kWarpLanes, 0), 1u << who % kWarpLanes, 0};
}

template <class Knower>
bool ReaderSets::known(const Node& node, const Knower& knower) {
    if (node.lanes == 0) return knows(knower, node.reader);
    for (uint32_t left = node.lanes; left != 0; left &= left - 1) {
        if (!knows(knower, lane_of(node.reader, static_cast<uint32_t>(__builtin_ctz(left))))) return false;
    }
    return true;
}

template <class Knower>
Epoch ReaderSets::add(Epoch before, Epoch reader, const Knower& knower) {
    const uint64_t hash = (before * 0x9e3779b97f4a7c15u) ^ (reader * 0xc2b2ae3d27d4eb4fu);
    Step& step = steps[(hash ^ hash >> 29) % kSteps];
    if (step.before == before && step.reader == reader) return step.after;

    Node added = node_of(reader);
    const Node alone = node_of(before);
    auto each_before = [&](auto look) {
        if (!is_set(before)) return look(alone);
        for (uint32_t at = number_of(before); at != 0; at = nodes[at].next) look(nodes[at]);
    };
    bool there = false;
    each_before([&](const Node& node) { there |= node.reader == added.reader && (node.lanes & added.lanes) == added.lanes; });
    if (there) {
        step = {before, reader, before};
        return before;
    }
    const Node first = is_set(before) ? nodes[number_of(before)] : alone;
    uint32_t rest = 0;
    if (first.reader == added.reader) {
        // The same lanes and one more. What stays of the lane's earlier reads is known where this one is.
        added.lanes |= first.lanes;
        rest = first.next;
    } else {
        // Keeps, in their order, readers that are still of interest: not those that have all read again since.
        std::vector<Node> kept;
        auto same_warp = [&](const Node& node) { return node.reader >> kTimeBits == added.reader >> kTimeBits; };
        each_before([&](const Node& node) {
            if (node.reader == added.reader) {
                added.lanes |= node.lanes;
                return;
            }
            if (same_warp(node)) {
                uint32_t since = added.lanes;
                for (const Node& other : kept) {
                    if (same_warp(other) && other.reader > node.reader) since |= other.lanes;
                }
                if ((node.lanes & ~since) == 0) return;
            }
            if (!known(node, knower)) kept.push_back(node);
        });
        for (size_t i = kept.size(); i-- > 0;) {
            nodes.push_back({kept[i].reader, kept[i].lanes, rest});
            rest = static_cast<uint32_t>(nodes.size() - 1);
        }
    }
    Epoch after = reader;
    if (rest != 0 || (added.lanes & (added.lanes - 1)) != 0) {
        added.next = rest;
        nodes.push_back(added);
        after = reader >> 32 << 32 | kSetTag | static_cast<uint32_t>(nodes.size() - 1);
    }
    step = {before, reader, after};
    return after;
}

template Epoch ReaderSets::add(Epoch, Epoch, const Lane&);
template Epoch ReaderSets::add(Epoch, Epoch, const Party&);

Epoch ReaderSets::unordered(const Lane& lane, Epoch readers) const {
    if (!is_set(readers)) return happened_before(lane, readers) ? 0 : readers;
    for (uint32_t at = number_of(readers); at != 0; at = nodes[at].next) {
        const Node& node = nodes[at];
        if (node.lanes == 0 && !happened_before(lane, node.reader)) return node.reader;
        for (uint32_t left = node.lanes; left != 0; left &= left - 1) {
            const Epoch each = lane_of(node.reader, static_cast<uint32_t>(__builtin_ctz(left)));
            if (!happened_before(lane, each)) return each;
        }
    }
    return 0;
}

}  // namespace emulator
