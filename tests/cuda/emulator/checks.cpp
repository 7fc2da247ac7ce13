// Every load and store of the kernels: bounds, alignment, initialisation and races. The kernels are compiled with GCC's
// -fsanitize=thread and bounds, whose hooks are defined here instead of in libtsan.
#include <link.h>

#include <algorithm>
#include <cstdio>

#include "state.hpp"
namespace cuemu {
using hh::smem;
// ---- memory checks --------------------------------------------------------------------------------
static bool first(void* pc) {
  if (std::find(G.seen.begin(), G.seen.end(), pc) != G.seen.end()) return false;
  G.seen.push_back(pc);
  return true;
}
static const Loc* cur_loc = nullptr;
// A file in its folder: "tower/forward.cu".
static std::string short_name(const std::string& path) {
  const auto last = path.rfind('/');
  const auto before = last == std::string::npos || last == 0 ? last : path.rfind('/', last - 1);
  return before == std::string::npos ? path : path.substr(before + 1);
}
static std::string where(void* pc) {
  if (cur_loc) {
    return short_name(cur_loc->file_name()) + ":" + std::to_string(cur_loc->line());
  }
  std::string so;
  uintptr_t base = 0;
  struct D {
    uintptr_t pc;
    std::string* so;
    uintptr_t* base;
  } d{reinterpret_cast<uintptr_t>(pc), &so, &base};
  dl_iterate_phdr(
      [](dl_phdr_info* i, size_t, void* v) {
        auto* d = static_cast<D*>(v);
        for (int k = 0; k < i->dlpi_phnum; k++) {
          auto& p = i->dlpi_phdr[k];
          auto a = i->dlpi_addr + p.p_vaddr;
          if (p.p_type == PT_LOAD && d->pc >= a && d->pc < a + p.p_memsz) {
            *d->so = i->dlpi_name;
            *d->base = i->dlpi_addr;
            return 1;
          }
        }
        return 0;
      },
      &d);
  if (so.empty()) so = "/proc/self/exe";
  char cmd[512];
  snprintf(cmd, sizeof cmd, "addr2line -ie '%s' 0x%zx 2>/dev/null", so.c_str(), size_t(d.pc - base - 1));
  std::string r;
  if (FILE* p = popen(cmd, "r")) {
    char b[256];
    while (fgets(b, sizeof b, p)) {
      std::string s = b;
      s.pop_back();
      s = short_name(s);
      if (s.find("cuemu.hpp") != std::string::npos) continue;
      if (!r.empty()) r += " < ";
      r += s;
      if (r.size() > 160) break;
    }
    pclose(p);
  }
  return r.empty() ? "?" : r;
}
static void race(std::vector<Cell>& sh, size_t off, size_t n, bool write, bool atomic, uint32_t gen, const char* what,
                 const char* name, void* pc) {
  auto& f = G.f[G.cur];
  const uint32_t me = G.block_lin * 1024 + f.lin, be = G.be, we = G.we[f.warp], wb = 1u << f.warp;
  auto clash = [&](uint32_t t, uint32_t tbe, uint32_t twe) {
    if (t == me) return false;
    if (t / 1024 != me / 1024) return true;
    if (tbe != be) return false;
    return !((t % 1024) / 32 == f.warp && twe != we);
  };
  for (size_t i = off; i < off + n; i++) {
    Cell& c = sh[i];
    if (c.gen != gen) {
      c = Cell{};
      c.gen = gen;
    }
    const char* k = nullptr;
    uint32_t o = 0;
    if (c.has_w && !(atomic && c.w_at) && clash(c.w_tid, c.w_be, c.w_we))
      k = write ? "write after write" : "read after write", o = c.w_tid;
    else if (write && c.has_r && !atomic) {
      if (clash(c.r_tid, c.r_be, c.r_we)) k = "write after read", o = c.r_tid;
      else if (c.r_be == be && c.r_tid / 1024 == me / 1024 && ((c.r_warps & ~wb) || (c.multi && c.r_we == we)))
        k = "write after read", o = c.r_tid;
    }
    if (k && first(pc))
      report("RACE (%s) on %s %s+%zu at %s: no barrier since thread %u", k, what, name, i, where(pc).c_str(), o % 1024);
    if (write) {
      c.has_w = 1;
      c.w_tid = me;
      c.w_be = be;
      c.w_we = we;
      c.w_at = atomic;
      c.init = 1;
    } else {
      if (what[0] == 's' && !c.init && first(static_cast<char*>(pc) + 1))
        report("UNINITIALISED %s read at +%zu, %s", what, i, where(pc).c_str());
      if (c.has_r && c.r_be == be) {
        c.multi = (c.r_tid != me && c.r_we == we) || (c.multi && c.r_we == we);
        c.r_warps |= wb;
      } else {
        c.multi = 0;
        c.r_warps = wb;
      }
      c.has_r = 1;
      c.r_tid = me;
      c.r_be = be;
      c.r_we = we;
    }
  }
}
// Leave the kernel at an access that must not happen (it would crash or corrupt the host): the block's threads are
// abandoned where they stand and no further block is run.
[[noreturn]] void stop() {
  G.abort = G.stop = true;
  next();
  __builtin_unreachable();
}
static void access(const void* p, size_t n, bool write, bool atomic, void* pc) {
  if (G.cur < 0) return;
  auto a = reinterpret_cast<uintptr_t>(p), s0 = reinterpret_cast<uintptr_t>(G.stacks);
  if (a - s0 < G.nstk * kStack || a - reinterpret_cast<uintptr_t>(G.f.data()) < G.n * sizeof(Fiber)) return;
  G.accesses++;
  const char* rw = write ? "write" : "read";
  if (n <= 16 && (n & (n - 1)) == 0 && (a & (n - 1))) {
    report("MISALIGNED %zu-byte %s at %s", n, rw, where(pc).c_str());
    stop();
  }
  if (a >= G.tls_lo && a < G.tls_hi) {
    auto d0 = reinterpret_cast<uintptr_t>(&smem[0]);
    if (a >= d0 && a < d0 + CUEMU_MAX_SMEM && a + n > d0 + G.dyn) {
      report("OUT OF BOUNDS shared %s: %zu bytes at dynamic smem+%zu of %zu, %s", rw, n, size_t(a - d0), G.dyn,
             where(pc).c_str());
      stop();
    }
    if (a < d0) race(G.shared, a - G.tls_lo, n, write, atomic, G.block_gen, "shared", "static", pc);
    else race(G.shared, a - G.tls_lo, n, write, atomic, G.block_gen, "shared", "", pc);
    return;
  }
  static size_t last = 0;
  if (last >= G.buffers.size() || !(a >= G.buffers[last].lo && a < G.buffers[last].hi)) {
    for (last = 0; last < G.buffers.size(); last++)
      if (a >= G.buffers[last].lo && a < G.buffers[last].hi) break;
  }
  if (last < G.buffers.size()) {
    auto& b = G.buffers[last];
    if (a + n > b.hi) {
      report("OUT OF BOUNDS global %s: %zu bytes across the end of '%s' at %s", rw, n, b.name.c_str(),
             where(pc).c_str());
      stop();
    }
    if (write && !b.writable) {
      report("WRITE to read-only '%s' at %s", b.name.c_str(), where(pc).c_str());
      stop();
    }
    if (b.writable) race(b.shadow, a - b.lo, n, write, atomic, G.launch_gen, "global", b.name.c_str(), pc);
    return;
  }
  for (auto& s : G.segs)
    if (a >= s.first && a < s.second) return;
  if (a >= G.main_lo && a < G.main_hi) return;
  {
    const Buffer* best = nullptr;
    for (auto& b : G.buffers)
      if (b.lo <= a && (!best || b.lo > best->lo)) best = &b;
    report("OUT OF BOUNDS global %s of %zu bytes at %s (%s%s%+ld)", rw, n, where(pc).c_str(),
           best ? "end of " : "no buffer", best ? best->name.c_str() : "", best ? long(a - best->hi) : 0L);
  }
  stop();
}
void touch(const void* p, size_t n, bool write, bool atomic) {
  access(p, n, write, atomic, __builtin_return_address(0));
}
void touch_at(const void* p, size_t n, bool write, Loc l) {  // from the runtime itself: report the kernel's line
  cur_loc = &l;
  access(p, n, write, false, reinterpret_cast<void*>(uintptr_t(l.line()) * 4 + write * 2));
  cur_loc = nullptr;
}
bool readable(const void* p, size_t n) {
  auto a = reinterpret_cast<uintptr_t>(p);
  for (auto& b : G.buffers)
    if (a >= b.lo && a + n <= b.hi) return true;
  return G.buffers.empty();
}
}  // namespace cuemu
extern "C" {
#define CUEMU_HOOK(N)                                                                                        \
  void __tsan_read##N(void* p) { cuemu::access(p, N, false, false, __builtin_return_address(0)); }           \
  void __tsan_write##N(void* p) { cuemu::access(p, N, true, false, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##N(void* p) { cuemu::access(p, N, false, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##N(void* p) { cuemu::access(p, N, true, false, __builtin_return_address(0)); } \
  void __tsan_volatile_read##N(void* p) { cuemu::access(p, N, false, false, __builtin_return_address(0)); }  \
  void __tsan_volatile_write##N(void* p) { cuemu::access(p, N, true, false, __builtin_return_address(0)); }
CUEMU_HOOK(1) CUEMU_HOOK(2) CUEMU_HOOK(4) CUEMU_HOOK(8) CUEMU_HOOK(16) void __tsan_read_range(void* p, size_t n) {
  cuemu::access(p, n, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) { cuemu::access(p, n, true, false, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
struct UbLoc {
  const char* file;
  uint32_t line, col;
};
void __ubsan_handle_out_of_bounds(UbLoc* l, void* i) {
  cuemu::report("ARRAY INDEX %ld out of range at %s:%u", long(i), l->file, l->line);
  cuemu::stop();
}
void __ubsan_handle_type_mismatch_v1(UbLoc* l, void* p) {
  cuemu::report("MISALIGNED or null pointer %p at %s:%u", p, l->file, l->line);
  cuemu::stop();
}
}
