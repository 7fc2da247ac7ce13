// Memory that outlives a call, so that no hot loop allocates and no page is faulted in twice: each thread's scratch, and the
// pool behind large tensors (a fresh 20 MB tensor costs 5,000 page faults, a third of the time of the kernel that fills it).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace hhmpn {

// At least `bytes`, aligned to 64; valid until the thread's next call. A block above 64 MiB is given back by the next call.
char* thread_scratch(int64_t bytes);

// A block shared by the threads of one call (packed weights): like thread_scratch, but of its own.
char* call_scratch(int64_t bytes);

// An uninitialised contiguous tensor. Large ones take their memory from a pool of at most HHMPN_CPU_POOL_MB (512) freed
// blocks and give it back there; 0 turns the pool off.
at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace hhmpn
