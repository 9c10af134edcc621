// Stream capture and graphs.
#include "state.h"

namespace driver {

Result spoil(Capture& capture, Result result) {
    capture.invalid = true;
    return result;
}

Result refuse_in_capture(Stream* stream) {
    Result result = SUCCESS;
    for (const auto& [handle, each] : state().streams.objects) {
        Capture* capture = each->capture.get();
        if (capture == nullptr) continue;
        const bool minds = capture->mode == CaptureMode::kGlobal ||
                           (capture->mode == CaptureMode::kThreadLocal && capture->thread == std::this_thread::get_id());
        if (handle == stream || minds) result = spoil(*capture, ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return result;
}

}  // namespace driver

using namespace driver;

DRIVER_ENTRY cuStreamBeginCapture_v2(Stream* handle, CaptureMode mode) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    // The default stream cannot be captured.
    if (handle == nullptr || stream->capture != nullptr) return ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = std::unique_ptr<Capture>(new Capture{++state().captures, mode, std::this_thread::get_id()});
    return SUCCESS;
}

DRIVER_ENTRY cuStreamIsCapturing(Stream* handle, CaptureStatus* status) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    const Capture* capture = stream->capture.get();
    *status = capture == nullptr ? CaptureStatus::kNone : capture->invalid ? CaptureStatus::kInvalidated : CaptureStatus::kActive;
    return SUCCESS;
}

DRIVER_ENTRY cuStreamEndCapture(Stream* handle, Graph** graph) {
    Call call(__func__);
    *graph = nullptr;
    Stream* stream = find_stream(handle);
    if (stream == nullptr) return ERROR_INVALID_HANDLE;
    if (stream->capture == nullptr) return ERROR_STREAM_CAPTURE_UNMATCHED;
    if (stream->capture->mode != CaptureMode::kRelaxed && stream->capture->thread != std::this_thread::get_id()) {
        return spoil(*stream->capture, ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }
    const std::unique_ptr<Capture> capture = std::move(stream->capture);
    if (capture->invalid) return ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = state().graphs.add(std::make_unique<Graph>(Graph{stream->context, false, std::move(capture->work)}));
    return SUCCESS;
}

DRIVER_ENTRY cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long flags) {
    Call call(__func__);
    if (!state().graphs.has(graph)) return ERROR_INVALID_HANDLE;
    // 1: free on launch, 8: node priorities; nothing here has either.
    if ((flags & ~9ull) != 0) return ERROR_INVALID_VALUE;
    *executable = state().executables.add(std::make_unique<Graph>(Graph{graph->context, false, graph->work}));
    return SUCCESS;
}

DRIVER_ENTRY cuGraphUpload(Graph* executable, Stream* handle) {
    Call call(__func__);
    return state().executables.has(executable) && find_stream(handle) != nullptr ? SUCCESS : ERROR_INVALID_HANDLE;
}

DRIVER_ENTRY cuGraphLaunch(Graph* executable, Stream* handle) {
    Call call(__func__);
    Stream* stream = find_stream(handle);
    if (stream == nullptr || !state().executables.has(executable)) return ERROR_INVALID_HANDLE;
    Result result = SUCCESS;
    for (size_t i = 0; i < executable->work.size() && result == SUCCESS; ++i) result = enqueue(*stream, executable->work[i]);
    return result;
}

DRIVER_ENTRY cuGraphDestroy(Graph* graph) {
    Call call(__func__);
    if (!state().graphs.has(graph)) return ERROR_INVALID_HANDLE;
    graph->destroyed = true;
    return SUCCESS;
}

DRIVER_ENTRY cuGraphExecDestroy(Graph* executable) {
    Call call(__func__);
    if (!state().executables.has(executable)) return ERROR_INVALID_HANDLE;
    executable->destroyed = true;
    return SUCCESS;
}
