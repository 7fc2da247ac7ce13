// Weight gradients over all rows of a batch: C = sum over rows of a[r, :]^T b[r, :], many of them in one parallel region.
// A task owns a block of columns of one C and walks the rows in ascending order: no partial sums, the same bits always.
#pragma once
#include <algorithm>
#include <vector>

#include "dense.h"
#include "parallel.h"

namespace hhmpn {

template <class T>
struct OuterJob {
  int64_t m, n;
  const T* a;  // (rows, m)
  int64_t lda;
  const T* b;  // (rows, n)
  int64_t ldb;
  int64_t begin, end;  // rows
  Acc<T>* c;           // (m, n)
  Acc<T>* sums;        // (m) column sums of a, or null
};

template <class T>
void run_outer_jobs(const std::vector<OuterJob<T>>& jobs) {
  constexpr int64_t kColumns = 128;
  struct Task {
    const OuterJob<T>* job;
    int64_t column;
  };
  std::vector<Task> tasks;
  int64_t bytes = 0;
  const DenseKernels<T>& k = dense<T>();
  for (const OuterJob<T>& job : jobs) {
    for (int64_t j = 0; j < job.n; j += kColumns) tasks.push_back({&job, j});
    bytes = std::max(bytes, k.outer_scratch(job.m, kColumns, kOuterRows));
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& x, const Task& y) {
    return (x.job->end - x.job->begin) * x.job->m > (y.job->end - y.job->begin) * y.job->m;
  });
  parallel_tasks(int64_t(tasks.size()), bytes, [&](int64_t i, char* scratch) {
    const OuterJob<T>& job = *tasks[i].job;
    const int64_t j = tasks[i].column, columns = std::min(kColumns, job.n - j);
    Acc<T>* sums = j == 0 ? job.sums : nullptr;
    if (sums) std::fill(sums, sums + job.m, Acc<T>(0));
    if (job.begin == job.end)
      for (int64_t r = 0; r < job.m; r++) std::fill(job.c + r * job.n + j, job.c + r * job.n + j + columns, Acc<T>(0));
    for (int64_t r = job.begin; r < job.end; r += kOuterRows)
      k.outer(job.m, columns, std::min(kOuterRows, job.end - r), job.a + r * job.lda, job.lda, job.b + r * job.ldb + j, job.ldb,
              job.c + j, job.n, r != job.begin, sums, scratch);
  });
}

}  // namespace hhmpn
