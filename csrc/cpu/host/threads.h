// Work over threads, and each thread's scratch. Tasks are taken from one counter, costliest first by the caller's order; a
// task's result never depends on who runs it, so the bits are the same for any number of threads.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "host/memory.h"
#include "base/team.h"

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile with -fopenmp: without it at::parallel_for runs everything on the calling thread and says nothing"
#endif

namespace hhmpn {

// body(task, scratch) for every task; `scratch` is `bytes` of the running thread's own memory, aligned to 64.
template <class F>
void parallel_tasks(int64_t tasks, int64_t bytes, const F& body) {
  if (tasks <= 0) return;
  const int64_t threads = std::min<int64_t>(at::in_parallel_region() ? 1 : at::get_num_threads(), tasks);
  if (threads <= 1) {
    char* scratch = thread_scratch(bytes);
    for (int64_t i = 0; i < tasks; i++) body(i, scratch);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    char* scratch = thread_scratch(bytes);
    for (int64_t i = next++; i < tasks; i = next++) body(i, scratch);
  });
}

// How many threads may share one task of at most `parts` parts.
inline int64_t team_size(int64_t parts) {
#if AT_PARALLEL_OPENMP
  return at::in_parallel_region() ? 1 : std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), parts));
#else
  return 1;  // only OpenMP promises that the parts run at the same time
#endif
}

// body(team) on threads that run at once and between them stand for all `members`.
template <class F>
void parallel_team(int64_t members, const F& body) {
  alignas(64) int64_t arrived = 0;
  at::parallel_for(0, members, 1, [&](int64_t begin, int64_t end) {
    body(Team{begin, end, members, &arrived, [] { std::this_thread::yield(); }});
  });
}

// A run of consecutive items.
struct Cut {
  int64_t begin, end;
};

// [0, n) in `count` runs, at most n and at least one; cost[i] is that of all before i, (n + 1) numbers.
inline std::vector<Cut> even_cuts(const std::vector<double>& cost, int64_t count) {
  const int64_t n = int64_t(cost.size()) - 1;
  count = std::max<int64_t>(std::min(n, count), 1);
  std::vector<Cut> cuts;
  for (int64_t i = 0, begin = 0; i < count; i++) {
    const double until = cost[n] * double(i + 1) / double(count);
    int64_t end = std::min(begin + 1, n);
    while (end < n && (cost[end] + cost[end + 1]) / 2 < until) end++;
    end = i + 1 == count ? n : std::min(end, n - (count - 1 - i));
    cuts.push_back({begin, end});
    begin = end;
  }
  return cuts;
}

}  // namespace hhmpn
