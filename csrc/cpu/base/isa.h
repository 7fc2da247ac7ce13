// Which instruction set the kernels run on: the best that this CPU has and the build holds, or HHMPN_CPU_ISA.
#pragma once

namespace hhmpn {

enum class Isa { portable, avx2, avx512, avx512_bf16 };

Isa isa();  // throws c10::Error, one sentence, where HHMPN_CPU_ISA names what cannot run
const char* isa_name(Isa isa);

}  // namespace hhmpn
