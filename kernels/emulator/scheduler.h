// Who runs next, and what happens when nobody can.
#pragma once

#include <string>

#include "machine.h"

namespace emulator {

// Runs all blocks of a prepared launch.
void run(Launch& launch);

// The running lane waits until somebody wakes it.
void wait(Lane& lane, State state);

// Lanes of a warp can run again.
void wake(Warp& warp, uint32_t lanes);

// Under the random policy others may run now, sometimes.
void maybe_preempt(Lane& lane);

// Something happened that a spinning thread may wait for.
inline void note_progress(Launch& launch) { ++launch.progress; }

// Ends the launch. The running lane does not go on.
[[noreturn]] void stop(Launch& launch);

// Reports a fault of the running lane at the place that it has come to, and ends the launch; `text` goes on behind the place.
[[noreturn]] void refuse(Lane& lane, const char* name, const std::string& text);

// Reports lanes that do not all come to the same collective, and ends the launch.
[[noreturn]] void diverged(Lane& lane, const char* what, Site site, const char* others, Site others_site);

}  // namespace emulator
