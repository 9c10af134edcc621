// Allocations, copies and fills.
#include <string.h>

#include "state.h"

using namespace driver;

namespace {

uintptr_t address_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }
void* pointer_to(uintptr_t address) { return reinterpret_cast<void*>(address); }

bool is_pinned(const void* host, size_t bytes) {
    auto after = state().pinned.upper_bound(address_of(host));
    if (after == state().pinned.begin()) return false;
    const auto& [start, memory] = *--after;
    const size_t offset = address_of(host) - start;
    return offset <= memory.size() && bytes <= memory.size() - offset;
}

// The work of a copy or fill: looks, when its turn comes, whether device memory is there.
struct Range {
    uintptr_t address;
    size_t bytes;
    bool written;
};

Work on_device(Context& context, const char* what, std::vector<Range> ranges, std::function<void()> act) {
    return [&context, what, ranges = std::move(ranges), act = std::move(act)](Lock&) {
        for (const Range& range : ranges) {
            Allocation* allocation = context.memory.find(range.address, range.bytes);
            if (allocation == nullptr || !allocation->live) {
                say("%s: %zu bytes at 0x%zx are no memory of device %d at this point of the stream", what, range.bytes,
                    range.address, context.device);
                return ERROR_ILLEGAL_ADDRESS;
            }
            allocation->initialised |= range.written;
        }
        Access access(context.memory);
        act();
        return SUCCESS;
    };
}

bool was_allocated(Context& context, uintptr_t address, size_t bytes) {
    return context.memory.find(address, bytes) != nullptr;
}

// Pageable memory is read before the call returns; what is pinned, when the copy's turn comes.
Result to_device(Stream* stream, uintptr_t to, const void* from, size_t bytes) {
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (bytes == 0) return SUCCESS;
    if (from == nullptr || !was_allocated(*stream->context, to, bytes)) return ERROR_INVALID_VALUE;
    const char* what = "copy to the device";
    if (is_pinned(from, bytes)) {
        return enqueue(*stream, on_device(*stream->context, what, {{to, bytes, true}}, [=] { memcpy(pointer_to(to), from, bytes); }));
    }
    // Replays would read memory that nobody keeps.
    if (stream->capture != nullptr) return spoil(*stream->capture, ERROR_STREAM_CAPTURE_UNSUPPORTED);
    const char* first = static_cast<const char*>(from);
    auto copy = std::make_shared<std::vector<char>>(first, first + bytes);
    return enqueue(*stream, on_device(*stream->context, what, {{to, bytes, true}},
                                      [=] { memcpy(pointer_to(to), copy->data(), bytes); }));
}

// Pageable memory is written before the call returns; what is pinned, when the copy's turn comes.
Result from_device(Stream* stream, void* to, uintptr_t from, size_t bytes, Lock& lock) {
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (bytes == 0) return SUCCESS;
    if (to == nullptr || !was_allocated(*stream->context, from, bytes)) return ERROR_INVALID_VALUE;
    const bool pinned = is_pinned(to, bytes);
    if (!pinned && stream->capture != nullptr) return spoil(*stream->capture, ERROR_STREAM_CAPTURE_UNSUPPORTED);
    const Result result = enqueue(*stream, on_device(*stream->context, "copy from the device", {{from, bytes, false}},
                                                     [=] { memcpy(to, pointer_to(from), bytes); }));
    return result != SUCCESS || pinned ? result : finish(*stream, stream->enqueued, lock);
}

Result within_device(Stream* stream, uintptr_t to, uintptr_t from, size_t bytes) {
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (bytes == 0) return SUCCESS;
    Context& context = *stream->context;
    if (!was_allocated(context, to, bytes) || !was_allocated(context, from, bytes)) return ERROR_INVALID_VALUE;
    return enqueue(*stream, on_device(context, "copy within the device", {{from, bytes, false}, {to, bytes, true}},
                                      [=] { memmove(pointer_to(to), pointer_to(from), bytes); }));
}

Result fill(Stream* stream, uintptr_t at, unsigned char value, size_t bytes) {
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (bytes == 0) return SUCCESS;
    if (!was_allocated(*stream->context, at, bytes)) return ERROR_INVALID_VALUE;
    return enqueue(*stream, on_device(*stream->context, "fill", {{at, bytes, true}}, [=] { memset(pointer_to(at), value, bytes); }));
}

// A call that waits: on the default stream, which nothing else waits for.
template <class Enqueue>
Result at_once(Lock& lock, Enqueue put) {
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    Stream& stream = current->default_stream;
    const Result result = put(&stream);
    return result != SUCCESS ? result : finish(stream, stream.enqueued, lock);
}

