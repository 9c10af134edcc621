#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

#if EMULATOR_OWN_SWITCH

extern "C" void emulator_switch(void** from, void* to);

// Callee-saved registers go to the old stack and come from the new one; everything else is the compiler's to save.
#if defined(__x86_64__)
constexpr size_t kSavedWords = 6;
constexpr size_t kReturnWord = 6;
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch,.-emulator_switch
)");
#else
constexpr size_t kSavedWords = 20;
constexpr size_t kReturnWord = 11;
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,%function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch,.-emulator_switch
)");
#endif

void prepare(Context& context, char* stack, void (*entry)()) {
    // The topmost words stay zero: they end a debugger's walk, and align the stack as a call would have.
    auto top = reinterpret_cast<uintptr_t*>(stack + kStackBytes);
    for (size_t i = 1; i <= kSavedWords + 4; ++i) top[-static_cast<ptrdiff_t>(i)] = 0;
    uintptr_t* frame = top - 2 - kSavedWords;
    frame[kReturnWord] = reinterpret_cast<uintptr_t>(entry);
    context.stack_pointer = frame;
}

void switch_context(Context& from, Context& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Context& context, char* stack, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = kStackBytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

Stacks::~Stacks() {
    for (Arena& arena : arenas) munmap(arena.memory, arena.bytes);
}

char* Stacks::at(size_t index) {
    while (index >= stacks.size()) {
        constexpr size_t kAtOnce = 128;
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), step = kStackBytes + page;
        Arena arena = {nullptr, kAtOnce * step};
        arena.memory = mmap(nullptr, arena.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (arena.memory == MAP_FAILED) return nullptr;
        arenas.push_back(arena);
        for (size_t i = 0; i < kAtOnce; ++i) {
            char* guard = static_cast<char*>(arena.memory) + i * step;
            mprotect(guard, page, PROT_NONE);
            stacks.push_back(guard + page);
        }
    }
    return stacks[index];
}

}  // namespace emulator
