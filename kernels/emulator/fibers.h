// Fibers: stacks of their own, and the switch from one to another.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define EMULATOR_OWN_SWITCH 1
#else
#include <ucontext.h>
#define EMULATOR_OWN_SWITCH 0
#endif

namespace emulator {

// Bytes that a kernel thread's locals may take. Stacks lie this far, plus a guard page, from each other: not a power of two,
// so that the same frame of all threads does not fall into the same sets of the cache.
constexpr size_t kStackBytes = 64 * 1024;

// What is kept of a fiber that does not run.
struct Context {
#if EMULATOR_OWN_SWITCH
    void* stack_pointer;
#else
    ucontext_t state;
#endif
};

// Makes `context` a fiber that begins with `entry` on the stack at `stack`. `entry` must not return.
void prepare(Context& context, char* stack, void (*entry)());

// Leaves the running fiber, as `from`, for another.
void switch_context(Context& from, Context& to);

// Stacks, with a page that must not be touched below each. Kept for an OS thread's later launches.
class Stacks {
  public:
    Stacks() = default;
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    ~Stacks();

    // Stack number `index`; grows the pool. Null where memory is out.
    char* at(size_t index);

  private:
    struct Arena {
        void* memory;
        size_t bytes;
    };
    std::vector<Arena> arenas;
    std::vector<char*> stacks;
};

}  // namespace emulator
