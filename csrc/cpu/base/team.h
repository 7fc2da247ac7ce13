// Threads that run one task at the same time: what a single sample needs. A member owns columns of every product, so that each
// weight passes one thread's cache once, and rows of everything else; between two stages they wait for each other.
#pragma once
#include <cstdint>

namespace hhmpn {

struct Team {
  int64_t begin = 0, end = 1, size = 1;  // the members that this thread stands for
  int64_t* arrived = nullptr;            // shared by the team
  void (*yield)() = nullptr;

  // Returns when every member has called it as often as this thread. Members run at once and for microseconds: they spin
  // before they yield.
  __attribute__((always_inline)) void meet() const {
    if (end - begin == size) return;
    const int64_t mine = __atomic_add_fetch(arrived, end - begin, __ATOMIC_ACQ_REL),
                  all = (mine + size - 1) / size * size;
    for (int64_t spins = 0; __atomic_load_n(arrived, __ATOMIC_ACQUIRE) < all; spins++)
      if (spins > 4000) yield();
  }
  // This thread's share of `count`, cut at multiples of `step`.
  __attribute__((always_inline)) int64_t first(int64_t count, int64_t step = 1) const {
    return cut(begin, count, step);
  }
  __attribute__((always_inline)) int64_t last(int64_t count, int64_t step = 1) const { return cut(end, count, step); }

 private:
  __attribute__((always_inline)) int64_t cut(int64_t member, int64_t count, int64_t step) const {
    if (member == size) return count;
    const int64_t at = (count + step - 1) / step * member / size * step;
    return at < count ? at : count;
  }
};

}  // namespace hhmpn
