// How a family of kernels gets its tables: one unit an ISA, compiled from one source, exports `family_unit_<isa>()`.
//
//   header   template <class T> struct TowerKernels { function pointers };  HHMPN_DECLARE_UNITS(tower, TowerKernels)
//   unit     HHMPN_EXPORT_UNIT(tower, TowerKernels, make_kernels)   at the end of unit.cpp
//   host     const TowerKernels<T>& k = tower<T>();
#pragma once
#include "base/isa.h"
#include "base/types.h"

namespace hhmpn {

template <template <class> class Kernels>
struct Tables {
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  const Kernels<bf16>* half;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == 2) return *half;
    else if constexpr (sizeof(T) == 4) return *f32;
    else return *f64;
  }
};

}  // namespace hhmpn

// The build defines HHMPN_UNIT_<ISA> for every unit that it links.
#if defined(HHMPN_UNIT_AVX2)
#define HHMPN_IF_AVX2(code) code
#else
#define HHMPN_IF_AVX2(code)
#endif
#if defined(HHMPN_UNIT_AVX512)
#define HHMPN_IF_AVX512(code) code
#else
#define HHMPN_IF_AVX512(code)
#endif
#if defined(HHMPN_UNIT_AVX512_BF16)
#define HHMPN_IF_AVX512_BF16(code) code
#else
#define HHMPN_IF_AVX512_BF16(code)
#endif

#if defined(HHMPN_ISA)
#define HHMPN_DECLARE_UNITS(family, Kernels) static_assert(sizeof(hhmpn::Kernels<float>) > 0);
#else
#define HHMPN_DECLARE_UNITS(family, Kernels)                                                        \
  namespace hhmpn {                                                                                 \
  Tables<Kernels> family##_unit_portable();                                                         \
  Tables<Kernels> family##_unit_avx2();                                                             \
  Tables<Kernels> family##_unit_avx512();                                                           \
  Tables<Kernels> family##_unit_avx512_bf16();                                                      \
  inline Tables<Kernels> family##_tables() {                                                        \
    Tables<Kernels> t = family##_unit_portable();                                                   \
    HHMPN_IF_AVX2(if (isa() == Isa::avx2) t = family##_unit_avx2();)                                \
    HHMPN_IF_AVX512(if (isa() >= Isa::avx512) t = family##_unit_avx512();)                          \
    HHMPN_IF_AVX512_BF16(if (isa() == Isa::avx512_bf16) t.half = family##_unit_avx512_bf16().half;) \
    return t;                                                                                       \
  }                                                                                                 \
  template <class T>                                                                                \
  const Kernels<T>& family() {                                                                      \
    static const Tables<Kernels> tables = family##_tables();                                        \
    return tables.of<T>();                                                                          \
  }                                                                                                 \
  }
#endif

#define HHMPN_UNIT_NAME_(family, isa) family##_unit_##isa
#define HHMPN_UNIT_NAME(family, isa) HHMPN_UNIT_NAME_(family, isa)
// The bf16 unit holds bf16 kernels only: for the other dtypes it would repeat the AVX-512 unit.
#if defined(__AVX512BF16__)
#define HHMPN_EXPORT_UNIT(family, Kernels, make)         \
  namespace hhmpn {                                      \
  Tables<Kernels> HHMPN_UNIT_NAME(family, HHMPN_ISA)() { \
    static constexpr Kernels<bf16> half = make<bf16>();  \
    return {nullptr, nullptr, &half};                    \
  }                                                      \
  }
#else
#define HHMPN_EXPORT_UNIT(family, Kernels, make)           \
  namespace hhmpn {                                        \
  Tables<Kernels> HHMPN_UNIT_NAME(family, HHMPN_ISA)() {   \
    static constexpr Kernels<float> f32 = make<float>();   \
    static constexpr Kernels<double> f64 = make<double>(); \
    static constexpr Kernels<bf16> half = make<bf16>();    \
    return {&f32, &f64, &half};                            \
  }                                                        \
  }
#endif
