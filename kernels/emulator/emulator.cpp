// The table of kernels, and the way in.
#include "emulator.h"

#include <string.h>

#include <algorithm>

#include "scheduler.h"

namespace emulator {

namespace {

// Registrars run before main, in any order.
Kernel*& first_kernel() {
    static Kernel* first = nullptr;
    return first;
}

const Kernel* find(const char* name) {
    for (const Kernel* k = first_kernel(); k != nullptr; k = k->next) {
        if (strcmp(k->name, name) == 0) return k;
    }
    return nullptr;
}

// What is wrong with a request, or nothing.
std::string refuse(const EmulatorLaunch& request, const Kernel* kernel, const EmulatorOptions& options) {
    if (kernel == nullptr) return print("no kernel is called %s", request.kernel);
    if (request.threads != kernel->threads) return print("%u threads, not %u", request.threads, kernel->threads);
    if (request.threads == 0 || request.threads % kWarpLanes != 0 || request.threads > kMostThreads) {
        return print("%u threads are no whole warps, or more than %u", request.threads, kMostThreads);
    }
    if (request.shared_bytes < kernel->shared_bytes) {
        return print("%u bytes of shared memory, not %u", request.shared_bytes, kernel->shared_bytes);
    }
    if (request.params_bytes != kernel->params_bytes) {
        return print("%llu bytes of parameters, not %llu", static_cast<unsigned long long>(request.params_bytes),
                     static_cast<unsigned long long>(kernel->params_bytes));
    }
    if (request.grid == 0) return "a grid of no blocks";
    if (request.grid > kMostBlocks) return print("a grid of more than %u blocks", kMostBlocks);
    if (options.policy > 3 || options.copies > 2) return "an unknown policy or timing";
    return {};
}

void build(Launch& launch) {
    const uint32_t resident =
        std::max(1u, std::min(launch.options.resident_blocks, launch.request->grid));
    launch.blocks.resize(resident);
    for (Block& block : launch.blocks) {
        block.launch = &launch;
        block.lanes.resize(launch.threads);
        block.warps.resize(launch.threads / kWarpLanes);
        for (uint32_t w = 0; w < block.warps.size(); ++w) {
            block.warps[w].block = &block;
            block.warps[w].index = w;
            block.warps[w].lanes = &block.lanes[w * kWarpLanes];
            launch.warps.push_back(&block.warps[w]);
        }
        block.warpgroups.resize(launch.threads / kWarpgroupLanes);
        for (uint32_t g = 0; g < block.warpgroups.size(); ++g) {
            Warpgroup& warpgroup = block.warpgroups[g];
            warpgroup.block = &block;
            warpgroup.index = g;
            warpgroup.warps = &block.warps[g * kWarpgroupWarps];
            for (uint32_t w = 0; w < kWarpgroupWarps; ++w) warpgroup.warps[w].warpgroup = &warpgroup;
        }
        for (uint32_t i = 0; i < launch.threads; ++i) {
            Lane& lane = block.lanes[i];
            lane.launch = &launch;
            lane.block = &block;
            lane.warp = &block.warps[i / kWarpLanes];
            lane.index = i;
            lane.lane = i % kWarpLanes;
        }
    }
}

}  // namespace

__thread Lane* current __attribute__((tls_model("initial-exec"))) = nullptr;

Registrar::Registrar(const char* name, uint32_t threads, uint32_t shared_bytes, size_t params_bytes, void (*body)(const void*))
    : kernel{name, threads, shared_bytes, params_bytes, body, first_kernel()} {
    first_kernel() = &kernel;
}

}  // namespace emulator

using namespace emulator;

uint64_t inducer_emulator_launch(const EmulatorLaunch* request, const EmulatorOptions* options, void* context,
                                 EmulatorFault fault, EmulatorSite site) {
    Launch launch;
    launch.kernel = find(request->kernel);
    launch.request = request;
    launch.options = *options;
    launch.threads = request->threads;
    launch.random.state = options->seed;
    launch.sites.disable(options->disabled_file, options->disabled_line);
    const std::string refusal = refuse(*request, launch.kernel, *options);
    if (!refusal.empty()) {
        fault(context, "launch refused", refusal.c_str());
        return 1;
    }
    if (const char* wrong = launch.global.set(*request, options->detector != 0)) {
        fault(context, "launch refused", wrong);
        return 1;
    }
    build(launch);
    run(launch);
    for (const Fault& each : launch.faults.list) {
        std::string text = each.text;
        if (each.count > 1) text += print(" (%llu times)", static_cast<unsigned long long>(each.count));
        fault(context, each.name, text.c_str());
    }
    for (const Sites::Entry& each : launch.sites.all()) site(context, each.kind, each.site.file, each.site.line);
    return launch.faults.total;
}

void inducer_emulator_kernels(void* context, EmulatorKernel each) {
    for (const Kernel* k = first_kernel(); k != nullptr; k = k->next) {
        each(context, k->name, k->threads, k->shared_bytes, k->params_bytes);
    }
}
