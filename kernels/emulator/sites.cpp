#include "sites.h"

#include <string.h>

#include "faults.h"

namespace emulator {

void Sites::disable(const char* file_end, int line) {
    disabled_file = file_end;
    disabled_line = line;
}

bool Sites::enabled(const char* kind, Site site) {
    Known& slot = known[static_cast<unsigned>(site.line) % 64];
    if (slot.file != site.file || slot.line != site.line || slot.kind != kind) {
        slot = {site.file, kind, site.line, look_up(kind, site)};
    }
    return slot.enabled;
}

bool Sites::look_up(const char* kind, Site site) {
    for (const Entry& entry : entries) {
        if (same_site(entry.site, site) && strcmp(entry.kind, kind) == 0) return !entry.disabled;
    }
    bool disabled = false;
    if (disabled_file != nullptr && site.line == disabled_line) {
        const size_t whole = strlen(site.file), end = strlen(disabled_file);
        disabled = end <= whole && strcmp(site.file + whole - end, disabled_file) == 0;
    }
    entries.push_back({kind, site, disabled});
    return !disabled;
}

}  // namespace emulator
