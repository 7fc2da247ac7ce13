// readout: alpha = softmax over the modalities present of wl . u^m,  u = sum_m alpha^m u^m,  logit = wo . u   (Eqs 15-17)
//
//   u (M, B, L, d)   present (M, B)   wl (d) or null: alpha 1   wo (L, d)   fused (B, L, d)   logits (B, L)   alpha (M, B, L)
#pragma once
#include "base/unit.h"

namespace hhmpn {

template <class T>
struct ReadoutArgs {
  int64_t modalities, samples, labels, dim;
  const T *u, *wl, *wo;
  const bool* present;
  T *fused, *logits, *alpha;
  // backward: gradients of the three outputs, any of them null
  const T *d_fused, *d_logits, *d_alpha;
  T* du;
};

template <class T>
struct ReadoutKernels {
  int64_t (*scratch)(const ReadoutArgs<T>& args);
  void (*forward)(const ReadoutArgs<T>& args, int64_t sample, char* scratch);
  void (*backward)(const ReadoutArgs<T>& args, int64_t sample, Acc<T>* sums,
                   char* scratch);  // sums (1 + L, d) += wl, wo
};

constexpr int64_t kReadoutSamples = 8;  // samples whose weight gradients one task sums

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(readout, ReadoutKernels)
