// What a thread sees of its own asynchronous copies, before and after each wait. Run without the detector, which would say
// that looking too early is a race.
#include "params.h"

namespace selftest {

DEVICE u32 look(const void* p) { return *static_cast<const volatile u32*>(p); }

}  // namespace selftest

// Every thread has three places of 16 bytes, holding sevens, and copies its part of the input there. What it sees goes out,
// 12 words a thread.
KERNEL(selftest_copy_groups, selftest::Params, 32, 1, 3 * 32 * 16) {
    using namespace selftest;
    const u32 t = thread_index();
    char* a = shared_memory() + t * 16;
    char* b = a + 32 * 16;
    char* c = b + 32 * 16;
    for (int i = 0; i < 4; ++i) {
        reinterpret_cast<u32*>(a)[i] = 7;
        reinterpret_cast<u32*>(b)[i] = 7;
        reinterpret_cast<u32*>(c)[i] = 7;
    }
    const u32* in = params.in + t * 12;
    u32* out = params.out + t * 12;
    copy_async(a, in, true);
    copy_commit();
    copy_async(b, in + 4, true);
    copy_commit();
    copy_async(c, in + 8, true);    // in no group yet
    copy_wait<2>();                 // nothing need be done
    *out++ = look(a);
    copy_wait<1>();                 // a
    *out++ = look(a);
    *out++ = look(b);
    *out++ = look(c);
    copy_wait<0>();                 // b
    *out++ = look(b);
    *out++ = look(c);
    copy_commit();
    copy_commit();                  // a group without copies
    copy_wait<1>();                 // c
    *out++ = look(a);
    *out++ = look(b);
    *out++ = look(c);
    // Zeros without a source; and the last words of what was copied.
    copy_async(a, nullptr, false);
    copy_commit();
    copy_wait<0>();
    *out++ = look(a) | look(a + 4) | look(a + 8) | look(a + 12);
    *out++ = look(b + 12);
    *out++ = look(c + 12);
}

// What a copy reads is read when it is done, not when it is issued.
KERNEL(selftest_copy_source, selftest::Params, 32, 1, 32 * 16) {
    using namespace selftest;
    const u32 t = thread_index();
    char* to = shared_memory() + t * 16;
    u32* from = params.out + t * 4;
    for (int i = 0; i < 4; ++i) from[i] = 1;
    copy_async(to, from, true);
    copy_commit();
    for (int i = 0; i < 4; ++i) from[i] = 2;
    copy_wait<0>();
    from[0] = look(to);
}
