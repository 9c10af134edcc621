#include "faults.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "machine.h"

namespace emulator {

bool same_site(Site a, Site b) { return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0); }

std::string print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[1024];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

std::string describe(const Lane& lane) { return print("thread %u of block %u", lane.index, lane.block->index); }

bool Faults::repeated(const char* name, Site site) {
    for (Fault& fault : list) {
        if (strcmp(fault.name, name) == 0 && same_site(fault.site, site)) {
            ++fault.count;
            ++total;
            return true;
        }
    }
    if (list.size() < kMost) return false;
    ++total;
    return true;
}

void Faults::add(const char* name, Site site, std::string text) {
    if (repeated(name, site)) return;
    list.push_back({name, site, std::move(text), 1});
    ++total;
}

}  // namespace emulator
