// Consecutive runs of nearly equal cost.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace hhmpn {

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
