#include "scratch.h"

#include <c10/util/Exception.h>

#include <cstdlib>

namespace hhmpn {
namespace {

constexpr int64_t kKept = int64_t(64) << 20;

struct Block {
  char* get(int64_t wanted) {
    if (wanted > size || size > kKept || data == nullptr) {
      std::free(data);
      size = (wanted + 4095) / 4096 * 4096;
      data = static_cast<char*>(std::aligned_alloc(4096, size_t(size)));
      if (data == nullptr) size = 0;
      TORCH_CHECK(data != nullptr, "hhmpn_fast: could not allocate ", wanted, " bytes of scratch.");
    }
    return data;
  }
  ~Block() { std::free(data); }
  char* data = nullptr;
  int64_t size = 0;
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

}  // namespace hhmpn
