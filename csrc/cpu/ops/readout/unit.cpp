// Per-ISA side of readout.h.
#include "ops/readout/kernels.h"

#include "base/arena.h"
#include "simd/rows.h"
#include "simd/thin_gemm.h"

namespace {

using hhmpn::ReadoutArgs;

template <class T>
struct ReadoutScratch {
  ReadoutScratch(Arena a, const ReadoutArgs<T>& r)
      : alpha(a.take<Acc<T>>(r.modalities)),
        grad(a.take<Acc<T>>(r.modalities)),
        row(a.take<Acc<T>>(r.dim)),
        bytes(a.bytes) {}
  Acc<T>*alpha, *grad, *row;
  int64_t bytes;
};

template <class T>
int64_t readout_scratch(const ReadoutArgs<T>& r) {
  return ReadoutScratch<T>(Arena(nullptr), r).bytes;
}

template <class T>
HHMPN_INLINE Acc<T> dot_row(int64_t n, const T* a, const Acc<T>* wide, const T* b) {
  Vec<Acc<T>> sum{};
  over_lanes<T>(
      n, [&](int64_t j, int64_t w) { sum += load_n(a + j, w) * (wide ? load_n(wide + j, w) : load_n(b + j, w)); });
  return sum_lanes(sum);
}

// Modality weights of one label row into `alpha`; an absent modality's is 0 and its states are never read.
template <class T>
void modality_weights(const ReadoutArgs<T>& r, int64_t b, int64_t l, Acc<T>* alpha) {
  int64_t count = 0;
  for (int64_t m = 0; m < r.modalities; m++) {
    if (!r.present[m * r.samples + b]) continue;
    alpha[count++] =
        r.wl ? dot_row<T>(r.dim, r.u + ((m * r.samples + b) * r.labels + l) * r.dim, nullptr, r.wl) : Acc<T>(1);
  }
  if (r.wl) softmax_row(count, alpha, nullptr);
  for (int64_t m = r.modalities - 1; m >= 0; m--) alpha[m] = r.present[m * r.samples + b] ? alpha[--count] : Acc<T>(0);
}

template <class T>
void readout_forward(const ReadoutArgs<T>& r, int64_t b, char* scratch) {
  const ReadoutScratch<T> s(Arena(scratch), r);
  for (int64_t l = 0; l < r.labels; l++) {
    modality_weights<T>(r, b, l, s.alpha);
    const int64_t row = b * r.labels + l;
    over_lanes<T>(r.dim, [&](int64_t j, int64_t w) { store_n(s.row + j, Vec<Acc<T>>{}, w); });
    for (int64_t m = 0; m < r.modalities; m++) {
      const int64_t at = (m * r.samples + b) * r.labels + l;
      copy_row(1, s.alpha + m, r.alpha + at);
      if (!r.present[m * r.samples + b]) continue;
      over_lanes<T>(r.dim, [&](int64_t j, int64_t w) {
        store_n(s.row + j, load_n(s.row + j, w) + load_n(r.u + at * r.dim + j, w) * s.alpha[m], w);
      });
    }
    const Acc<T> logit = dot_row<T>(r.dim, r.wo + l * r.dim, s.row, nullptr);
    copy_row(1, &logit, r.logits + row);
    copy_row(r.dim, s.row, r.fused + row * r.dim);
  }
}

template <class T>
HHMPN_INLINE Acc<T> read_one(const T* p) {
  Acc<T> x;
  copy_row(1, p, &x);
  return x;
}

template <class T>
void readout_backward(const ReadoutArgs<T>& r, int64_t b, Acc<T>* sums, char* scratch) {
  const ReadoutScratch<T> s(Arena(scratch), r);
  const int64_t d = r.dim;
  for (int64_t l = 0; l < r.labels; l++) {
    const int64_t row = b * r.labels + l;
    const Acc<T> logit = r.d_logits ? read_one(r.d_logits + row) : Acc<T>(0);
    Acc<T>* wo = sums + (1 + l) * d;
    over_lanes<T>(d, [&](int64_t j, int64_t w) {
      Vec<Acc<T>> down = load_n(r.wo + l * d + j, w) * logit;
      if (r.d_fused) down += load_n(r.d_fused + row * d + j, w);
      store_n(s.row + j, down, w);
      store_n(wo + j, load_n(wo + j, w) + load_n(r.fused + row * d + j, w) * logit, w);
    });
    Acc<T> mean = 0;
    for (int64_t m = 0; m < r.modalities; m++) {
      const int64_t at = (m * r.samples + b) * r.labels + l;
      if (!r.present[m * r.samples + b]) continue;
      s.alpha[m] = r.wl ? read_one(r.alpha + at) : Acc<T>(1);
      s.grad[m] = dot_row<T>(d, r.u + at * d, s.row, nullptr) + (r.d_alpha ? read_one(r.d_alpha + at) : Acc<T>(0));
      mean += s.alpha[m] * s.grad[m];
    }
    for (int64_t m = 0; m < r.modalities; m++) {
      const int64_t at = (m * r.samples + b) * r.labels + l;
      if (!r.present[m * r.samples + b]) {
        over_lanes<T>(d, [&](int64_t j, int64_t w) { store_n(r.du + at * d + j, Vec<Acc<T>>{}, w); });
        continue;
      }
      const Acc<T> score = r.wl ? s.alpha[m] * (s.grad[m] - mean) : Acc<T>(0);
      over_lanes<T>(d, [&](int64_t j, int64_t w) {
        Vec<Acc<T>> du = load_n(s.row + j, w) * s.alpha[m];
        if (r.wl) {
          du += load_n(r.wl + j, w) * score;
          store_n(sums + j, load_n(sums + j, w) + load_n(r.u + at * d + j, w) * score, w);
        }
        store_n(r.du + at * d + j, du, w);
      });
    }
  }
}

template <class T>
constexpr hhmpn::ReadoutKernels<T> make_kernels() {
  return {readout_scratch<T>, readout_forward<T>, readout_backward<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(readout, ReadoutKernels, make_kernels)
