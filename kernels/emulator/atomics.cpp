// Global memory that blocks share: atomics, acquire and release, and the loop that waits.
#include "numbers.h"
#include "scheduler.h"

namespace emulator {

namespace {

Lane& begin(const void* address, Site site) {
    Lane& lane = *current;
    lane.site = site;
    if (lane.polled != address) lane.polled = nullptr;
    // What others do in between shows only where they get the chance.
    maybe_preempt(lane);
    return lane;
}

}  // namespace

void add_unordered(float* address, float value, Site site) {
    Lane& lane = begin(nullptr, site);
    look_at_atomic(lane, address, Atomic::kAdd);
    *address = flushed(flushed(*address) + flushed(value));
    note_progress(*lane.launch);
}

// Checked as a read and a write: two that nothing orders are a race.
void add_in_turn(float* address, float value, Site site) {
    Lane& lane = begin(nullptr, site);
    if (lane.launch->options.detector != 0) {
        look_at_read(lane, address, sizeof *address, alignof(float));
        look_at_write(lane, address, sizeof *address, alignof(float));
    }
    *address = flushed(flushed(*address) + flushed(value));
    note_progress(*lane.launch);
}

int32_t fetch_add(int32_t* address, int32_t value, Site site) {
    Lane& lane = begin(nullptr, site);
    look_at_atomic(lane, address, Atomic::kAdd);
    const int32_t old = *address;
    *address = static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(value));
    note_progress(*lane.launch);
    return old;
}

int32_t load_acquire(const int32_t* address, Site site) {
    Lane& lane = begin(address, site);
    const bool orders = lane.launch->sites.enabled("load_acquire", site);
    // A loop that looks at the same place again and again lets others run even if it never says that it waits.
    lane.polls = lane.polled == address ? lane.polls + 1 : 0;
    lane.polled = address;
    if (lane.polls >= 100) wait(lane, State::kSpinning);
    look_at_atomic(lane, address, orders ? Atomic::kAcquire : Atomic::kLoad);
    return *address;
}

void add_release(int32_t* address, int32_t value, Site site) {
    Lane& lane = begin(nullptr, site);
    const bool orders = lane.launch->sites.enabled("add_release", site);
    look_at_atomic(lane, address, orders ? Atomic::kRelease : Atomic::kAdd);
    *address = static_cast<int32_t>(static_cast<uint32_t>(*address) + static_cast<uint32_t>(value));
    note_progress(*lane.launch);
}

void wait_a_little(Site site) {
    Lane& lane = *current;
    lane.site = site;
    lane.polled = nullptr;
    wait(lane, State::kSpinning);
}

}  // namespace emulator
