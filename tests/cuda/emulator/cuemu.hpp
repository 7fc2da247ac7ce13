// CUDA C++ on the CPU, for correctness tests only: what a kernel's source needs besides C++.
// Threads of a block are fibers; they run, in random order, from one barrier to the next. NVIDIA's own headers give
// float4, __nv_bfloat16, __half ... (their host paths need no nvcc, no libcudart).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define CUEMU 1
#undef __shared__
#define __shared__ thread_local  // function-local => implicitly static; extern arrays work too
#undef __constant__
#define __constant__ static
#undef __launch_bounds__
#define __launch_bounds__(...)  // launch() checks the limit when the runtime is told of it
#undef __grid_constant__
#define __grid_constant__

namespace cuemu {
using Loc = std::source_location;
struct Lane {
  uint3 tid, bid;
  uint3 bdim, gdim;
  unsigned lin, lane, warp;
};
const Lane& cur() noexcept;

// launches
void run_grid(dim3 grid, dim3 block, size_t dyn_smem, void (*thunk)(void*), void* ctx);
// While recording, launches are written down instead of run: the PTX interpreter then runs nvcc's version of them.
bool recording();
void record(const void* kernel, dim3 grid, dim3 block, size_t dyn_smem, const std::string& params);
template <class P>
void append(std::string& params, const P& p) {
  params.resize((params.size() + alignof(P) - 1) / alignof(P) * alignof(P));
  params.append(reinterpret_cast<const char*>(&p), sizeof(P));
}
template <class... P, class... A>
void launch(void (*k)(P...), dim3 g, dim3 b, size_t smem, A&&... a) {
  if (recording()) {
    std::string params;
    (append<P>(params, P(a)), ...);
    return record(reinterpret_cast<const void*>(k), g, b, smem, params);
  }
  struct Ctx {
    void (*k)(P...);
    std::tuple<P...> args;
  } c{k, std::tuple<P...>(std::forward<A>(a)...)};
  run_grid(
      g, b, smem,
      [](void* p) {
        auto* c = static_cast<Ctx*>(p);
        std::apply(c->k, c->args);
      },
      &c);
}

// barriers and warp collectives
enum Kind { kSyncWarp, kShfl, kVote, kMma, kLdmatrix, kReduce };
int block_barrier(int pred, Loc l);                        // returns the number of threads with pred != 0
using CollFn = void (*)(void* args[32], unsigned active);  // run once, by the last lane to arrive
void collective(unsigned mask, Kind k, void* arg, CollFn fn, Loc l);

// --- memory checks
void touch(const void* p, size_t n, bool write, bool atomic = false);
void cp_async(void* dst, const void* src, unsigned bytes, bool pred, Loc l);
void cp_async_commit();
void cp_async_wait(int pending);
void report(const char* fmt, ...) __attribute__((format(printf, 1, 2)));

void do_shfl(void* a[32], unsigned act);
void do_vote(void* a[32], unsigned act);
void do_mma(void* a[32], unsigned act);
void do_ldmatrix(void* a[32], unsigned act);
struct ShArg {
  unsigned char v[16], out[16];
  int src;
  bool own;
};
template <class T>
T shfl(unsigned mask, T v, int src, bool own, Loc l) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  ShArg x{};
  std::memcpy(x.v, &v, sizeof v);
  x.src = src;
  x.own = own;
  collective(mask, kShfl, &x, do_shfl, l);
  T r;
  std::memcpy(&r, x.out, sizeof r);
  return r;
}
struct VoteArg {
  int p;
  unsigned out;
};
inline unsigned ballot(unsigned mask, int p, Loc l) {
  VoteArg x{p, 0};
  collective(mask, kVote, &x, do_vote, l);
  return x.out;
}

