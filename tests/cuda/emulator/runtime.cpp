// Threads of a block as fibers: each runs to its next barrier or warp operation, then another one, picked at random (or
// the lowest or highest first), goes on. Shared memory is the library's thread-local segment, filled with NaN before
// every block.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "state.hpp"
namespace hh {
alignas(1024) thread_local unsigned char smem[CUEMU_MAX_SMEM];
}
namespace cuemu {
using hh::smem;
Run G;
const Lane& cur() noexcept { return G.f[G.cur]; }
void report(const char* fmt, ...) {
  G.nerr++;
  if (G.errors.size() >= 24) return;
  char b[1024];
  va_list ap;
  va_start(ap, fmt);
  int k = vsnprintf(b, sizeof b, fmt, ap);
  va_end(ap);
  if (G.cur >= 0 && k < 900) {
    auto& f = G.f[G.cur];
    snprintf(b + k, sizeof b - k, " [block (%u,%u,%u) thread %u]", f.bid.x, f.bid.y, f.bid.z, f.lin);
  }
  G.errors.push_back(b);
}
static uint64_t rnd() {
  uint64_t& x = G.rng;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

// ---- fibers ---------------------------------------------------------------------------------------
extern "C" void cuemu_swap(void** save, void* to);
asm(R"(
.text
.globl cuemu_swap
.type cuemu_swap,@function
cuemu_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuemu_swap,.-cuemu_swap
)");
void next() {  // give up the processor: run another ready fiber, or the main context when there is none
  void** sv = G.cur < 0 ? &G.main_sp : &G.f[G.cur].sp;
  G.switches++;
  if (G.ready.empty() || G.abort) {
    if (G.cur < 0) return;
    G.cur = -1;
    cuemu_swap(sv, G.main_sp);
    return;
  }
  size_t i = G.order == 0 ? rnd() % G.ready.size() : G.order == 1 ? 0 : G.ready.size() - 1;
  if (G.order == 1) {
    for (size_t j = 1; j < G.ready.size(); j++)
      if (G.ready[j] < G.ready[i]) i = j;
  }
  if (G.order == 2) {
    for (size_t j = 0; j < G.ready.size(); j++)
      if (G.ready[j] > G.ready[i]) i = j;
  }
  int id = G.ready[i];
  G.ready[i] = G.ready.back();
  G.ready.pop_back();
  if (id == G.cur) return;
  G.cur = id;
  cuemu_swap(sv, G.f[id].sp);
}
static void release_block() {
  for (unsigned i = 1, f0 = ~0u; i <= G.n; i++) {
    auto& f = G.f[i - 1];
    if (f.st != kAtBlock) continue;
    if (f0 == ~0u) {
      f0 = i - 1;
      continue;
    }
    if (f.loc.line() != G.f[f0].loc.line()) {
      report("barrier divergence: thread %u waits at %s:%u, thread %u at line %u", G.f[f0].lin, G.f[f0].loc.file_name(),
             G.f[f0].loc.line(), f.lin, f.loc.line());
      break;
    }
  }
  for (unsigned i = 0; i < G.n; i++)
    if (G.f[i].st == kAtBlock) {
      G.f[i].st = kReady;
      G.ready.push_back(i);
    }
  G.be++;
  G.nbar = 0;
  G.last_preds = G.preds;
  G.preds = 0;
}
static void try_warp(Fiber& me) {  // all non-exited lanes of me.wmask here? then do it
  unsigned w0 = me.warp * 32, need = 0;
  void* args[32] = {};
  for (unsigned l = 0; l < 32 && w0 + l < G.n; l++) {
    if (!(me.wmask >> l & 1)) continue;
    auto& f = G.f[w0 + l];
    if (f.st == kDone) continue;
    if (f.st != kAtWarp || f.wmask != me.wmask || f.wkind != me.wkind) return;
    need |= 1u << l;
    args[l] = f.warg;
  }
  if (me.wfn) me.wfn(args, need);
  if (me.wkind == kSyncWarp) G.we[me.warp]++;
  for (unsigned l = 0; l < 32; l++)
    if (need >> l & 1) {
      G.f[w0 + l].st = kReady;
      G.ready.push_back(w0 + l);
    }
}
static void fiber_main() {
  G.thunk(G.ctx);
  auto& f = G.f[G.cur];
  if (!f.copies.empty()) report("the thread ends with %zu cp.async copies not waited for", f.copies.size());
  f.copies.clear();
  f.st = kDone;
  G.alive--;
  if (G.nbar && G.nbar == G.alive) release_block();
  for (unsigned l = f.warp * 32; l < f.warp * 32 + 32 && l < G.n; l++)
    if (G.f[l].st == kAtWarp) try_warp(G.f[l]);
  next();
  __builtin_unreachable();
}
int block_barrier(int pred, Loc l) {
  auto& f = G.f[G.cur];
  f.st = kAtBlock;
  f.loc = l;
  G.preds += pred != 0;
  if (++G.nbar == G.alive) release_block();
  next();
  return int(G.last_preds);
}
void collective(unsigned mask, Kind k, void* arg, CollFn fn, Loc l) {
  auto& f = G.f[G.cur];
  if (!(mask >> f.lane & 1))
    report("warp op at %s:%u: the calling lane is not in its mask %08x", l.file_name(), l.line(), mask);
  f.st = kAtWarp;
  f.loc = l;
  f.wmask = mask;
  f.wkind = k;
  f.warg = arg;
  f.wfn = fn;
  try_warp(f);
  next();
}
static void find_segments() {
  volatile unsigned char touch_tls = smem[0];
  (void)touch_tls;
  dl_iterate_phdr(
      [](dl_phdr_info* i, size_t, void*) {
        bool mine = false;
        auto self = reinterpret_cast<uintptr_t>(&cuemu::report);
        for (int k = 0; k < i->dlpi_phnum; k++) {
          auto& p = i->dlpi_phdr[k];
          auto a = i->dlpi_addr + p.p_vaddr;
          if (p.p_type == PT_LOAD && self >= a && self < a + p.p_memsz) mine = true;
        }
        if (!mine) return 0;
        for (int k = 0; k < i->dlpi_phnum; k++) {
          auto& p = i->dlpi_phdr[k];
          auto a = i->dlpi_addr + p.p_vaddr;
          if (p.p_type == PT_LOAD) G.segs.push_back({a, a + p.p_memsz});
          if (p.p_type == PT_TLS) {
            G.tls_lo = reinterpret_cast<uintptr_t>(i->dlpi_tls_data);
            G.tls_hi = G.tls_lo + p.p_memsz;
          }
        }
        return 1;
      },
      nullptr);
  pthread_attr_t at;
  void* lo;
  size_t sz;
  pthread_getattr_np(pthread_self(), &at);
  pthread_attr_getstack(&at, &lo, &sz);
  pthread_attr_destroy(&at);
  G.main_lo = reinterpret_cast<uintptr_t>(lo);
  G.main_hi = G.main_lo + sz;
}
void run_grid(dim3 grid, dim3 block, size_t dyn, void (*thunk)(void*), void* ctx) {
  G.n = block.x * block.y * block.z;
  G.thunk = thunk;
  G.ctx = ctx;
  G.dyn = dyn;
  G.launch_gen++;
  if (G.n == 0 || G.n > 1024 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 ||
      dyn > CUEMU_MAX_SMEM) {
    report("invalid launch configuration: grid (%u,%u,%u) block %u smem %zu", grid.x, grid.y, grid.z, G.n, dyn);
    return;
  }
  G.segs.clear();
  find_segments();
  if (G.nstk < G.n) {
    if (G.stacks) munmap(G.stacks, G.nstk * kStack);
    G.stacks = static_cast<char*>(
        mmap(nullptr, G.n * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    G.nstk = G.n;
    for (unsigned i = 0; i < G.n; i++) mprotect(G.stacks + i * kStack, 4096, PROT_NONE);
  }
  G.f.resize(G.n);
  std::vector<uint32_t> blocks(size_t(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
  if (G.order == 0)
    for (size_t i = blocks.size(); i > 1; i--) std::swap(blocks[i - 1], blocks[rnd() % i]);
  auto* dynp = reinterpret_cast<unsigned char*>(smem);
  auto d0 = reinterpret_cast<uintptr_t>(dynp);
  G.shared.resize(G.tls_hi - G.tls_lo);
  for (auto& b : G.buffers)
    if (b.writable) b.shadow.resize(b.hi - b.lo);
  G.stop = false;
  for (uint32_t bl : blocks) {
    if (G.stop) break;
    G.block_lin = bl;
    G.block_gen++;
    G.abort = false;
    G.be = 1;
    std::fill_n(G.we, 32, 1);
    G.alive = G.n;
    G.nbar = G.preds = 0;
    std::memset(reinterpret_cast<void*>(G.tls_lo), 0xff, d0 - G.tls_lo);  // static __shared__, below smem
    std::memset(reinterpret_cast<void*>(d0 + CUEMU_MAX_SMEM), 0xff, G.tls_hi - d0 - CUEMU_MAX_SMEM);  // and above
    std::memset(dynp, 0xff, dyn);                                                                     // dynamic: NaN
    G.ready.clear();
    for (unsigned i = 0; i < G.n; i++) {
      auto& f = G.f[i];
      f.lin = i;
      f.lane = i & 31;
      f.warp = i >> 5;
      f.st = kReady;
      f.cp_group = 0;
      f.copies.clear();
      f.tid = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
      f.bdim = {block.x, block.y, block.z};
      f.bid = {bl % grid.x, bl / grid.x % grid.y, bl / (grid.x * grid.y)};
      f.gdim = {grid.x, grid.y, grid.z};
      f.stack = G.stacks + i * kStack;
      auto** sp = reinterpret_cast<void**>(f.stack + kStack - 128);
      std::memset(sp, 0, 128);
      sp[6] = reinterpret_cast<void*>(&fiber_main);
      f.sp = sp;
      G.ready.push_back(i);
    }
    while (!G.ready.empty() && !G.abort) next();
    if (G.alive && !G.stop) {
      std::string s = "deadlock: ";
      int shown = 0;
      for (auto& f : G.f)
        if (f.st != kDone && shown++ < 6)
          s += "thread " + std::to_string(f.lin) + (f.st == kAtBlock ? " at __syncthreads" : " in a warp op") +
               " line " + std::to_string(f.loc.line()) + "; ";
      report("%s(%u of %u threads wait, %u have exited)", s.c_str(), G.alive, G.n, G.n - G.alive);
    }
  }
  G.cur = -1;
}

struct Recorded {
  std::string name, params;
  long dims[7];
};
static bool recording_on = false;
static std::vector<Recorded> recorded;
bool recording() { return recording_on; }
void record(const void* kernel, dim3 g, dim3 b, size_t smem, const std::string& params) {
  Dl_info info;
  const bool named = dladdr(kernel, &info) && info.dli_sname;
  recorded.push_back({named ? info.dli_sname : "?", params, {g.x, g.y, g.z, b.x, b.y, b.z, long(smem)}});
}

}  // namespace cuemu
extern "C" {
// Recording on or off; on forgets what was recorded before.
void cuemu_record(int on) {
  cuemu::recording_on = on;
  if (on) cuemu::recorded.clear();
}
// The i-th recorded launch: mangled name, grid, block and shared bytes, parameter block; returns its length, -1 behind
// the last.
long cuemu_recorded(long i, char* name, long* dims, char* params, size_t room) {
  if (i >= long(cuemu::recorded.size())) return -1;
  const auto& r = cuemu::recorded[i];
  snprintf(name, room, "%s", r.name.c_str());
  std::memcpy(dims, r.dims, sizeof r.dims);
  std::memcpy(params, r.params.data(), r.params.size());
  return long(r.params.size());
}
void cuemu_reset() {
  auto& g = cuemu::G;
  g.errors.clear();
  g.seen.clear();
  g.nerr = 0;
  g.buffers.clear();
  g.switches = g.accesses = g.ldm = g.ldm_conflict = 0;
}
void cuemu_seed(uint64_t s, int order) {
  cuemu::G.rng = s * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  cuemu::G.order = order;
  for (int i = 0; i < 4; i++) cuemu::rnd();
}
void cuemu_buffer(void* p, size_t n, const char* name, int writable) {
  auto a = reinterpret_cast<uintptr_t>(p);
  cuemu::G.buffers.push_back({a, a + n, name, writable != 0, {}});
}
long cuemu_errors(char* out, size_t n) {
  std::string s;
  for (auto& e : cuemu::G.errors) s += e + "\n";
  snprintf(out, n, "%s", s.c_str());
  return cuemu::G.nerr;
}
void cuemu_stats(long* s) {
  s[0] = cuemu::G.switches;
  s[1] = cuemu::G.accesses;
  s[2] = cuemu::G.ldm;
  s[3] = cuemu::G.ldm_conflict;
}
}
