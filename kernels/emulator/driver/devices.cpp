// Devices and their primary contexts.
#include <string.h>

#include "state.h"

using namespace driver;

namespace {

bool is_device(int device) { return device >= 0 && device < state().settings.devices; }

}  // namespace

DRIVER_ENTRY cuInit(unsigned flags) {
    Call call(__func__);
    if (flags != 0) return ERROR_INVALID_VALUE;
    if (state().settings.devices == 0) return ERROR_NO_DEVICE;
    state().initialised = true;
    return SUCCESS;
}

DRIVER_ENTRY cuDriverGetVersion(int* version) {
    Call call(__func__);
    *version = state().settings.version;
    return SUCCESS;
}

DRIVER_ENTRY cuDeviceGetCount(int* count) {
    Call call(__func__);
    if (!state().initialised) return ERROR_NOT_INITIALIZED;
    *count = state().settings.devices;
    return SUCCESS;
}

DRIVER_ENTRY cuDeviceGet(int* device, int ordinal) {
    Call call(__func__);
    if (!state().initialised) return ERROR_NOT_INITIALIZED;
    if (!is_device(ordinal)) return ERROR_INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

DRIVER_ENTRY cuDeviceGetName(char* name, int length, int device) {
    Call call(__func__);
    if (!is_device(device)) return ERROR_INVALID_DEVICE;
    if (length <= 0) return ERROR_INVALID_VALUE;
    const char* text = "emulated CUDA device";
    strncpy(name, text, static_cast<size_t>(length) - 1);
    name[length - 1] = 0;
    return SUCCESS;
}

DRIVER_ENTRY cuDeviceTotalMem_v2(size_t* bytes, int device) {
    Call call(__func__);
    if (!is_device(device)) return ERROR_INVALID_DEVICE;
    *bytes = state().settings.memory_bytes;
    return SUCCESS;
}

DRIVER_ENTRY cuDeviceGetAttribute(int* value, DeviceAttribute attribute, int device) {
    Call call(__func__);
    if (!is_device(device)) return ERROR_INVALID_DEVICE;
    const Settings& settings = state().settings;
    switch (attribute) {
        case DeviceAttribute::kMaxThreadsPerBlock: *value = 1024; break;
        case DeviceAttribute::kMaxSharedPerBlock: *value = 48 * 1024; break;
        case DeviceAttribute::kWarpSize: *value = 32; break;
        case DeviceAttribute::kMultiprocessors: *value = 4; break;
        case DeviceAttribute::kThreadsPerMultiprocessor: *value = 2048; break;
        case DeviceAttribute::kMajor: *value = settings.major; break;
        case DeviceAttribute::kMinor: *value = settings.minor; break;
        case DeviceAttribute::kSharedPerMultiprocessor: *value = static_cast<int>(settings.shared_bytes) + 1024; break;
        case DeviceAttribute::kRegistersPerMultiprocessor: *value = 65536; break;
        case DeviceAttribute::kSharedPerBlockOptin: *value = static_cast<int>(settings.shared_bytes); break;
        case DeviceAttribute::kMemoryPools: *value = 1; break;
        default: say("attribute %d of a device is not emulated", static_cast<int>(attribute)); return ERROR_NOT_SUPPORTED;
    }
    return SUCCESS;
}

DRIVER_ENTRY cuDevicePrimaryCtxRetain(Context** context, int device) {
    Call call(__func__);
    if (!state().initialised) return ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return ERROR_INVALID_DEVICE;
    *context = state().contexts[static_cast<size_t>(device)].get();
    ++(*context)->retained;
    return SUCCESS;
}

// With the last one who has retained it, everything in a context is gone, but for its error: a GPU's survives likewise.
DRIVER_ENTRY cuDevicePrimaryCtxRelease_v2(int device) {
    Call call(__func__);
    if (!is_device(device)) return ERROR_INVALID_DEVICE;
    Context& context = *state().contexts[static_cast<size_t>(device)];
    if (context.retained == 0) return ERROR_INVALID_CONTEXT;
    if (--context.retained > 0) return SUCCESS;
    finish_all(context, call.lock);
    auto destroy = [&](auto& handles) {
        for (const auto& [handle, object] : handles.objects) object->destroyed |= object->context == &context;
    };
    destroy(state().streams), destroy(state().events), destroy(state().modules);
    destroy(state().graphs), destroy(state().executables);
    for (auto& [address, allocation] : context.memory.allocations) {
        if (!allocation.freed) context.memory.allocated -= allocation.bytes;
        allocation.freed = true, allocation.live = false;
    }
    return SUCCESS;
}

DRIVER_ENTRY cuCtxGetCurrent(Context** context) {
    Call call(__func__);
    *context = current;
    return SUCCESS;
}

DRIVER_ENTRY cuCtxSetCurrent(Context* context) {
    Call call(__func__);
    for (const auto& each : state().contexts) {
        if (each.get() == context && context->retained == 0) return ERROR_INVALID_CONTEXT;
    }
    current = context;
    return SUCCESS;
}

DRIVER_ENTRY cuCtxSynchronize() {
    Call call(__func__);
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    return finish_all(*current, call.lock);
}

DRIVER_ENTRY cuMemGetInfo_v2(size_t* free, size_t* total) {
    Call call(__func__);
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    *total = state().settings.memory_bytes;
    *free = *total - current->memory.allocated;
    return SUCCESS;
}

DRIVER_ENTRY cuGetErrorName(Result result, const char** name) {
    switch (result) {
#define CASE(id, value, text) \
    case id: *name = "CUDA_" #id; return SUCCESS;
        RESULTS(CASE)
#undef CASE
    }
    *name = nullptr;
    return ERROR_INVALID_VALUE;
}

DRIVER_ENTRY cuGetErrorString(Result result, const char** description) {
    switch (result) {
#define CASE(id, value, text) \
    case id: *description = text; return SUCCESS;
        RESULTS(CASE)
#undef CASE
    }
    *description = nullptr;
    return ERROR_INVALID_VALUE;
}
