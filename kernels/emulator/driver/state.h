// What the emulated driver knows. One lock guards all of it; it is let go of only while a kernel runs.
//
// Work on a stream is queued, and runs when something waits for it and not before: a read without synchronisation sees what was
// there earlier, and so does a stream that no event makes wait for another.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "../emulator.h"
#include "api.h"

namespace driver {

using Lock = std::unique_lock<std::mutex>;
using Work = std::function<Result(Lock&)>;

// Objects behind handles. They outlive their destruction, so that a stale handle is noticed and never a new object's.
template <class T>
class Handles {
  public:
    T* add(std::unique_ptr<T> object) {
        T* handle = object.get();
        objects[handle] = std::move(object);
        return handle;
    }
    bool has(const T* handle) const {
        auto found = objects.find(handle);
        return found != objects.end() && !found->second->destroyed;
    }

    std::unordered_map<const T*, std::unique_ptr<T>> objects;
};

struct Allocation {
    size_t bytes;
    bool live;          // its turn on the stream has come
    bool freed;         // someone has asked for that; it is live until the stream comes to it
    bool initialised;   // something was written to it
};

// A device's memory: one range of addresses, never used twice, that the host cannot reach but for the time of an Access.
struct Memory {
    uintptr_t low = 0;
    size_t used = 0;        // of the range
    size_t allocated = 0;   // by allocations that nobody has freed
    int accesses = 0;
    std::map<uintptr_t, Allocation> allocations;

    uintptr_t allocate(size_t bytes, bool live);    // 0: out of memory
    // The allocation that holds all of a range, or null.
    Allocation* find(uintptr_t address, size_t bytes);
    void release(uintptr_t address);
};

// While it lives, device memory can be reached. Made and unmade under the lock.
class Access {
  public:
    explicit Access(Memory& memory);
    ~Access();
    Access(const Access&) = delete;

  private:
    Memory& memory;
};

struct Context;

struct Capture {
    uint64_t number;    // from 1
    CaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    std::vector<Work> work = {};
};

struct Stream {
    Context* context;
    bool destroyed = false;
    std::deque<Work> queue = {};
    uint64_t enqueued = 0, done = 0;
    bool running = false;
    std::unique_ptr<Capture> capture = {};
};

struct Event {
    Context* context;
    bool timed;
    bool destroyed = false;
    Stream* stream = nullptr;       // null: never recorded
    uint64_t at = 0;                // done when the stream has done so much
    uint64_t capture = 0;           // the number of that in which it was recorded last, or 0
    std::shared_ptr<double> milliseconds = {};
};

struct Function {
    struct Module* module;
    std::string name;
    uint32_t threads, shared_bytes;
    size_t params_bytes;
    uint32_t dynamic_shared = 48 * 1024;    // the most that a launch may ask for
};

struct Module {
    Context* context;
    bool destroyed = false;
    bool lists_names = false;       // else it is said to hold every kernel of the emulator's table
    std::set<std::string> names = {};
    std::map<std::string, std::unique_ptr<Function>> functions = {};
};

struct Graph {
    Context* context;
    bool destroyed = false;
    std::vector<Work> work;
};

// The primary context of a device, which is the only one that a device has here.
struct Context {
    int device = 0;
    int retained = 0;
    Result error = SUCCESS;         // of a kernel: nothing goes on after it, as on a GPU
    Memory memory;
    Stream default_stream = {this};
};

// What environment variables say about the devices.
struct Settings {
    int devices, version, major, minor;
    uint32_t shared_bytes;
    size_t memory_bytes;
};

struct State {
    std::mutex mutex;
    std::condition_variable changed;    // a stream has done something
    Settings settings;
    bool initialised = false;
    std::vector<std::unique_ptr<Context>> contexts;
    Handles<Stream> streams;
    Handles<Event> events;
    Handles<Module> modules;
    Handles<Graph> graphs, executables;
    std::unordered_map<const Function*, Function*> functions;
    std::map<uintptr_t, std::vector<char>> pinned;  // host memory that copies may reach at any time, by address
    std::map<std::string, uint64_t> calls;          // by name
    uint64_t launches = 0, captures = 0;

    State();
};

State& state();
extern thread_local Context* current;

// A call from outside: counted, and alone until it ends or lets go of the lock.
struct Call {
    explicit Call(const char* name) : lock(state().mutex) { ++state().calls[name]; }
    Lock lock;
};

// Says something on the standard error stream.
__attribute__((format(printf, 1, 2))) void say(const char* format, ...);

// The stream of a handle: null is the current context's own. Null if there is no such stream.
Stream* find_stream(Stream* handle);

// ---- queue.cpp ---------------------------------------------------------------------------------------------------------

// Puts work in a stream's queue, or in its capture.
Result enqueue(Stream& stream, Work work);
// Runs what a stream was given, up to so much of it.
Result finish(Stream& stream, uint64_t amount, Lock& lock);
Result finish_all(Context& context, Lock& lock);

// ---- capture.cpp -------------------------------------------------------------------------------------------------------

// What waits or allocates is refused in a capture, and spoils it. Captures of other streams mind according to their mode.
Result refuse_in_capture(Stream* stream);
Result spoil(Capture& capture, Result result);

// ---- launch.cpp --------------------------------------------------------------------------------------------------------

struct LaunchRequest {
    Function* function;
    uint32_t blocks, threads, shared_bytes;
    std::vector<char> params;
};
Result run_launch(Context& context, const LaunchRequest& request, Lock& lock);

// ---- image.cpp ---------------------------------------------------------------------------------------------------------

// Whether a device can run an image, and what the image says of itself.
Result read_image(const void* image, Module& module);

}  // namespace driver

#define DRIVER_ENTRY extern "C" driver::Result
