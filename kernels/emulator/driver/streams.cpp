// Streams and events.
#include <chrono>

#include "state.h"

using namespace driver;

namespace {

double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A query of something unfinished brings it one step further: whoever asks until it is done comes to an end.
Result query(Stream& stream, uint64_t amount, Lock& lock) {
    if (stream.done < amount && !stream.running) finish(stream, stream.done + 1, lock);
    if (stream.context->error != SUCCESS) return stream.context->error;
    return stream.done < amount ? ERROR_NOT_READY : SUCCESS;
}

Result create(Stream** stream, unsigned flags) {
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    if (flags != kStreamNonBlocking) {
        say("streams that wait for the default stream are not emulated");
        return ERROR_NOT_SUPPORTED;
    }
    *stream = state().streams.add(std::unique_ptr<Stream>(new Stream{current}));
    return SUCCESS;
}

}  // namespace

DRIVER_ENTRY cuStreamCreate(Stream** stream, unsigned flags) {
    Call call(__func__);
    return create(stream, flags);
}

DRIVER_ENTRY cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) {
    Call call(__func__);
    return create(stream, flags);
}

// What it was given is still done.
DRIVER_ENTRY cuStreamDestroy_v2(Stream* stream) {
    Call call(__func__);
    if (!state().streams.has(stream)) return ERROR_INVALID_HANDLE;
    stream->destroyed = true;
    stream->capture.reset();
    return SUCCESS;
}

DRIVER_ENTRY cuStreamSynchronize(Stream* handle) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (const Result refused = refuse_in_capture(stream)) return refused;
    return finish(*stream, stream->enqueued, call.lock);
}

DRIVER_ENTRY cuStreamQuery(Stream* handle) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (const Result refused = refuse_in_capture(stream)) return refused;
    return query(*stream, stream->enqueued, call.lock);
}

DRIVER_ENTRY cuStreamWaitEvent(Stream* handle, Event* event, unsigned) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr || !state().events.has(event)) return ERROR_INVALID_HANDLE;
    if (Capture* capture = stream->capture.get()) {
        // Within one stream, order is there anyway.
        return event->capture == capture->number ? SUCCESS : spoil(*capture, ERROR_STREAM_CAPTURE_ISOLATION);
    }
    if (event->capture != 0) {
        say("a capture of two streams is not emulated");
        return ERROR_NOT_SUPPORTED;
    }
    // An event that was never recorded is no reason to wait.
    if (event->stream == nullptr) return stream->context->error;
    return enqueue(*stream, [of = event->stream, at = event->at](Lock& lock) { return finish(*of, at, lock); });
}

DRIVER_ENTRY cuEventCreate(Event** event, unsigned flags) {
    Call call(__func__);
    if (current == nullptr) return ERROR_INVALID_CONTEXT;
    *event = state().events.add(std::unique_ptr<Event>(new Event{current, (flags & kEventWithoutTiming) == 0}));
    return SUCCESS;
}

DRIVER_ENTRY cuEventDestroy_v2(Event* event) {
    Call call(__func__);
    if (!state().events.has(event)) return ERROR_INVALID_HANDLE;
    event->destroyed = true;
    return SUCCESS;
}

DRIVER_ENTRY cuEventRecord(Event* event, Stream* handle) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr || !state().events.has(event) || event->context != stream->context) return ERROR_INVALID_HANDLE;
    event->capture = stream->capture == nullptr ? 0 : stream->capture->number;
    if (stream->capture != nullptr) return stream->capture->invalid ? ERROR_STREAM_CAPTURE_INVALIDATED : SUCCESS;
    auto milliseconds = std::make_shared<double>(0);
    const Result result = enqueue(*stream, [milliseconds](Lock&) {
        *milliseconds = now();
        return SUCCESS;
    });
    if (result != SUCCESS) return result;
    event->stream = stream;
    event->at = stream->enqueued;
    event->milliseconds = std::move(milliseconds);
    return SUCCESS;
}

DRIVER_ENTRY cuEventQuery(Event* event) {
    Call call(__func__);
    if (!state().events.has(event)) return ERROR_INVALID_HANDLE;
    if (event->capture != 0) return ERROR_CAPTURED_EVENT;
    if (const Result refused = refuse_in_capture(event->stream)) return refused;
    return event->stream == nullptr ? SUCCESS : query(*event->stream, event->at, call.lock);
}

DRIVER_ENTRY cuEventSynchronize(Event* event) {
    Call call(__func__);
    if (!state().events.has(event)) return ERROR_INVALID_HANDLE;
    if (event->capture != 0) return ERROR_CAPTURED_EVENT;
    if (const Result refused = refuse_in_capture(event->stream)) return refused;
    return event->stream == nullptr ? SUCCESS : finish(*event->stream, event->at, call.lock);
}

namespace {

Result elapsed(float* milliseconds, const Event* start, const Event* end) {
    if (!state().events.has(start) || !state().events.has(end)) return ERROR_INVALID_HANDLE;
    for (const Event* each : {start, end}) {
        if (!each->timed || each->stream == nullptr) return ERROR_INVALID_HANDLE;
        if (each->stream->done < each->at) return ERROR_NOT_READY;
    }
    *milliseconds = static_cast<float>(*end->milliseconds - *start->milliseconds);
    return SUCCESS;
}

}  // namespace

DRIVER_ENTRY cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    Call call(__func__);
    return elapsed(milliseconds, start, end);
}

DRIVER_ENTRY cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    Call call(__func__);
    return elapsed(milliseconds, start, end);
}
