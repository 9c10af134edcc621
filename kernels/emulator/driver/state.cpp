// The state itself, made from environment variables, and what tests ask about it.
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

namespace driver {

namespace {

long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text == nullptr || *text == 0 ? otherwise : strtol(text, nullptr, 10);
}

}  // namespace

thread_local Context* current = nullptr;

State::State() {
    settings.devices = static_cast<int>(setting("EMULATED_CUDA_DEVICES", 2));
    settings.version = static_cast<int>(setting("EMULATED_CUDA_DRIVER_VERSION", 13000));
    const long capability = setting("EMULATED_CUDA_CAPABILITY", 80);
    settings.major = static_cast<int>(capability / 10);
    settings.minor = static_cast<int>(capability % 10);
    settings.shared_bytes = static_cast<uint32_t>(setting("EMULATED_CUDA_SHARED_KB", 163)) * 1024;
    settings.memory_bytes = static_cast<size_t>(setting("EMULATED_CUDA_MEMORY_MB", 2048)) << 20;
    for (int i = 0; i < settings.devices; ++i) {
        contexts.push_back(std::make_unique<Context>());
        contexts.back()->device = i;
    }
}

// Never destroyed: threads may still call while the process exits.
State& state() {
    static State& the = *new State;
    return the;
}

void say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("emulated CUDA driver: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

Stream* find_stream(Stream* handle) {
    if (handle == nullptr) return current == nullptr ? nullptr : &current->default_stream;
    return state().streams.has(handle) ? handle : nullptr;
}

}  // namespace driver

using namespace driver;

// How often a function of the driver was called; of all functions if the name is empty.
extern "C" uint64_t emulated_driver_calls(const char* name) {
    Lock lock(state().mutex);
    if (*name != 0) return state().calls[name];
    uint64_t sum = 0;
    for (const auto& [each, count] : state().calls) sum += count;
    return sum;
}
