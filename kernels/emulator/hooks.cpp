// The functions that -fsanitize=thread makes a compiler call before each access. The sanitizer's own library is not linked.
#include "hooks.h"

#include <string.h>

#include "machine.h"

namespace emulator {

__thread OwnMemory own __attribute__((tls_model("initial-exec"))) = {0, UINTPTR_MAX};

namespace {

inline bool is_own(const void* p) { return reinterpret_cast<uintptr_t>(p) - own.low < own.bytes; }

inline void read(const void* p, size_t bytes, size_t alignment) {
    if (!__builtin_expect(is_own(p), true)) look_at_read(*current, p, bytes, alignment);
}
inline void write(void* p, size_t bytes, size_t alignment) {
    if (!__builtin_expect(is_own(p), true)) look_at_write(*current, p, bytes, alignment);
}

}  // namespace

extern "C" {

#define ACCESS_HOOKS(bytes)                                                 \
    void __tsan_read##bytes(void* p) { read(p, bytes, bytes); }             \
    void __tsan_write##bytes(void* p) { write(p, bytes, bytes); }           \
    void __tsan_unaligned_read##bytes(void* p) { read(p, bytes, 1); }       \
    void __tsan_unaligned_write##bytes(void* p) { write(p, bytes, 1); }     \
    void __tsan_volatile_read##bytes(void* p) { read(p, bytes, bytes); }    \
    void __tsan_volatile_write##bytes(void* p) { write(p, bytes, bytes); }  \
    void __tsan_read_write##bytes(void* p) { read(p, bytes, bytes), write(p, bytes, bytes); }
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t bytes) { read(p, bytes, 1); }
void __tsan_write_range(void* p, size_t bytes) { write(p, bytes, 1); }

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    if (bytes != 0) read(from, bytes, 1), write(to, bytes, 1);
    return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    if (bytes != 0) read(from, bytes, 1), write(to, bytes, 1);
    return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    if (bytes != 0) write(to, bytes, 1);
    return memset(to, value, bytes);
}
}

}  // namespace emulator
