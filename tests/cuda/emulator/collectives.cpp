// Warp operations: lanes leave their arguments, the last one to arrive computes for all. cp.async data arrive at the
// wait only.
#include <algorithm>

#include "state.hpp"
namespace cuemu {
using hh::smem;
void cp_async(void* dst, const void* src, unsigned n, bool pred, Loc l) {
  auto& f = G.f[G.cur];
  if ((reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src)) & (n - 1))
    report("cp.async: address not %u-byte aligned (%s:%u)", n, l.file_name(), l.line());
  if (pred) touch_at(src, n, false, l);
  touch_at(dst, n, true, l);
  std::memset(dst, 0xff, n);  // the data is not there before the wait
  f.copies.push_back(
      {static_cast<unsigned char*>(dst), static_cast<const unsigned char*>(src), n, pred, f.cp_group, l});
}
void cp_async_commit() { G.f[G.cur].cp_group++; }
void cp_async_wait(int pending) {  // pending < 0: wait_all, uncommitted copies included
  auto& f = G.f[G.cur];
  size_t k = 0;
  for (auto& c : f.copies) {
    if (pending >= 0 && c.group >= f.cp_group - pending) {
      f.copies[k++] = c;
      continue;
    }
    touch_at(c.dst, c.n, true, c.loc);
    if (c.pred && readable(c.src, c.n)) std::memcpy(c.dst, c.src, c.n);
    else if (!c.pred) std::memset(c.dst, 0, c.n);
  }
  f.copies.resize(k);
}
void do_shfl(void* a[32], unsigned act) {
  for (unsigned i = 0; i < 32; i++)
    if (act >> i & 1) {
      auto* x = static_cast<ShArg*>(a[i]);
      int s = x->own ? int(i) : x->src;
      if (act >> s & 1) std::memcpy(x->out, static_cast<ShArg*>(a[s])->v, 16);
      else {
        report("shuffle: lane %u reads lane %d, which takes no part", i, s);
        std::memset(x->out, 0xff, 16);
      }
    }
}
void do_vote(void* a[32], unsigned act) {
  unsigned m = 0;
  for (int i = 0; i < 32; i++)
    if (act >> i & 1) m |= unsigned(static_cast<VoteArg*>(a[i])->p != 0) << i;
  for (int i = 0; i < 32; i++)
    if (act >> i & 1) static_cast<VoteArg*>(a[i])->out = m;
}
static float element(uint32_t r, int hi, bool bf16) {
  if (!bf16) return __half2float(std::bit_cast<__half>(uint16_t(hi ? r >> 16 : r)));
  return std::bit_cast<float>(hi ? r & 0xffff0000u : r << 16);
}
void do_mma(void* args[32], unsigned act) {
  if (act != 0xffffffffu) {
    report("mma.sync with active mask %08x", act);
    return;
  }
  float A[16][16], B[8][16];
  for (int l = 0; l < 32; l++) {
    auto* x = static_cast<MmaArg*>(args[l]);
    int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; i++)
      for (int h = 0; h < 2; h++) A[g + 8 * (i & 1)][t + h + 8 * (i >> 1)] = element(x->a[i], h, x->bf16);
    for (int i = 0; i < 2; i++)
      for (int h = 0; h < 2; h++) B[g][t + h + 8 * i] = element(x->b[i], h, x->bf16);
  }
  for (int l = 0; l < 32; l++) {
    auto* x = static_cast<MmaArg*>(args[l]);
    int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; i++) {
      const float *ar = A[g + 8 * (i >> 1)], *bc = B[t + (i & 1)];
      float s = 0;
      for (int k = 0; k < 16; k++) s += ar[k] * bc[k];
      x->d[i] += s;
    }
  }
}
void do_ldmatrix(void* args[32], unsigned act) {
  if (act != 0xffffffffu) {
    report("ldmatrix with active mask %08x", act);
    return;
  }
  int n = static_cast<LdmArg*>(args[0])->n;
  for (int m = 0; m < n; m++) {
    uint16_t M[8][8];
    unsigned banks = 0;
    for (int r = 0; r < 8; r++) {
      auto* row = static_cast<LdmArg*>(args[m * 8 + r])->row;
      std::memcpy(M[r], row, 16);
      banks |= 1u << (reinterpret_cast<uintptr_t>(row) >> 4 & 7);
    }
    G.ldm++;
    G.ldm_conflict += 8 - std::popcount(banks);
    for (int l = 0; l < 32; l++) {
      auto* x = static_cast<LdmArg*>(args[l]);
      int g = l >> 2, t = (l & 3) * 2;
      uint32_t lo = x->trans ? M[t][g] : M[g][t], hi = x->trans ? M[t + 1][g] : M[g][t + 1];
      x->out[m] = lo | hi << 16;
    }
  }
}
static void touch_row(const void* row, Loc l) { touch_at(row, 16, false, l); }
void ldmatrix(uint32_t* out, const void* row, int n, bool trans, Loc l) {
  if ((cur().lane >> 3) < unsigned(n)) {
    if (reinterpret_cast<uintptr_t>(row) & 15)
      report("ldmatrix: row address not 16-byte aligned (%s:%u)", l.file_name(), l.line());
    touch_row(row, l);
  }
  LdmArg x{row, out, n, trans};
  collective(0xffffffffu, kLdmatrix, &x, do_ldmatrix, l);
}
}  // namespace cuemu
