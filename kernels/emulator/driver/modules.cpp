// Modules, and the functions in them.
#include <algorithm>

#include "state.h"

using namespace driver;

namespace {

// Invented, but possible: what a compiled kernel takes is not known here.
constexpr int kRegisters = 128;

struct Search {
    const char* name;
    std::unique_ptr<Function> found;
};

// Looks a name up in the emulator's table.
std::unique_ptr<Function> find_kernel(const char* name) {
    Search search = {name, nullptr};
    inducer_emulator_kernels(&search, [](void* to, const char* each, uint32_t threads, uint32_t shared, uint64_t params) {
        Search& search = *static_cast<Search*>(to);
        if (search.name != std::string(each)) return;
        search.found.reset(new Function{nullptr, each, threads, shared, static_cast<size_t>(params)});
    });
    return std::move(search.found);
}

bool is_function(const Function* function) {
    auto found = state().functions.find(function);
    return found != state().functions.end() && !found->second->module->destroyed;
}

Result load(Module** module, const void* image) {
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    if (current->error != SUCCESS) return current->error;
    if (image == nullptr) return ERROR_INVALID_VALUE;
    auto loaded = std::unique_ptr<Module>(new Module{current});
    if (const Result result = read_image(image, *loaded)) return result;
    *module = state().modules.add(std::move(loaded));
    return SUCCESS;
}

}  // namespace

DRIVER_ENTRY cuModuleLoadData(Module** module, const void* image) {
    Call call(__func__);
    return load(module, image);
}

DRIVER_ENTRY cuModuleLoadDataEx(Module** module, const void* image, unsigned, void*, void**) {
    Call call(__func__);
    return load(module, image);
}

// Waits for kernels that are still to run: a driver could not take their code away before.
DRIVER_ENTRY cuModuleUnload(Module* module) {
    Call call(__func__);
    if (!state().modules.has(module)) return ERROR_INVALID_HANDLE;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    const Result result = finish_all(*module->context, call.lock);
    module->destroyed = true;
    return result;
}

DRIVER_ENTRY cuModuleGetFunction(Function** function, Module* module, const char* name) {
    Call call(__func__);
    if (!state().modules.has(module)) return ERROR_INVALID_HANDLE;
    if (module->lists_names && module->names.count(name) == 0) return ERROR_NOT_FOUND;
    std::unique_ptr<Function>& place = module->functions[name];
    if (place == nullptr) place = find_kernel(name);
    if (place == nullptr) {
        module->functions.erase(name);
        return ERROR_NOT_FOUND;
    }
    place->module = module;
    state().functions[place.get()] = place.get();
    *function = place.get();
    return SUCCESS;
}

DRIVER_ENTRY cuFuncGetAttribute(int* value, FunctionAttribute attribute, Function* function) {
    Call call(__func__);
    if (!is_function(function)) return ERROR_INVALID_HANDLE;
    switch (attribute) {
        case FunctionAttribute::kMaxThreadsPerBlock: *value = static_cast<int>(function->threads); break;
        case FunctionAttribute::kSharedBytes:
        case FunctionAttribute::kLocalBytes: *value = 0; break;
        case FunctionAttribute::kRegisters: *value = kRegisters; break;
        case FunctionAttribute::kMaxDynamicShared: *value = static_cast<int>(function->dynamic_shared); break;
        default: say("attribute %d of a function is not emulated", static_cast<int>(attribute)); return ERROR_NOT_SUPPORTED;
    }
    return SUCCESS;
}

DRIVER_ENTRY cuFuncSetAttribute(Function* function, FunctionAttribute attribute, int value) {
    Call call(__func__);
    if (!is_function(function)) return ERROR_INVALID_HANDLE;
    if (attribute == FunctionAttribute::kCarveout) return value >= -1 && value <= 100 ? SUCCESS : ERROR_INVALID_VALUE;
    if (attribute != FunctionAttribute::kMaxDynamicShared) {
        say("attribute %d of a function is not emulated", static_cast<int>(attribute));
        return ERROR_NOT_SUPPORTED;
    }
    if (value < 0 || static_cast<uint32_t>(value) > state().settings.shared_bytes) return ERROR_INVALID_VALUE;
    function->dynamic_shared = std::max(48u * 1024, static_cast<uint32_t>(value));
    return SUCCESS;
}

DRIVER_ENTRY cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, size_t shared_bytes) {
    Call call(__func__);
    if (!is_function(function)) return ERROR_INVALID_HANDLE;
    if (threads <= 0) return ERROR_INVALID_VALUE;
    // A block takes 1 KB of shared memory more than it says.
    const size_t by_shared = (state().settings.shared_bytes + 1024) / (shared_bytes + 1024);
    const int by_threads = std::min(2048, 65536 / kRegisters) / threads;
    *blocks = shared_bytes > function->dynamic_shared ? 0 : std::min(by_threads, static_cast<int>(by_shared));
    return SUCCESS;
}

DRIVER_ENTRY cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                            unsigned block_z, unsigned shared_bytes, Stream* handle, void** params, void** extra) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr || !is_function(function) || function->module->context != stream->context) return ERROR_INVALID_HANDLE;
    const bool has_blocks = grid_x > 0 && grid_x <= 0x7fffffff && grid_y > 0 && grid_y <= 65535 && grid_z > 0 && grid_z <= 65535;
    const uint64_t threads = uint64_t{block_x} * block_y * block_z;
    if (!has_blocks || threads == 0 || threads > function->threads || params == nullptr) return ERROR_INVALID_VALUE;
    if (shared_bytes > function->dynamic_shared) return ERROR_INVALID_VALUE;
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || extra != nullptr) {
        say("launches of %s in more than one dimension are not emulated", function->name.c_str());
        return ERROR_NOT_SUPPORTED;
    }
    const char* first = static_cast<const char*>(params[0]);
    LaunchRequest request = {function, grid_x, block_x, shared_bytes, {first, first + function->params_bytes}};
    return enqueue(*stream, [context = stream->context, request = std::move(request)](Lock& lock) {
        return run_launch(*context, request, lock);
    });
}
