// The part of the CUDA driver's interface that is emulated. Names and numbers are the driver's.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace driver {

#define RESULTS(X)                                                                    \
    X(SUCCESS, 0, "no error")                                                         \
    X(ERROR_INVALID_VALUE, 1, "invalid argument")                                     \
    X(ERROR_OUT_OF_MEMORY, 2, "out of memory")                                        \
    X(ERROR_NOT_INITIALIZED, 3, "initialization error")                               \
    X(ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                     \
    X(ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                            \
    X(ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                     \
    X(ERROR_INVALID_CONTEXT, 201, "invalid device context")                           \
    X(ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for the device")    \
    X(ERROR_UNSUPPORTED_PTX_VERSION, 222, "PTX is of a newer version than the driver")\
    X(ERROR_INVALID_HANDLE, 400, "invalid resource handle")                           \
    X(ERROR_NOT_FOUND, 500, "named symbol not found")                                 \
    X(ERROR_NOT_READY, 600, "device not ready")                                       \
    X(ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")         \
    X(ERROR_MISALIGNED_ADDRESS, 716, "misaligned address")                            \
    X(ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                         \
    X(ERROR_NOT_SUPPORTED, 801, "operation not supported by the emulated driver")     \
    X(ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "not permitted while a stream captures") \
    X(ERROR_STREAM_CAPTURE_INVALIDATED, 901, "an earlier error ended the capture")    \
    X(ERROR_STREAM_CAPTURE_UNMATCHED, 903, "the capture was not begun on this stream")\
    X(ERROR_STREAM_CAPTURE_ISOLATION, 905, "dependency on work outside the capture")  \
    X(ERROR_CAPTURED_EVENT, 907, "the event was last recorded in a capture")          \
    X(ERROR_STREAM_CAPTURE_WRONG_THREAD, 908, "the capture began in another thread")

enum Result : int {
#define ENTRY_OF_RESULTS(name, value, text) name = value,
    RESULTS(ENTRY_OF_RESULTS)
#undef ENTRY_OF_RESULTS
};

enum class DeviceAttribute : int {
    kMaxThreadsPerBlock = 1,
    kMaxSharedPerBlock = 8,
    kWarpSize = 10,
    kMultiprocessors = 16,
    kThreadsPerMultiprocessor = 39,
    kMajor = 75,
    kMinor = 76,
    kSharedPerMultiprocessor = 81,
    kRegistersPerMultiprocessor = 82,
    kSharedPerBlockOptin = 97,
    kMemoryPools = 115,
};

enum class FunctionAttribute : int {
    kMaxThreadsPerBlock = 0,
    kSharedBytes = 1,
    kLocalBytes = 3,
    kRegisters = 4,
    kMaxDynamicShared = 8,
    kCarveout = 9,
};

enum class CaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };
enum class CaptureStatus : int { kNone = 0, kActive = 1, kInvalidated = 2 };

constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventWithoutTiming = 2;

}  // namespace driver
