// Memory that a thread keeps between calls, so that no hot loop allocates and no page is faulted in twice.
#pragma once
#include <cstdint>

namespace hhmpn {

// At least `bytes`, aligned to 64; valid until the thread's next call. Requests above 64 MiB are given back by the next call.
char* thread_scratch(int64_t bytes);

// A block shared by the threads of one call (packed weights): like thread_scratch, but of its own.
char* call_scratch(int64_t bytes);

}  // namespace hhmpn
