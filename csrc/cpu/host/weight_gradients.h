// Weight gradients over all rows of a batch: C = sum over rows of a[r, :]^T b[r, :], many of them in one parallel region.
// A task owns a block of columns of one C and walks the rows in ascending order: no partial sums, the same bits always.
#pragma once
#include <algorithm>
#include <vector>

#include "base/dense.h"
#include "host/threads.h"

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
  bool add = false;    // to what c and sums hold
};

template <class T>
void run_outer_jobs(const std::vector<OuterJob<T>>& jobs) {
  constexpr int64_t kColumns = 128;
  struct Task {
    const OuterJob<T>* job;
    int64_t column, columns;
  };
  const auto cost = [](const OuterJob<T>& job) { return (job.end - job.begin) * job.m; };
  std::vector<const OuterJob<T>*> order;
  for (const OuterJob<T>& job : jobs) order.push_back(&job);
  std::stable_sort(order.begin(), order.end(), [&](const auto* x, const auto* y) { return cost(*x) > cost(*y); });
  std::vector<Task> tasks;
  int64_t bytes = 0;
  const DenseKernels<T>& k = dense<T>();
  for (size_t i = 0; i < order.size(); i++) {
    // Every task of a job lays out the job's left side for itself, where that needs a layout: only the last jobs are cut finely.
    const bool fine = sizeof(T) > 2 || int64_t(order.size() - i) <= at::get_num_threads();
    const int64_t step = fine ? kColumns : 2 * kColumns;
    for (int64_t j = 0; j < order[i]->n; j += step) tasks.push_back({order[i], j, std::min(step, order[i]->n - j)});
    bytes = std::max(bytes, k.outer_scratch(order[i]->m, step, kOuterRows));
  }
  // Blocks of nearly equal height, an even number of rows each but the last.
  const auto height = [](const OuterJob<T>& job) {
    const int64_t rows = job.end - job.begin, blocks = std::max<int64_t>((rows + kOuterRows - 1) / kOuterRows, 1);
    return (rows + 2 * blocks - 1) / (2 * blocks) * 2;
  };
  const auto block = [&](const Task& task, int64_t row) {
    const OuterJob<T>& job = *task.job;
    return OuterBlock<T>{std::min(height(job), job.end - row), job.m,  task.columns, job.a + row * job.lda, job.lda,
                         job.b + row * job.ldb + task.column,  job.ldb};
  };
  const int64_t threads = at::get_num_threads();
  parallel_tasks(int64_t(tasks.size()), bytes, [&](int64_t i, char* scratch) {
    const Task& task = tasks[i];
    const OuterJob<T>& job = *task.job;
    Acc<T>*c = job.c + task.column, *sums = task.column == 0 ? job.sums : nullptr;
    if (sums && !job.add) std::fill(sums, sums + job.m, Acc<T>(0));
    if (job.begin == job.end && !job.add)
      for (int64_t r = 0; r < job.m; r++) std::fill(c + r * job.n, c + r * job.n + task.columns, Acc<T>(0));
    for (int64_t r = job.begin, step = height(job); r < job.end; r += step) {
      OuterBlock<T> next;  // this thread's next task is about as many further on as there are threads
      if (r + step < job.end) next = block(task, r + step);
      else if (i + threads < int64_t(tasks.size())) next = block(tasks[i + threads], tasks[i + threads].job->begin);
      k.outer(block(task, r), next, c, job.n, job.add || r != job.begin, sums, scratch);
    }
  });
}

}  // namespace hhmpn
