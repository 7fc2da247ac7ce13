// The harness's one state: the running block's fibers, the shadow of its memory, and what was reported.
#pragma once
#include <string>
#include <vector>

#include "cuemu.hpp"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#ifndef CUEMU_MAX_SMEM
#define CUEMU_MAX_SMEM 232448  // 227 KiB, what one block can have on sm_90
#endif
// A block-scope extern names a member of the enclosing namespace: the kernels' namespace is given here.
namespace hh {
extern thread_local unsigned char smem[CUEMU_MAX_SMEM];
}

namespace cuemu {
enum State : uint8_t { kReady, kAtBlock, kAtWarp, kDone };

struct Copy {
  unsigned char* dst;
  const unsigned char* src;
  unsigned n;
  bool pred;
  int group;
  Loc loc;
};

struct Fiber : Lane {
  void* sp;
  char* stack;
  State st;
  unsigned wmask;
  Kind wkind;
  void* warg;
  CollFn wfn;
  Loc loc;
  int cp_group;
  std::vector<Copy> copies;
};

// What is known of one byte: its last writer and readers, in epochs of the block's and the warp's barriers.
struct Cell {
  uint32_t gen = 0, w_tid, r_tid, w_be, r_be, w_we, r_we, r_warps;
  uint8_t init, has_w, has_r, multi, w_at;
};

struct Buffer {
  uintptr_t lo, hi;
  std::string name;
  bool writable;
  std::vector<Cell> shadow;
};

constexpr size_t kStack = 256 << 10;

struct Run {
  std::vector<Fiber> f;
  char* stacks = nullptr;
  size_t nstk = 0;
  void* main_sp;
  int cur = -1;
  std::vector<int> ready;
  unsigned n, alive, nbar, preds, last_preds;
  bool abort, stop;
  uint32_t be, we[32], block_gen = 0, launch_gen = 0, block_lin;
  size_t dyn;
  void (*thunk)(void*);
  void* ctx;
  uint64_t rng = 1;
  int order = 0;
  uintptr_t tls_lo = 0, tls_hi = 0, main_lo = 0, main_hi = 0;
  std::vector<std::pair<uintptr_t, uintptr_t>> segs;
  std::vector<Cell> shared;
  std::vector<Buffer> buffers;
  std::vector<std::string> errors;
  std::vector<void*> seen;
  long nerr = 0, switches = 0, accesses = 0, ldm = 0, ldm_conflict = 0;
};
extern Run G;

void next();
[[noreturn]] void stop();
bool readable(const void* p, size_t n);
void touch_at(const void* p, size_t n, bool write, Loc l);  // an access by the runtime, reported at the kernel's line
}  // namespace cuemu
