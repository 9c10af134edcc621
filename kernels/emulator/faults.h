// The faults of a launch, each distinct one once.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "runtime.h"

namespace emulator {

struct Lane;

bool same_site(Site a, Site b);

// printf to a string.
__attribute__((format(printf, 1, 2))) std::string print(const char* format, ...);

// "thread 37 of block 2".
std::string describe(const Lane& lane);

struct Fault {
    const char* name;
    Site site;
    std::string text;
    uint64_t count;
};

class Faults {
  public:
    // Whether a fault of this name at this place is known already, or no more are kept; counts it if so. Spares its text.
    bool repeated(const char* name, Site site);
    void add(const char* name, Site site, std::string text);

    std::vector<Fault> list;
    uint64_t total = 0;

  private:
    static constexpr size_t kMost = 20;
};

}  // namespace emulator
