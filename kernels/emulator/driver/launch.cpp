// A launch, when its turn has come: the emulator runs the kernel of that name over the memory that there is.
#include <string.h>

#include "state.h"

namespace driver {

namespace {

struct Report {
    const LaunchRequest& request;
    Result result = SUCCESS;
};

void note_fault(void* to, const char* name, const char* text) {
    Report& report = *static_cast<Report*>(to);
    say("%s: %s: %s", report.request.function->name.c_str(), name, text);
    if (report.result != SUCCESS) return;
    report.result = strcmp(name, "out of bounds") == 0 ? ERROR_ILLEGAL_ADDRESS
                    : strcmp(name, "misaligned") == 0  ? ERROR_MISALIGNED_ADDRESS
                                                       : ERROR_LAUNCH_FAILED;
}

void ignore_site(void*, const char*, const char*, int32_t) {}

}  // namespace

Result run_launch(Context& context, const LaunchRequest& request, Lock& lock) {
    if (request.function->module->destroyed) {
        say("%s is launched by a graph, and its module is no longer loaded", request.function->name.c_str());
        return ERROR_LAUNCH_FAILED;
    }
    std::vector<EmulatorRegion> regions;
    for (const auto& [address, allocation] : context.memory.allocations) {
        if (!allocation.live) continue;
        regions.push_back({reinterpret_cast<void*>(address), allocation.bytes, 1, allocation.initialised});
    }
    // Parameters as the struct that they are, at any of its alignments.
    std::vector<long double> params(request.params.size() / sizeof(long double) + 1);
    memcpy(params.data(), request.params.data(), request.params.size());
    const EmulatorLaunch launch = {request.function->name.c_str(), request.blocks, request.threads, request.shared_bytes,
                                   static_cast<uint32_t>(regions.size()), params.data(), request.params.size(), regions.data()};
    // Another order each time: results may not depend on it.
    const uint64_t number = state().launches++;
    const EmulatorOptions options = {static_cast<uint32_t>(number % 4), static_cast<uint32_t>(number / 4 % 3), number, 2, 1,
                                     nullptr, 0, 0};
    Report report = {request};
    Access access(context.memory);
    lock.unlock();
    inducer_emulator_launch(&launch, &options, &report, note_fault, ignore_site);
    lock.lock();

    // What a kernel is told of may have been written by it.
    for (size_t i = 0; i + sizeof(uintptr_t) <= request.params.size(); i += sizeof(uintptr_t)) {
        uintptr_t address;
        memcpy(&address, &request.params[i], sizeof address);
        if (Allocation* named = context.memory.find(address, 1)) named->initialised = true;
    }
    return report.result;
}

}  // namespace driver
