// Streams' queues.
#include "state.h"

namespace driver {

Result enqueue(Stream& stream, Work work) {
    if (stream.capture != nullptr) {
        if (stream.capture->invalid) return ERROR_STREAM_CAPTURE_INVALIDATED;
        stream.capture->work.push_back(std::move(work));
        return SUCCESS;
    }
    if (stream.context->error != SUCCESS) return stream.context->error;
    stream.queue.push_back(std::move(work));
    ++stream.enqueued;
    return SUCCESS;
}

// Two threads may wait for each other's streams: what work depends on was enqueued before it, so this comes to an end.
Result finish(Stream& stream, uint64_t amount, Lock& lock) {
    Context& context = *stream.context;
    while (stream.done < amount) {
        if (stream.running) {
            state().changed.wait(lock);
            continue;
        }
        stream.running = true;
        const Work work = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (context.error == SUCCESS) {
            const Result result = work(lock);
            if (context.error == SUCCESS) context.error = result;
        }
        stream.running = false;
        ++stream.done;
        state().changed.notify_all();
    }
    return context.error;
}

Result finish_all(Context& context, Lock& lock) {
    finish(context.default_stream, context.default_stream.enqueued, lock);
    // Others may come while the lock is free.
    std::vector<Stream*> streams;
    for (const auto& [handle, stream] : state().streams.objects) {
        if (stream->context == &context) streams.push_back(stream.get());
    }
    for (Stream* stream : streams) finish(*stream, stream->enqueued, lock);
    return context.error;
}

}  // namespace driver