// Notes that an allocation is to be freed. False if there is none to free.
bool give_up(Context& context, uintptr_t address) {
    auto found = context.memory.allocations.find(address);
    if (found == context.memory.allocations.end() || found->second.freed) return false;
    found->second.freed = true;
    context.memory.allocated -= found->second.bytes;
    return true;
}

}  // namespace

DRIVER_ENTRY cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
    Call call(__func__);
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    if (current->error != SUCCESS) return current->error;
    if (bytes == 0) return ERROR_INVALID_VALUE;
    *address = current->memory.allocate(bytes, true);
    return *address == 0 ? ERROR_OUT_OF_MEMORY : SUCCESS;
}

// The memory is there for the stream's own later work, and for who waits for that.
DRIVER_ENTRY cuMemAllocAsync(uintptr_t* address, size_t bytes, Stream* handle) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (const Result refused = refuse_in_capture(stream)) return refused;
    Context& context = *stream->context;
    if (context.error != SUCCESS) return context.error;
    if (bytes == 0) return ERROR_INVALID_VALUE;
    const uintptr_t low = context.memory.allocate(bytes, false);
    if (low == 0) return ERROR_OUT_OF_MEMORY;
    *address = low;
    return enqueue(*stream, [&context, low](Lock&) {
        context.memory.allocations[low].live = true;
        return SUCCESS;
    });
}

DRIVER_ENTRY cuMemFree_v2(uintptr_t address) {
    Call call(__func__);
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    const Result result = finish_all(*current, call.lock);
    if (!give_up(*current, address)) return ERROR_INVALID_VALUE;
    current->memory.release(address);
    return result;
}

DRIVER_ENTRY cuMemFreeAsync(uintptr_t address, Stream* handle) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (const Result refused = refuse_in_capture(stream)) return refused;
    Context& context = *stream->context;
    if (!give_up(context, address)) return ERROR_INVALID_VALUE;
    return enqueue(*stream, [&context, address](Lock&) {
        context.memory.release(address);
        return SUCCESS;
    });
}

DRIVER_ENTRY cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    Call call(__func__);
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    if (bytes == 0) return ERROR_INVALID_VALUE;
    std::vector<char> memory(bytes);
    *host = memory.data();
    state().pinned[address_of(*host)] = std::move(memory);
    return SUCCESS;
}

DRIVER_ENTRY cuMemFreeHost(void* host) {
    Call call(__func__);
    if (const Result refused = refuse_in_capture(nullptr)) return refused;
    for (const auto& context : state().contexts) finish_all(*context, call.lock);
    return state().pinned.erase(address_of(host)) == 1 ? SUCCESS : ERROR_INVALID_VALUE;
}

DRIVER_ENTRY cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, Stream* stream) {
    Call call(__func__);
    return to_device(find_stream(stream), to, from, bytes);
}

DRIVER_ENTRY cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, Stream* stream) {
    Call call(__func__);
    return from_device(find_stream(stream), to, from, bytes, call.lock);
}

DRIVER_ENTRY cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream* stream) {
    Call call(__func__);
    return within_device(find_stream(stream), to, from, bytes);
}

DRIVER_ENTRY cuMemsetD8Async(uintptr_t at, unsigned char value, size_t bytes, Stream* stream) {
    Call call(__func__);
    return fill(find_stream(stream), at, value, bytes);
}

DRIVER_ENTRY cuMemcpyHtoD_v2(uintptr_t to, const void* from, size_t bytes) {
    Call call(__func__);
    return at_once(call.lock, [=](Stream* stream) { return to_device(stream, to, from, bytes); });
}

DRIVER_ENTRY cuMemcpyDtoH_v2(void* to, uintptr_t from, size_t bytes) {
    Call call(__func__);
    return at_once(call.lock, [&](Stream* stream) { return from_device(stream, to, from, bytes, call.lock); });
}

DRIVER_ENTRY cuMemcpyDtoD_v2(uintptr_t to, uintptr_t from, size_t bytes) {
    Call call(__func__);
    return at_once(call.lock, [=](Stream* stream) { return within_device(stream, to, from, bytes); });
}

DRIVER_ENTRY cuMemsetD8_v2(uintptr_t at, unsigned char value, size_t bytes) {
    Call call(__func__);
    return at_once(call.lock, [=](Stream* stream) { return fill(stream, at, value, bytes); });
}