// D(16x8,f32) += A(16x16,T row) * B(16x8,T col); fragment layout of PTX mma.m16n8k16, T .bf16 or .f16
struct MmaArg {
  float* d;
  const uint32_t *a, *b;
  bool bf16;
};
struct LdmArg {
  const void* row;
  uint32_t* out;
  int n;
  bool trans;
};
void ldmatrix(uint32_t* out, const void* row, int n, bool trans, Loc l);
inline void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool bf16, Loc l) {
  MmaArg x{d, a, b, bf16};
  collective(0xffffffffu, kMma, &x, do_mma, l);
}
// read-modify-write done in the (uninstrumented) runtime
template <class T, class F>
__attribute__((noinline, no_sanitize("thread"))) T rmw(T* p, F f) {
  touch(p, sizeof(T), true, true);
  T old, nw;
  std::memcpy(&old, p, sizeof(T));
  nw = f(old);
  std::memcpy(p, &nw, sizeof(T));
  return old;
}
}  // namespace cuemu

#define threadIdx (::cuemu::cur().tid)
#define blockIdx (::cuemu::cur().bid)
#define blockDim (::cuemu::cur().bdim)
#define gridDim (::cuemu::cur().gdim)
static constexpr int warpSize = 32;

#define CUEMU_L ::cuemu::Loc l = ::cuemu::Loc::current()
inline void __syncthreads(CUEMU_L) { ::cuemu::block_barrier(0, l); }
inline int __syncthreads_count(int p, CUEMU_L) { return ::cuemu::block_barrier(p, l); }
inline int __syncthreads_or(int p, CUEMU_L) { return ::cuemu::block_barrier(p, l) != 0; }
inline void __syncwarp(unsigned m = 0xffffffffu, CUEMU_L) {
  ::cuemu::collective(m, ::cuemu::kSyncWarp, nullptr, nullptr, l);
}
template <class T>
T __shfl_sync(unsigned m, T v, int src, int w = 32, CUEMU_L) {
  int ln = ::cuemu::cur().lane, seg = ln & ~(w - 1);
  return ::cuemu::shfl(m, v, seg + (src & (w - 1)), false, l);
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, CUEMU_L) {
  int ln = ::cuemu::cur().lane, seg = ln & ~(w - 1), j = ln ^ x;
  return ::cuemu::shfl(m, v, j, j >= seg + w, l);
}
template <class T>
T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, CUEMU_L) {
  int ln = ::cuemu::cur().lane, seg = ln & ~(w - 1), j = ln + d;
  return ::cuemu::shfl(m, v, j, j >= seg + w, l);
}
template <class T>
T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, CUEMU_L) {
  int ln = ::cuemu::cur().lane, seg = ln & ~(w - 1), j = ln - int(d);
  return ::cuemu::shfl(m, v, j, j < seg, l);
}
inline unsigned __ballot_sync(unsigned m, int p, CUEMU_L) { return ::cuemu::ballot(m, p, l); }
inline int __any_sync(unsigned m, int p, CUEMU_L) { return ::cuemu::ballot(m, p, l) != 0; }
inline int __all_sync(unsigned m, int p, CUEMU_L) { return ::cuemu::ballot(m, !p, l) == 0; }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, T v) {
  *p = v;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return std::bit_cast<float>(u); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
template <class T>
std::enable_if_t<std::is_arithmetic_v<T>, T> min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
std::enable_if_t<std::is_arithmetic_v<T>, T> max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T atomicAdd(T* p, T v) {
  return ::cuemu::rmw(p, [=](T o) { return T(o + v); });
}
template <class T>
T atomicMax(T* p, T v) {
  return ::cuemu::rmw(p, [=](T o) { return o < v ? v : o; });
}
template <class T>
T atomicMin(T* p, T v) {
  return ::cuemu::rmw(p, [=](T o) { return v < o ? v : o; });
}
template <class T>
T atomicExch(T* p, T v) {
  return ::cuemu::rmw(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, T c, T v) {
  return ::cuemu::rmw(p, [=](T o) { return o == c ? v : o; });
}
