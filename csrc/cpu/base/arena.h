// Bump allocation from one block of scratch. Built over nullptr it only measures: `bytes` is what the same takes will need.
#pragma once
#include <cstdint>

namespace {

struct Arena {
  explicit Arena(void* block) : base((char*)block) {}
  template <class E>
  E* take(int64_t count) {
    E* at = (E*)(base + bytes);
    bytes += (count * int64_t(sizeof(E)) + 127) / 64 *
             64;  // whole lines and one to spare: a full register may read past the end
    return at;
  }
  char* base;
  int64_t bytes = 0;
};

}  // namespace
