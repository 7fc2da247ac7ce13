#include "host/memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <deque>
#include <mutex>

namespace hhmpn {
namespace {

constexpr int64_t kKept = int64_t(64) << 20, kHugePage = int64_t(2) << 20, kPooled = int64_t(256) << 10;

char* allocate(int64_t bytes) {
  const int64_t align = bytes >= 2 * kHugePage ? kHugePage : 4096;
  const size_t size = size_t((bytes + align - 1) / align * align);
  char* data = static_cast<char*>(std::aligned_alloc(size_t(align), size));
  TORCH_CHECK(data != nullptr, "hhmpn_fast: could not allocate ", bytes, " bytes.");
#if defined(__linux__)
  if (align == kHugePage) madvise(data, size, MADV_HUGEPAGE);
#endif
  return data;
}

struct Block {
  char* get(int64_t wanted) {
    if (data == nullptr || wanted > size || size > kKept) {
      std::free(data);
      data = nullptr;
      data = allocate(wanted);
      size = wanted;
    }
    return data;
  }
  ~Block() { std::free(data); }
  char* data = nullptr;
  int64_t size = 0;
};

// Freed blocks, oldest first. Sizes are rounded up to quarters of a power of two, so that batches of nearly equal size share.
class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: tensors may outlive every static object
    return *pool;
  }
  static int64_t rounded(int64_t bytes) {
    int64_t quarter = kPooled / 4;
    while (quarter * 8 <= bytes) quarter *= 2;
    return (bytes + quarter - 1) / quarter * quarter;
  }
  bool enabled() const { return most_ > 0; }
  char* take(int64_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto at = free_.rbegin(); at != free_.rend(); ++at)
        if (at->size == size) {
          char* data = at->data;
          free_.erase(std::next(at).base());
          held_ -= size;
          return data;
        }
    }
    return allocate(size);
  }
  void give(char* data, int64_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back({data, size});
    held_ += size;
    while (held_ > most_) {
      std::free(free_.front().data);
      held_ -= free_.front().size;
      free_.pop_front();
    }
  }

 private:
  struct Free {
    char* data;
    int64_t size;
  };
  Pool() {
    const char* set = std::getenv("HHMPN_CPU_POOL_MB");
    most_ = (set && *set ? std::strtoll(set, nullptr, 10) : 512) << 20;
  }
  std::mutex mutex_;
  std::deque<Free> free_;
  int64_t held_ = 0, most_ = 0;
};

}  // namespace

char* thread_scratch(int64_t bytes) {
  thread_local Block block;
  return block.get(bytes);
}

char* call_scratch(int64_t bytes) {
  thread_local Block block;
  return block.get(bytes);
}

at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  int64_t bytes = int64_t(options.dtype().itemsize());
  for (int64_t n : sizes) bytes *= n;
  if (bytes < kPooled || !Pool::instance().enabled()) return at::empty(sizes, options);
  const int64_t size = Pool::rounded(bytes);
  char* data = Pool::instance().take(size);
  return at::from_blob(data, sizes, [size](void* p) { Pool::instance().give(static_cast<char*>(p), size); }, options);
}

}  // namespace hhmpn
