#include "copies.h"

#include <string.h>

#include "scheduler.h"

namespace emulator {

namespace {

constexpr size_t kCopyBytes = 16;

void carry_out(const Copies::Pending& copy) {
    if (copy.from == nullptr) {
        memset(copy.to, 0, kCopyBytes);
    } else {
        memcpy(copy.to, copy.from, kCopyBytes);
    }
}

}  // namespace

void copy_async(void* shared, const void* global, bool valid, Site site) {
    Lane& lane = *current;
    lane.site = site;
    lane.polled = nullptr;
    look_at_copy(lane, shared, valid ? global : nullptr, kCopyBytes);
    const Copies::Pending copy = {shared, valid ? global : nullptr, lane.copies.committed + 1};
    Launch& launch = *lane.launch;
    const auto timing = static_cast<CopyTiming>(launch.options.copies);
    if (timing == CopyTiming::kEarly || (timing == CopyTiming::kRandom && launch.random.one_in(2))) {
        carry_out(copy);
    } else {
        lane.copies.pending.push_back(copy);
    }
}

void copy_commit(Site site) {
    Lane& lane = *current;
    lane.site = site;
    lane.polled = nullptr;
    if (lane.launch->sites.enabled("copy_commit", site)) ++lane.copies.committed;
    maybe_finish_copies(lane);
}

// Groups complete in the order in which they were committed; copies that belong to none yet are not waited for.
void copy_wait(int pending, Site site) {
    Lane& lane = *current;
    lane.site = site;
    lane.polled = nullptr;
    if (!lane.launch->sites.enabled("copy_wait", site)) return;
    Copies& copies = lane.copies;
    const uint32_t left = static_cast<uint32_t>(pending);
    if (copies.committed < left || copies.committed - left <= copies.completed) return;
    copies.completed = copies.committed - left;
    size_t kept = 0;
    for (const Copies::Pending& copy : copies.pending) {
        if (copy.group <= copies.completed) {
            carry_out(copy);
        } else {
            copies.pending[kept++] = copy;
        }
    }
    copies.pending.resize(kept);
}

void finish_copies(Lane& lane) {
    for (const Copies::Pending& copy : lane.copies.pending) carry_out(copy);
    lane.copies.pending.clear();
}

void maybe_finish_copies(Lane& lane) {
    std::vector<Copies::Pending>& pending = lane.copies.pending;
    Launch& launch = *lane.launch;
    if (pending.empty() || static_cast<CopyTiming>(launch.options.copies) != CopyTiming::kRandom) return;
    if (!launch.random.one_in(4)) return;
    const size_t at = launch.random.below(static_cast<uint32_t>(pending.size()));
    carry_out(pending[at]);
    pending.erase(pending.begin() + static_cast<ptrdiff_t>(at));
}

}  // namespace emulator
