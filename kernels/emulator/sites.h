// The barriers, fences, waits, commits and releases that a launch came to, and the one that it leaves out.
#pragma once

#include <stdint.h>

#include <vector>

#include "runtime.h"

namespace emulator {

class Sites {
  public:
    struct Entry {
        const char* kind;
        Site site;
        bool disabled;
    };

    // What to leave out: the end of a file's name, and a line.
    void disable(const char* file_end, int line);

    // Notes the place. False where it must do nothing.
    bool enabled(const char* kind, Site site);

    const std::vector<Entry>& all() const { return entries; }

  private:
    bool look_up(const char* kind, Site site);

    const char* disabled_file = nullptr;
    int disabled_line = 0;
    std::vector<Entry> entries;
    // Places that were looked up lately: literals of one source have one address.
    struct Known {
        const char* file;
        const char* kind;
        int line;
        bool enabled;
    };
    Known known[64] = {};
};

}  // namespace emulator
