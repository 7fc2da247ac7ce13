// Every instruction that C++ has no name for, and the launch: the one header with inline PTX. The host harness of
// tests/cuda_on_cpu gives each a version of its own, so that the same kernels run on a CPU.
#pragma once
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#define HH_LOC
#else
#include "cuemu.hpp"
#define HH_LOC , ::cuemu::Loc loc = ::cuemu::Loc::current()
#endif
#define HH_DEV __device__ __forceinline__

namespace hh {
using bf16 = __nv_bfloat16;
using fp16 = __half;

#if defined(__CUDACC__)
HH_DEV uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
// 16 bytes, global to shared, asynchronously; zeros when !pred, src is then not read.
HH_DEV void cp_async16(void* dst, const void* src, bool pred) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(pred ? 16 : 0)
               : "memory");
}
HH_DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
HH_DEV void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
HH_DEV void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
HH_DEV void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// D (16 x 8) += A (16 x 16, rows) B (16 x 8, columns) in T, fp32 accumulation.
#define HH_MMA(T)                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." T "." T \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9},"    \
               " {%0,%1,%2,%3};"                                \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <class T>
HH_DEV void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) HH_MMA("bf16");
  else HH_MMA("f16");
}

template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t smem, void* stream, A&&... args) {
  if (smem > 48 * 1024) {
    const void* f = reinterpret_cast<const void*>(kernel);
    const cudaError_t e = cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem));
    if (e != cudaSuccess) return int(e);
  }
  cudaLaunchConfig_t c{};
  c.gridDim = grid;
  c.blockDim = dim3(threads);
  c.dynamicSmemBytes = smem;
  c.stream = static_cast<cudaStream_t>(stream);
  return int(cudaLaunchKernelEx(&c, kernel, std::forward<A>(args)...));
}
#else
inline void cp_async16(void* dst, const void* src, bool pred HH_LOC) { cuemu::cp_async(dst, src, 16, pred, loc); }
inline void cp_async_commit() { cuemu::cp_async_commit(); }
template <int N>
inline void cp_async_wait() {
  cuemu::cp_async_wait(N);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row HH_LOC) { cuemu::ldmatrix(r, row, 4, false, loc); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row HH_LOC) { cuemu::ldmatrix(r, row, 4, true, loc); }
template <class T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 HH_LOC) {
  const uint32_t b[2] = {b0, b1};
  cuemu::mma_16816(d, a, b, std::is_same_v<T, bf16>, loc);
}
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t smem, void*, A&&... args) {
  return cuemu::launch(kernel, grid, dim3(threads), smem, std::forward<A>(args)...), 0;
}
#endif
}  // namespace hh
