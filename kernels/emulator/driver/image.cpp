// Images of kernels: fatbins. Their machine code is not looked at; what runs is the emulator's kernel of the same name. A device
// takes an image that holds code of its generation, or PTX that the driver is new enough for.
#include <string.h>

#include "state.h"

namespace driver {

namespace {

struct Header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;     // of what follows
};

struct Entry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;     // of what follows
    uint32_t compressed_bytes, options;
    uint16_t minor, major;
    uint32_t architecture;
};
static_assert(sizeof(Entry) == 32, "as in a fatbin");

constexpr uint32_t kMagic = 0xba55ed50;
constexpr uint16_t kPtx = 1, kElf = 2;
// Not of CUDA: the names of the kernels in the image, one a line, for the tests' own images.
constexpr uint16_t kNames = 0x7e57;

// Drivers of CUDA 12 are the first to read what nvcc 12 and later compress.
constexpr int kOldestForCode = 12000;

// PTX 7.x came with CUDA 11.x, and so on.
int driver_of_ptx(const Entry& entry) { return (entry.major + 4) * 1000 + entry.minor * 10; }

}  // namespace

Result read_image(const void* image, Module& module) {
    const Settings& settings = state().settings;
    Header header;
    memcpy(&header, image, sizeof header);
    if (header.magic != kMagic || header.header_bytes < sizeof header) return ERROR_INVALID_IMAGE;
    const char* at = static_cast<const char*>(image) + header.header_bytes;
    const char* end = at + header.bytes;
    const int device = settings.major * 10 + settings.minor;
    bool has_code = false, has_ptx = false, too_new = false;
    while (at < end) {
        Entry entry;
        memcpy(&entry, at, sizeof entry);
        if (entry.header_bytes < sizeof entry || entry.bytes > static_cast<uint64_t>(end - at)) return ERROR_INVALID_IMAGE;
        const char* content = at + entry.header_bytes;
        const int architecture = static_cast<int>(entry.architecture);
        if (entry.kind == kNames) {
            module.lists_names = true;
            const std::string text(content, entry.bytes);
            for (size_t from = 0, to; (to = text.find('\n', from)) != std::string::npos; from = to + 1) {
                module.names.insert(text.substr(from, to - from));
            }
        } else if (entry.kind == kElf) {
            has_code |= architecture / 10 == settings.major && architecture <= device;
        } else if (entry.kind == kPtx && architecture <= device) {
            (settings.version >= driver_of_ptx(entry) ? has_ptx : too_new) = true;
        }
        at = content + entry.bytes;
    }
    if (has_code) return settings.version >= kOldestForCode ? SUCCESS : ERROR_INVALID_IMAGE;
    return has_ptx ? SUCCESS : too_new ? ERROR_UNSUPPORTED_PTX_VERSION : ERROR_NO_BINARY_FOR_GPU;
}

}  // namespace driver
