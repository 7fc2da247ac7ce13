// Baseline code: reads the CPU's features and the environment once.
#include "base/isa.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/unit.h"

namespace hhmpn {
namespace {

bool has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  HHMPN_IF_AVX2(if (isa == Isa::avx2) return avx2;)
  HHMPN_IF_AVX512(if (isa == Isa::avx512) return avx512;)
  HHMPN_IF_AVX512_BF16(if (isa == Isa::avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16");)
  (void)avx512;
#endif
  return isa == Isa::portable;
}

constexpr Isa kBestFirst[] = {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::portable};

Isa choose() {
  const char* wanted = std::getenv("HHMPN_CPU_ISA");
  for (Isa isa : kBestFirst) {
    if (wanted && *wanted) {
      if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
      TORCH_CHECK_VALUE(
          has(isa), "HHMPN_CPU_ISA is '", wanted, "', which this CPU or this build does not have; expected one of: ",
          [] {
            std::string names;
            for (Isa each : kBestFirst)
              if (has(each)) names += (names.empty() ? "" : ", ") + std::string(isa_name(each));
            return names;
          }(),
          ".");
      return isa;
    }
    if (has(isa)) return isa;
  }
  TORCH_CHECK_VALUE(false, "HHMPN_CPU_ISA is '", wanted, "'; expected avx512_bf16, avx512, avx2 or portable.");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace hhmpn
