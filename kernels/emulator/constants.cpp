#include "constants.h"

#include <stdint.h>

#include <vector>

#ifdef __linux__
#include <link.h>
#endif

namespace emulator {

#ifdef __linux__

namespace {

struct Range {
    uintptr_t low, bytes;
};

// Read-only segments, and those that become so once relocated, of everything that is loaded.
std::vector<Range> find_ranges() {
    std::vector<Range> ranges;
    auto each = [](dl_phdr_info* info, size_t, void* to) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            const bool is_constant = (header.p_type == PT_LOAD && (header.p_flags & PF_W) == 0) || header.p_type == PT_GNU_RELRO;
            if (is_constant) {
                static_cast<std::vector<Range>*>(to)->push_back(
                    {static_cast<uintptr_t>(info->dlpi_addr + header.p_vaddr), static_cast<uintptr_t>(header.p_memsz)});
            }
        }
        return 0;
    };
    dl_iterate_phdr(each, &ranges);
    return ranges;
}

}  // namespace

bool is_constant(const void* address, size_t bytes) {
    static const std::vector<Range> ranges = find_ranges();
    for (const Range& range : ranges) {
        const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - range.low;
        if (offset < range.bytes && bytes <= range.bytes - offset) return true;
    }
    return false;
}

#else

// Where segments cannot be asked for, kernels' constants count as out of bounds: keep them in registers.
bool is_constant(const void*, size_t) { return false; }

#endif

}  // namespace emulator
